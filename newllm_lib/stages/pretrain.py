"""Stage 1: train New-LLM, or a baseline of the same size, from scratch on text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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

    data_source: Literal["auto", "hub", "offline", "file", "random"] = setting(
        "auto", "Where the text comes from; auto: --data, the hub or the offline package; random: by chance.", "Data"
    )
    stride: int | None = setting(None, "Tokens from the beginning of a row to that of the next; none: max_length.")
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
        if self.stride is not None and (self.carry_context or self.max_length % self.stride):
            raise InputError(
                f"stride {self.stride} has to divide max_length {self.max_length}, without --carry_context: rows that "
                "overlap do not follow each other."
            )

    def updates(self, rows: int) -> int:
        lanes = min(self.effective_batch_size, rows)  # where the context is carried, every update takes a row of each
        is_carried = self.carry_context and self.model_type != "tiny-gpt2"
        return super().updates(rows // lanes * lanes if is_carried else rows)


# Recipes of the published numbers: perplexity 20.4 on WikiText-2, with four layers 20.1; 21.4 on random sentences.
PUBLISHED: dict[str, Any] = {
    "model_type": "newllm-reference", "num_layers": 1, "tokenizer": "word", "vocab_size": 1000, "max_length": 64,
    "stride": 32, "carry_context": False, "dropout": 0.1, "learning_rate": 8e-4, "lr_scheduler_type": "constant",
    "warmup_steps": 0, "weight_decay": 0.0, "per_device_train_batch_size": 128, "gradient_accumulation_steps": 16,
    "num_train_epochs": 150.0, "eval_strategy": "epoch", "save_strategy": "epoch",
}  # fmt: skip
# With --data_source random. Five rows are the sixteen sentences of a published update.
OF_SENTENCES: dict[str, Any] = {
    "num_layers": 9, "context_size": 512, "embedding_size": 256, "hidden_size": 512, "vocab_size": None,
    "max_length": 32, "stride": None, "learning_rate": 1e-4, "per_device_train_batch_size": 5,
    "gradient_accumulation_steps": 1, "num_train_epochs": 50.0,
}  # fmt: skip
# Named sets of values.
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
    "published": PUBLISHED,
    "published-4-layers": {**PUBLISHED, "num_layers": 4},
    "published-random": {**PUBLISHED, **OF_SENTENCES},
}  # fmt: skip
PretrainArguments.presets = PRESETS


def prepare(args: PretrainArguments) -> PreparedRun:
    """Load the text, build or load the tokenizer, pack the rows and initialise the model; trains nothing. Raises
    InputError: anything about the input that would fail later."""
    check_size(args)
    splits = load_text(args.data_source, args.data, args.eval_data, args.skip_bad_rows, test_data=args.test_data)
    tokenizer = build_tokenizer(args.tokenizer, splits.train.strings(), args.vocab_size, splits.train.identity)
    train_rows, train_counts = packed_rows(splits.train, tokenizer, args.max_length, args.stride)
    sides = {"eval_data": splits.validation, "test_data": splits.test}
    found = {name: evaluation_documents(side, tokenizer) for name, side in sides.items() if side is not None}
    for name, documents in found.items():
        if not documents.documents:
            raise InputError(f"{documents.origin} holds no tokens to evaluate on; give another --{name}.", "NL-403")
    documents, test = found["eval_data"], found.get("test_data")
    check_metric_of(args, documents)
    return PreparedRun(splits, tokenizer, train_rows, train_counts, documents, new_model(args, tokenizer), test=test)


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
            run.finish(trainer.scores(prepared.reported))
    return run.folder
