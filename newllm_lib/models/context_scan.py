"""The loop over time with a hand-written backward: the plain loop's arithmetic in fewer and larger operations.

The backward walks time once and leaves every weight gradient to one matrix product over all time steps. Under autocast
the matrix products run in its dtype; context, gates, LayerNorm and reductions keep the weights' own. Nothing here waits
for a GPU, so a step can be captured in a CUDA graph.

Dimensions: B rows, T tokens, C context, H hidden, L layers. Time comes first, so that one step is contiguous.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.autograd.function import once_differentiable


def scan_context(
    token_projections: torch.Tensor,
    context: torch.Tensor,
    attention_mask: torch.Tensor | None,
    document_starts: torch.Tensor | None,
    dropout: float,
    clamp: float,
    norm: nn.LayerNorm,
    context_weight: torch.Tensor,
    gates: nn.Linear,
    deeper: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the cell over T tokens.

    Args:
        token_projections: [B, T, H], what the first layer makes of the tokens.
        context: [B, C] before the first token.
        attention_mask, document_starts: [B, T] bool or None.
        context_weight: [H, C], the first layer's weights on the context.
        gates: H -> 3C in the order delta, forget, input.
        deeper: weight and bias of layers 2 to L.

    Returns:
        Hidden states of layer L [B, T, H] and the context after the last token [B, C].
    """
    device = token_projections.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else context.dtype
    parameters = [norm.weight, norm.bias, context_weight, gates.weight, gates.bias, *deeper]
    trains = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (token_projections, context, *parameters)
    )
    by_time = token_projections.transpose(0, 1).to(dtype).contiguous()
    masks = [None if mask is None else mask.t()[:, :, None] for mask in (attention_mask, document_starts)]
    with torch.autocast(device, enabled=False):
        hidden_states, context = ContextScan.apply(
            trains, dropout, clamp, norm.eps, dtype, *masks, by_time, context, *parameters
        )
    return hidden_states.transpose(0, 1), context


