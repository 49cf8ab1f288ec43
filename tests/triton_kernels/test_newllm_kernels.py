"""The Triton kernels of the scan against its plain loop: on a GPU where there is one, else in Triton's interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from newllm_lib.models import build_config, build_model, gpu, modeling_newllm
from newllm_lib.models import linear_scan as scan_module
from newllm_lib.models.linear_scan import linear_scan, plain_scan
from newllm_lib.models.modeling_newllm import RowBounds, gated, shifted

if not find_spec("triton"):
    pytest.skip("Triton is not installed: torch brings it on a machine with a GPU", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILE_FOR = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from newllm_lib.kernels import newllm_layer

LOW = "z delta grad_z grad_delta o gated grad_gated grad_o".split()
TYPES = {name: "*fp16" for name in LOW} | {"starts": "*u8", "mask": "*u8", "eps": "fp32"}
TYPES |= {name: "i32" for name in "TCNE"} | {"shifted": ("*fp16",) * 3, "grads": ("*fp16",) * 3}
SIZES = {"CHANNELS": 64, "AHEAD": 8, "P": 3, "TOKENS": 4, "WIDTH": 256, "SIZE": 1024}
for name, kernel in vars(newllm_layer).items():
    if name.endswith("_kernel"):
        types = {name: "constexpr" if name in SIZES else TYPES.get(name, "*fp32") for name in kernel.arg_names}
        sizes = {(i,): SIZES[name] for i, name in enumerate(kernel.arg_names) if name in SIZES}
        compiled = triton.compile(ASTSource(kernel, types, sizes), target=GPUTarget("cuda", int(sys.argv[1]), 32))
        assert compiled.asm["cubin"], name
"""


@pytest.fixture
def use_kernels(monkeypatch):
    """A call of it switches them on or off."""
    kernels = gpu.triton_kernels("newllm_layer")
    monkeypatch.setattr(kernels, "MOST_PROGRAMS", 3)  # so that a program has several tiles, as it has many

    def use(are_used: bool) -> None:
        for module in (scan_module, modeling_newllm):
            monkeypatch.setattr(module, "kernels_for", lambda *tensors: kernels if are_used else None)

    use(True)
    return use


def assert_close(found, expected, tolerance=1e-6):
    for one, other in zip(found, expected, strict=True):
        # In 16 bits both round the same sums once, and may fall to different sides.
        allowed = tolerance if one.dtype == torch.float32 else torch.finfo(one.dtype).eps
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= allowed * other.abs().max()


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
def test_the_scan_equals_the_plain_loop(size, dtype, masked, documents, use_kernels):
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
    assert_close(found, expected)


def test_the_scan_takes_tensors_that_do_not_lie_in_one_piece(use_kernels):
    z, delta = torch.randn(2, 20, 5, 3, device=DEVICE).unbind(3)[:2]
    starts = (torch.arange(20, device=DEVICE) == 4).expand(2, 20)
    c0 = torch.randn(5, 2, device=DEVICE).t()
    expected = plain_scan(z, delta, starts, None, c0)
    assert_close([linear_scan(z, delta, starts, None, c0)], [expected])


@pytest.mark.parametrize(
    ("size", "copies", "documents"), [((3, 5, 12), 3, True), ((2, 7, 192), 1, False), ((1, 1, 40), 3, False)]
)
def test_norm_and_shift_equal_their_definition(size, copies, documents, use_kernels):
    torch.manual_seed(0)
    norm = nn.LayerNorm(size[2], bias=False, device=DEVICE)
    x = torch.randn(size, device=DEVICE, requires_grad=True)
    mus = torch.rand(copies, size[2], device=DEVICE, requires_grad=True)
    last = torch.randn(size[0], size[2], device=DEVICE, requires_grad=True)
    bounds = RowBounds(None, torch.rand(size[:2], device=DEVICE) < 0.3 if documents else None)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    found = []
    for are_used in (True, False):
        use_kernels(are_used)
        shifts, after = shifted(norm, x, mus, last, bounds)
        results = [*shifts, after]
        weights = [(i + 1) * torch.linspace(-1, 2, result.numel(), device=DEVICE) for i, result in enumerate(results)]
        total = sum((result.flatten() * weight).sum() for result, weight in zip(results, weights, strict=True))
        found.append([*results, *torch.autograd.grad(total, (x, norm.weight, mus, last))])
    assert_close(*found, tolerance=3e-6)


@pytest.mark.parametrize("size", [(3, 5, 20), (2, 31, 192)])
def test_the_gates_equal_their_definition(size, use_kernels):
    torch.manual_seed(0)
    c, o = (torch.randn(size, device=DEVICE, requires_grad=True) for _ in range(2))
    found = []
    for are_used in (True, False):
        use_kernels(are_used)
        result = gated(c, o)
        found.append([result, *torch.autograd.grad((result * torch.arange(size[2], device=DEVICE)).sum(), (c, o))])
    assert_close(*found, tolerance=3e-6)


def test_gates_of_16_bits_take_contexts_of_32(use_kernels):
    torch.manual_seed(0)
    c = torch.randn(2, 3, 20, device=DEVICE, requires_grad=True)
    o = torch.randn(2, 3, 20, device=DEVICE).bfloat16().requires_grad_()
    found = []
    for are_used in (True, False):
        use_kernels(are_used)
        result = gated(c, o)
        found.append([result.float(), *(g.float() for g in torch.autograd.grad(result.float().sum(), (c, o)))])
        assert result.dtype == o.dtype
    assert_close(*found, tolerance=2**-6)  # torch rounds every intermediate, the kernel its result


def test_a_model_learns_with_the_kernels_what_it_learns_without(use_kernels):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "context_size": 24, "intermediate_size": 40, "num_layers": 2}
    model = build_model(build_config("newllm", 50, 16, dropout=0.0, **sizes)).to(DEVICE)
    input_ids = torch.randint(0, 50, (2, 9), device=DEVICE)
    position_ids = torch.tensor([[5, 6, 0, 1, 2, 3, 4, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7, 8]], device=DEVICE)
    found = []
    for are_used in (True, False):
        use_kernels(are_used)
        outputs = model(input_ids=input_ids, position_ids=position_ids, labels=input_ids)
        gradients = torch.autograd.grad(outputs.loss, list(model.parameters()))
        found.append([outputs.logits, outputs.loss, *gradients])
    assert_close(*found, tolerance=1e-5)


@pytest.mark.parametrize("capability", [75, 90])
def test_every_kernel_compiles_from_the_t4_on(capability, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", COMPILE_FOR, str(capability)], env=environment, check=True)
