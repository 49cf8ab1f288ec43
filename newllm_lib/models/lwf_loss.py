"""The loss of learning without forgetting through a frozen head, exact, and never holding all tokens' logits.

The cross-entropy of the new task, and KL(teacher || student) between the softened predictions of the old and the new
model (Li & Hoiem 2017, https://arxiv.org/abs/1606.09282, with Hinton et al. 2015's loss, https://arxiv.org/abs/1503.02531).
A few tokens at a time go through the head; the gradient is taken while their logits are at hand, so every logit is
computed once: three matrix products, as with full logits.

Dimensions: N tokens, n tokens of a chunk, H width of a head's input, V vocabulary, v token types of a block.
"""

import math
from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .matrix_products import linear, product

CHUNK_ELEMENTS = 2**27  # logits at a time, of student and teacher together: 512 MB in fp32
TYPES_PER_BLOCK = 8192  # logits of one matrix product and of one pass of softmax
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


@dataclass(frozen=True)
class LwfLoss:
    """Sums over tokens, in nats.

    Args:
        total: task + distill_weight * temperature**2 * kl; the one that can go backward.
        task: cross-entropy, with label smoothing.
        kl: KL(teacher || student) of the softened predictions; zero without a teacher.
    """

    total: torch.Tensor
    task: torch.Tensor
    kl: torch.Tensor


