"""A causal language model in two parts, the network up to its last hidden states and the head, for those who never
hold the logits of a whole batch."""

import torch
from torch import nn
from transformers import PreTrainedModel

from .lwf_loss import Head

PROBE_TOKENS = 8
TOLERANCE = 2e-2  # of the largest logit; half precision rounds, another kind of head is far off


def plain_model(model: nn.Module) -> PreTrainedModel:
    """The causal-LM inside PEFT's wrapper, with the adapters in it; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def split_head(model: nn.Module) -> tuple[nn.Module, Head]:
    """(the network that gives `last_hidden_state`, the head on top of it)."""
    plain = plain_model(model)
    layer = plain.get_output_embeddings()
    softcap = getattr(plain.config, "final_logit_softcapping", None)
    bias = getattr(layer, "bias", None)
    return plain.base_model, Head(layer.weight.detach(), None if bias is None else bias.detach(), softcap)


@torch.no_grad()
def check_split(model: nn.Module) -> None:
    """Raises ValueError for a model whose logits are not what its head makes of its last hidden states, such as one
    that scales them: a loss without logits would be another one."""
    plain = plain_model(model)
    if plain.get_output_embeddings() is None:
        raise ValueError(f"{type(plain).__name__} has no language-modelling head.")
    if not isinstance(plain.base_model, PreTrainedModel):
        raise ValueError(f"{type(plain).__name__} has no network of its own below its head.")
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(0)
    types = plain.get_output_embeddings().weight.shape[0]
    input_ids = torch.randint(0, types, (1, PROBE_TOKENS), generator=generator).to(plain.device)
    decoder, head = split_head(model)
    hidden = decoder(input_ids=input_ids, use_cache=False).last_hidden_state[0]
    logits = model(input_ids=input_ids, use_cache=False).logits[0].float()
    model.train(was_training)
    same = hidden.shape[-1] == head.weight.shape[1]
    if same:
        ours = nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias).float()
        if head.softcap is not None:
            ours = head.softcap * torch.tanh(ours / head.softcap)
        same = float((ours - logits).abs().max()) <= TOLERANCE * float(logits.abs().max())
    if not same:
        raise ValueError(
            f"{type(plain).__name__} does more between its last hidden states and its logits than a linear head with "
            "soft-capping."
        )
