"""Peak memory and time of the loss of learning without forgetting, forward and backward with respect to the hidden
states, by its different forms: ours, full logits, and the kernels of TRL and Liger.

Cross-entropy plus temperature**2 * KL(teacher || student), fp32, a random frozen head, a teacher with the same head (an
adapter switched off). Every form runs in processes of its own, for memory and for time; the peak is what the operating
system saw (CPU) or the allocator (CUDA). OMP_NUM_THREADS sets the threads.

    python benchmarks/lwf_memory.py --tokens 1024 --vocab_size 256000 --hidden_size 2048
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from memory import CLEAR, resident
from torch.nn import functional

from newllm_lib.adapters.lwf_loss import lwf_loss
from newllm_lib.models.frozen_head import Head
from newllm_lib.training.disk import GB, size

TEMPERATURE, DISTILL_WEIGHT = 2.0, 1.0
WARM_UP_TOKENS = 8
HEADROOM = GB  # bytes that stay free
FULL_LOGITS = 9  # [N, V] tensors at the peak of the full form
CANNOT = {
    "trl gkd loss": "generalized_jsd_loss works on full logits, and has no cross-entropy",
    "liger cosine": "LigerFusedLinearCosineSimilarityLoss: another loss, not a KL",
    "liger triton": "LigerFusedLinearJSD, LigerFusedLinearKLDivLoss, LigerFusedCETVDLoss: Triton kernels, GPU only;"
    " the second wants the teacher's probabilities [N, V], the third is no KL",
}


def ours(hidden, teacher_hidden, weight, labels):
    return lwf_loss(
        hidden, Head(weight), labels, teacher_hidden, distill_weight=DISTILL_WEIGHT, temperature=TEMPERATURE
    ).total


def full_logits(hidden, teacher_hidden, weight, labels):
    logits = functional.linear(hidden, weight)
    task = functional.cross_entropy(logits, labels, reduction="sum")
    log_q = (logits / TEMPERATURE).log_softmax(dim=1)
    log_p = (functional.linear(teacher_hidden, weight) / TEMPERATURE).log_softmax(dim=1)
    return task + DISTILL_WEIGHT * TEMPERATURE**2 * functional.kl_div(log_q, log_p, reduction="sum", log_target=True)


def trl(hidden, teacher_hidden, weight, labels):
    """TRL has a kernel for the divergence (beta 0: the forward KL) and another one for log-probabilities."""
    from trl.kernels.chunked_divergence import VOCAB_CHUNK_SIZE, ChunkedDivergenceFunction
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    kl, _ = ChunkedDivergenceFunction.apply(hidden, weight, None, teacher_hidden, weight, None, 0.0, TEMPERATURE)
    log_likelihoods = ChunkedLogProbFunction.apply(hidden, weight, None, labels, 1.0, VOCAB_CHUNK_SIZE, None, 1.0, ())
    return DISTILL_WEIGHT * TEMPERATURE**2 * kl.sum() - log_likelihoods[0].sum()


def liger(hidden, teacher_hidden, weight, labels, chunk_size=1024):
    """Liger's Jensen-Shannon divergence at beta 0 is the forward KL. It always makes a gradient of the weight."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    weights = {"weight_hard_loss": 1.0, "weight_soft_loss": DISTILL_WEIGHT * TEMPERATURE**2}
    how = {"beta": 0.0, "temperature": TEMPERATURE, "compiled": False, "chunk_size": chunk_size}
    loss = LigerFusedLinearJSDLoss(**weights, **how)
    return loss(hidden, weight, teacher_hidden, weight, labels) * len(labels)  # it is a mean


FORMS = {
    "full logits": full_logits, "ours": ours, "trl": trl, "liger": liger,
    "liger, chunks of 64": functools.partial(liger, chunk_size=64),
}  # fmt: skip


