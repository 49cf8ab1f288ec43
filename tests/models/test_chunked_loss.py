"""The loss in chunks against torch's own, in value and in every gradient, and what it allocates."""

import pytest
import torch
from torch.nn import functional

from newllm_lib.models import (
    LSTMConfig,
    LSTMForCausalLM,
    NewLLMConfig,
    NewLLMForCausalLM,
    NewLLMReferenceConfig,
    NewLLMReferenceForCausalLM,
    build_config,
    build_model,
    chunked_loss,
)
from newllm_lib.models.chunked_loss import chunked_cross_entropy

SIZES = {"hidden_size": 8, "context_size": 10, "intermediate_size": 20, "dropout": 0.0}


def case(dtype=torch.float64, tokens=23, width=6, types=11, with_bias=True):
    torch.manual_seed(0)
    inputs, weight, bias = (
        torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((tokens, width), (types, width), (types,))
    )
    labels = torch.randint(0, types, (tokens,))
    return inputs, weight, bias if with_bias else None, labels


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 100])
def test_equals_cross_entropy_of_the_logits(monkeypatch, rows, with_bias):
    inputs, weight, bias, labels = case(with_bias=with_bias)
    monkeypatch.setattr(chunked_loss, "CHUNK_ELEMENTS", rows * len(weight))
    wanted = [tensor for tensor in (inputs, weight, bias) if tensor is not None]
    expected = functional.cross_entropy(functional.linear(inputs, weight, bias), labels, reduction="sum")
    found = chunked_cross_entropy(inputs, weight, bias, labels)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, wanted), torch.autograd.grad(3 * expected, wanted), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_large_logits_stay_finite():
    inputs, weight, bias, labels = case(torch.float32)
    scaled = inputs.detach() * 1e4
    expected = functional.cross_entropy(functional.linear(scaled, weight, bias), labels, reduction="sum")
    torch.testing.assert_close(chunked_cross_entropy(scaled, weight, bias, labels), expected)


def test_a_frozen_weight_gets_no_gradient_and_no_buffer():
    inputs, weight, bias, labels = case()
    loss = chunked_cross_entropy(inputs, weight.detach(), bias.detach(), labels)
    (gradient,) = torch.autograd.grad(loss, [inputs])
    expected = functional.cross_entropy(functional.linear(inputs, weight, bias), labels, reduction="sum")
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, [inputs])[0])


def test_a_second_backward_is_refused():
    inputs, weight, bias, labels = case()
    loss = chunked_cross_entropy(inputs, weight, bias, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward once"):
        loss.backward()


def test_under_autocast_the_products_are_half_precision_and_the_loss_is_not():
    inputs, weight, bias, labels = case(torch.float32, tokens=200, width=32, types=50)
    expected = functional.cross_entropy(functional.linear(inputs, weight, bias), labels, reduction="sum")
    with torch.autocast("cpu", torch.bfloat16):
        found = chunked_cross_entropy(inputs, weight, bias, labels)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=5e-3)
    for ours, theirs in zip(
        torch.autograd.grad(found, [inputs, weight, bias]),
        torch.autograd.grad(expected, [inputs, weight, bias]),
        strict=True,
    ):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize(
    "model",
    [
        NewLLMForCausalLM(NewLLMConfig(vocab_size=31, **SIZES)),
        NewLLMReferenceForCausalLM(NewLLMReferenceConfig(vocab_size=31, hidden_size=20, dropout=0.0)),
        LSTMForCausalLM(LSTMConfig(vocab_size=31, embedding_size=8, hidden_size=16, dropout=0.0)),
    ],
    ids=["newllm", "newllm-reference", "lstm"],
)
@pytest.mark.parametrize("items", [None, 100])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_model_gives_the_same_loss_and_gradients_without_logits(model, shifted, items):
    model = model.double()
    input_ids = torch.randint(0, 31, (3, 17))
    labels = input_ids.masked_fill(torch.rand(3, 17) < 0.2, -100)
    arguments = {"input_ids": input_ids, "labels": labels, "num_items_in_batch": items}
    if shifted:
        arguments["shift_labels"] = labels
    gradients = []
    for skip_logits in (False, True):
        outputs = model(**arguments, skip_logits=skip_logits)
        assert (outputs.logits is None) == skip_logits
        gradients.append([outputs.loss, *torch.autograd.grad(outputs.loss, list(model.parameters()))])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, check_dtype=False)  # transformers: fp32


def test_the_logits_never_exist(monkeypatch):
    """No tensor as large as the logits is made in a training step."""
    model = NewLLMForCausalLM(NewLLMConfig(vocab_size=5000, **SIZES))
    monkeypatch.setattr(chunked_loss, "CHUNK_ELEMENTS", 20 * 5000)
    input_ids = torch.randint(0, 5000, (4, 50))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            nonlocal largest
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    with Watch():
        model(input_ids=input_ids, labels=input_ids, skip_logits=True, use_cache=False).loss.backward()
    assert largest == 20 * 5000 < 4 * 50 * 5000


def test_the_head_meets_few_numbers_of_tokens(monkeypatch):
    """oneDNN keeps a program for every shape: numbers of scored tokens at random would fill the memory."""
    seen = set()

    def record(inputs, *arguments):
        seen.add(len(inputs))
        return chunked_cross_entropy(inputs, *arguments)

    monkeypatch.setattr("newllm_lib.models.recurrent_model.chunked_cross_entropy", record)
    model = build_model(build_config("newllm", vocab_size=50, max_length=64, num_parameters=20_000, dropout=0.0))
    generator = torch.Generator().manual_seed(0)
    for share in torch.linspace(0.05, 0.95, 40):
        input_ids = torch.randint(0, 50, (4, 64), generator=generator)
        labels = input_ids.masked_fill(torch.rand(4, 64, generator=generator) > share, -100)
        with_logits = model(input_ids=input_ids, labels=labels).loss
        torch.testing.assert_close(model(input_ids=input_ids, labels=labels, skip_logits=True).loss, with_logits)
    assert len(seen) <= 16
