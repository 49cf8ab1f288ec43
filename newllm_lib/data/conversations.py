"""Conversations: where a run takes them from (a dataset of the catalogue from the hub, its stand-in offline, or the
user's file), and as tokens: whole conversations side by side in rows of one length, prepared once, in shards that
survive a machine that vanishes.

Dimensions: N tokens of a conversation, T = max_length tokens of a row.
"""

import collections
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedTokenizerFast

from ..errors import InputError
from ..progress import Progress
from .cache import cache_path, kept, known, made
from .chat_template import ConversationFormat, EncodedConversation, encode_conversations, template_for
from .examples import COLUMNS, Message, any_conversation, conversation_columns, unread
from .files import PlacedRow, RowError, check_file, checked_row, content_hash, count_rows, read_rows, refuser
from .mix import mixed, parse_mix, same_data
from .sources import HELD_OUT_SHARE, Origin, Splits, find_data, find_dataset
from .text import Document, EvaluationDocuments, PackedRows, TextCounts, same_file_note, token_bytes, token_type
from .tokenizer import build_tokenizer

# Part of the cache keys: raise the number when the same rows come to mean other conversations.
READING = f"rows 2 {COLUMNS}"
LOOKED_AT = 1_000  # rows in which columns that are not read are looked for
FORMAT_VERSION = 6  # part of the cache key: raise it when rows are laid out otherwise
CONVERSATIONS_PER_CALL = 500
ROWS_PER_SHARD = 20_000  # of the data set: what is lost at most when the machine vanishes
BLOCKS_AHEAD = 3  # of the one in use
OPEN_ROWS = 64  # rows that still take conversations
COMPLAINTS_KEPT = 5
STREAM_HELD_OUT = 20_000  # rows of a stream in which conversations to evaluate on are looked for: all would take hours

# A row as it is read: its number from 0, its conversation or None, and what is wrong with a row that is none.
NumberedConversation = tuple[int, list[Message] | None, str]


@dataclass(frozen=True)
class Conversations(Origin):
    """Conversations that can be read any number of times, always the same, from any row on."""

    read: Callable[[int], Iterator[NumberedConversation]] = field(repr=False)  # starts a pass at a row's number
    read_as: str = READING  # how the rows of `identity` become conversations; both are the key of prepared rows
    count: int | None = None  # about how many rows a whole pass goes over, where that is known

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
    test_data: str | None = None,
    mix: str | None = None,
) -> Splits[Conversations]:
    """The conversations to train on and those to evaluate on. Raises InputError: bad file or row, unknown dataset or
    source, or data out of reach.

    Args:
        dataset: a name of the catalogue or an id on the hub; with `data`, gives the chat template alone.
        data_source: as for `load_text`.
        held_out: where no validation split is given: "hash" holds out a share by what a conversation says, so that
            equal ones are on the same side whatever is added; "random" draws rows with `train_test_split(seed=42)`,
            as the published runs did.
        max_samples: rows of the training split to look at, the first ones; None takes all.
        test_data: a file that the figures are of; without it, the hub's test split, or what is evaluated on.
        mix: a second dataset and its share of every split, as `parse_mix` reads them.
    """
    other, percent = (None, 0) if mix is None else parse_mix(mix)
    if max_samples is not None and max_samples < 1:
        raise InputError(f"max_samples has to be at least 1, got {max_samples}.")
    entry = None if dataset is None else find_dataset(dataset)
    found = find_data(dataset, entry, data_source, data)
    notes = [found.note]
    if found.source == "file":
        train, validation, test = _of_file(data, "data", skip_bad_rows), None, None
        notes.append(unread_note(read_rows(check_file(data, "data"), "data"), conversation_columns))
    else:
        sides = {name: _of_rows(split, split.read, count=split.count) for name, split in found.splits.items()}
        train, validation, test = sides["train"], sides.get("validation"), sides.get("test")
        if not entry.columns:  # for the datasets of the catalogue we know what is not read
            notes.append(unread_note(found.splits["train"].read(0), conversation_columns))
    if test_data is not None:
        test = _of_file(test_data, "test_data", skip_bad_rows)
        notes.append(same_file_note(train.identity, test.identity, ("data", "test_data")))
    if other is not None:
        source = "auto" if found.source == "file" else found.source
        other = load_conversations(other, source, None, None, skip_bad_rows, held_out, held_out_share)
        if other.train.identity.startswith(train.identity):
            raise same_data(mix, train.origin)
        notes.append(other.note)
    if eval_data is not None:
        validation = _of_file(eval_data, "eval_data", skip_bad_rows)
        notes.append(same_file_note(train.identity, validation.identity))
    if validation is None:
        train, validation = hold_out(train, held_out, held_out_share)
        of_which = "the conversations"
        if found.source == "hub" and entry.streamed:
            validation, of_which = first_rows(validation, STREAM_HELD_OUT), f"the first {STREAM_HELD_OUT:,} rows"
        notes.append(f"{held_out_share:.0%} of {of_which} are held out for evaluation.")
    if other is not None:
        train = mixed(train, other.train, percent, again=True)
        if eval_data is None:
            validation = mixed(validation, other.validation, percent, again=False)
        if test is not None and test_data is None:
            test = mixed(test, other.reported, percent, again=False)
    if max_samples is not None:
        train = first_rows(train, max_samples)
    template = "dialogue" if entry is None else entry.template
    return Splits(train, validation, found.source, " ".join(filter(None, notes)), template, test)


