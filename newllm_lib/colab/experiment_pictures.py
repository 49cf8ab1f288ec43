"""Pictures of a sweep: the margins of all trials, and their settings beside what came of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..preferences.sweep import SweepArguments, best_trial

# The darker, the better; without the palest, which cannot be seen on white.
COLOURS = ListedColormap(colormaps["viridis_r"](np.linspace(0.12, 1, 256)))
MOST_NAMED = 12  # trials in a legend
SEARCHED = {"beta": "beta", "learning_rate": "learning rate", "lora_r": "rank", "loss_type": "loss"}
TICKS = 6  # at most, on an axis of numbers


def scale_of(rows: Sequence[dict[str, Any]]) -> ScalarMappable:
    """Accuracy -> colour, over the finished trials."""
    shares = [row["accuracy"] for row in rows if row["state"] == "finished"] or [0.5, 1.0]
    low, high = min(shares), max(shares)
    return ScalarMappable(Normalize(low if high > low else low - 0.01, high), COLOURS)


def margins_figure(rows: Sequence[dict[str, Any]], histories: Mapping[int, Sequence[tuple[int, float]]]) -> Figure:
    """Held-out margin over the updates, a line per trial in the colour of its accuracy; the best one is thick, trials
    without a result are grey.

    Args:
        histories: trial -> (update, margin), in turn.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
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


@dataclass(frozen=True)
class Axis:
    """One of the upright axes.

    Attributes:
        heights: of the trials' values, from 0 to 1.
        ticks: height -> label.
    """

    title: str
    heights: list[float]
    ticks: dict[float, str]


def coordinates_figure(args: SweepArguments, rows: Sequence[dict[str, Any]]) -> Figure:
    """Parallel coordinates: an axis for each setting that was searched and one for the accuracy, and a line for each
    finished trial; the best one is thick.

    Args:
        rows: of which at least one is finished.
    """
    finished = sorted((row for row in rows if row["state"] == "finished"), key=lambda row: row["accuracy"])
    scale, best = scale_of(finished), best_trial(finished)
    axes_of = [
        *(_logarithmic(SEARCHED[name], [r[name] for r in finished], *ends) for name, ends in args.ranges().items()),
        *(_categories(SEARCHED[name], [r[name] for r in finished], values) for name, values in args.choices().items()),
        _shares("held-out accuracy", [row["accuracy"] for row in finished]),
    ]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = range(len(axes_of))
    for number, row in enumerate(finished):
        is_best = row["trial"] == best["trial"]
        style = {"linewidth": 3.2, "zorder": 4} if is_best else {"linewidth": 1.4, "zorder": 2, "alpha": 0.9}
        heights = [axis.heights[number] for axis in axes_of]
        axes.plot(places, heights, color=scale.to_rgba(row["accuracy"]), **style)
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}  # lines pass behind the words
    for place, axis in zip(places, axes_of, strict=True):
        axes.axvline(place, ymin=0.04, ymax=0.96, color="#57606a", linewidth=1, zorder=3)
        for height, label in axis.ticks.items():
            axes.plot(place, height, marker="_", color="#57606a", markersize=7, zorder=3)
            axes.annotate(
                label,
                (place, height),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                bbox=ground,
                zorder=5,
            )
    axes.set(xticks=places, xlim=(-0.15, len(axes_of) - 0.55), ylim=(-0.045, 1.045), yticks=[])
    axes.set_xticklabels([axis.title for axis in axes_of])
    axes.tick_params(axis="x", length=0)
    axes.spines[:].set_visible(False)
    return figure


def _logarithmic(title: str, values: Sequence[float], low: float, high: float) -> Axis:
    low, high = min(low, *values), max(high, *values)
    span = math.log(high / low) or 1.0
    marks = [float(f"{digit}e{power}") for power in range(-12, 4) for digit in (1, 2, 5)]
    inside = [mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]
    inside = inside[:: math.ceil(len(inside) / TICKS)] or [low]
    return Axis(
        title, [math.log(v / low) / span for v in values], {math.log(mark / low) / span: f"{mark:g}" for mark in inside}
    )


def _categories(title: str, values: Sequence[Any], choices: Sequence[Any]) -> Axis:
    height = {choice: number / max(len(choices) - 1, 1) for number, choice in enumerate(choices)}
    return Axis(title, [height[value] for value in values], {place: str(choice) for choice, place in height.items()})


def _shares(title: str, values: Sequence[float]) -> Axis:
    low, high = math.floor(20 * min(values)) / 20, math.ceil(20 * max(values)) / 20
    high = max(high, low + 0.05)
    marks = np.linspace(low, high, round((high - low) / 0.05) + 1)
    marks = marks[:: math.ceil(len(marks) / TICKS)]
    return Axis(
        title,
        [(value - low) / (high - low) for value in values],
        {float((mark - low) / (high - low)): f"{mark:.0%}" for mark in marks},
    )
