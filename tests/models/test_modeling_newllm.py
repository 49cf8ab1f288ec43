"""New-LLM and its published cell against their equations, and what only they promise."""

import itertools

import pytest
import torch
from naive_newllm import naive_logits, naive_reference_logits
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from newllm_lib.models import (
    NewLLMConfig,
    NewLLMForCausalLM,
    NewLLMReferenceConfig,
    NewLLMReferenceForCausalLM,
    count_parameters,
)
from newllm_lib.models.modeling_newllm import state_parts

SIZES = {"vocab_size": 23, "hidden_size": 6, "context_size": 5, "intermediate_size": 9, "dropout": 0.0}
REFERENCE_SIZES = {"vocab_size": 23, "embedding_size": 6, "context_size": 5, "hidden_size": 9, "dropout": 0.0}


def random_model(reference: bool = False, layers: int = 1, dtype=torch.float64):
    """A small model whose every parameter is random, so that no term of the equations vanishes."""
    if reference:
        model = NewLLMReferenceForCausalLM(NewLLMReferenceConfig(**REFERENCE_SIZES, num_hidden_layers=layers))
    else:
        model = NewLLMForCausalLM(NewLLMConfig(**SIZES, num_hidden_layers=layers))
    model = model.to(dtype).eval()
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
    expected = (naive_reference_logits if reference else naive_logits)(model, input_ids)
    loss_of(expected).backward()

    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-10, msg=name)
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("layers", "parameters"), [(1, 1_426_152), (4, 2_214_120)])
def test_reference_has_the_published_number_of_parameters(layers, parameters):
    assert count_parameters(NewLLMReferenceConfig(num_hidden_layers=layers)) == parameters


def test_labels_are_shifted_inside_and_shift_labels_are_not():
    model = random_model(dtype=torch.float32)
    input_ids = torch.randint(0, 23, (2, 9))
    logits = model(input_ids).logits
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
    assert torch.isclose(model(input_ids, labels=input_ids).loss, expected)
    shifted = torch.full_like(input_ids, -100)
    shifted[:, 3] = 7
    expected = functional.cross_entropy(logits[:, 3], torch.tensor([7, 7]))
    assert torch.isclose(model(input_ids, labels=shifted, shift_labels=shifted).loss, expected)


def test_documents_in_one_row_are_read_as_if_alone():
    model = random_model(layers=2)
    first, second = torch.randint(0, 23, (1, 7)), torch.randint(0, 23, (1, 5))
    packed = torch.cat([first, second], dim=1)
    positions = torch.cat([torch.arange(7), torch.arange(5)])[None]
    logits = model(packed, position_ids=positions).logits
    torch.testing.assert_close(logits[:, :7], model(first).logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits[:, 7:], model(second).logits, rtol=0, atol=1e-12)
    assert not torch.allclose(logits[:, 7:], model(packed).logits[:, 7:]), "the reset changed nothing"


