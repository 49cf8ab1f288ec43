"""Learning curves of one or several runs, as a matplotlib figure."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Curve:
    """One curve of every run: a key of transformers' `log_history`, drawn in the run's first or second colour. The
    label is the run's name unless it has one of its own."""

    key: str
    label: str = ""
    is_second: bool = False
    style: str = "-"


@dataclass(frozen=True)
class Panel:
    """Curves side by side. `says`: what a legend tells of a curve's values, "" for nothing; `form`: of these values."""

    ylabel: str
    curves: tuple[Curve, ...]
    says: str = ""
    form: str = ".3f"


FORGETTING = (
    Panel("task loss (nats per token)", (Curve("task_loss"),)),
    Panel("KL to the base (nats per token)", (
        Curve("kl_to_teacher", "what is trained on"), Curve("eval_general_kl_to_base", "general text, held out", True)
    )),
    Panel("held-out bits per byte", (
        Curve("eval_bits_per_byte", "new task"), Curve("eval_general_bits_per_byte", "general text", True)
    ), "first → last"),
)  # fmt: skip
PREFERENCES = (
    Panel("pairs with the chosen answer ahead", (
        Curve("eval_accuracy", "held-out pairs"), Curve("eval_train_accuracy", "training pairs", True)
    ), "last", ".0%"),
    Panel("reward margin, chosen - rejected", (
        Curve("eval_margin", "held-out pairs"), Curve("eval_train_margin", "training pairs", True)
    ), "last", ".1f"),
    Panel("held-out log-probability (nats)", (
        Curve("eval_chosen_logp", "chosen"), Curve("eval_rejected_logp", "rejected", style="--")
    ), "last", ".1f"),
)  # fmt: skip


def curves_figure(histories: Mapping[str, Sequence[dict]], title: str = "") -> Figure:
    """Left: training loss of every run; right: its held-out bits per byte (or loss, where bytes are not counted). A run
    that is held to its base has other panels: the loss of its task, its distance from the base, and bits per byte of
    both kinds of text. So has a run of preferences: accuracy, margin, and how likely either answer is.

    Args:
        histories: name of the run -> transformers' `log_history`.
    """
    keys = {key for history in histories.values() for entry in history for key in entry}
    if keys & {"task_loss", "eval_general_bits_per_byte"}:
        panels, colours_of_a_run = FORGETTING, 2
    elif "eval_margin" in keys:
        panels, colours_of_a_run = PREFERENCES, 2
    else:
        bits = Panel("held-out bits per byte", (Curve("eval_bits_per_byte"),), "best")
        loss = Panel("held-out loss (nats)", (Curve("eval_loss"),), "best")
        training = Panel("training loss (nats per token)", (Curve("loss"),))
        panels, colours_of_a_run = (training, bits if "eval_bits_per_byte" in keys else loss), 1
    figure, plots = _side_by_side(len(panels), title)
    for axes, panel in zip(plots, panels, strict=True):
        colours = itertools.cycle(COLOURS)
        for name, history in histories.items():
            of_the_run = list(itertools.islice(colours, colours_of_a_run))
            for curve in panel.curves:
                points = _points(history, curve.key)
                if any(value for _, value in points) or (points and curve.key != "kl_to_teacher"):  # 0: no teacher
                    label = (curve.label or as_label(name)) + _said(panel, [value for _, value in points])
                    marks = {"marker": "o", "markersize": 4} if curve.key.startswith("eval_") else {"linewidth": 1.4}
                    colour = of_the_run[curve.is_second]
                    axes.plot(*zip(*points, strict=True), curve.style, color=colour, label=label, **marks)
        axes.set(xlabel="update", ylabel=panel.ylabel)
        if panel.form.endswith("%"):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _finish(axes, panel.says or None)
    return figure


def _said(panel: Panel, values: Sequence[float]) -> str:
    """A legend's value of a curve: beside its point it would collide with other curves."""
    if not panel.says:
        return ""
    shown = {"best": [min(values)], "last": values[-1:], "first → last": [values[0], values[-1]]}[panel.says]
    return ": " + " → ".join(format(value, panel.form) for value in shown)


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
