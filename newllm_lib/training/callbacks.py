"""What is called back while a run trains: a log line per evaluation, a log of JSON lines, curves, a stop that saves."""

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from accelerate.utils import gather
from transformers import TrainerCallback, TrainingArguments

from ..progress import TRAINING, Progress
from .checkpoint import COLUMNS, CURVES_FILE, METRICS_FILE
from .disk import OWNER_FILE, read_json, refusal, write_json

RETRY_SECONDS = 60.0  # after a save that failed
HEARTBEAT_SECONDS = 5.0
logger = logging.getLogger(__name__)


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by hand, and a checkpoint holds everything up to the last update."""


def any_process(flag: bool, args: TrainingArguments) -> bool:
    """True if the flag is true for any process; all have to ask."""
    if args.world_size == 1:  # a GPU is not asked, for the host would wait for it
        return bool(flag)
    return bool(gather(torch.tensor([bool(flag)], device=args.device)).any())


class RunLog(TrainerCallback):
    """Writes metrics.jsonl and curves.png, and logs one line per evaluation; between two of them a `Progress` shows the
    updates. For the first process alone. What the disk does not take is written when it does; training goes on. The
    line shows those of `metrics` that have a column."""

    def __init__(self, folder: Path, name: str, metrics: Iterable[str]):
        self.folder, self.path, self.name = folder, folder / METRICS_FILE, name
        self.metrics = [metric for metric in COLUMNS if metric in metrics]
        self.is_behind = True  # lines are missing in the file
        self.has_warned = False
        self.progress = Progress(disable=True)  # until the training begins

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first_step = time.perf_counter(), state.global_step
        # Evaluations are part of the time that is left: not the newest speed counts, but that of all updates.
        options = {"initial": state.global_step, "unit": "updates", "smoothing": 0}
        self.progress = Progress(desc=TRAINING, total=state.max_steps, **options)
        self._write(state.log_history)  # after a resume: what was logged beyond the checkpoint will be logged again
        if self.first_step:
            logger.info("Continuing at update %d of %d.", self.first_step, state.max_steps)
        titles = "".join(" {:>{}}".format(*COLUMNS[name]) for name in self.metrics)
        logger.info("%s", f"{'epoch':>7}{titles}  best {'minutes left':>13}")

    def on_step_end(self, args, state, control, **kwargs):
        self.progress.update()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.progress.set_postfix_str(f"loss {logs['loss']:.3f}")
        # What transformers and TRL count from the start of the process would be wrong after a resume.
        if "train_loss" in logs:
            state.log_history.pop()
        else:
            state.log_history[-1].pop("num_tokens", None)
            self._write(state.log_history)

    def write_all(self, state) -> None:
        """Write the whole log: the file of a run that had nothing left to train may be damaged."""
        self.is_behind = True
        self._write(state.log_history)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        value, best = metrics[f"eval_{args.metric_for_best_model}"], state.best_metric
        is_best = best is None or (value > best if args.greater_is_better else value < best)
        done = state.global_step - self.first_step
        minutes = (time.perf_counter() - self.started) / 60
        left = f"{minutes / done * (state.max_steps - state.global_step):.1f}" if done else "-"
        values = ""
        for name in self.metrics:
            (_, width, form), shown = COLUMNS[name], metrics.get(f"eval_{name}")
            values += f" {'-' if shown is None else format(shown, form):>{width}}"
        logger.info("%s", f"{state.epoch or 0.0:7.2f}{values}  {'✓' if is_best else ' ':^4} {left:>13}")
        from .curves import save_curves  # matplotlib, which no other part of a training needs

        with self._going_on():
            save_curves({self.name: state.log_history}, self.folder / CURVES_FILE)

    def _write(self, history: Sequence[dict]) -> None:
        """The last line, or all where some are missing."""
        is_whole = self.is_behind or not self.path.exists()
        self.is_behind = True
        with self._going_on(), self.path.open("w" if is_whole else "a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(entry) + "\n" for entry in (history if is_whole else history[-1:]))
            stream.flush()
            self.is_behind = False

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self.has_warned:
                logger.warning("%s cannot be written (%s): training goes on.", self.folder, refusal(error))
            self.has_warned = True


class SaveOnInterrupt(TrainerCallback):
    """While training: Ctrl-C, the notebook's stop button, SIGTERM or the end of the terminal (SIGHUP) end it after the
    current update, with a checkpoint. A second Ctrl-C stops at once.

    Attributes:
        asked: this process got a signal. Once true it stays so: a signal may come at any moment.
        interrupted: training ends for it; the same on every process.
    """

    def __init__(self):
        self.asked = self.interrupted = False
        self.is_alone = True
        self.previous = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.is_alone = args.world_size == 1
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
            numbers.append(signal.SIGHUP)
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._ask) for number in numbers}

    def on_step_end(self, args, state, control, **kwargs):
        # All stop after the same update, whichever was asked first.
        self.interrupted = any_process(self.asked, args)
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        return control

    def restore(self) -> None:
        """Give the signals back to their earlier handlers."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def _ask(self, number, frame):
        if self.asked:
            if self.is_alone and number == signal.SIGINT:
                self.restore()
                raise KeyboardInterrupt
            return  # `newllm stop`, given twice; or a launcher that passes on what the terminal has sent to everyone
        self.asked = True
        logger.warning("Stopping after this update and saving; press again to stop at once without saving.")


class EvaluateAtEnd(TrainerCallback):
    """Asks for an evaluation after the last update, too, where they are made every so many: the best weights are chosen
    among those that were evaluated. The newest transformers does so by itself, Colab's 5.0 does not."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate |= args.eval_strategy == "steps" and state.global_step >= state.max_steps
        return control


class SaveByMinutes(TrainerCallback):
    """Asks for a checkpoint when `minutes` have passed without one; `clock` gives seconds."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.clock = 60 * minutes, clock

    def on_train_begin(self, args, state, control, **kwargs):
        self.saved_at = self.clock()

    def on_step_end(self, args, state, control, **kwargs):
        # Clocks differ, and every process has a part in a checkpoint.
        control.should_save |= any_process(self.clock() - self.saved_at >= self.seconds, args)
        return control

    def on_save(self, args, state, control, **kwargs):
        self.saved_at = self.clock()
        if not (Path(args.output_dir) / f"checkpoint-{state.global_step}").exists():  # the disk has not taken it
            self.saved_at -= max(self.seconds - RETRY_SECONDS, 0)


class Heartbeat(TrainerCallback):
    """Adds to the note of the run's owner, every few seconds, how far the training is, for whoever looks from another
    process."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        self.note, self.clock = folder / OWNER_FILE, clock

    def on_train_begin(self, args, state, control, **kwargs):
        self.owner = read_json(self.note)  # None on a disk without locks
        self.begun = {"first_update": state.global_step, "begun": self.clock()}
        self._tell(state)

    def on_step_end(self, args, state, control, **kwargs):
        if not 0 <= self.clock() - self.told < HEARTBEAT_SECONDS:  # a clock may be set back
            self._tell(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._tell(state)

    def _tell(self, state) -> None:
        self.told = self.clock()
        if self.owner is not None:
            now = {"update": state.global_step, "updates": state.max_steps, "told": self.told}
            with suppress(OSError):
                write_json(self.note, {**self.owner, **self.begun, **now})
