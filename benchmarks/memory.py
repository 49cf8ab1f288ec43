"""Peak memory of a training update of New-LLM, beyond weights, gradients and optimizer state, against the length of
the rows and the size of the vocabulary.

Every setting runs in a process of its own; the peak is what the operating system saw (CPU) or the allocator (CUDA).

    python benchmarks/memory.py --vocab_size 1000 4096 16384 50257 --max_length 64 128 256
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from newllm_lib.colab.timed_update import TimedUpdate
from newllm_lib.models import build_config, build_model
from newllm_lib.training.disk import MB, write_json

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def one_setting(model_type: str, vocab_size: int, batch_size: int, max_length: int, bf16: bool) -> dict:
    """Bytes at the peak of the third update."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(build_config(model_type, vocab_size, max_length))
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)  # as the Trainer does
    input_ids = torch.randint(0, vocab_size, (batch_size, max_length), device=device)

    dtype = None if not bf16 else torch.bfloat16 if device == "cpu" else torch.float16

    update = TimedUpdate(model, optimizer, input_ids, dtype)
    update()
    update()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        CLEAR.write_text("5")  # the peak starts again from what is resident now
        before = resident("VmRSS")
    update()
    peak = (torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")) - before
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    setting = {"model": model_type, "vocab_size": vocab_size, "batch_size": batch_size, "max_length": max_length}
    return {
        **setting, "precision": "half" if bf16 else "fp32", "weights_gradients_optimizer_mb": 4 * weights / MB,
        "update_mb": (peak - weights) / MB,  # gradients are as large as the weights
    }  # fmt: skip


def picture(rows: list[dict]) -> Figure:
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for length in sorted({row["max_length"] for row in rows}):
        line = sorted((row["vocab_size"], row["update_mb"]) for row in rows if row["max_length"] == length)
        axes.plot(*zip(*line, strict=True), marker="o", label=f"{length} tokens per row")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("token types (vocab_size)")
    axes.set_ylabel("MB for one update,\nbeyond weights, gradients, optimizer")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_type", default="newllm")
    parser.add_argument("--vocab_size", type=int, nargs="+", default=[4096, 50257])
    parser.add_argument("--max_length", type=int, nargs="+", default=[128])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--bf16", action="store_true", help="autocast: bf16 on a CPU, fp16 on a GPU")
    parser.add_argument("--one", action="store_true", help="this one setting, as JSON (used by the command itself)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/memory"))
    options = parser.parse_args()
    if options.one:
        setting = (options.vocab_size[0], options.batch_size, options.max_length[0], options.bf16)
        print(json.dumps(one_setting(options.model_type, *setting)))
        return
    # Without this, malloc keeps freed blocks, and the peak says nothing of what was needed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    rows = []
    for max_length in options.max_length:
        for vocab_size in options.vocab_size:
            command = [sys.executable, __file__, "--one", "--model_type", options.model_type]
            command += ["--vocab_size", str(vocab_size), "--max_length", str(max_length)]
            command += ["--batch_size", str(options.batch_size), *(["--bf16"] if options.bf16 else [])]
            result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            rows.append(json.loads(result.stdout.splitlines()[-1]))
            row = rows[-1]
            print(
                f"V={vocab_size:,} T={max_length:,} B={options.batch_size}: {row['update_mb']:8.1f} MB for one update;"
                f" {row['weights_gradients_optimizer_mb']:8.1f} MB of weights, gradients, optimizer state",
                flush=True,
            )
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(options.output_dir / "memory.json", rows)
    picture(rows).savefig(options.output_dir / "memory.png", dpi=120)


if __name__ == "__main__":
    main()
