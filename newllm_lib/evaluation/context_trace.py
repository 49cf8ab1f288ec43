"""How the context vector of a recurrent model changes while it reads, token by token.

Dimensions: N numbers of the context vector, S numbers of the state, of which they are the first; T tokens.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ..models.context_cache import ContextCache


@torch.no_grad()
def trace_context(
    model: PreTrainedModel, token_ids: Sequence[int], last: int, start: torch.Tensor | None = None
) -> torch.Tensor:
    """[T + 1, N] fp32, on the CPU: the context before the last T = min(last, all) of `token_ids`, and after each.

    Args:
        token_ids: at least one.
        start: [1, S] state before the first of them; None is none, which is zero.
    """
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
