"""What every trainer of ours adds to transformers' `Trainer`: it goes on from the newest complete checkpoint of its run
folder, states of every checkpoint that it is complete, and is evaluated by scores of its own."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from ..errors import InputError, TrainingDiverged
from .checkpoint import newest_checkpoint, seal_checkpoint
from .device import freed_memory_kept

PATIENCE = 10  # losses in a row that may be no numbers under fp16, whose scaler leaves such updates out


class RunTrainerMixin:
    """Stands before `Trainer` in a class's bases; add `SealCheckpoints(self)` to the callbacks."""

    not_finite = 0  # losses in a row

    def resume_or_start(self) -> None:
        """Train from the newest complete checkpoint of the run folder, or from the beginning.

        Raises:
            InputError: the checkpoint has another tokenizer.
        """
        with self.args.main_process_first(desc="removing what was cut off"):
            checkpoint = newest_checkpoint(Path(self.args.output_dir))
        if checkpoint is not None:
            self._check_tokenizer(checkpoint)
        if checkpoint is not None and self.is_trained(checkpoint):
            return
        if checkpoint is not None:
            self.before_resume(checkpoint)
        with freed_memory_kept() if self.args.device.type == "cpu" else nullcontext():
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def _check_tokenizer(self, checkpoint: Path) -> None:
        """Token ids mean something else to a model of an earlier version, whose tokenizer had no role tokens."""
        path = checkpoint / "tokenizer.json"
        if path.exists() and Tokenizer.from_file(str(path)).get_vocab() != self.processing_class.get_vocab():
            raise InputError(
                f"output_dir {str(self.args.output_dir)!r} holds a run of an earlier version, with another tokenizer; "
                "choose another --output_dir.",
                "NL-404",
            )

    def is_trained(self, checkpoint: Path) -> bool:
        """True, with the run's result in the model, if there is nothing left to train: the run was cut off between its
        last checkpoint and its end. transformers would make one more update of it."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return False
        self.state = state
        best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
        found = checkpoint if best is None else checkpoint.with_name(Path(best).name)
        self._load_from_checkpoint(str(found if found.is_dir() else checkpoint))
        return True

    def get_train_dataloader(self):
        if not self.args.auto_find_batch_size:
            # Resuming, Colab's transformers 5.0 takes the micro-batch of the checkpoint and not the one asked for.
            self._train_batch_size = self.args.train_batch_size
        return super().get_train_dataloader()

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """transformers' own.

        Raises:
            TrainingDiverged: the loss is not a finite number; no update has been made with it.
        """
        loss = super().training_step(*args, **kwargs)
        self.not_finite = 0 if loss.isfinite() else self.not_finite + 1
        if self.not_finite > (PATIENCE if self.args.fp16 else 0):
            raise TrainingDiverged(
                f"learning_rate {self.args.learning_rate:g}: the loss of update {self.state.global_step + 1} is no "
                "finite number, and training was ended before the weights were harmed; choose a smaller one, which "
                f"starts a run of its own (what was saved stays in {self.args.output_dir}).",
                "NL-502",
            )
        return loss

    def before_resume(self, checkpoint: Path) -> None:
        """Take up what `before_seal` has left."""

    def before_seal(self, checkpoint: Path) -> None:
        """Add to a checkpoint what else has to be known to go on; called on every process."""

    def scores(self, held_out: Any) -> dict[str, Any]:
        """What an evaluation gives."""
        raise NotImplementedError

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, Any]:
        started = time.perf_counter()
        metrics = {
            f"{metric_key_prefix}_{name}": value
            for name, value in self.scores(eval_dataset or self.eval_dataset).items()
            if value is not None
        }
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - started
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        # A pickle of the settings, which nothing here reads: a run folder holds no pickle of ours.
        (Path(output_dir or self.args.output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)


class SealCheckpoints(TrainerCallback):
    """States of every checkpoint that it is complete, once everything is in it."""

    def __init__(self, trainer: RunTrainerMixin):
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs):
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.trainer.before_seal(checkpoint)
        self.trainer.accelerator.wait_for_everyone()  # each process writes a file of its own
        if state.is_world_process_zero:
            seal_checkpoint(checkpoint)
