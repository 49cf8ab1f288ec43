"""Examples of their own lengths, one a row, for models that are fine-tuned: conversations of the new task, stretches of
text to rehearse what a model knew, and how the two are mixed.

Dimensions: N tokens of an example, B rows, T tokens of the longest.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from datasets.arrow_writer import ArrowWriter
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import ConcatDataset, Sampler
from transformers import PreTrainedTokenizerFast

from ..data.cache import cache_path, kept
from ..data.chat_template import ConversationFormat
from ..data.conversations import ConversationCounts, Conversations, encoded_blocks
from ..data.text import IGNORED, Text, TextCounts, TextPiece, tokenized_pieces
from ..errors import InputError

PARAGRAPH_CHARACTERS = 400
FORMAT_VERSION = 3  # part of the cache key: raise it when examples are made otherwise
FEATURES = datasets.Features(
    {"input_ids": datasets.Sequence(datasets.Value("int32")), "supervised": datasets.Sequence(datasets.Value("bool"))}
)


def conversation_examples(
    conversations: Conversations, tokenizer: PreTrainedTokenizerFast, form: ConversationFormat
) -> tuple[datasets.Dataset, ConversationCounts]:
    """Every conversation as one example: `input_ids` [N] and which of them are `supervised` [N]. Written once per data,
    tokenizer and format under the cache folder. Raises InputError: a bad row in the user's file, or no conversation at
    all."""
    key = (conversations.identity, conversations.read_as, tokenizer.chat_template, form)

    def examples(counts: ConversationCounts) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for _, block, found in encoded_blocks(conversations, tokenizer, form, 0):
            counts.add(found)
            yield from ((item.token_ids, item.supervised) for item in block)

    rows, counts = _written_once("examples", key, tokenizer, examples, ConversationCounts)
    if not counts.documents:
        raise InputError(
            f"{conversations.origin} gives no conversation to train on; {' '.join(counts.remarks(form.max_length))}",
            "NL-403",
        )
    return rows, counts


def text_examples(
    text: Text, tokenizer: PreTrainedTokenizerFast, max_length: int
) -> tuple[datasets.Dataset, TextCounts]:
    """Running text in stretches of at most `max_length` tokens, each after a beginning-of-text token and supervised
    whole. A stretch never goes over the end of a document. Raises InputError: there is no text."""

    def examples(counts: TextCounts) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        begin = np.asarray([tokenizer.bos_token_id], dtype=np.int32)
        for token_ids, _, found in tokenized_pieces(text.read(), tokenizer):
            counts.add(found)
            for start in range(0, len(token_ids), max_length - 1):
                stretch = np.concatenate([begin, token_ids[start : start + max_length - 1]])
                yield stretch, np.arange(len(stretch)) > 0

    rows, counts = _written_once("stretches", (text.identity, max_length), tokenizer, examples, TextCounts)
    if not counts.tokens:
        raise InputError(f"{text.origin} holds no text to rehearse; give another --rehearsal_data.", "NL-403")
    return rows, counts


def in_paragraphs(text: Text) -> Text:
    """The text with every paragraph (whole lines of 400 characters or more) as a document of its own: many short ones
    spread over all of it, where a few long ones would stand for little of it."""

    def read() -> Iterator[TextPiece]:
        for piece in text.read():
            held = ""
            for line in piece.text.splitlines(keepends=True):
                held += line
                if len(held) >= PARAGRAPH_CHARACTERS:
                    yield TextPiece(held, True)
                    held = ""
            if held.strip():
                yield TextPiece(held, True)

    return replace(text, read=read)


def _written_once(kind: str, key: tuple, tokenizer, examples, counts_class: type):
    path = cache_path(kind, ".arrow", FORMAT_VERSION, *key, tokenizer.backend_tokenizer.to_str(), tokenizer.bos_token)

    def write(target: Path) -> dict:
        counts = counts_class()
        with ArrowWriter(path=str(target), features=FEATURES) as writer:
            for token_ids, supervised in examples(counts):
                writer.write({"input_ids": token_ids, "supervised": supervised})
            writer.finalize()
        return asdict(counts)

    counts = counts_class(**kept(path, write))
    return datasets.Dataset.from_file(str(path)).with_format("numpy"), counts


class ExampleMix(ConcatDataset):
    """Examples of the new task, and after them those to rehearse."""

    def __init__(self, new: datasets.Dataset, rehearsal: datasets.Dataset | None):
        super().__init__([new] if rehearsal is None else [new, rehearsal])
        self.num_new, self.num_rehearsal = len(new), len(self) - len(new)
        self.lengths = np.concatenate([pc.list_value_length(part.data.column("input_ids")) for part in self.datasets])

    def rehearsed(self, ratio: float) -> int:
        """Examples to rehearse in an epoch, for `ratio` of them per example of the new task."""
        return round(ratio * self.num_new) if self.num_rehearsal else 0


class MixSampler(Sampler[int]):
    """Every epoch: all examples of the new task, and `ratio` times as many to rehearse, shuffled by seed and epoch, so
    that a resumed run sees what an unbroken one would. Examples to rehearse come from one endless sequence of passes
    over all of them, which goes on from epoch to epoch: none comes again before every other has been seen. Within the
    `batch` of an update they are sorted by length: the same update, with less padding in its micro-batches."""

    def __init__(self, mix: ExampleMix, ratio: float, batch: int, seed: int):
        self.mix, self.batch, self.seed, self.epoch = mix, batch, seed, 0
        self.per_epoch = mix.rehearsed(ratio)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.mix.num_new + self.per_epoch

    def __iter__(self) -> Iterator[int]:
        chosen = np.concatenate([np.arange(self.mix.num_new), self.mix.num_new + self._rehearsal()])
        order = np.random.default_rng((self.seed, self.epoch)).permutation(chosen)
        for begin in range(0, len(order), self.batch):
            update = order[begin : begin + self.batch]
            yield from update[np.argsort(self.mix.lengths[update], kind="stable")].tolist()

    def _rehearsal(self) -> np.ndarray:
        """Which of the examples to rehearse this epoch has."""
        if not self.per_epoch:
            return np.empty(0, dtype=np.int64)
        first, count = self.epoch * self.per_epoch, self.mix.num_rehearsal
        passes = range(first // count, (first + self.per_epoch - 1) // count + 1)
        orders = [np.random.default_rng((self.seed, number, 1)).permutation(count) for number in passes]
        return np.concatenate(orders)[first - passes.start * count :][: self.per_epoch]


def collate_examples(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Examples -> `input_ids` and `labels` [B, T], padded to the longest, and `supervised` [N], the numbers of the
    tokens in the flattened batch that have a label: a GPU that had to count them would keep Python waiting. labels[t]
    is what follows input_ids[t], or IGNORED where that is not supervised. Padding stands on the right, where attention
    does not look and no label is: no attention mask is needed."""
    ids = [torch.tensor(row["input_ids"], dtype=torch.long) for row in rows]
    labels = [item.where(torch.tensor(row["supervised"]), IGNORED) for item, row in zip(ids, rows, strict=True)]
    labels = pad_sequence([item[1:] for item in labels], batch_first=True, padding_value=IGNORED)
    return {
        "input_ids": pad_sequence([item[:-1] for item in ids], batch_first=True),
        "labels": labels,
        "supervised": (labels.flatten() != IGNORED).nonzero()[:, 0],
    }
