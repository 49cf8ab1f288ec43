"""New-LLM: a language model without attention, trained on all tokens of a row at once, that generates with a memory of
fixed size. Every layer l = 1..L is

    u = norm(x);   u'_p = u + mu_p * (u[t-1] - u),  p = f, d, o              token shift
    f, d, o = sigmoid(W_f u'_f + b_f),  W_d u'_d,  W_o u'_o                  forget gate, what is written, output gate
    c_t = f * c_{t-1} + (1 - f) * d                                          the context
    x = x + W_c (c_t * silu(o))
    v = norm(x);   v' = v + mu_v * (v[t-1] - v)
    x = x + W_2 (silu(W_a v') * W_b v')

between x = sqrt(E) * embedding and norm(P dropout(norm(x))), whose product with the embedding table gives the logits.
The context vector of New-LLM is its layers' contexts side by side; no gate reads it, so the recurrence is linear
(linear_scan.py). Token shift is RWKV's (Peng et al. 2023, https://arxiv.org/abs/2305.13048).

Dimensions: B rows, T tokens, E hidden_size, C context_size, H intermediate_size, L layers, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_newllm import NewLLMConfig
from .gpu import kernels_for
from .linear_scan import linear_scan, scan_dtype
from .matrix_products import working_dtype
from .recurrent_model import RecurrentGenerationMixin, RecurrentModelMixin, RecurrentPreTrainedModel

SHIFT_AT_FIRST = 0.3
FORGET_BIAS_AT_FIRST = -1.0, 4.0  # of the first and the last channel: half-lives of half a token to 38 tokens


class RowBounds:
    """Where documents begin in a batch of rows, and which positions count.

    Attributes:
        starts: [B, T] bool, True where a document begins; or None.
        mask: [B, T] bool, False at a position that leaves everything as it is; or None.
        newest: [B, 1 + T], with `mask`: the number of the newest position that counts, from 1; 0 is before the row.
    """

    def __init__(self, mask: torch.Tensor | None, starts: torch.Tensor | None):
        self.mask, self.starts, self.newest = mask, starts, None
        if mask is not None:
            numbers = torch.arange(1, mask.shape[1] + 1, device=mask.device) * mask
            self.newest = functional.pad(numbers.cummax(dim=1).values, (1, 0))

    def difference(self, u: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u[t-1] - u, [B, T, E], where the last u before the row was `last` [B, E]; and the last u of the row [B, E].

        Of what came before, the newest position that counts is meant; before a document begins u is 0.
        """
        after = torch.cat([last.to(u.dtype)[:, None], u], dim=1)  # [B, 1 + T, E]
        if self.newest is not None:
            after = after.gather(1, self.newest[:, :, None].expand(-1, -1, u.shape[2]))
        before = after[:, :-1]
        if self.starts is not None:
            before = before.masked_fill(self.starts[:, :, None], 0)
        return before - u, after[:, -1]


