"""What one more token costs as the history grows: New-LLM, an LSTM, and TinyGPT2 with its key-value cache, equal in
size.

Batch of one. Every figure is a median; the models take turns at every length. The last line is what the token loop of
`Chat` adds to the model's own step.

    OMP_NUM_THREADS=1 python benchmarks/generation.py
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from newllm_lib.evaluation.generation import TokenStream, token_cost
from newllm_lib.models import build_config, build_model
from newllm_lib.training.device import find_device
from newllm_lib.training.disk import write_json

MODELS = ("newllm", "lstm", "tiny-gpt2")


def stream_cost(model, tokens: int, repeats: int = 7) -> tuple[float, float]:
    """(milliseconds per streamed token, share of them in the model's own forward pass), medians."""
    forward, in_model = model.forward, []

    def timed(*args, **kwargs):
        started = time.perf_counter()
        outputs = forward(*args, **kwargs)
        in_model.append(time.perf_counter() - started)
        return outputs

    model.forward = timed
    milliseconds, shares = [], []
    for _ in range(repeats):
        in_model.clear()
        started = time.perf_counter()
        count = sum(1 for _ in TokenStream(model, temperature=0.8, top_p=0.95).continue_with([1], tokens, ()))
        seconds = time.perf_counter() - started
        milliseconds.append(1000 * seconds / count)
        shares.append(sum(in_model) / seconds)
    model.forward = forward
    return statistics.median(milliseconds), statistics.median(shares)


def picture(rows: list[dict]) -> Figure:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    histories = sorted({row["history"] for row in rows})
    for axes, field, label in zip(
        figure.subplots(1, 2), ("ms_per_token", "state_bytes"), ("ms per token", "bytes of state"), strict=True
    ):
        for model in MODELS:
            line = [(row["history"], row[field]) for row in rows if row["model"] == model]
            axes.plot(*zip(*line, strict=True), marker="o", label=model)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if field == "ms_per_token" else (1,)))
        axes.yaxis.set_major_formatter("{x:,.10g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(histories, [f"{history:,}" for history in histories])
        axes.set_xlabel("tokens of history")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=int, nargs="+", default=[128, 1024, 8192, 32768])
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/generation"))
    options = parser.parse_args()
    torch.manual_seed(0)
    device = find_device().kind
    models = {name: build_model(build_config(name, options.vocab_size, 128)).to(device) for name in MODELS}
    costs = {(name, history): [] for name in MODELS for history in options.history}
    for _ in range(options.rounds):
        for name, history in costs:
            costs[name, history].append(token_cost(models[name], history, options.repeats))
    rows = []
    for (name, history), measured in costs.items():
        milliseconds = statistics.median(milliseconds for milliseconds, _ in measured)
        rows.append({"model": name, "history": history, "ms_per_token": milliseconds, "state_bytes": measured[0][1]})
    print(f"{'model':<10} {'history':>8} {'ms per token':>13} {'bytes of state':>15}")
    for row in rows:
        print(f"{row['model']:<10} {row['history']:>8,} {row['ms_per_token']:>13.3f} {row['state_bytes']:>15,}")
    milliseconds, share = stream_cost(models["newllm"], 500)
    print(f"streamed: {milliseconds:.3f} ms per token, {1 / share - 1:.0%} on top of the model's own step")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    streamed = {"ms_per_token": milliseconds, "share_in_model": share}
    write_json(options.output_dir / "generation.json", {"rows": rows, "streamed": streamed})
    picture(rows).savefig(options.output_dir / "generation.png", dpi=120)


if __name__ == "__main__":
    main()
