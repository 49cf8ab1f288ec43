"""The head of a causal language model on last hidden states, a few tokens at a time: nobody holds the logits of a whole
batch.

Dimensions: N tokens, n tokens of a chunk, H width of a head's input, V vocabulary, v token types of a block.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from .matrix_products import linear

CHUNK_ELEMENTS = 2**27  # logits at a time, of student and teacher together: 512 MB in fp32
TYPES_PER_BLOCK = 8192  # logits of one matrix product and of one pass of softmax
GPU_TYPES_PER_BLOCK = 2**15  # there Python launches smaller ones more slowly than they run
MAX_ROWS = 512  # tokens of a chunk, where the vocabulary is small
LENGTHS = 8  # of chunks, see `padded`


@dataclass(frozen=True)
class Head:
    """How a model turns its last hidden states into logits: softcap * tanh((hidden @ weight.t() + bias) / softcap).

    Args:
        weight: [V, H].
        bias: [V] or None.
        softcap: Gemma 2's final_logit_softcapping; None leaves the logits as they are.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None


def plain_model(model: nn.Module) -> PreTrainedModel:
    """The causal-LM inside PEFT's wrapper, with the adapters in it; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def split_head(model: nn.Module) -> tuple[nn.Module, Head]:
    """(the network that gives `last_hidden_state`, the head on top of it)."""
    plain = plain_model(model)
    layer = plain.get_output_embeddings()
    softcap = getattr(plain.config, "final_logit_softcapping", None)
    bias = getattr(layer, "bias", None)
    return plain.base_model, Head(layer.weight.detach(), None if bias is None else bias.detach(), softcap)


@torch.no_grad()
def token_scores(
    hidden: torch.Tensor,
    head: Head,
    labels: torch.LongTensor,
    teacher_hidden: torch.Tensor | None = None,
    teacher_head: Head | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every token by itself.

    Args:
        hidden: [N, H]; labels: [N], every one scored.
        teacher_hidden: [N, H of the teacher's head]; None: no teacher.
        teacher_head: None: the student's.

    Returns:
        The cross-entropies [N] in nats, whether the label is the likeliest type [N], and KL(teacher || student) [N],
        zeros without a teacher.
    """
    models = checked_models(hidden, head, labels, teacher_hidden, teacher_head)
    nats, kl = (torch.zeros(len(labels), dtype=models[0].sum_dtype, device=hidden.device) for _ in range(2))
    correct = torch.zeros(len(labels), dtype=torch.bool, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for tokens in chunks(models, len(labels)):
            count = tokens.stop - tokens.start
            of_chunk = padded(labels[tokens], models)
            student, teacher = logits_of_chunk(models, tokens)
            normalizers = log_normalizers(student)
            nats[tokens] = (normalizers - label_logits(student, of_chunk))[:count, 0]
            correct[tokens] = (likeliest(student) == of_chunk)[:count]
            if teacher is not None:
                wanted = log_normalizers(teacher)
                for own, block in zip(student, teacher, strict=True):
                    kl[tokens] += divergence(own.sub_(normalizers), block.sub_(wanted))[0][:count, 0]
    return nats, correct, kl


@dataclass(frozen=True)
class Model:
    """One side of the loss: hidden [N, H], its head, the dtypes of its matrix products and of softmax and sums."""

    hidden: torch.Tensor
    head: Head
    dtype: torch.dtype
    sum_dtype: torch.dtype


def checked_models(
    hidden: torch.Tensor,
    head: Head,
    labels: torch.Tensor,
    teacher_hidden: torch.Tensor | None,
    teacher_head: Head | None,
) -> list[Model]:
    """The student, and the teacher if there is one."""
    assert hidden.ndim == 2 and labels.shape == hidden.shape[:1], (hidden.shape, labels.shape)
    sides = [(hidden.detach(), head)]
    if teacher_hidden is not None:
        assert len(teacher_hidden) == len(hidden), (teacher_hidden.shape, hidden.shape)
        sides.append((teacher_hidden.detach(), head if teacher_head is None else teacher_head))
        types, teacher_types = (len(side[1].weight) for side in sides)
        if types != teacher_types:
            raise ValueError(
                f"teacher_head has {teacher_types:,} token types and head has {types:,}: "
                "a teacher's predictions teach only a student with the same vocabulary."
            )
    device = hidden.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    natural = [torch.promote_types(rows.dtype, side_head.weight.dtype) for rows, side_head in sides]
    sum_dtype = torch.float64 if torch.float64 in natural else torch.float32
    return [
        Model(rows, side_head, autocast or dtype, sum_dtype)
        for (rows, side_head), dtype in zip(sides, natural, strict=True)
    ]


def chunks(models: list[Model], count: int, rows: int | None = None) -> list[slice]:
    """`rows`: tokens of a chunk, if not `rows_of_chunk`."""
    rows = rows or rows_of_chunk(models)
    return [slice(begin, min(begin + rows, count)) for begin in range(0, count, rows)]


def rows_of_chunk(models: list[Model]) -> int:
    return min(max(CHUNK_ELEMENTS // (len(models) * len(models[0].head.weight)), 1), MAX_ROWS)


def padded(chunk: torch.Tensor, models: list[Model]) -> torch.Tensor:
    """[n] or [n, H], with zeros up to one of a few lengths: oneDNN keeps a program of megabytes for every length."""
    if chunk.is_cuda:
        return chunk
    step = math.ceil(rows_of_chunk(models) / LENGTHS)
    missing = -len(chunk) % step
    return functional.pad(chunk, (0, 0) * (chunk.ndim - 1) + (0, missing)) if missing else chunk


def types_per_block(tensor: torch.Tensor) -> int:
    return GPU_TYPES_PER_BLOCK if tensor.is_cuda else TYPES_PER_BLOCK


def blocks_of_types(weight: torch.Tensor) -> list[slice]:
    step = types_per_block(weight)
    return [slice(begin, begin + step) for begin in range(0, len(weight), step)]


def blocks_of_logits(rows: torch.Tensor, head: Head, sum_dtype: torch.dtype) -> list[torch.Tensor]:
    """[n, H] -> the logits [n, V] in blocks [n, v], each contiguous: oneDNN would copy a slice of columns."""
    blocks = []
    for types in blocks_of_types(head.weight):  # where the dtypes differ, the weight is never copied as a whole
        bias = None if head.bias is None else head.bias[types].to(rows.dtype)
        logits = linear(rows, head.weight[types].to(rows.dtype), bias).to(sum_dtype)
        if head.softcap is not None:
            logits.div_(head.softcap).tanh_().mul_(head.softcap)
        blocks.append(logits)
    return blocks


def logits_of_chunk(models: list[Model], tokens: slice) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
    """The blocks [n, v] of the student's and of the teacher's logits; n is padded."""
    rows = [padded(model.hidden[tokens].to(model.dtype), models) for model in models]
    student, teacher = models[0], models[-1]
    if len(models) == 1:
        return blocks_of_logits(rows[0], student.head, student.sum_dtype), None
    if student.head is teacher.head and student.dtype == teacher.dtype:
        # One product for both: the head, much the larger factor, is read and cast once.
        blocks = blocks_of_logits(torch.cat(rows), student.head, student.sum_dtype)
        return [block[: len(rows[0])] for block in blocks], [block[len(rows[0]) :] for block in blocks]
    return tuple(
        blocks_of_logits(chunk, model.head, model.sum_dtype) for chunk, model in zip(rows, models, strict=True)
    )


def log_normalizers(blocks: list[torch.Tensor], temperature: float = 1.0) -> torch.Tensor:
    """log sum exp(logits / temperature), [n, 1]."""
    parts = [(block if temperature == 1 else block / temperature).logsumexp(1, keepdim=True) for block in blocks]
    return torch.cat(parts, dim=1).logsumexp(1, keepdim=True)


def place(labels: torch.Tensor, block: torch.Tensor, begin: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The labels' columns in the block of types from `begin` on, and whether they are in it at all; both [n, 1]."""
    columns = labels[:, None] - begin
    return columns.clamp(0, block.shape[1] - 1), (columns >= 0) & (columns < block.shape[1])


def label_logits(blocks: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """[n, 1]."""
    found = torch.zeros_like(blocks[0][:, :1])
    for index, block in enumerate(blocks):
        columns, inside = place(labels, block, index * types_per_block(block))
        found = torch.where(inside, block.gather(1, columns), found)
    return found


def likeliest(blocks: list[torch.Tensor]) -> torch.Tensor:
    """The argmax of the logits, [n]."""
    highest, columns = (torch.stack(parts) for parts in zip(*(block.max(dim=1) for block in blocks), strict=True))
    block = highest.argmax(0, keepdim=True)
    return (columns.gather(0, block) + block * types_per_block(highest))[0]


def divergence(own: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(teacher || student) [n, 1] of a block of log-probabilities [n, v], and the teacher's probabilities [n, v];
    overwrites `wanted`."""
    probabilities = wanted.exp()
    return wanted.sub_(own).mul_(probabilities).sum(1, keepdim=True), probabilities


@contextlib.contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """The base of a tuned model, for as long as the context lasts. PEFT's own `disable_adapter` takes stock of all
    layers before and after: 60 ms for Gemma-2B's, more than a GPU needs for the base."""
    layers = [module for module in model.modules() if isinstance(vars(module).get("_disable_adapters"), bool)]
    assert layers or not hasattr(model, "disable_adapter"), "PEFT switches its adapters off in another way"
    were_off = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was_off in zip(layers, were_off, strict=True):
            layer._disable_adapters = was_off
