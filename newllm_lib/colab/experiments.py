"""Notebook 7: its trials in one display that is updated in place, a picture of their settings beside their accuracies,
and the best settings, which notebook 6 takes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import display
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from transformers import TrainerCallback

from ..errors import InputError
from ..preferences import sweep
from ..preferences.reference import ReferenceArguments
from ..preferences.sweep import best_trial, margin_histories, trial_folder
from ..preferences.trials import read_trials
from ..training.callbacks import TrainingInterrupted
from ..training.checkpoint import SETTINGS_FILE, read_results
from ..training.curves import plain
from .drive.drive_copy import callbacks_for, wait_for_drive
from .live_plot import LEARNS_ANSWERS, LiveDisplay
from .page.languages import text, translate
from .page.notices import CellStopped, error_html, in_one_sentence, say, show
from .page.pieces import (
    button_box,
    escape,
    figure_html,
    label_of,
    mark_html,
    picture_html,
    sentence_html,
    small_html,
    table_html,
)
from .panel.controls import LABELS
from .panel.preference_panel import PreferencePanel, SweepPanel
from .panel.stage import PREFERENCES
from .preferences import standard_error
from .results import copied, files_html
from .storage import drive_copier, fetch_sentences

PICTURES = {"parallel-coordinates.png": "settings and accuracy of all trials", "margins.png": "margins of all trials"}
FILES = {
    sweep.TRIALS_FILE: "the table: a line for each trial, its settings and its metrics",
    sweep.BEST_FILE: "the best settings",
    SETTINGS_FILE: "what was searched, and the settings of all trials",
    **PICTURES,
}
CARRIED = ("lora_alpha", "sft_epochs", "sft_weight", "max_length")  # settings of all trials that go with the best ones
# The darker, the better; without the palest, which cannot be seen on white.
COLOURS = ListedColormap(colormaps["viridis_r"](np.linspace(0.12, 1, 256)))
MOST_NAMED = 12  # trials in a legend
SEARCHED = {"beta": "beta", "learning_rate": "learning rate", "lora_r": "rank", "loss_type": "loss"}
TICKS = 6  # at most, on an axis of numbers
FORMS = {"beta": ".3g", "learning_rate": ".2g", "accuracy": ".1%", "margin": ".2f", "kl": ".3f"}
METRICS = {"accuracy": "accuracy", "margin": "margin", "kl": "KL"}  # on held-out pairs
HINT = "To stop, interrupt the cell (■): what is done is saved, and the next run of the cell continues."

Axis = tuple[str, list[float], dict[float, str]]  # title, height of every trial's value, height -> label of its tick


@contextmanager
def live_experiments(panel: SweepPanel) -> Iterator[tuple[TrainerCallback, ...]]:
    """For the `with` of the cell that runs the trials: callbacks that show them and copy them to Drive."""
    with in_one_sentence():
        args = panel.arguments(panel.models[0])
        folder = Path(args.output_dir)
        copier = drive_copier(folder)
        before = read_trials(folder)
        for sentence, status in fetch_sentences(copier, [trial_folder(folder, row["trial"]) for row in before[-1:]]):
            say(sentence, status)
        live = LiveTrials(folder, args.trials)
        try:
            with live.in_place():
                yield live, *callbacks_for(copier)
        except KeyboardInterrupt as stop:
            live.tell("stopped", draw=True)
            ended, begun = sum(row["state"] != "running" for row in live.rows), len(live.rows)
            where = f" in trial {begun}" if ended < begun else ""
            of_it = " What this one has done is saved, too." if where and isinstance(stop, TrainingInterrupted) else ""
            kept = f"Stopped{where}; {ended} are finished and kept.{of_it} Run this cell again to go on from there."
            raise CellStopped(f"■ {translate(kept + wait_for_drive(copier))}") from None
        finally:
            panel.refresh()  # its line says how many trials are finished
        live.tell("", draw=True)
        count, is_new = len(live.rows), live.rows != before
        done = f"{count} trials are finished" if is_new else f"All {count} trials were finished before"
        say(f"{done}; everything is in {folder}.{wait_for_drive(copier)}")


@in_one_sentence()
def show_experiments(panel: SweepPanel, folder: str | Path) -> Path:
    """All trials by how good they are, two pictures, and a verdict. Returns the folder of the best trial."""
    folder = Path(folder)
    rows = read_trials(folder)
    best = best_trial(rows)
    if best is None:
        raise InputError(f"no trial in {folder.name} is finished: run the cell above again.", "NL-404")
    coordinates = coordinates_figure(panel.arguments(panel.models[0]), rows)
    figures = coordinates, margins_figure(rows, margin_histories(folder, rows))
    for figure, (name, what) in zip(figures, PICTURES.items(), strict=True):
        show(figure_html(figure, what, folder / name))
    show(table_html(trial_cells(by_merit(rows)), header=True))
    say(verdict(rows, read_results(trial_folder(folder, best["trial"]))["pairs"]))
    return trial_folder(folder, best["trial"])


def by_merit(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Finished trials by accuracy, of equals those nearer to the reference first; then the failed ones."""
    ended = [row for row in rows if row["state"] != "running"]
    return sorted(ended, key=lambda row: (-row.get("accuracy", -1.0), row.get("kl", 0.0)))


