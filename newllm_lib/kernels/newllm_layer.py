"""What New-LLM computes on an NVIDIA GPU, from the T4 on, in Triton kernels: the scan, norm with token shift, and
gates, each one kernel forward and one back. torch would launch up to ten kernels for each, and move every intermediate
through the memory.

The definitions are `linear_scan.plain_scan` and, in modeling_newllm.py, `shifted` and `gated`. Without a GPU,
TRITON_INTERPRET=1 runs the kernels on a CPU.

Dimensions: B rows, T tokens, N = B T, C channels of the context, E channels of x, P shifted copies.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

# CHANNELS of a program, and AHEAD: tokens that are fetched together, so that a row waits once for so many.
TILES = {"CHANNELS": 64, "AHEAD": 8, "num_warps": 2}
MOST_PROGRAMS = 1024  # on the way back each sums the weights' gradients over its tokens, and torch sums those sums
TILE = 1024  # numbers that a program holds of a tensor; of a norm TOKENS times WIDTH, E rounded up to a power of two


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
def scan_kernel(z, delta, starts, mask, c0, contexts, T, C, CHANNELS: tl.constexpr, AHEAD: tl.constexpr):
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
def scan_backward_kernel(
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


@triton.jit
def normalize(x, inside, E, eps):
    """x [TOKENS, WIDTH] with zero mean and unit variance, 0 outside; and 1 / its standard deviation, [TOKENS, 1]."""
    x = tl.where(inside, x - tl.sum(x, axis=1, keep_dims=True) / E, 0.0)
    scale = 1 / tl.sqrt(tl.sum(x * x, axis=1, keep_dims=True) / E + eps)
    return x * scale, scale


@triton.jit
def normalize_backward(grad, normal, scale, E):
    """From the gradient by `normal` to the one by what it was made of."""
    along = tl.sum(grad * normal, axis=1, keep_dims=True) / E
    return (grad - normal * along - tl.sum(grad, axis=1, keep_dims=True) / E) * scale


@triton.jit
def u_before(x, weight, last, starts, n, T, channels, inside, E, eps):
    """u of the tokens before n [TOKENS, 1]: of the first in a row `last`, of the first in a document 0."""
    is_first = n % T == 0
    before = tl.load(x + (n - 1) * E + channels, mask=inside & (n % T > 0), other=0.0).to(tl.float32)
    held = tl.load(last + (n // T) * E + channels, mask=inside & is_first, other=0.0).to(tl.float32)
    normal, _ = normalize(before, inside, E, eps)
    u = tl.where(is_first, held, normal * weight)
    return u if starts is None else tl.where(tl.load(starts + n, mask=inside, other=0) != 0, 0.0, u)


@triton.jit
def shift_kernel(
    x, weight, mus, last, starts, shifted, new_last, N, T, E, eps,
    P: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    channels = tl.arange(0, WIDTH)[None, :]
    there = channels < E
    inside = there & (n < N)
    w = tl.load(weight + channels, mask=there, other=0.0).to(tl.float32)
    normal, _ = normalize(tl.load(x + n * E + channels, mask=inside, other=0.0).to(tl.float32), inside, E, eps)
    u = normal * w
    difference = u_before(x, w, last, starts, n, T, channels, inside, E, eps) - u
    for p in tl.static_range(P):
        mu = tl.load(mus + p * E + channels, mask=there, other=0.0).to(tl.float32)
        tl.store(shifted[p] + n * E + channels, u + mu * difference, mask=inside)
    tl.store(new_last + (n // T) * E + channels, u, mask=inside & (n % T == T - 1))


@triton.jit
def shift_backward_kernel(
    grads, grad_new_last, x, weight, mus, last, starts, grad_x, grad_last, sums, N, T, E, eps,
    P: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """`sums` [programs, 4, WIDTH]: the gradients of the mus and, last, of the weight over a program's tokens."""
    channels = tl.arange(0, WIDTH)[None, :]
    there = channels < E
    w = tl.load(weight + channels, mask=there, other=0.0).to(tl.float32)
    sum_w = tl.full((WIDTH,), 0.0, tl.float32)
    sum_0, sum_1, sum_2 = sum_w, sum_w, sum_w
    for tile in range(tl.program_id(0), tl.cdiv(N, TOKENS), tl.num_programs(0)):
        n = tl.cast(tile, tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
        inside = there & (n < N)
        is_followed = inside & (n % T < T - 1)
        if starts is not None:
            is_followed = is_followed & (tl.load(starts + n + 1, mask=is_followed, other=0) == 0)
        normal, scale = normalize(tl.load(x + n * E + channels, mask=inside, other=0.0).to(tl.float32), inside, E, eps)
        difference = u_before(x, w, last, starts, n, T, channels, inside, E, eps) - normal * w
        grad_u = tl.full((TOKENS, WIDTH), 0.0, tl.float32)
        grad_before = grad_u
        for p in tl.static_range(P):
            mu = tl.load(mus + p * E + channels, mask=there, other=0.0).to(tl.float32)
            grad = tl.load(grads[p] + n * E + channels, mask=inside, other=0.0).to(tl.float32)
            of_next = tl.load(grads[p] + (n + 1) * E + channels, mask=is_followed, other=0.0).to(tl.float32)
            grad_u += grad - mu * grad + mu * of_next
            grad_before += mu * grad
            of_mu = tl.sum(grad * difference, axis=0)
            if p == 0:
                sum_0 += of_mu
            elif p == 1:
                sum_1 += of_mu
            else:
                sum_2 += of_mu
        if grad_new_last is not None:
            is_last = inside & (n % T == T - 1)
            grad_u += tl.load(grad_new_last + (n // T) * E + channels, mask=is_last, other=0.0).to(tl.float32)
        if starts is not None:
            grad_before = tl.where(tl.load(starts + n, mask=inside, other=0) != 0, 0.0, grad_before)
        tl.store(grad_last + (n // T) * E + channels, grad_before, mask=inside & (n % T == 0))
        sum_w += tl.sum(grad_u * normal, axis=0)
        tl.store(grad_x + n * E + channels, normalize_backward(grad_u * w, normal, scale, E), mask=inside)
    row = sums + tl.program_id(0) * 4 * WIDTH + tl.arange(0, WIDTH)
    tl.store(row, sum_0)
    tl.store(row + WIDTH, sum_1)
    tl.store(row + 2 * WIDTH, sum_2)
    tl.store(row + 3 * WIDTH, sum_w)


@triton.jit
def gate_kernel(c, o, gated, N, SIZE: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    value = tl.load(c + n, mask=n < N, other=0.0).to(tl.float32)
    gate = tl.load(o + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(gated + n, value * gate * sigmoid(gate), mask=n < N)


@triton.jit
def gate_backward_kernel(grad_gated, c, o, grad_c, grad_o, N, SIZE: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    value = tl.load(c + n, mask=n < N, other=0.0).to(tl.float32)
    gate = tl.load(o + n, mask=n < N, other=0.0).to(tl.float32)
    grad = tl.load(grad_gated + n, mask=n < N, other=0.0).to(tl.float32)
    share = sigmoid(gate)
    tl.store(grad_c + n, grad * gate * share, mask=n < N)
    tl.store(grad_o + n, grad * value * share * (1 + gate * (1 - share)), mask=n < N)


def grid(z: torch.Tensor) -> tuple[int, int]:
    return z.shape[0], triton.cdiv(z.shape[2], TILES["CHANNELS"])


def scan(z, delta, starts, mask, c0) -> torch.Tensor:
    """`plain_scan` in fp32."""
    z, delta, c0 = z.contiguous(), delta.contiguous(), c0.contiguous()
    contexts = torch.empty_like(z, dtype=torch.float32)
    flags = bytes_of(starts), bytes_of(mask)
    scan_kernel[grid(z)](z, delta, *flags, c0, contexts, *z.shape[1:], **TILES)
    return contexts


def scan_gradients(grad, z, delta, starts, mask, c0, contexts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By z, delta and c0, each in the type of its own."""
    grad, z, delta, c0 = grad.contiguous(), z.contiguous(), delta.contiguous(), c0.contiguous()
    flags, gradients = (bytes_of(starts), bytes_of(mask)), [torch.empty_like(tensor) for tensor in (z, delta, c0)]
    scan_backward_kernel[grid(z)](grad, z, delta, *flags, c0, contexts, *gradients, *z.shape[1:], **TILES)
    return tuple(gradients)


def bytes_of(flags: torch.Tensor | None) -> torch.Tensor | None:
    return None if flags is None else flags.contiguous().view(torch.uint8)


def tiles(x: torch.Tensor) -> tuple[int, dict[str, int]]:
    """For x [..., E]: how many tiles it has, and their sizes."""
    width = triton.next_power_of_2(x.shape[-1])
    tokens = max(TILE // width, 1)
    return triton.cdiv(x.numel() // x.shape[-1], tokens), {"TOKENS": tokens, "WIDTH": width}


class ShiftedNorm(torch.autograd.Function):
    """x [B, T, E], weight [E], mus [P, E], `last` u before the row [B, E], starts [B, T] bool or None, eps, dtype -> P
    times u + mu * (u[t-1] - u) [B, T, E] in `dtype`, where u is the normalised x times `weight`; and the last u [B, E].
    """

    @staticmethod
    def forward(ctx, x, weight, mus, last, starts, eps, dtype):
        x, mus, last = x.contiguous(), mus.contiguous(), last.contiguous()
        starts = bytes_of(starts)
        (B, T, E), P = x.shape, len(mus)
        shifted = tuple(torch.empty_like(x, dtype=dtype) for _ in range(P))
        new_last = torch.empty_like(last)
        count, sizes = tiles(x)
        shift_kernel[(count,)](x, weight, mus, last, starts, shifted, new_last, B * T, T, E, eps, P=P, **sizes)
        ctx.save_for_backward(x, weight, mus, last, starts)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return *shifted, new_last

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, weight, mus, last, starts = ctx.saved_tensors
        (B, T, E), P = x.shape, len(mus)
        *grads, grad_new_last = grads
        grads = tuple(torch.zeros_like(x) if grad is None else grad.contiguous() for grad in grads)
        grad_new_last = None if grad_new_last is None else grad_new_last.contiguous()
        grad_x, grad_last = torch.empty_like(x), torch.empty_like(last)
        count, sizes = tiles(x)
        programs = min(count, MOST_PROGRAMS)
        sums = torch.empty(programs, 4, sizes["WIDTH"], device=x.device)
        shift_backward_kernel[(programs,)](
            grads, grad_new_last, x, weight, mus, last, starts, grad_x, grad_last, sums, B * T, T, E, ctx.eps,
            P=P, **sizes,
        )  # fmt: skip
        sums = sums.sum(dim=0)[:, :E]
        return grad_x, sums[3], sums[:P], grad_last, None, None, None


shifted_norm = ShiftedNorm.apply


class Gated(torch.autograd.Function):
    """c and o of one shape -> c times silu(o), in o's type."""

    @staticmethod
    def forward(ctx, c, o):
        c, o = c.contiguous(), o.contiguous()
        gated = torch.empty_like(o)
        gate_kernel[(triton.cdiv(c.numel(), TILE),)](c, o, gated, c.numel(), SIZE=TILE)
        ctx.save_for_backward(c, o)
        return gated

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        c, o = ctx.saved_tensors
        grads = torch.empty_like(c), torch.empty_like(o)
        count = c.numel()
        gate_backward_kernel[(triton.cdiv(count, TILE),)](grad.contiguous(), c, o, *grads, count, SIZE=TILE)
        return grads


gated = Gated.apply
