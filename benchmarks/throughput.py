"""Training speed of whole updates, and operations in one: New-LLM, its published cell, torch's LSTM and TinyGPT2, all
of the same number of parameters (within 2 %).

The models take turns; every figure is a median over the rounds, every ratio is within a round. An operation is what
torch dispatches, views and allocations aside; the scan counts as one each way. On a GPU New-LLM, whose forward and
backward the Trainer captures as one CUDA graph, is measured launch by launch and "graphed", and TinyGPT2 too.

    OMP_NUM_THREADS=2 python benchmarks/throughput.py --batch_size 32 --max_length 64
    OMP_NUM_THREADS=2 python benchmarks/throughput.py --batch_size 128 --max_length 128 --compile

Another version is measured by this file too: PYTHONPATH=CHECKOUT python benchmarks/throughput.py --models newllm
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from newllm_lib.colab.timed_update import TimedUpdate
from newllm_lib.models import build_config, build_model
from newllm_lib.training.device import freed_memory_kept
from newllm_lib.training.disk import write_json

MODELS = ("newllm", "newllm-reference", "lstm", "tiny-gpt2")
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
VIEWS = (
    "_unsafe_view", "alias", "as_strided", "detach", "empty", "expand", "permute", "reshape", "select", "slice",
    "split", "squeeze", "t.", "transpose", "unbind", "unsqueeze", "view",
)  # fmt: skip


class CountOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not str(function).removeprefix("aten.").startswith(VIEWS)
        return function(*args, **(kwargs or {}))


def updates(
    model: nn.Module, input_ids: torch.LongTensor, precision: str, how: str
) -> tuple[Callable[[], float], int | None]:
    """(one timed update, operations in it if they are launched one by one); warmed up."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    if how == "compiled":
        model.model.compile() if hasattr(model, "model") else model.transformer.compile()
    run = TimedUpdate(model, optimizer, input_ids, DTYPES[precision], is_graphed=how == "graphed")
    run()
    with CountOperations() as operations:
        if not how:
            run()
    run()
    return run, None if how else operations.count


def measure(options: argparse.Namespace, batch_size: int, max_length: int) -> list[dict]:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    input_ids = torch.randint(0, options.vocab_size, (batch_size, max_length), device=device)
    names = [(name, "") for name in options.models]
    for how in ["compiled"] * options.compile + ["graphed"] * (device == "cuda"):
        names += [(name, how) for name in options.models if name in ("newllm", "tiny-gpt2")]
    runs, rows = [], []
    for name, how in names:
        config = build_config(name, options.vocab_size, max_length, num_parameters=options.num_parameters)
        model = build_model(config).to(device).train()
        run, operations = updates(model, input_ids, options.precision, how)
        runs.append(run)
        row = {"model": f"{name} {how}".strip(), "parameters": model.num_parameters(), "operations": operations}
        rows.append({**row, "batch_size": batch_size, "max_length": max_length})
    seconds = [[run() for run in runs] for _ in range(options.rounds)]
    base = next((i for i, row in enumerate(rows) if row["model"] == "tiny-gpt2"), None)
    for i, row in enumerate(rows):
        row["tokens_per_second"] = input_ids.numel() / statistics.median(times[i] for times in seconds)
        row["to_tiny_gpt2"] = None if base is None else statistics.median(times[base] / times[i] for times in seconds)
    return rows


def table(rows: list[dict]) -> str:
    lines = [f"{'model':<20} {'parameters':>11} {'tokens/s':>9} {'to TinyGPT2':>12} {'operations':>11}"]
    for row in rows:
        ratio = "-" if row["to_tiny_gpt2"] is None else f"{row['to_tiny_gpt2']:.2f}x"
        lines.append(
            f"{row['model']:<20} {row['parameters']:>11,} {row['tokens_per_second']:>9,.0f} {ratio:>12} "
            f"{row['operations'] or '-':>11}"
        )
    return "\n".join(lines)


def picture(titles: list[str], tables: list[list[dict]]) -> Figure:
    figure = Figure(figsize=(7, 0.6 + 2 * len(tables)), layout="constrained")
    for axes, title, rows in zip(figure.subplots(len(tables), squeeze=False)[:, 0], titles, tables, strict=True):
        rows = sorted(rows, key=lambda row: row["tokens_per_second"])
        colors = ["C0" if row["model"].startswith("newllm") else "0.7" for row in rows]
        bars = axes.barh([row["model"] for row in rows], [row["tokens_per_second"] for row in rows], color=colors)
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        axes.set_title(title, fontsize=9, loc="left")
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    axes.set_xlabel("training tokens per second")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, nargs="+", default=[32])
    parser.add_argument("--max_length", type=int, nargs="+", default=[64])
    parser.add_argument("--vocab_size", type=int, default=2048)
    parser.add_argument("--num_parameters", type=int, default=1_673_920)
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--compile", action="store_true", help="New-LLM and TinyGPT2 through torch.compile, too")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/throughput"))
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_interop_threads(1)
    titles, tables = [], []
    for batch_size, max_length in zip(options.batch_size, options.max_length, strict=True):
        titles.append(
            f"{batch_size} x {max_length} tokens, {options.vocab_size:,} types, {options.precision}, "
            f"{torch.get_num_threads()} thread(s)"
        )
        with freed_memory_kept():
            tables.append(measure(options, batch_size, max_length))
        print(f"{titles[-1]}, median of {options.rounds} rounds\n{table(tables[-1])}\n", flush=True)
    rows = [{**row, "threads": torch.get_num_threads()} for rows in tables for row in rows]
    write_json(options.output_dir / "throughput.json", rows)
    picture(titles, tables).savefig(options.output_dir / "throughput.png", dpi=120)


if __name__ == "__main__":
    main()
