"""What of transformers' `TrainingArguments` is otherwise here. A test holds that every field works, is refused with a
sentence, or says that it has no effect."""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import torch
from transformers import Trainer, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.optimization import get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import SchedulerType

from ..data.text import EvaluationDocuments
from ..errors import InputError

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
    **dict.fromkeys(
        ("bf16_full_eval", "fp16_full_eval"),
        "every figure is taken with the weights as they are, so that two runs can be compared",
    ),
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push",
         "hub_revision"),
        "publish the finished folder instead: hf upload NAME FOLDER, or the notebook's last cell",
    ),
    **dict.fromkeys(
        ("data_seed", "train_sampling_strategy", "length_column_name", "dataloader_in_order", "accelerator_config"),
        "each stage has its own order of rows, which a run that goes on finds again; --seed decides it",
    ),
    **dict.fromkeys(
        ("parallelism_config", "fsdp", "fsdp_config", "deepspeed"),
        "several GPUs share a run under torchrun or accelerate launch, each with the whole model",
    ),
    **dict.fromkeys(
        ("use_liger_kernel", "liger_kernel_config"),
        "the loss is taken in pieces already, and by the models' own code",
    ),
}  # fmt: skip
# Field -> why it changes nothing.
NO_EFFECT = {
    "do_train": "the command trains",
    "do_predict": "newllm evaluate scores a finished run",
    "local_rank": "torchrun and accelerate launch say it by themselves",
    "use_cache": "training keeps no cache, and generation always does",
    **dict.fromkeys(
        ("prediction_loss_only", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object",
         "include_for_metrics", "batch_eval_metrics", "label_names"),
        "evaluation is our own: every token is scored once, and no logits are kept",
    ),
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

LEAST = {  # of the others 0, but for those that have to be more
    "max_length": 2, "max_steps": -1, "local_rank": -1,
    **dict.fromkeys((
        "max_eval_tokens", "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size",
        "save_total_limit", "ddp_timeout", "num_parameters", "num_layers", "embedding_size", "context_size",
        "hidden_size", "intermediate_size", "vocab_size", "max_samples", "max_test_tokens", "pairs", "trials",
    ), 1),
}  # fmt: skip
MORE_THAN_ZERO = (
    "learning_rate", "logging_steps", "eval_steps", "save_steps", "adam_epsilon", "teacher_temperature", "temperature",
    "temperature_end",
)  # fmt: skip
LESS_THAN = {"adam_beta1": 1, "adam_beta2": 1, "dropout": 1, "lora_dropout": 1, "seed": 2**32, "num_layers": 1001}


def check_refused(args: TrainingArguments, refused: dict[str, str]) -> None:
    """Raise InputError for a value that cannot be used here."""
    for field in fields(args):
        value = getattr(args, field.name) if field.name in refused else None
        if value not in (None, "", field.default, AcceleratorConfig()):  # transformers' own for None
            shown = "" if field.name.endswith("_token") else f" {value}"
            raise InputError(f"{field.name}{shown} cannot be used here: {refused[field.name]}; leave it out.")
    if args.ddp_backend and "WORLD_SIZE" not in os.environ:
        raise InputError(
            f"ddp_backend {args.ddp_backend} is for several processes, which torchrun or accelerate launch starts; "
            "leave it out."
        )


def without_effect(args: TrainingArguments) -> list[str]:
    """A sentence about every value that was set for nothing."""
    ours = (field for field in fields(args) if field.name in NO_EFFECT)
    names = (field.name for field in ours if getattr(args, field.name) not in (None, [], field.default))
    return [f"{name} has no effect here: {NO_EFFECT[name]}." for name in names]


def check_numbers(args: TrainingArguments) -> None:
    """Raise InputError for a number that no run could use: sliders have narrower ranges, which are suggestions."""
    for field in fields(args):
        name, value = field.name, getattr(args, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            raise InputError(f"{name} has to be a finite number, got {value}.")
        least = LEAST.get(name, 0)
        if value < least or (value == 0 and name in MORE_THAN_ZERO):
            than = f"more than {least}" if name in MORE_THAN_ZERO else f"at least {least}"
            raise InputError(f"{name} has to be {than}, got {value}.")
        if value >= (most := LESS_THAN.get(name, 2**63)):  # what is larger, torch cannot count
            raise InputError(f"{name} has to be less than {most}, got {value}.")
    if args.max_steps == 0:
        raise InputError("max_steps has to be at least 1, or -1 for as many as num_train_epochs gives, got 0.")
    if args.max_steps < 0 and args.num_train_epochs <= 0:
        raise InputError(f"num_train_epochs has to be more than 0, got {args.num_train_epochs}.")


def check_best_metric(args: TrainingArguments, metrics: dict[str, bool]) -> None:
    """Set which metric decides, and in which direction: transformers takes what does not end in "loss" for better the
    higher it is, and would keep the worst checkpoint.

    Args:
        metrics: name -> True if more of it is better.

    Raises:
        InputError: an unknown metric, or another direction.
    """
    name = (args.metric_for_best_model or "loss").removeprefix("eval_")
    if name not in metrics:
        raise InputError(f"metric_for_best_model has to be one of {', '.join(metrics)}, got {name!r}.")
    if args.greater_is_better not in (None, metrics[name]):
        raise InputError(
            f"greater_is_better {args.greater_is_better} contradicts metric_for_best_model {name}, of which "
            f"{'more' if metrics[name] else 'less'} is better; leave it out."
        )
    args.metric_for_best_model, args.greater_is_better = name, metrics[name]
    if args.early_stopping_patience and args.eval_strategy == "no":
        raise InputError(
            f"early_stopping_patience {args.early_stopping_patience} counts evaluations, and eval_strategy is no; set "
            "it to steps or epoch."
        )


def check_metric_of(args: TrainingArguments, documents: EvaluationDocuments) -> None:
    """Raise InputError if this held-out text has no figure for the metric that decides."""
    name = args.metric_for_best_model
    if documents.counts.unknown_tokens and name in ("bits_per_byte", "word_perplexity"):
        raise InputError(
            f"metric_for_best_model {name} is no figure of {documents.origin}, of which the tokenizer does not know "
            "every word; choose loss or perplexity."
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
