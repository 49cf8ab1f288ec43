"""Stages 2 to 4: teach a pretrained model, or a new one, to talk: conversations and instructions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, TrainerCallback

from ..data.chat_template import ConversationFormat, learnable_template
from ..data.conversations import (
    Conversations,
    conversation_documents,
    conversation_rows,
    learned_tokenizer,
    load_conversations,
)
from ..data.sources import HELD_OUT_SHARE, Splits
from ..errors import InputError
from ..models.adjust import extend_positions, grow_context, set_dropout, train_new_context_only
from ..models.modeling_newllm import NewLLMForCausalLM
from ..models.sizing import ALL_SIZES
from ..training.arguments import ModelArguments, StageArguments, setting
from ..training.checkpoint import has_adapters
from ..training.run import PreparedRun, check_metric_of, check_size, new_model, opened_run, prepare_once
from ..training.trained_model import open_model, open_teacher, weights_hash
from ..training.trainer import LanguageModelTrainer

# What a finished model brings along, so that it cannot be set beside `model`.
OF_THE_MODEL = ("num_parameters", "num_layers", *sorted(ALL_SIZES), "vocab_size")


@dataclass
class ConversationArguments(StageArguments):
    """What a stage that learns from conversations takes of them."""

    dataset: str | None = setting(
        None, "Which conversations: newllm data lists them, and a command takes any id on the hub, too.", "Data"
    )
    mix: str | None = setting(
        None, "A second dataset between the rows of the first, and its share of all: codealpaca:0.2.", "Data"
    )
    max_samples: int | None = setting(
        None, "Rows of the data to take, the first ones.", "Data", low=1_000, high=1_500_000, log=True
    )
    held_out: Literal["hash", "random"] = setting(
        "hash", "Held out by what a conversation says, or drawn at random as in the published runs."
    )
    held_out_share: float = setting(HELD_OUT_SHARE, "Share held out where the data have no validation split.")
    loss_on: Literal["assistant", "all"] = setting(
        "assistant", "Learn the assistant's words only, or every token.", "Training"
    )
    too_long: Literal["turns", "cut"] = setting("turns", "Keep whole turns of a long conversation, or cut it.")

    def load_conversations(self) -> Splits[Conversations]:
        """The conversations these settings name. Raises InputError: bad file or row, unknown dataset or source, or data
        out of reach."""
        source = self.dataset, self.data_source, self.data, self.eval_data, self.skip_bad_rows
        held_out = self.held_out, self.held_out_share, self.max_samples, self.test_data, self.mix
        return load_conversations(*source, *held_out)


@dataclass
class SftArguments(ConversationArguments, ModelArguments):
    """Settings of stages 2 to 4."""

    model: str | None = setting(
        None, "Folder of a finished run to start from; none: a new model.", "Model", session=True
    )
    grow_context: int | None = setting(None, "Enlarge the context_size of New-LLM to this.")
    train_only_new_context: bool = setting(False, "After growing: train nothing but the new part.")

    max_length: int = setting(
        256, "Tokens per row; longer conversations lose their last turns.", "Data", low=64, high=1024, log=True
    )
    output_dir: str = setting("runs/sft", "Folder of the run: settings, model, checkpoints, curves.")
    learning_rate: float = setting(2e-3, "Peak learning rate.", "Training", low=1e-5, high=1e-2, log=True)

    def __post_init__(self):
        super().__post_init__()
        if self.model is not None:
            if given := [name for name in OF_THE_MODEL if getattr(self, name) is not None]:
                raise InputError(f"{given[0]} cannot be set with --model, which brings its own; leave it out.")
        elif self.grow_context is not None:
            raise InputError("grow_context needs a trained model to start from; add --model.")
        if self.train_only_new_context:
            if self.grow_context is None:
                raise InputError("train_only_new_context needs a context that grows; add --grow_context.")
            self.weight_decay = 0.0  # it would move the weights that are to stay


# Dataset -> the published bands of its perplexity: below the first it is excellent (good, if both are one), up to the
# last it is good; and what to do below, between and above.
MORE = "take more --num_train_epochs, half the --learning_rate, or more --num_layers"
BANDS = {
    "dolly": (17, 17, "go on with --dataset hh-rlhf", "", MORE),
    "hh-rlhf": (18, 21, "go on with --dataset ultrachat",
                "go on with --dataset ultrachat, or try again with more --num_layers", MORE),
    "ultrachat": (19, 24, "go on with --dataset codealpaca", "train on the full data, --dataset ultrachat-full",
                  "take more --max_samples, or more --num_layers"),
    "codealpaca": (32, 32, "the ladder ends here", "", MORE),
}  # fmt: skip
# Named sets of values. `published` is the recipe of the published Dolly numbers; others name their dataset. All have
# a vocabulary of 996 words and three special tokens.
PUBLISHED: dict[str, Any] = {
    "dataset": "dolly", "model_type": "newllm-reference", "tokenizer": "word", "vocab_size": 999, "max_length": 128,
    "loss_on": "all", "too_long": "cut", "held_out": "random", "held_out_share": 0.1, "learning_rate": 8e-4,
    "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "per_device_train_batch_size": 128,
    "gradient_accumulation_steps": 16, "num_train_epochs": 100.0, "eval_strategy": "epoch", "save_strategy": "epoch",
    "early_stopping_patience": 20,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"max_steps": 20, "max_samples": 400, "max_eval_tokens": 2_000, "logging_steps": 2},
    "demo": {"max_steps": 150, "max_eval_tokens": 10_000},
    "quick": {"max_steps": 800},
    "standard": {"num_train_epochs": 5.0, "weight_decay": 0.4},
    "long": {"num_train_epochs": 15.0, "weight_decay": 0.4, "dropout": 0.2, "early_stopping_patience": 5},
    "published": PUBLISHED,
    "published-hh-rlhf": {**PUBLISHED, "dataset": "hh-rlhf"},
    "published-ultrachat": {**PUBLISHED, "dataset": "ultrachat", "num_train_epochs": 50.0},
    "published-dailydialog": {  # goes on from the model that has learned WikiText
        **PUBLISHED, "dataset": "dailydialog", "max_length": 64, "learning_rate": 5e-5, "num_train_epochs": 50.0,
        "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "early_stopping_patience": 10,
    },
}  # fmt: skip
SftArguments.presets = PRESETS


def prepare(args: SftArguments) -> PreparedRun:
    """Load the conversations and the model, or make one with its tokenizer, and pack the rows; trains nothing. Raises
    InputError: anything about the input that would fail later."""
    if args.model is None:
        check_size(args)
    splits = args.load_conversations()
    start, replaced = None if args.model is None else open_model(args.model), ""
    if start is not None and has_adapters(start.folder):
        remedy = "write a whole model with newllm export --format merged and name that"
        raise InputError(f"model {args.model!r} holds adapters, which sft does not train; {remedy}.")
    if start is None:
        tokenizer = learned_tokenizer(splits.train, splits.template, args.tokenizer, args.vocab_size)
    else:
        tokenizer = start.tokenizer
        args.model_type, args.tokenizer = start.name, start.run.get("tokenizer", "its own")
        tokenizer.chat_template, replaced = learnable_template(tokenizer, splits.template)
    form = ConversationFormat(args.max_length, args.loss_on, args.too_long)
    train_rows, counts = conversation_rows(splits.train, tokenizer, form)
    documents = conversation_documents(splits.validation, tokenizer, form)
    check_metric_of(args, documents)
    test = None if splits.test is None else conversation_documents(splits.test, tokenizer, form)
    model = new_model(args, tokenizer) if start is None else _adjusted(start.model.cpu(), args)
    remarks = tuple(filter(None, [replaced, *counts.remarks(args.max_length)]))
    return PreparedRun(splits, tokenizer, train_rows, counts, documents, model, remarks, test=test)


def _adjusted(model: PreTrainedModel, args: SftArguments) -> PreTrainedModel:
    """The model to start from as the settings want it."""
    grows = args.grow_context is not None
    if grows and not isinstance(model, NewLLMForCausalLM):
        raise InputError(f"grow_context is for New-LLM; {args.model!r} is a {args.model_type}.")
    old = model.config.context_size if grows else None
    try:
        set_dropout(model, args.dropout)
        extend_positions(model, args.max_length)
        if grows:
            grow_context(model, args.grow_context)
    except ValueError as error:
        raise InputError(str(error).replace("context_size", "grow_context", 1)) from error
    if args.train_only_new_context:
        train_new_context_only(model, old)
    return model


def sft(args: SftArguments, callbacks: tuple[TrainerCallback, ...] = ()) -> Path:
    """Train one model on conversations, or go on with the run that `args.output_dir` holds. Returns the run folder: the
    best model with its tokenizer and chat template, settings, metrics log, curves, model card. Raises InputError: bad
    input, before any long work; TrainingInterrupted: stopped by hand, and the same call continues."""
    prepared = prepare_once(args, prepare)
    teacher, weights = open_teacher(args, prepared.tokenizer)
    identity = {"stage": "sft", "start": None if args.model is None else weights_hash(args.model), **weights}
    with opened_run(args, prepared, identity) as run:
        if not run.is_finished:
            parts = prepared.model, args, prepared.train_rows, prepared.held_out, prepared.tokenizer
            ours = run.callbacks(callbacks)
            trainer = LanguageModelTrainer(*parts, carry_context=False, teacher=teacher, callbacks=ours)
            run.train(trainer)
            metrics = trainer.scores(prepared.reported)
            said = advice({**args.run_settings(), "text_source": prepared.splits.source}, metrics)
            run.finish(metrics, advice=f"{said} Talk to it: newllm chat {args.output_dir}")
    return run.folder


def advice(run: dict[str, Any], metrics: dict[str, Any]) -> str:
    """How good the model of the run with these settings is, and what to do next. The published bands hold in the
    published setting: a thousand words, every token scored."""
    value, bands = metrics["perplexity"], BANDS.get((run["dataset"] or "").removesuffix("-full"))
    perplexity = f"Perplexity {value:.1f}"
    if run["text_source"] != "hub" or run.get("mix"):
        bands = None  # they are of the dataset itself
    if bands is not None and run["tokenizer"] == "word" and run["loss_on"] == "all":
        first, last, below, between, above = bands
        if value < first:
            return f"{perplexity} is {'excellent' if first < last else 'good'} (below {first}): {below}."
        if value <= last and first < last:
            return f"{perplexity} is good ({first} to {last}): {between}."
        return f"{perplexity} is above {last}: {above}."
    if metrics["bits_per_byte"] is None:
        unknown = f"{metrics['unk_rate']:.0%} unknown words"
        said = f"{perplexity} with {unknown}: comparable only to runs with the same words."
    else:
        quality = f"{metrics['bits_per_byte']:.3f} bits per byte of the answers ({perplexity.lower()} per token)"
        said = f"{quality}; lower is better, and more data or epochs lower it."
    if bands is not None:
        said += f" The band of {run['dataset']}, {bands[1]}, is one of a thousand words with every token scored."
    return said
