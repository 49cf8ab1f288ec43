"""Training speed: New-LLM's fast recurrence beside the loop as published, torch's LSTM and GRU, and TinyGPT2.

All models of one row of the table have the same number of parameters (within 2 %), and take turns: every figure is the
median over the rounds of one run, every ratio is within a round. `GEMM GFLOP/s` is the rate of an update's
matrix products alone, replayed at their shapes, `share of it` their time over the time of the whole update.

    OMP_NUM_THREADS=1 python benchmarks/throughput.py --batch_size 32 --num_layers 1 4
    OMP_NUM_THREADS=2 python benchmarks/throughput.py --batch_size 128
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from published_loop import PublishedLoop
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from newllm_lib.models import LSTMForCausalLM, build_config, build_model, count_parameters
from newllm_lib.training.checkpoint import write_json
from newllm_lib.training.device import freed_memory_kept
from newllm_lib.training.update import timed_update

DTYPES = {"fp32": None, "bf16": torch.bfloat16}
# matrix product -> position of its first factor, and the axis of the second that is the result's
PRODUCTS = {"mm": (0, -1), "bmm": (0, -1), "addmm": (1, -1), "baddbmm": (1, -1), "_linear_pointwise": (0, 0)}


class GRULanguageModel(LSTMForCausalLM):
    """The LSTM baseline with torch's GRU in the LSTM's place."""

    def __init__(self, config):
        super().__init__(config)
        self.lstm = nn.GRU(config.embedding_size, config.hidden_size, config.num_hidden_layers, batch_first=True)

    def _recur(self, inputs_embeds, context, mask, starts):
        return self.lstm(inputs_embeds)


def gru_of_size(lstm_config, num_parameters: int) -> GRULanguageModel:
    """The GRU language model nearest to `num_parameters`, by bisection over its hidden size."""

    def at_width(width: int) -> GRULanguageModel:
        config = type(lstm_config)(**{**lstm_config.to_diff_dict(), "hidden_size": width})
        with torch.device("meta"):
            model = GRULanguageModel(config)
            model.tie_weights()
        return model

    low, high = 8, 4096
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at_width(middle).num_parameters() < num_parameters else (low, middle)
    return GRULanguageModel(at_width(low).config)


def trained_models(vocab_size: int, num_layers: int, max_length: int, dropout: float) -> dict[str, nn.Module]:
    """Every model, all of the size of the published one."""
    sizes = {"num_layers": num_layers, "dropout": dropout}
    published = build_config("newllm-reference", vocab_size, max_length, **sizes)
    loop = PublishedLoop(published)
    num_parameters = count_parameters(published)
    sizes["num_parameters"] = num_parameters
    models = {"loop as published": loop, "published cell": build_model(published)}
    for name in ("newllm", "lstm", "tiny-gpt2"):
        if name == "tiny-gpt2":
            sizes["num_layers"] = max(num_layers, 3)
        models[name] = build_model(build_config(name, vocab_size, max_length, **sizes))
    models["gru"] = gru_of_size(models["lstm"].config, num_parameters)
    for name, model in models.items():
        found = sum(parameter.numel() for parameter in model.parameters())
        assert abs(found - num_parameters) <= 0.02 * num_parameters, f"{name}: {found:,} parameters"
    return models


class RecordProducts(TorchDispatchMode):
    """Notes every matrix product that runs inside: the operation and copies of what it was given."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.inputs = {}
        self.operations = 0  # floating-point, multiplications and additions

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if name in PRODUCTS:
            first, axis = PRODUCTS[name]
            self.operations += 2 * args[first].numel() * args[first + 1].shape[axis]
            self.calls.append((function, *tree_map_only(torch.Tensor, self.stand_in, (args, kwargs))))
        return function(*args, **kwargs)

    def stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """One tensor for all of the same shape and strides; a weight in oneDNN's own layout stands for itself."""
        if tensor.layout is not torch.strided:
            return tensor
        key = (tensor.dtype, tuple(tensor.shape), tensor.stride())
        if key not in self.inputs:
            self.inputs[key] = torch.randn_like(tensor.detach().clone(memory_format=torch.preserve_format))
        return self.inputs[key]

    @torch.no_grad()
    def replay(self) -> float:
        """Seconds that the products take alone."""
        started = time.perf_counter()
        for function, args, kwargs in self.calls:
            function(*args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started


def products_of(run: Callable[[], float]) -> RecordProducts:
    """The matrix products of one update."""
    recorder = RecordProducts()
    with recorder:
        run()
    recorder.replay()
    return recorder


def measure(vocab_size, num_layers, batch_size, max_length, options) -> list[dict]:
    """One row per model and precision."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    input_ids = torch.randint(0, vocab_size, (batch_size, max_length), device=device)
    runs: dict[tuple[str, str], Callable[[], float]] = {}
    products: dict[tuple[str, str], RecordProducts] = {}
    parameters = {}
    for name, model in trained_models(vocab_size, num_layers, max_length, options.dropout).items():
        if options.models and name not in options.models:
            continue
        model = model.to(device).train()
        parameters[name] = sum(parameter.numel() for parameter in model.parameters())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        for precision, dtype in DTYPES.items():
            if name == "loop as published" and precision == "bf16":
                continue
            runs[name, precision] = partial(timed_update, model, optimizer, input_ids, dtype)
            runs[name, precision]()
            if name in ("newllm", "published cell"):
                products[name, precision] = products_of(runs[name, precision])
    seconds = {key: [] for key in runs}
    product_seconds = {key: [] for key in products}
    for _ in range(options.rounds):
        for key, run in runs.items():
            seconds[key].append(run())
            if key in products:
                product_seconds[key].append(products[key].replay())
    setting = {"vocab_size": vocab_size, "num_layers": num_layers, "batch_size": batch_size, "max_length": max_length}
    base = seconds.get(("loop as published", "fp32"))
    rows = []
    for (name, precision), times in seconds.items():
        row = {**setting, "model": name, "precision": precision, "parameters": parameters[name]}
        row["tokens_per_second"] = input_ids.numel() / statistics.median(times)
        if base:
            row["to_published"] = statistics.median(b / t for b, t in zip(base, times, strict=True))
        if (name, precision) in product_seconds:
            pairs = zip(product_seconds[name, precision], times, strict=True)
            row["share_of_gemm"] = statistics.median(product / whole for product, whole in pairs)
            operations = products[name, precision].operations
            row["gemm_gflops"] = operations / statistics.median(product_seconds[name, precision]) / 1e9
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    titles = ("model", "parameters", "tokens/s", "to published", "GEMM GFLOP/s", "share of it")
    lines = ["{:<20} {:>11} {:>9} {:>13} {:>13} {:>12}".format(*titles)]
    for row in rows:
        ratio = f"{row['to_published']:.2f}x" if "to_published" in row else "-"
        rate, share = "-", "-"
        if "share_of_gemm" in row:
            rate, share = f"{row['gemm_gflops']:.0f}", f"{row['share_of_gemm']:.0%}"
        lines.append(
            f"{row['model'] + ' ' + row['precision']:<20} {row['parameters']:>11,} {row['tokens_per_second']:>9,.0f} "
            f"{ratio:>13} {rate:>13} {share:>12}"
        )
    return "\n".join(lines)


def picture(settings: list[str], tables: list[list[dict]]) -> Figure:
    figure = Figure(figsize=(7, 0.6 + 2.6 * len(tables)), layout="constrained")
    for axes, title, rows in zip(figure.subplots(len(tables), squeeze=False)[:, 0], settings, tables, strict=True):
        rows = sorted(rows, key=lambda row: row["tokens_per_second"])
        names = [f"{row['model']} {row['precision']}" for row in rows]
        colors = ["C0" if row["model"] == "newllm" else "0.7" for row in rows]
        bars = axes.barh(names, [row["tokens_per_second"] for row in rows], color=colors)
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        axes.set_title(title, fontsize=9, loc="left")
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    axes.set_xlabel("training tokens per second")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_layers", type=int, nargs="+", default=[1])
    parser.add_argument("--batch_size", type=int, nargs="+", default=[32])
    parser.add_argument("--max_length", type=int, nargs="+", default=[128])
    parser.add_argument("--vocab_size", type=int, nargs="+", default=[1000])
    parser.add_argument("--models", nargs="+", help="only these, by the names in the table")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/throughput"))
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_interop_threads(1)
    titles, tables = [], []
    for layers, batch, length, vocab in itertools.product(
        options.num_layers, options.batch_size, options.max_length, options.vocab_size
    ):
        titles.append(f"L={layers}, B={batch}, T={length}, V={vocab:,}, {torch.get_num_threads()} thread(s)")
        with freed_memory_kept():
            tables.append(measure(vocab, layers, batch, length, options))
        print(f"{titles[-1]}, median of {options.rounds} rounds\n{table(tables[-1])}\n", flush=True)
    rows = [{**row, "threads": torch.get_num_threads()} for rows in tables for row in rows]
    write_json(options.output_dir / "throughput.json", rows)
    picture(titles, tables).savefig(options.output_dir / "throughput.png", dpi=120)


if __name__ == "__main__":
    main()
