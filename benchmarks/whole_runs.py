"""Training speed as the user sees it: `newllm pretrain` and `newllm sft`, beside the update alone, for New-LLM, torch's
LSTM and TinyGPT2 of equal size through the same Trainer.

Evaluations and checkpoints are left out, and so is the first half of the updates, in which kernels are compiled and a
GPU's graph is captured. The text is made up: what it says does not matter for speed.

    OMP_NUM_THREADS=2 python benchmarks/whole_runs.py --batch_size 32 --max_length 64 --updates 60
    python benchmarks/whole_runs.py --num_parameters 12000000 --batch_size 64 --max_length 256      on a GPU
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from newllm_lib.cli import set_up_output
from newllm_lib.colab.timed_update import TimedUpdate
from newllm_lib.models import build_config, build_model
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.stages.sft import SftArguments, sft
from newllm_lib.training.device import autocast_dtype, find_device
from newllm_lib.training.disk import write_json

MODELS = ("newllm", "lstm", "tiny-gpt2")
FIRST = 5  # updates in which kernels are compiled and a GPU's graph is captured
BYTE_TYPES = 263  # of the byte tokenizer
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "l", "")]


class Clock(TrainerCallback):
    """Notes when the updates FIRST, max_steps / 2 and max_steps end; only then is the device's queue emptied."""

    def __init__(self):
        self.times = [time.perf_counter()]

    def on_train_begin(self, args, state, control, **kwargs):
        self.times = [time.perf_counter()]

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (FIRST, state.max_steps // 2, state.max_steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())


def write_data(folder: Path, tokens: int) -> tuple[Path, Path]:
    """Running text, and conversations of two turns each, of about so many tokens."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=4)) + ".\n" for _ in range(tokens // 15 + 200)]
    (folder / "text.txt").write_text("".join(lines), encoding="utf-8")
    turns = [{"role": role, "content": lines[i]} for i in range(len(lines)) for role in ("user", "assistant")]
    with open(folder / "chats.jsonl", "w", encoding="utf-8") as file:
        for i in range(0, len(turns) - 2, 2):
            file.write(json.dumps({"messages": turns[i : i + 2]}) + "\n")
    return folder / "text.txt", folder / "chats.jsonl"


def whole_run(options: argparse.Namespace, stage: str, model: str, folder: Path) -> tuple[float, float]:
    """(tokens per second of the latter half of a run, seconds that the first updates took)."""
    tokens = options.updates * options.batch_size * options.max_length
    data = write_data(folder, tokens)[stage == "sft"]
    clock = Clock()
    kind, run = {"pretrain": (PretrainArguments, pretrain), "sft": (SftArguments, sft)}[stage]
    args = kind(
        data=str(data), model_type=model, tokenizer="byte", num_parameters=options.num_parameters,
        max_length=options.max_length, per_device_train_batch_size=options.batch_size, max_steps=options.updates,
        eval_strategy="no", save_strategy="no", load_best_model_at_end=False, logging_steps=options.updates // 2,
        max_eval_tokens=1000, output_dir=str(folder / f"{stage}-{model}"),
    )  # fmt: skip
    run(args, (clock,))
    begin, first, half, end = clock.times
    return tokens / 2 / (end - half), first - begin


def update_alone(options: argparse.Namespace, model: str) -> float:
    device = find_device()
    sizes = {"num_parameters": options.num_parameters, "dropout": 0.0}
    network = build_model(build_config(model, BYTE_TYPES, options.max_length, **sizes)).to(device.kind).train()
    input_ids = torch.randint(0, BYTE_TYPES, (options.batch_size, options.max_length), device=device.kind)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    update = TimedUpdate(network, optimizer, input_ids, autocast_dtype(device))
    return input_ids.numel() / statistics.median([update() for _ in range(11)][2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=("pretrain", "sft"), default=["pretrain", "sft"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--num_parameters", type=int, default=1_673_920)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/whole_runs"))
    options = parser.parse_args()
    set_up_output()
    rows = []
    for stage in options.stages:
        for model in options.models:
            with tempfile.TemporaryDirectory() as folder:
                run, first = whole_run(options, stage, model, Path(folder))
            update = update_alone(options, model)
            rows.append({"stage": stage, "model": model, "run": run, "update": update, "first_updates": first})
    print(f"{options.batch_size} x {options.max_length} tokens, {options.num_parameters:,} parameters, tokens/s")
    print(f"{'stage':<10} {'model':<10} {'whole run':>11} {'update alone':>13} {'share':>6}  first {FIRST} updates")
    for row in rows:
        share = f"{row['run'] / row['update']:.0%}"
        speeds = f"{row['run']:>11,.0f} {row['update']:>13,.0f} {share:>6}"
        print(f"{row['stage']:<10} {row['model']:<10} {speeds}  {row['first_updates']:.1f} s")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(options.output_dir / "whole_runs.json", rows)


if __name__ == "__main__":
    main()
