"""Stage 1: train New-LLM, or a baseline of the same size, from scratch on text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..data.text import evaluation_documents, load_text, packed_rows
from ..data.tokenizer import build_tokenizer
from ..errors import InputError
from ..training.arguments import ModelArguments, setting
from ..training.run import PreparedRun, check_metric_of, check_size, new_model, opened_run, prepare_once
from ..training.trained_model import open_teacher
from ..training.trainer import LanguageModelTrainer

# The best of each model's sweep, docs/RESULTS.md: by model, and every other model's.
LEARNING_RATES, LEARNING_RATE = {"newllm": 5e-3, "lstm": 6e-3}, 3e-3


@dataclass
class PretrainArguments(ModelArguments):
    """Settings of stage 1."""

    carry_context: bool = setting(
        True, "Hand the context from batch to batch over contiguous text (recurrent models).", "Model"
    )
    learning_rate: float | None = setting(
        None, "Peak learning rate of AdamW; none: what suits the model.", "Training", low=1e-5, high=1e-2, log=True
    )
    dropout: float = setting(
        0.0, "Share of hidden units dropped in training; more for many epochs.", "Model", low=0.0, high=0.5
    )
    weight_decay: float = setting(0.4, "AdamW's weight decay; 0.1 for a single pass.", "Training", low=0, high=1.0)

    def __post_init__(self):
        if self.learning_rate is None:
            self.learning_rate = LEARNING_RATES.get(self.model_type, LEARNING_RATE)
        super().__post_init__()

    def updates(self, rows: int) -> int:
        lanes = min(self.effective_batch_size, rows)  # where the context is carried, every update takes a row of each
        is_carried = self.carry_context and self.model_type != "tiny-gpt2"
        return super().updates(rows // lanes * lanes if is_carried else rows)


# Named sets of values. `published` is the recipe of the published numbers, for `newllm-reference`.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "max_steps": 20, "weight_decay": 0.1, "vocab_size": 512, "num_parameters": 500_000, "max_eval_tokens": 5_000,
        "logging_steps": 2,
    },
    "demo": {
        "max_steps": 300, "weight_decay": 0.1, "vocab_size": 1024, "num_parameters": 1_000_000,
        "max_eval_tokens": 20_000,
    },
    "quick": {"max_steps": 800, "weight_decay": 0.1, "vocab_size": 2048},
    "standard": {"num_train_epochs": 5.0},
    "long": {
        "num_train_epochs": 20.0, "num_parameters": 8_000_000, "weight_decay": 0.8, "dropout": 0.2,
        "early_stopping_patience": 5,
    },
    "published": {
        "learning_rate": 8e-4, "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "dropout": 0.1,
        "max_length": 128, "carry_context": False,
    },
}  # fmt: skip


def prepare(args: PretrainArguments) -> PreparedRun:
    """Load the text, build or load the tokenizer, pack the rows and initialise the model; trains nothing. Raises
    InputError: anything about the input that would fail later."""
    check_size(args)
    splits = load_text(args.data_source, args.data, args.eval_data, args.skip_bad_rows)
    tokenizer = build_tokenizer(args.tokenizer, splits.train.strings(), args.vocab_size, splits.train.identity)
    train_rows, train_counts = packed_rows(splits.train, tokenizer, args.max_length)
    documents = evaluation_documents(splits.validation, tokenizer)
    if not documents.documents:
        what = f"{splits.validation.origin} holds no tokens to evaluate on"
        raise InputError(f"{what}; give another --eval_data.", "NL-403")
    check_metric_of(args, documents)
    return PreparedRun(splits, tokenizer, train_rows, train_counts, documents, new_model(args, tokenizer))


def pretrain(args: PretrainArguments, callbacks: tuple[TrainerCallback, ...] = ()) -> Path:
    """Train one model, or go on with the run that `args.output_dir` holds. Returns the run folder: the best model with
    its tokenizer, settings, metrics log, curves and model card. Raises InputError: bad input, before any long work;
    TrainingInterrupted: stopped by hand, and the same call continues."""
    prepared = prepare_once(args, prepare)
    teacher, weights = open_teacher(args, prepared.tokenizer)
    identity = {"stage": "pretrain", **weights}
    with opened_run(args, prepared, identity) as run:
        if not run.is_finished:
            parts = prepared.model, args, prepared.train_rows, prepared.held_out, prepared.tokenizer
            ours = run.callbacks(callbacks)
            trainer = LanguageModelTrainer(*parts, carry_context=args.carry_context, teacher=teacher, callbacks=ours)
            run.train(trainer)
            run.finish(trainer.scores(prepared.held_out))
    return run.folder
