"""Several trained models side by side: quality, size, speed, memory of the text, samples."""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..data.conversations import Conversations
from ..errors import InputError
from ..evaluation.generation import answer, batch_cost, token_cost
from ..progress import Progress
from ..training.checkpoint import run_of
from ..training.curves import COLOURS, as_label, plain
from ..training.trained_model import open_model
from .evaluate import final_metrics, held_out_documents, held_out_text, score
from .goals import goals, percent

HISTORIES = (128, 1024, 8192)  # tokens before the generated one that is timed
NUM_SAMPLES = 2
# Figures that are set against those of the first model.
SET_AGAINST = ("bits_per_byte", "perplexity", "tokens_per_second", "ms_per_batch", "ms_per_token", "state_bytes")


def compare(
    paths: Sequence[str | Path], data: str | None = None, prompts: Sequence[str] | None = None, max_new_tokens: int = 60
) -> list[dict[str, Any]]:
    """One dictionary per model, in the order of `paths`: name, folder, text and its split, parameters, the metrics of
    `evaluate`, tokens_per_second (forward passes over the held-out text), ms_per_token and state_bytes (by tokens of
    history), ms_per_batch (a forward pass over `rows` of `length` tokens), samples (prompt -> continuation),
    percent_to_first (by how much its figures are more than those of the first model), and the `goals` of the guides
    that it can be held to.

    `data` is a file to evaluate on; none: the text held out when the first model was trained. `prompts` are beginnings
    to continue; none: those of two held-out documents, or what users say first in two held-out conversations. Raises
    InputError: bad folder or file, or no model at all.
    """
    if not paths:
        raise InputError("compare needs the folder of at least one finished run.")
    models = [open_model(path) for path in paths]
    names = [trained.name for trained in models]
    if len(set(names)) < len(names):
        runs = [(trained.folder, run_of(trained.folder)) for trained in models]
        names = [run.name if run == folder else f"{run.name}, last update" for folder, run in runs]
    text = held_out_text(models[0], data)
    if prompts is None and isinstance(text, Conversations):
        prompts = [messages[0]["content"] for messages in itertools.islice(text, NUM_SAMPLES)]
    elif prompts is None:
        prompts = [" ".join(piece.text.split()[:8]) for piece in itertools.islice(text.read(), NUM_SAMPLES)]
    rows = []
    for trained, name in Progress([*zip(models, names, strict=True)], desc="comparing", unit="models"):
        documents = held_out_documents(trained, text, models[0])
        sample = documents.sample(20_000)  # on which the speed of scoring is measured
        started = time.perf_counter()
        score(trained, sample)
        seconds = time.perf_counter() - started
        metrics = final_metrics(trained, text, documents) or score(trained, documents)
        shape = {"rows": trained.session["per_device_eval_batch_size"], "length": trained.run["max_length"]}
        costs = {str(history): token_cost(trained.model, history) for history in HISTORIES}
        rows.append({
            "name": name, "folder": str(trained.folder), "model_type": trained.run.get("model_type", ""),
            "text": text.origin, "split": models[0].split(text.identity),
            "parameters": trained.model.num_parameters(), **metrics,
            "tokens_per_second": sample.counts.tokens / seconds,
            "ms_per_token": {history: milliseconds for history, (milliseconds, _) in costs.items()},
            "state_bytes": {history: size for history, (_, size) in costs.items()},
            "ms_per_batch": {**shape, "milliseconds": batch_cost(trained.model, **shape)},
            "samples": {prompt: answer(trained.model, trained.tokenizer, prompt, max_new_tokens) for prompt in prompts},
        })  # fmt: skip
    for trained, row in zip(models, rows, strict=True):
        row["goals"] = goals(trained, row, rows)
        row["percent_to_first"] = {name: percent(figure(row, name), figure(rows[0], name)) for name in SET_AGAINST}
    return rows


def figure(row: dict[str, Any], name: str) -> float | None:
    """One number of a comparison: of those by history that after the longest."""
    value = row[name]
    return value if not isinstance(value, dict) else value.get("milliseconds", value.get(str(HISTORIES[-1])))


