"""The context of a layer over time. Its gates do not depend on the context itself, so the recurrence is linear in it,
and all tokens of a row are known at once (as in QRNN, Bradbury et al. 2016, https://arxiv.org/abs/1611.01576, and HGRN,
Qin et al. 2023, https://arxiv.org/abs/2311.04823).

`plain_scan` is the definition; `linear_scan` computes the same, and its gradient, as one operation for autograd,
`torch.compile` and a profiler: on a CPU token by token, on a GPU by a kernel (kernels/newllm_layer.py), without
Triton by doubling.

Dimensions: B rows, T tokens, C channels of the context.
"""

import torch

from .gpu import kernels_for

WALKS_TIME = frozenset(["cpu"])  # devices on which an operation a token is the quickest way


def plain_scan(
    z: torch.Tensor, delta: torch.Tensor, starts: torch.Tensor | None, mask: torch.Tensor | None, c0: torch.Tensor
) -> torch.Tensor:
    """c_t = sigmoid(z_t) * c_{t-1} + sigmoid(-z_t) * delta_t, one token after the other.

    Args:
        z: [B, T, C] forget gates before their sigmoid.
        delta: [B, T, C] what is written.
        starts: [B, T] bool, True where the context before is forgotten; or None.
        mask: [B, T] bool, False where nothing is written and, except at a start, everything is kept; or None.
        c0: [B, C] the context before the first token.

    Returns:
        The contexts after every token [B, T, C], in fp32 or what is wider among the arguments.
    """
    c, contexts = c0.to(scan_dtype(z, delta, c0)), []
    for t in range(z.shape[1]):
        keep, write = z[:, t].to(c.dtype).sigmoid(), (-z[:, t].to(c.dtype)).sigmoid() * delta[:, t]
        if mask is not None:
            keep, write = keep.masked_fill(~mask[:, t, None], 1), write.masked_fill(~mask[:, t, None], 0)
        if starts is not None:
            keep = keep.masked_fill(starts[:, t, None], 0)
        c = keep * c + write
        contexts.append(c)
    return torch.stack(contexts, dim=1)


def linear_scan(
    z: torch.Tensor, delta: torch.Tensor, starts: torch.Tensor | None, mask: torch.Tensor | None, c0: torch.Tensor
) -> torch.Tensor:
    """`plain_scan`, quickly: arguments and result as there. Differentiable once, by z, delta and c0. Without a gradient
    it is an ordinary call: torch takes a tenth of a token's time to dispatch operations of ours."""
    is_operation = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return (scan_operation if is_operation else scan)(z, delta, starts, mask, c0)


def scan(
    z: torch.Tensor, delta: torch.Tensor, starts: torch.Tensor | None, mask: torch.Tensor | None, c0: torch.Tensor
) -> torch.Tensor:
    """The contexts as this device computes them best."""
    dtype = scan_dtype(z, delta, c0)
    if kernels := kernels_for(z, c0):
        return kernels.scan(z, delta, starts, mask, c0)
    write, keep = write_and_keep(z, dtype, starts, mask)
    contexts = write.mul_(delta)
    if mask is not None:
        contexts.masked_fill_(~mask[:, :, None], 0)
    contexts[:, 0].addcmul_(keep[:, 0], c0.to(dtype))
    if z.device.type not in WALKS_TIME:
        return doubled(keep, contexts)
    before, *others = contexts.unbind(1)
    for now, share in zip(others, keep.unbind(1)[1:], strict=True):
        before = now.addcmul_(share, before)
    return contexts


scan_operation = torch.library.custom_op("newllm::linear_scan", scan, mutates_args=())


@scan_operation.register_fake
def _(z, delta, starts, mask, c0):
    return torch.empty_like(z, dtype=scan_dtype(z, delta, c0), memory_format=torch.contiguous_format)


@torch.library.custom_op("newllm::linear_scan_backward", mutates_args=())
def scan_backward(
    grad: torch.Tensor,
    z: torch.Tensor,
    delta: torch.Tensor,
    starts: torch.Tensor | None,
    mask: torch.Tensor | None,
    c0: torch.Tensor,
    contexts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients by z, delta and c0 from the one by `contexts` [B, T, C], each of the type of its own."""
    if kernels := kernels_for(z, c0):
        return kernels.scan_gradients(grad, z, delta, starts, mask, c0, contexts)
    write, keep = write_and_keep(z, contexts.dtype, starts, mask)
    # What a context contributes to the loss: by itself, and by the contexts after it.
    grad_contexts = torch.empty_like(contexts).copy_(grad)
    if contexts.device.type in WALKS_TIME:
        after = grad_contexts[:, -1]
        for now, share in zip(grad_contexts.unbind(1)[-2::-1], keep.unbind(1)[:0:-1], strict=True):
            after = now.addcmul_(share, after)
    else:
        later = torch.cat([torch.zeros_like(keep[:, :1]), keep[:, 1:].flip(1)], dim=1)
        grad_contexts = doubled(later, grad_contexts.flip(1)).flip(1)
    grad_c0 = keep[:, 0] * grad_contexts[:, 0]
    grad_z = torch.empty_like(contexts)  # the contexts before, less delta, ...
    torch.sub(contexts[:, :-1], delta[:, 1:], out=grad_z[:, 1:])
    torch.sub(c0, delta[:, 0], out=grad_z[:, 0])
    if starts is not None:
        grad_z = torch.where(starts[:, :, None], -delta, grad_z)
    grad_delta = grad_contexts.mul_(write)
    if mask is not None:
        grad_delta.masked_fill_(~mask[:, :, None], 0)  # nothing is written there
    grad_z.mul_(write.neg_().add_(1)).mul_(grad_delta)  # ... times sigmoid(z) * sigmoid(-z) * grad_contexts
    return grad_z.to(z.dtype), grad_delta.to(delta.dtype), grad_c0.to(c0.dtype)


@scan_backward.register_fake
def _(grad, z, delta, starts, mask, c0, contexts):
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (z, delta, c0))


def _backward(ctx, grad):
    grad_z, grad_delta, grad_c0 = scan_backward(grad, *ctx.saved_tensors)
    return grad_z, grad_delta, None, None, grad_c0


scan_operation.register_autograd(
    _backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, output)
)


def write_and_keep(
    z: torch.Tensor, dtype: torch.dtype, starts: torch.Tensor | None, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """sigmoid(-z), and the factor on the context before; new tensors [B, T, C] each."""
    write = torch.empty_like(z, dtype=dtype, memory_format=torch.contiguous_format)
    write.copy_(z).neg_().sigmoid_()  # where a gate is almost 1, 1 - sigmoid(z) would have few digits
    keep = 1 - write
    if mask is not None:
        keep.masked_fill_(~mask[:, :, None], 1)
    if starts is not None:
        keep.masked_fill_(starts[:, :, None], 0)
    return write, keep


def scan_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """fp32, or fp64 where one of the tensors has it."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def doubled(factors: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """values_t += factors_t * values_{t-1}, t = 1, 2, ..., [B, T, C] each, in log2 T passes over all tokens (Hillis &
    Steele 1986), for a device that wants few large operations; `values` stays as it is."""
    step = 1
    while step < values.shape[1]:
        reached = torch.addcmul(values[:, step:], factors[:, step:], values[:, :-step])
        values = torch.cat([values[:, :step], reached], dim=1)
        factors = torch.cat([factors[:, :step], factors[:, step:] * factors[:, :-step]], dim=1)
        step *= 2
    return values
