"""Configuration of New-LLM: a language model that carries contexts of fixed size from token to token and has no
attention."""

from typing import Any, ClassVar

from transformers import PreTrainedConfig

LAYER_VERSION = 3  # of what a layer computes; the weights of one version mean nothing to another


class RecurrentConfig(PreTrainedConfig):
    """What the configs of our recurrent models have in common. A ValueError names a size that is no positive number,
    or a dropout that is not in [0, 1).
    """

    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # the state, by both of transformers' names
    auto_map = {}  # TRL asks every model that is not of transformers' own package for it
    sizes: ClassVar[dict[str, int]] = {}  # the fields of a model's own, with their defaults

    def __init__(self, dropout: float = 0.1, layer_norm_eps: float = 1e-5, use_cache: bool = True, **kwargs):
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout!r}.")
        self.dropout = dropout
        self.layer_norm_eps = layer_norm_eps
        self.use_cache = use_cache
        for name, default in self.sizes.items():
            size = kwargs.pop(name, default)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a positive integer, got {size!r}.")
            setattr(self, name, size)
        super().__init__(**{"tie_word_embeddings": True, **kwargs})


class NewLLMConfig(RecurrentConfig):
    """Sizes of a New-LLM. Raises ValueError: the model was trained by an earlier version."""

    model_type = "newllm"
    sizes = {
        "vocab_size": 4096,  # token types, V
        "hidden_size": 192,  # width of embeddings and of the residual stream, E
        "context_size": 192,  # channels of the context of one layer, C; the context vector has L * C
        "intermediate_size": 464,  # width of the layers' MLPs, H
        "num_hidden_layers": 3,  # L
    }

    def __init__(self, **kwargs):
        if has_other_layers(kwargs):
            raise ValueError(
                "this New-LLM was trained by an earlier version, whose layers computed something else; its weights "
                "mean nothing to this version's: train it again, or open it with the version that made it."
            )
        super().__init__(**{**kwargs, "layer_version": LAYER_VERSION})

    @property
    def context_numbers(self) -> int:
        """How many numbers the context vector has; they come first in the state of a sequence."""
        return self.num_hidden_layers * self.context_size


def has_other_layers(config: dict[str, Any]) -> bool:
    """Whether a New-LLM with this config.json is of another LAYER_VERSION; every saved config has a
    "transformers_version"."""
    return "transformers_version" in config and config.get("layer_version") != LAYER_VERSION
