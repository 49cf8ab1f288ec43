"""How the context of a recurrent model changes while it reads, and how long New-LLM's channels remember: with forget
gate f, half of what a channel holds is gone after ln 2 / -ln f tokens.

Dimensions: N numbers of the context vector, S numbers of the state, of which they are the first; T tokens; L layers,
C channels of the context of one layer.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

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
