"""How long the channels of New-LLM's contexts remember: with forget gate f, half of what a channel holds is gone after
ln 2 / -ln f tokens.

Dimensions: L layers, C channels of the context of one layer.
"""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from ..models.modeling_newllm import NewLLMForCausalLM


@torch.no_grad()
def half_lives_of_biases(model: NewLLMForCausalLM) -> torch.Tensor:
    """[L, C] half-lives in tokens, as the forget gates' biases alone would have them; the same whatever is read."""
    return _half_lives([functional.logsigmoid(layer.forget_gate.bias) for layer in model.model.layers])


@torch.no_grad()
def measured_half_lives(model: NewLLMForCausalLM, token_ids: Sequence[int]) -> torch.Tensor:
    """[L, C] half-lives in tokens, from the mean of ln f while the model reads `token_ids`."""
    measured = []

    def measure(gate, inputs, z):
        measured.append(functional.logsigmoid(z.float()).mean(dim=(0, 1)))

    hooks = [layer.forget_gate.register_forward_hook(measure) for layer in model.model.layers]
    was_training = model.training
    try:
        model.eval().model(input_ids=torch.tensor([list(token_ids)], device=model.device), use_cache=False)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return _half_lives(measured)


def _half_lives(log_forget: Sequence[torch.Tensor]) -> torch.Tensor:
    return math.log(2) / -torch.stack(list(log_forget)).float().cpu()