def lwf_loss(
    hidden: torch.Tensor,
    head: Head,
    labels: torch.LongTensor,
    teacher_hidden: torch.Tensor | None = None,
    teacher_head: Head | None = None,
    distill_weight: float = 0.0,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> LwfLoss:
    """Cross-entropy plus distill_weight * temperature**2 * KL(teacher || student); only `hidden` gets a gradient.

    Matrix products run in autocast's dtype, or without it in the one that hidden states and weight promote to; softmax
    and sums in fp32 (fp64 for fp64).

    Args:
        hidden: [N, H] of the student.
        labels: [N], every one scored.
        teacher_hidden: [N, H of the teacher's head]; None: no teacher.
        teacher_head: None: the student's.
        temperature: of both models in the KL; the cross-entropy's is 1.
        label_smoothing: as in `functional.cross_entropy`.
    """
    models = checked_models(hidden, head, labels, teacher_hidden, teacher_head)
    trains = torch.is_grad_enabled() and hidden.requires_grad
    with torch.autocast(hidden.device.type, enabled=False):
        total, task, kl = ChunkedLwf.apply(trains, hidden, labels, models, distill_weight, temperature, label_smoothing)
    return LwfLoss(total, task, kl)


@torch.no_grad()
def token_scores(
    hidden: torch.Tensor,
    head: Head,
    labels: torch.LongTensor,
    teacher_hidden: torch.Tensor | None = None,
    teacher_head: Head | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every token by itself, at temperature 1.

    Returns:
        The cross-entropies [N] in nats, whether the label is the likeliest type [N], and KL(teacher || student) [N],
        zeros without a teacher.
    """
    models = checked_models(hidden, head, labels, teacher_hidden, teacher_head)
    nats, kl = (torch.zeros(len(labels), dtype=models[0].sum_dtype, device=hidden.device) for _ in range(2))
    correct = torch.zeros(len(labels), dtype=torch.bool, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for tokens in chunks(models, len(labels)):
            nats[tokens], kl[tokens], _, correct[tokens] = loss_of_chunk(models, labels, tokens)
    return nats, correct, kl


class ChunkedLwf(torch.autograd.Function):
    """The gradient is made in the forward pass, for the sum of the losses, and scaled in the backward pass."""

    @staticmethod
    def forward(ctx, trains, hidden, labels, models, distill_weight, temperature, label_smoothing):
        task, kl = (torch.zeros((), dtype=models[0].sum_dtype, device=hidden.device) for _ in range(2))
        grad = torch.empty(hidden.shape, dtype=task.dtype, device=hidden.device) if trains else None
        options = distill_weight, temperature, label_smoothing
        for tokens in chunks(models, len(labels)):
            chunk_nats, chunk_kl, chunk_grad, _ = loss_of_chunk(models, labels, tokens, *options, trains)
            task += chunk_nats.sum()
            kl += chunk_kl.sum()
            if trains:
                grad[tokens] = chunk_grad
        ctx.gradient, ctx.dtype = grad, hidden.dtype
        ctx.mark_non_differentiable(task, kl)
        return task + distill_weight * temperature**2 * kl, task, kl

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, *_):
        if ctx.gradient is None:
            raise RuntimeError("lwf_loss can go backward once: its gradient was handed over.")
        gradient, ctx.gradient = ctx.gradient, None
        return None, gradient.mul_(grad_total).to(ctx.dtype), None, None, None, None, None


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


def chunks(models: list[Model], count: int) -> list[slice]:
    rows = rows_of_chunk(models)
    return [slice(begin, min(begin + rows, count)) for begin in range(0, count, rows)]


def rows_of_chunk(models: list[Model]) -> int:
    return min(max(CHUNK_ELEMENTS // (len(models) * len(models[0].head.weight)), 1), MAX_ROWS)


def padded(chunk: torch.Tensor, models: list[Model]) -> torch.Tensor:
    """[n] or [n, H], with zeros up to one of a few lengths: oneDNN keeps a program of megabytes for every length."""
    step = math.ceil(rows_of_chunk(models) / LENGTHS)
    missing = -len(chunk) % step
    return functional.pad(chunk, (0, 0) * (chunk.ndim - 1) + (0, missing)) if missing else chunk


def blocks_of_types(weight: torch.Tensor) -> list[slice]:
    return [slice(begin, begin + TYPES_PER_BLOCK) for begin in range(0, len(weight), TYPES_PER_BLOCK)]


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
        columns, inside = place(labels, block, index * TYPES_PER_BLOCK)
        found = torch.where(inside, block.gather(1, columns), found)
    return found


def likeliest(blocks: list[torch.Tensor]) -> torch.Tensor:
    """The argmax of the logits, [n]."""
    highest, columns = (torch.stack(parts) for parts in zip(*(block.max(dim=1) for block in blocks), strict=True))
    block = highest.argmax(0, keepdim=True)
    return (columns.gather(0, block) + block * TYPES_PER_BLOCK)[0]


def loss_of_chunk(
    models: list[Model],
    labels: torch.Tensor,
    tokens: slice,
    distill_weight: float = 0.0,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    trains: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Of every token: cross-entropy [n], KL [n], and the gradient of total with respect to hidden [n, H] if
    it trains, or else whether its label is the likeliest type [n]."""
    count = tokens.stop - tokens.start
    head, dtype = models[0].head, models[0].dtype
    labels = padded(labels[tokens], models)
    student, teacher = logits_of_chunk(models, tokens)
    correct = None if trains else (likeliest(student) == labels)[:count]
    normalizers = log_normalizers(student)
    smoothing_per_type = label_smoothing / len(head.weight)
    nats = normalizers - (1 - label_smoothing) * label_logits(student, labels)
    if label_smoothing:
        nats -= smoothing_per_type * sum(block.sum(1, keepdim=True) for block in student)
    kl = torch.zeros_like(nats)
    if teacher is not None:
        softened = normalizers if temperature == 1 else log_normalizers(student, temperature)
        teacher_softened = log_normalizers(teacher, temperature)
    grad = nats.new_zeros(len(labels), head.weight.shape[1]) if trains else None
    for index, types in enumerate(
        blocks_of_types(head.weight)
    ):  # overwrites the logits: only [n, v] is held beside them
        logits, pull = student[index], None
        # d logits / d what softcap caps
        damping = 1 - (logits / head.softcap) ** 2 if trains and head.softcap is not None else None
        if teacher is not None:
            own = (logits / temperature).sub_(softened)
            wanted = teacher[index].div_(temperature).sub_(teacher_softened)
            probabilities = wanted.exp()
            kl += wanted.sub_(own).mul_(probabilities).sum(1, keepdim=True)
            pull = own.exp_().sub_(probabilities)
        if not trains:
            continue
        slopes = logits.sub_(normalizers).exp_()
        columns, inside = place(labels, slopes, types.start)
        slopes.scatter_add_(1, columns, (label_smoothing - 1) * inside.to(slopes.dtype))
        if label_smoothing:
            slopes.sub_(smoothing_per_type)
        if pull is not None:  # temperature**2 of the loss, 1 / temperature of the softened logits
            slopes.add_(pull, alpha=distill_weight * temperature)
        if damping is not None:
            slopes.mul_(damping)
        grad += product(slopes.to(dtype), head.weight[types].to(dtype))  # summed in fp32 whatever the products' dtype
    return nats[:count, 0], kl[:count, 0], grad[:count] if trains else None, correct
