"""From text to rows of tokens: packing for training, whole documents for evaluation.

Dimensions: B rows, T = max_length tokens.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerFast

from ..errors import InputError
from ..models.chunked_loss import IGNORED
from .cache import cache_path, kept
from .text import Text, TextPiece
from .tokenizer import text_backend

PIECES_PER_CALL = 1000
CHARACTERS_PER_CALL = 1 << 21  # their tokens take some hundred times as many bytes
FORMAT_VERSION = 2  # part of the cache key: raise it when rows are laid out otherwise


@dataclass
class TextCounts:
    """What was read: the denominators of every metric."""

    documents: int = 0
    tokens: int = 0  # of the text itself, without the end-of-text that opens each document
    bytes: int = 0  # UTF-8
    words: int = 0  # separated by white space
    unknown_tokens: int = 0

    def add(self, other: "TextCounts") -> None:
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)


@dataclass
class Document:
    """One document as tokens."""

    token_ids: np.ndarray  # int32, [tokens]
    counts: TextCounts
    supervised: np.ndarray | None = None  # bool, [tokens]; None is all


@dataclass
class EvaluationDocuments:
    """Whole documents, ready to be scored."""

    documents: list[Document]
    origin: str

    @property
    def counts(self) -> TextCounts:
        total = TextCounts()
        for document in self.documents:
            total.add(document.counts)
        return total

    def sample(self, max_tokens: int) -> "EvaluationDocuments":
        """Evenly spaced whole documents with about `max_tokens` tokens, at least one; always the same ones."""
        every = max(math.ceil(self.counts.tokens / max_tokens), 1)
        return EvaluationDocuments(self.documents[::every], self.origin)


def tokenized_pieces(
    pieces: Iterable[TextPiece], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[np.ndarray, bool, TextCounts]]:
    """(token ids, starts a document, counts) for every piece; encoded many at a time, in parallel."""
    for block in _blocks(pieces):
        encodings = text_backend(tokenizer).encode_batch_fast([piece.text for piece in block], add_special_tokens=False)
        for piece, encoding in zip(block, encodings, strict=True):
            token_ids = np.asarray(encoding.ids, dtype=np.int32)
            counts = count_text([piece.text], token_ids, tokenizer, documents=int(piece.starts_document))
            yield token_ids, piece.starts_document, counts


def count_text(
    texts: Sequence[str], token_ids: np.ndarray, tokenizer: PreTrainedTokenizerFast, documents: int = 1
) -> TextCounts:
    """The counts of texts, whose tokens are `token_ids`."""
    unknown = 0 if tokenizer.unk_token_id is None else int((token_ids == tokenizer.unk_token_id).sum())
    num_bytes, words = sum(len(text.encode()) for text in texts), sum(len(text.split()) for text in texts)
    return TextCounts(documents, len(token_ids), num_bytes, words, unknown)


def _blocks(pieces: Iterable[TextPiece]) -> Iterator[list[TextPiece]]:
    """The pieces in blocks that are encoded together."""
    block: list[TextPiece] = []
    characters = 0
    for piece in pieces:
        block.append(piece)
        characters += len(piece.text)
        if len(block) == PIECES_PER_CALL or characters >= CHARACTERS_PER_CALL:
            yield block
            block, characters = [], 0
    if block:
        yield block


def evaluation_documents(text: Text, tokenizer: PreTrainedTokenizerFast) -> EvaluationDocuments:
    """The text as whole documents in memory: evaluation sets are small, training sets are not."""
    parts: list[list[np.ndarray]] = []
    totals: list[TextCounts] = []
    for token_ids, starts_document, counts in tokenized_pieces(text.read(), tokenizer):
        if starts_document or not parts:
            parts.append([])
            totals.append(TextCounts())
        parts[-1].append(token_ids)
        totals[-1].add(counts)
    documents = [Document(np.concatenate(arrays), counts) for arrays, counts in zip(parts, totals, strict=True)]
    return EvaluationDocuments([document for document in documents if len(document.token_ids)], text.origin)


def packed_rows(text: Text, tokenizer: PreTrainedTokenizerFast, max_length: int) -> tuple[datasets.Dataset, TextCounts]:
    """Training rows on disk, in the order of the text, every one full but for the last.

    Columns, [T] each: `input_ids`; `labels`, already shifted (labels[t] follows input_ids[t]); `position_ids`, the
    position in the document, 0 at the end-of-text token that opens it; and `row`, the row's number. Written once per
    text, tokenizer and length under the cache folder, and found there again.

    Raises:
        InputError: the text is shorter than one row.
    """
    arrow_path = cache_path(
        "rows", ".arrow", FORMAT_VERSION, text.identity, tokenizer.backend_tokenizer.to_str(), max_length
    )

    def write(path: Path) -> dict[str, int]:
        counts = TextCounts()
        column = datasets.Sequence(datasets.Value("int32"), length=max_length)
        features = dict.fromkeys(("input_ids", "labels", "position_ids"), column) | {"row": datasets.Value("int64")}
        with ArrowWriter(path=str(path), features=datasets.Features(features)) as writer:
            for number, row in enumerate(_rows(text, tokenizer, max_length, counts)):
                writer.write({**row, "row": number})
            writer.finalize()
        return asdict(counts)

    counts = TextCounts(**kept(arrow_path, write))
    if counts.tokens < max_length:
        raise InputError(
            f"{text.origin} gives {counts.tokens} tokens, fewer than one row of max_length {max_length}; give more "
            f"text or a max_length of at most {max(counts.tokens, 2)}.",
            "NL-403",
        )
    return datasets.Dataset.from_file(str(arrow_path)).with_format("numpy"), counts


def _rows(
    text: Text, tokenizer: PreTrainedTokenizerFast, max_length: int, counts: TextCounts
) -> Iterator[dict[str, np.ndarray]]:
    """Cut the stream `<eot> document <eot> document ... <eot>` into rows; the target of a token is the next one."""
    end_of_text = np.asarray([tokenizer.eos_token_id], dtype=np.int32)
    tokens = np.empty(0, dtype=np.int32)
    positions = np.empty(0, dtype=np.int32)
    next_position = 0
    for token_ids, starts_document, seen in tokenized_pieces(text.read(), tokenizer):
        counts.add(seen)
        if starts_document:
            next_position = 0
            token_ids = np.concatenate([end_of_text, token_ids])
        tokens = np.concatenate([tokens, token_ids])
        positions = np.concatenate([positions, next_position + np.arange(len(token_ids), dtype=np.int32)])
        next_position += len(token_ids)
        full = (len(tokens) - 1) // max_length  # a row needs one token more, for its last target
        for begin in range(0, full * max_length, max_length):
            end = begin + max_length
            inputs, labels = tokens[begin:end], tokens[begin + 1 : end + 1]
            yield {"input_ids": inputs, "labels": labels, "position_ids": positions[begin:end]}
        tokens, positions = tokens[full * max_length :], positions[full * max_length :]
    if len(tokens):
        missing = max_length - len(tokens)
        yield {
            "input_ids": np.pad(tokens, (0, missing), constant_values=tokenizer.pad_token_id),
            "labels": np.pad(np.append(tokens[1:], end_of_text), (0, missing), constant_values=IGNORED),
            # Positions run on over the padding: it is no new document, and nothing after it is scored.
            "position_ids": np.append(positions, positions[-1] + 1 + np.arange(missing, dtype=np.int32)),
        }


def collate_rows(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Rows of `packed_rows` -> [B, T] tensors, and `row` [B]. `shift_labels` tells transformers that the labels are
    shifted already."""
    batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])).long() for name in rows[0]}
    return batch | {"shift_labels": batch["labels"]}


def positions_within_row(position_ids: torch.Tensor) -> torch.Tensor:
    """[B, T] positions in the document -> positions for a model that sees one row at a time: a document that goes on
    from the row before starts again at 0."""
    columns = torch.arange(position_ids.shape[1], device=position_ids.device)
    last_start = torch.where(position_ids == 0, columns, 0).cummax(dim=1).values
    return columns - last_start
