"""The context of a layer over time. Its gates do not depend on the context itself, so the recurrence is linear in it,
and all tokens of a row are known at once (as in QRNN, Bradbury et al. 2016, https://arxiv.org/abs/1611.01576, and HGRN,
Qin et al. 2023, https://arxiv.org/abs/2311.04823).

`plain_scan` is the definition; `linear_scan` computes the same, and its gradient, as one operation for autograd,
`torch.compile` and a profiler.

Dimensions: B rows, T tokens, C channels of the context.
"""

import torch

WALKS_TIME = frozenset(["cpu"])  # devices on which an operation a token is the quickest way


def plain_scan(
    z: torch.Tensor,
    delta: torch.Tensor,
    starts: torch.Tensor | None,
    mask: torch.Tensor | None,
    c0: torch.Tensor,
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
    z: torch.Tensor,
    delta: torch.Tensor,
    starts: torch.Tensor | None,
    mask: torch.Tensor | None,
    c0: torch.Tensor,
) -> torch.Tensor:
    """`plain_scan`, for training: arguments and result as there. Differentiable once, by z, delta and c0."""
    return scan_forward(z, delta, starts, mask, c0)[0]


@torch.library.custom_op("newllm::linear_scan", mutates_args=())
def scan_forward(
    z: torch.Tensor,
    delta: torch.Tensor,
    starts: torch.Tensor | None,
    mask: torch.Tensor | None,
    c0: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The contexts, and sigmoid(z) for the way back; [B, T, C] each."""
    wide = z.to(scan_dtype(z, delta, c0))
    forget = wide.sigmoid().contiguous()
    keep = kept_share(forget, starts, mask)
    contexts = written_share(wide, mask).mul_(delta)
    contexts[:, 0].addcmul_(keep[:, 0], c0.to(wide.dtype))
    if z.device.type not in WALKS_TIME:
        return doubled(keep, contexts), forget
    before, *others = contexts.unbind(1)
    for now, share in zip(others, keep.unbind(1)[1:], strict=True):
        before = now.addcmul_(share, before)
    return contexts, forget


@scan_forward.register_fake
def _(z, delta, starts, mask, c0):
    contexts = torch.empty_like(z, dtype=scan_dtype(z, delta, c0), memory_format=torch.contiguous_format)
    return contexts, torch.empty_like(contexts)


@torch.library.custom_op("newllm::linear_scan_backward", mutates_args=())
def scan_backward(
    grad: torch.Tensor,
    z: torch.Tensor,
    delta: torch.Tensor,
    starts: torch.Tensor | None,
    mask: torch.Tensor | None,
    c0: torch.Tensor,
    contexts: torch.Tensor,
    forget: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients by z, delta and c0 from the one by `contexts` [B, T, C]."""
    keep = kept_share(forget, starts, mask)
    # What a context contributes to the loss: by itself, and by the contexts after it.
    grad_contexts = torch.empty_like(contexts).copy_(grad)
    if z.device.type in WALKS_TIME:
        after = grad_contexts[:, -1]
        for now, share in zip(grad_contexts.unbind(1)[-2::-1], keep.unbind(1)[:0:-1], strict=True):
            after = now.addcmul_(share, after)
    else:
        later = torch.cat([torch.zeros_like(keep[:, :1]), keep[:, 1:].flip(1)], dim=1)
        grad_contexts = doubled(later, grad_contexts.flip(1)).flip(1)
    grad_c0 = keep[:, 0] * grad_contexts[:, 0]
    grad_delta = written_share(z.to(forget.dtype), mask).mul_(grad_contexts)
    grad_z = torch.cat([c0.to(contexts.dtype)[:, None], contexts[:, :-1]], dim=1)  # the contexts before
    if starts is not None:
        grad_z.masked_fill_(starts[:, :, None], 0)
    # (before - delta) * sigmoid(z) * sigmoid(-z) * grad_contexts, and zero where nothing is written
    grad_z.sub_(delta).mul_(forget).mul_(grad_delta)
    return grad_z.to(z.dtype), grad_delta.to(delta.dtype), grad_c0.to(c0.dtype)


@scan_backward.register_fake
def _(grad, z, delta, starts, mask, c0, contexts, forget):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (z, delta, c0))


def _save_for_backward(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, _):
    if grad is None:
        return (None,) * 5
    grad_z, grad_delta, grad_c0 = scan_backward(grad, *ctx.saved_tensors)
    return grad_z, grad_delta, None, None, grad_c0


scan_forward.register_autograd(_backward, setup_context=_save_for_backward)


def scan_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """fp32, or fp64 where one of the tensors has it."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def kept_share(forget: torch.Tensor, starts: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
    """The factor on the context before: [B, T, C]; `forget` itself where no position is special."""
    if mask is not None:
        forget = forget.masked_fill(~mask[:, :, None], 1)
    if starts is not None:
        forget = forget.masked_fill(starts[:, :, None], 0)
    return forget


def written_share(z: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The factor on delta: [B, T, C], contiguous; where a gate is almost 1, 1 - sigmoid(z) would have few digits."""
    write = torch.neg(z).contiguous().sigmoid_()
    return write if mask is None else write.masked_fill_(~mask[:, :, None], 0)


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
