"""fp32 matrix products on a CPU by oneDNN, which torch carries but uses for other precisions only.

torch's own fp32 products run in MKL, whose AVX-512 kernels are for Intel: on an AMD EPYC with AVX-512 oneDNN is twice
as fast, at the same precision. Everything else (other devices and precisions, a torch built without oneDNN) takes
torch's own products.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

# linear(x, weight, bias, attr, scalars, algorithm); torch.compile's own fp32 linear layers run on it.
ONEDNN_LINEAR = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None


def runs_on_onednn(inputs: torch.Tensor) -> bool:
    return (
        ONEDNN_LINEAR is not None
        and inputs.dtype == torch.float32
        and inputs.device.type == "cpu"
        and inputs.numel() > 0
    )


def dense(matrix: torch.Tensor) -> torch.Tensor:
    """A copy of a matrix with gaps between its rows, such as a slice of columns: oneDNN is a hundred times slower on
    those. Any other matrix as it is."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def onednn_linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return ONEDNN_LINEAR(dense(inputs), dense(weight), bias, "none", [], "")


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b for [N, K] and [K, M]; without autograd."""
    if runs_on_onednn(a):
        return onednn_linear(a, b.t())
    return a @ b


def product_over_rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a.t() @ b for [K, N] and [K, M], as a weight's gradient is; without autograd. oneDNN copies its transposed first
    factor, so that is the narrower one."""
    return product(a.t(), b) if a.shape[1] <= b.shape[1] else product(b.t(), a).t()


def add_product(base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """base + a @ b for [N, M] or [M], [N, K] and [K, M], into `out` if given; without autograd."""
    if runs_on_onednn(a):
        if base.ndim == 1 and out is None:
            return onednn_linear(a, b.t(), base)
        return torch.add(base, onednn_linear(a, b.t()), out=out)
    return torch.addmm(base, a, b, out=out)


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`functional.linear`, with autograd: [..., K] and [N, K] -> [..., N]."""
    if runs_on_onednn(inputs) and not torch.is_autocast_enabled("cpu"):
        return OneDNNLinear.apply(inputs.flatten(0, -2), weight, bias).unflatten(0, inputs.shape[:-1])
    return functional.linear(inputs, weight, bias)


class OneDNNLinear(torch.autograd.Function):
    """[N, K], [M, K], [M] or None -> [N, M]."""

    @staticmethod
    def forward(ctx, inputs, weight, bias):
        ctx.save_for_backward(inputs, weight)
        return onednn_linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        inputs, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            product(grad, weight) if wanted[0] else None,
            product_over_rows(grad, inputs) if wanted[1] else None,
            grad.sum(0) if wanted[2] else None,
        )
