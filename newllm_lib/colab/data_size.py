"""How many tokens a run's data will have, from what is known before anything is downloaded or read."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..data.tokenizer import DEFAULT_VOCAB_SIZE
from ..training.arguments import ModelArguments, StageArguments
from ..training.checkpoint import read_settings
from ..training.model_folder import read_config

HELD_OUT_SHARE = 0.05
BYTES_PER_TOKEN = {"byte": 1.0, "word": 5.2, "gpt2": 4.2}
FIXED_VOCAB_SIZE = {"byte": 258, "gpt2": 50_257}
FILLED_SHARE = 0.8  # of `max_length`: what is left of a long conversation after its last whole answer


@dataclass(frozen=True)
class DataSize:
    """Bytes of a training split and, where rows are conversations, their number."""

    bytes: int
    conversations: int | None = None


# (dataset, source) -> its training split. Offline sizes are counted, the hub's bytes estimated, for a rough cost line.
DATA_SIZES = {
    ("wikitext", "hub"): DataSize(10_900_000),
    ("wikitext", "offline"): DataSize(12_110_594),
    ("dailydialog", "hub"): DataSize(5_800_000, 11_118),
    ("dailydialog", "offline"): DataSize(12_720_000, 3_800),
    ("dolly", "hub"): DataSize(11_500_000, 14_260),
    ("dolly", "offline"): DataSize(587_000, 3_252),
    ("ultrachat", "hub"): DataSize(1_300_000_000, 207_865),
    ("ultrachat", "offline"): DataSize(12_720_000, 3_800),
    ("alpaca", "hub"): DataSize(38_000_000, 49_172),
    ("alpaca", "offline"): DataSize(587_000, 3_252),
}


def expected_text_tokens(args: ModelArguments) -> float:
    """Tokens of the training split, from its size alone."""
    size = data_size(args)
    tokens = size.bytes / bytes_per_token(args)
    if size.conversations is None:
        return tokens
    return taken_conversations(args) * min(tokens / size.conversations, FILLED_SHARE * args.max_length)


def data_size(args: StageArguments) -> DataSize:
    """The size of the training split that the settings name."""
    if args.data is not None:
        return DataSize(int(Path(args.data).expanduser().stat().st_size * (1 - HELD_OUT_SHARE)))
    name = getattr(args, "dataset", None) or "wikitext"
    return DATA_SIZES[name, "hub" if args.data_source == "auto" else args.data_source]


def taken_conversations(args: StageArguments) -> int | None:
    """Conversations of the training split, as far as they are taken; None where nobody has counted them."""
    there = data_size(args).conversations
    return None if there is None else min(there, getattr(args, "max_samples", None) or there)


def bytes_per_token(args: ModelArguments) -> float:
    """Of English text; the tokenizer is the start model's, if there is one."""
    tokenizer = args.tokenizer if start_of(args) is None else read_settings(Path(args.model))["run"]["tokenizer"]
    if tokenizer == "bpe":
        # Measured on ChitChat: 2.2 at 512 types, 3.7 at 4,096, about half a byte more for each doubling.
        return 2.2 + 0.5 * math.log2(expected_vocab_size(args) / 512)
    return BYTES_PER_TOKEN[tokenizer]


def expected_vocab_size(args: ModelArguments) -> int:
    """Types the tokenizer will have; a small text may give fewer."""
    if (start := start_of(args)) is not None:
        return start_config(start, args.max_length).vocab_size
    return FIXED_VOCAB_SIZE.get(args.tokenizer) or args.vocab_size or DEFAULT_VOCAB_SIZE[args.tokenizer]


def start_of(args: Any) -> str | None:
    """The folder of the model that a run goes on with; stages that begin from nothing know no such setting."""
    return getattr(args, "model", None)


@functools.lru_cache(maxsize=32)
def start_config(folder: str, max_length: int) -> PreTrainedConfig:
    """The config of a finished model as the run will train it: with learned positions for a whole row."""
    config = read_config(folder)
    if hasattr(config, "n_positions"):
        config.n_positions = max(config.n_positions, max_length)
    return config
