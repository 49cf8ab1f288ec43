"""The loss of learning without forgetting through a frozen head, exact, and never holding all tokens' logits.

The cross-entropy of the new task, and KL(teacher || student) between the softened predictions of the old and the new
model (Li & Hoiem 2017, https://arxiv.org/abs/1606.09282, with Hinton et al. 2015's loss, https://arxiv.org/abs/1503.02531).
A few tokens at a time go through the head; the gradient is taken while their logits are at hand, so every logit is
computed once: three matrix products, as with full logits.

Dimensions: N tokens, n tokens of a chunk, H width of a head's input, V vocabulary, v token types of a block.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..models.frozen_head import (
    CHUNK_ELEMENTS,
    MAX_ROWS,
    Head,
    Model,
    blocks_of_types,
    checked_models,
    chunks,
    divergence,
    label_logits,
    log_normalizers,
    logits_of_chunk,
    padded,
    place,
)
from ..models.gpu import kernels_for
from ..models.matrix_products import product

GPU_TYPES_PER_BLOCK = 2**16  # of one product that makes the gradient; the sum of blocks is in fp32


class LwfLoss(NamedTuple):
    """Sums over tokens, in nats."""

    total: torch.Tensor  # task + distill_weight * temperature**2 * kl; the one that can go backward
    task: torch.Tensor  # cross-entropy, with label smoothing
    kl: torch.Tensor  # KL(teacher || student) of the softened predictions; zero without a teacher


class Options(NamedTuple):
    distill_weight: float
    temperature: float
    label_smoothing: float
    trains: bool  # a gradient is wanted


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
        labels: [N], every one supervised.
        teacher_hidden: [N, H of the teacher's head]; None: no teacher.
        teacher_head: None: the student's.
        temperature: of both models in the KL; the cross-entropy's is 1.
        label_smoothing: as in `functional.cross_entropy`.
    """
    models = checked_models(hidden, head, labels, teacher_hidden, teacher_head)
    trains = torch.is_grad_enabled() and hidden.requires_grad
    options = Options(distill_weight, temperature, label_smoothing, trains)
    with torch.autocast(hidden.device.type, enabled=False):
        return LwfLoss(*ChunkedLwf.apply(hidden, labels, models, options))


class ChunkedLwf(torch.autograd.Function):
    """The gradient is made in the forward pass, for the sum of the losses, and scaled in the backward pass."""

    @staticmethod
    def forward(ctx, hidden, labels, models, options):
        task, kl = (torch.zeros((), dtype=models[0].sum_dtype, device=hidden.device) for _ in range(2))
        grad = torch.empty(hidden.shape, dtype=task.dtype, device=hidden.device) if options.trains else None
        by_kernel = kernel_for(models) is not None
        of_chunk = loss_of_chunk_by_kernel if by_kernel else loss_of_chunk
        for tokens in chunks(models, len(labels), rows_by_kernel(models) if by_kernel else None):
            chunk_nats, chunk_kl, chunk_grad = of_chunk(models, labels, tokens, options)
            task += chunk_nats.sum()
            kl += chunk_kl.sum()
            if options.trains:
                grad[tokens] = chunk_grad
        ctx.gradient, ctx.dtype = grad, hidden.dtype
        ctx.mark_non_differentiable(task, kl)
        return task + options.distill_weight * options.temperature**2 * kl, task, kl

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, *_):
        if ctx.gradient is None:
            raise RuntimeError("lwf_loss can go backward once: its gradient was handed over.")
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(grad_total).to(ctx.dtype), None, None, None


def loss_of_chunk(
    models: list[Model], labels: torch.Tensor, tokens: slice, options: Options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """For every token: cross-entropy [n], KL [n], and, if it trains, the gradient of total by hidden [n, H]."""
    distill_weight, temperature, label_smoothing, trains = options
    count = tokens.stop - tokens.start
    head, dtype = models[0].head, models[0].dtype
    labels = padded(labels[tokens], models)
    student, teacher = logits_of_chunk(models, tokens)
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
    # The logits are overwritten: only [n, v] is held beside them.
    for index, types in enumerate(blocks_of_types(head.weight)):
        logits, pull = student[index], None
        # d logits / d what softcap caps
        damping = 1 - (logits / head.softcap) ** 2 if trains and head.softcap is not None else None
        if teacher is not None:
            own = (logits / temperature).sub_(softened)
            block_kl, probabilities = divergence(own, teacher[index].div_(temperature).sub_(teacher_softened))
            kl += block_kl
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
    return nats[:count, 0], kl[:count, 0], grad[:count] if trains else None


def kernel_for(models: list[Model]) -> ModuleType | None:
    """The module of the kernel where it runs: there no weight is in need of a cast."""
    is_ready = all(model.dtype == model.head.weight.dtype for model in models)
    return kernels_for(*(model.hidden for model in models), name="lwf_loss") if is_ready else None


def rows_by_kernel(models: list[Model]) -> int:
    """Tokens of a chunk: their logits take no more memory than those of `loss_of_chunk`, which are in fp32."""
    bytes_per_token = len(models[0].head.weight) * sum(model.dtype.itemsize for model in models)
    return min(max(CHUNK_ELEMENTS * torch.float32.itemsize // bytes_per_token, 1), MAX_ROWS)


def loss_of_chunk_by_kernel(
    models: list[Model], labels: torch.Tensor, tokens: slice, options: Options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`loss_of_chunk` with few launches, on logits as the products leave them."""
    rows, heads = [model.hidden[tokens].to(model.dtype) for model in models], [model.head for model in models]
    if len(models) == 2 and heads[0] is heads[1] and models[0].dtype == models[1].dtype:
        student, teacher = functional.linear(torch.cat(rows), heads[0].weight, heads[0].bias).chunk(2)
    else:
        both = [functional.linear(part, head.weight, head.bias) for part, head in zip(rows, heads, strict=True)]
        student, teacher = both[0], both[1] if len(both) == 2 else None
    softcaps = heads[0].softcap, heads[-1].softcap
    nats, kl = kernel_for(models).losses_of_logits(student, teacher, labels[tokens], softcaps, *options)
    if not options.trains:
        return nats, kl, None
    grad = torch.zeros(rows[0].shape, device=nats.device)
    for begin in range(0, student.shape[1], GPU_TYPES_PER_BLOCK):
        types = slice(begin, begin + GPU_TYPES_PER_BLOCK)
        grad += student[:, types] @ heads[0].weight[types]
    return nats, kl, grad
