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

from .matrix_products import RepeatedLinear, product_over_rows


def scan_context(
    token_projections: torch.Tensor,
    context: torch.Tensor,
    attention_mask: torch.Tensor | None,
    document_starts: torch.Tensor | None,
    dropout: float,
    clamp: float,
    norm: nn.LayerNorm,
    context_weight: torch.Tensor,
    gate_weight: torch.Tensor,
    gate_bias: torch.Tensor,
    deeper: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the cell over T tokens.

    Args:
        token_projections: [B, T, H], what the first layer makes of the tokens; may be overwritten.
        context: [B, C] before the first token.
        attention_mask, document_starts: [B, T] bool or None.
        context_weight: [H, C], the first layer's weights on the context.
        gate_weight, gate_bias: [3C, H] and [3C], in the order delta, forget, input.
        deeper: weight and bias of layers 2 to L.

    Returns:
        Hidden states of layer L [B, T, H] and the context after the last token [B, C].
    """
    device = token_projections.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else context.dtype
    parameters = [norm.weight, norm.bias, context_weight, gate_weight, gate_bias, *deeper]
    trains = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (token_projections, context, *parameters)
    )
    by_time = token_projections.transpose(0, 1).to(dtype).contiguous()
    masks = [None if mask is None else mask.t()[:, :, None] for mask in (attention_mask, document_starts)]
    arguments = (trains, dropout, clamp, norm.eps, dtype, *masks, by_time, context, *parameters)
    with torch.autocast(device, enabled=False):
        if trains:
            hidden_states, context = ContextScan.apply(*arguments)
        else:
            hidden_states, context = ContextScan.forward(None, *arguments)  # spares autograd's own work a token
    return hidden_states.transpose(0, 1), context


class ContextScan(torch.autograd.Function):
    """[T, B, H] token projections and [B, C] context -> [T, B, H] hidden states and [B, C] context."""

    @staticmethod
    def forward(ctx, trains, dropout, clamp, eps, dtype, keep, starts, projections, context, *parameters):
        norm_weight, norm_bias, context_weight, gate_weight, gate_bias, *deeper = parameters
        num_tokens, batch_size, hidden_size = projections.shape
        context_size = context.shape[1]
        num_layers = 1 + len(deeper) // 2

        def repeated(weight, bias=None):
            bias = None if bias is None else bias.to(dtype)
            return RepeatedLinear(weight.to(dtype), bias, num_tokens, batch_size)

        from_context, to_gates = repeated(context_weight), repeated(gate_weight, gate_bias)
        layers = [repeated(*layer) for layer in zip(deeper[0::2], deeper[1::2], strict=True)]
        slots = num_tokens if trains else 1  # without a backward one slot serves every step
        hidden = [projections.new_empty(slots, batch_size, hidden_size) for _ in layers]
        hidden.append(projections.detach())  # the output is written over what each step has read: less memory to walk
        contexts = context.new_empty(slots + 1, batch_size, context_size)  # before each token, and after the last
        contexts[0] = context
        converts = dtype != context.dtype
        lows = contexts.new_empty(slots, batch_size, context_size, dtype=dtype) if converts else contexts[:slots]
        kept = []  # what the backward pass needs of each step: gates, context before LayerNorm, mean, 1 / std
        drops = None
        if dropout > 0:
            drops = torch.rand(num_tokens, num_layers, batch_size, hidden_size, device=projections.device)
            drops = drops.ge_(dropout).mul_(1 / (1 - dropout)).to(dtype)

        def steps(buffer):  # one view per time step, made at once: indexing in the loop would cost as much as its sums
            return buffer.unbind(0) if len(buffer) == num_tokens else [buffer[0]] * num_tokens

        hidden_at = list(zip(*map(steps, hidden), strict=True))
        befores, afters = (contexts[:-1], contexts[1:]) if trains else (contexts[:1], contexts[:1])
        views = zip(*map(steps, (projections, befores, afters, lows)), strict=True)
        for t, (token, before, after, low) in enumerate(views):
            if starts is not None:
                before.masked_fill_(starts[t], 0.0)
            if converts:
                low.copy_(before)
            for layer, h in enumerate(hidden_at[t]):
                if layer == 0:
                    torch.add(token, from_context(low), out=h).relu_()
                else:
                    h.copy_(layers[layer - 1](hidden_at[t][layer - 1], relu=True))
                if drops is not None:
                    h.mul_(drops[t, layer])
            g = to_gates(h).to(context.dtype)
            g[:, context_size:].sigmoid_()
            delta, forget, write = g.split(context_size, 1)
            mix = (forget * before).addcmul_(write, delta)
            normal, mean, rstd = torch.native_layer_norm(mix, (context_size,), norm_weight, norm_bias, eps)
            if keep is None:
                torch.clamp(normal, -clamp, clamp, out=after)
            else:
                after.copy_(torch.where(keep[t], normal.clamp_(-clamp, clamp), before))
            if trains:
                kept += [g, mix, mean, rstd]

        if trains:
            ctx.save_for_backward(keep, starts, contexts, lows, *hidden, *parameters, *kept)
            ctx.settings = dropout, clamp, dtype, num_layers, len(parameters)
        return hidden[-1], contexts[-1 if trains else 0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_hidden, grad_context):
        dropout, clamp, dtype, num_layers, num_parameters = ctx.settings
        keep, starts, contexts, lows, *rest = ctx.saved_tensors
        hidden, rest = rest[:num_layers], rest[num_layers:]
        parameters, kept = rest[:num_parameters], rest[num_parameters:]
        norm_weight, norm_bias, context_weight, gate_weight, _, *deeper = parameters
        num_tokens, batch_size, context_size = len(kept) // 4, *contexts.shape[1:]

        def repeated(weight):  # [N, K] -> from gradients [B, N] to gradients [B, K]
            return RepeatedLinear(weight.to(dtype).t(), None, num_tokens, batch_size)

        to_context, to_hidden = repeated(context_weight), repeated(gate_weight)
        downwards = [repeated(weight) for weight in deeper[0::2]]

        normal = torch.empty_like(contexts[0])
        norm_gradients = []
        grad_gates = contexts.new_empty(num_tokens, batch_size, 3 * context_size, dtype=dtype)
        grad_gate_bias = torch.zeros_like(kept[0])
        grad_layers = [torch.empty_like(h) for h in hidden]  # before relu
        # The gates' gradients of one step, in the weights' precision; elsewhere only if that is another.
        grad_own = None if dtype == contexts.dtype else torch.empty_like(grad_gates[0], dtype=contexts.dtype)
        views = [buffer.unbind(0) for buffer in (contexts[:-1], contexts[1:], grad_hidden.to(dtype), grad_gates)]
        hidden_at, grads_at = (list(zip(*buffers, strict=True)) for buffers in (hidden, grad_layers))
        for t in range(num_tokens - 1, -1, -1):
            before, after, grad, grad_gate = (view[t] for view in views)
            gates, mix, mean, rstd = kept[4 * t : 4 * t + 4]
            delta, forget, write = gates.split(context_size, 1)
            through = grad_context if keep is None else grad_context * keep[t]
            torch.ops.aten.hardtanh_backward.grad_input(through, after, -clamp, clamp, grad_input=normal)
            grad_mixed, *of_norm = torch.ops.aten.native_layer_norm_backward(
                normal, mix, (context_size,), mean, rstd, norm_weight, norm_bias, (True, True, True)
            )
            norm_gradients += of_norm
            g = grad_gate if grad_own is None else grad_own
            grad_delta, grad_forget, grad_write = g.split(context_size, 1)
            torch.mul(grad_mixed, write, out=grad_delta)
            torch.ops.aten.sigmoid_backward.grad_input(grad_mixed * before, forget, grad_input=grad_forget)
            torch.ops.aten.sigmoid_backward.grad_input(grad_mixed * delta, write, grad_input=grad_write)
            grad_gate_bias += g
            if grad_own is not None:
                grad_gate.copy_(grad_own)
            past = grad_mixed.mul_(forget)
            if keep is not None:
                past += grad_context - through
            grad = to_hidden(grad_gate).add_(grad)
            for layer in range(num_layers - 1, -1, -1):
                # A unit that relu cut off or dropout dropped is 0, and passes nothing.
                below = grads_at[t][layer]
                torch.ops.aten.threshold_backward.grad_input(grad, hidden_at[t][layer], 0, grad_input=below)
                if dropout > 0:
                    below.mul_(1 / (1 - dropout))
                if layer > 0:
                    grad = downwards[layer - 1](below)
            grad_context = past.add_(to_context(below))
            if starts is not None:
                grad_context = grad_context.masked_fill(starts[t], 0.0)

        def weight_gradient(grads, values):  # [T, B, N], [T, B, M] -> [N, M]
            return product_over_rows(grads.flatten(0, 1), values.flatten(0, 1)).to(context_weight.dtype)

        def bias_gradient(grads):  # [T, B, N] -> [N]
            return grads.sum((0, 1), dtype=context_weight.dtype)

        gradients = [
            torch.stack(norm_gradients[0::2]).sum(0),
            torch.stack(norm_gradients[1::2]).sum(0),
            weight_gradient(grad_layers[0], lows),
            weight_gradient(grad_gates, hidden[-1]),
            grad_gate_bias.sum(0),
        ]
        for layer in range(1, num_layers):
            gradients += [weight_gradient(grad_layers[layer], hidden[layer - 1]), bias_gradient(grad_layers[layer])]
        return (*(None,) * 7, grad_layers[0], grad_context, *gradients)