def hold_out(whole: Conversations, how: str, share: float) -> tuple[Conversations, Conversations]:
    """(for training, held out): a share of the conversations, drawn once and for all."""
    if not 0 < share < 1:
        raise InputError(f"held_out_share has to lie between 0 and 1, got {share}.")
    if how == "random":
        rows = Progress(whole.read(0), desc="counting conversations", total=whole.count, unit="conversations")
        numbers = datasets.Dataset.from_dict({"row": range(sum(1 for _ in rows))})
        drawn = set(numbers.train_test_split(test_size=share, seed=42)["test"]["row"])

    def is_held_out(number: int, messages: list[Message] | None) -> bool:
        if how == "random":
            return number in drawn
        return messages is not None and conversation_hash(messages) % 10_000 < share * 10_000

    def rows(wanted: bool) -> Callable[[int], Iterator[NumberedConversation]]:
        return lambda first_row: (item for item in whole.read(first_row) if is_held_out(*item[:2]) == wanted)

    train = whole.part("train", f"{how} {share} train", rows(wanted=False))
    return train, whole.part("held out", f"{how} {share} held out", rows(wanted=True))


def conversation_hash(messages: list[Message]) -> int:
    """64 bits that are equal for equal conversations, on every machine."""
    said = json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def first_rows(whole: Conversations, count: int) -> Conversations:
    """The rows with a number below `count`."""
    most = functools.partial(itertools.takewhile, lambda item: item[0] < count)
    first = whole.part(f"first {count:,} rows", str(count), lambda first_row: most(whole.read(first_row)))
    return replace(first, count=min(count, whole.count or count))


def unread_note(rows: Iterable[PlacedRow], columns: Callable[[dict], tuple[str, ...]]) -> str:
    """A sentence that names what the first LOOKED_AT rows hold and is not read, "" for nothing. `columns` gives those
    that are read of a row."""
    rows = [row for _, row in itertools.islice(rows, LOOKED_AT) if isinstance(row, dict)]
    names = dict.fromkeys(name for row in rows for name in unread(row, columns(row)))
    return f"What the rows hold besides is not read: {', '.join(names)}." if names else ""


def _of_file(path: str, name: str, skip_bad_rows: bool) -> Conversations:
    file = check_file(path, name, rows_of="conversations")
    origin = Origin(f"file {file.name}", "as the file's owner says", f"file/{content_hash(file)}")
    read_as = f"{READING}{', without bad ones' if skip_bad_rows else ''}"
    refuse = refuser(file, name, skip_bad_rows)

    def rows(first: int) -> Iterator[PlacedRow]:
        return itertools.islice(read_rows(file, name), first, None)

    return _of_rows(origin, rows, refuse, read_as, count_rows(file))


def _of_rows(
    source: Origin,
    rows: Callable[[int], Iterator[PlacedRow]],
    refuse: Callable[[str, RowError], None] = lambda place, error: None,
    read_as: str = READING,
    count: int | None = None,
) -> Conversations:
    """Conversations of rows. `refuse` may raise; without it, a bad row is left out, with its complaint."""

    def read(first_row: int) -> Iterator[NumberedConversation]:
        for number, (place, row) in enumerate(rows(first_row), start=first_row):
            try:
                yield number, any_conversation(checked_row(row)), ""
            except RowError as error:
                refuse(place, error)
                yield number, None, f"{place}: {error}"

    return Conversations(source.origin, source.licence, source.identity, read, read_as, count)


