"""A model that is made from scratch, as the settings describe it; and, before any long work, whether it can be."""

import psutil
from transformers import PreTrainedConfig, PreTrainedModel, set_seed

from ..data.tokenizer import DEFAULT_VOCAB_SIZE, SPECIAL_TOKENS, end_token_ids
from ..errors import InputError
from ..models import build_config, build_model, count_parameters
from .arguments import ModelArguments
from .device import GB, find_device

BYTES_PER_PARAMETER = 16  # in fp32: weight, gradient, and two moments of AdamW
SIZES = (
    "max_length", "num_layers", "num_parameters", "embedding_size", "context_size", "hidden_size", "intermediate_size",
    "dropout",
)  # fmt: skip
BYTES_AND_SPECIAL = 256 + len(SPECIAL_TOKENS)
FEWEST_TYPES = {"byte": BYTES_AND_SPECIAL, "bpe": BYTES_AND_SPECIAL, "word": 4, "gpt2": 50_257}


def model_config(args: ModelArguments, vocab_size: int, **token_ids: int | None) -> PreTrainedConfig:
    """The config that the settings describe. Raises InputError: there is no such model."""
    try:
        sizes = {name: getattr(args, name) for name in SIZES}
        return build_config(args.model_type, vocab_size=vocab_size, **sizes, **token_ids)
    except ValueError as error:
        raise InputError(str(error)) from error


def check_size(args: ModelArguments) -> None:
    """Find out before the data are prepared whether there is such a model, and whether its training fits into memory.
    Raises InputError: it does not, whatever vocabulary it gets."""
    fewest = args.vocab_size or FEWEST_TYPES[args.tokenizer]
    try:
        config = model_config(args, fewest)
    except InputError:
        # How large a vocabulary becomes, only the text says.
        config = model_config(args, args.vocab_size or DEFAULT_VOCAB_SIZE.get(args.tokenizer, fewest))
    device = find_device(args.use_cpu)
    there = psutil.virtual_memory().total / GB if device.memory_gb is None else device.memory_gb
    try:
        parameters = count_parameters(config)
    except RuntimeError as error:
        raise InputError("hidden_size and other sizes give more than can be counted; choose smaller ones.") from error
    needed = BYTES_PER_PARAMETER * parameters / GB
    if needed > there:
        raise InputError(
            f"num_parameters: {parameters:,} need {needed:,.0f} GB to be trained, and the {device.name} has "
            f"{there:,.0f}; choose fewer, or smaller sizes.",
            "NL-103",
        )


def new_model(args: ModelArguments, tokenizer) -> PreTrainedModel:
    """The model that the settings describe, initialised from the seed. Raises InputError: there is no such model."""
    set_seed(args.seed)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    model = build_model(model_config(args, len(tokenizer), **{name: getattr(tokenizer, name) for name in names}))
    model.generation_config.eos_token_id = end_token_ids(tokenizer)
    return model
