"""The trials of a sweep: in one display that is updated in place while they run, a row for each and their margins, and
as a picture of their settings beside their accuracies."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from IPython.display import HTML, display
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from transformers import TrainerCallback

from ..preferences.reference import ReferenceArguments
from ..preferences.sweep import SweepArguments, best_trial, margin_histories, read_trials
from .live_plot import INTERVAL_SECONDS, LEARNS_ANSWERS, LivePicture
from .page.pieces import escape, mark_html, picture_html, small_html, table_html

# The darker, the better; without the palest, which cannot be seen on white.
COLOURS = ListedColormap(colormaps["viridis_r"](np.linspace(0.12, 1, 256)))
MOST_NAMED = 12  # trials in a legend
SEARCHED = {"beta": "beta", "learning_rate": "learning rate", "lora_r": "rank", "loss_type": "loss"}
TICKS = 6  # at most, on an axis of numbers
FORMS = {"beta": ".3g", "learning_rate": ".2g", "accuracy": ".1%", "margin": ".2f", "kl": ".3f"}
METRICS = {"accuracy": "accuracy", "margin": "margin", "kl": "KL"}  # on held-out pairs
HINT = "To stop, interrupt the cell (■): what is done is saved, and the next run of the cell continues."

Axis = tuple[str, list[float], dict[float, str]]


def scale_of(rows: Sequence[dict[str, Any]]) -> ScalarMappable:
    """Accuracy -> colour, over the finished trials."""
    shares = [row["accuracy"] for row in rows if row["state"] == "finished"] or [0.5, 1.0]
    low, high = min(shares), max(shares)
    return ScalarMappable(Normalize(low if high > low else low - 0.01, high), COLOURS)


def margins_figure(rows: Sequence[dict[str, Any]], histories: Mapping[int, Sequence[tuple[int, float]]]) -> Figure:
    """Held-out margin over the updates, a line per trial in the colour of its accuracy; the best one is thick, trials
    without a result are grey. `histories`: trial -> (update, margin), in turn."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    scale, best = scale_of(rows), best_trial(rows)
    for row in rows:
        if points := histories.get(row["trial"]):
            is_best = best is not None and row["trial"] == best["trial"]
            is_finished = row["state"] == "finished"
            label = f"trial {row['trial']}" + (f": {row['accuracy']:.0%}" if is_finished else "")
            axes.plot(
                *zip(*points, strict=True),
                color=scale.to_rgba(row["accuracy"]) if is_finished else "#8c959f",
                linewidth=2.8 if is_best else 1.3,
                label=f"{label}, best" if is_best else label,
                zorder=3 if is_best else 2,
            )
    axes.axhline(0, color="#8c959f", linewidth=0.8, zorder=1)
    axes.set(xlabel="update", ylabel="held-out reward margin")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if 0 < len(axes.get_lines()) - 1 <= MOST_NAMED:
        figure.legend(frameon=False, loc="outside right upper", fontsize=9)
    elif best is not None:
        figure.colorbar(scale, ax=axes, label="held-out accuracy", format=PercentFormatter(1.0, decimals=0))
    return figure


def coordinates_figure(args: SweepArguments, rows: Sequence[dict[str, Any]]) -> Figure:
    """Parallel coordinates: an axis for each setting that was searched and one for the accuracy, and a line for each
    finished trial; the best one is thick. `rows`: of which at least one is finished."""
    finished = sorted((row for row in rows if row["state"] == "finished"), key=lambda row: row["accuracy"])
    scale, best = scale_of(finished), best_trial(finished)
    axes_of = [  # (title, height of every trial's value, height -> label of its ticks), heights from 0 to 1
        *(_logarithmic(SEARCHED[name], [r[name] for r in finished], *ends) for name, ends in args.ranges().items()),
        *(_categories(SEARCHED[name], [r[name] for r in finished], values) for name, values in args.choices().items()),
        _shares("held-out accuracy", [row["accuracy"] for row in finished]),
    ]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots()
    places = range(len(axes_of))
    for number, row in enumerate(finished):
        is_best = row["trial"] == best["trial"]
        style = {"linewidth": 3.2, "zorder": 4} if is_best else {"linewidth": 1.4, "zorder": 2, "alpha": 0.9}
        axes.plot(places, [heights[number] for _, heights, _ in axes_of], color=scale.to_rgba(row["accuracy"]), **style)
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}  # lines pass behind the words
    beside = {"textcoords": "offset points", "va": "center", "fontsize": 9, "bbox": ground, "zorder": 5}
    for place, (_, _, ticks) in zip(places, axes_of, strict=True):
        axes.axvline(place, ymin=0.04, ymax=0.96, color="#57606a", linewidth=1, zorder=3)
        for height, label in ticks.items():
            axes.plot(place, height, marker="_", color="#57606a", markersize=7, zorder=3)
            axes.annotate(label, (place, height), (6, 0), **beside)
    axes.set(xticks=places, xlim=(-0.15, len(axes_of) - 0.55), ylim=(-0.045, 1.045), yticks=[])
    axes.set_xticklabels([title for title, _, _ in axes_of])
    axes.tick_params(axis="x", length=0)
    axes.spines[:].set_visible(False)
    return figure


