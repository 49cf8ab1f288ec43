"""From conversations to rows of tokens on disk: whole conversations side by side in rows of one length, prepared once,
in shards that survive a machine that vanishes.

Dimensions: N tokens of a conversation, T = max_length tokens of a row.
"""

import collections
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerFast

from ..errors import InputError
from .batches import IGNORED, Document, EvaluationDocuments, TextCounts
from .cache import cache_path, known, seal, writing
from .chat_template import ConversationFormat, EncodedConversation, encoding_of
from .conversations import Conversations

FORMAT_VERSION = 4  # part of the cache key: raise it when rows are laid out otherwise
CONVERSATIONS_PER_CALL = 500
ROWS_PER_SHARD = 20_000  # of the data set: what is lost at most when the machine vanishes
BLOCKS_AHEAD = 3  # of the one in use
OPEN_ROWS = 64  # rows that still take conversations
COMPLAINTS_KEPT = 5
COMPLETE = "complete"  # sealed when the data have ended


@dataclass
class ConversationCounts(TextCounts):
    """What was read. tokens, bytes and words are of what is learned; `documents` are the conversations kept."""

    all_tokens: int = 0  # learned or not
    rows_read: int = 0
    bad_rows: int = 0
    too_long: int = 0  # not even the first answer fits into a row
    shortened: int = 0  # conversations that lost their last turns
    packed_rows: int = 0  # rows of tokens made of them
    complaints: list[str] = field(default_factory=list)  # the first few about bad rows

    def add(self, other: "ConversationCounts") -> None:
        super().add(other)
        del self.complaints[COMPLAINTS_KEPT:]

    def remarks(self, max_length: int) -> list[str]:
        """What the user should know about rows that were left out or shortened, a sentence each."""
        sentences = []
        if self.bad_rows:
            sentences.append(f"{self.bad_rows:,} rows are no conversations and were left out ({self.complaints[0]}).")
        if self.too_long:
            sentences.append(
                f"{self.too_long:,} conversations have no answer within {max_length} tokens and were left out; a "
                "larger --max_length takes more of them."
            )
        if self.shortened:
            sentences.append(f"{self.shortened:,} conversations were shortened to {max_length} tokens.")
        return sentences


def conversation_rows(
    conversations: Conversations, tokenizer: PreTrainedTokenizerFast, form: ConversationFormat
) -> tuple[datasets.Dataset, ConversationCounts]:
    """Training rows on disk with the columns of `packed_rows`: `input_ids`, `labels` (shifted; only what is learned),
    `position_ids` (0 where a conversation begins), [T] each, and `row`.

    Written once per data, tokenizer and format under the cache folder. A preparation that was cut off goes on after
    its last whole shard, at the very row.

    Raises:
        InputError: a bad row in the user's file, or no conversation at all.
    """
    source = (conversations.identity, conversations.read_as)
    key = (FORMAT_VERSION, *source, tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, form)
    folder = cache_path("conversations", "", *key)
    counts, shards = _prepare(conversations, tokenizer, form, folder)
    if not counts.documents:
        raise InputError(
            f"{conversations.origin} gives no conversation to train on; {' '.join(counts.remarks(form.max_length))}",
            "NL-403",
        )
    # A shard of which every conversation is left out has no file.
    rows = datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in shards if path.exists()])
    rows.set_transform(_training_columns)
    return rows, counts


def conversation_documents(
    conversations: Conversations, tokenizer: PreTrainedTokenizerFast, form: ConversationFormat
) -> tuple[EvaluationDocuments, ConversationCounts]:
    """Held-out conversations, cut as for training, in memory."""
    counts = ConversationCounts()
    documents = []
    for _, block, found in encoded_blocks(conversations, tokenizer, form, 0):
        counts.add(found)
        # The first token is the one that every document is read after.
        documents += [Document(item.token_ids[1:], item.counts, item.supervised[1:]) for item in block]
    return EvaluationDocuments(documents, conversations.origin), counts


def held_out_documents(
    conversations: Conversations, tokenizer: PreTrainedTokenizerFast, form: ConversationFormat
) -> EvaluationDocuments:
    """Held-out conversations to evaluate on, of which there have to be some.

    Raises:
        InputError: there are none.
    """
    documents, counts = conversation_documents(conversations, tokenizer, form)
    if not documents.documents:
        raise InputError(
            f"{documents.origin} holds no conversation to evaluate on; "
            f"{' '.join(counts.remarks(form.max_length)) or 'give --eval_data or a larger --held_out_share.'}",
            "NL-403",
        )
    return documents


def encoded_blocks(
    conversations: Conversations, tokenizer: PreTrainedTokenizerFast, form: ConversationFormat, first_row: int
) -> Iterator[tuple[int, list[EncodedConversation], ConversationCounts]]:
    """(number of the row after the block, its conversations as tokens, what was counted)."""
    numbered = conversations.read(first_row)
    blocks = iter(lambda: list(itertools.islice(numbered, CONVERSATIONS_PER_CALL)), [])
    waiting = collections.deque()
    # While one block is with the tokenizer, which takes every core and leaves Python alone, others are rendered here or
    # unpacked in the other thread.
    with ThreadPoolExecutor(2) as executor:
        for block in itertools.chain(blocks, [None] * BLOCKS_AHEAD):
            future = None
            if block is not None:
                told = [messages for _, messages, _ in block if messages is not None]
                future = executor.submit(encoding_of(told, tokenizer, form))
            waiting.append((block, future))
            if len(waiting) <= BLOCKS_AHEAD:
                continue
            rows, future = waiting.popleft()
            if rows is not None:
                encoded = future.result()
                kept = [item for item in encoded if item is not None]
                yield rows[-1][0] + 1, kept, _count(rows, encoded, kept)


