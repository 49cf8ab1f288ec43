"""Where a run's conversations come from: a dataset of the catalogue from the hub, its stand-in offline, or the user's
file."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile

from ..errors import InputError
from .examples import COLUMNS, Message, any_conversation, conversation_columns, unread
from .files import PlacedRow, RowError, check_file, checked_row, content_hash, read_rows, refuser
from .sources import HELD_OUT_SHARE, Examples, Origin, Splits, find_data, find_dataset
from .text import same_file_note

# Part of the cache keys: raise the number when the same rows come to mean other conversations.
READING = f"rows 2 {COLUMNS}"
LOOKED_AT = 1_000  # rows in which columns that are not read are looked for

# A row as it is read: its number from 0, its conversation or None, and what is wrong with a row that is none.
NumberedConversation = tuple[int, list[Message] | None, str]


@dataclass(frozen=True)
class Conversations(Origin):
    """Conversations that can be read any number of times, always the same, from any row on.

    Attributes:
        read: starts a pass at a row's number.
        read_as: how the rows of `identity` become conversations. Both together are the key of prepared rows.
    """

    read: Callable[[int], Iterator[NumberedConversation]] = field(repr=False)
    read_as: str = READING

    def __iter__(self) -> Iterator[list[Message]]:
        return (messages for _, messages, _ in self.read(0) if messages is not None)


def load_conversations(
    dataset: str | None = None,
    data_source: str = "auto",
    data: str | None = None,
    eval_data: str | None = None,
    skip_bad_rows: bool = False,
    held_out: str = "hash",
    held_out_share: float = HELD_OUT_SHARE,
    max_samples: int | None = None,
) -> Splits[Conversations]:
    """The conversations to train on and those to evaluate on.

    Args:
        dataset: a name of the catalogue or an id on the hub; with `data`, gives the chat template alone.
        data_source: as for `load_text`.
        held_out: where no validation split is given: "hash" holds out a share by what a conversation says, so that
            equal ones are on the same side whatever is added; "random" draws rows with `train_test_split(seed=42)`,
            as the published runs did.
        max_samples: rows of the training split to look at, the first ones; None takes all.

    Raises:
        InputError: bad file or row, unknown dataset or source, or data out of reach.
    """
    if max_samples is not None and max_samples < 1:
        raise InputError(f"max_samples has to be at least 1, got {max_samples}.")
    entry = None if dataset is None else find_dataset(dataset)
    found = find_data(dataset, entry, data_source, data)
    notes = [found.note]
    if found.source == "file":
        train, validation = _of_file(data, "data", skip_bad_rows), None
        notes.append(unread_note(read_rows(check_file(data, "data"), "data"), conversation_columns))
    else:
        # The user cannot mend these rows: a bad one is left out, with its complaint.
        sides = {name: _of_examples(rows, lambda place, error: None) for name, rows in found.splits.items()}
        train, validation = sides["train"], sides.get("validation")
        if not entry.columns:  # for the datasets of the catalogue we know what is not read
            notes.append(unread_note(found.splits["train"].read(0), conversation_columns))
    if eval_data is not None:
        validation = _of_file(eval_data, "eval_data", skip_bad_rows)
        notes.append(same_file_note(train.identity, validation.identity))
    if validation is None:
        train, validation = hold_out(train, held_out, held_out_share)
        notes.append(f"{held_out_share:.0%} of the conversations are held out for evaluation.")
    if max_samples is not None:
        train = first_rows(train, max_samples)
    template = "dialogue" if entry is None else entry.template
    return Splits(train, validation, found.source, " ".join(filter(None, notes)), template)


def hold_out(whole: Conversations, how: str, share: float) -> tuple[Conversations, Conversations]:
    """(for training, held out): a share of the conversations, drawn once and for all."""
    if not 0 < share < 1:
        raise InputError(f"held_out_share has to lie between 0 and 1, got {share}.")
    if how == "random":
        from datasets import Dataset as Rows

        numbers = Rows.from_dict({"row": range(sum(1 for _ in whole.read(0)))})
        drawn = set(numbers.train_test_split(test_size=share, seed=42)["test"]["row"])

    def is_held_out(number: int, messages: list[Message] | None) -> bool:
        if how == "random":
            return number in drawn
        return messages is not None and conversation_hash(messages) % 10_000 < share * 10_000

    def part(name: str, wanted: bool) -> Conversations:
        def read(first_row: int) -> Iterator[NumberedConversation]:
            return (item for item in whole.read(first_row) if is_held_out(*item[:2]) == wanted)

        identity = f"{whole.identity}/{how} {share} {name}"
        return replace(whole, origin=f"{whole.origin}, {name}", identity=identity, read=read)

    return part("train", False), part("held out", True)


def conversation_hash(messages: list[Message]) -> int:
    """64 bits that are equal for equal conversations, on every machine."""
    said = json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def first_rows(whole: Conversations, count: int) -> Conversations:
    """The rows with a number below `count`."""

    def read(first_row: int) -> Iterator[NumberedConversation]:
        return takewhile(lambda item: item[0] < count, whole.read(first_row))

    origin = f"{whole.origin}, first {count:,} rows"
    return replace(whole, origin=origin, identity=f"{whole.identity}/{count}", read=read)


def unread_note(rows: Iterable[PlacedRow], columns: Callable[[dict], tuple[str, ...]]) -> str:
    """A sentence that names what the first LOOKED_AT rows hold and is not read, "" for nothing. `columns` gives those
    that are read of a row."""
    rows = [row for _, row in islice(rows, LOOKED_AT) if isinstance(row, dict)]
    names = dict.fromkeys(name for row in rows for name in unread(row, columns(row)))
    return f"What the rows hold besides is not read: {', '.join(names)}." if names else ""


def _of_file(path: str, name: str, skip_bad_rows: bool) -> Conversations:
    file = check_file(path, name, rows_of="conversations")
    licence, identity = "as the file's owner says", f"file/{content_hash(file)}"
    rows = Examples(f"file {file.name}", licence, identity, lambda first: islice(read_rows(file, name), first, None))
    read_as = f"{READING}{', without bad ones' if skip_bad_rows else ''}"
    return _of_examples(rows, refuser(file, name, skip_bad_rows), read_as)


def _of_examples(rows: Examples, refuse: Callable[[str, RowError], None], read_as: str = READING) -> Conversations:
    """Conversations of rows. `refuse` may raise."""

    def read(first_row: int) -> Iterator[NumberedConversation]:
        for number, (place, row) in enumerate(rows.read(first_row), start=first_row):
            try:
                yield number, any_conversation(checked_row(row)), ""
            except RowError as error:
                refuse(place, error)
                yield number, None, f"{place}: {error}"

    return Conversations(rows.origin, rows.licence, rows.identity, read, read_as)
