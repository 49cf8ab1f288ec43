"""Truncated back-propagation through time: the context at the end of a row goes on at the start of the row after it.

Dimensions: B rows of a batch, S size of a context, N contexts held.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler

from ..models.context_cache import ContextCache

CONTEXT_FILE = "carried_context.safetensors"


class LaneSampler(Sampler[int]):
    """Rows in an order that keeps the text contiguous: the text is cut into `lanes` stretches, and every update takes
    the next row of each. Each epoch starts at another row, so the cuts and the few rows left over change.

    Args:
        num_rows: rows of the data set.
        lanes: rows per update, over all devices and accumulation steps.
    """

    def __init__(self, num_rows: int, lanes: int, seed: int):
        self.num_rows = num_rows
        self.lanes = min(lanes, num_rows)
        self.rows_per_lane = num_rows // self.lanes
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.lanes * self.rows_per_lane

    def __iter__(self) -> Iterator[int]:
        first = int(np.random.default_rng((self.seed, self.epoch)).integers(self.num_rows))
        for step in range(self.rows_per_lane):
            for lane in range(self.lanes):
                yield (first + lane * self.rows_per_lane + step) % self.num_rows


class ContextCarrier:
    """Holds the context after each row last seen, and hands it to the row that follows it in the text.

    Known by row number alone, so it is right under accumulation, after a resume and at the seam of two epochs, where
    no row follows the one before and all contexts begin at zero.
    """

    def __init__(self, lanes: int):
        self.lanes = lanes
        self.rows = torch.empty(0, dtype=torch.long)  # [N]
        self.contexts: torch.Tensor | None = None  # [N, S]

    def take(self, rows: torch.Tensor) -> ContextCache:
        """The cache to start rows [B] with; a row whose predecessor is not held starts from zero."""
        if self.contexts is None:
            return ContextCache()
        follows = self.rows[None, :] + 1 == rows.cpu()[:, None]  # [B, N]
        index = follows.int().argmax(dim=1).to(self.contexts.device)
        known = follows.any(dim=1, keepdim=True).to(self.contexts.device)
        return ContextCache(torch.where(known, self.contexts[index], 0.0))

    def keep(self, rows: torch.Tensor, contexts: torch.Tensor) -> None:
        """Hold `contexts` [B, S] after `rows` [B] in the place of the oldest."""
        contexts = contexts.detach()
        held = contexts if self.contexts is None else torch.cat([self.contexts, contexts])
        self.rows = torch.cat([self.rows, rows.cpu()])[-self.lanes :]
        self.contexts = held[-self.lanes :]

    def gathered(self, accelerator, args) -> "ContextCarrier":
        """What all processes hold, in the order in which one process would: they take batches in turn."""
        if args.world_size == 1 or self.contexts is None:
            return self
        whole = ContextCarrier(self.lanes * args.world_size)
        shape = (args.world_size, -1, args.per_device_train_batch_size)
        rows = accelerator.gather(self.rows.to(self.contexts.device)).cpu()
        contexts = accelerator.gather(self.contexts.contiguous())
        whole.rows = rows.view(shape).transpose(0, 1).flatten()
        whole.contexts = contexts.view(*shape, contexts.shape[1]).transpose(0, 1).flatten(0, 2)
        return whole

    def share_out(self, args) -> None:
        """Keep this process's part of what all of them hold."""
        if args.world_size == 1 or self.contexts is None:
            return
        # At a row each, as many as there are: of fewer, nobody knows whose they are, and contexts begin at zero.
        if len(self.rows) != self.lanes * args.world_size:
            self.rows, self.contexts = self.rows[:0], None
            return
        shape = (-1, args.world_size, args.per_device_train_batch_size)
        self.rows = self.rows.view(shape)[:, args.process_index].flatten()
        self.contexts = self.contexts.view(*shape, self.contexts.shape[1])[:, args.process_index].flatten(0, 1)

    def save(self, checkpoint: Path) -> None:
        if self.contexts is not None:
            save_file({"rows": self.rows, "contexts": self.contexts.cpu().contiguous()}, checkpoint / CONTEXT_FILE)

    def load(self, checkpoint: Path, device: torch.device) -> None:
        if (checkpoint / CONTEXT_FILE).exists():
            tensors = load_file(checkpoint / CONTEXT_FILE)
            self.rows, self.contexts = tensors["rows"], tensors["contexts"].to(device)
