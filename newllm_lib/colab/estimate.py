"""What a run will cost, before it starts: parameters, updates, tokens, and minutes from one measured step per model."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.tokenizer import DEFAULT_VOCAB_SIZE
from ..errors import InputError
from ..models import build_config, build_model, count_parameters
from ..stages.pretrain import PretrainArguments
from ..training.device import autocast_dtype, find_device, keep_freed_memory
from ..training.trainer import count_training_tokens
from ..training.update import timed_update

# Bytes of training text by source; nothing is downloaded or read for an estimate.
TEXT_BYTES = {"hub": 10_900_000, "auto": 10_900_000, "offline": 12_110_594}
BYTES_PER_TOKEN = {"byte": 1.0, "word": 5.2, "gpt2": 4.2}
FIXED_VOCAB_SIZE = {"byte": 258, "gpt2": 50_257}
HELD_OUT_SHARE = 0.05
SCORING_COST = 0.5  # of a held-out token, in training tokens; measured 0.4 (newllm) to 0.6 (overlapping windows)
PREPARE_SECONDS = 8  # per model: learn the tokenizer, pack the rows
PROBE_SECONDS = 0.4
PROBE_LENGTH = 128


@dataclass(frozen=True)
class Estimate:
    """`minutes` is for all models in turn, None while no step has been measured."""

    parameters: dict[str, int]
    updates: int
    tokens: int
    minutes: float | None


def estimate(arguments: dict[str, PretrainArguments], seconds_per_flop: dict[str, float] | None) -> Estimate:
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
    return Estimate(parameters, updates, tokens, minutes)


def expected_vocab_size(args: PretrainArguments) -> int:
    """Types the tokenizer will have; a small text may give fewer."""
    return FIXED_VOCAB_SIZE.get(args.tokenizer) or args.vocab_size or DEFAULT_VOCAB_SIZE[args.tokenizer]


def expected_text_tokens(args: PretrainArguments) -> float:
    """Tokens of the training text, from its size alone."""
    if args.data is not None:
        text_bytes = Path(args.data).expanduser().stat().st_size * (1 - HELD_OUT_SHARE)
    else:
        text_bytes = TEXT_BYTES[args.data_source]
    if args.tokenizer == "bpe":
        # Measured on ChitChat: 2.2 at 512 types, 3.7 at 4,096, about half a byte more for each doubling.
        return text_bytes / (2.2 + 0.5 * math.log2(expected_vocab_size(args) / 512))
    return text_bytes / BYTES_PER_TOKEN[args.tokenizer]


def count_model(args: PretrainArguments) -> int:
    """Parameters of the model these settings describe.

    Raises:
        InputError: no width meets the wanted number of parameters.
    """
    return count_parameters(_config(*_sizes(args)))


def measure(args: PretrainArguments) -> float:
    """Seconds per floating-point operation in one training step of this model on this machine; on a CPU the step is
    made smaller, to take under a second in all."""
    device = find_device()
    if device.kind == "cpu":
        keep_freed_memory()
    config = _config(*_sizes(args))
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


def _sizes(args: PretrainArguments) -> tuple:
    return args.model_type, expected_vocab_size(args), args.max_length, args.num_layers, args.num_parameters


@functools.lru_cache(maxsize=256)
def _config(model_type: str, vocab_size: int, max_length: int, num_layers: int | None, num_parameters: int | None):
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
