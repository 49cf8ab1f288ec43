"""The slow, obvious twin of `context_scan`: one time step at a time under autograd, for comparison in values and
gradients."""

import torch
from torch.nn import functional


def plain_recurrence(recurrence, token_projections, context=None, attention_mask=None, document_starts=None):
    """Arguments and results as `ContextRecurrence.forward`, without dropout."""
    if context is None:
        context = recurrence.norm.weight.new_zeros(token_projections.shape[0], recurrence.context_size)
    context_weight = recurrence.layers[0].weight[:, recurrence.embedding_size :]
    hidden_states = []
    for t in range(token_projections.shape[1]):
        if document_starts is not None:
            context = context.masked_fill(document_starts[:, t, None], 0.0)
        hidden = functional.relu(token_projections[:, t] + functional.linear(context, context_weight))
        for layer in recurrence.layers[1:]:
            hidden = functional.relu(layer(hidden))
        hidden_states.append(hidden)
        delta, forget, write = recurrence.gates(hidden).chunk(3, dim=-1)
        mixed = torch.sigmoid(forget) * context + torch.sigmoid(write) * delta
        updated = recurrence.norm(mixed).clamp(-recurrence.context_clamp, recurrence.context_clamp)
        context = updated if attention_mask is None else torch.where(attention_mask[:, t, None], updated, context)
    return torch.stack(hidden_states, dim=1), context
