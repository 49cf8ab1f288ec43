"""Cross-entropy of a linear head without its logits: tokens go through the head in chunks, and the gradients are taken
while a chunk's probabilities are at hand. Memory does not depend on the vocabulary.

The same idea as Liger's fused linear cross-entropy (Hsu et al. 2024), which needs Triton, and as torch 2.13's
`linear_cross_entropy`, which Colab's torch does not have yet.

Dimensions: N tokens, E width of the head's input, V vocabulary.
"""

import torch
from torch.autograd.function import once_differentiable

from .matrix_products import linear, product, product_over_rows, working_dtype

IGNORED = -100  # transformers' label for a position that is not scored
CHUNK_ELEMENTS = 2**22  # logits at a time: 16 MB in fp32
TYPES_PER_BLOCK = 4096  # rows of the weight's gradient at a time


def chunked_cross_entropy(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.LongTensor,
) -> torch.Tensor:
    """`functional.cross_entropy(functional.linear(inputs, weight, bias), labels, reduction="sum")`.

    Under autocast the matrix products run in its dtype, softmax and sums in fp32.

    Args:
        inputs: [N, E].
        weight: [V, E].
        bias: [V] or None.
        labels: [N]; IGNORED is not scored.

    Returns:
        The sum of the losses in nats, a scalar.
    """
    dtype = working_dtype(inputs)
    trains = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (inputs, weight, bias)
    )
    with torch.autocast(inputs.device.type, enabled=False):
        return ChunkedCrossEntropy.apply(trains, dtype, inputs, weight, bias, labels)


class ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward pass, for the sum of the losses, and scaled in the backward pass."""

    @staticmethod
    def forward(ctx, trains, dtype, inputs, weight, bias, labels):
        low_weight, low_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        grad_weight = torch.zeros_like(weight) if trains and ctx.needs_input_grad[3] else None
        grad_bias = torch.zeros_like(bias) if trains and bias is not None else None
        scored = (labels != IGNORED).to(inputs.dtype)[:, None]  # [N, 1]
        # A token that is not scored enters as zero, and so leaves no trace in the weight's gradient.
        low_inputs = (inputs * scored).to(dtype)
        labels = labels.clamp(min=0)[:, None]
        rows = max(CHUNK_ELEMENTS // weight.shape[0], 1)
        minus_one = inputs.new_full((rows, 1), -1.0)
        chosen, grad_inputs = [], []
        for chunk, types in zip(low_inputs.split(rows), labels.split(rows), strict=True):
            log_probabilities = linear(chunk, low_weight, low_bias).to(inputs.dtype).log_softmax(dim=1)
            chosen.append(log_probabilities.gather(1, types))
            if not trains:
                continue
            slopes = log_probabilities.exp_().scatter_add_(1, types, minus_one[: len(chunk)])
            if grad_bias is not None:
                grad_bias += scored[len(grad_inputs) * rows :][: len(chunk), 0] @ slopes
            slopes = slopes.to(dtype)
            grad_inputs.append(product(slopes, low_weight))
            if grad_weight is not None:
                for block in range(0, len(weight), TYPES_PER_BLOCK):  # a product of all types is as large as the weight
                    block = slice(block, block + TYPES_PER_BLOCK)
                    grad_weight[block].add_(product_over_rows(slopes[:, block], chunk))
        ctx.gradients = (torch.cat(grad_inputs) * scored, grad_weight, grad_bias) if trains else None
        return -(torch.cat(chosen) * scored).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total):
        if ctx.gradients is None:
            raise RuntimeError("chunked_cross_entropy can go backward once: its gradients were handed over.")
        gradients, ctx.gradients = ctx.gradients, None
        grad_inputs, grad_weight, grad_bias = (None if g is None else g.mul_(grad_total) for g in gradients)
        return None, None, grad_inputs, grad_weight, grad_bias, None
