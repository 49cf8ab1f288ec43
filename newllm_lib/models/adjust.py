"""Changes to a trained model before it is trained on: another dropout, more positions, a larger context.

Dimensions: C context of a layer, E width.
"""

import copy
from functools import cache

import torch
from torch import nn
from transformers import PreTrainedModel

from .modeling_newllm import NewLLMForCausalLM, NewLLMLayer

DROPOUT_FIELDS = ("dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop")


def set_dropout(model: PreTrainedModel, dropout: float) -> None:
    """The same probability for every place that drops units.

    Raises:
        ValueError: dropout is not in [0, 1).
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
    """Enlarge the context of every layer; the model computes what it did before: the new channels, as a new model has
    them, are read with weight zero at first.

    Raises:
        ValueError: the size is not larger.
    """
    old = model.config.context_size
    if context_size <= old:
        raise ValueError(f"context_size {context_size} has to be larger than the model's {old}.")
    config = copy.deepcopy(model.config)
    config.context_size = context_size - old
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs, too, for good
        fresh = NewLLMForCausalLM(config).to(model.device, model.dtype)
        for layer, new in zip(model.model.layers, fresh.model.layers, strict=True):
            for parameter, added in zip(_of_channels(layer), _of_channels(new), strict=True):
                parameter.data = torch.cat([parameter, added])
            readers = layer.context_out.weight  # [E, C]
            readers.data = torch.cat([readers, torch.zeros_like(new.context_out.weight)], dim=1)
            for linear in (layer.forget_gate, layer.delta, layer.output_gate):
                linear.out_features = context_size
            layer.context_out.in_features = context_size
    model.config.context_size = context_size


def train_new_context_only(model: NewLLMForCausalLM, old: int) -> None:
    """Freeze everything but what `grow_context` added beyond `old`. Where a weight is old in part, the gradient of
    that part is always zero: AdamW without weight decay leaves it as it is."""
    is_new = torch.arange(model.config.context_size) >= old
    model.requires_grad_(False)
    for layer in model.model.layers:
        for parameter in _of_channels(layer):
            _train_where(parameter, is_new.view(-1, *[1] * (parameter.dim() - 1)))
        _train_where(layer.context_out.weight, is_new)


def _of_channels(layer: NewLLMLayer) -> tuple[nn.Parameter, ...]:
    """The parameters whose first dimension is the channels of the context."""
    gate = layer.forget_gate
    return gate.weight, gate.bias, layer.delta.weight, layer.output_gate.weight


def _train_where(parameter: nn.Parameter, mask: torch.Tensor) -> None:
    @cache  # a captured update may not wait for a copy from the host
    def mask_on(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return mask.to(device, dtype)

    parameter.requires_grad_(True)
    parameter.register_hook(lambda gradient: gradient * mask_on(gradient.device, gradient.dtype))