def tensors_of(tokens: int, vocab_size: int, hidden_size: int) -> tuple[torch.Tensor, ...]:
    """hidden and teacher_hidden [N, H], weight [V, H], labels [N]: logits of a standard deviation of about 2."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    weight = torch.randn(vocab_size, hidden_size, device=device).mul_(2 * hidden_size**-0.5)
    hidden, noise = (torch.randn(tokens, hidden_size, device=device) for _ in range(2))
    labels = torch.randint(0, vocab_size, (tokens,), device=device)
    return hidden.requires_grad_(), (hidden.detach() + 0.3 * noise), weight, labels


def one_setting(form: str, sizes: tuple[int, int, int], repeats: int, gradient_file: Path) -> dict:
    """Loss, bytes at the peak above the inputs, seconds of forward and backward; the gradient goes into the file."""
    hidden, teacher_hidden, weight, labels = tensors_of(*sizes)
    gpu = hidden.device.type == "cuda"
    # Imports and threads, with a few tokens and types
    few = [hidden[:WARM_UP_TOKENS].detach().requires_grad_(), teacher_hidden[:WARM_UP_TOKENS], weight[:1000]]
    FORMS[form](*few, labels[:WARM_UP_TOKENS] % 1000).backward()
    peaks, seconds, cpu_seconds = [], [], []
    for _ in range(repeats):
        hidden.grad = None
        if gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            CLEAR.write_text("5")  # the peak starts again from what is resident now
            before = resident("VmRSS")
        begin, cpu_begin = time.perf_counter(), time.process_time()
        loss = FORMS[form](hidden, teacher_hidden, weight, labels)
        loss.backward()
        total = loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - begin)
        cpu_seconds.append(time.process_time() - cpu_begin)
        peaks.append((torch.cuda.max_memory_allocated() if gpu else resident("VmHWM")) - before)
    torch.save(hidden.grad.cpu(), gradient_file)
    return {
        "loss": total,
        "peak_gb": peaks[-1] / GB,
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(cpu_seconds),  # of all threads: what to compare on a machine others use, too
    }


def run(form: str, options: argparse.Namespace, repeats: int, gradient_file: Path, returns_memory: bool) -> dict | str:
    """One setting in a process of its own; words where it fails."""
    environment = dict(os.environ)
    if returns_memory:  # else malloc keeps freed blocks, and the peak says nothing of what was needed; it costs time
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, __file__, "--one", form, "--gradient_file", str(gradient_file)]
    command += ["--tokens", str(options.tokens), "--vocab_size", str(options.vocab_size)]
    command += ["--hidden_size", str(options.hidden_size), "--repeats", str(repeats)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        return f"failed: {(result.stderr.strip().splitlines() or [f'exit code {result.returncode}'])[-1]}"
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab_size", type=int, default=256000)
    parser.add_argument("--hidden_size", type=int, default=2048)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--repeats", type=int, default=3, help="the median time is printed")
    parser.add_argument("--same_run", action="store_true", help="time and memory from one process: half as long")
    parser.add_argument("--one", help="this one form, as JSON (used by the command itself)")
    parser.add_argument("--gradient_file", type=Path, help="used by the command itself")
    options = parser.parse_args()
    if options.one:
        sizes = options.tokens, options.vocab_size, options.hidden_size
        print(json.dumps(one_setting(options.one, sizes, options.repeats, options.gradient_file)))
        return
    print(f"N={options.tokens:,} V={options.vocab_size:,} H={options.hidden_size:,}, fp32, {options.repeats} runs each")
    print(
        f"{'form':<20} {'peak GB':>8} {'seconds':>8} {'CPU s':>7} {'loss differs by':>16} {'gradient differs by':>20}"
    )
    reference = None  # the first form that ran
    weight_bytes = options.vocab_size * options.hidden_size * 4
    full_bytes = FULL_LOGITS * options.tokens * options.vocab_size * 4
    with tempfile.TemporaryDirectory() as directory:
        for form in options.forms:
            wanted = weight_bytes + HEADROOM + (full_bytes if form in ("full logits", "liger") else 0)
            wanted += 3 * weight_bytes if form.startswith("liger") else 0  # gradients of the weight
            free = psutil.virtual_memory().available
            if not torch.cuda.is_available() and wanted > free:
                print(f"{form:<20} skipped: wants {size(wanted)} and {size(free)} are free", flush=True)
                continue
            file = Path(directory) / "gradient.pt"
            memory = run(form, options, 1 if not options.same_run else options.repeats, file, returns_memory=True)
            timed = memory if options.same_run else run(form, options, options.repeats, file, returns_memory=False)
            if isinstance(memory, str) or isinstance(timed, str):
                print(f"{form:<20} {memory if isinstance(memory, str) else timed}", flush=True)
                continue
            loss, gradient = timed["loss"], torch.load(file)
            reference = reference or (loss, gradient)
            loss_differs = abs(loss / reference[0] - 1)
            gradient_differs = ((gradient - reference[1]).abs().max() / reference[1].abs().max()).item()
            print(
                f"{form:<20} {memory['peak_gb']:8.2f} {timed['seconds']:8.1f} {timed['cpu_seconds']:7.1f}"
                f" {loss_differs:16.1e} {gradient_differs:20.1e}",
                flush=True,
            )
    for form, reason in CANNOT.items():
        print(f"{form:<20} {reason}")


if __name__ == "__main__":
    main()