def verdict(rows: Sequence[dict[str, Any]], pairs: int) -> str:
    """Which trial is best, and how much of that is chance. `pairs`: how many every trial was scored on."""
    best = best_trial(rows)
    error = standard_error(best["accuracy"], pairs)
    others = [row for row in rows if row["state"] == "finished" and row is not best]
    near = sum(best["accuracy"] - row["accuracy"] <= error for row in others)
    others_are = {0: "no other is", 1: "another one is"}.get(near, f"{near} others are")
    failed = sum(row["state"] == "failed" for row in rows)
    share = f"{best['accuracy']:.1%} of {pairs:,} held-out pairs (± {error:.1%})"
    return (
        f"Best of {len(rows)}: trial {best['trial']}, {share}; {others_are} within that error. The same pairs have "
        f"chosen it: on others expect a little less.{f' {failed} failed.' if failed else ''}"
    )


@in_one_sentence()
def offer_best(panel: SweepPanel, folder: str | Path) -> widgets.Widget:
    settings = sweep.sweep_settings(folder)
    args = panel.arguments(panel.models[0])
    settings |= {name: getattr(args, name) for name in CARRIED}  # without them the others would mean something else

    def press() -> str:
        try:
            other = PreferencePanel(PREFERENCES, panel.runs)
            for name, value in settings.items():
                other.controls[name].set(value)
            other.refresh()
        except InputError as error:
            return error_html(error)
        return sentence_html(
            f"Notebook 6 has them now; its model, its pairs and how long it trains are its own (preset "
            f"{other.preset.value}). Open it and press Run all; where it is open, run its settings cell again."
        )

    box = button_box("Use in notebook 6", press)
    display(box)
    words = ", ".join(
        f"{text(LABELS[name])} {format(value, FORMS.get(name, 'g' if name in CARRIED else ''))}"
        for name, value in settings.items()
    )
    say(f"The best settings: {words}. The button sets notebook 6's sliders to them.")
    return box


@in_one_sentence()
def show_sweep_files(folder: str | Path) -> None:
    folder = Path(folder)
    trials = {trial_folder(folder, row["trial"]).name: row["trial"] for row in read_trials(folder)}
    purposes = FILES | {name: f"adapters, metrics and curves of trial {trial}" for name, trial in trials.items()}
    show(files_html([folder], [text("size")], purposes))
    say(f"Everything is in {folder}; newllm chat takes the folder of any trial.{copied(folder)}")


