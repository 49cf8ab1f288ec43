"""Learning curves of one or several runs, as a matplotlib figure."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator, PercentFormatter

LONGEST_LABEL = 24  # characters
COLOURS = ("#1f6feb", "#d1495b", "#2a9d8f", "#e09f3e")


def as_label(text: str) -> str:
    """A user's text as a label, cut where it is long. matplotlib would set a formula between two dollar signs, and
    leave a name that begins with an underscore out of a legend."""
    shown = in_the_font(text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…")
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")


def in_the_font(text: str) -> str:
    """The text with a box for each character that matplotlib's font lacks."""
    return "".join(character if ord(character) in _characters() else "□" for character in text)


@functools.lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    """The code points in matplotlib's font; it warns of any other, and cannot draw half a surrogate pair."""
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def curves_figure(histories: Mapping[str, Sequence[dict]], title: str = "") -> Figure:
    """Left: training loss of every run; right: its held-out bits per byte (or loss, where bytes are not counted). Of a
    run that is held to its base: the loss of its task, its distance from the base, and bits per byte of both kinds of
    text. Of a run of preferences: accuracy, margin, and how likely either answer is.

    Args:
        histories: name of the run -> transformers' `log_history`.
    """
    if any("task_loss" in entry or "eval_general_bits_per_byte" in entry for h in histories.values() for entry in h):
        return _forgetting_figure(histories, title)
    if any("eval_margin" in entry for history in histories.values() for entry in history):
        return _preference_figure(histories, title)
    figure, (training, held_out) = _side_by_side(2, title)
    metric = "eval_bits_per_byte"
    if not any(metric in entry for history in histories.values() for entry in history):
        metric = "eval_loss"
    for colour, (name, history) in zip(COLOURS * len(histories), histories.items(), strict=False):
        loss, score = _points(history, "loss"), _points(history, metric)
        if loss:
            training.plot(*zip(*loss, strict=True), color=colour, label=as_label(name), linewidth=1.4)
        if score:
            # The best value stands in the legend: beside its point it would collide with the other curves.
            best = min(value for _, value in score)
            label = f"{as_label(name)}: {best:.3f}"
            held_out.plot(*zip(*score, strict=True), color=colour, label=label, marker="o", markersize=4)
    training.set(xlabel="update", ylabel="training loss (nats per token)")
    held_out.set(
        xlabel="update",
        ylabel="held-out bits per byte" if metric == "eval_bits_per_byte" else "held-out loss (nats)",
    )
    _finish(training)
    _finish(held_out, "best")
    return figure


def _forgetting_figure(histories: Mapping[str, Sequence[dict]], title: str) -> Figure:
    figure, (task, distance, held_out) = _side_by_side(3, title)
    colours = iter(COLOURS * len(histories))
    for name, history in histories.items():
        new, general = next(colours), next(colours)
        if loss := _points(history, "task_loss"):
            task.plot(*zip(*loss, strict=True), color=new, label=as_label(name), linewidth=1.4)
        kl = _points(history, "kl_to_teacher")
        if any(value > 0 for _, value in kl):  # without a teacher nobody has measured it
            distance.plot(*zip(*kl, strict=True), color=new, label="what is trained on", linewidth=1.4)
        lines = (
            (distance, "eval_general_kl_to_base", general, "general text, held out"),
            (held_out, "eval_bits_per_byte", new, "new task"),
            (held_out, "eval_general_bits_per_byte", general, "general text"),
        )
        for axes, key, colour, label in lines:
            if points := _points(history, key):
                if axes is held_out:
                    label = f"{label}: {points[0][1]:.3f} → {points[-1][1]:.3f}"
                axes.plot(*zip(*points, strict=True), color=colour, label=label, marker="o", markersize=4)
    task.set(xlabel="update", ylabel="task loss (nats per token)")
    distance.set(xlabel="update", ylabel="KL to the base (nats per token)")
    held_out.set(xlabel="update", ylabel="held-out bits per byte")
    for axes in (task, distance):
        _finish(axes)
    _finish(held_out, "first → last")
    return figure


def _preference_figure(histories: Mapping[str, Sequence[dict]], title: str) -> Figure:
    figure, (accuracy, margin, likelihood) = _side_by_side(3, title)
    colours = iter(COLOURS * len(histories))
    for history in histories.values():
        held_out, training = next(colours), next(colours)
        lines = (
            (accuracy, "eval_accuracy", held_out, "held-out pairs", "-"),
            (accuracy, "eval_train_accuracy", training, "training pairs", "-"),
            (margin, "eval_margin", held_out, "held-out pairs", "-"),
            (margin, "eval_train_margin", training, "training pairs", "-"),
            (likelihood, "eval_chosen_logp", held_out, "chosen", "-"),
            (likelihood, "eval_rejected_logp", held_out, "rejected", "--"),
        )
        for axes, key, colour, label, style in lines:
            if points := _points(history, key):
                last = f"{points[-1][1]:.0%}" if axes is accuracy else f"{points[-1][1]:.1f}"
                axes.plot(
                    *zip(*points, strict=True), style, color=colour, label=f"{label}: {last}", marker="o", markersize=4
                )
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    accuracy.set(xlabel="update", ylabel="pairs with the chosen answer ahead")
    margin.set(xlabel="update", ylabel="reward margin, chosen - rejected")
    likelihood.set(xlabel="update", ylabel="held-out log-probability (nats)")
    for axes in (accuracy, margin, likelihood):
        _finish(axes, "last")
    return figure


def _side_by_side(count: int, title: str) -> tuple[Figure, Sequence[Axes]]:
    """A figure of so many plots. Its margins are fixed: to find the best ones takes as long as to draw it all."""
    width = 4 * count + (2 if count < 3 else 0)
    figure = Figure(figsize=(width, 3.6))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count)
    margins = {"left": 0.7 / width, "right": 1 - 0.15 / width, "bottom": 0.15, "top": 0.9 if title else 0.97}
    figure.subplots_adjust(**margins, wspace=0.22)
    if title:
        figure.suptitle(as_label(title), fontsize=11)
    return figure, axes


def _points(history: Sequence[dict], key: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[key]) for entry in history if key in entry]


def _finish(axes, legend_title: str | None = None) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    if axes.get_lines():
        axes.legend(frameon=False, title=legend_title, alignment="left")


def save_curves(histories: Mapping[str, Sequence[dict]], path: Path, title: str = "") -> None:
    """Write the figure as a PNG, replacing an older one whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    curves_figure(histories, title).savefig(temporary, format="png", dpi=120)
    temporary.replace(path)
