"""Batches of rows that are about equally long: the less is padded, the less is computed."""

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices


class ShuffledLengthGroups(LengthGroupedSampler):
    """transformers' groups of like length, in a random order: its own puts long batches before short ones, which an
    optimizer's state follows. The order comes from seed and epoch, so that a resumed run takes the same one."""

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int):
        super().__init__(batch_size, lengths=list(lengths))
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        whole = len(indices) - len(indices) % self.batch_size  # an incomplete batch stays the last
        batches = torch.tensor(indices[:whole]).view(-1, self.batch_size)
        yield from batches[torch.randperm(len(batches), generator=generator)].flatten().tolist()
        yield from indices[whole:]
