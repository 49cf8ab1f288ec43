"""Where a run's conversations come from: a dataset of the catalogue from the hub, what stands in for it offline, or the
user's file."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from ..errors import InputError
from .catalogue import Dataset, find_dataset
from .documentation import documentation_identity, documentation_rows
from .files import bad_row, check_file, content_hash, read_rows
from .hub import HubSplit, code_of, first_opened
from .rows import any_conversation, checked_row, conversation_columns, unread
from .text import HELD_OUT_SHARE, check_source, chitchat_conversations, chitchat_names, same_file_note
from .turns import Message, RowError

READING = "rows 2"  # part of the cache keys: raise it when the same rows come to mean other conversations
LOOKED_AT = 1_000  # rows in which columns that are not read are looked for

# What a reading gives: the row's number from 0, its conversation or None, and what is wrong with a row that is none.
NumberedConversation = tuple[int, list[Message] | None, str]


@dataclass(frozen=True)
class Conversations:
    """Conversations that can be read any number of times, always the same, from any row on.

    Attributes:
        origin: what they are and where they came from, for plots, model cards and saved settings.
        licence: their licence, or how the user can know.
        identity: changes when the conversations do.
        read: starts a pass at a row's number.
        read_as: how the rows of `identity` become conversations. With `identity`, what prepared rows are known by.
    """

    origin: str
    licence: str
    identity: str
    read: Callable[[int], Iterator[NumberedConversation]] = field(repr=False)
    read_as: str = READING

    def __iter__(self) -> Iterator[list[Message]]:
        return (messages for _, messages, _ in self.read(0) if messages is not None)


@dataclass(frozen=True)
class ConversationSplits:
    train: Conversations
    validation: Conversations
    source: str  # "hub", "offline" or "file": what "auto" came to
    template: str  # the chat template of the data, for a model that has none
    note: str = ""  # what the user should know about how the source was chosen


def load_conversations(
    dataset: str | None = None,
    data_source: str = "auto",
    data: str | None = None,
    eval_data: str | None = None,
    skip_bad_rows: bool = False,
    held_out: str = "hash",
    held_out_share: float = HELD_OUT_SHARE,
    max_samples: int | None = None,
) -> ConversationSplits:
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
    check_source(data_source, data)
    if dataset is None and data is None:
        raise InputError("there is nothing to train on; name a --dataset, or a file with --data.")
    if max_samples is not None and max_samples < 1:
        raise InputError(f"max_samples has to be at least 1, got {max_samples}.")
    entry = None if dataset is None else find_dataset(dataset)
    if data is not None:
        splits = _file_splits("dialogue" if entry is None else entry.template, data, eval_data, skip_bad_rows)
    elif data_source == "offline":
        splits = _offline_splits(dataset, entry)
    else:
        opened, problem = first_opened(entry)
        if opened is not None:
            splits = _hub_splits(entry, opened, note=f"Before it: {problem}." if problem else "")
        elif data_source == "hub" or entry.offline is None:
            raise InputError(
                f"dataset {dataset!r} could not be had from the hub ({problem}); check the network and the name, or "
                "give a file with --data.",
                code_of(problem),
            )
        else:
            note = f"The hub could not be reached ({problem}): {entry.offline} stands in for {dataset}."
            splits = replace(_offline_splits(dataset, entry), note=note)
    if eval_data is not None and data is None:
        splits = replace(splits, validation=_file_conversations(eval_data, "eval_data", skip_bad_rows))
    if splits.validation is None:
        train, validation = hold_out(splits.train, held_out, held_out_share)
        note = f"{splits.note} {held_out_share:.0%} of the conversations are held out for evaluation.".strip()
        splits = replace(splits, train=train, validation=validation, note=note)
    if max_samples is not None:
        splits = replace(splits, train=first_rows(splits.train, max_samples))
    return splits


def hold_out(whole: Conversations, how: str, share: float) -> tuple[Conversations, Conversations]:
    """(for training, held out): a share of the conversations, drawn once and for all."""
    if not 0 < share < 1:
        raise InputError(f"held_out_share has to lie between 0 and 1, got {share}.")
    if how == "random":
        from datasets import Dataset as Rows

        numbers = Rows.from_dict({"row": range(sum(1 for _ in whole.read(0)))})
        drawn = set(numbers.train_test_split(test_size=share, seed=42)["test"]["row"])

        def is_held_out(number: int, messages: list[Message] | None) -> bool:
            return number in drawn
    else:

        def is_held_out(number: int, messages: list[Message] | None) -> bool:
            return messages is not None and conversation_hash(messages) % 10_000 < share * 10_000

    def part(name: str, wanted: bool) -> Conversations:
        def read(first_row: int) -> Iterator[NumberedConversation]:
            for number, messages, complaint in whole.read(first_row):
                if is_held_out(number, messages) == wanted:
                    yield number, messages, complaint

        return replace(
            whole, origin=f"{whole.origin}, {name}", identity=f"{whole.identity}/{how} {share} {name}", read=read
        )

    return part("train", False), part("held out", True)


def conversation_hash(messages: list[Message]) -> int:
    """64 bits that are equal for equal conversations, on every machine."""
    said = json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def first_rows(whole: Conversations, count: int) -> Conversations:
    """The rows with a number below `count`."""

    def read(first_row: int) -> Iterator[NumberedConversation]:
        return itertools.takewhile(lambda item: item[0] < count, whole.read(first_row))

    return replace(
        whole, origin=f"{whole.origin}, first {count:,} rows", identity=f"{whole.identity}/{count}", read=read
    )


def _file_splits(template: str, data: str, eval_data: str | None, skip_bad_rows: bool) -> ConversationSplits:
    train = _file_conversations(data, "data", skip_bad_rows)
    notes = [unread_in_file(data, conversation_columns)]
    validation = None
    if eval_data is not None:
        validation = _file_conversations(eval_data, "eval_data", skip_bad_rows)
        notes.append(same_file_note(train.identity, validation.identity))
    return ConversationSplits(train, validation, "file", template, " ".join(filter(None, notes)))


def unread_in_file(data: str, columns: Callable[[dict], tuple[str, ...]]) -> str:
    """`unread_note` of the user's file."""
    return unread_note((row for _, row in read_rows(check_file(data, "data"), "data")), columns)


