"""What our recurrent causal language models have in common: the state between calls, the arguments of `forward`,
checkpoints of the activations, and the way from hidden states to logits and loss.

Dimensions: B rows, T tokens, E embedding, H hidden, S numbers of the state, V vocabulary.
"""

import math
from dataclasses import fields
from functools import wraps

import torch
from torch import nn
from torch.nn import functional
from transformers import Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .chunked_loss import IGNORED, chunked_cross_entropy

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
            cache.context = state
            cache.seen_tokens += num_tokens
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


# On a CPU positions that are not scored are left out of the head, in steps of this share of all: oneDNN compiles and
# keeps a program for every number of rows that it meets, which for numbers at random cost 3 MB an update. A GPU would
# have to wait until the host knows their number.
LEFT_OUT_IN_STEPS_OF = 1 / 16


class RecurrentGenerationMixin(GenerationMixin):
    """A causal language model: the network `model`, `lm_head` on top of its last hidden states, and transformers'
    `generate` with a `ContextCache` in the place of a key-value cache."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: ContextCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        shift_labels: torch.LongTensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        cache: ContextCache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T or logits_to_keep, V] and, with labels, the loss: the mean in nats over the supervised tokens.

        Args:
            labels: [B, T], -100 where a token is not supervised; shifted inside. `shift_labels` beside it is shifted
                already, and then the only one that is read.
            skip_logits: take the loss in chunks; the logits, which would need B * T * V numbers, never exist.
            num_items_in_batch: what the losses' sum is divided by, as the Trainer gives it under accumulation.
            kwargs: `output_hidden_states`, and all that is not named here, as `RecurrentModelMixin.forward`.
        """
        inputs = input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, cache
        outputs = self.model(*inputs, return_dict=True, **kwargs)
        hidden_states = outputs.last_hidden_state
        logits = loss = None
        # A head that something has replaced, such as an adapter, is more than its weight.
        if skip_logits and labels is not None and type(self.lm_head) is nn.Linear:
            loss = self._loss_without_logits(hidden_states, labels, shift_labels, num_items_in_batch)
        else:
            if isinstance(logits_to_keep, int):
                logits_to_keep = slice(-logits_to_keep, None) if logits_to_keep else slice(None)
            logits = self.lm_head(hidden_states[:, logits_to_keep])
            if labels is not None:
                options = {"shift_labels": shift_labels, "num_items_in_batch": num_items_in_batch}
                loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **options)
        state = {CACHE_NAME: state_after(outputs)}
        return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=outputs.hidden_states, **state)

    @torch.compiler.disable  # the number of rows depends on the labels, and Inductor knows no oneDNN operation of ours
    def _loss_without_logits(self, hidden_states, labels, shift_labels, num_items_in_batch) -> torch.Tensor:
        if shift_labels is None:
            shift_labels = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        hidden_states, shift_labels = hidden_states.flatten(0, 1), shift_labels.flatten()
        scored = shift_labels != IGNORED
        count = scored.sum()
        if scored.device.type == "cpu":
            step = max(int(LEFT_OUT_IN_STEPS_OF * len(shift_labels)), 1)
            kept = min(math.ceil(int(count) / step) * step, len(shift_labels))
            if kept < len(shift_labels):
                first = (~scored).int().argsort(stable=True)[:kept]  # the scored ones, and others to make up the number
                hidden_states, shift_labels = hidden_states.index_select(0, first), shift_labels[first]
        total = chunked_cross_entropy(hidden_states, self.lm_head.weight, self.lm_head.bias, shift_labels)
        return total / (count if num_items_in_batch is None else num_items_in_batch)

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


def loss_only(model: nn.Module) -> dict[str, bool]:
    """The argument that tells one of our models to leave its logits out; nothing for any other model."""
    return {"skip_logits": True} if isinstance(model, RecurrentGenerationMixin) else {}
