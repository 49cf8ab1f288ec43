"""The only code that asks which device there is, and what follows from it."""

import contextlib
import ctypes
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .disk import GB

BF16_CAPABILITY = (8, 0)  # torch says yes to bf16 on a T4 (7.5) too, through a slow emulation
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
GLIBC_TRIM_THRESHOLD, GLIBC_MMAP_MAX = 128 * 1024, 65536  # what glibc starts with


@dataclass(frozen=True)
class Device:
    """What we train on. `memory_gb` is the GPU's, or None on a CPU."""

    kind: str  # "cuda", "mps" or "cpu"
    name: str
    memory_gb: float | None
    capability: tuple[int, int] | None
    threads: int


def find_device(use_cpu: bool = False) -> Device:
    """The device that transformers' Trainer will take."""
    threads = torch.get_num_threads()
    if torch.cuda.is_available() and not use_cpu:
        gpu = torch.cuda.get_device_properties(0)
        return Device("cuda", gpu.name, gpu.total_memory / GB, (gpu.major, gpu.minor), threads)
    if torch.backends.mps.is_available() and not use_cpu:
        return Device("mps", "Apple GPU", None, None, threads)
    return Device("cpu", "CPU", None, None, threads)


def choose_precision(device: Device) -> tuple[str, str]:
    """("fp32" | "fp16" | "bf16", why). Trainable weights are fp32 in every case."""
    if device.kind == "cpu" and cpu_multiplies_bf16():
        return "bf16", "this CPU multiplies bf16 by itself: bf16 arithmetic, fp32 weights"
    if device.kind != "cuda":
        return "fp32", f"no NVIDIA GPU: plain fp32 on the {device.name}"
    capability = ".".join(map(str, device.capability))
    if device.capability >= BF16_CAPABILITY:
        return "bf16", f"compute capability {capability}: bf16 arithmetic, fp32 weights"
    return "fp16", f"compute capability {capability} has no bf16: fp16 arithmetic with a loss scaler, fp32 weights"


def autocast_dtype(device: Device) -> torch.dtype | None:
    """The dtype of `choose_precision` for `torch.autocast`; None is none."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(choose_precision(device)[0])


def cpu_multiplies_bf16() -> bool:
    """True if the CPU has instructions for it (AVX512-BF16 or AMX). A training step is then up to twice as fast; on any
    other CPU bf16 is emulated and slower than fp32."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older torch lacks it
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc keep what training frees: every update needs the same memory again, and getting it anew from the
    operating system page by page costs a sixth of the update. What was freed before, and is at the end, is given back:
    a heap that never shrinks would grow with what one thing after another leaves in it. On another C library nothing
    changes.

    Source: mallopt(3), malloc_trim(3).
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.malloc_trim(0)
    libc.mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap, too, ...
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # ... which does not shrink
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, GLIBC_MMAP_MAX)
        libc.mallopt(M_TRIM_THRESHOLD, GLIBC_TRIM_THRESHOLD)
        libc.malloc_trim(0)