def learned_tokenizer(
    conversations: Conversations, template: str, kind: str, vocab_size: int | None
) -> PreTrainedTokenizerFast:
    """A tokenizer learned from the contents of the turns, role words left out, with the chat template of
    `template_for`. Raises InputError: as `build_tokenizer`."""
    space = " " if kind == "bpe" else ""  # as ROLE_TEMPLATE has it
    counted = Progress(conversations, desc="reading", total=conversations.count, unit="conversations")
    contents = (space + message["content"] for messages in counted for message in messages)
    tokenizer = build_tokenizer(kind, contents, vocab_size, f"{conversations.identity}/{conversations.read_as}")
    tokenizer.chat_template = template_for(tokenizer, template)
    return tokenizer


@dataclass
class ConversationCounts(TextCounts):
    """What was read. tokens, bytes and words count supervised text; `documents` are the conversations kept."""

    all_tokens: int = 0  # supervised or not
    rows_read: int = 0
    bad_rows: int = 0
    too_long: int = 0  # not even the first answer fits into a row
    shortened: int = 0  # conversations that lost their last turns
    complaints: list[str] = field(default_factory=list)  # the first few about bad rows

    def add(self, other: "ConversationCounts") -> None:
        super().add(other)
        del self.complaints[COMPLAINTS_KEPT:]

    def remarks(self, max_length: int) -> list[str]:
        """What the user should know about rows that were left out or shortened, a sentence each."""
        complaint = "".join(self.complaints[:1])
        too_long = f"{self.too_long:,} conversations have no answer within {max_length} tokens and were left out"
        sentences = (
            (self.bad_rows, f"{self.bad_rows:,} rows are no conversations and were left out ({complaint})."),
            (self.too_long, f"{too_long}; a larger --max_length takes more of them."),
            (self.shortened, f"{self.shortened:,} conversations were shortened to {max_length} tokens."),
        )
        return [sentence for count, sentence in sentences if count]


# (number of the row after the block, its conversations as tokens, their counts)
Block = tuple[int, list[EncodedConversation], ConversationCounts]


def conversation_rows(
    conversations: Conversations, tokenizer: PreTrainedTokenizerFast, form: ConversationFormat
) -> tuple[PackedRows, ConversationCounts]:
    """Training rows on disk: conversations end to end, padded. Raises InputError: a bad row in the user's file, or no
    conversation at all.

    Written once per data, tokenizer and format under the cache folder, in shards. A preparation that was cut off goes
    on after its last whole shard, at the very row.
    """
    folder = cache_path("conversations", "", *_key(conversations, tokenizer, form))
    counts, shards, next_row, blocks, is_last = ConversationCounts(), [], 0, None, False
    while not is_last:
        shards.append(folder / f"shard-{len(shards):05d}.rows")
        if (note := known(shards[-1])) is None:
            blocks = blocks or encoded_blocks(conversations, tokenizer, form, next_row)
            note = made(shards[-1], functools.partial(_write_shard, blocks, tokenizer, form.max_length))
        else:
            blocks = None
        counts.add(ConversationCounts(**note["counts"]))
        next_row, is_last = note["next_row"], note["is_last"]
    if not counts.documents:
        what = f"{conversations.origin} gives no conversation to train on"
        raise InputError(f"{what}; {' '.join(counts.remarks(form.max_length))}", "NL-403")
    return PackedRows(shards, tokenizer, form.max_length), counts


def conversation_documents(
    conversations: Conversations, tokenizer: PreTrainedTokenizerFast, form: ConversationFormat
) -> EvaluationDocuments:
    """Held-out conversations to evaluate on, cut as for training, in memory. Encoded once and found in the cache folder
    again. Raises InputError: a bad row in the user's file, or no conversation at all."""
    kind = token_type(tokenizer)

    def write(path: Path) -> list[tuple[int, ...]]:
        """The tokens of all; the note has the length and the counts of each."""
        total, notes = ConversationCounts(), []
        with path.open("wb") as stream:
            for _, block, found in encoded_blocks(conversations, tokenizer, form, 0):
                total.add(found)
                for item in block:
                    stream.write(token_bytes(kind, item.token_ids, item.supervised))
                    notes.append((len(item.token_ids), *vars(item.counts).values()))
        if not notes:
            remedy = " ".join(total.remarks(form.max_length)) or "give --eval_data or a larger --held_out_share."
            raise InputError(f"{conversations.origin} holds no conversation to evaluate on; {remedy}", "NL-403")
        return notes

    path = cache_path("held-out", ".rows", *_key(conversations, tokenizer, form))
    lengths, counts = zip(*((length, TextCounts(*counts)) for length, *counts in kept(path, write)), strict=True)
    tokens = np.split(np.fromfile(path, kind), np.cumsum(lengths[:-1]))
    # Every document is read after a first token: that of the conversation.
    documents = [
        Document(item["token"][1:].astype(np.int32), found, item["supervised"][1:])
        for item, found in zip(tokens, counts, strict=True)
    ]
    return EvaluationDocuments(documents, conversations.origin)


