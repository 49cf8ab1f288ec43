"""The order of rows: contiguous lanes of text, and the same number for each process."""

from collections.abc import Iterator

import datasets
import numpy as np
import pyarrow
from torch.utils.data import Dataset, Sampler

from ..data.text import IGNORED

NO_ROW = -2  # number of a blank row: no row follows it, and it follows none


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


class RowsOnDisk(Dataset):
    """Rows of `packed_rows`, and after the last of them a blank one, without a supervised token. A batch is read at
    once, for one by one takes longer than an update on a GPU."""

    def __init__(self, rows: datasets.Dataset):
        self.table = rows.with_format("arrow")
        self.transform = rows.format["format_kwargs"].get("transform", lambda columns: columns)

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, indices: list[int]) -> dict[str, np.ndarray]:
        """Columns of tokens [B, T], of numbers [B]."""
        is_blank = np.asarray(indices) == len(self)
        table, batch = self.table[np.where(is_blank, 0, indices)], {}
        for name in table.column_names:
            column = table[name].combine_chunks()
            is_row = pyarrow.types.is_fixed_size_list(column.type)
            values = (column.flatten() if is_row else column).to_numpy(zero_copy_only=False)  # bools are packed bits
            batch[name] = values.reshape(len(indices), -1) if is_row else values
        batch = self.transform(batch)
        if is_blank.any():
            batch["labels"] = np.where(is_blank[:, None], IGNORED, batch["labels"])
            batch["row"] = np.where(is_blank, NO_ROW, batch["row"])
        return batch


class EvenSampler(Sampler[int]):
    """The rows in the order of `order`, then blank ones until all processes have whole batches. accelerate would fill
    up with rows that were seen already."""

    def __init__(self, order: Sampler[int], num_rows: int, multiple: int):
        self.order, self.blank, self.multiple = order, num_rows, multiple

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.order) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [self.blank] * (len(self) - len(self.order))
