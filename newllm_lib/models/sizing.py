"""Build any of our models by name, its width solved for a number of parameters, so that comparisons are fair."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .baselines import LSTMConfig, tiny_gpt2_config
from .configuration_newllm import NewLLMConfig

MODEL_TYPES = ("newllm", "newllm-reference", "tiny-gpt2", "lstm")
TOLERANCE = 0.02  # relative difference in parameters that still counts as equal size


def count_parameters(config: PreTrainedConfig) -> int:
    """Parameters of the causal-LM with this config, tied weights once, without allocating it."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()  # transformers 5.0 leaves this out on the meta device
    return model.num_parameters()


def build_config(
    model_type: str,
    vocab_size: int,
    max_length: int,
    num_layers: int | None = None,
    num_parameters: int | None = None,
    embedding_size: int | None = None,
    context_size: int | None = None,
    hidden_size: int | None = None,
    dropout: float = 0.1,
    **token_ids: int | None,
) -> PreTrainedConfig:
    """The config of `model_type`, one of MODEL_TYPES.

    With `num_parameters` the width is solved for it; sizes given by name are then kept. Without it, New-LLM has its
    own default sizes, and the baselines are solved to match the default New-LLM at this vocabulary.

    Raises:
        ValueError: unknown model type, or no width comes within 2 % of `num_parameters`.
    """
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type must be one of {', '.join(MODEL_TYPES)}, got {model_type!r}.")
    common = {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None, **token_ids}
    given = {"embedding_size": embedding_size, "context_size": context_size, "hidden_size": hidden_size}
    given = {name: size for name, size in given.items() if size is not None}

    if num_parameters is None and model_type in ("tiny-gpt2", "lstm"):
        num_parameters = count_parameters(NewLLMConfig(vocab_size=vocab_size))

    if model_type in ("newllm", "newllm-reference"):
        make_config = NewLLMConfig.reference if model_type == "newllm-reference" else NewLLMConfig
        common |= {"num_hidden_layers": num_layers or 1, "dropout": dropout, **given}
        if num_parameters is None:
            return make_config(**common)

        def at_width(width: int) -> PreTrainedConfig:
            solved = {"context_size": width, "hidden_size": 2 * width}
            if model_type == "newllm-reference":
                solved["embedding_size"] = width
            return make_config(**{**solved, **common})

        config = _aligned_config(at_width, num_parameters)
    elif model_type == "lstm":
        common |= {"num_hidden_layers": num_layers or 1, "dropout": dropout}
        config = _aligned_config(lambda width: LSTMConfig(**{**common, "hidden_size": width}), num_parameters)
    else:
        common |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        common |= {"n_layer": num_layers or 3, "n_positions": max_length}
        width = _nearest_config(lambda width: tiny_gpt2_config(width, **common), 4, num_parameters).n_embd
        # Widths come in steps of four heads; the feed-forward width makes up the difference.
        config = _nearest_config(lambda inner: tiny_gpt2_config(width, n_inner=inner, **common), 4, num_parameters)

    found = count_parameters(config)
    if abs(found - num_parameters) > TOLERANCE * num_parameters:
        raise ValueError(
            f"num_parameters {num_parameters:,} cannot be met by {model_type} with a vocabulary of {vocab_size:,}: the "
            f"nearest size is {found:,}; choose that, or a smaller vocab_size."
        )
    return config


def _aligned_config(at_width: Callable[[int], PreTrainedConfig], num_parameters: int) -> PreTrainedConfig:
    """As `_nearest_config`, with the roundest width that comes within the tolerance: matrix products run in blocks, and
    a width that fills them is up to a third faster than its neighbours."""
    for step in (32, 16, 8, 2):
        config = _nearest_config(at_width, step, num_parameters)
        if abs(count_parameters(config) - num_parameters) <= TOLERANCE * num_parameters:
            break
    return config


def _nearest_config(at_width: Callable[[int], PreTrainedConfig], step: int, num_parameters: int) -> PreTrainedConfig:
    """Of the configs at widths that are multiples of `step`, the one nearest in size, by bisection."""
    low, high = 1, 2
    while count_parameters(at_width(high * step)) < num_parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if count_parameters(at_width(middle * step)) < num_parameters:
            low = middle
        else:
            high = middle
    return min((at_width(low * step), at_width(high * step)), key=lambda c: abs(count_parameters(c) - num_parameters))


def build_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A freshly initialised causal-LM in fp32."""
    return name_loss(AutoModelForCausalLM.from_config(config, dtype=torch.float32))


def load_model(path: str | Path) -> PreTrainedModel:
    """The causal-LM saved in a folder, in fp32 (a half-precision file would otherwise load as it is)."""
    return name_loss(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))


def name_loss(model: PreTrainedModel) -> PreTrainedModel:
    """GPT2LMHeadModel's name does not say which loss it has, and transformers warns of that on every first step."""
    model.loss_type = "ForCausalLM"
    return model
