"""A run from its prepared data to its finished folder; what stages of one model have in common."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)

from ..data.sources import Splits
from ..data.text import TextCounts
from ..errors import InputError
from .arguments import ModelArguments
from .callbacks import (
    LANGUAGE_COLUMNS,
    Column,
    EvaluateAtEnd,
    RunLog,
    SaveByMinutes,
    SaveOnInterrupt,
    TrainingInterrupted,
)
from .checkpoint import RESULTS_FILE, check_place, open_run, read_results, remove_aside, rotate
from .disk import in_use, saying, write_json
from .model_card import BaseModel, write_model_card
from .run_trainer import RunTrainerMixin
from .trainer import count_training_tokens

logger = logging.getLogger(__name__)


class HeldOut(Protocol):
    """Held-out documents or pairs, which say where they are from."""

    origin: str


@dataclass(frozen=True)
class PreparedRun:
    """All that is known before training starts.

    Attributes:
        train_rows: what the stage's trainer takes: rows of tokens, a mix of examples, or pairs.
        held_out: documents to score, or pairs.
        remarks: what the user should know about the data.
        extent: a sentence on the model and its training, where a stage has one of its own.
        base: what adapters are trained on.
    """

    splits: Splits[Any]
    tokenizer: PreTrainedTokenizerFast
    train_rows: Any
    train_counts: TextCounts
    held_out: HeldOut
    model: PreTrainedModel
    remarks: tuple[str, ...] = ()
    extent: str = ""
    base: BaseModel | None = None


def prepare_once(args: ModelArguments, prepare: Callable[[ModelArguments], PreparedRun]) -> PreparedRun:
    """`prepare(args)`; of several processes the first prepares, and the others find its work in the cache. Raises
    InputError: the run cannot be written to its folder, or what `prepare` raises."""
    with args.main_process_first(desc="preparing the data"):
        check_place(Path(args.output_dir))
        prepared = prepare(args)
    if args.gradient_checkpointing and not prepared.model.supports_gradient_checkpointing:
        raise InputError(
            f"gradient_checkpointing is nothing that {type(prepared.model).__name__} can do; give "
            "--gradient_checkpointing false."
        )
    return prepared


class Run:
    """A run in its folder, which no other process works on until `opened_run` ends.

    Attributes:
        folder: of the run.
        is_finished: its results are there, and there is nothing left to do.
    """

    def __init__(self, args: ModelArguments, prepared: PreparedRun):
        self.args, self.prepared = args, prepared
        self.folder = Path(args.output_dir)
        self.is_main = args.process_index == 0
        results = read_results(self.folder)
        self.is_finished = results is not None
        self.trainer: RunTrainerMixin | None = None  # once it has trained
        if self.is_finished:
            self._say(f"This run is finished: loss {results['loss']:.4f}. Choose another --output_dir for a new one.")
        elif self.is_main:
            if (self.folder / RESULTS_FILE).exists():
                logger.warning("The results of this run are damaged, or its weights are gone: they are made again.")
            _introduce(args, prepared)

    def callbacks(
        self, callbacks: Sequence[TrainerCallback] = (), columns: Sequence[Column] = LANGUAGE_COLUMNS
    ) -> list[TrainerCallback]:
        """What a trainer of this run calls back, `callbacks` last; `columns`: what the log shows of an evaluation."""
        args = self.args
        self._log, self._interrupt = RunLog(args.model_type, columns), SaveOnInterrupt()
        ours = [EvaluateAtEnd(), self._log, self._interrupt]
        if args.early_stopping_patience:
            ours.insert(0, EarlyStoppingCallback(args.early_stopping_patience))
        if args.save_minutes and args.save_strategy != "no":
            ours.append(SaveByMinutes(args.save_minutes))
        return [*ours, *callbacks]

    def train(self, trainer: RunTrainerMixin) -> None:
        """Train, or go on from the newest checkpoint, and save the model that is the result.

        Args:
            trainer: made with `self.callbacks(...)`.

        Raises:
            InputError: the disk does not take the result.
            TrainingInterrupted: stopped by hand; the same command continues.
        """
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.resume_or_start()
            self._log.write_all(self.args, trainer.state)
        finally:
            self._interrupt.restore()
        if self._interrupt.interrupted and trainer.state.global_step < trainer.state.max_steps:
            stopped = f"Stopped at update {trainer.state.global_step} of {trainer.state.max_steps}"
            if trainer.saved_step == trainer.state.global_step:
                stopped += f"; everything is saved in {self.folder}. The same command continues from there."
            else:
                stopped += f", which could not be saved. The same command continues from update {trainer.saved_step}."
            raise TrainingInterrupted(stopped)
        trainer.check_weights()
        self.trainer = trainer
        if self.is_main:  # no results beside weights that are not all there
            (self.folder / RESULTS_FILE).unlink(missing_ok=True)
        trainer.save_model(str(self.folder))

    def finish(self, metrics: dict[str, Any], more: dict[str, Any] | None = None, advice: str = "") -> None:
        """Write the model card and the results, which say that the run is finished.

        Args:
            metrics: of the trained model; more: what else belongs into the results.
            advice: the last but one line of the log.
        """
        if not self.is_main:
            return
        prepared, state = self.prepared, self.trainer.state
        of_the_run = prepared.splits, prepared.model, prepared.tokenizer, metrics, state, prepared.base
        write_model_card(self.folder, self.args, *of_the_run)
        size = {"parameters": prepared.model.num_parameters(), "updates": state.global_step}
        write_json(self.folder / RESULTS_FILE, {**metrics, **(more or {}), **size})
        # A process that was killed while it did so has left some.
        best = state.best_model_checkpoint
        rotate(self.folder, self.trainer.saved_step, self.args.save_total_limit, best and Path(best).name)
        remove_aside(self.folder, math.inf)
        self._say(advice)
        self._say(f"Finished: everything is in {self.folder}.")

    def _say(self, sentence: str) -> None:
        if sentence and self.is_main:
            logger.info("%s", sentence)


@contextmanager
def opened_run(args: ModelArguments, prepared: PreparedRun, identity: dict[str, Any]) -> Iterator[Run]:
    """The run that `args.output_dir` holds, or a new one there.

    Args:
        identity: what makes the run this run beside its settings and its data.

    Raises:
        InputError: the folder holds something else, another process works on it, or the disk does not take the result.
    """
    claim_folder(args, prepared, identity)
    with in_use(Path(args.output_dir)) if args.process_index == 0 else nullcontext():
        run = Run(args, prepared)
        try:
            yield run
        except Exception:
            if run.trainer is None:
                raise
            with saying(
                f"the result of the run could not be written to {str(run.folder)!r}",
                f"the same command writes it when the disk can take it (saved up to update {run.trainer.saved_step})",
            ):
                raise


def claim_folder(args: ModelArguments, prepared: PreparedRun, identity: dict[str, Any]) -> None:
    """Open `args.output_dir` for the run; `identity` as in `opened_run`. Raises InputError: it holds something else."""
    splits = prepared.splits
    texts = {"train_text": splits.train.identity, "validation_text": splits.validation.identity}
    run = {**identity, "text_source": splits.source, **texts, **args.run_settings()}
    with args.main_process_first(desc="opening the run"):
        open_run(Path(args.output_dir), run, args.session_settings())


def _introduce(args: ModelArguments, prepared: PreparedRun) -> None:
    """Log what is trained on what."""
    counts = prepared.train_counts
    origins = f"Text: {prepared.splits.train.origin}; held out: {prepared.held_out.origin}."
    for line in (prepared.splits.note, origins, *prepared.remarks, prepared.extent or _extent(args, prepared)):
        if line:
            logger.info("%s", line)
    if counts.unknown_tokens:
        share = counts.unknown_tokens / counts.tokens
        logger.info("%.1f %% of the training tokens are <unk>: perplexity is flattered by as much.", 100 * share)


def _extent(args: ModelArguments, prepared: PreparedRun) -> str:
    """How large the model and its training are."""
    steps, tokens = count_training_tokens(args, len(prepared.train_rows))
    return (
        f"{args.model_type}: {prepared.model.num_parameters():,} parameters, {prepared.train_counts.tokens:,} tokens "
        f"of text, {steps} updates over {tokens:,} tokens, on {args.device}."
    )
