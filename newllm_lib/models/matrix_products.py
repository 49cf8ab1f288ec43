"""Matrix products on a CPU by oneDNN, as far as torch's own are slower.

torch's own fp32 products run in MKL, whose AVX-512 kernels are for Intel: on an AMD EPYC with AVX-512 oneDNN is twice
as fast, at the same precision. Everything else (other devices and precisions, a torch built without oneDNN) takes
torch's own products.
"""

import torch
from torch.nn import functional

# linear(x, weight, bias, attr, scalars, algorithm); torch.compile's own fp32 linear layers run on it.
ONEDNN_LINEAR = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None
# Without it oneDNN's products with a factor that is not transposed are up to 1.6 times as slow as MKL's.
HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


def working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The one of matrix products with this tensor: autocast's, where it is on."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def runs_on_onednn(inputs: torch.Tensor) -> bool:
    is_fp32_on_cpu = inputs.dtype == torch.float32 and inputs.device.type == "cpu"
    return ONEDNN_LINEAR is not None and is_fp32_on_cpu and inputs.numel() > 0


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
    """`functional.linear` of [N, K] and [M, K]; without autograd."""
    return (onednn_linear if runs_on_onednn(inputs) else functional.linear)(inputs, weight, bias)
