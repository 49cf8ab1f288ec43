"""The recurrence of New-LLM over time: tokens in, hidden states and the final context out.

Everything that does not depend on the context stays outside of the loop over time: the token's share of the first layer
before it (`project_ids`), the head after it. The loop itself is `context_scan`, with a backward written by hand; its
slow, obvious twin is `plain_recurrence` in the tests.

Dimensions: B rows, T tokens, E embedding, C context, H hidden, V vocabulary.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from .configuration_newllm import NewLLMConfig
from .context_scan import scan_context
from .matrix_products import linear


class HiddenLayer(nn.Linear):
    """A linear layer followed by relu; its own class so that initialisation can tell it from other layers."""


class ContextGates(nn.Linear):
    """H -> 3C; rows in the order delta, forget gate, input gate."""


PLAIN_LAYERS = (HiddenLayer, ContextGates)


def weight_and_bias(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """What a linear layer multiplies by and adds. Of one that has been replaced, as PEFT's adapters and bitsandbytes'
    quantized layers do, this is what it makes of unit vectors and of zero."""
    if type(layer) in PLAIN_LAYERS:
        return layer.weight, layer.bias
    if is_plain_lora(layer):
        names = [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.lora_A]
        weight = sum((layer.get_delta_weight(name) for name in names), start=layer.base_layer.weight)
        return weight, layer.base_layer.bias
    units = torch.eye(layer.in_features, device=next(layer.parameters()).device)
    bias = layer(torch.zeros_like(units[:1]))[0]
    return (layer(units) - bias).t(), bias


def is_plain_lora(layer: nn.Module) -> bool:
    """True for PEFT's LoRA on one of our layers where it is a sum of two matrices, which takes a thirtieth of the time
    of unit vectors; not with dropout of its inputs, a bias of its own, or a variant such as DoRA."""
    if type(getattr(layer, "base_layer", None)) not in PLAIN_LAYERS or not hasattr(layer, "lora_variant"):
        return False
    dropouts = layer.lora_dropout.values()
    is_sum = not layer.lora_variant and not any(layer.lora_bias.values())
    return is_sum and not layer.merged and all(type(dropout) is nn.Identity for dropout in dropouts)


class ContextRecurrence(nn.Module):
    """The gated context cell:

    h0 = [embedding_scale * e(x_t); c_{t-1}],  h_l = relu(W_l h_{l-1} + b_l),  l = 1..L
    delta, f, i = W_delta h_L + b_delta,  sigmoid(W_f h_L + b_f),  sigmoid(W_i h_L + b_i)
    c_t = clamp(LayerNorm(f * c_{t-1} + i * delta), -context_clamp, context_clamp)

    With `recurrent_dropout` every h_l passes through dropout in here, as published.
    """

    def __init__(self, config: NewLLMConfig):
        super().__init__()
        self.embedding_size = config.embedding_size
        self.embedding_scale = config.embedding_scale
        self.context_size = config.context_size
        self.context_clamp = config.context_clamp
        self.dropout = config.dropout if config.recurrent_dropout else 0.0
        widths = [config.embedding_size + config.context_size] + [config.hidden_size] * config.num_hidden_layers
        self.layers = nn.ModuleList(HiddenLayer(fan_in, fan_out) for fan_in, fan_out in pairwise(widths))
        self.gates = ContextGates(config.hidden_size, 3 * config.context_size)
        self.norm = nn.LayerNorm(config.context_size, eps=config.layer_norm_eps)

    def project_embeddings(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """The part of the first layer that needs no context: [..., E] -> [..., H], bias included."""
        weight, bias = weight_and_bias(self.layers[0])
        return linear(inputs_embeds * self.embedding_scale, weight[:, : self.embedding_size], bias)

    def project_ids(
        self, input_ids: torch.LongTensor, embed_tokens: nn.Embedding, sparse_gradient: bool = False
    ) -> torch.Tensor:
        """`project_embeddings` of the tokens' embeddings: [B, T] -> [B, T, H]. With fewer types than tokens the table
        is projected once and rows are looked up in it, which is the same product with fewer rows.

        `sparse_gradient`: the looked-up rows' gradient is added to the one that a tied head makes for the whole table;
        a second one of that size never exists. Without such a head an optimizer would have to take sparse gradients.
        """
        if embed_tokens.num_embeddings < input_ids.numel():
            return functional.embedding(input_ids, self.project_embeddings(embed_tokens.weight))
        return self.project_embeddings(functional.embedding(input_ids, embed_tokens.weight, sparse=sparse_gradient))

    def forward(
        self,
        token_projections: torch.Tensor,
        context: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        document_starts: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Walk the tokens once.

        Args:
            token_projections: [B, T, H] from `project_ids` or `project_embeddings`; may be overwritten.
            context: [B, C] context before the first token; None means zero.
            attention_mask: [B, T] bool, False where a position must leave the context untouched.
            document_starts: [B, T] bool, True where a new document begins with a zero context.

        Returns:
            Hidden states of the last layer [B, T, H] and the context after the last token [B, C].
        """
        if context is None:
            # In the weights' precision: under autocast the context stays fp32 although the matrix products do not.
            context = self.norm.weight.new_zeros(token_projections.shape[0], self.context_size)
        deeper = [tensor for layer in self.layers[1:] for tensor in weight_and_bias(layer)]
        return scan_context(
            token_projections,
            context,
            attention_mask,
            document_starts,
            self.dropout if self.training else 0.0,
            self.context_clamp,
            self.norm,
            weight_and_bias(self.layers[0])[0][:, self.embedding_size :],
            *weight_and_bias(self.gates),
            deeper,
        )
