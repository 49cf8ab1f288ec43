import platform
import subprocess
import sys

import pytest

from newllm_lib.preferences.arguments import DpoArguments
from newllm_lib.preferences.reference import reference_arguments
from newllm_lib.training.arguments import StageArguments
from newllm_lib.training.device import Device, choose_precision, find_device
from newllm_lib.training.disk import size


@pytest.mark.parametrize(
    ("name", "capability", "precision"),
    [("Tesla T4", (7, 5), "fp16"), ("Tesla P100", (6, 0), "fp16"), ("NVIDIA L4", (8, 9), "bf16"),
     ("A100", (8, 0), "bf16")],
)  # fmt: skip
def test_precision_follows_the_compute_capability(name, capability, precision):
    chosen, why = choose_precision(Device("cuda", name, 15.0, capability, 2))
    assert chosen == precision
    assert f"{capability[0]}.{capability[1]}" in why
    assert "fp32 weights" in why


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({}, "fp32"), ({"avx512_f": True}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")],
)
def test_on_a_cpu_it_follows_its_instructions(monkeypatch, capabilities, precision):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities, raising=False)
    assert choose_precision(find_device(use_cpu=True))[0] == precision
    arguments = StageArguments(use_cpu=True)
    assert arguments.bf16 == (precision == "bf16") and not arguments.fp16
    assert StageArguments(use_cpu=True, auto_precision=False).bf16 is False


def test_pairs_are_learned_in_fp32_on_any_cpu_and_their_reference_is_not(monkeypatch):
    """Of bf16 products torch keeps code for every shape, and batches of pairs have ever new ones."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    args = DpoArguments(use_cpu=True)
    assert args.bf16 is False and reference_arguments(args, 1_000_000, 64).bf16 is True
    assert DpoArguments(use_cpu=True, bf16=True).bf16 is True


def test_a_torch_that_does_not_tell_gets_fp32(monkeypatch):
    monkeypatch.delattr("torch.cpu.get_capabilities", raising=False)
    assert choose_precision(find_device(use_cpu=True))[0] == "fp32"


LEFT_OF_100_MB = """
import contextlib, psutil, torch
from newllm_lib.training.device import freed_memory_kept
with {}:
    before = psutil.Process().memory_info().rss
    torch.ones(25_000_000)
    print(psutil.Process().memory_info().rss - before)
"""


PAGES_OF_THREE_UPDATES = """
import resource, torch
from newllm_lib.models import build_config, build_model
from newllm_lib.training.device import freed_memory_kept
from newllm_lib.colab.timed_update import TimedUpdate
model = build_model(build_config("newllm", 1000, 64, num_parameters=1_000_000))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
update = TimedUpdate(model, optimizer, torch.randint(0, 1000, (64, 64)))
with freed_memory_kept():
    for _ in range(8):  # until the heap has found its size
        update()
    taken = []
    for _ in range(3):  # the system takes pages away at times, and has to give them back
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(3):
            update()
        taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(min(taken))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_freed_memory_is_kept():
    def said(program: str) -> int:
        return int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)

    kept, without = (said(LEFT_OF_100_MB.format(how)) for how in ("freed_memory_kept()", "contextlib.nullcontext()"))
    assert kept > 90e6 > 10e6 > without
    assert said(PAGES_OF_THREE_UPDATES) < 1_700, "a tenth of the fewest that they take without it, 17,000 to 43,000"


@pytest.mark.parametrize(
    ("count", "spoken"), [(512, "0.5 kB"), (5 * 2**20, "5.0 MB"), (14.7 * 2**30, "14.7 GB"), (2**41, "2,048.0 GB")]
)
def test_bytes_are_spoken_as_colab_does(count, spoken):
    assert size(count) == spoken
