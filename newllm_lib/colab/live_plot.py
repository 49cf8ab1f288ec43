"""The curves of all models of a run in one display that is updated in place while they train.

Each update replaces the whole content of the display: a line per model, then the picture. Colab shows neither updates
from background threads nor widgets that wait for the kernel, so everything happens in the trainer's own callbacks.
"""

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from IPython.display import HTML, display
from transformers import TrainerCallback

from ..training.curves import COLOURS, curves_figure
from ..training.lwf_arguments import QloraLwfArguments
from ..training.report import METRICS_FILE
from .notices import GRID, escape, mark_html, picture_html

INTERVAL_SECONDS = 2.0
DRAWING_SHARE = 0.05  # of the time, at most, goes into drawing the picture
DPI = 90
# What a model's line says of its newest figures, as far as its stage has them.
FACTS = (
    ("loss", "loss {:.3f}"),
    ("eval_bits_per_byte", "{:.3f} bits per byte held out"),
    ("eval_general_bits_per_byte", "{:.3f} of general text"),
    ("eval_general_kl_to_base", "{:.3f} nats from the base"),
)


@dataclass
class ModelProgress:
    """What is known about the training of one model."""

    name: str
    history: list[dict] = field(default_factory=list)
    state: str = "waiting"
    update: int = 0
    updates: int = 0
    per_second: float = 0.0  # training tokens, or examples where these have lengths of their own
    unit: str = "tokens"
    seconds_left: float | None = None
    saved_at: float | None = None


class LivePlot:
    """One display for the training of several models.

    Args:
        names: the models, in the order in which they are trained.
        interval_seconds: least time between two updates, but for those at an evaluation.
        clock: seconds, rising.
        show: displays an object and returns a handle with `update`.
    """

    def __init__(
        self,
        names: Sequence[str],
        interval_seconds: float = INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        show: Callable = lambda content: display(content, display_id=True),
    ):
        self.models = {name: ModelProgress(name) for name in names}
        self.interval_seconds = interval_seconds
        self.clock = clock
        self.drawing_seconds = 0.0
        self.picture = b""
        self.drawn_at = self.updated_at = clock()
        self._draw()
        self.handle = show(self._content())

    def callback(self, name: str) -> "LiveCallback":
        """The trainer's callback that reports on the model `name`."""
        return LiveCallback(self, self.models[name])

    def set_state(self, name: str, state: str) -> None:
        """Say in a word what a model is doing; shown at once."""
        self.models[name].state = state
        self.update()

    def add_finished(self, name: str, folder: Path) -> None:
        """Show a run that was finished before, from the log in its folder."""
        model = self.models[name]
        model.history = read_history(folder)
        model.update = model.updates = max((entry["step"] for entry in model.history), default=0)
        model.state = "finished"
        self.update(draw=True)

    def tick(self) -> None:
        """Update if it is time to: the lines every interval, the picture as often as its share of the time allows."""
        now = self.clock()
        if now - self.updated_at < self.interval_seconds:
            return
        pause = max(self.interval_seconds, self.drawing_seconds / DRAWING_SHARE)
        self.update(draw=now - self.drawn_at >= pause)

    def update(self, draw: bool = False) -> None:
        """Replace what is displayed."""
        if draw:
            self._draw()
        self.handle.update(self._content())
        self.updated_at = self.clock()

    def _draw(self) -> None:
        started = self.clock()
        buffer = io.BytesIO()
        curves_figure({model.name: model.history for model in self.models.values()}).savefig(
            buffer, format="png", dpi=DPI
        )
        self.picture = buffer.getvalue()
        self.drawn_at = self.clock()
        self.drawing_seconds = self.drawn_at - started

    def _content(self) -> HTML:
        lines = "".join(
            self._line(model, COLOURS[number % len(COLOURS)]) for number, model in enumerate(self.models.values())
        )
        hint = ""
        if any(model.state == "training" for model in self.models.values()):
            hint = "To stop, interrupt the cell (■): the update is finished and saved, and the next run continues."
        return HTML(
            f'<div style="font-size:14px;line-height:1.5">{lines}'
            f'<div style="opacity:.75;font-size:12px;margin:2px 0 4px">{hint}</div></div>'
            f"{picture_html(self.picture, 'learning curves')}"
        )

    def _line(self, model: ModelProgress, colour: str) -> str:
        share = 100 * model.update / model.updates if model.updates else 0
        mark = mark_html("ok") if model.state == "finished" else ""
        return (
            f'<div style="display:flex;flex-wrap:wrap;gap:0 10px;align-items:center;margin-bottom:4px">'
            f'<b style="min-width:90px;border-left:6px solid {colour};padding-left:6px">{escape(model.name)}</b>'
            f'<span style="width:120px;height:8px;border-radius:4px;background:{GRID};overflow:hidden">'
            f'<span style="display:block;width:{share:.0f}%;height:100%;background:{colour}"></span></span>'
            f"<span>{mark} {escape(' · '.join(self._facts(model)))}</span></div>"
        )

    def _facts(self, model: ModelProgress) -> list[str]:
        facts = [model.state]
        if model.updates:
            facts.append(f"update {model.update:,} of {model.updates:,}")
        for key, text in FACTS:
            if (value := _newest(model.history, key)) is not None:
                facts.append(text.format(value))
        if model.state != "training":
            return facts
        if model.per_second:
            digits = 0 if model.per_second >= 10 else 1
            facts.append(f"{model.per_second:,.{digits}f} {model.unit}/s")
        if model.seconds_left is not None:
            facts.append(f"{model.seconds_left / 60:.1f} minutes left")
        if model.saved_at is not None:
            facts.append(f"saved {self.clock() - model.saved_at:.0f} s ago ✓")
        return facts


class LiveCallback(TrainerCallback):
    """Tells a LivePlot what transformers' Trainer does with one model."""

    def __init__(self, plot: LivePlot, model: ModelProgress):
        self.plot = plot
        self.model = model

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first_update = self.plot.clock(), state.global_step
        self.evaluation_seconds = 0.0
        self.model.history, self.model.updates = state.log_history, state.max_steps
        self.model.update, self.model.state = state.global_step, "training"
        self.per_update = args.effective_batch_size
        if isinstance(args, QloraLwfArguments):
            self.model.unit = "examples"
        else:
            self.per_update *= args.max_length
        self.plot.update(draw=True)

    def on_step_end(self, args, state, control, **kwargs):
        seconds = self.plot.clock() - self.started
        done = state.global_step - self.first_update
        self.model.update = state.global_step
        self.model.seconds_left = seconds / done * (state.max_steps - state.global_step)
        self.model.per_second = done * self.per_update / max(seconds - self.evaluation_seconds, 1e-9)
        self.plot.tick()

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.evaluation_seconds += (metrics or {}).get("eval_runtime", 0.0)
        self.model.history = state.log_history
        self.plot.update(draw=True)

    def on_save(self, args, state, control, **kwargs):
        self.model.saved_at = self.plot.clock()

    def on_train_end(self, args, state, control, **kwargs):
        self.model.history, self.model.update = state.log_history, state.global_step
        self.model.state = "scoring all held-out text"
        self.plot.update(draw=True)


def read_history(folder: Path) -> list[dict]:
    """The metrics log of a run folder."""
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _newest(history: list[dict], key: str) -> float | None:
    return next((entry[key] for entry in reversed(history) if key in entry), None)
