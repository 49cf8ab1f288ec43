import pytest
import torch

from newllm_lib.evaluation.generation import continue_prompt, state_bytes, token_cost
from newllm_lib.models import build_config, build_model


@pytest.fixture(scope="module", params=["newllm", "tiny-gpt2", "lstm"])
def model(request):
    torch.manual_seed(0)
    return build_model(
        build_config(
            request.param,
            258,
            128,
            num_parameters=120_000,
            bos_token_id=256,
            eos_token_id=256,
            pad_token_id=257,
        )
    )


def test_same_seed_same_text(model, byte_tokenizer):
    first, second, other = (
        continue_prompt(model, byte_tokenizer, "The ", max_new_tokens=20, seed=seed) for seed in (5, 5, 6)
    )
    assert first == second != other


def test_greedy_does_not_depend_on_the_seed(model, byte_tokenizer):
    texts = {continue_prompt(model, byte_tokenizer, "The ", 12, seed=seed, temperature=0) for seed in range(3)}
    assert len(texts) == 1


def test_a_prompt_longer_than_any_window(model, byte_tokenizer):
    assert isinstance(continue_prompt(model, byte_tokenizer, "word " * 100, max_new_tokens=10), str)


def test_state_after_any_history(model):
    costs = {history: token_cost(model, history, repeats=2) for history in (16, 400)}
    assert all(milliseconds > 0 for milliseconds, _ in costs.values())
    if model.config.model_type == "gpt2":
        layers, width = model.config.n_layer, model.config.n_embd
        assert costs[400][1] == 2 * layers * width * (400 + 3) * 4
        assert model.config.n_positions == 128, "the model itself must not change"
    else:
        assert costs[16][1] == costs[400][1] > 0


def test_bytes_of_an_empty_state():
    from newllm_lib.models import ContextCache

    assert state_bytes(ContextCache()) == 0
