"""Matrix products on a CPU by oneDNN, as far as torch's own are slower.

torch's own fp32 products run in MKL, whose AVX-512 kernels are for Intel: on an AMD EPYC with AVX-512 oneDNN is twice
as fast, at the same precision. And torch lays a weight out anew for every product, which for one that is used at every
time step costs a fifth. Everything else (other devices and precisions, a torch built without oneDNN) takes torch's own
products.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

# linear(x, weight, bias, attr, scalars, algorithm); torch.compile's own fp32 linear layers run on it.
ONEDNN_LINEAR = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None


# Without it oneDNN's products with a factor that is not transposed are up to 1.6 times as slow as MKL's.
HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"

MIN_REPEATS = 8  # products with one weight from which on its layout pays


class RepeatedLinear:
    """x @ weight.t() + bias, again and again with the same weight; without autograd.

    Args:
        weight: [N, K].
        bias: [N] or None.
        repeats: how often about; rows: of each x, about.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, repeats: int, rows: int):
        self.weight, self.bias = weight, bias
        self.by_onednn = runs_on_onednn(weight) or (repeats >= MIN_REPEATS and bf16_runs_on_onednn(weight))
        if self.by_onednn:
            self.weight = dense(weight)
            if repeats >= MIN_REPEATS:
                self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), rows)

    def __call__(self, x: torch.Tensor, relu: bool = False) -> torch.Tensor:
        """[rows, K] -> [rows, N]; through relu on request."""
        if self.by_onednn:
            return ONEDNN_LINEAR(dense(x), self.weight, self.bias, "relu" if relu else "none", [], "")
        y = functional.linear(x, self.weight, self.bias)
        return y.relu_() if relu else y


def bf16_runs_on_onednn(weight: torch.Tensor) -> bool:
    return (
        ONEDNN_LINEAR is not None
        and weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


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
    if runs_on_onednn(a) and HAS_AVX512:
        return onednn_linear(a, b.t())
    return a @ b


def product_over_rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a.t() @ b for [K, N] and [K, M], as a weight's gradient is; without autograd. oneDNN copies its transposed first
    factor, so that is the narrower one."""
    return product(a.t(), b) if a.shape[1] <= b.shape[1] else product(b.t(), a).t()


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
