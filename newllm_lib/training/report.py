"""What a run tells while it trains: a log line per evaluation, a JSON-lines log, curves, and a stop that saves."""

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerCallback

from .curves import save_curves
from .even_rows import true_for_any_process

METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Column:
    """A metric in the line that is told at every evaluation."""

    title: str
    width: int
    metric: str
    form: str

    def text(self, metrics: dict[str, float]) -> str:
        value = metrics.get(f"eval_{self.metric}")
        return "-" if value is None else format(value, self.form)


LANGUAGE_COLUMNS = (
    Column("loss", 8, "loss", ".4f"),
    Column("perplexity", 11, "perplexity", ".2f"),
    Column("accuracy", 9, "token_accuracy", ".2%"),
    Column("bits/byte", 10, "bits_per_byte", ".4f"),
)
PREFERENCE_COLUMNS = (
    Column("loss", 8, "loss", ".4f"),
    Column("accuracy", 9, "accuracy", ".2%"),
    Column("margin", 8, "margin", ".3f"),
    Column("chosen", 8, "chosen_logp", ".1f"),
    Column("rejected", 9, "rejected_logp", ".1f"),
    Column("KL", 7, "kl", ".3f"),
)


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by hand, and a checkpoint holds everything up to the last update."""


class RunLog(TrainerCallback):
    """Writes metrics.jsonl and curves.png, and logs one line per evaluation.

    Args:
        columns: what the line tells.
    """

    def __init__(self, name: str, columns: Sequence[Column]):
        self.name = name
        self.columns = columns

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first_step, self.best = time.perf_counter(), state.global_step, state.best_metric
        if not state.is_world_process_zero:
            return
        self.path = Path(args.output_dir) / METRICS_FILE
        # After a resume: what was logged beyond the checkpoint will be logged again.
        lines = [json.dumps(entry) + "\n" for entry in state.log_history]
        self.path.write_text("".join(lines), encoding="utf-8")
        if self.first_step:
            logger.info("Continuing at update %d of %d.", self.first_step, state.max_steps)
        logger.info("%s", header(self.columns))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(state.log_history[-1]) + "\n")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not state.is_world_process_zero:
            return
        is_best = self.best is None or metrics["eval_loss"] < self.best
        self.best = metrics["eval_loss"] if is_best else self.best
        done = state.global_step - self.first_step
        minutes = (time.perf_counter() - self.started) / 60
        left = minutes / done * (state.max_steps - state.global_step) if done else math.nan
        logger.info("%s", evaluation_line(self.columns, state.epoch or 0.0, metrics, is_best, left))
        save_curves({self.name: state.log_history}, Path(args.output_dir) / CURVES_FILE)


def header(columns: Sequence[Column]) -> str:
    titles = "".join(f" {column.title:>{column.width}}" for column in columns)
    return f"{'epoch':>7}{titles}  best {'minutes left':>13}"


def evaluation_line(
    columns: Sequence[Column], epoch: float, metrics: dict[str, float], is_best: bool, minutes_left: float
) -> str:
    """One line under the header."""
    values = "".join(f" {column.text(metrics):>{column.width}}" for column in columns)
    left = "-" if math.isnan(minutes_left) else f"{minutes_left:.1f}"
    return f"{epoch:7.2f}{values}  {'✓' if is_best else ' ':^4} {left:>13}"


class SaveOnInterrupt(TrainerCallback):
    """While training: Ctrl-C, the notebook's stop button or SIGTERM end it after the current update, with a
    checkpoint. A second Ctrl-C stops at once."""

    def __init__(self):
        self.interrupted = False
        self.previous = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1:  # all stop after the same update, whichever was asked first
            self.interrupted = true_for_any_process(self.interrupted, args.device)
        if self.interrupted:
            # The mean training loss since the last log line is not part of a checkpoint: log it now.
            control.should_log = True
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def _ask(self, number, frame):
        if self.interrupted:
            self.restore()
            raise KeyboardInterrupt
        self.interrupted = True
        logger.warning("Stopping after this update and saving; press again to stop at once without saving.")


class EvaluateAtEnd(TrainerCallback):
    """Asks for an evaluation after the last update, too, where they are made every so many: the best weights are chosen
    among those that were evaluated. The newest transformers does so by itself, Colab's 5.0 does not."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate |= args.eval_strategy == "steps" and state.global_step >= state.max_steps
        return control


class SaveByMinutes(TrainerCallback):
    """Asks for a checkpoint when `minutes` have passed without one, at the next line of the log: the mean training loss
    since the last one is no part of a checkpoint, and the log of a run that is continued is that of an unbroken one.

    Args:
        clock: seconds, rising.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic):
        self.seconds = 60 * minutes
        self.clock = clock

    def on_train_begin(self, args, state, control, **kwargs):
        self.saved_at = self.clock()

    def on_step_end(self, args, state, control, **kwargs):
        if not control.should_log:
            return control
        is_due = self.clock() - self.saved_at >= self.seconds
        if args.world_size > 1:  # clocks differ, and every process has a part in a checkpoint
            is_due = true_for_any_process(is_due, args.device)
        control.should_save |= is_due
        return control

    def on_save(self, args, state, control, **kwargs):
        self.saved_at = self.clock()
