"""New-LLM as a Hugging Face model: embedding, context recurrence, language-modelling head.

Dimensions: B rows, T tokens, E embedding, C context, H hidden, V vocabulary.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .chunked_loss import IGNORED, chunked_cross_entropy
from .configuration_newllm import NewLLMConfig
from .context_cache import ContextCache, RecurrentGenerationMixin
from .context_recurrence import ContextGates, ContextRecurrence, HiddenLayer
from .matrix_products import linear

# Positions that are not scored are left out of the head in steps of this share of all: oneDNN compiles and keeps a
# program for every number of rows that it meets, which for numbers at random cost 3 MB an update.
LEFT_OUT_IN_STEPS_OF = 1 / 16


class NewLLMPreTrainedModel(PreTrainedModel):
    config_class = NewLLMConfig
    base_model_prefix = "model"
    _supports_cache_class = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif self.config.initializer == "normal":
            if isinstance(module, nn.Linear | nn.Embedding):
                init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            # Small, and scaled up on entry: with Adam the table then learns embedding_scale times as fast.
            init.normal_(module.weight, std=1 / self.config.embedding_scale)
        elif isinstance(module, nn.Linear):
            if isinstance(module, HiddenLayer):
                init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                init.xavier_normal_(module.weight)
            if module.bias is not None:
                bias = torch.zeros_like(module.bias)
                if isinstance(module, ContextGates):
                    # Forget-gate bias +1: an untrained model remembers (Jozefowicz et al. 2015).
                    bias[self.config.context_size : 2 * self.config.context_size] = 1.0
                init.copy_(module.bias, bias)


class TiedHead(nn.Module):
    """Hidden states -> E -> RMSNorm; the model that owns it takes the logits against its embedding table, of unit
    variance at first because embeddings start with variance 1 / E."""

    def __init__(self, hidden_size: int, embedding_size: int, eps: float):
        super().__init__()
        self.projection = nn.Linear(hidden_size, embedding_size)
        self.norm = nn.RMSNorm(embedding_size, eps=eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # The norm in fp32 also under autocast, as torch does for LayerNorm.
        if type(self.projection) is nn.Linear:
            projected = linear(hidden_states, self.projection.weight, self.projection.bias)
        else:  # something, such as an adapter, has replaced it
            projected = self.projection(hidden_states)
        return self.norm(projected.to(self.norm.weight.dtype))


class NewLLMModel(NewLLMPreTrainedModel):
    """The bare model: hidden states, one per token, as the language-modelling head multiplies them."""

    def __init__(self, config: NewLLMConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.recurrence = ContextRecurrence(config)
        self.dropout = nn.Dropout(0.0 if config.recurrent_dropout else config.dropout)
        if config.tie_word_embeddings:
            self.head_transform = TiedHead(config.hidden_size, config.embedding_size, config.layer_norm_eps)
        else:
            self.head_transform = nn.Identity()
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: ContextCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        sparse_embedding_gradient: bool = False,
        skip_head_transform: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids: [B, T] tokens; or give `inputs_embeds` [B, T, E].
            attention_mask: [B, >= T]; 0 marks a position that leaves the context untouched, wherever it stands.
            position_ids: [B, T]; a 0 at an unmasked position starts a new document with a zero context. No other
                value matters: the model has no positions and no maximum length.
            past_key_values: context to continue from, updated in place.
            sparse_embedding_gradient: see `ContextRecurrence.project_ids`.
            skip_head_transform: the last layer's hidden states [B, T, H] as they are; the caller transforms those that
                the head is to see.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            # Time first in memory, as the recurrence wants it.
            token_projections = self.recurrence.project_ids(
                input_ids.t(), self.embed_tokens, sparse_embedding_gradient
            ).transpose(0, 1)
        else:
            token_projections = self.recurrence.project_embeddings(inputs_embeds)
        batch_size, num_tokens = token_projections.shape[:2]
        mask = None if attention_mask is None else attention_mask[:, -num_tokens:].bool()
        document_starts = None
        if position_ids is not None:
            document_starts = (position_ids == 0).expand(batch_size, num_tokens)
            if mask is not None:
                document_starts = document_starts & mask
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = ContextCache()
        hidden_states, context = self.recurrence(
            token_projections,
            context=None if past_key_values is None else past_key_values.context,
            attention_mask=mask,
            document_starts=document_starts,
        )
        if past_key_values is not None:
            past_key_values.update(context, num_tokens)
        hidden_states = self.dropout(hidden_states)
        if not skip_head_transform:
            hidden_states = self.head_transform(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)


class CausalLMHeadMixin:
    """What the recurrent language models share after their hidden states: slicing, `head_transform`, logits, loss."""

    def lm_output(
        self, outputs, labels, logits_to_keep, skip_logits=False, shift_labels=None, num_items_in_batch=None, **kwargs
    ) -> CausalLMOutputWithPast:
        """Logits [B, T or logits_to_keep, V] and, with labels [B, T], the mean loss in nats per scored token (their sum
        over `num_items_in_batch` where it is given, as the Trainer does under accumulation).

        With `skip_logits` the loss is taken in chunks, and the logits, which would need B * T * V numbers, never exist.
        Of transformers' other arguments none means anything here.
        """
        hidden_states = outputs.last_hidden_state
        logits = loss = None
        # A head that something has replaced, such as an adapter, is more than its weight.
        if skip_logits and labels is not None and type(self.lm_head) is nn.Linear:
            loss = self._loss_without_logits(hidden_states, labels, shift_labels, num_items_in_batch)
        else:
            if isinstance(logits_to_keep, int):
                logits_to_keep = slice(-logits_to_keep, None) if logits_to_keep else slice(None)
            logits = self.lm_head(self.head_transform(hidden_states[:, logits_to_keep]))
            if labels is not None:
                loss = self.loss_function(
                    logits,
                    labels,
                    vocab_size=self.config.vocab_size,
                    shift_labels=shift_labels,
                    num_items_in_batch=num_items_in_batch,
                )
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=None
        )

    def _loss_without_logits(self, hidden_states, labels, shift_labels, num_items_in_batch) -> torch.Tensor:
        if shift_labels is None:
            shift_labels = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        if hidden_states.stride(0) < hidden_states.stride(1):  # in the order in memory, flattening copies nothing
            hidden_states, shift_labels = hidden_states.transpose(0, 1), shift_labels.t()
        hidden_states, shift_labels = hidden_states.flatten(0, 1), shift_labels.flatten()
        scored = shift_labels != IGNORED
        count = int(scored.sum())
        step = max(int(LEFT_OUT_IN_STEPS_OF * len(shift_labels)), 1)
        kept = min(math.ceil(count / step) * step, len(shift_labels))
        if kept < len(shift_labels):
            first = (~scored).int().argsort(stable=True)[:kept]  # the scored ones, and others to make up the number
            hidden_states, shift_labels = hidden_states.index_select(0, first), shift_labels[first]
        inputs = self.head_transform(hidden_states)
        total = chunked_cross_entropy(inputs, self.lm_head.weight, self.lm_head.bias, shift_labels)
        return total / (count if num_items_in_batch is None else num_items_in_batch)


def loss_only(model: nn.Module) -> dict[str, bool]:
    """The argument that tells one of our models to leave its logits out; nothing for any other model."""
    return {"skip_logits": True} if isinstance(model, CausalLMHeadMixin) else {}


class NewLLMForCausalLM(CausalLMHeadMixin, NewLLMPreTrainedModel, RecurrentGenerationMixin):
    """New-LLM with its language-modelling head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: NewLLMConfig):
        super().__init__(config)
        self.model = NewLLMModel(config)
        tied = config.tie_word_embeddings
        self.lm_head = nn.Linear(
            config.embedding_size if tied else config.hidden_size, config.vocab_size, bias=not tied
        )
        self.post_init()

    @property
    def head_transform(self) -> nn.Module:
        return self.model.head_transform

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

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
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Arguments as `NewLLMModel.forward`; `labels` [B, T] are shifted inside (or pass `shift_labels`, already
        shifted), -100 marks positions that are not scored. `skip_logits=True`: the loss alone, in little memory."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            sparse_embedding_gradient=self.lm_head.weight is self.model.embed_tokens.weight
            and labels is not None
            and kwargs.get("skip_logits", False),
            skip_head_transform=True,
        )
        return self.lm_output(outputs, labels, logits_to_keep, **kwargs)
