"""The equations of New-LLM's cell, written out one token and one gate at a time, as slowly and plainly as possible."""

import torch


def naive_logits(model, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of a NewLLMForCausalLM without dropout, padding or documents, from its parameters alone."""
    weights = dict(model.named_parameters())
    config = model.config
    size, layers = config.context_size, config.num_hidden_layers
    gate_weight, gate_bias = weights["model.recurrence.gates.weight"], weights["model.recurrence.gates.bias"]
    w_delta, w_forget, w_write = gate_weight[:size], gate_weight[size : 2 * size], gate_weight[2 * size :]
    b_delta, b_forget, b_write = gate_bias[:size], gate_bias[size : 2 * size], gate_bias[2 * size :]
    rows = []
    for sequence in input_ids:
        context = torch.zeros(size, dtype=gate_weight.dtype)
        logits = []
        for token in sequence:
            hidden = torch.cat([config.embedding_scale * weights["model.embed_tokens.weight"][token], context])
            for layer in range(layers):
                name = f"model.recurrence.layers.{layer}"
                hidden = weights[f"{name}.weight"] @ hidden + weights[f"{name}.bias"]
                hidden = torch.where(hidden > 0, hidden, torch.zeros_like(hidden))
            logits.append(naive_head(weights, config, hidden))
            delta = w_delta @ hidden + b_delta
            forget = 1 / (1 + torch.exp(-(w_forget @ hidden + b_forget)))
            write = 1 / (1 + torch.exp(-(w_write @ hidden + b_write)))
            mixed = forget * context + write * delta
            centred = mixed - mixed.mean()
            normal = centred / torch.sqrt((centred * centred).mean() + config.layer_norm_eps)
            scaled = normal * weights["model.recurrence.norm.weight"] + weights["model.recurrence.norm.bias"]
            context = torch.clamp(scaled, -config.context_clamp, config.context_clamp)
        rows.append(torch.stack(logits))
    return torch.stack(rows)


def naive_head(weights, config, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden state [H] -> logits [V]."""
    if not config.tie_word_embeddings:
        return weights["lm_head.weight"] @ hidden + weights["lm_head.bias"]
    query = weights["model.head_transform.projection.weight"] @ hidden + weights["model.head_transform.projection.bias"]
    query = (
        query / torch.sqrt((query * query).mean() + config.layer_norm_eps) * weights["model.head_transform.norm.weight"]
    )
    return weights["model.embed_tokens.weight"] @ query
