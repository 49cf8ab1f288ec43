"""How the context of a recurrent model changes while it reads, and how long New-LLM's channels remember: with forget
gate f, half of what a channel holds is gone after ln 2 / -ln f tokens.

Dimensions: N numbers of the context vector, S numbers of the state, of which they are the first; T tokens; L layers,
C channels of the context of one layer.
"""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from ..models.modeling_newllm import NewLLMForCausalLM
from ..models.recurrent_model import ContextCache


@torch.no_grad()
def trace_context(
    model: PreTrainedModel, token_ids: Sequence[int], last: int, start: torch.Tensor | None = None
) -> torch.Tensor:
    """[T + 1, N] fp32, on the CPU: the context before the last T = min(last, all) of `token_ids`, of which there is at
    least one, and after each. `start` is the [1, S] state before the first of them; None is zero."""
    token_ids = torch.tensor([list(token_ids)], device=model.device)
    cache = ContextCache(None if start is None else start.to(model.device))

    def read(begin: int, end: int) -> torch.Tensor:
        model(input_ids=token_ids[:, begin:end], past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache.context

    earlier = max(token_ids.shape[1] - last, 0)
    before = read(0, earlier) if earlier else cache.context
    states = [read(position, position + 1) for position in range(earlier, token_ids.shape[1])]
    states = torch.cat([torch.zeros_like(states[0]) if before is None else before, *states])
    return states[:, : model.config.context_numbers].float().cpu()


@torch.no_grad()
def half_lives_of_biases(model: NewLLMForCausalLM) -> torch.Tensor:
    """[L, C] half-lives in tokens, as the forget gates' biases alone would have them; the same whatever is read."""
    log_forget = torch.stack([functional.logsigmoid(layer.forget_gate.bias) for layer in model.model.layers])
    return math.log(2) / -log_forget.float().cpu()


@torch.no_grad()
def measured_half_lives(model: NewLLMForCausalLM, token_ids: Sequence[int]) -> torch.Tensor:
    """[L, C] half-lives in tokens, from the mean of ln f while the model reads `token_ids`."""
    measured, was_training = [], model.training

    def measure(gate, inputs, z):
        measured.append(functional.logsigmoid(z.float()).mean(dim=(0, 1)))

    hooks = [layer.forget_gate.register_forward_hook(measure) for layer in model.model.layers]
    try:
        model.eval().model(input_ids=torch.tensor([list(token_ids)], device=model.device), use_cache=False)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return math.log(2) / -torch.stack(measured).float().cpu()