def unread_note(rows: Iterable[object], columns: Callable[[dict], tuple[str, ...]]) -> str:
    """What the first LOOKED_AT rows hold that is not read, in a sentence, "" for nothing.

    Args:
        columns: those that are read of a row.
    """
    rows = (row for row in itertools.islice(rows, LOOKED_AT) if isinstance(row, dict))
    names = dict.fromkeys(name for row in rows for name in unread(row, columns(row)))
    return f"What the rows hold besides is not read: {', '.join(names)}." if names else ""


def _file_conversations(path: str, name: str, skip_bad_rows: bool) -> Conversations:
    file = check_file(path, name)
    if file.suffix.lower() == ".txt":
        raise InputError(
            f"{name} {path!r} is running text; conversations come as .jsonl, .json, .csv or .parquet.", "NL-402"
        )

    def read(first_row: int) -> Iterator[NumberedConversation]:
        for number, (place, row) in enumerate(read_rows(file, name)):
            if number < first_row:
                continue
            try:
                yield number, any_conversation(checked_row(row)), ""
            except RowError as error:
                if not skip_bad_rows:
                    raise bad_row(file, name, place, error) from error
                yield number, None, f"{place}: {error}"

    read_as = f"{READING}{', without bad ones' if skip_bad_rows else ''}"
    return Conversations(f"file {file.name}", "as the file's owner says", f"file/{content_hash(file)}", read, read_as)


def _hub_splits(entry: Dataset, opened: dict[str, HubSplit], note: str) -> ConversationSplits:
    def conversations(split: HubSplit) -> Conversations:
        return Conversations(
            split.origin, entry.licence, split.identity, lambda first: _numbered(split.read(first), first)
        )

    if not entry.columns:  # of the others we know what is not read
        note = f"{note} {unread_note(opened['train'].read(), conversation_columns)}".strip()
    validation = conversations(opened["validation"]) if "validation" in opened else None
    return ConversationSplits(conversations(opened["train"]), validation, "hub", entry.template, note)


def _offline_splits(dataset: str, entry: Dataset) -> ConversationSplits:
    if entry.offline == "chitchat":

        def conversations(name: str, held_out: bool) -> Conversations:
            return Conversations(
                *chitchat_names(name),
                lambda first: _numbered(
                    ({"dialog": turns} for turns in list(chitchat_conversations(held_out))[first:]), first
                ),
            )

        return ConversationSplits(
            conversations("train", False), conversations("validation", True), "offline", entry.template
        )
    if entry.offline == "documentation":
        documentation = Conversations(
            "questions about the Python standard library, from its documentation",
            "PSF-2.0",
            documentation_identity(),
            lambda first: _numbered(documentation_rows()[first:], first),
        )
        return ConversationSplits(documentation, None, "offline", entry.template)
    raise InputError(f"dataset {dataset!r} has no offline stand-in; give a file with --data.")


def _numbered(rows: Iterable[dict], first_row: int) -> Iterator[NumberedConversation]:
    """Rows that the user cannot mend: a bad one is left out, with its complaint."""
    for number, row in enumerate(rows, start=first_row):
        try:
            yield number, any_conversation(row), ""
        except RowError as error:
            yield number, None, f"row {number + 1}: {error}"