def comparison_cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The comparison as text: a header row, then a row per quantity, with what it is more than the first model's."""

    def line(title: str, key: str, digits: int, history: int | None = None) -> list[str]:
        values = [figure(row, key) if history is None else row[key][str(history)] for row in rows]
        cells = ["-" if value is None else f"{value:,.{digits}f}" for value in values]
        more = [percent(value, values[0]) for value in values[1:]]
        others = (cell if it is None else f"{cell} ({it:+.1f} %)" for cell, it in zip(cells[1:], more, strict=True))
        return [title, cells[0], *others]

    shapes = {" of {rows} x {length}".format(**row["ms_per_batch"]) for row in rows}
    shape = shapes.pop() if len(shapes) == 1 else ""
    return [
        ["", *(row["name"] for row in rows)],
        line("parameters", "parameters", 0),
        line("bits per byte", "bits_per_byte", 4),
        line("perplexity (per token)", "perplexity", 2),
        line("word perplexity", "word_perplexity", 1),
        ["token accuracy", *(f"{row['token_accuracy']:.2%}" for row in rows)],
        ["unknown tokens", *(f"{row['unk_rate']:.1%}" for row in rows)],
        line("tokens/s, scoring", "tokens_per_second", 0),
        line(f"ms per batch{shape}, inference", "ms_per_batch", 1),
        *(line(f"ms per token after {history:,}", "ms_per_token", 2, history) for history in HISTORIES),
        *(line(f"bytes of state after {history:,}", "state_bytes", 0, history) for history in HISTORIES),
    ]


def goal_cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Whether each goal is met, what it is, and the figure."""
    return [
        ["met" if it["met"] else "not met", f"{row['name']}: {it['goal']}", it["figure"]]
        for row in rows
        for it in row["goals"]
    ]


def comparison_table(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison and the samples as plain text."""
    cells = comparison_cells(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"Held-out text ({rows[0]['split']}): {rows[0]['text']}", ""]
    for title, *values in cells:
        lines.append("  ".join([title.ljust(widths[0]), *map(str.rjust, values, widths[1:])]))
    if met := goal_cells(rows):
        lines += ["", "Goals of the guides:", *(f"  {is_met:<7}  {goal} ({figure})" for is_met, goal, figure in met)]
    for prompt in rows[0]["samples"]:
        lines += ["", f"» {prompt}"]
        lines += [f"  [{row['name']}]{row['samples'][prompt]}" for row in rows]
    return "\n".join(lines)


def comparison_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Three panels: quality, time per generated token and bytes of state against the length of the history."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    quality, speed, state = figure.subplots(1, 3)
    metric, label = "bits_per_byte", "bits per byte"
    if any(row[metric] is None for row in rows):
        metric, label = "perplexity", "perplexity per token"
    # Beside three others a long name has no room: it is broken at its hyphens.
    break_at = "-\n" if len(rows) > 3 else "-"
    names = [f"{as_label(row['name']).replace('-', break_at)}\n{row['parameters'] / 1e6:.2f} M" for row in rows]
    bars = quality.bar(names, [row[metric] for row in rows], color=COLOURS, width=0.55)
    quality.bar_label(bars, fmt="%.3f", padding=2, fontsize=9)
    quality.set(ylabel=f"{label}, lower is better", title="Quality on held-out text")
    quality.margins(y=0.15)
    speed.set(ylabel="ms per generated token", title="Time")
    state.set(ylabel="KiB of state", title="Memory of the text", yscale="log")
    for axes, key, unit in ((speed, "ms_per_token", 1), (state, "state_bytes", 1024)):
        for colour, row in zip(itertools.cycle(COLOURS), rows, strict=False):
            values = {int(history): value / unit for history, value in row[key].items()}
            axes.plot(values.keys(), values.values(), marker="o", color=colour, label=as_label(row["name"]))
        axes.set_xlabel("tokens of history")
        axes.set_xscale("log", base=2)
        axes.set_xticks(HISTORIES, [f"{history:,}" for history in HISTORIES])
        axes.legend(frameon=False, fontsize=9)
    speed.set_ylim(0, 1.1 * max(max(row["ms_per_token"].values()) for row in rows))
    for axes in (quality, speed, state):
        plain(axes, "y")
    return figure
