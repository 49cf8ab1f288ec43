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
CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS = 2**22, 2**26  # logits at a time: 16 MB in fp32, and 256 MB, for few launches
TYPES_PER_BLOCK = 4096  # rows of the weight's gradient at a time
SMALLEST = torch.finfo(torch.bfloat16).tiny  # probability of which a logarithm is taken


def chunked_cross_entropy(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.LongTensor
) -> torch.Tensor:
    """`functional.cross_entropy(functional.linear(inputs, weight, bias), labels, reduction="sum")`, in nats: inputs
    [N, E], weight [V, E], bias [V] or None, labels [N] (IGNORED is not scored) -> a scalar.

    Under autocast the matrix products run in its dtype, softmax and sums in fp32.
    """
    dtype = working_dtype(inputs)
    given = [tensor for tensor in (inputs, weight, bias) if tensor is not None]
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    with torch.autocast(inputs.device.type, enabled=False):
        return ChunkedCrossEntropy.apply(trains, dtype, inputs, weight, bias, labels)


class ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward pass, for the sum of the losses, and scaled in the backward pass."""

    @staticmethod
    def forward(ctx, trains, dtype, inputs, weight, bias, labels):
        low_weight, low_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        grad_inputs = torch.empty_like(inputs) if trains else None
        grad_weight = torch.zeros_like(weight) if trains and ctx.needs_input_grad[3] else None
        grad_bias = torch.zeros_like(bias) if trains and bias is not None else None
        ignored = labels == IGNORED
        # A token that is not scored enters as zero, and so leaves no trace in the weight's gradient.
        low_inputs = inputs.to(dtype).masked_fill(ignored[:, None], 0)
        losses = inputs.new_empty(len(labels))
        elements = CHUNK_ELEMENTS if weight.device.type == "cpu" else GPU_CHUNK_ELEMENTS
        rows = max(elements // weight.shape[0], 1)
        for start in range(0, len(labels), rows):
            chunk = slice(start, start + rows)
            types = labels[chunk].clamp(min=0)
            of_labels = torch.arange(len(types), device=types.device), types
            logits = linear(low_inputs[chunk], low_weight, low_bias)
            if trains and dtype == torch.bfloat16:
                # These logits are rounded; rounding the probabilities as well adds less than that, and halves what the
                # memory has to move. (fp16 would make zeros of the small ones.)
                slopes = logits.softmax(dim=1)
                losses[chunk] = -slopes[of_labels].to(losses.dtype).clamp(min=SMALLEST).log()
            else:
                slopes = logits.to(losses.dtype).log_softmax(dim=1)
                losses[chunk] = -slopes[of_labels]
                if not trains:
                    continue
                slopes.exp_()
            slopes[of_labels] -= 1
            if grad_bias is not None:
                grad_bias += (~ignored[chunk]).to(slopes.dtype) @ slopes
            slopes = slopes.to(dtype)
            grad_inputs[chunk] = product(slopes, low_weight)
            if grad_weight is not None:
                for block in range(0, len(weight), TYPES_PER_BLOCK):  # a product of all types is as large as the weight
                    block = slice(block, block + TYPES_PER_BLOCK)
                    grad_weight[block].add_(product_over_rows(slopes[:, block], low_inputs[chunk]))
        if trains:
            grad_inputs.masked_fill_(ignored[:, None], 0)
        ctx.gradients = (grad_inputs, grad_weight, grad_bias) if trains else None
        return losses.masked_fill_(ignored, 0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total):
        if ctx.gradients is None:
            raise RuntimeError("chunked_cross_entropy can go backward once: its gradients were handed over.")
        gradients, ctx.gradients = ctx.gradients, None
        grad_inputs, grad_weight, grad_bias = (None if g is None else g.mul_(grad_total) for g in gradients)
        return None, None, grad_inputs, grad_weight, grad_bias, None
