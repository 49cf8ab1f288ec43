"""What a run will cost, before it starts: parameters, updates, tokens, disk, and minutes and memory from one measured
step per model."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from ..errors import InputError
from ..models import build_config, count_parameters
from ..training.arguments import ModelArguments, StageArguments
from ..training.trainer import count_training_tokens
from .data_size import (
    HELD_OUT_SHARE,
    expected_text_tokens,
    expected_vocab_size,
    start_config,
    start_of,
)
from .languages import text
from .notices import size
from .step_cost import BYTES_OF_A_VALUE, Cost, StepCost, cost_phrases, measure_step, memory_of_run, times

# Of a held-out token, in training tokens. Measured: 0.3 (newllm; 0.5 where one long document is read alone) to 0.6
# (overlapping windows).
SCORING_COST = 0.5
PREPARE_SECONDS, MODEL_SECONDS = 7, 3  # learn the tokenizer and pack the rows, once; per model: save, draw curves
VALUES_OF_A_CHECKPOINT = 3  # a weight and AdamW's two averages of its gradient


@dataclass(frozen=True)
class Reckoning:
    """How a panel finds out what its settings will cost.

    Attributes:
        check: raises InputError for settings that cannot be run.
        phrases: (model -> its settings, model -> what `measure` gave, or None) -> HTML phrases of the live line.
        measure: settings -> what one step costs; None: nothing is measured.
        cost: (model -> its settings, model -> what `measure` gave) -> what the run will take.
        complete: fills in what only a look outside tells, and returns what a run is known by beside its settings and
            the data of its task.
    """

    check: Callable[[Any], Any]
    phrases: Callable[[dict[str, Any]], list[str]]
    measure: Callable[[Any], StepCost] | None = None
    cost: Callable[[dict[str, Any], dict[str, StepCost]], Cost] | None = None
    complete: Callable[[Any], dict[str, Any]] = lambda args: {}

    def line(self, arguments: dict[str, Any], measured: dict[str, StepCost] | None) -> list[str]:
        """All phrases; minutes and memory only if something was measured."""
        phrases = self.phrases(arguments)
        if measured:
            phrases += cost_phrases(self.cost(arguments, measured), len(arguments))
        return phrases


@dataclass(frozen=True)
class Extent:
    """How far a run goes: `checkpoints` are those that are kept of each model, and `disk_bytes` what they and the
    finished models take."""

    parameters: dict[str, int]
    updates: int
    tokens: int
    checkpoints: int
    disk_bytes: int


def extent(arguments: dict[str, ModelArguments]) -> Extent:
    """How far the training of these models in turn will go.

    Args:
        arguments: model -> its settings, which differ in nothing else.

    Raises:
        InputError: no model of that size can be built.
    """
    parameters = {model: count_model(args) for model, args in arguments.items()}
    args = next(iter(arguments.values()))
    updates, tokens = count_training_tokens(args, max(math.ceil(expected_text_tokens(args) / args.max_length), 1))
    checkpoints = kept_checkpoints(args, updates)
    return Extent(parameters, updates, tokens, checkpoints, saved_bytes(sum(parameters.values()), checkpoints))


def saved_bytes(trained: int, checkpoints: int, tokenizer: int = 0) -> int:
    """On disk, of a run that trains so many parameters: they and the file of their tokenizer, where that counts, once
    finished and once a checkpoint, which has AdamW's averages, too."""
    return (1 + checkpoints) * tokenizer + BYTES_OF_A_VALUE * trained * (1 + VALUES_OF_A_CHECKPOINT * checkpoints)


def cost(arguments: dict[str, ModelArguments], measured: dict[str, StepCost]) -> Cost:
    """What training these models in turn will take.

    Args:
        measured: model -> `measure`.
    """
    whole = extent(arguments)
    args = next(iter(arguments.values()))
    held_out = expected_text_tokens(args) * HELD_OUT_SHARE
    # Of all held-out tokens once, and of a sample at every evaluation.
    scored = held_out + times(args.eval_steps, whole.updates) * min(args.max_eval_tokens, held_out)
    step_tokens = args.per_device_train_batch_size * args.max_length
    seconds, peaks = float(PREPARE_SECONDS), []
    for model, count in whole.parameters.items():
        step = measured[model]
        seconds += step.seconds(count, whole.tokens + SCORING_COST * scored) + MODEL_SECONDS
        peaks.append(step.memory(count, step_tokens))
    return Cost(seconds / 60, memory_of_run(peaks))


def kept_checkpoints(args: StageArguments, updates: int) -> int:
    """How many of a run's checkpoints are there at its end."""
    if args.save_strategy == "no":
        return 0
    saves = math.ceil(times(args.save_steps, updates))
    return min(saves, updates, args.save_total_limit or saves)


def phrases(arguments: dict[str, ModelArguments]) -> list[str]:
    """What the live line says of models made from scratch, or of those of an earlier notebook."""
    whole = extent(arguments)
    args = next(iter(arguments.values()))
    sizes = ", ".join(f"{model} {count / 1e6:.2f} M" for model, count in whole.parameters.items())
    kept = "<b>{checkpoints}</b> checkpoints kept of each model, <b>{disk}</b> on disk"
    return [
        text("<b>{sizes}</b> parameters", sizes=sizes),
        text(
            "<b>{updates}</b> updates of {rows} rows of {length} tokens = <b>{tokens} M</b> tokens",
            updates=f"{whole.updates:,}",
            rows=str(args.effective_batch_size),
            length=str(args.max_length),
            tokens=f"{whole.tokens / 1e6:.2f}",
        ),
        text(kept, checkpoints=str(whole.checkpoints), disk=size(whole.disk_bytes)),
    ]


def count_model(args: ModelArguments) -> int:
    """Parameters of the model these settings describe.

    Raises:
        InputError: no width meets the wanted number of parameters.
    """
    return count_parameters(model_config(args))


def measure(args: ModelArguments) -> StepCost:
    """What one training step of this model takes on this machine."""
    return measure_step(model_config(args), args, args.per_device_train_batch_size, args.max_length)


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


SMALL_MODELS = Reckoning(check=count_model, phrases=phrases, measure=measure, cost=cost)
