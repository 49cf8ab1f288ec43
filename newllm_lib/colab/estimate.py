"""What a run will cost, before it starts: parameters, updates, tokens, and minutes from one measured step per model."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..errors import InputError
from ..models import build_config, build_model, count_parameters
from ..training.arguments import ModelArguments
from ..training.device import autocast_dtype, find_device, keep_freed_memory
from ..training.trainer import count_training_tokens
from ..training.update import timed_update
from .data_size import HELD_OUT_SHARE, expected_text_tokens, expected_vocab_size, start_config, start_of
from .languages import text

SCORING_COST = 0.5  # of a held-out token, in training tokens; measured 0.4 (newllm) to 0.6 (overlapping windows)
PREPARE_SECONDS = 8  # per model: learn the tokenizer, pack the rows
VALUES_OF_A_CHECKPOINT, BYTES_OF_A_VALUE = 3, 4  # a weight and AdamW's two averages of its gradient, all in fp32
PROBE_SECONDS = 0.4
PROBE_LENGTH = 128


@dataclass(frozen=True)
class Reckoning:
    """How a panel finds out what its settings will cost.

    Attributes:
        check: raises InputError for settings that cannot be run.
        phrases: (model -> its settings, model -> what `measure` gave, or None) -> HTML phrases of the live line.
        measure: settings -> what one step costs; None: nothing is measured, and no minutes are given.
        complete: fills in what only a look outside tells, and returns what a run is known by beside its settings and
            the data of its task.
    """

    check: Callable[[Any], Any]
    phrases: Callable[[dict[str, Any], dict[str, float] | None], list[str]]
    measure: Callable[[Any], float] | None = None
    complete: Callable[[Any], dict[str, Any]] = lambda args: {}


@dataclass(frozen=True)
class Estimate:
    """`minutes` is for all models in turn, None while no step has been measured; `checkpoints` are those that are kept
    of each model, and `disk_bytes` what they and the finished models take."""

    parameters: dict[str, int]
    updates: int
    tokens: int
    minutes: float | None
    checkpoints: int
    disk_bytes: int


def estimate(arguments: dict[str, ModelArguments], seconds_per_flop: dict[str, float] | None) -> Estimate:
    """What training these models in turn will take.

    Args:
        arguments: model -> its settings, which differ in nothing else.
        seconds_per_flop: model -> `measure`.

    Raises:
        InputError: no model of that size can be built.
    """
    parameters = {model: count_model(args) for model, args in arguments.items()}
    args = next(iter(arguments.values()))
    text_tokens = expected_text_tokens(args)
    updates, tokens = count_training_tokens(args, max(math.ceil(text_tokens / args.max_length), 1))
    minutes = None
    if seconds_per_flop:
        held_out = text_tokens * HELD_OUT_SHARE
        evaluations = 1 / args.eval_steps if args.eval_steps < 1 else updates / args.eval_steps
        scored = evaluations * min(args.max_eval_tokens, held_out) + held_out
        work = tokens + SCORING_COST * scored
        seconds = sum(6 * parameters[model] * work * seconds_per_flop[model] for model in arguments)
        minutes = (seconds + PREPARE_SECONDS * len(arguments)) / 60
    checkpoints = _kept_checkpoints(args, updates)
    values = sum(parameters.values()) * (1 + VALUES_OF_A_CHECKPOINT * checkpoints)
    return Estimate(parameters, updates, tokens, minutes, checkpoints, BYTES_OF_A_VALUE * values)


def _kept_checkpoints(args: ModelArguments, updates: int) -> int:
    if args.save_strategy == "no":
        return 0
    saves = math.ceil(1 / args.save_steps) if args.save_steps < 1 else math.ceil(updates / args.save_steps)
    return min(saves, updates, args.save_total_limit or saves)


def phrases(arguments: dict[str, ModelArguments], seconds_per_flop: dict[str, float] | None) -> list[str]:
    """What the live line says of models made from scratch, or of those of an earlier notebook."""
    cost = estimate(arguments, seconds_per_flop)
    args = next(iter(arguments.values()))
    sizes = ", ".join(f"{model} {count / 1e6:.2f} M" for model, count in cost.parameters.items())
    parts = [
        text("<b>{sizes}</b> parameters", sizes=sizes),
        text(
            "<b>{updates}</b> updates of {rows} rows of {length} tokens = <b>{tokens} M</b> tokens",
            updates=f"{cost.updates:,}",
            rows=str(args.effective_batch_size),
            length=str(args.max_length),
            tokens=f"{cost.tokens / 1e6:.2f}",
        ),
    ]
    if cost.minutes is not None:
        whom = " for both models" if len(arguments) > 1 else ""
        phrase = f"about <b>{{minutes}}</b>{whom} here (estimated from one measured step)"
        parts.append(text(phrase, minutes=_minutes(cost.minutes)))
    disk = f"{cost.disk_bytes / 1e9:.1f} GB" if cost.disk_bytes >= 1e9 else f"{cost.disk_bytes / 1e6:.0f} MB"
    kept = "<b>{checkpoints}</b> checkpoints kept of each model, <b>{disk}</b> on disk"
    return [*parts, text(kept, checkpoints=str(cost.checkpoints), disk=disk)]


def _minutes(minutes: float) -> str:
    if minutes < 1.5:
        return text("a minute")
    if minutes < 90:
        return text("{minutes} minutes", minutes=f"{minutes:.0f}")
    return text("{hours} hours", hours=f"{minutes / 60:.1f}")


def count_model(args: ModelArguments) -> int:
    """Parameters of the model these settings describe.

    Raises:
        InputError: no width meets the wanted number of parameters.
    """
    return count_parameters(model_config(args))


def measure(args: ModelArguments) -> float:
    """Seconds per floating-point operation in one training step of this model on this machine; on a CPU the step is
    made smaller, to take under a second in all."""
    device = find_device()
    if device.kind == "cpu":
        keep_freed_memory()
    config = model_config(args)
    model = build_model(config).to(device.kind).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    dtype = autocast_dtype(device)
    length = min(args.max_length, PROBE_LENGTH)

    def seconds(rows: int) -> float:
        input_ids = torch.randint(0, config.vocab_size, (rows, length), device=device.kind)
        return timed_update(model, optimizer, input_ids, dtype)

    seconds(1)  # the first step sets things up that the others find ready
    rows = max(min(int(PROBE_SECONDS / seconds(1)), args.per_device_train_batch_size), 1)
    return seconds(rows) / (6 * count_parameters(config) * rows * length)


def model_config(args: ModelArguments) -> PreTrainedConfig:
    """The config of the model that will be trained: the start model's, or a new one.

    Raises:
        InputError: no width meets the wanted number of parameters.
    """
    if (start := start_of(args)) is not None:
        return start_config(start, args.max_length)
    sizes = (args.model_type, expected_vocab_size(args), args.max_length, args.num_layers, args.num_parameters)
    return _new_config(*sizes)


@functools.lru_cache(maxsize=256)
def _new_config(model_type: str, vocab_size: int, max_length: int, num_layers: int | None, num_parameters: int | None):
    try:
        return build_config(
            model_type,
            vocab_size=vocab_size,
            max_length=max_length,
            num_layers=num_layers,
            num_parameters=num_parameters,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=1,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


SMALL_MODELS = Reckoning(check=count_model, phrases=phrases, measure=measure)
