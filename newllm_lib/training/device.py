"""The only code that asks which device there is, and what follows from it."""

from dataclasses import dataclass

import torch

BF16_CAPABILITY = (8, 0)  # torch says yes to bf16 on a T4 (7.5) too, through a slow emulation


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
    if torch.cuda.is_available() and not use_cpu:
        properties = torch.cuda.get_device_properties(0)
        return Device(
            "cuda",
            properties.name,
            properties.total_memory / 2**30,
            (properties.major, properties.minor),
            torch.get_num_threads(),
        )
    if torch.backends.mps.is_available() and not use_cpu:
        return Device("mps", "Apple GPU", None, None, torch.get_num_threads())
    return Device("cpu", "CPU", None, None, torch.get_num_threads())


def choose_precision(device: Device) -> tuple[str, str]:
    """("fp32" | "fp16" | "bf16", why). Trainable weights are fp32 in every case."""
    if device.kind == "cpu" and cpu_multiplies_bf16():
        return "bf16", "this CPU multiplies bf16 by itself: bf16 arithmetic, fp32 weights"
    if device.kind != "cuda":
        return "fp32", f"no NVIDIA GPU: plain fp32 on the {device.name}"
    capability = ".".join(map(str, device.capability))
    if device.capability >= BF16_CAPABILITY:
        return "bf16", f"compute capability {capability}: bf16 arithmetic, fp32 weights"
    return (
        "fp16",
        f"compute capability {capability} has no bf16: fp16 arithmetic with a loss scaler, fp32 weights",
    )


def autocast_dtype(device: Device) -> torch.dtype | None:
    """The dtype of `choose_precision` for `torch.autocast`; None is none."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(choose_precision(device)[0])


def cpu_multiplies_bf16() -> bool:
    """True if the CPU has instructions for it (AVX512-BF16 or AMX). A training step is then up to twice as fast; on any
    other CPU bf16 is emulated and slower than fp32."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
