"""The Triton kernel of the LwF loss against the blocks of torch: on a GPU where there is one, else in Triton's
interpreter."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from newllm_lib.adapters import lwf_loss as module
from newllm_lib.adapters.lwf_loss import lwf_loss
from newllm_lib.models import gpu
from newllm_lib.models.frozen_head import Head

pytest.importorskip("triton", reason="Triton is not installed: torch brings it on a machine with a GPU")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS, TYPES, WIDTH = 11, 1003, 16
COMPILE_FOR = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from newllm_lib.kernels.lwf_loss import SIZES, loss_kernel as kernel

for softens, trains, teacher in ((True, True, True), (False, True, True), (False, False, True), (False, True, False)):
    types = dict.fromkeys(kernel.arg_names, "fp32") | {"student": "*fp16", "teacher": "*fp16"}
    types |= {"labels": "*i64", "nats": "*fp32", "kl": "*fp32"}
    fixed = {"V": 256000, "SOFTENS": softens, "TRAINS": trains, "TYPES": SIZES["TYPES"]}
    fixed |= {} if teacher else {"teacher": None, "softcap": None, "teacher_softcap": None}
    types |= dict.fromkeys(fixed, "constexpr")
    source = ASTSource(kernel, types, {(kernel.arg_names.index(name),): value for name, value in fixed.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": 8})
    assert compiled.asm["cubin"]
"""


@pytest.fixture
def kernels(monkeypatch):
    """Both ways to compute it, the kernel's in several chunks of tokens and blocks of types."""
    found = gpu.triton_kernels("lwf_loss")
    monkeypatch.setattr(found, "SIZES", {"TYPES": 256, "num_warps": 8})
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 2 * 4 * TYPES)
    monkeypatch.setattr(module, "GPU_TYPES_PER_BLOCK", 300)
    return found


def case(dtype, softcap, own_head):
    torch.manual_seed(0)
    weight = torch.randn(TYPES, WIDTH, device=DEVICE).to(dtype)
    head = Head(weight, torch.randn(TYPES, device=DEVICE).to(dtype), softcap)
    hidden, teacher_hidden = (torch.randn(TOKENS, WIDTH, device=DEVICE).to(dtype) for _ in range(2))
    teacher_head = replace(head, weight=weight.flip(0), bias=None, softcap=4.0) if own_head else None
    labels = torch.randint(0, TYPES, (TOKENS,), device=DEVICE)
    return hidden.requires_grad_(), head, labels, teacher_hidden, teacher_head


def both(inputs, monkeypatch, kernels, **options):
    """(total, task, KL, gradient) by torch, and by the kernel."""
    found = []
    for way in (None, kernels):
        monkeypatch.setattr(module, "kernel_for", lambda models, way=way: way)
        loss = lwf_loss(*inputs, **options)
        gradients = torch.autograd.grad(loss.total, inputs[0]) if loss.total.requires_grad else ()
        found.append((loss.total, loss.task, loss.kl, *gradients))
    return found


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_kernel_equals_torchs_blocks(monkeypatch, kernels, softcap, own_head, label_smoothing, temperature):
    options = {"distill_weight": 0.5, "temperature": temperature, "label_smoothing": label_smoothing}
    for ours, theirs in zip(
        *both(case(torch.float32, softcap, own_head), monkeypatch, kernels, **options), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(monkeypatch, kernels, dtype):
    inputs = case(dtype, None, False)
    expected, found = both(inputs, monkeypatch, kernels, distill_weight=0.5, temperature=2.0)
    for theirs, ours in zip(expected[:3], found[:3], strict=True):  # of the same logits
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (found[3] - expected[3]).norm() < 0.01 * expected[3].norm()


def test_without_a_teacher_and_without_a_gradient(monkeypatch, kernels):
    hidden, head, labels, teacher_hidden, _ = case(torch.float32, 5.0, False)
    for inputs in (
        (hidden, head, labels),
        (hidden.detach(), head, labels, teacher_hidden),
        (hidden[:0], head, labels[:0]),
    ):
        for ours, theirs in zip(*both(inputs, monkeypatch, kernels, label_smoothing=0.1), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("capability", [75, 90])
def test_it_compiles_for_the_gpus_of_colab(capability, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", COMPILE_FOR, str(capability)], check=True, env=environment)
