"""The cells of notebook 7: look for good settings, see their results, and have notebook 6 take the best."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.display import HTML, display
from transformers import TrainerCallback

from ..errors import InputError
from ..preferences.sweep import (
    BEST_FILE,
    TRIALS_FILE,
    best_trial,
    margin_histories,
    read_trials,
    sweep_settings,
    trial_folder,
)
from ..training.callbacks import TrainingInterrupted
from ..training.checkpoint import SETTINGS_FILE, read_results
from .drive.drive_copy import wait_for_drive
from .drive.earlier_runs import fetch_sentences
from .live_trials import FORMS, LiveTrials, coordinates_figure, margins_figure, trial_cells
from .page.notices import CellStopped, error_html, in_one_sentence, one_sentence, quiet_notebook, say
from .page.pieces import button_box, figure_html, sentence_html, table_html
from .panel.controls import LABELS
from .panel.preference_panel import PreferencePanel, SweepPanel
from .panel.stage import PREFERENCES
from .preferences import standard_error
from .results import copied, size_html
from .storage import drive_copier

PICTURES = {
    "parallel-coordinates.png": "settings and accuracy of all trials",
    "margins.png": "margins of all trials",
}
FILES = {
    TRIALS_FILE: "the table: a line for each trial, its settings and its metrics",
    BEST_FILE: "the best settings",
    SETTINGS_FILE: "what was searched, and the settings of all trials",
    **PICTURES,
}
CARRIED = ("lora_alpha", "sft_epochs", "sft_weight", "max_length")  # settings of all trials that go with the best ones


@contextmanager
def live_experiments(panel: SweepPanel) -> Iterator[tuple[TrainerCallback, ...]]:
    """For the `with` of the cell that runs the trials: the sweep's callbacks, which show the trials and copy them to
    Drive. Trials of an earlier session are found, or brought back from there."""
    with one_sentence():
        quiet_notebook()
        args = panel.arguments(panel.models[0])
        folder = Path(args.output_dir)
        copier = drive_copier(folder)
        before = read_trials(folder)
        for sentence, status in fetch_sentences(copier, [trial_folder(folder, row["trial"]) for row in before[-1:]]):
            say(sentence, status)
        live = LiveTrials(folder, args.trials)
        try:
            yield (live,) if copier is None else (live, copier.callback())
        except KeyboardInterrupt as stop:
            live.tell("stopped", draw=True)
            on_drive = wait_for_drive(copier, lambda: None)
            raise CellStopped(f"■ {stopped(stop, read_trials(folder))}{on_drive}") from None
        finally:
            panel.refresh()  # its line says how many trials are finished
        live.tell("", draw=True)
        rows = read_trials(folder)
        done = f"All {len(rows)} trials were finished before" if rows == before else f"{len(rows)} trials are finished"
        say(f"{done}; everything is in {folder}.{wait_for_drive(copier, lambda: None)}")


def stopped(stop: KeyboardInterrupt, rows: Sequence[dict[str, Any]]) -> str:
    """What is kept of a sweep that was stopped, and how it goes on."""
    ended = sum(row["state"] != "running" for row in rows)
    where = f" in trial {len(rows)}" if ended < len(rows) else ""
    of_it = " What this one has done is saved, too." if where and isinstance(stop, TrainingInterrupted) else ""
    return f"Stopped{where}; {ended} are finished and kept.{of_it} Run this cell again to go on from there."


@in_one_sentence
def show_experiments(panel: SweepPanel, folder: str | Path) -> Path:
    """All trials by how good they are, two pictures, and a verdict. Returns the folder of the best trial, for the cells
    below."""
    folder = Path(folder)
    rows = read_trials(folder)
    best = best_trial(rows)
    if best is None:
        raise InputError(f"no trial in {folder.name} is finished: run the cell above again.", "NL-404")
    margins = margins_figure(rows, margin_histories(folder, rows))
    figures = coordinates_figure(panel.arguments(panel.models[0]), rows), margins
    for figure, (name, what) in zip(figures, PICTURES.items(), strict=True):
        display(HTML(figure_html(figure, what, folder / name)))
    display(HTML(table_html(trial_cells(by_merit(rows)), header=True)))
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


@in_one_sentence
def offer_best(panel: SweepPanel, folder: str | Path) -> widgets.Widget:
    """Display a button that gives the best settings to notebook 6; Run all does not press it."""
    settings = sweep_settings(folder)
    args = panel.arguments(panel.models[0])
    settings |= {name: getattr(args, name) for name in CARRIED}  # without them the others would mean something else

    def press() -> str:
        try:
            return sentence_html(apply_settings(settings, panel.runs))
        except InputError as error:
            return error_html(error)

    box = button_box("Use in notebook 6", press)
    display(box)
    forms = {name: FORMS.get(name, "g" if isinstance(value, float) else "") for name, value in settings.items()}
    words = ", ".join(f"{LABELS[name]} {format(value, forms[name])}" for name, value in settings.items())
    say(f"The best settings: {words}. The button sets notebook 6's sliders to them.")
    return box


def apply_settings(settings: dict[str, Any], runs: str | Path) -> str:
    """Set notebook 6's panel, as it is kept in the storage, to the settings; says what was done. Raises InputError: the
    panel cannot have them."""
    panel = PreferencePanel(PREFERENCES, runs)
    for name, value in settings.items():
        panel.controls[name].set(value)
    panel.refresh()
    return (
        f"Notebook 6 has them now; its model, its pairs and how long it trains are its own (preset "
        f"{panel.preset.value}). Open it and press Run all; where it is open, run its settings cell again."
    )


@in_one_sentence
def show_sweep_files(folder: str | Path) -> None:
    """The sweep's files and the folders of its trials, with their sizes."""
    folder = Path(folder)
    purposes = {name: purpose for name, purpose in FILES.items() if (folder / name).exists()}
    for row in read_trials(folder):
        purposes[trial_folder(folder, row["trial"]).name] = f"adapters, metrics and curves of trial {row['trial']}"
    rows = [["file", "size", "what it is"]]
    rows += [[name, size_html(folder / name), purpose] for name, purpose in purposes.items()]
    display(HTML(table_html(rows, header=True)))
    say(f"Everything is in {folder}; newllm chat takes the folder of any trial.{copied(folder)}")
