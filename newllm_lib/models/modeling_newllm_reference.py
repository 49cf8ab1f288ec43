"""New-LLM exactly as published: one cell, whose gates see the context that they update, so that tokens are read one by
one.

    h0_t = [ e(x_t) ; c_{t-1} ]
    hl_t = dropout(relu(W_l h(l-1)_t + b_l)),  l = 1..L
    d_t, f_t, i_t = W_d hL_t + b_d,  sigmoid(W_f hL_t + b_f),  sigmoid(W_i hL_t + b_i)
    c_t = clamp(LayerNorm(f_t * c_{t-1} + i_t * d_t), -10, 10)
    logits_t = W_o hL_t + b_o

Dimensions: B rows, T tokens, E embedding, C context, H hidden, V vocabulary.
"""

import torch
from torch import nn

from .configuration_newllm import RecurrentConfig
from .linear_scan import scan_dtype
from .recurrent_model import RecurrentGenerationMixin, RecurrentPreTrainedModel, TimeLoopMixin

CONTEXT_CLAMP = 10.0


class NewLLMReferenceConfig(RecurrentConfig):
    """Sizes of the published model: E, C, H and the hidden layers between input and gates, L >= 1."""

    model_type = "newllm_reference"
    sizes = {"vocab_size": 1000, "embedding_size": 256, "context_size": 256, "hidden_size": 512, "num_hidden_layers": 1}

    def __init__(self, **kwargs):
        super().__init__(**{"initializer_range": 0.02, "tie_word_embeddings": False, **kwargs})

    @property
    def context_numbers(self) -> int:
        """How many numbers the context vector has, which is all of the state."""
        return self.context_size


class NewLLMReferenceModel(TimeLoopMixin, RecurrentPreTrainedModel):
    """The bare model: hidden states hL_t [B, T, H]."""

    config_class = NewLLMReferenceConfig

    def __init__(self, config: NewLLMReferenceConfig):
        super().__init__(config)
        E, C, H = config.embedding_size, config.context_size, config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, E)
        # Together the first layer: what does not depend on the context is taken for all tokens at once.
        self.from_token = nn.Linear(E, H)
        self.from_context = nn.Linear(C, H, bias=False)
        self.deeper = nn.ModuleList(nn.Linear(H, H) for _ in range(config.num_hidden_layers - 1))
        self.gates = nn.Linear(H, 3 * C)  # rows in the order delta, forget gate, input gate
        self.context_norm = nn.LayerNorm(C, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def read(self, x, c, mask, starts):
        """The state is the context alone, [B, C]."""
        if c is None:
            c = x.new_zeros(x.shape[0], self.config.context_size, dtype=scan_dtype(x))
        hidden_states = []
        for t, token in enumerate(self.from_token(x).unbind(1)):  # [B, H]
            if starts is not None:
                c = c.masked_fill(starts[:, t, None], 0)
            h, after = self.step(token, c)
            c = after if mask is None else torch.where(mask[:, t, None], after, c)
            hidden_states.append(h)
        return torch.stack(hidden_states, dim=1), c

    def step(self, token: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The token's share of the first layer [B, H] and the context [B, C] -> the last layer and the new context."""
        h = self.dropout(torch.relu(token + self.from_context(c.to(self.from_context.weight.dtype))))
        for layer in self.deeper:
            h = self.dropout(torch.relu(layer(h)))
        delta, gates = self.gates(h).to(c.dtype).split([c.shape[1], 2 * c.shape[1]], dim=1)
        forget, write = gates.sigmoid().chunk(2, dim=1)
        mixed = torch.addcmul(forget * c, write, delta).to(self.context_norm.weight.dtype)
        return h, self.context_norm(mixed).clamp(-CONTEXT_CLAMP, CONTEXT_CLAMP).to(c.dtype)


class NewLLMReferenceForCausalLM(RecurrentGenerationMixin, RecurrentPreTrainedModel):
    """The published model with its head, a linear layer of its own."""

    config_class = NewLLMReferenceConfig
    _tied_weights_keys = {}

    def __init__(self, config: NewLLMReferenceConfig):
        super().__init__(config)
        self.model = NewLLMReferenceModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()
