"""Build any of our models by name, its width solved for a number of parameters, so that comparisons are fair."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedConfig, PreTrainedModel

from .baselines import LSTMConfig
from .configuration_newllm import NewLLMConfig
from .modeling_newllm_reference import NewLLMReferenceConfig

MODEL_TYPES = ("newllm", "newllm-reference", "tiny-gpt2", "lstm")
TOLERANCE = 0.02  # relative difference in parameters that still counts as equal size
WIDEST = 2**16

# New-LLM's layers and width, from small to large; the width of its MLPs is solved for. A model takes the largest of
# which its number of parameters leaves the MLPs LEAST_MLP times the width.
LAYERS_AND_WIDTHS = (
    (1, 32), (2, 64), (2, 96), (3, 128), (3, 160), (3, 192), (4, 256), (5, 320), (6, 384), (8, 512), (12, 768)
)  # fmt: skip
LEAST_MLP = 2
ALIGNED_TO = 16  # the width of an MLP is a multiple of this where the model is large enough for such steps
SIZES = {
    "newllm": ("hidden_size", "context_size", "intermediate_size"),
    "newllm-reference": ("embedding_size", "context_size", "hidden_size"),
}
ALL_SIZES = {size for sizes in SIZES.values() for size in sizes}


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
    dropout: float = 0.1,
    **fields: int | None,
) -> PreTrainedConfig:
    """The config of `model_type`, one of MODEL_TYPES.

    With `num_parameters` the width is solved for it; without it, New-LLM has its own default sizes, and the baselines
    are solved to match the default New-LLM at this vocabulary.

    Args:
        fields: sizes by name (SIZES; None: not given), which are kept, and the config's token ids.

    Raises:
        ValueError: unknown model type, a size that it does not have, or no width comes within 2 % of `num_parameters`.
    """
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type must be one of {', '.join(MODEL_TYPES)}, got {model_type!r}.")
    fields = {name: value for name, value in fields.items() if value is not None}
    for name in ALL_SIZES & fields.keys():
        if name not in (known := SIZES.get(model_type, ())):
            instead = f"; it has {', '.join(known)}" if known else ", whose width is solved for num_parameters"
            raise ValueError(f"{name} {fields[name]} is no size of {model_type}{instead}.")
    fields = {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None, **fields}
    if num_parameters is None and model_type in ("tiny-gpt2", "lstm"):
        num_parameters = count_parameters(NewLLMConfig(vocab_size=vocab_size))

    if model_type == "tiny-gpt2":
        fields |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        gpt2 = partial(GPT2Config, n_layer=num_layers or 3, n_head=4, n_positions=max_length, **fields)
        width = _solved(lambda width: gpt2(n_embd=width), num_parameters, steps=(4,)).n_embd
        # Widths come in steps of four heads; the feed-forward width makes up the difference.
        config = _solved(lambda inner: gpt2(n_embd=width, n_inner=inner), num_parameters, steps=(4,))
    else:
        fields |= {"dropout": dropout} | ({"num_hidden_layers": num_layers} if num_layers else {})
        if num_parameters is None:
            return (NewLLMConfig if model_type == "newllm" else NewLLMReferenceConfig)(**fields)
        if model_type == "newllm":
            config = _newllm_config(num_parameters, fields)
        elif model_type == "lstm":
            config = _solved(lambda width: LSTMConfig(hidden_size=width, **fields), num_parameters)
        else:

            def at_width(width: int) -> PreTrainedConfig:
                solved = {"embedding_size": width, "context_size": width, "hidden_size": 2 * width}
                return NewLLMReferenceConfig(**{**solved, **fields})

            config = _solved(at_width, num_parameters)

    found = count_parameters(config)
    if abs(found - num_parameters) > TOLERANCE * num_parameters:
        raise ValueError(
            f"num_parameters {num_parameters:,} cannot be met by {model_type} with a vocabulary of {vocab_size:,}: the "
            f"nearest size is {found:,}; choose that, or a smaller vocab_size."
        )
    return config


def _newllm_config(num_parameters: int, fields: dict) -> NewLLMConfig:
    """The New-LLM of the largest layers and width whose MLPs are then wide enough, or as `fields` say."""
    candidates = []
    for layers, width in LAYERS_AND_WIDTHS:
        sizes = {"hidden_size": width, "num_hidden_layers": layers, **fields}
        sizes.setdefault("context_size", sizes["hidden_size"])
        config = NewLLMConfig(**{"intermediate_size": ALIGNED_TO, **sizes})
        missing = num_parameters - count_parameters(config)
        if "intermediate_size" not in sizes:
            per_unit = 3 * config.num_hidden_layers * config.hidden_size
            step = ALIGNED_TO if ALIGNED_TO * per_unit <= TOLERANCE * num_parameters else 1
            config.intermediate_size = max(ALIGNED_TO + round(missing / per_unit / step) * step, step)
            missing -= (config.intermediate_size - ALIGNED_TO) * per_unit
        fits = abs(missing) <= TOLERANCE * num_parameters
        is_wide = config.intermediate_size >= LEAST_MLP * config.hidden_size
        candidates.append((fits and is_wide, fits, len(candidates) if fits else -abs(missing), config))
    return max(candidates, key=lambda candidate: candidate[:3])[3]


def _solved(
    at_width: Callable[[int], PreTrainedConfig], num_parameters: int, steps: Sequence[int] = (32, 16, 8, 2)
) -> PreTrainedConfig:
    """The config nearest in size whose width is a multiple of the first step that comes within the tolerance, or of the
    last: matrix products run in blocks, and a width that fills them is up to a third faster than its neighbours."""

    def excess(width: int) -> int:
        return count_parameters(at_width(width)) - num_parameters

    for step in steps:
        widths = range(step, WIDEST, step)
        next_one = max(bisect_left(widths, 0, key=excess), 1)
        width = min(widths[next_one - 1 : next_one + 1], key=lambda width: abs(excess(width)))
        if abs(excess(width)) <= TOLERANCE * num_parameters:
            break
    return at_width(width)


def build_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A freshly initialised causal-LM in fp32."""
    return name_loss(AutoModelForCausalLM.from_config(config, dtype=torch.float32))


def name_loss(model: PreTrainedModel) -> PreTrainedModel:
    """GPT2LMHeadModel's name does not say which loss it has, and transformers warns of that on every first step."""
    model.loss_type = "ForCausalLM"
    return model
