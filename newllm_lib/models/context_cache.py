"""The memory of a recurrent language model during generation: one tensor whose size never depends on the text."""

from dataclasses import fields
from functools import wraps

import torch
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

# What this transformers calls the state in a model's output: "cache" from 5.24 on.
CACHE_NAME = ({field.name for field in fields(BaseModelOutputWithPast)} & {"cache", "past_key_values"}).pop()


class ContextCache:
    """What a recurrent model remembers of each sequence, passed to `forward` as `past_key_values` or `cache`.

    Attributes:
        context: [B, S] carried vector, or None before the first token. S depends on the model alone.
        seen_tokens: number of positions consumed so far, masked ones included.
    """

    # `generate` asks every cache whether to compile, which takes longer than most texts, and whether it has no length.
    is_compileable = False
    is_linear = (False,)

    def __init__(self, context: torch.Tensor | None = None, seen_tokens: int = 0):
        self.context = context
        self.seen_tokens = seen_tokens

    def update(self, context: torch.Tensor, new_tokens: int) -> None:
        """Replace the context after `new_tokens` more positions."""
        self.context = context
        self.seen_tokens += new_tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen_tokens

    @property
    def nbytes(self) -> int:
        """Bytes held, the same after 8 tokens and after 8,000."""
        return 0 if self.context is None else self.context.numel() * self.context.element_size()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Beam search: sequence b continues from what was sequence beam_idx[b]."""
        self.context = self.context.index_select(0, beam_idx.to(self.context.device))

    batch_select_indices = reorder_cache


def one_cache(past_key_values: ContextCache | None, cache: ContextCache | None) -> ContextCache | None:
    """The state by whichever name it was given; a ValueError if it was by both."""
    if past_key_values is not None and cache is not None:
        raise ValueError("past_key_values and cache are two names of one argument: give one of them.")
    return past_key_values if cache is None else cache


def state_after(outputs: ModelOutput) -> ContextCache | Cache:
    """What a model of ours or of transformers carries on after a call."""
    return getattr(outputs, CACHE_NAME)


class RecurrentGenerationMixin(GenerationMixin):
    """transformers' `generate` with a `ContextCache` in the place of a key-value cache."""

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        cache = one_cache(model_kwargs.pop("past_key_values", None), model_kwargs.pop("cache", None))
        if cache is not None:
            model_kwargs[CACHE_NAME] = cache
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        if cache is None and generation_config.use_cache is not False:
            model_kwargs[CACHE_NAME] = ContextCache()

    def _prepare_position_ids_for_generation(self, *args, **kwargs) -> None:
        """Only the caller knows where documents start: `generate` would start one after a given cache."""

    @wraps(GenerationMixin.prepare_inputs_for_generation)  # `generate` reads from it which arguments exist
    def prepare_inputs_for_generation(self, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        # transformers 5.0 makes positions here, and has one more argument for them.
        inputs.pop("cache_position", None)
        if kwargs.get("position_ids") is None:
            inputs.pop("position_ids", None)
        return inputs
