"""Half-lives of the contexts' channels, by hand and as the gates are while text is read."""

import math

import pytest
import torch

from newllm_lib.colab.context_picture import half_lives_of_biases, measured_half_lives
from newllm_lib.models import ContextCache, NewLLMConfig, NewLLMForCausalLM
from newllm_lib.models.modeling_newllm import FORGET_BIAS_AT_FIRST

TOKENS = [5, 9, 20, 3, 7, 8]


@pytest.fixture
def model():
    config = NewLLMConfig(
        vocab_size=29, hidden_size=6, context_size=5, intermediate_size=9, num_hidden_layers=2, dropout=0.5
    )
    return NewLLMForCausalLM(config)


def test_a_new_model_has_the_half_lives_of_its_biases(model):
    expected = [math.log(2) / math.log1p(math.exp(-bias)) for bias in torch.linspace(*FORGET_BIAS_AT_FIRST, 5).tolist()]
    torch.testing.assert_close(half_lives_of_biases(model), torch.tensor([expected, expected]))
    for layer in model.model.layers:
        layer.forget_gate.weight.data.zero_()
    torch.testing.assert_close(measured_half_lives(model, TOKENS), half_lives_of_biases(model))


def test_after_its_half_life_half_of_a_channel_is_left(model):
    """With gates that no token moves, and nothing written."""
    forget = 0.5 ** (1 / 4)
    bias = math.log(forget / (1 - forget))
    for layer in model.model.layers:
        layer.forget_gate.weight.data.zero_()
        layer.forget_gate.bias.data.fill_(bias)
        layer.delta.weight.data.zero_()
    model.eval()
    cache = ContextCache(torch.ones(1, 2 * (5 + 2 * 6)))
    with torch.no_grad():
        model(input_ids=torch.tensor([[3, 4, 5, 6]]), past_key_values=cache)
    torch.testing.assert_close(cache.context[:, :10], torch.full((1, 10), 0.5))
    torch.testing.assert_close(half_lives_of_biases(model), torch.full((2, 5), 4.0))


def test_measuring_is_a_mean_over_tokens_and_leaves_no_trace(model):
    seen = []
    hook = model.model.layers[1].forget_gate.register_forward_hook(lambda gate, inputs, z: seen.append(z.detach()))
    found = measured_half_lives(model.train(), TOKENS)
    hook.remove()
    assert model.training and not model.model.layers[0].forget_gate._forward_hooks
    expected = math.log(2) / -seen[0].sigmoid().log().mean(dim=(0, 1))
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=0)
