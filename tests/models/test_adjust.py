"""Changes to a trained model: what it computed before it still computes, and the new part learns."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from newllm_lib.models import NewLLMConfig, NewLLMForCausalLM, build_config, build_model
from newllm_lib.models.adjust import extend_positions, grow_context, set_dropout, train_new_context_only
from newllm_lib.models.modeling_newllm import FORGET_BIAS_AT_FIRST

SIZES = {"vocab_size": 29, "hidden_size": 6, "context_size": 5, "intermediate_size": 9, "dropout": 0.0}


def random_model(layers: int = 2, dtype=torch.float64) -> NewLLMForCausalLM:
    """Every parameter random, so that no term vanishes."""
    model = NewLLMForCausalLM(NewLLMConfig(**SIZES, num_hidden_layers=layers)).to(dtype).eval()
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


def outputs(model, input_ids):
    """Logits with documents that begin inside rows, with padding on either side, and after a cache."""
    mask = torch.ones_like(input_ids)
    mask[0, :3] = mask[1, -2:] = mask[2, 7] = 0
    position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids).clone()
    position_ids[:, 11:] -= 11
    with torch.no_grad():
        yield model(input_ids).logits
        yield model(input_ids, attention_mask=mask, position_ids=position_ids).logits
        cache = model(input_ids[:, :9], attention_mask=mask[:, :9], use_cache=True).past_key_values
        yield model(input_ids[:, 9:], attention_mask=mask, past_key_values=cache).logits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [6, 15])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_larger_context_computes_the_same(tmp_path, layers, size, dtype):
    model = random_model(layers, dtype)
    input_ids = torch.randint(0, 29, (3, 40))
    expected = list(outputs(model, input_ids))
    grow_context(model, size)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5 * float(expected[0].abs().max())
    for found, logits in zip(outputs(model, input_ids), expected, strict=True):
        torch.testing.assert_close(found, logits, rtol=0, atol=tolerance)
    state = model(input_ids, use_cache=True).past_key_values.context
    assert state.shape == (3, layers * (size + 2 * 6))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    assert loaded.config.context_size == size
    with torch.no_grad():
        assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in loaded.parameters())
    for module in loaded.modules():  # what is written on the layers is true
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)


def test_new_channels_begin_as_in_a_new_model_and_are_read_from_the_first_update_on():
    model = random_model()
    grow_context(model, 12)
    layer = model.model.layers[0]
    assert not layer.context_out.weight[:, 5:].any()
    assert layer.forget_gate.bias[5:].tolist() == pytest.approx(torch.linspace(*FORGET_BIAS_AT_FIRST, 7).tolist())
    assert 0.5 < layer.delta.weight[5:].std() * 6**0.5 < 1.5
    train(model, 2)
    input_ids = torch.randint(0, 29, (2, 20))
    with torch.no_grad():
        whole = model(input_ids).logits
        layer.context_out.weight[:, 5:] = 0
        assert not torch.allclose(model(input_ids).logits, whole)


def test_growing_draws_nothing_from_the_random_numbers_of_others():
    model, state = random_model(), torch.get_rng_state()
    grow_context(model, 7)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [5, 4, 1, 0])
def test_the_context_can_only_become_larger(size):
    model = random_model()
    with pytest.raises(ValueError, match=rf"context_size {size} has to be larger than the model's 5"):
        grow_context(model, size)
    assert model.config.context_size == 5
    assert model.model.layers[0].forget_gate.weight.shape == (5, 6)


def test_training_the_new_context_alone_leaves_every_old_weight():
    model = random_model(dtype=torch.float32).train()
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grow_context(model, 10)
    train_new_context_only(model, 5)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, 4)
    moved = set()
    for name, tensor in model.state_dict().items():
        is_reader = name.endswith("context_out.weight")
        stays = tensor[:, :5] if is_reader else tensor[: len(old[name])]
        assert torch.equal(stays, old[name]), name
        if tensor.shape != old[name].shape:
            new = slice(None) if is_reader else slice(5, None)
            assert (tensor[new] != fresh[name][new]).any(), name
            moved.add(name)
    ends = ("forget_gate.weight", "forget_gate.bias", "delta.weight", "output_gate.weight", "context_out.weight")
    assert moved == {f"model.layers.{layer}.{end}" for layer in (0, 1) for end in ends}


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
