"""The memory of a recurrent language model during generation: one tensor whose size never depends on the text."""

import torch
from transformers import GenerationMixin


class ContextCache:
    """What a recurrent model remembers of each sequence, passed to and from `forward` as `past_key_values`.

    Attributes:
        context: [B, S] carried vector, or None before the first token. S depends on the model alone.
        seen_tokens: number of positions consumed so far, masked ones included.
    """

    # `generate` asks this of every cache before it compiles, which would take longer than most texts.
    is_compileable = False

    def __init__(self, context: torch.Tensor | None = None, seen_tokens: int = 0):
        self.context = context
        self.seen_tokens = seen_tokens

    def update(self, context: torch.Tensor, new_tokens: int) -> None:
        """Replace the context after `new_tokens` more positions."""
        self.context = context
        self.seen_tokens += new_tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen_tokens

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """No maximum: transformers' convention for an unbounded cache is -1."""
        return -1

    @property
    def nbytes(self) -> int:
        """Bytes held, the same after 8 tokens and after 8,000."""
        return 0 if self.context is None else self.context.numel() * self.context.element_size()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Beam search: sequence b continues from what was sequence beam_idx[b]."""
        self.context = self.context.index_select(0, beam_idx.to(self.context.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.context = self.context.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.context = self.context[indices]

    def reset(self) -> None:
        self.context = None
        self.seen_tokens = 0


class RecurrentGenerationMixin(GenerationMixin):
    """transformers' `generate` with a `ContextCache` in the place of a key-value cache."""

    # The context cannot be rolled back by some tokens, which assisted decoding would need.
    _is_stateful = True

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = ContextCache()

    def prepare_inputs_for_generation(
        self,
        input_ids,
        past_key_values=None,
        attention_mask=None,
        use_cache=None,
        logits_to_keep=None,
        **kwargs,
    ):
        seen_tokens = past_key_values.get_seq_length() if past_key_values is not None else 0
        return {
            "input_ids": input_ids[:, seen_tokens:],
            "attention_mask": None if attention_mask is None else attention_mask[:, seen_tokens:],
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep or 0,
        }