def _key(
    conversations: Conversations, tokenizer: PreTrainedTokenizerFast, form: ConversationFormat
) -> tuple[object, ...]:
    """What prepared conversations are known by."""
    data = conversations.identity, conversations.read_as
    return FORMAT_VERSION, *data, tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, form


def encoded_blocks(
    conversations: Conversations, tokenizer: PreTrainedTokenizerFast, form: ConversationFormat, first_row: int
) -> Iterator[Block]:
    """The conversations from a row on as tokens, CONVERSATIONS_PER_CALL rows a block."""
    numbered = conversations.read(first_row)
    state = {"total": conversations.count, "initial": first_row, "unit": "conversations"}
    blocks = iter(lambda: list(itertools.islice(numbered, CONVERSATIONS_PER_CALL)), [])
    talks = ((rows, [messages for _, messages, _ in rows if messages is not None]) for rows in blocks)
    # While one block is with the tokenizer, which takes every core and leaves Python alone, another is rendered or
    # unpacked in the other thread.
    with ThreadPoolExecutor(2) as executor, Progress(desc="splitting into tokens", **state) as progress:
        started = ((rows, executor.submit(encode_conversations, said, tokenizer, form)) for rows, said in talks)
        waiting = collections.deque(itertools.islice(started, BLOCKS_AHEAD))
        while waiting:
            waiting.extend(itertools.islice(started, 1))
            rows, future = waiting.popleft()
            encoded = future.result()
            kept = [item for item in encoded if item is not None]
            complaints = [complaint for _, messages, complaint in rows if messages is None]
            counts = ConversationCounts(
                all_tokens=sum(len(item.token_ids) for item in kept), rows_read=len(rows), bad_rows=len(complaints),
                too_long=len(encoded) - len(kept), shortened=sum(item.turns_left_out > 0 for item in kept),
                complaints=complaints,
            )  # fmt: skip
            for item in kept:
                TextCounts.add(counts, item.counts)
            progress.update(rows[-1][0] + 1 - progress.n)
            yield rows[-1][0] + 1, kept, counts


def _write_shard(blocks: Iterator[Block], tokenizer: PreTrainedTokenizerFast, max_length: int, path: Path) -> dict:
    """The note about the shard: its counts, the number of the row after it, and whether there is none."""
    counts, note = ConversationCounts(), {"next_row": 0}
    kind, padding = token_type(tokenizer), [tokenizer.pad_token_id]

    def items() -> Iterator[EncodedConversation]:
        for row_after, block, found in blocks:
            note["next_row"] = row_after
            counts.add(found)
            yield from block
            if counts.rows_read >= ROWS_PER_SHARD:
                return

    with path.open("wb") as stream:
        for row in _packed(items(), max_length):
            for item in row:
                stream.write(token_bytes(kind, item.token_ids, item.supervised, starts_document=True))
            missing = max_length - sum(len(item.token_ids) for item in row)
            stream.write(token_bytes(kind, padding * missing, supervised=False))
        stream.write(token_bytes(kind, padding, supervised=False))
    return note | {"counts": asdict(counts), "is_last": counts.rows_read < ROWS_PER_SHARD}


def _packed(items: Iterable[EncodedConversation], max_length: int) -> Iterator[list[EncodedConversation]]:
    """Rows of conversations: each goes into the fullest open row that has room for it. With too many open rows, the
    fullest is closed."""
    rows: list[list[EncodedConversation]] = []
    lengths: list[int] = []
    for item in items:
        size = len(item.token_ids)
        if min(lengths, default=max_length) + size > max_length:  # none has room
            if len(rows) == OPEN_ROWS:
                fullest = lengths.index(max(lengths))
                del lengths[fullest]
                yield rows.pop(fullest)
            rows.append([])
            lengths.append(0)
        room = (index for index, length in enumerate(lengths) if length + size <= max_length)
        fullest = max(room, key=lengths.__getitem__)
        rows[fullest].append(item)
        lengths[fullest] += size
    yield from rows
