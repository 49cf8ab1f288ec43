"""What every trainer of ours adds to transformers' `Trainer`: it goes on from the newest complete checkpoint of its run
folder, seals every checkpoint before older ones are removed, goes on when the disk takes none, and is evaluated by
scores of its own."""

import copy
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from ..errors import InputError, TrainingDiverged
from .callbacks import any_process
from .checkpoint import (
    FINAL_FOLDER,
    SAVING,
    SETTINGS_FILE,
    best_beside,
    is_complete,
    resume_point,
    rotate,
    seal_checkpoint,
    settle,
)
from .device import freed_memory_kept
from .disk import read_json, refusal, write_json

logger = logging.getLogger(__name__)

LINE_FILE = "log_line.json"
PATIENCE = 10  # losses in a row that may be no numbers under fp16, whose scaler leaves such updates out
MOST_UNSEEN = 256  # losses that a device holds until the host looks at them
NO_QUEUE = {"cpu"}  # devices that have done their work when a call returns


class RunTrainerMixin:
    """Stands before `Trainer` in a class's bases, and gets from the class `scores(held_out)`, the metrics of an
    evaluation."""

    unseen: tuple[tuple[int, torch.Tensor], ...] = ()  # (update, loss []) that the host has not looked at
    not_finite = 0  # losses in a row that were no finite numbers
    loss_sum: torch.Tensor | None = None  # [], of the updates since the last line of the log
    line: dict[str, Any] | None = None  # what a checkpoint knows of the line that is not full yet, until it is taken up
    saved_step = 0  # the update of the newest checkpoint that is sealed
    saved_best = (None, None, None)  # what is known of the best one that is
    keeps_final = True  # of the last update, beside the best ones
    best_update: int | None = None  # whose weights are the result; None: those of the last update
    run_settings: dict[str, Any] | None = None
    refused: str | None = None  # why the checkpoint that is being written cannot be; None: none is being written

    def resume_or_start(self) -> None:
        """Train from the newest complete checkpoint of the run folder, or from the beginning. Raises InputError: the
        checkpoint has another tokenizer."""
        folder = Path(self.args.output_dir)
        with self.args.main_process_first(desc="choosing the checkpoint"):
            checkpoint = resume_point(folder, self.args.load_best_model_at_end)
        if checkpoint is not None:
            # To an earlier version's model token ids mean something else: its tokenizer had no role tokens.
            tokenizer = checkpoint / "tokenizer.json"
            vocabulary = self.processing_class.get_vocab()
            if tokenizer.exists() and Tokenizer.from_file(str(tokenizer)).get_vocab() != vocabulary:
                raise InputError(
                    f"output_dir {str(self.args.output_dir)!r} holds a run of an earlier version, with another "
                    "tokenizer; choose another --output_dir.",
                    "NL-404",
                )
            if self.is_trained(checkpoint):
                return
            self.before_resume(checkpoint)
        self.run_settings = read_json(folder / SETTINGS_FILE)
        self.args = copy.copy(self.args)
        self.args.eval_on_start &= checkpoint is None  # else it was made, and is in the log
        with freed_memory_kept() if self.args.device.type == "cpu" else nullcontext():
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def is_trained(self, checkpoint: Path) -> bool:
        """True, with the run's result in the model, if there is nothing left to train: the run was cut off between its
        last checkpoint and its end. transformers would make one more update of it."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return False
        self.state, self.saved_step = state, state.global_step
        best = best_beside(checkpoint) if self.args.load_best_model_at_end else None
        self._load_from_checkpoint(str(checkpoint))
        if best is not None and is_complete(best):
            self.keep_final(best)
            if best != checkpoint:
                self._load_from_checkpoint(str(best))
        return True

    def _load_callback_state(self) -> None:
        """transformers' own, of the callbacks. It has taken up the state of a checkpoint by now: the best one is beside
        that, wherever both were when it was noted."""
        super()._load_callback_state()
        state = self.state
        best = best_beside(Path(self.args.output_dir, f"checkpoint-{state.global_step}"))
        if best is not None and is_complete(best):
            state.best_model_checkpoint = str(best)
        elif best is not None:
            logger.warning("The best checkpoint so far is lost or damaged: the best from now on becomes the result.")
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        self.keep_best()

    def get_train_dataloader(self):
        # Resuming, Colab's transformers 5.0 takes the micro-batch of the checkpoint and not the one asked for.
        self._train_batch_size = self.args.train_batch_size
        return super().get_train_dataloader()

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """transformers' own. A GPU has a queue, and to look at each loss the host would wait until the queue is empty:
        there `check_losses` comes when the host waits anyway, to log, evaluate or save. Raises TrainingDiverged."""
        loss = super().training_step(*args, **kwargs)
        earlier, self.line = self.line, None
        # A compiled step writes its next loss into the same place.
        self.unseen += ((self.state.global_step + 1, loss.detach().clone()),)
        if len(self.unseen) == MOST_UNSEEN or self.args.device.type in NO_QUEUE:
            self.check_losses()
        return loss if earlier is None else loss + self.take_up(earlier)

    def check_losses(self) -> None:
        """Raises TrainingDiverged if one of the losses since the last call is no finite number."""
        unseen, self.unseen = self.unseen, ()
        finite = torch.stack([loss for _, loss in unseen]).isfinite().tolist() if unseen else ()
        for (update, _), is_finite in zip(unseen, finite, strict=True):
            self.not_finite = 0 if is_finite else self.not_finite + 1
            if self.not_finite > (PATIENCE if self.args.fp16 else 0):
                what = f"the loss of update {update} is no finite number, and no weights were saved since"
                raise self._diverged(what)

    def check_weights(self) -> None:
        """Raises TrainingDiverged if a loss, or a weight on any process, is no finite number: it must not be saved."""
        self.check_losses()
        # A sum is no finite number if one of its terms is none.
        sums = [weight.detach().sum(dtype=torch.float32) for weight in self.model.parameters() if weight.requires_grad]
        if any_process(not torch.stack(sums).isfinite().all(), self.args):
            what = f"after update {self.state.global_step} weights are no finite numbers, and they were not saved"
            raise self._diverged(what)

    def _diverged(self, what: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"learning_rate {self.args.learning_rate:g}: {what}; choose a smaller one, which starts a run of its own "
            f"(what was saved before stays in {self.args.output_dir}).",
            "NL-502",
        )

    def _maybe_log_save_evaluate(self, tr_loss, *args, **kwargs):
        self.loss_sum = tr_loss
        if self.control.should_log:
            self.check_losses()
        if self.control.should_evaluate or self.control.should_save:
            self.check_weights()
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs) -> None:
        """transformers' own, in a hidden folder; sealed, it stands among the others, and only then are older ones
        removed. If the disk does not take it, it is as if it had not been asked for: training goes on in memory, and
        the next one is the next try."""
        step, is_main, state = self.state.global_step, self.args.process_index == 0, self.state
        output_dir, folder = self.args.output_dir, Path(self.args.output_dir)
        hidden, checkpoint = folder / SAVING / f"checkpoint-{step}", folder / f"checkpoint-{step}"
        self.refused = ""
        if is_main and self.run_settings is not None and not (folder / SETTINGS_FILE).exists():  # the folder is gone
            with self._unless_refused():
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / SETTINGS_FILE, self.run_settings)
        self.accelerator.wait_for_everyone()  # each process writes a file of its own
        self.args.output_dir = str(folder / SAVING)
        try:
            with self._unless_refused():
                super()._save_checkpoint(*args, **kwargs)
        finally:
            self.args.output_dir = output_dir
        with self._unless_refused():
            self.before_seal(hidden)
        if not any_process(self.refused, self.args) and is_main:
            with self._unless_refused():
                seal_checkpoint(hidden, folder)
                settle(folder, sizes_only=True)
        is_refused, why, self.refused = any_process(self.refused, self.args), self.refused, None
        if is_refused:
            state.best_metric, state.best_global_step, state.best_model_checkpoint = self.saved_best
        else:
            if state.best_model_checkpoint == str(hidden):
                state.best_model_checkpoint = str(checkpoint)
            self.keep_best()
        if is_main and is_refused:
            with suppress(OSError):
                settle(folder)
            logger.warning("%s could not be saved (%s): training goes on", checkpoint, why or "by another process")
            logger.warning("in memory and saves when it can. What is safe: update %d.", self.saved_step)
        elif is_main:
            rotate(folder, step, self.args.save_total_limit, state.best_model_checkpoint)

    def keep_best(self) -> None:
        """What is known of the best checkpoint is so of one that is sealed."""
        state = self.state
        self.saved_step = state.global_step
        self.saved_best = (state.best_metric, state.best_global_step, state.best_model_checkpoint)

    @contextmanager
    def _unless_refused(self) -> Iterator[None]:
        """What the disk refuses of a checkpoint is noted: every process has to come to its end, for they wait for each
        other on the way. Otherwise it is an error."""
        try:
            yield
        except Exception as error:
            why = refusal(error)
            if self.refused is None or not why:
                raise
            self.refused = self.refused or why

    def keep_final(self, best: Path) -> None:
        """Save the weights as they are, after the last update, where those of the checkpoint `best` are another's."""
        folder, self.best_update = Path(self.args.output_dir, FINAL_FOLDER), int(best.name.split("-")[1])
        if (folder / SETTINGS_FILE).exists():  # somebody's run of that name
            return
        if self.args.process_index == 0:
            shutil.rmtree(folder, ignore_errors=True)
        if self.best_update == self.state.global_step or not self.keeps_final:
            return
        try:
            self.save_model(str(folder))
        except Exception as error:
            if not (why := refusal(error)):
                raise
            logger.warning("The weights after the last update could not be kept (%s): the best ones are.", why)
            shutil.rmtree(folder, ignore_errors=True)

    def _load_best_model(self):
        if is_complete(Path(self.state.best_model_checkpoint)):
            self.keep_final(Path(self.state.best_model_checkpoint))
            super()._load_best_model()
        else:
            logger.warning("%s, the best checkpoint, is lost or damaged:", self.state.best_model_checkpoint)
            logger.warning("the result has the weights of the last update.")

    def before_resume(self, checkpoint: Path) -> None:
        """Read what `before_seal` has left."""
        lines = read_json(checkpoint / LINE_FILE)
        if lines:  # one that an earlier version has written has none
            self.line = lines[self.args.process_index % len(lines)]

    def before_seal(self, checkpoint: Path) -> None:
        """Add to a checkpoint what else has to be known to go on; called on every process."""
        line = self.line_so_far()
        if self.args.process_index == 0:
            write_json(checkpoint / LINE_FILE, [line])

    def line_so_far(self) -> dict[str, Any]:
        """What all processes have counted since the last line of the log, of which the next one tells the means: a run
        that goes on from a checkpoint between two lines writes the lines of an unbroken one. Every process asks."""
        loss = self.accelerator.gather(self.loss_sum).mean().item()
        return {"since": self._globalstep_last_logged, "loss": loss}

    def take_up(self, line: dict[str, Any]) -> float:
        """Count on from `line_so_far` of a checkpoint; what is returned belongs to the sum of the losses."""
        self._globalstep_last_logged = line["since"]
        return line["loss"]

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, Any]:
        started = time.perf_counter()
        scores = self.scores(eval_dataset or self.eval_dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items() if value is not None}
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - started
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir=None, state_dict=None):
        with self._unless_refused():
            super()._save(output_dir, state_dict)
        # A pickle of the settings, which nothing here reads: a run folder holds no pickle of ours.
        (Path(output_dir or self.args.output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)