def _logarithmic(title: str, values: Sequence[float], low: float, high: float) -> Axis:
    low, high = min(low, *values), max(high, *values)
    marks = [float(f"{digit}e{power}") for power in range(-12, 4) for digit in (1, 2, 5)]
    inside = [mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]
    inside = inside[:: math.ceil(len(inside) / TICKS)] or [low]

    def height(value: float) -> float:
        return math.log(value / low) / (math.log(high / low) or 1.0)

    return title, list(map(height, values)), {height(mark): f"{mark:g}" for mark in inside}


def _categories(title: str, values: Sequence[Any], choices: Sequence[Any]) -> Axis:
    height = {choice: number / max(len(choices) - 1, 1) for number, choice in enumerate(choices)}
    return title, [height[value] for value in values], {place: str(choice) for choice, place in height.items()}


def _shares(title: str, values: Sequence[float]) -> Axis:
    low, high = math.floor(20 * min(values)) / 20, math.ceil(20 * max(values)) / 20
    high = max(high, low + 0.05)
    marks = np.linspace(low, high, round((high - low) / 0.05) + 1)
    ticks = {float((mark - low) / (high - low)): f"{mark:.0%}" for mark in marks[:: math.ceil(len(marks) / TICKS)]}
    return title, [(value - low) / (high - low) for value in values], ticks


class LiveTrials(TrainerCallback):
    """The display of so many trials, and the callback of every trial's trainer. The table in the sweep's `folder` is
    read whenever a trial begins or is evaluated; `clock` and `show` are as of `LivePlot`."""

    def __init__(
        self,
        folder: Path,
        trials: int,
        clock: Callable[[], float] = time.monotonic,
        show: Callable = lambda content: display(content, display_id=True),
    ):
        self.folder, self.trials, self.clock = folder, trials, clock
        self.doing, self.newest = "preparing", {}
        self.rows = read_trials(folder)
        self.picture = LivePicture(self._figure, clock)
        self.picture.draw()
        self.handle = show(self._content())
        self.updated_at = clock()

    def on_train_begin(self, args, state, control, **kwargs):
        self.newest = {}
        self.what = f"{LEARNS_ANSWERS}, " if isinstance(args, ReferenceArguments) else ""
        self.tell(f"{self.what}begins", draw=self.picture.may_draw())

    def on_step_end(self, args, state, control, **kwargs):
        self.doing = f"{self.what}update {state.global_step:,} of {state.max_steps:,}"
        if self.clock() - self.updated_at >= INTERVAL_SECONDS:
            self._update()

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not self.what:
            self.newest = {name: metrics[f"eval_{name}"] for name in METRICS}
            self.tell(self.doing, draw=self.picture.may_draw())

    def on_train_end(self, args, state, control, **kwargs):
        self.tell(f"{self.what}scoring" if self.what else "scoring all held-out pairs")

    def tell(self, doing: str, draw: bool = False) -> None:
        """Say at once what the trial that runs is doing. `draw`: draw the margins, too."""
        self.doing = doing
        self.rows = read_trials(self.folder)
        if draw:
            self.picture.draw()
        self._update()

    def _update(self) -> None:
        self.handle.update(self._content())
        self.updated_at = self.clock()

    def _figure(self) -> Figure:
        return margins_figure(self.rows, margin_histories(self.folder, self.rows))

    def _content(self) -> HTML:
        ended, trials = sum(row["state"] != "running" for row in self.rows), max(self.trials, len(self.rows))
        hint = "" if ended == trials else HINT
        between = f" · {escape(self.doing)}" if self.doing and ended == len(self.rows) else ""
        rows = [{**row, **self.newest, "doing": self.doing} if row["state"] == "running" else row for row in self.rows]
        return HTML(
            f'<div style="font-size:14px;line-height:1.5"><b>{ended} of {trials} trials</b>{between}'
            f"{small_html(hint)}</div>{table_html(trial_cells(rows), header=True)}"
            f"{picture_html(self.picture.png, 'margins of all trials')}"
        )


def trial_cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line per trial, those of the best one bold: its settings, what it does or has come to, and its metrics. `rows`:
    of the table; one that runs has under "doing" what."""
    best = best_trial(rows)
    lines = [["trial", *SEARCHED.values(), "", *METRICS.values()]]
    for row in rows:
        cells = [str(row["trial"]), *(_cell(row, name) for name in SEARCHED), _state(row)]
        cells += [_cell(row, name) for name in METRICS]
        if best is not None and row["trial"] == best["trial"]:
            cells = [f"<b>{cell}</b>" for cell in cells]
            cells[0] += "&nbsp;<b>best</b>"
        lines.append(cells)
    return lines


def _cell(row: dict[str, Any], name: str) -> str:
    return escape(format(row[name], FORMS.get(name, ""))) if name in row else ""


def _state(row: dict[str, Any]) -> str:
    if row["state"] == "finished":
        return mark_html("ok")
    if row["state"] == "failed":
        return f"{mark_html('fail')} {escape(row['error'])}"
    return f'<span style="white-space:nowrap">{escape(row["doing"])}</span>'
