"""The scan as one Triton kernel each way, for NVIDIA GPUs from the T4 on. A program walks the tokens of one row and one
block of channels; gates, starts and masks are taken in registers, so that of [B, T, C] only what goes in and what comes
out crosses the memory.

The definition is `linear_scan.plain_scan`. Without a GPU, TRITON_INTERPRET=1 runs the kernels on a CPU.

Dimensions: B rows, T tokens, C channels of the context.
"""

import torch
import triton
import triton.language as tl

# CHANNELS of a program, and AHEAD: tokens that are fetched together, so that a row waits once for so many.
TILES = {"CHANNELS": 64, "AHEAD": 8, "num_warps": 2}


@triton.jit
def sigmoid(z):
    return 1 / (1 + tl.exp(-z))


@triton.jit
def gates(z, start, is_read):
    """The factors on the context before, 0 at a start and 1 where masked, and on what is written, 0 where masked."""
    keep = tl.where(is_read, sigmoid(z), 1.0)
    return tl.where(start, 0.0, keep), tl.where(is_read, sigmoid(-z), 0.0)


@triton.jit
def flag(flags, position, fits, absent: tl.constexpr):
    """One of [B, T] bool as a bool, or `absent` where there are none."""
    return tl.load(flags + position, mask=fits, other=absent) != 0 if flags is not None else absent != 0


@triton.jit(do_not_specialize=["T"])
def forward_kernel(z, delta, starts, mask, c0, contexts, T, C, CHANNELS: tl.constexpr, AHEAD: tl.constexpr):
    """One program's part of `linear_scan`. Pointers to [B, T, C] three times, [B, T] bool or None twice, c0 [B, C]."""
    row, channels = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = channels < C
    c = tl.load(c0 + row * C + channels, mask=there, other=0.0).to(tl.float32)
    for first in range(0, T, AHEAD):
        zs, deltas = (), ()
        for i in tl.static_range(AHEAD):
            place = (row * T + first + i) * C + channels
            fits = there & (first + i < T)
            zs += (tl.load(z + place, mask=fits, other=0.0).to(tl.float32),)
            deltas += (tl.load(delta + place, mask=fits, other=0.0).to(tl.float32),)
        for i in tl.static_range(AHEAD):
            t = first + i
            keep, write = gates(zs[i], flag(starts, row * T + t, t < T, 0), flag(mask, row * T + t, t < T, 1))
            c = keep * c + write * deltas[i]
            tl.store(contexts + (row * T + t) * C + channels, c, mask=there & (t < T))


@triton.jit(do_not_specialize=["T"])
def backward_kernel(
    grad, z, delta, starts, mask, c0, contexts, grad_z, grad_delta, grad_c0, T, C,
    CHANNELS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The gradients from `grad`, the one by `contexts`, from the last token to the first; shapes as forward."""
    row, channels = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = channels < C
    first_context = tl.load(c0 + row * C + channels, mask=there, other=0.0).to(tl.float32)
    later = tl.full((CHANNELS,), 0.0, tl.float32)  # what all contexts after a token contribute
    for reached in range(0, T, AHEAD):
        zs, deltas, befores, grads = (), (), (), ()
        for i in tl.static_range(AHEAD):
            t = T - 1 - reached - i
            place = (row * T + t) * C + channels
            fits = there & (t >= 0)
            zs += (tl.load(z + place, mask=fits, other=0.0).to(tl.float32),)
            deltas += (tl.load(delta + place, mask=fits, other=0.0).to(tl.float32),)
            befores += (tl.load(contexts + place - C, mask=there & (t > 0), other=0.0),)
            grads += (tl.load(grad + place, mask=fits, other=0.0),)
        for i in tl.static_range(AHEAD):
            t = T - 1 - reached - i
            start = flag(starts, row * T + t, t >= 0, 0)
            keep, write = gates(zs[i], start, flag(mask, row * T + t, t >= 0, 1))
            before = tl.where(start, 0.0, tl.where(t == 0, first_context, befores[i]))
            whole = grads[i] + later
            later = tl.where(t >= 0, keep * whole, later)
            place = (row * T + t) * C + channels
            fits = there & (t >= 0)
            tl.store(grad_delta + place, whole * write, mask=fits)
            tl.store(grad_z + place, whole * write * sigmoid(zs[i]) * (before - deltas[i]), mask=fits)
    tl.store(grad_c0 + row * C + channels, later, mask=there)


def grid(z: torch.Tensor) -> tuple[int, int]:
    return z.shape[0], triton.cdiv(z.shape[2], TILES["CHANNELS"])


def scan(z, delta, starts, mask, c0) -> torch.Tensor:
    """`plain_scan` in fp32."""
    z, delta, c0 = z.contiguous(), delta.contiguous(), c0.contiguous()
    contexts = torch.empty_like(z, dtype=torch.float32)
    flags = bytes_of(starts), bytes_of(mask)
    forward_kernel[grid(z)](z, delta, *flags, c0, contexts, *z.shape[1:], **TILES)
    return contexts


def scan_gradients(grad, z, delta, starts, mask, c0, contexts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By z, delta and c0, each in the type of its own."""
    grad, z, delta, c0 = grad.contiguous(), z.contiguous(), delta.contiguous(), c0.contiguous()
    flags, gradients = (bytes_of(starts), bytes_of(mask)), [torch.empty_like(tensor) for tensor in (z, delta, c0)]
    backward_kernel[grid(z)](grad, z, delta, *flags, c0, contexts, *gradients, *z.shape[1:], **TILES)
    return tuple(gradients)


def bytes_of(flags: torch.Tensor | None) -> torch.Tensor | None:
    return None if flags is None else flags.contiguous().view(torch.uint8)