class ContextScan(torch.autograd.Function):
    """[T, B, H] token projections and [B, C] context -> [T, B, H] hidden states and [B, C] context."""

    @staticmethod
    def forward(ctx, trains, dropout, clamp, eps, dtype, keep, starts, projections, context, *parameters):
        norm_weight, norm_bias, context_weight, gate_weight, gate_bias, *deeper = parameters
        num_tokens, batch_size, hidden_size = projections.shape
        context_size = context.shape[1]
        num_layers = 1 + len(deeper) // 2
        slots = num_tokens if trains else 1  # without a backward one slot serves every step

        from_context, to_gates, gate_bias = context_weight.to(dtype).t(), gate_weight.to(dtype).t(), gate_bias.to(dtype)
        layers = [(w.to(dtype).t(), b.to(dtype)) for w, b in zip(deeper[0::2], deeper[1::2], strict=True)]
        hidden = [projections.new_empty(slots, batch_size, hidden_size) for _ in layers]
        hidden.append(projections.new_empty(num_tokens, batch_size, hidden_size))  # the output
        inputs, mixed, updated = (context.new_empty(slots, batch_size, context_size) for _ in range(3))
        gates = context.new_empty(slots, batch_size, 3 * context_size)
        means, rstds = (context.new_empty(slots, batch_size, 1) for _ in range(2))
        drops = None
        if dropout > 0:
            drops = torch.rand(num_tokens, num_layers, batch_size, hidden_size, device=projections.device)
            drops = drops.ge_(dropout).mul_(1 / (1 - dropout)).to(dtype)

        for t in range(num_tokens):
            slot = t if trains else 0
            if starts is not None:
                context = context.masked_fill(starts[t], 0.0)
            inputs[slot].copy_(context)
            for layer in range(num_layers):
                h = hidden[layer][t if layer == num_layers - 1 else slot]
                if layer == 0:
                    torch.addmm(projections[t], context.to(dtype), from_context, out=h)
                else:
                    torch.addmm(layers[layer - 1][1], hidden[layer - 1][slot], layers[layer - 1][0], out=h)
                h.relu_()
                if drops is not None:
                    h.mul_(drops[t, layer])
            g = gates[slot]
            g.copy_(torch.addmm(gate_bias, h, to_gates))
            g[:, context_size:].sigmoid_()
            delta, forget, write = g.split(context_size, dim=1)
            torch.mul(forget, inputs[slot], out=mixed[slot]).addcmul_(write, delta)
            normal, mean, rstd = torch.native_layer_norm(mixed[slot], (context_size,), norm_weight, norm_bias, eps)
            torch.clamp(normal, -clamp, clamp, out=updated[slot])
            means[slot], rstds[slot] = mean, rstd
            context = updated[slot] if keep is None else torch.where(keep[t], updated[slot], context)

        if trains:
            saved = (keep, starts, inputs, mixed, updated, gates, means, rstds)
            ctx.save_for_backward(*saved, *hidden, *parameters)
            ctx.settings = dropout, clamp, dtype, num_layers
        return hidden[-1], context.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_hidden, grad_context):
        dropout, clamp, dtype, num_layers = ctx.settings
        keep, starts, inputs, mixed, updated, gates, means, rstds, *rest = ctx.saved_tensors
        hidden, parameters = rest[:num_layers], rest[num_layers:]
        norm_weight, norm_bias, context_weight, gate_weight, _, *deeper = parameters
        num_tokens, batch_size, context_size = inputs.shape
        to_context, to_hidden = context_weight.to(dtype), gate_weight.to(dtype)
        downwards = [weight.to(dtype) for weight in deeper[0::2]]

        delta, forget, write = gates.split(context_size, dim=2)
        # d mixed / d (delta, forget, input gate before its sigmoid), all time steps at once.
        slopes = torch.cat([write, inputs * forget * (1 - forget), delta * write * (1 - write)], dim=2)
        slopes = slopes.view(num_tokens, batch_size, 3, context_size)
        passes_clamp = updated.abs() < clamp
        grad_normal = torch.empty_like(inputs)
        grad_gates = torch.empty_like(gates, dtype=dtype)
        grad_layers = [torch.empty_like(h) for h in hidden]  # before relu
        grad_hidden = grad_hidden.to(dtype)

        for t in range(num_tokens - 1, -1, -1):
            through = grad_context if keep is None else grad_context * keep[t]
            torch.mul(through, passes_clamp[t], out=grad_normal[t])
            grad_mixed, _, _ = torch.ops.aten.native_layer_norm_backward(
                grad_normal[t],
                mixed[t],
                (context_size,),
                means[t],
                rstds[t],
                norm_weight,
                norm_bias,
                (True, False, False),
            )
            grad_gates[t].view(batch_size, 3, context_size).copy_(grad_mixed[:, None] * slopes[t])
            past = grad_mixed * forget[t]
            if keep is not None:
                past += grad_context - through
            grad = torch.addmm(grad_hidden[t], grad_gates[t], to_hidden)
            for layer in range(num_layers - 1, -1, -1):
                # A unit that relu cut off or dropout dropped is 0, and passes nothing.
                torch.mul(grad, hidden[layer][t] > 0, out=grad_layers[layer][t])
                if dropout > 0:
                    grad_layers[layer][t].mul_(1 / (1 - dropout))
                if layer > 0:
                    grad = grad_layers[layer][t] @ downwards[layer - 1]
            grad_context = past + grad_layers[0][t] @ to_context
            if starts is not None:
                grad_context = grad_context.masked_fill(starts[t], 0.0)

        def weight_gradient(grads, values):  # [T, B, N], [T, B, M] -> [N, M]
            return (grads.flatten(0, 1).t() @ values.flatten(0, 1).to(dtype)).to(context_weight.dtype)

        def bias_gradient(grads):  # [T, B, N] -> [N]
            return grads.sum((0, 1), dtype=context_weight.dtype)

        gradients = [
            (grad_normal * ((mixed - means) * rstds)).sum((0, 1)),
            grad_normal.sum((0, 1)),
            weight_gradient(grad_layers[0], inputs),
            weight_gradient(grad_gates, hidden[-1]),
            bias_gradient(grad_gates),
        ]
        for layer in range(1, num_layers):
            gradients += [weight_gradient(grad_layers[layer], hidden[layer - 1]), bias_gradient(grad_layers[layer])]
        return (*(None,) * 7, grad_layers[0], grad_context, *gradients)
