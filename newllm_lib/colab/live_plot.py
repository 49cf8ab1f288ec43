"""What goes with a training cell, which calls the stage itself: the curves of all models in one display that is updated
in place, the copy on Drive, and one sentence however it ends.

Each update replaces the whole content: a line per model, then the picture. Colab shows neither updates from threads nor
widgets that wait for the kernel, so everything happens in the trainer's own callbacks.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from accelerate.utils.memory import clear_device_cache
from IPython.display import HTML, display
from matplotlib.figure import Figure
from transformers import TrainerCallback, TrainerState, TrainingArguments

from ..adapters.arguments import QloraLwfArguments
from ..errors import InputError, TrainingDiverged
from ..preferences.reference import ReferenceArguments
from ..preferences.scores import chosen_falls
from ..progress import TRAINING, Line, Progress
from ..training.arguments import StageArguments
from ..training.callbacks import TrainingInterrupted
from ..training.checkpoint import newest_checkpoint, read_history, read_results
from ..training.curves import COLOURS, curves_figure
from ..training.device import Device, find_device
from ..training.disk import size
from .drive.drive_copy import callbacks_for, span, wait_for_drive
from .page.languages import translate
from .page.notices import CellStopped, in_one_sentence, quiet_notebook, say
from .page.pieces import GRID, escape, mark_html, picture_html, sentence_html, small_html, spoken_png
from .page.progress_line import progress_html
from .panel.controls import in_the_panels_words
from .panel.settings_panel import SettingsPanel
from .storage import drive_copier, fetch_sentences

INTERVAL_SECONDS = 2.0
QUIET_SECONDS = 5.0  # of a training, after which its own line is shown, too
DRAWING_SHARE = 0.005  # of the time, at most, goes into drawing the picture
# What a model's line says of the newest figures in its log; `facts` adds those of a training that goes on.
FACTS = (
    ("loss", "loss {:.3f}"), ("eval_bits_per_byte", "{:.3f} bits per byte held out"),
    ("eval_general_bits_per_byte", "{:.3f} of general text"),
    ("eval_general_kl_to_base", "{:.3f} nats from the base"), ("eval_accuracy", "held-out accuracy {:.0%}"),
    ("eval_margin", "margin {:.2f}"), ("eval_kl", "{:.3f} nats from the reference"),
)  # fmt: skip
LEARNS_ANSWERS = "learning the answers as such"  # before preferences
TRAINS = ("training", LEARNS_ANSWERS)


class LiveDisplay:
    """A display whose `content` (HTML) is replaced while models train, and whose `figure` is drawn for DRAWING_SHARE of
    the time. `clock` gives seconds, rising; `show` displays an object and returns a handle with `update`. It is a
    place for a line of `Progress`, which comes from any thread: it goes below the content as it was last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, show: Callable | None = None):
        self.clock, self.png, self.drawing_seconds = clock, b"", 0.0
        self.drawn_at, self.updated_at = -math.inf, clock()
        self.shown, self.progress = self.content(), ""
        self.handle = (show or functools.partial(display, display_id=True))(HTML(self.shown))

    def draw(self) -> None:
        started = self.clock()
        # As large as with level 6 within a tenth, and a third of the time of a drawing sooner.
        self.png = spoken_png(self.figure(), 90, pil_kwargs={"compress_level": 1})
        self.drawn_at = self.clock()
        self.drawing_seconds = self.drawn_at - started

    def may_draw(self) -> bool:
        """True if drawing again leaves the training its share of the time; so may the first picture."""
        return self.clock() - self.drawn_at >= max(self.drawing_seconds / DRAWING_SHARE, INTERVAL_SECONDS)

    def is_due(self, seconds: float = INTERVAL_SECONDS) -> bool:
        return self.clock() - self.updated_at >= seconds

    def replace(self) -> None:
        self.shown = self.content()
        self._update("")

    def show(self, line: Line) -> None:
        """The progress of something in the training, or of the training itself, if there was no news for long."""
        parts = [name for name in line.names if name != Progress.words(TRAINING)]
        if self.is_due(INTERVAL_SECONDS if parts else QUIET_SECONDS):
            self._update(progress_html(line._replace(names=parts or line.names)))

    def clear(self) -> None:
        if self.progress:
            self._update("")

    def _update(self, progress: str) -> None:
        with Progress.get_lock():
            self.progress, self.updated_at = progress, self.clock()
            self.handle.update(HTML(self.shown + progress))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Lines of `Progress` are shown here, and not below the cell."""
        before, Progress.place = Progress.place, self
        if before is not None:
            before.clear()
        try:
            yield
        finally:
            Progress.place = before
            self.clear()


class LivePlot(LiveDisplay):
    """One display for the training of several models, named in the order in which they are trained."""

    def __init__(self, names: Sequence[str], **options: Callable):
        self.models = {name: ModelProgress(self, name) for name in names}
        self.device, self.drawn_entries = find_device(), 0
        super().__init__(**options)

    def set_state(self, name: str, state: str) -> None:
        self.models[name].state = state
        self.update()

    def add_finished(self, name: str, folder: Path) -> None:
        model, history = self.models[name], read_history(folder)
        updates = max((entry["step"] for entry in history), default=0)
        model.at = TrainerState(global_step=updates, max_steps=updates, log_history=history)
        model.state = "finished"
        self.update(draw=True)

    def update(self, draw: bool = False) -> None:
        """Replace what is displayed; the picture is drawn only if there is something new to see."""
        entries = sum(len(model.at.log_history) for model in self.models.values())
        if draw and entries != self.drawn_entries:
            self.draw()
            self.drawn_entries = entries
        self.replace()

    def figure(self) -> Figure:
        return curves_figure({model.name: model.at.log_history for model in self.models.values()})

    def content(self) -> str:
        lines, hint = "".join(map(self._line, self.models.values(), itertools.cycle(COLOURS))), ""
        if any(model.state in TRAINS for model in self.models.values()):
            hint = "To stop, interrupt the cell (■): the update is finished and saved, and the next run continues."
        for model in self.models.values():  # those that learn preferences
            evaluations = [entry for entry in model.at.log_history if "eval_chosen_logp" in entry]
            if evaluations and (warning := chosen_falls(evaluations[0], evaluations[-1])):
                lines += sentence_html(in_the_panels_words(warning), "note")
        picture = picture_html(self.png, "learning curves") if self.png else ""
        hint = small_html(hint, "margin:2px 0 4px")
        return f'<div style="font-size:14px;line-height:1.5">{lines}{hint}</div>{picture}'

    def _line(self, model: "ModelProgress", colour: str) -> str:
        share = 100 * model.at.global_step / (model.at.max_steps or 1)
        mark = mark_html("ok") if model.state == "finished" else ""
        return (
            f'<div style="display:flex;flex-wrap:wrap;gap:0 10px;align-items:center;margin-bottom:4px">'
            f'<b style="min-width:90px;border-left:6px solid {colour};padding-left:6px">{escape(model.name)}</b>'
            f'<span style="width:120px;height:8px;border-radius:4px;background:{GRID};overflow:hidden">'
            f'<span style="display:block;width:{share:.0f}%;height:100%;background:{colour}"></span></span>'
            f"<span>{mark} {escape(' · '.join(map(translate, model.facts())))}</span></div>"
        )


class ModelProgress(TrainerCallback):
    """What is known about the training of one model, as transformers' Trainer tells it, and the model's line."""

    def __init__(self, plot: LivePlot, name: str):
        self.plot, self.name, self.state = plot, name, "waiting"
        self.at = TrainerState()  # its trainer's own from the beginning of its training
        self.per_second, self.unit = 0.0, "tokens"  # or examples, where these have lengths of their own
        self.seconds_left = self.saved_at = None  # numbers, once they are known
        self.on_drive: Callable[[], tuple[str, bool]] = lambda: ("", False)  # `DriveCopier.status`, where there is one

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first_update, self.evaluation_seconds = self.plot.clock(), state.global_step, 0.0
        self.at, self.state = state, LEARNS_ANSWERS if isinstance(args, ReferenceArguments) else "training"
        if isinstance(args, TrainingArguments) and not isinstance(args, StageArguments):  # TRL's, for preferences
            self.unit = "pairs"
            self.per_update = args.per_device_train_batch_size * args.gradient_accumulation_steps
        elif isinstance(args, QloraLwfArguments):
            self.unit = "examples"
            self.per_update = args.effective_batch_size
        else:
            self.per_update = args.effective_batch_size * args.max_length
        self.plot.update(draw=True)  # of a run that goes on; a new one has nothing to draw yet

    def on_step_end(self, args, state, control, **kwargs):
        seconds = self.plot.clock() - self.started
        done = state.global_step - self.first_update
        self.seconds_left = seconds / done * (state.max_steps - state.global_step)
        self.per_second = done * self.per_update / max(seconds - self.evaluation_seconds, 1e-9)
        if self.plot.is_due():
            self.plot.update(draw=self.plot.may_draw())

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.evaluation_seconds += (metrics or {}).get("eval_runtime", 0.0)
        # The end of training draws once more.
        self.plot.update(draw=self.plot.may_draw() and state.global_step < state.max_steps)

    def on_save(self, args, state, control, **kwargs):
        self.saved_at = self.plot.clock()

    def on_train_end(self, args, state, control, **kwargs):
        draw = self.state != LEARNS_ANSWERS  # of which nothing is in the curves of the preferences
        self.state = f"scoring all held-out {'pairs' if self.unit == 'pairs' else 'text'}"
        self.plot.update(draw=draw)

    def facts(self) -> list[str]:
        newest = {key: value for entry in self.at.log_history for key, value in entry.items()}
        facts = [self.state]
        if self.at.max_steps:
            facts.append(f"update {self.at.global_step:,} of {self.at.max_steps:,}")
        facts += [text.format(newest[key]) for key, text in FACTS if newest.get(key) is not None]
        if self.state not in TRAINS:
            return facts
        if "learning_rate" in newest:
            facts.append(f"learning rate {newest['learning_rate']:.1e}")
        if self.per_second:
            facts.append(f"{self.per_second:,.{0 if self.per_second >= 10 else 1}f} {self.unit}/s")
        if self.seconds_left is not None:
            facts.append(f"{self.seconds_left / 60:.1f} minutes left")
        if (memory := memory_in_use(self.plot.device)) is not None:
            facts.append(f"{size(memory)} of memory")
        if self.saved_at is not None:
            copy, is_newest = self.on_drive()
            here = "" if is_newest else f"saved {span(self.plot.clock() - self.saved_at)} ago ✓"
            facts += filter(None, (here, copy))
        return facts


class LiveTraining:
    """The models of a panel under one live plot: `folders` of all, and the `unfinished` ones, left to train."""

    def __init__(self, panel: SettingsPanel):
        self.panel = panel
        self.runs = {model: Path(panel.arguments(model).output_dir) for model in panel.models}
        self.folders = list(self.runs.values())
        self.copier = drive_copier(self.folders[0])
        for sentence, status in fetch_sentences(self.copier, self.folders):
            say(sentence, status)
        self.plot = LivePlot(panel.models)
        self.unfinished = [model for model, folder in self.runs.items() if read_results(folder) is None]
        for model in self.runs.keys() - self.unfinished:
            self.plot.add_finished(model, self.runs[model])
        self.model = next(iter(self.unfinished), panel.models[0])  # the one that trains

    def callbacks(self, model: str) -> tuple[TrainerCallback, ...]:
        """For the stage that trains `model` now; those before it are finished."""
        if model != self.model:
            self.plot.set_state(self.model, "finished")
            self.panel.refresh()  # its line says what is finished and what can be continued
        self.model = model
        self.plot.set_state(model, "preparing the data")
        clear_device_cache(garbage_collection=True)  # of the models of the cells above
        live = self.plot.models[model]
        if self.copier is not None:
            live.on_drive = functools.partial(self.copier.status, self.runs[model])
        return live, *callbacks_for(self.copier)

    def on_drive(self) -> str:
        """Wait for the last copy; returns the outcome, as a sentence after a blank."""
        state, run = self.plot.models[self.model].state, self.runs[self.model]
        sentence = wait_for_drive(
            self.copier,
            lambda: self.plot.set_state(self.model, ", ".join(map(translate, (state, self.copier.status(run)[0])))),
        )
        self.plot.set_state(self.model, state)
        return sentence


@contextmanager
def live_training(panel: SettingsPanel) -> Iterator[LiveTraining]:
    """For the `with` of a training cell. What an earlier session has trained is found, or brought back from Drive."""
    with in_one_sentence():
        quiet_notebook()
        live = LiveTraining(panel)
        try:
            with live.plot.in_place():
                yield live
        except KeyboardInterrupt as stop:
            live.plot.set_state(live.model, "stopped")
            # The library's sentence ends in advice for the command line; here the advice is the cell.
            stopped = str(stop).split(" The same command")[0]
            if not isinstance(stop, TrainingInterrupted):
                newest = newest_checkpoint(live.runs[live.model])
                kept = f"{newest.name} is kept" if newest else "nothing was saved yet"
                stopped = f"Stopped at once; {kept}."
            goes_on = "Run this cell again to go on from there."
            raise CellStopped(f"■ {translate(f'{stopped} {goes_on}{live.on_drive()}')}") from None
        except InputError as error:
            live.plot.set_state(live.model, "diverged" if isinstance(error, TrainingDiverged) else "not started")
            raise
        finally:
            panel.refresh()
        where = f"everything is in {live.folders[0].parent}."
        if live.unfinished:
            live.plot.set_state(live.model, "finished")
            say(f"Trained; {where}{live.on_drive()}")
        else:
            say(f"Nothing to train, for everything was finished before; {where}")


def memory_in_use(device: Device) -> int | None:
    """Bytes: the most that torch's tensors have taken on an NVIDIA GPU; on a CPU what this process has resident, freed
    memory that it keeps included; None on an Apple GPU, where it is not measured."""
    if device.kind == "cuda":
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss if device.kind == "cpu" else None
