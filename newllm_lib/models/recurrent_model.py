"""What our recurrent models have in common as models of transformers: the arguments of `forward`, the state between
calls, and checkpoints of the activations.

Dimensions: B rows, T tokens, E embedding, H hidden, S numbers of the state.
"""

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from .context_cache import CACHE_NAME, ContextCache, one_cache

CHECKPOINTED_TOKENS = 64  # a loop over time keeps its activations for so many tokens at a time


class RecurrentPreTrainedModel(PreTrainedModel):
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # The context cannot be rolled back by some tokens, which assisted decoding would need.
    _is_stateful = True


class RecurrentModelMixin:
    """The forward pass around `recur(x, state, mask, starts, shown)`, which is the network itself:

    x [B, T, E] and state [B, S], or None at first -> last hidden states [B, T, H] and the state after the row. `mask`
    and `starts` are [B, T] bool or None: False at a position that leaves everything as it is, True where a document
    begins. Unless `shown` is None, the hidden states before the last ones are appended to it.
    """

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: ContextCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache: ContextCache | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids: [B, T] tokens; or give `inputs_embeds` [B, T, E].
            attention_mask: [B, >= T]; 0 marks a position that leaves the state untouched, wherever it stands.
            position_ids: [B, T]; a 0 at an unmasked position starts a new document with a zero context. No other
                value matters: the model has no positions and no maximum length.
            past_key_values, cache: two names for the state to continue from, updated in place.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds` is given, or both names of the state; or what
                is to be shown does not exist.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if output_attentions:
            raise ValueError(f"{type(self).__name__} has no attention that output_attentions could show.")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # [B, T, E]
        batch_size, num_tokens = x.shape[:2]
        mask = starts = None
        if attention_mask is not None:
            mask = attention_mask[:, -num_tokens:].bool()
        if position_ids is not None:
            starts = (position_ids == 0).expand(batch_size, num_tokens)
            if mask is not None:
                starts = starts & mask
        cache = one_cache(past_key_values, cache)
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = ContextCache()
        is_shown = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        shown = [] if is_shown else None
        x, state = self.recur(x, None if cache is None else cache.context, mask, starts, shown)
        if cache is not None:
            cache.update(state, num_tokens)
        hidden_states = (*shown, x) if is_shown else None
        return BaseModelOutputWithPast(last_hidden_state=x, hidden_states=hidden_states, **{CACHE_NAME: cache})


class PieceOfTime(GradientCheckpointingLayer):
    def forward(self, read, *inputs):
        return read(*inputs)


class TimeLoopMixin(RecurrentModelMixin):
    """A network that reads its tokens one by one: `read(x, state, mask, starts)` is `recur`, with nothing shown."""

    def __init__(self, config):
        super().__init__(config)
        self.piece = PieceOfTime()

    def recur(self, x, state, mask, starts, shown):
        if shown is not None:
            if self.config.num_hidden_layers > 1:
                raise ValueError(f"{type(self).__name__} has no hidden states between its layers to show.")
            shown.append(x)
        step, outputs = CHECKPOINTED_TOKENS if self.piece.gradient_checkpointing else x.shape[1], []
        for begin in range(0, x.shape[1], step):
            piece = slice(begin, begin + step)
            bounds = (None if part is None else part[:, piece] for part in (mask, starts))
            output, state = self.piece(self.read, x[:, piece], state, *bounds)
            outputs.append(output)
        return torch.cat(outputs, dim=1), state
