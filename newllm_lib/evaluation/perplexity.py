"""Score held-out text: every token of it once, weighted by tokens, the context carried inside a document.

A recurrent model reads each document from its start to its end in chunks of `max_length`. A model with attention and
a fixed window reads overlapping windows: all but the first score their second half only, so every scored token has
at least half a window of context. Bits per byte are of the original UTF-8 text, as in lm-evaluation-harness.

Dimensions: B rows, T tokens, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ..data.text import IGNORED, Document, EvaluationDocuments, TextCounts
from ..models.frozen_head import adapters_off, plain_model, split_head, token_scores
from ..models.recurrent_model import ContextCache, RecurrentGenerationMixin


@dataclass(frozen=True)
class TextMetrics:
    """The metrics of one model on one text. Those that an incomplete tokenizer would flatter are None for it."""

    loss: float  # nats per supervised token
    perplexity: float  # exp(loss)
    token_accuracy: float  # share of tokens that were the most likely one
    bits_per_byte: float | None  # of the UTF-8 text; the only figure comparable across tokenizers
    word_perplexity: float | None  # exp(nats per white-space word)
    unk_rate: float  # share of tokens that are <unk>
    tokens: int
    words: int
    bytes: int


def text_metrics(nats: float, correct: int, counts: TextCounts) -> TextMetrics:
    """Totals over a text -> metrics. With unknown tokens the text was not scored whole: no figure per byte or word."""
    loss, whole = nats / counts.tokens, counts.unknown_tokens == 0
    bits_per_byte = nats / math.log(2) / counts.bytes if whole else None
    word_perplexity = _exp(nats / max(counts.words, 1)) if whole else None
    return TextMetrics(
        loss, _exp(loss), correct / counts.tokens, bits_per_byte, word_perplexity,
        counts.unknown_tokens / counts.tokens, counts.tokens, counts.words, counts.bytes,
    )  # fmt: skip


def _exp(nats: float) -> float:
    """exp that says infinity where a float cannot hold the result."""
    return math.exp(nats) if nats < 709 else math.inf


def score_documents(
    model: PreTrainedModel, documents: EvaluationDocuments, start_token_id: int, max_length: int, batch_size: int
) -> TextMetrics:
    """Metrics of `model` on `documents`; each is read after one `start_token_id`, which is not scored itself. A forward
    pass reads `batch_size` rows of `max_length` tokens, which is also the window of a model with attention."""
    return score_against_base(model, documents, start_token_id, max_length, batch_size, compare=False)[0]


@torch.no_grad()
def score_against_base(
    model: PreTrainedModel,
    documents: EvaluationDocuments,
    start_token_id: int,
    max_length: int,
    batch_size: int,
    compare: bool = True,
) -> tuple[TextMetrics, float]:
    """(metrics as of `score_documents`, mean KL(base ‖ model) per supervised token in nats). The base is the model
    itself with its adapters off; a model without adapters is its own base. Without `compare`, the KL is 0.

    The one arithmetic of every figure that is reported: that of the weights as they are, without the autocast that a
    trainer puts around `model.forward`, and never with the logits of a whole batch.
    """
    compare &= hasattr(model, "disable_adapter")
    sides = ("model", "base") if compare else ("model",)
    was_training = model.training
    model.eval()
    decoder, head = split_head(model)
    sequences = [token_sequence(document, start_token_id) for document in documents.documents]
    is_recurrent = isinstance(plain_model(model), RecurrentGenerationMixin)
    batches = (_carried_batches if is_recurrent else _window_batches)(sequences, max_length, batch_size)
    nats = divergence = 0.0
    correct = scored = 0
    caches: dict[str, ContextCache] = {}

    def hidden_states(side: str) -> torch.Tensor:
        # Windows begin at position 0 and are padded on the right: no position has to be given.
        state = {"position_ids": position_ids, "past_key_values": caches[side]} if is_recurrent else {}
        return decoder(input_ids=input_ids, use_cache=is_recurrent, **state).last_hidden_state[supervised]

    try:
        for *tensors, continues in batches:
            input_ids, labels, position_ids = (tensor.to(head.weight.device) for tensor in tensors)
            supervised = labels != IGNORED
            if continues:
                for cache in caches.values():
                    cache.batch_select_indices(torch.arange(len(input_ids)))
            elif is_recurrent:
                caches = {side: ContextCache() for side in sides}
            hidden, of_base = hidden_states("model"), None
            if compare:
                with adapters_off(model):
                    of_base = hidden_states("base")
            losses, hits, divergences = token_scores(hidden, head, labels[supervised], of_base)
            nats += float(losses.double().sum())
            divergence += float(divergences.double().sum())
            correct += int(hits.sum())
            scored += len(losses)
    finally:
        model.train(was_training)
    assert scored == documents.counts.tokens, f"scored {scored} of {documents.counts.tokens} tokens"
    return text_metrics(nats, correct, documents.counts), divergence / scored


def token_sequence(document: Document, start_token_id: int) -> tuple[np.ndarray, np.ndarray]:
    """What the model reads and what it is to say after each token, [tokens] each."""
    labels = document.token_ids.astype(np.int64)
    input_ids = np.concatenate([[start_token_id], labels[:-1]])
    if document.supervised is not None:
        labels = np.where(document.supervised, labels, IGNORED)
    return input_ids, labels


def _carried_batches(sequences: list[tuple], max_length: int, batch_size: int) -> Iterator[tuple]:
    """(input_ids, labels, position_ids, continues), [B, T] each. Documents are laid end to end in lanes of about equal
    length, and the lanes are read in chunks of T; B becomes less as lanes end, the last ones first."""
    lanes: list[list[tuple]] = [[] for _ in range(min(batch_size, len(sequences)))]
    lengths = [0] * len(lanes)
    for ids, labels in sorted(sequences, key=lambda sequence: len(sequence[0]), reverse=True):
        shortest = lengths.index(min(lengths))
        lanes[shortest].append((ids, labels, np.arange(len(ids))))
        lengths[shortest] += len(ids)
    rows = [map(np.concatenate, zip(*lanes[lane], strict=True)) for lane in np.argsort(lengths)[::-1]]
    # Beyond a lane's end: token 0 with position 1, which has no effect.
    parts = [padded(part, fill) for part, fill in zip(zip(*rows, strict=True), (0, IGNORED, 1), strict=True)]
    for begin in range(0, max(lengths), max_length):
        chunk = slice(sum(length > begin for length in lengths)), slice(begin, begin + max_length)
        yield *(part[chunk] for part in parts), begin > 0


def _window_batches(sequences: list[tuple], max_length: int, batch_size: int) -> Iterator[tuple]:
    """As `_carried_batches`, for overlapping windows that know nothing of each other."""
    stride = max(max_length // 2, 1)
    windows = []
    for document_ids, document_labels in sequences:
        scored_to = 0
        for begin in range(0, max(len(document_ids) - max_length, 0) + stride, stride):
            end = min(begin + max_length, len(document_ids))
            labels = document_labels[begin:end].copy()
            labels[: scored_to - begin] = IGNORED
            windows.append((document_ids[begin:end], labels))
            scored_to = end
    windows.sort(key=lambda window: len(window[0]))  # alike beside alike: less padding
    for begin in range(0, len(windows), batch_size):
        block = windows[begin : begin + batch_size]
        rows, labels = zip(*block, strict=True)
        input_ids, labels = padded(rows, 0), padded(labels, IGNORED)
        yield input_ids, labels, torch.arange(input_ids.shape[1]).expand_as(input_ids), False


def padded(rows: Iterable[np.ndarray], fill: int) -> torch.Tensor:
    """[B, T], T of the longest row."""
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True, padding_value=fill)
