"""A run from its prepared data to its finished folder; what stages of one model have in common."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PreTrainedModel, PrinterCallback, TrainerCallback, set_seed

from ..data.batches import EvaluationDocuments, TextCounts
from ..data.tokenizer import end_token_ids
from ..errors import InputError
from ..evaluation.perplexity import TextMetrics
from ..models import build_config, build_model
from .arguments import ModelArguments
from .base_model import BaseModel
from .checkpoint import RESULTS_FILE, open_run, read_results, write_json
from .model_card import write_model_card
from .report import LANGUAGE_COLUMNS, Column, EvaluateAtEnd, RunLog, SaveByMinutes, SaveOnInterrupt, TrainingInterrupted
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
    """`prepare(args)`; of several processes the first prepares, and the others find its work in the cache."""
    with args.main_process_first(desc="preparing the data"):
        return prepare(args)


def new_model(args: ModelArguments, tokenizer) -> PreTrainedModel:
    """The model that the settings describe, initialised from the seed.

    Raises:
        InputError: there is no such model.
    """
    set_seed(args.seed)
    try:
        config = build_config(
            args.model_type,
            vocab_size=len(tokenizer),
            max_length=args.max_length,
            num_layers=args.num_layers,
            num_parameters=args.num_parameters,
            embedding_size=args.embedding_size,
            context_size=args.context_size,
            hidden_size=args.hidden_size,
            intermediate_size=args.intermediate_size,
            dropout=args.dropout,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    model = build_model(config)
    model.generation_config.eos_token_id = end_token_ids(tokenizer)
    return model


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
        InputError: the folder holds something else.
        TrainingInterrupted: stopped by hand; the same call continues.
    """
    folder = Path(args.output_dir)
    is_main = args.process_index == 0
    claim_folder(args, prepared, identity)
    if (results := read_results(folder)) is not None:
        if is_main:
            logger.info("This run is finished: loss %.4f. Choose another --output_dir for a new one.", results["loss"])
        return folder
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
        callbacks=[*stoppers, EvaluateAtEnd(), RunLog(args.model_type, columns), interrupt, *timed, *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.resume_or_start()
    finally:
        interrupt.restore()
    if interrupt.interrupted and trainer.state.global_step < trainer.state.max_steps:
        raise TrainingInterrupted(
            f"Stopped at update {trainer.state.global_step} of {trainer.state.max_steps}; everything is saved in "
            f"{folder}. The same command continues from there."
        )
    trainer.save_model(str(folder))
    scored, more = conclude(trainer, folder) if conclude else (trainer.score(prepared.documents), {})
    if is_main:
        metrics = dataclasses.asdict(scored)
        card = (prepared.splits, prepared.model, prepared.tokenizer, metrics, trainer.state, prepared.base)
        write_model_card(folder, args, *card)
        # Last: its presence says that the run is finished.
        write_json(
            folder / RESULTS_FILE,
            {
                **metrics,
                **more,
                "parameters": prepared.model.num_parameters(),
                "updates": trainer.state.global_step,
            },
        )
        for line in (advice({**metrics, **more}), f"Finished: everything is in {folder}."):
            if line:
                logger.info("%s", line)
    return folder


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
