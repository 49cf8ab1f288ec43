"""Rows for several processes: every row once, and the same number for each process."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ..data.batches import IGNORED

NO_ROW = -2  # number of a blank row: no row follows it, and it follows none


class RowsAndBlank(Dataset):
    """The rows, and after the last of them one that nothing is learned from."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows) + 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index < len(self.rows):
            return self.rows[index]
        row = self.rows[0]
        return {**row, "labels": np.full_like(row["labels"], IGNORED), "row": np.int64(NO_ROW)}


class EvenSampler(Sampler[int]):
    """The rows in the order of `order`, then blank ones until all processes have whole batches. accelerate would fill
    up with rows that were seen already."""

    def __init__(self, order: Sampler[int], num_rows: int, multiple: int):
        self.order = order
        self.blank = num_rows
        self.multiple = multiple

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.order) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [self.blank] * (len(self) - len(self.order))


def true_for_any_process(flag: bool, device: torch.device) -> bool:
    """True if it is for any process; every process has to ask."""
    tensor = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return bool(tensor)
