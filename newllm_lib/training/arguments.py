"""Settings that every training stage shares. One dataclass is the command's flags, the notebook's sliders and the
run's saved settings."""

import dataclasses
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Literal

import torch
from transformers import TrainingArguments

from ..errors import InputError
from . import trainer_fields
from .device import Device, choose_precision, find_device

logger = logging.getLogger(__name__)

# Keys of a setting's metadata beside its help text.
SETTING_KEYS = ("group", "low", "high", "log", "session")


def setting(
    default: Any,
    help: str,
    group: str = "",
    low: float | None = None,
    high: float | None = None,
    *,
    log: bool = False,
    session: bool = False,
) -> Any:
    """A dataclass field with a help text, the group of settings it is shown in and, where it has one, the range of its
    slider.

    Args:
        log: the slider has powers of two or ten between.
        session: the value may change when a run is continued.
    """
    metadata = {"help": help, "group": group, "session": session}
    if low is not None:
        metadata |= {"low": low, "high": high, "log": log}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass
class StageArguments(TrainingArguments):
    """transformers' `TrainingArguments` with our defaults, and the fields every stage adds. A stage that gives a field
    again has its own default and its own slider.

    Raises (on construction):
        InputError: a value that no run could use.
    """

    # Name of a metric -> True if more of it is better. The share of unknown tokens is no metric of a model.
    metrics: ClassVar[dict[str, bool]] = {
        "loss": False, "perplexity": False, "token_accuracy": True, "bits_per_byte": False, "word_perplexity": False
    }  # fmt: skip
    refused: ClassVar[dict[str, str]] = trainer_fields.REFUSED

    data: str | None = setting(
        None, "Your own text: a .txt, .jsonl, .json, .csv or .parquet file.", group="Data", session=True
    )
    eval_data: str | None = setting(
        None, "Text to evaluate on; none: 5 %% of --data are held out.", group="Data", session=True
    )
    data_source: Literal["auto", "hub", "offline", "file"] = setting(
        "auto", "Where the text comes from; auto takes --data, else the hub, else the offline package.", group="Data"
    )
    skip_bad_rows: bool = setting(False, "Leave out rows that do not fit, and count them.", group="Data")
    max_length: int = setting(
        64, "Tokens per row: how far gradients reach back, and the window of a model with attention.", group="Data",
        low=16, high=1024, log=True,
    )  # fmt: skip
    max_eval_tokens: int = setting(
        50_000, "Held-out tokens (whole documents) scored at each evaluation; the final score takes all.", group="Data"
    )
    early_stopping_patience: int = setting(
        0, "Stop after this many evaluations without a better one; 0: never.", group="Training", low=0, high=20
    )
    bf16: bool | None = setting(None, "bf16 arithmetic, fp32 weights; none: where GPU or CPU can do it; false: not.")
    fp16: bool | None = setting(None, "fp16 arithmetic with a loss scaler; none: on a GPU without bf16; false: not.")
    auto_precision: bool = setting(True, "Without --fp16 or --bf16: choose by what GPU or CPU can do.", session=True)
    preset: str | None = setting(None, "Named values for other fields; fields given by name win.", session=True)

    output_dir: str = setting("runs/pretrain", "Folder of the run: settings, model, checkpoints, curves.")
    learning_rate: float = setting(
        3e-3, "Peak learning rate of AdamW.", group="Training", low=1e-5, high=1e-2, log=True
    )
    num_train_epochs: float = setting(3.0, "Passes over the text.", group="Training", low=1, high=50)
    per_device_train_batch_size: int = setting(
        32, "Rows per forward pass and device.", group="Training", low=1, high=512, log=True
    )
    gradient_accumulation_steps: int = setting(1, "Forward passes per update.", group="Training", low=1, high=64)
    per_device_eval_batch_size: int = setting(32, "Rows per forward pass in evaluation.")
    lr_scheduler_type: str = setting("cosine", "How the learning rate changes over the run.", group="Training")
    warmup_steps: float = setting(
        0.05, "Updates (or, below 1, share of them) to raise the learning rate.", group="Training", low=0, high=0.5
    )
    weight_decay: float = setting(0.1, "AdamW's weight decay.", group="Training", low=0, high=1.0)
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this norm.")
    seed: int = setting(42, "Seed of initialisation, data order and dropout.", group="Training", low=0, high=999)
    eval_strategy: str = setting("steps", "When to evaluate: no, steps or epoch.")
    eval_steps: float = setting(0.1, "Updates (or, below 1, share of the run) between evaluations.")
    save_strategy: str = setting("steps", "When to save a checkpoint: no, steps, epoch or best.")
    save_steps: float = setting(0.1, "Updates (or, below 1, share of the run) between checkpoints.")
    save_minutes: float = setting(10.0, "Minutes without a save until the next one; 0: by steps alone.", session=True)
    save_total_limit: int | None = setting(3, "Checkpoints kept: the best and the newest.")
    logging_steps: float = setting(10, "Updates (or, below 1, share of the run) between lines of the metrics log.")
    load_best_model_at_end: bool = setting(True, "Keep the best checkpoint's weights as the result.")
    metric_for_best_model: str | None = setting("loss", "Held-out metric that decides which checkpoint is best.")
    restore_callback_states_from_checkpoint: bool = setting(True, "Early stopping counts on after a resume.")
    ddp_find_unused_parameters: bool | None = setting(False, "Every parameter that is trained takes part.")
    log_level_replica: str = setting("error", "What libraries say on all processes but the first.")
    report_to: str | None = setting("none", "Experiment trackers of transformers' Trainer, for example tensorboard.")
    include_num_input_tokens_seen: Literal["no", "all", "non_padding"] = setting("no", "Tokens to count in the log.")
    disable_tqdm: bool | None = setting(True, "No progress bar: the log has one line per evaluation.")
    remove_unused_columns: bool | None = setting(False, "Our rows hold no unused columns.")
    dataloader_pin_memory: bool = setting(False, "Pin host memory; set by itself on a GPU.")

    def __post_init__(self):
        trainer_fields.check_numbers(self)
        trainer_fields.check_refused(self, self.refused)
        device = find_device(self.use_cpu)
        self.dataloader_pin_memory |= device.kind == "cuda"
        self.auto_precision &= self.bf16 is None and self.fp16 is None
        precision = self.precision_on(device) if self.auto_precision else ""
        self.bf16, self.fp16 = bool(self.bf16) or precision == "bf16", bool(self.fp16) or precision == "fp16"
        if self.fp16 and device.kind != "cuda":
            raise InputError(f"fp16 needs an NVIDIA GPU, and this run is on the {device.name}; leave it out.")
        # Otherwise transformers takes bf16 for a GPU's, and each of several processes thinks it is the only one.
        self.use_cpu |= device.kind == "cpu"
        trainer_fields.check_best_metric(self, self.metrics)
        remarks = trainer_fields.without_effect(self)
        with trainer_fields.as_sentence():
            super().__post_init__()
        trainer_fields.check_libraries(self)
        for sentence in remarks if self.process_index == 0 else ():
            logger.warning("%s", sentence)
        if self.n_gpu > 1:  # torch's DataParallel knows no context to carry; more GPUs: accelerate launch
            self._n_gpu = 1

    def precision_on(self, device: Device) -> str:
        """fp32, fp16 or bf16, where the user has not chosen."""
        return choose_precision(device)[0]

    @property
    def device(self) -> torch.device:
        """transformers' own; a CPU has no number, for torch cannot load a checkpoint onto "cpu:0"."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def effective_batch_size(self) -> int:
        """Rows per update, over all devices and accumulation steps."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * max(self.world_size, 1)

    def updates(self, rows: int) -> int:
        """How many the run makes over so many rows an epoch; the last one of an epoch may be smaller."""
        per_epoch = -(-rows // self.effective_batch_size)
        return self.max_steps if self.max_steps > 0 else math.ceil(self.num_train_epochs * per_epoch)

    def run_settings(self) -> dict[str, Any]:
        """What makes this run this run, as plain JSON values: every field but those of the session."""
        return {**self._plain_values(session=False), "effective_batch_size": self.effective_batch_size}

    def session_settings(self) -> dict[str, Any]:
        """The fields that may change when the run is continued, as plain JSON values; never a token."""
        return self._plain_values(session=True)

    def _plain_values(self, session: bool) -> dict[str, Any]:
        # A stage that gives a field another default does not say again that it is a session's.
        classes = [kind for kind in type(self).__mro__ if issubclass(kind, TrainingArguments)]
        known = [field for kind in classes for field in dataclasses.fields(kind)]
        of_sessions = {field.name for field in known if field.metadata.get("session")}
        of_sessions |= trainer_fields.SESSION_FIELDS
        names = [field.name for field in dataclasses.fields(self) if field.init]
        names = [name for name in names if name not in self.refused and name not in trainer_fields.NO_EFFECT]
        values = {name: getattr(self, name) for name in names if (name in of_sessions) == session}
        values = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
        return {name: value for name, value in values.items() if isinstance(value, str | int | float | None)}


@dataclass
class ModelArguments(StageArguments):
    """The settings of a model that is made from scratch, with its tokenizer."""

    model_type: Literal["newllm", "newllm-reference", "tiny-gpt2", "lstm"] = setting(
        "newllm", "New-LLM, its cell as published, or a baseline.", group="Model"
    )
    num_parameters: int | None = setting(
        None, "Solve the model's width for this many parameters.", group="Model", low=500_000, high=50_000_000, log=True
    )
    num_layers: int | None = setting(None, "Layers; none: as many as suit the size.", group="Model", low=1, high=12)
    embedding_size: int | None = setting(None, "Width of a token embedding (newllm-reference).", group="Model")
    context_size: int | None = setting(None, "Width of a layer's context.", group="Model")
    hidden_size: int | None = setting(None, "Width of the layers.", group="Model")
    intermediate_size: int | None = setting(None, "Width of the layers' MLPs (newllm).", group="Model")
    dropout: float = setting(
        0.1, "Share of hidden units dropped in training; more for many epochs.", group="Model", low=0.0, high=0.5
    )
    tokenizer: Literal["bpe", "byte", "word", "gpt2"] = setting(
        "bpe", "bpe: learned pieces; byte: any language; word: published setting; gpt2: GPT-2's.", group="Data"
    )
    teacher: str | None = setting(
        None, "Folder of a larger model with the same tokenizer to learn from, too.", session=True
    )
    teacher_weight: float = setting(0.5, "With --teacher: its share of the loss.")
    teacher_temperature: float = setting(2.0, "With --teacher: how much both distributions are softened.")
    vocab_size: int | None = setting(
        None, "Token types; none: up to 4,096 (bpe) or 1,000 (word).", group="Data", low=512, high=16384, log=True
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.teacher_weight <= 1:
            raise InputError(f"teacher_weight has to lie in [0, 1], got {self.teacher_weight}.")


def values_for(kind: type, args: TrainingArguments) -> dict[str, Any]:
    """The fields of the dataclass `kind` as `args` has them, but for those that cannot be set."""
    unset = {**trainer_fields.REFUSED, **trainer_fields.NO_EFFECT}
    names = [field.name for field in dataclasses.fields(kind) if field.init and field.name not in unset]
    return {name: getattr(args, name) for name in names}


def check_intervals(args: StageArguments, intervals: Iterable[tuple[str, float, float]]) -> None:
    """Raise InputError for a field outside of its (name, lowest, highest) value."""
    for name, low, high in intervals:
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"{name} has to lie in [{low}, {high}], got {value}.")
