"""What a run tells while it trains: a log line per evaluation, a JSON-lines log, curves, and a stop that saves."""

import json
import logging
import math
import signal
import threading
import time
from pathlib import Path

from transformers import TrainerCallback

from .curves import save_curves
from .even_rows import true_for_any_process

METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"

logger = logging.getLogger(__name__)


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by hand, and a checkpoint holds everything up to the last update."""


class RunLog(TrainerCallback):
    """Writes metrics.jsonl and curves.png, and logs one line per evaluation."""

    def __init__(self, name: str):
        self.name = name

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
        logger.info("%s", HEADER)

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
        logger.info("%s", evaluation_line(state.epoch or 0.0, metrics, is_best, left))
        save_curves({self.name: state.log_history}, Path(args.output_dir) / CURVES_FILE)


HEADER = f"{'epoch':>7} {'loss':>8} {'perplexity':>11} {'accuracy':>9} {'bits/byte':>10}  best {'minutes left':>13}"


def evaluation_line(epoch: float, metrics: dict[str, float], is_best: bool, minutes_left: float) -> str:
    """One line under HEADER."""
    bits = metrics.get("eval_bits_per_byte")
    return (
        f"{epoch:7.2f} {metrics['eval_loss']:8.4f} {metrics['eval_perplexity']:11.2f} "
        f"{metrics['eval_token_accuracy']:9.2%} {'-' if bits is None else f'{bits:.4f}':>10}  "
        f"{'✓' if is_best else ' ':^4} {'-' if math.isnan(minutes_left) else f'{minutes_left:.1f}':>13}"
    )


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
