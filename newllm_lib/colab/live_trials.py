"""The trials of a sweep in one display that is updated in place while they run: a row for each, and their margins."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from IPython.display import HTML, display
from matplotlib.figure import Figure
from transformers import TrainerCallback

from ..preferences.reference import ReferenceArguments
from ..preferences.sweep import best_trial, margin_histories, read_trials
from .experiment_pictures import SEARCHED, margins_figure
from .live_plot import INTERVAL_SECONDS, LEARNS_ANSWERS, LivePicture
from .page.notices import escape, mark_html, picture_html, table_html

FORMS = {"beta": ".3g", "learning_rate": ".2g", "accuracy": ".1%", "margin": ".2f", "kl": ".3f"}
METRICS = {"accuracy": "accuracy", "margin": "margin", "kl": "KL"}  # on held-out pairs
HINT = "To stop, interrupt the cell (■): what is done is saved, and the next run of the cell continues."


class LiveTrials(TrainerCallback):
    """The display, and the callback of every trial's trainer.

    Args:
        folder: of the sweep, whose table is read whenever a trial begins or is evaluated.
        trials: how many there will be.
        clock: seconds, rising.
        show: displays an object and returns a handle with `update`.
    """

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
        """Say at once what the trial that runs is doing.

        Args:
            draw: draw the margins, too.
        """
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
            f'<div style="opacity:.75;font-size:12px">{hint}</div></div>'
            f"{table_html(trial_cells(rows), header=True)}{picture_html(self.picture.png, 'margins of all trials')}"
        )


def trial_cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line per trial, those of the best one bold: its settings, what it does or has come to, and its metrics.

    Args:
        rows: of the table; one that runs has under "doing" what.
    """
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