class NewLLMLayer(GradientCheckpointingLayer):
    """One layer: tokens exchange what they know through the context, then each goes through an MLP."""

    def __init__(self, config: NewLLMConfig):
        super().__init__()
        E, C, H = config.hidden_size, config.context_size, config.intermediate_size
        self.input_norm = nn.LayerNorm(E, eps=config.layer_norm_eps, bias=False)
        # mu_f, mu_d, mu_o and mu_v [4, E]; transformers exempts from weight decay what is named so.
        self.shift_bias = nn.Parameter(torch.full((4, E), SHIFT_AT_FIRST))
        self.forget_gate = nn.Linear(E, C)
        self.delta = nn.Linear(E, C, bias=False)
        self.output_gate = nn.Linear(E, C, bias=False)
        self.context_out = nn.Linear(C, E, bias=False)
        self.mlp_norm = nn.LayerNorm(E, eps=config.layer_norm_eps, bias=False)
        self.mlp_gate = nn.Linear(E, H, bias=False)
        self.mlp_in = nn.Linear(E, H, bias=False)
        self.mlp_out = nn.Linear(H, E, bias=False)

    def forward(
        self, x: torch.Tensor, context: torch.Tensor, last_u: torch.Tensor, last_v: torch.Tensor, bounds: RowBounds
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, T, E] and, of the position before, context [B, C], u [B, E] and v [B, E] -> the same after the row."""
        mus = self.shift_bias
        (for_f, for_delta, for_o), last_u = shifted(self.input_norm, x, mus[:3], last_u, bounds)
        z, delta, o = self.forget_gate(for_f), self.delta(for_delta), self.output_gate(for_o)  # [B, T, C] each
        contexts = linear_scan(z, delta, bounds.starts, bounds.mask, context)
        x = x + self.context_out(gated(contexts, o))
        (v,), last_v = shifted(self.mlp_norm, x, mus[3:], last_v, bounds)
        x = x + self.mlp_out(gated(self.mlp_in(v), self.mlp_gate(v)))  # [B, T, H] inside
        return x, contexts[:, -1], last_u, last_v


def shifted(
    norm: nn.Module, x: torch.Tensor, mus: torch.Tensor, last: torch.Tensor, bounds: RowBounds
) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
    """With u = norm(x) [B, T, E]: u + mu * (u[t-1] - u) for each of `mus` [P, E], and the last u [B, E]; the one before
    the row is `last` [B, E]."""
    dtype = working_dtype(x)
    # A norm that something has replaced, such as an adapter, is more than its weight.
    if bounds.mask is None and type(norm) is nn.LayerNorm and (kernels := kernels_for(x)):
        *copies, last = kernels.shifted_norm(x, norm.weight, mus, last, bounds.starts, norm.eps, dtype)
        return copies, last
    u = norm(x).to(dtype)
    difference, last = bounds.difference(u, last)
    return [u + mu * difference for mu in mus.to(dtype).unbind()], last


def gated(c: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
    """c times silu(o), [B, T, channels] each, in o's type."""
    if kernels := kernels_for(c):
        return kernels.gated(c, o)
    return c.to(o.dtype) * functional.silu(o)


class NewLLMPreTrainedModel(RecurrentPreTrainedModel):
    config_class = NewLLMConfig
    _no_split_modules = ["NewLLMLayer"]
    is_capturable = True  # the host reads no value of a tensor on the way

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, NewLLMLayer):
            init.constant_(module.shift_bias, SHIFT_AT_FIRST)
            # Many time scales from the first update on; and every layer adds little to x.
            init.copy_(module.forget_gate.bias, torch.linspace(*FORGET_BIAS_AT_FIRST, self.config.context_size))
            for linear in (module.context_out, module.mlp_out):
                init.normal_(linear.weight, std=(2 * self.config.num_hidden_layers * linear.in_features) ** -0.5)
        elif isinstance(module, NewLLMModel):
            init.xavier_normal_(module.projection.weight)


class NewLLMModel(RecurrentModelMixin, NewLLMPreTrainedModel):
    """The bare model: hidden states, one per token, as the language-modelling head multiplies them."""

    def __init__(self, config: NewLLMConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(NewLLMLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.head_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
        self.post_init()

    def recur(self, x, state, mask, starts, shown):
        """The state is [B, S] in the order of `state_parts`."""
        x = x * self.config.hidden_size**0.5  # [B, T, E]
        bounds = RowBounds(mask, starts)
        if state is None:
            size = self.config.num_hidden_layers * (self.config.context_size + 2 * self.config.hidden_size)
            state = x.new_zeros(x.shape[0], size, dtype=scan_dtype(x))
        before, after = state_parts(self.config, state), []
        for layer, *parts in zip(self.layers, *before, strict=True):
            if shown is not None:
                shown.append(x)
            x, *parts = layer(x, *parts, bounds)
            after.append(parts)
        parts = [part.to(state.dtype) for kind in zip(*after, strict=True) for part in kind]
        return self.head_norm(self.projection(self.dropout(self.norm(x))).to(x.dtype)), torch.cat(parts, dim=1)


def state_parts(config: NewLLMConfig, state: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], ...]:
    """What a sequence carries, [B, S] with S = L * (C + 2 E): first the contexts of all layers (the context vector),
    then the last token's u of every layer, then its v.

    Returns:
        The contexts, L times [B, C]; u and v, L times [B, E] each.
    """
    layers, sizes = config.num_hidden_layers, (config.context_size, config.hidden_size, config.hidden_size)
    kinds = state.split([layers * size for size in sizes], dim=1)
    return tuple(kind.split(size, dim=1) for kind, size in zip(kinds, sizes, strict=True))


class NewLLMForCausalLM(RecurrentGenerationMixin, NewLLMPreTrainedModel):
    """New-LLM with its language-modelling head; `RecurrentGenerationMixin` has the way to logits and loss."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: NewLLMConfig):
        super().__init__(config)
        self.model = NewLLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
