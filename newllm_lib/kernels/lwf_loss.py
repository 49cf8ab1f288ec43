"""The loss of learning without forgetting from the logits of a few tokens, and its gradient in their place, as one
Triton kernel: torch would launch some 45 kernels for every block of types, and hold the logits in fp32.

The definition is `lwf_loss.loss_of_chunk`. Without a GPU, TRITON_INTERPRET=1 runs the kernel on a CPU.

Dimensions: n tokens, V vocabulary; TYPES of it at a time.
"""

import torch
import triton
import triton.language as tl

SIZES = {"TYPES": 4096, "num_warps": 8}


@triton.jit
def capped(logits, softcap):
    """(logits after soft-capping, their slope by those before)."""
    slope = tl.full(logits.shape, 1.0, tl.float32)
    if softcap is not None:
        bent = 2 / (1 + tl.exp(-2 * logits / softcap)) - 1  # tanh
        logits, slope = softcap * bent, 1 - bent * bent
    return logits, slope


@triton.jit
def read(logits, types, V: tl.constexpr, softcap):
    """fp32 logits of these types, -inf beyond the last, and their slopes."""
    found, slope = capped(tl.load(logits + types, mask=types < V, other=0.0).to(tl.float32), softcap)
    return tl.where(types < V, found, float("-inf")), slope


@triton.jit
def fold(logits, highest, total):
    """Running maximum, and sum of exp(logits - maximum)."""
    higher = tl.maximum(highest, tl.max(logits, axis=0))
    return higher, total * tl.exp(highest - higher) + tl.sum(tl.exp(logits - higher), axis=0)


@triton.jit
def loss_kernel(
    student, teacher, labels, nats, kl, softcap, teacher_softcap, coldness, pull, smoothing,
    V: tl.constexpr, SOFTENS: tl.constexpr, TRAINS: tl.constexpr, TYPES: tl.constexpr,
):  # fmt: skip
    """A program is a token. If it trains, the gradient overwrites the student's logits.

    Args:
        student, teacher: [n, V], `teacher` None where there is none; labels, nats, kl: [n].
        coldness: 1 / temperature. pull: distill_weight * temperature. smoothing: of labels.
        SOFTENS: the temperature is not 1.
    """
    n = tl.program_id(0).to(tl.int64)
    student += n * V
    label = tl.load(labels + n)
    of_label = capped(tl.load(student + label).to(tl.float32), softcap)[0]
    highest, soft_highest, teacher_highest = float("-inf"), float("-inf"), float("-inf")
    total, soft_total, teacher_total, whole = 0.0, 0.0, 0.0, 0.0
    for begin in range(0, V, TYPES):
        types = begin + tl.arange(0, TYPES)
        logits = read(student, types, V, softcap)[0]
        highest, total = fold(logits, highest, total)
        whole += tl.sum(tl.where(types < V, logits, 0.0), axis=0)
        if teacher is not None:
            wanted = read(teacher + n * V, types, V, teacher_softcap)[0]
            teacher_highest, teacher_total = fold(wanted * coldness, teacher_highest, teacher_total)
            if SOFTENS:
                soft_highest, soft_total = fold(logits * coldness, soft_highest, soft_total)
    normalizer = highest + tl.log(total)
    tl.store(nats + n, normalizer - (1 - smoothing) * of_label - smoothing / V * whole)
    if TRAINS or teacher is not None:
        softened = soft_highest + tl.log(soft_total) if SOFTENS else normalizer
        teacher_normalizer = teacher_highest + tl.log(teacher_total)
        divergence = 0.0
        for begin in range(0, V, TYPES):
            types = begin + tl.arange(0, TYPES)
            logits, slope = read(student, types, V, softcap)
            grad = tl.exp(logits - normalizer) - tl.where(types == label, 1 - smoothing, 0.0) - smoothing / V
            if teacher is not None:
                wanted = read(teacher + n * V, types, V, teacher_softcap)[0]
                own, wanted = logits * coldness - softened, wanted * coldness - teacher_normalizer
                share = tl.exp(wanted)
                divergence += tl.sum(tl.where(types < V, share * (wanted - own), 0.0), axis=0)
                grad += pull * (tl.exp(own) - share)
            if TRAINS:
                tl.store(student + types, grad * slope, mask=types < V)
        if teacher is not None:
            tl.store(kl + n, divergence)


def losses_of_logits(
    student: torch.Tensor,
    teacher: torch.Tensor | None,
    labels: torch.Tensor,
    softcaps: tuple[float | None, float | None],
    distill_weight: float,
    temperature: float,
    label_smoothing: float,
    trains: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """For every token: cross-entropy [n] and KL [n] in fp32. If it trains, the gradient of the loss by the logits
    before soft-capping overwrites the student's.

    Args:
        student, teacher: [n, V], contiguous, before soft-capping; `softcaps` of both.
    """
    (tokens, types), device = student.shape, student.device
    nats, kl = torch.empty(tokens, device=device), torch.zeros(tokens, device=device)
    numbers = *softcaps, 1 / temperature, distill_weight * temperature, label_smoothing
    if tokens:
        softens = teacher is not None and temperature != 1
        fixed = {"V": types, "SOFTENS": softens, "TRAINS": trains, **SIZES}
        loss_kernel[(tokens,)](student, teacher, labels, nats, kl, *numbers, **fixed)
    return nats, kl