def scale_of(rows: Sequence[dict[str, Any]]) -> ScalarMappable:
    """Accuracy -> colour, over the finished trials."""
    shares = [row["accuracy"] for row in rows if row["state"] == "finished"] or [0.5, 1.0]
    low, high = min(shares), max(shares)
    return ScalarMappable(Normalize(low if high > low else low - 0.01, high), COLOURS)


def margins_figure(rows: Sequence[dict[str, Any]], histories: Mapping[int, Sequence[tuple[int, float]]]) -> Figure:
    """Held-out margin over the updates (`histories`: trial -> (update, margin)), coloured by a trial's accuracy."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    scale, best = scale_of(rows), best_trial(rows)
    for row in rows:
        if points := histories.get(row["trial"]):
            label, style = f"trial {row['trial']}", {"color": "#8c959f", "linewidth": 1.3, "zorder": 2}
            if row["state"] == "finished":
                label, style["color"] = f"{label}: {row['accuracy']:.0%}", scale.to_rgba(row["accuracy"])
            if row is best:
                label, style = f"{label}, best", {**style, "linewidth": 2.8, "zorder": 3}
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.axhline(0, color="#8c959f", linewidth=0.8, zorder=1)
    axes.set(xlabel="update", ylabel="held-out reward margin")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    plain(axes)
    if 0 < len(axes.get_lines()) - 1 <= MOST_NAMED:
        figure.legend(frameon=False, loc="outside right upper", fontsize=9)
    elif best is not None:
        figure.colorbar(scale, ax=axes, label="held-out accuracy", format=PercentFormatter(1.0, decimals=0))
    return figure


def coordinates_figure(args: sweep.SweepArguments, rows: Sequence[dict[str, Any]]) -> Figure:
    """Parallel coordinates: an axis per searched setting and one for the accuracy, a line per finished trial."""
    finished = sorted((row for row in rows if row["state"] == "finished"), key=lambda row: row["accuracy"])
    scale, best = scale_of(finished), best_trial(finished)
    axes_of: list[Axis] = [  # heights from 0 to 1
        *(_logarithmic(SEARCHED[name], [r[name] for r in finished], *ends) for name, ends in args.ranges().items()),
        *(_categories(SEARCHED[name], [r[name] for r in finished], values) for name, values in args.choices().items()),
        _shares("held-out accuracy", [row["accuracy"] for row in finished]),
    ]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots()
    places = range(len(axes_of))
    for number, row in enumerate(finished):
        style = {"linewidth": 3.2, "zorder": 4} if row is best else {"linewidth": 1.4, "zorder": 2, "alpha": 0.9}
        axes.plot(places, [heights[number] for _, heights, _ in axes_of], color=scale.to_rgba(row["accuracy"]), **style)
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}  # lines pass behind the words
    beside = {"textcoords": "offset points", "va": "center", "fontsize": 9, "bbox": ground, "zorder": 5}
    for place, (_, _, ticks) in zip(places, axes_of, strict=True):
        axes.axvline(place, ymin=0.04, ymax=0.96, color="#57606a", linewidth=1, zorder=3)
        for height, label in ticks.items():
            axes.plot(place, height, marker="_", color="#57606a", markersize=7, zorder=3)
            axes.annotate(label, (place, height), (6, 0), **beside)
    axes.set(xticks=places, xlim=(-0.15, len(axes_of) - 0.55), ylim=(-0.045, 1.045), yticks=[])
    axes.set_xticklabels([label_of(title) for title, _, _ in axes_of])
    axes.tick_params(axis="x", length=0)
    axes.spines[:].set_visible(False)
    return figure


def _logarithmic(title: str, values: Sequence[float], low: float, high: float) -> Axis:
    low, high = min(low, *values), max(high, *values)
    marks = [float(f"{digit}e{power}") for power in range(-12, 4) for digit in (1, 2, 5)]
    inside = [mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]
    inside = inside[:: math.ceil(len(inside) / TICKS)] or [low]
    heights, places = (LogNorm(low, high)(numbers).tolist() for numbers in (values, inside))
    return title, heights, {place: f"{mark:g}" for place, mark in zip(places, inside, strict=True)}


def _categories(title: str, values: Sequence[Any], choices: Sequence[Any]) -> Axis:
    height = {choice: number / max(len(choices) - 1, 1) for number, choice in enumerate(choices)}
    return title, [height[value] for value in values], {place: str(choice) for choice, place in height.items()}


def _shares(title: str, values: Sequence[float]) -> Axis:
    low, high = math.floor(20 * min(values)), math.ceil(20 * max(values))  # in steps of 5 %
    span = max(high - low, 1)
    ticks = {step / span: f"{(low + step) / 20:.0%}" for step in range(0, span + 1, math.ceil((span + 1) / TICKS))}
    return title, [(20 * value - low) / span for value in values], ticks


class LiveTrials(LiveDisplay, TrainerCallback):
    """The display of so many trials, by the table in the sweep's `folder`, and the callback of their trainers."""

    def __init__(self, folder: Path, trials: int, **options: Callable):
        self.folder, self.trials, self.doing, self.newest = folder, trials, "preparing", {}
        self.rows = read_trials(folder)
        super().__init__(**options)
        self.tell(self.doing, draw=True)

    def on_train_begin(self, args, state, control, **kwargs):
        self.newest = {}
        self.what = f"{LEARNS_ANSWERS}, " if isinstance(args, ReferenceArguments) else ""
        self.tell(f"{self.what}begins", draw=self.may_draw())

    def on_step_end(self, args, state, control, **kwargs):
        self.doing = f"{self.what}update {state.global_step:,} of {state.max_steps:,}"
        if self.is_due():
            self.replace()

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not self.what:
            self.newest = {name: metrics[f"eval_{name}"] for name in METRICS}
            self.tell(self.doing, draw=self.may_draw())

    def on_train_end(self, args, state, control, **kwargs):
        self.tell(f"{self.what}scoring" if self.what else "scoring all held-out pairs")

    def tell(self, doing: str, draw: bool = False) -> None:
        """Say at once what the trial that runs is doing. `draw`: draw the margins, too."""
        self.doing = doing
        self.rows = read_trials(self.folder)
        if draw:
            self.draw()
        self.replace()

    def figure(self) -> Figure:
        return margins_figure(self.rows, margin_histories(self.folder, self.rows))

    def content(self) -> str:
        ended, trials = sum(row["state"] != "running" for row in self.rows), max(self.trials, len(self.rows))
        hint = "" if ended == trials else HINT
        between = f" · {escape(translate(self.doing))}" if self.doing and ended == len(self.rows) else ""
        rows = [{**row, **self.newest, "doing": self.doing} if row["state"] == "running" else row for row in self.rows]
        head = f"<b>{translate(f'{ended} of {trials} trials')}</b>{between}{small_html(hint)}"
        table, picture = table_html(trial_cells(rows), header=True), picture_html(self.png, PICTURES["margins.png"])
        return f'<div style="font-size:14px;line-height:1.5">{head}</div>{table}{picture}'


def trial_cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line per trial, the best one bold: settings, state, metrics. A row that runs has "doing", too."""
    lines, best = [["trial", *SEARCHED.values(), "", *METRICS.values()]], best_trial(rows)
    for row in rows:
        state = mark_html("ok")
        if row["state"] == "failed":
            state = f"{mark_html('fail')} {escape(row['error'])}"
        elif row["state"] == "running":
            state = f'<span style="white-space:nowrap">{escape(row["doing"])}</span>'
        shown = {name: escape(format(row[name], FORMS.get(name, ""))) for name in {*SEARCHED, *METRICS} & row.keys()}
        settings, metrics = ([shown.get(name, "") for name in names] for names in (SEARCHED, METRICS))
        cells = [str(row["trial"]), *settings, state, *metrics]
        if row is best:
            cells = [f"<b>{cell}</b>" for cell in cells]
            cells[0] += "&nbsp;<b>best</b>"
        lines.append(cells)
    return lines
