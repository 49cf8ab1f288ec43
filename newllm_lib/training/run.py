"""A run from its prepared data to its finished folder; what stages of one model have in common."""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PreTrainedModel, PrinterCallback, TrainerCallback

from ..data.batches import EvaluationDocuments, TextCounts
from ..errors import InputError
from ..evaluation.perplexity import TextMetrics
from .arguments import ModelArguments
from .checkpoint import RESULTS_FILE, check_place, open_run, read_results, write_json
from .disk import saying
from .model_card import BaseModel, write_model_card
from .report import LANGUAGE_COLUMNS, Column, EvaluateAtEnd, RunLog, SaveByMinutes, SaveOnInterrupt, TrainingInterrupted
from .rotation import remove_aside, rotate
from .run_lock import in_use
from .trainer import LanguageModelTrainer, count_training_tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedRun:
    """All that is known before training starts. `splits` has `train` and `validation` with their origin, licence and
    identity, `source` and `note`; `remarks` are what the user should know about the data, `extent` a sentence on
    the model and its training where a stage has one of its own, `base` what adapters are trained on."""

    splits: Any
    tokenizer: Any
    train_rows: Any
    train_counts: TextCounts
    documents: EvaluationDocuments
    model: PreTrainedModel
    remarks: tuple[str, ...] = ()
    extent: str = ""
    base: BaseModel | None = None


def prepare_once(args: ModelArguments, prepare: Callable[[ModelArguments], PreparedRun]) -> PreparedRun:
    """`prepare(args)`; of several processes the first prepares, and the others find its work in the cache.

    Raises:
        InputError: the run cannot be written to its folder, or what `prepare` raises.
    """
    with args.main_process_first(desc="preparing the data"):
        check_place(Path(args.output_dir))
        prepared = prepare(args)
    if args.gradient_checkpointing and not prepared.model.supports_gradient_checkpointing:
        raise InputError(
            f"gradient_checkpointing is nothing that {type(prepared.model).__name__} can do; give "
            "--gradient_checkpointing false."
        )
    return prepared


def train_run(
    args: ModelArguments,
    prepared: PreparedRun,
    identity: dict[str, Any],
    make_trainer: Callable[..., LanguageModelTrainer],
    callbacks: tuple[TrainerCallback, ...] = (),
    advice: Callable[[dict[str, Any]], str] = lambda metrics: "",
    conclude: Callable[[LanguageModelTrainer, Path], tuple[TextMetrics, dict[str, Any]]] | None = None,
    columns: Sequence[Column] = LANGUAGE_COLUMNS,
) -> Path:
    """Train the prepared model, or go on with the run that `args.output_dir` holds; score it and write its folder.

    Args:
        identity: what makes the run this run beside its settings and its data.
        make_trainer: (model, args, rows, documents, tokenizer, callbacks=...) -> the trainer.
        advice: final metrics -> what to do next, told at the end.
        conclude: (trainer, folder) -> (metrics on `prepared.documents`, what else belongs into the results); called
            when the model is trained and saved. None: the metrics alone.
        columns: what is told at every evaluation.

    Raises:
        InputError: the folder holds something else, another process works on it, or the disk does not take the result.
        TrainingInterrupted: stopped by hand; the same call continues.
    """
    folder = Path(args.output_dir)
    is_main = args.process_index == 0
    claim_folder(args, prepared, identity)
    with in_use(folder) if is_main else nullcontext():
        if (results := read_results(folder)) is None:
            _train_and_finish(args, prepared, make_trainer, callbacks, advice, conclude, columns)
        elif is_main:
            logger.info("This run is finished: loss %.4f. Choose another --output_dir for a new one.", results["loss"])
    return folder


def _train_and_finish(args, prepared, make_trainer, callbacks, advice, conclude, columns) -> None:
    """As `train_run`, in a folder that is claimed."""
    folder = Path(args.output_dir)
    is_main = args.process_index == 0
    if is_main and (folder / RESULTS_FILE).exists():
        logger.warning("The results of this finished run are damaged, or its weights are gone: they are made again.")
    if is_main:
        _introduce(args, prepared)
    interrupt = SaveOnInterrupt()
    stoppers = [EarlyStoppingCallback(args.early_stopping_patience)] if args.early_stopping_patience else []
    timed = [SaveByMinutes(args.save_minutes)] if args.save_minutes and args.save_strategy != "no" else []
    trainer = make_trainer(
        prepared.model,
        args,
        prepared.train_rows,
        prepared.documents,
        prepared.tokenizer,
        callbacks=[*stoppers, EvaluateAtEnd(), log := RunLog(args.model_type, columns), interrupt, *timed, *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.resume_or_start()
        log.write_all(args, trainer.state)
    finally:
        interrupt.restore()
    if interrupt.interrupted and trainer.state.global_step < trainer.state.max_steps:
        stopped = f"Stopped at update {trainer.state.global_step} of {trainer.state.max_steps}"
        if trainer.saved_step == trainer.state.global_step:
            stopped += f"; everything is saved in {folder}. The same command continues from there."
        else:
            stopped += f", which could not be saved. The same command continues from update {trainer.saved_step}."
        raise TrainingInterrupted(stopped)
    trainer.check_weights()
    with saying(
        f"the result of the run could not be written to {str(folder)!r}",
        f"the same command writes it when the disk can take it (saved up to update {trainer.saved_step})",
    ):
        if is_main:  # no results beside weights that are not all there
            (folder / RESULTS_FILE).unlink(missing_ok=True)
        trainer.save_model(str(folder))
        scored, more = conclude(trainer, folder) if conclude else (trainer.score(prepared.documents), {})
        if is_main:
            _finish(args, prepared, trainer, dataclasses.asdict(scored), more)
    if is_main:
        for line in (advice({**dataclasses.asdict(scored), **more}), f"Finished: everything is in {folder}."):
            if line:
                logger.info("%s", line)


def _finish(args: ModelArguments, prepared: PreparedRun, trainer: Any, metrics: dict[str, Any], more: dict) -> None:
    folder = Path(args.output_dir)
    card = (prepared.splits, prepared.model, prepared.tokenizer, metrics, trainer.state, prepared.base)
    write_model_card(folder, args, *card)
    size = {"parameters": prepared.model.num_parameters(), "updates": trainer.state.global_step}
    # Last: its presence says that the run is finished.
    write_json(folder / RESULTS_FILE, {**metrics, **more, **size})
    # A process that was killed while it did so has left some.
    best = trainer.state.best_model_checkpoint
    rotate(folder, trainer.saved_step, args.save_total_limit, best and Path(best).name)
    remove_aside(folder, math.inf)


def claim_folder(args: ModelArguments, prepared: PreparedRun, identity: dict[str, Any]) -> None:
    """Open `args.output_dir` for the run; `identity` as in `train_run`.

    Raises:
        InputError: it holds something else.
    """
    splits = prepared.splits
    of_the_data = {
        "text_source": splits.source,
        "train_text": splits.train.identity,
        "validation_text": splits.validation.identity,
    }
    with args.main_process_first(desc="opening the run"):
        run = {**identity, **of_the_data, **args.run_settings()}
        open_run(Path(args.output_dir), run, args.session_settings())


def _introduce(args: ModelArguments, prepared: PreparedRun) -> None:
    """Tell what is trained on what."""
    counts = prepared.train_counts
    origins = f"Text: {prepared.splits.train.origin}; held out: {prepared.documents.origin}."
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
