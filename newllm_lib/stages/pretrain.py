"""Stage 1: train New-LLM, or a baseline of the same size, from scratch on text."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, set_seed

from ..data.batches import EvaluationDocuments, TextCounts, evaluation_documents, packed_rows
from ..data.catalogue import TextSplits, load_text
from ..data.tokenizer import build_tokenizer
from ..errors import InputError
from ..models import build_config, build_model
from ..training.arguments import StageArguments, setting
from ..training.checkpoint import RESULTS_FILE, open_run, read_results, write_json
from ..training.model_card import write_model_card
from ..training.report import RunLog, SaveOnInterrupt, TrainingInterrupted
from ..training.trainer import LanguageModelTrainer, count_training_tokens

logger = logging.getLogger(__name__)


@dataclass
class PretrainArguments(StageArguments):
    """Settings of stage 1."""

    model_type: Literal["newllm", "newllm-reference", "tiny-gpt2", "lstm"] = setting(
        "newllm", "New-LLM, its cell as published, or a baseline.", group="Model"
    )
    num_parameters: int | None = setting(
        None,
        "Solve the model's width for this many parameters.",
        group="Model",
        low=500_000,
        high=50_000_000,
        log=True,
    )
    num_layers: int | None = setting(None, "Hidden layers (tiny-gpt2: blocks).", group="Model", low=1, high=6)
    embedding_size: int | None = setting(None, "Width of a token embedding.", group="Model")
    context_size: int | None = setting(None, "Width of the context vector.", group="Model")
    hidden_size: int | None = setting(None, "Width of the hidden layers.", group="Model")
    dropout: float = setting(
        0.1, "Share of hidden units dropped in training; more for many epochs.", group="Model", low=0.0, high=0.5
    )
    carry_context: bool = setting(
        True, "Hand the context from batch to batch over contiguous text (recurrent models).", group="Model"
    )
    tokenizer: Literal["bpe", "byte", "word", "gpt2"] = setting(
        "bpe",
        "bpe: learned pieces; byte: any language; word: published setting; gpt2: GPT-2's.",
        group="Data",
    )
    vocab_size: int | None = setting(
        None,
        "Token types; none: up to 4,096 (bpe) or 1,000 (word).",
        group="Data",
        low=512,
        high=16384,
        log=True,
    )


# Named sets of values. `published` is the recipe of the published numbers, for `newllm-reference`.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "max_steps": 20,
        "vocab_size": 512,
        "num_parameters": 500_000,
        "max_eval_tokens": 5_000,
        "logging_steps": 2,
    },
    "demo": {"max_steps": 300, "vocab_size": 1024, "num_parameters": 1_000_000, "max_eval_tokens": 20_000},
    "quick": {"max_steps": 800, "vocab_size": 2048},
    "standard": {"num_train_epochs": 5.0},
    "long": {
        "num_train_epochs": 20.0,
        "num_parameters": 8_000_000,
        "dropout": 0.2,
        "early_stopping_patience": 5,
    },
    "published": {
        "learning_rate": 8e-4,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_length": 128,
        "carry_context": False,
    },
}


@dataclass(frozen=True)
class PreparedRun:
    """All that is known before training starts."""

    splits: TextSplits
    tokenizer: Any
    train_rows: Any
    train_counts: TextCounts
    documents: EvaluationDocuments
    model: Any


def prepare(args: PretrainArguments) -> PreparedRun:
    """Load the text, build or load the tokenizer, pack the rows and initialise the model; trains nothing.

    Raises:
        InputError: anything about the input that would fail later.
    """
    splits = load_text(args.data_source, args.data, args.eval_data, args.skip_bad_rows)
    tokenizer = build_tokenizer(args.tokenizer, splits.train.strings(), args.vocab_size, splits.train.identity)
    train_rows, train_counts = packed_rows(splits.train, tokenizer, args.max_length)
    documents = evaluation_documents(splits.validation, tokenizer)
    if not documents.documents:
        raise InputError(f"{splits.validation.origin} holds no tokens to evaluate on; give another --eval_data.")
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
            dropout=args.dropout,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    return PreparedRun(splits, tokenizer, train_rows, train_counts, documents, build_model(config))


def pretrain(args: PretrainArguments, callbacks: tuple[TrainerCallback, ...] = ()) -> Path:
    """Train one model, or go on with the run that `args.output_dir` holds.

    Returns:
        The run folder: the best model with its tokenizer, settings, metrics log, curves and model card.

    Raises:
        InputError: bad input, before any long work.
        TrainingInterrupted: stopped by hand; the same call continues.
    """
    folder = Path(args.output_dir)
    prepared = prepare(args)
    identity = {
        "stage": "pretrain",
        "text_source": prepared.splits.source,
        "train_text": prepared.splits.train.identity,
        "validation_text": prepared.splits.validation.identity,
    }
    open_run(folder, {**identity, **args.run_settings()}, args.session_settings())
    if (results := read_results(folder)) is not None:
        logger.info("This run is finished: loss %.4f. Choose another --output_dir for a new one.", results["loss"])
        return folder
    model = prepared.model
    steps, tokens = count_training_tokens(args, len(prepared.train_rows))
    for line in (
        prepared.splits.note,
        f"Text: {prepared.splits.train.origin}; held out: {prepared.documents.origin}.",
    ):
        if line:
            logger.info("%s", line)
    logger.info(
        "%s: %s parameters, %s tokens of text, %d updates over %s tokens, on %s.",
        args.model_type,
        f"{model.num_parameters():,}",
        f"{prepared.train_counts.tokens:,}",
        steps,
        f"{tokens:,}",
        args.device,
    )
    if prepared.train_counts.unknown_tokens:
        share = prepared.train_counts.unknown_tokens / prepared.train_counts.tokens
        logger.info("%.1f %% of the training tokens are <unk>: perplexity is flattered by as much.", 100 * share)

    interrupt = SaveOnInterrupt()
    stoppers = [EarlyStoppingCallback(args.early_stopping_patience)] if args.early_stopping_patience else []
    trainer = LanguageModelTrainer(
        model,
        args,
        prepared.train_rows,
        prepared.documents,
        prepared.tokenizer,
        carry_context=args.carry_context,
        callbacks=[*stoppers, RunLog(args.model_type), interrupt, *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.resume_or_start()
    finally:
        interrupt.restore()
    if interrupt.interrupted:
        raise TrainingInterrupted(
            f"Stopped at update {trainer.state.global_step} of {trainer.state.max_steps}; everything is saved in "
            f"{folder}. The same command continues from there."
        )
    trainer.save_model(str(folder))
    metrics = dataclasses.asdict(trainer.score(prepared.documents))
    if trainer.is_world_process_zero():
        write_model_card(folder, args, prepared.splits, model, metrics, trainer.state)
        # Last: its presence says that the run is finished.
        write_json(
            folder / RESULTS_FILE,
            {**metrics, "parameters": model.num_parameters(), "updates": trainer.state.global_step},
        )
        logger.info("Finished: everything is in %s.", folder)
    return folder
