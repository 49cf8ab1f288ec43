"""Changes to a trained model: what it computed before it still computes, and the new part learns."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from newllm_lib.models import NewLLMConfig, NewLLMForCausalLM, build_config, build_model
from newllm_lib.models.adjust import extend_positions, grow_context, set_dropout, train_new_context_only

SIZES = {"vocab_size": 29, "embedding_size": 6, "context_size": 5, "hidden_size": 9, "dropout": 0.0}


def random_model(reference: bool = False, layers: int = 1, dtype=torch.float64) -> NewLLMForCausalLM:
    """Every parameter random, so that no term vanishes."""
    make = NewLLMConfig.reference if reference else NewLLMConfig
    model = NewLLMForCausalLM(make(**SIZES, num_hidden_layers=layers)).to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def gpt2(positions: int = 12):
    return build_model(build_config("tiny-gpt2", 29, positions, num_parameters=30_000, num_layers=2)).eval()


def train(model, steps: int) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        input_ids = torch.randint(0, 29, (4, 11), generator=torch.Generator().manual_seed(step))
        model(input_ids, labels=input_ids, skip_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("reference", [False, True])
def test_a_larger_context_computes_the_same(tmp_path, reference, layers, factor, dtype):
    model = random_model(reference, layers, dtype)
    input_ids = torch.randint(0, 29, (3, 40))
    with torch.no_grad():
        expected = model(input_ids).logits
        grow_context(model, 5 * factor)
        grown = model(input_ids, use_cache=True)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5 * float(expected.abs().max())
    assert grown.past_key_values.context.shape == (3, 5 * factor)
    torch.testing.assert_close(grown.logits, expected, rtol=0, atol=tolerance)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    assert loaded.config.context_size == 5 * factor
    with torch.no_grad():
        assert torch.equal(loaded(input_ids).logits, grown.logits)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in loaded.parameters())


def test_the_new_part_matters_after_one_update():
    model = random_model()
    grow_context(model, 15)
    recurrence = model.model.recurrence
    readers = recurrence.layers[0].weight
    assert not readers[:, 11:].any()
    train(model, 1)
    old, first, second = readers.detach()[:, 6:].chunk(3, dim=1)
    for new in (first, second):
        assert (new != 0).all()
        assert not torch.isclose(new, old).any()
    # What writes the new part gets its first gradient now that it is read, and parts from what writes the old.
    before = [part.clone() for part in recurrence.gates.weight.detach().chunk(3)[0].chunk(3)]
    assert torch.allclose(before[1], before[2])
    train(model, 2)
    after = recurrence.gates.weight.detach().chunk(3)[0].chunk(3)
    assert not torch.allclose(after[0], after[1])
    input_ids = torch.randint(0, 29, (2, 20))
    with torch.no_grad():
        whole = model(input_ids).logits
        recurrence.layers[0].weight[:, 11:] = 0
        assert not torch.allclose(model(input_ids).logits, whole)


@pytest.mark.parametrize("size", [5, 4, 1, 0, 12])
def test_only_multiples_of_the_context_can_be_grown_to(size):
    model = random_model()
    with pytest.raises(ValueError, match=rf"context_size {size} has to be a multiple of the model's 5: 10, 15, 20"):
        grow_context(model, size)
    assert model.config.context_size == 5
    assert model.model.recurrence.gates.out_features == 15


@pytest.mark.parametrize("reference", [False, True])
def test_training_the_new_context_alone_leaves_every_old_weight(reference):
    model = random_model(reference, layers=2, dtype=torch.float32).train()
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grow_context(model, 10)
    train_new_context_only(model, 5)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, 4)
    found = model.state_dict()
    first, gates, norm = (f"model.recurrence.{name}" for name in ("layers.0.weight", "gates", "norm"))
    rows = torch.tensor([*range(5), *range(10, 15), *range(20, 25)])
    stay = {first: found[first][:, :11]}
    stay |= {f"{gates}.{name}": found[f"{gates}.{name}"][rows] for name in ("weight", "bias")}
    stay |= {f"{norm}.{name}": found[f"{norm}.{name}"][:5] for name in ("weight", "bias")}
    for name, tensor in old.items():
        assert torch.equal(stay.get(name, found[name]), tensor), name
    others = torch.tensor([*range(5, 10), *range(15, 20), *range(25, 30)])
    assert (found[first][:, 11:] != fresh[first][:, 11:]).all()
    for name in ("weight", "bias"):
        assert (found[f"{gates}.{name}"][others] != fresh[f"{gates}.{name}"][others]).any(), name
        assert (found[f"{norm}.{name}"][5:] != fresh[f"{norm}.{name}"][5:]).all(), name


def test_more_positions_leave_the_first_as_they_were(tmp_path):
    model = gpt2(12)
    input_ids = torch.randint(0, 29, (2, 30))
    with torch.no_grad():
        expected = model(input_ids[:, :12]).logits
        extend_positions(model, 30)
        assert torch.equal(model(input_ids[:, :12]).logits, expected)
        longer = model(input_ids).logits
    table = model.transformer.wpe.weight
    assert model.config.n_positions == len(table) == 30
    assert torch.equal(table[12:24], table[:12])
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path).eval()(input_ids).logits, longer)


def test_enough_positions_or_none_are_left_alone():
    model = gpt2(12)
    table = model.transformer.wpe
    extend_positions(model, 12)
    extend_positions(model, 5)
    assert model.transformer.wpe is table
    recurrent = random_model()
    before = {name: tensor.clone() for name, tensor in recurrent.state_dict().items()}
    extend_positions(recurrent, 500)
    assert not hasattr(recurrent.config, "n_positions")
    assert all(torch.equal(tensor, before[name]) for name, tensor in recurrent.state_dict().items())


MODELS = [("newllm", 1), ("newllm", 2), ("newllm-reference", 2), ("tiny-gpt2", 2), ("lstm", 1), ("lstm", 2)]


@pytest.mark.parametrize(("model_type", "layers"), MODELS)
def test_dropout_reaches_every_place(tmp_path, model_type, layers):
    """After the change the model drops as one that was built with that share: the same draws, the same logits."""

    def build(dropout):
        config = build_config(model_type, 258, 32, num_parameters=120_000, num_layers=layers, dropout=dropout)
        return build_model(config)

    def logits(model):
        torch.manual_seed(1)
        return model.train()(input_ids).logits

    input_ids = torch.randint(0, 29, (2, 16))
    model, built = build(0.0), build(0.4)
    built.load_state_dict(model.state_dict())
    plain = logits(model)
    set_dropout(model, 0.4)
    assert torch.equal(logits(model), logits(built))
    assert not torch.allclose(logits(model), plain)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(built))
    set_dropout(model, 0.0)
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5])
def test_a_dropout_no_model_could_have(dropout):
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\)"):
        set_dropout(gpt2(), dropout)
