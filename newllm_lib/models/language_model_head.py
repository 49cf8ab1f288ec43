"""From hidden states to logits and loss: what New-LLM, its published cell and the LSTM baseline share.

Dimensions: B rows, T tokens, E embedding, H hidden, V vocabulary.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .chunked_loss import IGNORED, chunked_cross_entropy
from .context_cache import CACHE_NAME, ContextCache

# On a CPU positions that are not scored are left out of the head, in steps of this share of all: oneDNN compiles and
# keeps a program for every number of rows that it meets, which for numbers at random cost 3 MB an update. A GPU would
# have to wait until the host knows their number.
LEFT_OUT_IN_STEPS_OF = 1 / 16


class CausalLMHeadMixin:
    """A causal language model: the network `model`, its state between calls, and `lm_head` on top of its last hidden
    states."""

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
                loss = self.loss_function(
                    logits,
                    labels,
                    vocab_size=self.config.vocab_size,
                    shift_labels=shift_labels,
                    num_items_in_batch=num_items_in_batch,
                )
        state = {CACHE_NAME: getattr(outputs, CACHE_NAME)}
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


def loss_only(model: nn.Module) -> dict[str, bool]:
    """The argument that tells one of our models to leave its logits out; nothing for any other model."""
    return {"skip_logits": True} if isinstance(model, CausalLMHeadMixin) else {}
