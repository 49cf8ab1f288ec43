"""The curves of all models of a run in one display that is updated in place while they train.

Each update replaces the whole content of the display: a line per model, then the picture. Colab shows neither updates
from background threads nor widgets that wait for the kernel, so everything happens in the trainer's own callbacks.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from IPython.display import HTML, display
from matplotlib.figure import Figure
from transformers import TrainerCallback, TrainingArguments

from ..adapters.arguments import QloraLwfArguments
from ..preferences.reference import ReferenceArguments
from ..preferences.scores import chosen_falls
from ..training.arguments import StageArguments
from ..training.callbacks import read_history
from ..training.curves import COLOURS, curves_figure
from ..training.device import find_device, memory_in_use, size
from .drive.drive_copy import CopyStatus, span
from .page.pieces import GRID, escape, mark_html, picture_html, png_of, sentence_html, small_html
from .panel.controls import in_the_panels_words

INTERVAL_SECONDS = 2.0
DRAWING_SHARE = 0.005  # of the time, at most, goes into drawing the picture
DPI = 90
PNG = {"compress_level": 1}  # as large as with 6 within a tenth, and a third of the time of a drawing sooner
# What a model's line says of the newest figures in its log; `_facts` adds those of a training that goes on.
FACTS = (
    ("loss", "loss {:.3f}"),
    ("eval_bits_per_byte", "{:.3f} bits per byte held out"),
    ("eval_general_bits_per_byte", "{:.3f} of general text"),
    ("eval_general_kl_to_base", "{:.3f} nats from the base"),
    ("eval_accuracy", "held-out accuracy {:.0%}"),
    ("eval_margin", "margin {:.2f}"),
    ("eval_kl", "{:.3f} nats from the reference"),
)


LEARNS_ANSWERS = "learning the answers as such"  # before preferences
TRAINS = ("training", LEARNS_ANSWERS)


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
    on_drive: Callable[[], CopyStatus] | None = None  # where runs are copied to Drive


class LivePicture:
    """A picture of `make_figure()` that is drawn anew while models train, for DRAWING_SHARE of the time at most."""

    def __init__(self, make_figure: Callable, clock: Callable[[], float]):
        self.make_figure, self.clock = make_figure, clock
        self.png, self.drawing_seconds, self.drawn_at = b"", 0.0, clock()

    def draw(self) -> None:
        started = self.clock()
        self.png = png_of(self.make_figure(), DPI, pil_kwargs=PNG)
        self.drawn_at = self.clock()
        self.drawing_seconds = self.drawn_at - started

    def may_draw(self) -> bool:
        """True if drawing again leaves the training its share of the time."""
        return self.clock() - self.drawn_at >= self.drawing_seconds / DRAWING_SHARE


class LivePlot:
    """One display for the training of several models, named in the order in which they are trained. Two updates are
    `interval_seconds` apart at least, but for those at an evaluation; `clock` gives seconds, rising; `show` displays an
    object and returns a handle with `update`."""

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
        self.device = find_device()
        self.picture, self.drawn_entries = LivePicture(self._figure, clock), 0
        self.updated_at = clock()
        self.handle = show(self._content())

    def callback(self, name: str) -> "LiveCallback":
        """The trainer's callback that reports on the model `name`."""
        return LiveCallback(self, self.models[name])

    def set_state(self, name: str, state: str) -> None:
        """Say in a word what a model is doing; shown at once."""
        self.models[name].state = state
        self.update()

    def tell_of_drive(self, name: str) -> None:
        """Show how the copy of a model that trains no longer comes along."""
        model = self.models[name]
        if model.on_drive is not None:
            state = model.state
            self.set_state(name, f"{state}, {model.on_drive().sentence()}")
            model.state = state

    def add_finished(self, name: str, folder: Path) -> None:
        """Show a run that was finished before, from the log in its folder."""
        model = self.models[name]
        model.history = read_history(folder)
        model.update = model.updates = max((entry["step"] for entry in model.history), default=0)
        model.state = "finished"
        self.update(draw=True)

    def tick(self) -> None:
        """Update if it is time to: the lines every interval, the picture as often as its share of the time allows."""
        if self.clock() - self.updated_at >= self.interval_seconds:
            self.update(draw=self.may_draw())

    def may_draw(self) -> bool:
        """True if drawing again leaves the training its share of the time, and for the first curves."""
        waited = self.clock() - self.picture.drawn_at >= self.interval_seconds
        return self.drawn_entries == 0 or (waited and self.picture.may_draw())

    def update(self, draw: bool = False) -> None:
        """Replace what is displayed; the picture is drawn only if there is something new to see."""
        if draw and self._entries() != self.drawn_entries:
            self.picture.draw()
            self.drawn_entries = self._entries()
        self.handle.update(self._content())
        self.updated_at = self.clock()

    def _figure(self) -> Figure:
        return curves_figure({model.name: model.history for model in self.models.values()})

    def _entries(self) -> int:
        return sum(len(model.history) for model in self.models.values())

    def _content(self) -> HTML:
        lines, hint = "".join(map(self._line, self.models.values(), itertools.cycle(COLOURS))), ""
        if any(model.state in TRAINS for model in self.models.values()):
            hint = "To stop, interrupt the cell (■): the update is finished and saved, and the next run continues."
        for model in self.models.values():  # those that learn preferences
            evaluations = [entry for entry in model.history if "eval_chosen_logp" in entry]
            if evaluations and (warning := chosen_falls(evaluations[0], evaluations[-1])):
                lines += sentence_html(in_the_panels_words(warning), "note")
        return HTML(
            f'<div style="font-size:14px;line-height:1.5">{lines}{small_html(hint, "margin:2px 0 4px")}</div>'
            f"{picture_html(self.picture.png, 'learning curves') if self.picture.png else ''}"
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
        if model.state not in TRAINS:
            return facts
        if (rate := _newest(model.history, "learning_rate")) is not None:
            facts.append(f"learning rate {rate:.1e}")
        if model.per_second:
            digits = 0 if model.per_second >= 10 else 1
            facts.append(f"{model.per_second:,.{digits}f} {model.unit}/s")
        if model.seconds_left is not None:
            facts.append(f"{model.seconds_left / 60:.1f} minutes left")
        if (memory := memory_in_use(self.device)) is not None:
            facts.append(f"{size(memory)} of memory")
        if model.saved_at is not None:
            copy = None if model.on_drive is None else model.on_drive()
            if copy is None or not copy.is_current:
                facts.append(f"saved {span(self.clock() - model.saved_at)} ago ✓")
            if copy is not None:
                facts.append(copy.sentence())
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
        learns_answers = isinstance(args, ReferenceArguments)
        self.model.update, self.model.state = state.global_step, LEARNS_ANSWERS if learns_answers else "training"
        if isinstance(args, TrainingArguments) and not isinstance(args, StageArguments):  # TRL's, for preferences
            self.model.unit = "pairs"
            self.per_update = args.per_device_train_batch_size * args.gradient_accumulation_steps
        elif isinstance(args, QloraLwfArguments):
            self.model.unit = "examples"
            self.per_update = args.effective_batch_size
        else:
            self.per_update = args.effective_batch_size * args.max_length
        self.plot.update(draw=True)  # of a run that goes on; a new one has nothing to draw yet

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
        # The end of training draws once more.
        self.plot.update(draw=self.plot.may_draw() and state.global_step < state.max_steps)

    def on_save(self, args, state, control, **kwargs):
        self.model.saved_at = self.plot.clock()

    def on_train_end(self, args, state, control, **kwargs):
        self.model.history, self.model.update = state.log_history, state.global_step
        draw = self.model.state != LEARNS_ANSWERS  # of which nothing is in the curves of the preferences
        self.model.state = f"scoring all held-out {'pairs' if self.model.unit == 'pairs' else 'text'}"
        self.plot.update(draw=draw)


def _newest(history: list[dict], key: str) -> float | None:
    return next((entry[key] for entry in reversed(history) if key in entry), None)
