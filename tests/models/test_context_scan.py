"""The fast recurrence against the plain loop, in values and in every gradient."""

import copy

import pytest
import torch
from plain_recurrence import plain_recurrence

from newllm_lib.models import NewLLMConfig
from newllm_lib.models.context_recurrence import ContextRecurrence

# Of the norm of the difference relative to the tensor's, and of the largest difference relative to the largest value,
# which in fp32 varies with the order of sums.
TOLERANCE = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-6, 3e-6)}


def small_recurrence(layers: int, dtype: torch.dtype, dropout: float = 0.0, clamp: float = 1.5) -> ContextRecurrence:
    """A clamp of 1.5 cuts off some of every context, so that its gradient matters too."""
    config = NewLLMConfig(
        vocab_size=11, embedding_size=7, context_size=12, hidden_size=20, num_hidden_layers=layers, dropout=dropout,
        context_clamp=clamp, recurrent_dropout=True,
    )  # fmt: skip
    recurrence = ContextRecurrence(config).to(dtype)
    for parameter in recurrence.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return recurrence


def values_and_gradients(run, recurrence, projections, context):
    for tensor in (*recurrence.parameters(), projections, context):
        tensor.grad = None
    hidden_states, final = run()
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum() for out in (hidden_states, final)
    )
    loss.backward()
    named = {name: parameter.grad for name, parameter in recurrence.named_parameters() if parameter.grad is not None}
    return {
        "hidden_states": hidden_states,
        "final": final,
        "projections": projections.grad,
        "context": context.grad,
        **named,
    }


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize(("batch_size", "length"), [(1, 1), (5, 2), (3, 63), (32, 63), (2, 257)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_equals_the_plain_loop(batch_size, length, layers, masked, documents, dtype):
    recurrence = small_recurrence(layers, dtype)
    projections = torch.randn(batch_size, length, 20, dtype=dtype, requires_grad=True)
    context = torch.randn(batch_size, 12, dtype=dtype, requires_grad=True)
    mask = torch.rand(batch_size, length) > 0.3 if masked else None
    starts = torch.rand(batch_size, length) < 0.2 if documents else None
    arguments = (projections, context, mask, starts)
    expected = values_and_gradients(lambda: plain_recurrence(recurrence, *arguments), recurrence, projections, context)
    found = values_and_gradients(lambda: recurrence(*arguments), recurrence, projections, context)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        of_norm, of_largest = TOLERANCE[dtype]
        difference = tensor - found[name]
        assert difference.norm() <= of_norm * tensor.norm().clamp_min(1e-3), name
        assert difference.abs().max() <= of_largest * tensor.abs().max().clamp_min(1e-3), name


def test_gradients_equal_finite_differences():
    recurrence = small_recurrence(2, torch.float64, clamp=10.0)
    projections = torch.randn(2, 4, 20, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]], dtype=torch.bool)
    starts = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 0]], dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda p, c: recurrence(p, c, mask, starts), (projections, context))


