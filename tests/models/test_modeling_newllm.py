"""New-LLM against its equations, and what only New-LLM promises."""

import pytest
import torch
from naive_newllm import naive_logits
from torch.nn import functional

from newllm_lib.models import NewLLMConfig, NewLLMForCausalLM, count_parameters

SIZES = {"vocab_size": 23, "embedding_size": 6, "context_size": 5, "hidden_size": 9, "dropout": 0.0}


def random_model(reference: bool, layers: int = 1, dtype=torch.float64) -> NewLLMForCausalLM:
    """A small model whose every parameter is random, so that no term of the equations vanishes."""
    make = NewLLMConfig.reference if reference else NewLLMConfig
    model = NewLLMForCausalLM(make(**SIZES, num_hidden_layers=layers)).to(dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("reference", [True, False])
def test_logits_and_gradients_equal_the_equations(reference, layers):
    model = random_model(reference, layers)
    input_ids = torch.randint(0, 23, (3, 17))
    labels = torch.randint(0, 23, (3, 17))

    def loss_of(logits):
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    logits = model(input_ids).logits
    loss_of(logits).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected = naive_logits(model, input_ids)
    loss_of(expected).backward()

    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-10, msg=name)
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("layers", "parameters"), [(1, 1_426_152), (4, 2_214_120)])
def test_reference_has_the_published_number_of_parameters(layers, parameters):
    assert count_parameters(NewLLMConfig.reference(num_hidden_layers=layers)) == parameters


def test_labels_are_shifted_inside_and_shift_labels_are_not():
    model = random_model(reference=False, dtype=torch.float32)
    input_ids = torch.randint(0, 23, (2, 9))
    logits = model(input_ids).logits
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
    assert torch.isclose(model(input_ids, labels=input_ids).loss, expected)
    shifted = torch.full_like(input_ids, -100)
    shifted[:, 3] = 7
    expected = functional.cross_entropy(logits[:, 3], torch.tensor([7, 7]))
    assert torch.isclose(model(input_ids, labels=shifted, shift_labels=shifted).loss, expected)


def test_documents_in_one_row_are_read_as_if_alone():
    model = random_model(reference=False)
    first, second = torch.randint(0, 23, (1, 7)), torch.randint(0, 23, (1, 5))
    packed = torch.cat([first, second], dim=1)
    positions = torch.cat([torch.arange(7), torch.arange(5)])[None]
    logits = model(packed, position_ids=positions).logits
    torch.testing.assert_close(logits[:, :7], model(first).logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits[:, 7:], model(second).logits, rtol=0, atol=1e-12)
    assert not torch.allclose(logits[:, 7:], model(packed).logits[:, 7:]), "the reset changed nothing"


def test_scaled_initialisation_has_the_stated_moments():
    model = NewLLMForCausalLM(NewLLMConfig(vocab_size=500))
    recurrence = model.model.recurrence
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(1 / 16, rel=0.02)
    assert recurrence.layers[0].weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.02)
    assert recurrence.gates.weight.std().item() == pytest.approx((2 / (640 + 960)) ** 0.5, rel=0.02)
    delta, forget, write = recurrence.gates.bias.chunk(3)
    assert (delta.unique().tolist(), forget.unique().tolist(), write.unique().tolist()) == (
        [0.0],
        [1.0],
        [0.0],
    )


def test_reference_initialisation_is_the_published_one():
    model = NewLLMForCausalLM(NewLLMConfig.reference())
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            assert parameter.unique().numel() == 1, name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02), name


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", 0), ("vocab_size", 3.5), ("dropout", 1.0), ("initializer", "magic")]
)
def test_config_names_the_bad_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"{field}.*{value}"):
        NewLLMConfig(**{field: value})


def test_contexts_of_different_prefixes_stay_apart():
    """No global attractor: an untrained default model still tells 32 prefixes from one another after 64 equal tokens
    begin to wash them out, and its contexts span many directions."""
    model = NewLLMForCausalLM(NewLLMConfig(vocab_size=200)).eval()
    input_ids = torch.randint(0, 200, (32, 40))
    with torch.no_grad():
        contexts = model(input_ids).past_key_values.context
    singular = torch.linalg.svdvals(contexts - contexts.mean(0))
    share = singular / singular.sum()
    effective_rank = torch.exp(-(share * share.log()).sum())
    assert torch.pdist(contexts).min() > 1.0
    assert effective_rank > 16


def test_dropout_leaves_the_default_models_memory_alone():
    """Only units on their way to the head are dropped; the published cell drops what its gates see."""
    input_ids = torch.randint(0, 23, (2, 9))
    for make, changes in ((NewLLMConfig, False), (NewLLMConfig.reference, True)):
        model = NewLLMForCausalLM(make(**{**SIZES, "dropout": 0.5}))
        outputs = [model.train(mode)(input_ids, use_cache=True) for mode in (True, False)]
        trained, inferred = (output.past_key_values.context for output in outputs)
        assert torch.equal(trained, inferred) != changes
        assert not torch.equal(outputs[0].logits, outputs[1].logits)
