"""The equations of both models, written out one token and one gate at a time, as slowly and plainly as possible."""

import torch


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


def layer_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred * centred).mean() + eps) * weight


def naive_logits(model, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of a NewLLMForCausalLM without dropout, padding or documents, from its parameters alone."""
    weights, config = dict(model.named_parameters()), model.config
    eps = config.layer_norm_eps
    rows = []
    for sequence in input_ids:
        contexts, last_us, last_vs = ([0.0] * config.num_hidden_layers for _ in range(3))
        logits = []
        for token in sequence:
            x = config.hidden_size**0.5 * weights["model.embed_tokens.weight"][token]
            for layer in range(config.num_hidden_layers):
                w = {
                    name.removeprefix(f"model.layers.{layer}."): value
                    for name, value in weights.items()
                    if name.startswith(f"model.layers.{layer}.")
                }
                mu_f, mu_d, mu_o, mu_v = w["shift_bias"]
                u = layer_norm(x, w["input_norm.weight"], eps)
                to_f, to_d, to_o = (u + mu * (last_us[layer] - u) for mu in (mu_f, mu_d, mu_o))
                last_us[layer] = u
                forget = sigmoid(w["forget_gate.weight"] @ to_f + w["forget_gate.bias"])
                written, output = w["delta.weight"] @ to_d, w["output_gate.weight"] @ to_o
                contexts[layer] = forget * contexts[layer] + (1 - forget) * written
                read = contexts[layer] * output * sigmoid(output)
                x = x + w["context_out.weight"] @ read
                v = layer_norm(x, w["mlp_norm.weight"], eps)
                to_mlp = v + mu_v * (last_vs[layer] - v)
                last_vs[layer] = v
                gate = w["mlp_gate.weight"] @ to_mlp
                x = x + w["mlp_out.weight"] @ (gate * sigmoid(gate) * (w["mlp_in.weight"] @ to_mlp))
            query = weights["model.projection.weight"] @ layer_norm(x, weights["model.norm.weight"], eps)
            query = layer_norm(query + weights["model.projection.bias"], weights["model.head_norm.weight"], eps)
            logits.append(weights["model.embed_tokens.weight"] @ query)
        rows.append(torch.stack(logits))
    return torch.stack(rows)


def naive_reference_logits(model, input_ids: torch.Tensor) -> torch.Tensor:
    """The same of a NewLLMReferenceForCausalLM."""
    weights, config = dict(model.named_parameters()), model.config
    w_delta, w_forget, w_write = weights["model.gates.weight"].chunk(3)
    b_delta, b_forget, b_write = weights["model.gates.bias"].chunk(3)
    first = torch.cat([weights["model.from_token.weight"], weights["model.from_context.weight"]], dim=1)
    rows = []
    for sequence in input_ids:
        context = torch.zeros(config.context_size, dtype=first.dtype)
        logits = []
        for token in sequence:
            hidden = first @ torch.cat([weights["model.embed_tokens.weight"][token], context])
            hidden = torch.relu(hidden + weights["model.from_token.bias"])
            for layer in range(config.num_hidden_layers - 1):
                name = f"model.deeper.{layer}"
                hidden = torch.relu(weights[f"{name}.weight"] @ hidden + weights[f"{name}.bias"])
            logits.append(weights["lm_head.weight"] @ hidden + weights["lm_head.bias"])
            forget, write = sigmoid(w_forget @ hidden + b_forget), sigmoid(w_write @ hidden + b_write)
            mixed = forget * context + write * (w_delta @ hidden + b_delta)
            normal = layer_norm(mixed, weights["model.context_norm.weight"], config.layer_norm_eps)
            context = torch.clamp(normal + weights["model.context_norm.bias"], -10, 10)
        rows.append(torch.stack(logits))
    return torch.stack(rows)