def _count(rows, encoded: list[EncodedConversation | None], kept: list[EncodedConversation]) -> ConversationCounts:
    complaints = [complaint for _, messages, complaint in rows if messages is None]
    counts = ConversationCounts(
        all_tokens=sum(len(item.token_ids) for item in kept),
        rows_read=len(rows),
        bad_rows=len(complaints),
        too_long=len(encoded) - len(kept),
        shortened=sum(item.turns_left_out > 0 for item in kept),
        complaints=complaints,
    )
    for item in kept:
        TextCounts.add(counts, item.counts)
    return counts


def _prepare(
    conversations: Conversations, tokenizer: PreTrainedTokenizerFast, form: ConversationFormat, folder: Path
) -> tuple[ConversationCounts, list[Path]]:
    """Write shards until the data end, after the last whole one; each is sealed with the number of the row after it and
    what was counted. Returns all that was counted, and the shards."""
    total, next_row, shards = ConversationCounts(), 0, []
    while (said := known(shard := folder / f"shard-{len(shards):05d}.arrow")) is not None:
        total.add(ConversationCounts(**said["counts"]))
        next_row = said["next_row"]
        shards.append(shard)
    if known(folder / COMPLETE) == asdict(total):
        return total, shards
    blocks = encoded_blocks(conversations, tokenizer, form, next_row)
    while True:
        shard = folder / f"shard-{len(shards):05d}.arrow"
        with writing(shard) as temporary:
            counts, next_row = _write_shard(blocks, tokenizer, form.max_length, total.packed_rows, temporary)
        if not counts.rows_read:
            break
        seal(shard, {"next_row": next_row, "counts": asdict(counts)})
        total.add(counts)
        shards.append(shard)
    seal(folder / COMPLETE, asdict(total))
    return total, shards


def _write_shard(blocks, tokenizer, max_length: int, first_number: int, path: Path) -> tuple[ConversationCounts, int]:
    """(what was counted, number of the row after the shard); writes nothing if the data have ended."""
    counts, next_row = ConversationCounts(), 0
    packer = RowPacker(max_length)
    token_type = "uint16" if len(tokenizer) <= 2**16 else "int32"
    columns = {"input_ids": token_type, "supervised": "bool", "starts": "bool"}
    features = datasets.Features(
        {name: datasets.Sequence(datasets.Value(kind), length=max_length) for name, kind in columns.items()}
        | {"row": datasets.Value("int64")}
    )

    def write(packed: list[list[EncodedConversation]]) -> None:
        if packed:
            columns = _columns(packed, max_length, tokenizer.pad_token_id)
            writer.write_batch(columns | {"row": first_number + counts.packed_rows + np.arange(len(packed))})
            counts.packed_rows += len(packed)

    with ArrowWriter(path=str(path), features=features) as writer:
        for row_after, block, found in blocks:
            next_row = row_after
            counts.add(found)
            write(list(packer.add(block)))
            if counts.rows_read >= ROWS_PER_SHARD:
                break
        write(packer.rows)
        if counts.packed_rows:
            writer.finalize()
    if not counts.packed_rows:
        path.unlink()
    return counts, next_row


class RowPacker:
    """Lays conversations into rows: each into the fullest open row that has room for it."""

    def __init__(self, max_length: int):
        self.max_length = max_length
        self.rows: list[list[EncodedConversation]] = []
        self.lengths: list[int] = []

    def add(self, items: list[EncodedConversation]) -> Iterator[list[EncodedConversation]]:
        """Gives the rows that are closed: the fullest, when there are too many open ones."""
        for item in items:
            room = [i for i, length in enumerate(self.lengths) if length + len(item.token_ids) <= self.max_length]
            if room:
                chosen = max(room, key=self.lengths.__getitem__)
                self.rows[chosen].append(item)
                self.lengths[chosen] += len(item.token_ids)
                continue
            if len(self.rows) == OPEN_ROWS:
                fullest = self.lengths.index(max(self.lengths))
                del self.lengths[fullest]
                yield self.rows.pop(fullest)
            self.rows.append([item])
            self.lengths.append(len(item.token_ids))


def _columns(packed: list[list[EncodedConversation]], max_length: int, pad_token_id: int) -> dict[str, np.ndarray]:
    """Rows of conversations end to end, padded to T: [rows, T] each."""
    shape = (len(packed), max_length)
    token_ids = np.full(shape, pad_token_id, dtype=np.int32)
    supervised, starts = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for row, items in enumerate(packed):
        begin = 0
        for item in items:
            end = begin + len(item.token_ids)
            token_ids[row, begin:end], supervised[row, begin:end] = item.token_ids, item.supervised
            starts[row, begin] = True
            begin = end
    return {"input_ids": token_ids, "supervised": supervised, "starts": starts}


def _training_columns(rows: dict[str, list]) -> dict[str, np.ndarray]:
    """Columns as they are kept, [rows, T], -> columns as the trainer takes them. Positions run on over the padding,
    which nobody reads."""
    input_ids = np.asarray(rows["input_ids"], dtype=np.int32)
    supervised, starts = np.asarray(rows["supervised"], dtype=bool), np.asarray(rows["starts"], dtype=bool)
    labels = np.where(supervised, input_ids, IGNORED)
    labels = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED)
    columns = np.arange(input_ids.shape[1], dtype=np.int32)
    position_ids = columns - np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids, "row": np.asarray(rows["row"])}
