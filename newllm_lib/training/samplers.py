"""The order of rows: contiguous lanes of text, and the same number for each process."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class LaneSampler(Sampler[int]):
    """Rows in an order that keeps the text contiguous: the text is cut into `lanes` stretches, and every update takes
    the next row of each. Each epoch starts at another row, so the cuts and the few rows left over change.

    Args:
        num_rows: rows of the data set.
        lanes: rows per update, over all devices and accumulation steps.
    """

    def __init__(self, num_rows: int, lanes: int, seed: int):
        self.num_rows, self.lanes = num_rows, min(lanes, num_rows)
        self.rows_per_lane = num_rows // self.lanes
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.lanes * self.rows_per_lane

    def __iter__(self) -> Iterator[int]:
        first = int(np.random.default_rng((self.seed, self.epoch)).integers(self.num_rows))
        for step in range(self.rows_per_lane):
            for lane in range(self.lanes):
                yield (first + lane * self.rows_per_lane + step) % self.num_rows


class EvenSampler(Sampler[int]):
    """The rows in the order of `order`, then blank ones, with the number after the last, until all processes have whole
    batches. accelerate would fill up with rows that were seen already."""

    def __init__(self, order: Sampler[int], num_rows: int, multiple: int):
        self.order, self.blank, self.multiple = order, num_rows, multiple

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.order) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [self.blank] * (len(self) - len(self.order))
