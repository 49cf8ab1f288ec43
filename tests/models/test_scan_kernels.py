"""The Triton kernels of the scan against its plain loop: on a GPU where there is one, else in Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch

from newllm_lib.models import linear_scan as module
from newllm_lib.models.linear_scan import linear_scan, plain_scan

pytest.importorskip("triton", reason="Triton is not installed: torch brings it on a machine with a GPU")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILE_FOR = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from newllm_lib.models.scan_kernels import TILES, backward_kernel, forward_kernel

in_16_bits = {"z", "delta", "grad_z", "grad_delta"}
for kernel in (forward_kernel, backward_kernel):
    types = {name: "*fp16" if name in in_16_bits else "*fp32" for name in kernel.arg_names}
    types |= {"starts": "*u8", "mask": "*u8", "T": "i32", "C": "i32", "CHANNELS": "constexpr", "AHEAD": "constexpr"}
    sizes = {(kernel.arg_names.index(name),): TILES[name] for name in ("CHANNELS", "AHEAD")}
    compiled = triton.compile(ASTSource(kernel, types, sizes), target=GPUTarget("cuda", int(sys.argv[1]), 32))
    assert compiled.asm["cubin"]
"""


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when the kernels are defined, and nothing else defines them
    kernels = module.triton_kernels()
    monkeypatch.setattr(module, "scan_kernels", lambda device, dtype: kernels)


@pytest.mark.parametrize(
    ("size", "dtype", "masked", "documents"),
    [
        ((3, 1, 40), torch.float32, False, False),
        ((5, 2, 31), torch.float32, True, False),
        ((2, 37, 192), torch.float32, False, True),
        ((3, 63, 17), torch.float32, True, True),
        ((1, 9, 65), torch.bfloat16, True, True),
        ((1, 9, 65), torch.float16, True, True),
    ],
)
def test_kernels_equal_the_plain_loop(size, dtype, masked, documents):
    torch.manual_seed(0)
    # Gates from wide open to shut: half-lives from a tenth of a token to thousands.
    z = (4 * torch.randn(size, device=DEVICE)).to(dtype).requires_grad_()
    delta = torch.randn(size, device=DEVICE).to(dtype).requires_grad_()
    c0 = torch.randn(size[0], size[2], device=DEVICE, requires_grad=True)
    starts = torch.rand(size[:2], device=DEVICE) < 0.2 if documents else None
    mask = torch.rand(size[:2], device=DEVICE) > 0.3 if masked else None
    weights = torch.randn(size, device=DEVICE)
    found, expected = (
        [contexts, *torch.autograd.grad((contexts * weights).sum(), (z, delta, c0))]
        for contexts in (scan(z, delta, starts, mask, c0) for scan in (linear_scan, plain_scan))
    )
    for one, other in zip(found, expected, strict=True):
        # In 16 bits both round the same sums once, and may fall to different sides.
        tolerance = 1e-6 if one.dtype == torch.float32 else torch.finfo(one.dtype).eps
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def test_kernels_take_tensors_that_do_not_lie_in_one_piece():
    z, delta = torch.randn(2, 20, 5, 3, device=DEVICE).unbind(3)[:2]
    starts = (torch.arange(20, device=DEVICE) == 4).expand(2, 20)
    c0 = torch.randn(5, 2, device=DEVICE).t()
    expected = plain_scan(z, delta, starts, None, c0)
    assert (linear_scan(z, delta, starts, None, c0) - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("capability", [75, 80, 90])
def test_kernels_compile_for_every_card_from_the_t4_on(capability, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", COMPILE_FOR, str(capability)], env=environment, check=True)
