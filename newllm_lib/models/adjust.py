"""Changes to a trained model before it is trained on: another dropout, more positions, a larger context.

Dimensions: C context, E embedding, H hidden.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from .modeling_newllm import NewLLMForCausalLM

DROPOUT_FIELDS = ("dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop")


def set_dropout(model: PreTrainedModel, dropout: float) -> None:
    """The same share for every place that drops units.

    Raises:
        ValueError: the share is none.
    """
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout!r}.")
    for name in DROPOUT_FIELDS:
        if hasattr(model.config, name):
            setattr(model.config, name, dropout)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        elif isinstance(module, nn.LSTM) and module.num_layers > 1:  # between its layers
            module.dropout = dropout
    if isinstance(model, NewLLMForCausalLM):
        recurrent = model.config.recurrent_dropout
        model.model.recurrence.dropout = dropout if recurrent else 0.0
        model.model.dropout.p = 0.0 if recurrent else dropout


def extend_positions(model: PreTrainedModel, positions: int) -> None:
    """Give a GPT-2 at least this many learned positions. The new ones begin as copies of the old ones in turn: what a
    position knows of its neighbours holds further on, too. Nothing is done to a model without positions."""
    known = getattr(model.config, "n_positions", positions)
    if known >= positions:
        return
    table = model.transformer.wpe
    longer = nn.Embedding(positions, table.embedding_dim).to(table.weight)
    with torch.no_grad():
        longer.weight.copy_(table.weight[torch.arange(positions) % known])
    model.transformer.wpe = longer
    model.config.n_positions = positions


def grow_context(model: NewLLMForCausalLM, context_size: int) -> None:
    """Enlarge the context vector to a multiple of its size; the model computes what it did before.

    The new part begins as copies of the old, so that LayerNorm sees the same mean and variance, and is read with weight
    zero. From the first update on its readers differ from the old one's, and then it does (as in Net2Net, Chen et al.
    2016).

    Raises:
        ValueError: the size is no multiple, or not larger.
    """
    config, recurrence = model.config, model.model.recurrence
    old = config.context_size
    if context_size <= old or context_size % old:
        multiples = ", ".join(str(old * factor) for factor in (2, 3, 4))
        raise ValueError(f"context_size {context_size} has to be a multiple of the model's {old}: {multiples}, ...")
    factor = context_size // old
    first, gates, norm = recurrence.layers[0], recurrence.gates, recurrence.norm
    with torch.no_grad():
        unread = first.weight.new_zeros(first.out_features, context_size - old)
        first.weight = nn.Parameter(torch.cat([first.weight, unread], dim=1))
        gates.weight = nn.Parameter(torch.cat([part for part in gates.weight.chunk(3) for _ in range(factor)]))
        gates.bias = nn.Parameter(torch.cat([part for part in gates.bias.chunk(3) for _ in range(factor)]))
        norm.weight, norm.bias = (nn.Parameter(part.repeat(factor)) for part in (norm.weight, norm.bias))
    first.in_features += context_size - old
    gates.out_features, norm.normalized_shape = 3 * context_size, (context_size,)
    config.context_size = recurrence.context_size = context_size


def train_new_context_only(model: NewLLMForCausalLM, old: int) -> None:
    """Freeze everything but what `grow_context` added beyond `old`. Of a weight that is old in part, the old part's
    gradient is always zero, so that AdamW without weight decay leaves it as it is."""
    recurrence, size = model.model.recurrence, model.config.context_size
    is_new = torch.arange(size) >= old
    first, gates, norm = recurrence.layers[0], recurrence.gates, recurrence.norm
    embedding_size = first.in_features - size
    model.requires_grad_(False)
    masks = {
        first.weight: torch.cat([torch.zeros(embedding_size, dtype=torch.bool), is_new])[None, :],
        gates.weight: is_new.repeat(3)[:, None],
        gates.bias: is_new.repeat(3),
        norm.weight: is_new,
        norm.bias: is_new,
    }
    for parameter, mask in masks.items():
        parameter.requires_grad_(True)
        parameter.register_hook(_masked(mask))


def _masked(mask: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda gradient: gradient * mask.to(gradient)
