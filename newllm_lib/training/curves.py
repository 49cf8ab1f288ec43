"""Learning curves of one or several runs, as a matplotlib figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#1f6feb", "#d1495b", "#2a9d8f", "#e09f3e")


def curves_figure(histories: Mapping[str, Sequence[dict]], title: str = "") -> Figure:
    """Left: training loss of every run; right: its held-out bits per byte (or loss, where bytes are not counted).

    Args:
        histories: name of the run -> transformers' `log_history`.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    training, held_out = figure.subplots(1, 2)
    metric = "eval_bits_per_byte"
    if not any(metric in entry for history in histories.values() for entry in history):
        metric = "eval_loss"
    for colour, (name, history) in zip(COLOURS * len(histories), histories.items(), strict=False):
        loss = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        score = [(entry["step"], entry[metric]) for entry in history if metric in entry]
        if loss:
            training.plot(*zip(*loss, strict=True), color=colour, label=name, linewidth=1.4)
        if score:
            # The best value stands in the legend: beside its point it would collide with the other curves.
            best = min(value for _, value in score)
            label = f"{name}: {best:.3f}"
            held_out.plot(*zip(*score, strict=True), color=colour, label=label, marker="o", markersize=4)
    training.set(xlabel="update", ylabel="training loss (nats per token)")
    held_out.set(
        xlabel="update",
        ylabel="held-out bits per byte" if metric == "eval_bits_per_byte" else "held-out loss (nats)",
    )
    for axes in (training, held_out):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        if axes.get_lines():
            axes.legend(frameon=False, title="best" if axes is held_out else None, alignment="left")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def save_curves(histories: Mapping[str, Sequence[dict]], path: Path, title: str = "") -> None:
    """Write the figure as a PNG, replacing an older one whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    curves_figure(histories, title).savefig(temporary, format="png", dpi=120)
    temporary.replace(path)
