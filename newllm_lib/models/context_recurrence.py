"""The recurrence of New-LLM over time: token projections in, hidden states and the final context out.

One plain, readable loop. Everything that does not depend on the context (the token's share of the first layer, the
vocabulary projection) stays outside of it. A faster implementation may replace this module: the model uses only
`project_tokens` and `forward`.

Dimensions: B rows, T tokens, E embedding, C context, H hidden.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional

from .configuration_newllm import NewLLMConfig


class HiddenLayer(nn.Linear):
    """A linear layer followed by relu; its own class so that initialisation can tell it from other layers."""


class ContextGates(nn.Linear):
    """H -> 3C; rows in the order delta, forget gate, input gate."""


class ContextRecurrence(nn.Module):
    """The gated context cell:

    h0 = [e(x_t); c_{t-1}],  h_l = dropout(relu(W_l h_{l-1} + b_l)),  l = 1..L
    delta, f, i = W_delta h_L + b_delta,  sigmoid(W_f h_L + b_f),  sigmoid(W_i h_L + b_i)
    c_t = clamp(LayerNorm(f * c_{t-1} + i * delta), -context_clamp, context_clamp)
    """

    def __init__(self, config: NewLLMConfig):
        super().__init__()
        self.embedding_size = config.embedding_size
        self.context_size = config.context_size
        self.context_clamp = config.context_clamp
        widths = [config.embedding_size + config.context_size] + [config.hidden_size] * config.num_hidden_layers
        self.layers = nn.ModuleList(HiddenLayer(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(widths))
        self.dropout = nn.Dropout(config.dropout)
        self.gates = ContextGates(config.hidden_size, 3 * config.context_size)
        self.norm = nn.LayerNorm(config.context_size, eps=config.layer_norm_eps)

    def project_tokens(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """The part of the first layer that needs no context: [B, T, E] -> [B, T, H], bias included."""
        first = self.layers[0]
        return functional.linear(inputs_embeds, first.weight[:, : self.embedding_size], first.bias)

    def forward(
        self,
        token_projections: torch.Tensor,
        context: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        document_starts: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Walk the tokens once.

        Args:
            token_projections: [B, T, H] from `project_tokens`.
            context: [B, C] context before the first token; None means zero.
            attention_mask: [B, T] bool, False where a position must leave the context untouched.
            document_starts: [B, T] bool, True where a new document begins with a zero context.

        Returns:
            Hidden states of the last layer [B, T, H] and the context after the last token [B, C].
        """
        if context is None:
            # In the weights' precision: under autocast the context stays fp32 although the GEMMs do not.
            context = self.norm.weight.new_zeros(token_projections.shape[0], self.context_size)
        context_weight = self.layers[0].weight[:, self.embedding_size :]  # [H, C]
        hidden_states = []
        for t in range(token_projections.shape[1]):
            if document_starts is not None:
                context = context.masked_fill(document_starts[:, t, None], 0.0)
            hidden = token_projections[:, t] + functional.linear(context, context_weight)  # [B, H]
            hidden = self.dropout(functional.relu(hidden))
            for layer in self.layers[1:]:
                hidden = self.dropout(functional.relu(layer(hidden)))
            hidden_states.append(hidden)
            updated = self._update(hidden, context)
            context = updated if attention_mask is None else torch.where(attention_mask[:, t, None], updated, context)
        return torch.stack(hidden_states, dim=1), context

    def _update(self, hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """One step of the context: hidden [B, H], context [B, C] -> new context [B, C]."""
        delta, forget, write = self.gates(hidden).to(context.dtype).chunk(3, dim=-1)
        mixed = torch.sigmoid(forget) * context + torch.sigmoid(write) * delta
        return self.norm(mixed).clamp(-self.context_clamp, self.context_clamp)