def test_masks_documents_and_cuts_together_change_nothing():
    """Rows with gaps and documents at random places, cut at random places: every document reads as if alone."""
    model = random_model(layers=3)
    generator = torch.Generator().manual_seed(5)
    documents = [
        [torch.randint(0, 23, (1, length), generator=generator) for length in row] for row in ((9, 4, 11), (15, 8))
    ]
    width = 40
    input_ids = torch.zeros(2, width, dtype=torch.long)
    mask, positions = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    places = []
    for row, parts in enumerate(documents):
        count = sum(part.shape[1] for part in parts)
        chosen = torch.randperm(width, generator=generator)[:count].sort().values
        input_ids[row, chosen] = torch.cat(parts, dim=1)[0]
        positions[row, chosen] = torch.cat([torch.arange(part.shape[1]) for part in parts])
        mask[row, chosen] = 1
        places.append(chosen)
    cache, logits = None, []
    for begin, end in itertools.pairwise((0, 1, 7, 8, 23, width)):
        piece = slice(begin, end)
        arguments = {"attention_mask": mask[:, piece], "position_ids": positions[:, piece], "past_key_values": cache}
        output = model(input_ids[:, piece], **arguments, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    found = torch.cat(logits, dim=1)
    for row, parts in enumerate(documents):
        alone = torch.cat([model(part).logits for part in parts], dim=1)
        torch.testing.assert_close(found[row, places[row]][None], alone, rtol=0, atol=1e-10)
        last = model(parts[-1], use_cache=True).past_key_values.context
        torch.testing.assert_close(cache.context[row][None], last.to(cache.context), rtol=0, atol=1e-6)


def test_the_state_holds_contexts_then_u_then_v():
    model = random_model(layers=2, dtype=torch.float32)
    kept = {}
    for number, layer in enumerate(model.model.layers):
        for name in ("input_norm", "mlp_norm"):
            getattr(layer, name).register_forward_hook(
                lambda module, args, output, key=(name, number): kept.update({key: output[:, -1]})
            )
    state = model(torch.randint(0, 23, (3, 8)), use_cache=True).past_key_values.context
    assert state.shape == (3, 2 * (5 + 6 + 6))
    contexts, us, vs = state_parts(model.config, state)
    assert [part.shape for part in (*contexts, *us, *vs)] == [(3, 5)] * 2 + [(3, 6)] * 4
    for layer in range(2):
        assert torch.equal(us[layer], kept["input_norm", layer])
        assert torch.equal(vs[layer], kept["mlp_norm", layer])
    assert torch.equal(torch.cat(contexts, dim=1), state[:, :10])


def test_initialisation_has_the_stated_moments():
    model = NewLLMForCausalLM(NewLLMConfig(vocab_size=500)).model
    assert model.embed_tokens.weight.std().item() == pytest.approx(192**-0.5, rel=0.02)
    assert model.projection.weight.std().item() == pytest.approx(192**-0.5, rel=0.02)
    for layer in model.layers:
        for linear in (layer.forget_gate, layer.delta, layer.output_gate, layer.mlp_gate, layer.mlp_in):
            assert linear.weight.std().item() == pytest.approx(192**-0.5, rel=0.02)
        assert layer.context_out.weight.std().item() == pytest.approx((6 * 192) ** -0.5, rel=0.02)
        assert layer.mlp_out.weight.std().item() == pytest.approx((6 * 464) ** -0.5, rel=0.02)
        assert torch.equal(layer.forget_gate.bias, torch.linspace(-1, 4, 192))
        assert torch.equal(layer.shift_bias, torch.full((4, 192), 0.3))


def test_logits_of_an_untrained_model_have_unit_variance():
    model = NewLLMForCausalLM(NewLLMConfig(vocab_size=500)).eval()
    assert model(torch.randint(0, 500, (4, 50))).logits.std().item() == pytest.approx(1, rel=0.05)


def test_weight_decay_is_for_matrices_alone(tmp_path):
    """The forget bias, every share of the token shift and the norms are exempt."""
    model = NewLLMForCausalLM(NewLLMConfig(**SIZES))
    arguments = TrainingArguments(output_dir=str(tmp_path), weight_decay=0.5, report_to="none", use_cpu=True)
    groups = Trainer(model, arguments).create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, exempt = (
        {names[id(p)] for p in group["params"]} for group in sorted(groups, key=lambda g: -g["weight_decay"])
    )
    assert {name.rsplit(".", 1)[0].rsplit(".", 1)[-1] for name in decayed} == {
        "embed_tokens", "forget_gate", "delta", "output_gate", "context_out", "mlp_gate", "mlp_in", "mlp_out",
        "projection",
    }  # fmt: skip
    assert all(name.endswith("weight") for name in decayed)
    assert all("bias" in name or "norm" in name for name in exempt)
    assert {"model.layers.0.shift_bias", "model.layers.0.forget_gate.bias"} < exempt


def test_reference_initialisation_is_the_published_one():
    model = NewLLMReferenceForCausalLM(NewLLMReferenceConfig())
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            assert parameter.unique().numel() == 1, name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02), name


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 0), ("vocab_size", 3.5), ("dropout", 1.0)])
@pytest.mark.parametrize("kind", [NewLLMConfig, NewLLMReferenceConfig])
def test_config_names_the_bad_field_and_value(kind, field, value):
    with pytest.raises(ValueError, match=rf"{field}.*{value}"):
        kind(**{field: value})


def test_contexts_of_different_prefixes_stay_apart():
    """No global attractor: an untrained default model still tells 32 prefixes from one another after 64 equal tokens
    begin to wash them out, and its contexts span many directions."""
    model = NewLLMForCausalLM(NewLLMConfig(vocab_size=200)).eval()
    input_ids = torch.randint(0, 200, (32, 40))
    with torch.no_grad():
        state = model(input_ids).past_key_values.context
    contexts = torch.cat(state_parts(model.config, state)[0], dim=1)
    singular = torch.linalg.svdvals(contexts - contexts.mean(0))
    share = singular / singular.sum()
    effective_rank = torch.exp(-(share * share.log()).sum())
    assert torch.pdist(contexts).min() > 1.0
    assert effective_rank > 16


def test_dropout_leaves_the_default_models_memory_alone():
    """Only units on their way to the head are dropped; the published cell drops what its gates see."""
    input_ids = torch.randint(0, 23, (2, 9))
    models = (
        (NewLLMForCausalLM(NewLLMConfig(**{**SIZES, "dropout": 0.5})), False),
        (NewLLMReferenceForCausalLM(NewLLMReferenceConfig(**{**REFERENCE_SIZES, "dropout": 0.5})), True),
    )
    for model, changes in models:
        outputs = [model.train(mode)(input_ids, use_cache=True) for mode in (True, False)]
        trained, inferred = (output.past_key_values.context for output in outputs)
        assert torch.equal(trained, inferred) != changes
        assert not torch.equal(outputs[0].logits, outputs[1].logits)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients_nor_state(reentrant):
    model = random_model(layers=2).train()
    input_ids = torch.randint(0, 23, (2, 9))
    found = []
    for checkpoints in (False, True):
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        first = model(input_ids, use_cache=True)
        second = model(input_ids, past_key_values=first.past_key_values, labels=input_ids)
        second.loss.backward()
        state = second.past_key_values.context
        found.append([second.loss, state, *(parameter.grad for parameter in model.parameters())])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=1e-12)


def test_a_new_compiled_graph_has_no_break_and_computes_the_same():
    model = random_model(layers=2, dtype=torch.float32)
    input_ids = torch.randint(0, 23, (2, 9))
    explained = torch._dynamo.explain(model)(input_ids, use_cache=False)
    assert explained.graph_break_count == 0, explained.break_reasons
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(input_ids, use_cache=False).logits, model(input_ids).logits)