@pytest.mark.parametrize("layers", [1, 3])
def test_dropout_drops_the_same_units_forward_and_backward(layers):
    """With the masks fixed by the seed, the directional derivative is that of finite differences."""
    recurrence = small_recurrence(layers, torch.float64, dropout=0.4, clamp=10.0).train()
    projections = torch.randn(3, 9, 20, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(projections)

    def loss_at(step: float) -> torch.Tensor:
        torch.manual_seed(7)
        hidden_states, final = recurrence(projections + step * direction)
        return hidden_states.square().sum() + final.square().sum()

    loss = loss_at(0.0)
    loss.backward()
    numeric = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6
    assert torch.isclose((projections.grad * direction).sum(), numeric, rtol=1e-6)
    with torch.no_grad():
        hidden_states, _ = recurrence(projections)
    assert (hidden_states == 0).double().mean() > 0.55  # relu alone leaves about half


def test_dropout_keeps_the_mean():
    recurrence = small_recurrence(1, torch.float64, dropout=0.3, clamp=10.0)
    projections = torch.rand(64, 1, 20, dtype=torch.float64) + 1
    expected = recurrence.eval()(projections.clone())[0].mean()
    found = torch.stack([recurrence.train()(projections.clone())[0].mean() for _ in range(50)]).mean()
    assert found.item() == pytest.approx(expected.item(), rel=0.02)


def test_without_gradients_the_values_are_the_same():
    recurrence = small_recurrence(3, torch.float32)
    projections = torch.randn(2, 50, 20)
    with torch.no_grad():
        inferred = recurrence(projections.clone())
    for trained, plain in zip(recurrence(projections), inferred, strict=True):
        assert torch.equal(trained.detach(), plain)


def test_the_table_of_projected_tokens_is_the_projection_of_their_embeddings():
    recurrence = small_recurrence(1, torch.float64)
    embedding = torch.nn.Embedding(11, 7, dtype=torch.float64)
    input_ids = torch.randint(0, 11, (4, 9))
    from_table = recurrence.project_ids(input_ids, embedding)
    torch.testing.assert_close(from_table, recurrence.project_embeddings(embedding(input_ids)))
    (expected,) = torch.autograd.grad(
        recurrence.project_embeddings(embedding(input_ids)).square().sum(), embedding.weight
    )
    (found,) = torch.autograd.grad(from_table.square().sum(), embedding.weight)
    torch.testing.assert_close(found, expected)


class LowRank(torch.nn.Module):
    """What an adapter library puts in the place of a linear layer."""

    def __init__(self, base: torch.nn.Linear):
        super().__init__()
        self.base, self.in_features = base, base.in_features
        self.down = torch.nn.Parameter(torch.randn(2, base.in_features, dtype=base.weight.dtype))
        self.up = torch.nn.Parameter(torch.randn(base.out_features, 2, dtype=base.weight.dtype))

    def forward(self, inputs):
        return self.base(inputs) + inputs.to(self.down.dtype) @ self.down.t() @ self.up.t()


def test_adapters_on_its_layers_act_and_learn():
    recurrence = small_recurrence(2, torch.float32).eval()
    embeds = torch.randn(3, 8, 7)
    merged = copy.deepcopy(recurrence)
    adapted = copy.deepcopy(recurrence)
    adapted.layers = torch.nn.ModuleList(map(LowRank, adapted.layers))
    adapted.gates = LowRank(adapted.gates)
    for plain, layer in zip([*merged.layers, merged.gates], [*adapted.layers, adapted.gates], strict=True):
        plain.weight.data += (layer.up @ layer.down).detach()
    hidden_states, context = adapted(adapted.project_embeddings(embeds))
    for found, expected in zip((hidden_states, context), merged(merged.project_embeddings(embeds)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (hidden_states.sum() + context.sum()).backward()
    for layer in [*adapted.layers, adapted.gates]:
        assert layer.up.grad.abs().sum() > 0 and layer.down.grad.abs().sum() > 0


def test_nothing_inside_waits_for_the_device():
    """No value is read back to the host and no shape depends on one: a GPU need not be waited for, and a CUDA graph
    can hold the step."""
    waits = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "equal"}
    recurrence = small_recurrence(2, torch.float32, dropout=0.2).train()
    projections = torch.randn(3, 5, 20, requires_grad=True)
    mask, starts = torch.rand(3, 5) > 0.3, torch.rand(3, 5) < 0.2

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function.overloadpacket.__name__ not in waits, function
            return function(*args, **(kwargs or {}))

    with Watch():
        hidden_states, context = recurrence(projections, attention_mask=mask, document_starts=starts)
        (hidden_states.sum() + context.sum()).backward()


@pytest.mark.parametrize("layers", [1, 4])
def test_half_precision_is_close_and_keeps_its_state_in_full(layers):
    recurrence = small_recurrence(layers, torch.float32, clamp=10.0)
    for parameter in recurrence.parameters():
        parameter.data *= 0.5
    projections = torch.randn(4, 63, 20, requires_grad=True)
    context = torch.randn(4, 12, requires_grad=True)

    def half():
        with torch.autocast("cpu", torch.bfloat16):
            hidden_states, final = recurrence(projections, context)
        assert hidden_states.dtype == torch.bfloat16 and final.dtype == torch.float32
        return hidden_states.float(), final

    full = values_and_gradients(lambda: recurrence(projections, context), recurrence, projections, context)
    found = values_and_gradients(half, recurrence, projections, context)
    for name, tensor in full.items():
        assert found[name].dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(tensor.flatten(), found[name].flatten(), dim=0)
        assert cosine > 0.98, name  # rounding moves some units across the corner of relu
