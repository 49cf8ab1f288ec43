"""The context after each token is the one that reading in one go ends with."""

import pytest
import torch

from newllm_lib.evaluation.generation import trace_context
from newllm_lib.models import ContextCache, build_config, build_model

TOKENS = [5, 9, 200, 31, 7, 8]


@pytest.fixture(scope="module", params=["newllm", "newllm-reference", "lstm"])
def model(request):
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    return build_model(build_config(request.param, 258, 128, num_parameters=120_000, **ids)).eval()


@torch.no_grad()
def context_after(model, tokens, start=None):
    cache = ContextCache(start)
    model(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True)
    return cache.context[0]


def test_the_contexts_come_first_in_the_state(model):
    """Whatever else the state holds is not shown."""
    contexts, state = trace_context(model, TOKENS, 10), context_after(model, TOKENS)
    assert contexts.shape == (len(TOKENS) + 1, model.config.context_numbers)
    others = len(state) - contexts.shape[1]
    config = model.config
    expected = 2 * config.num_hidden_layers * config.hidden_size if config.model_type == "newllm" else 0
    assert others == expected


def test_every_row_is_the_context_after_its_token(model):
    contexts = trace_context(model, TOKENS, 10)
    assert len(contexts) == len(TOKENS) + 1 and not contexts[0].any()
    for count in range(1, len(TOKENS) + 1):
        expected = context_after(model, TOKENS[:count])[: model.config.context_numbers]
        torch.testing.assert_close(contexts[count], expected, rtol=1e-4, atol=1e-5)


def test_the_last_tokens_of_a_longer_text(model):
    contexts = trace_context(model, TOKENS, 2)
    whole = trace_context(model, TOKENS, 10)
    torch.testing.assert_close(contexts, whole[-3:], rtol=1e-4, atol=1e-5)


def test_from_a_context_that_was_carried_here(model):
    start = context_after(model, [40, 41])[None]
    contexts = trace_context(model, TOKENS, 10, start)
    size = model.config.context_numbers
    torch.testing.assert_close(contexts[0], start[0, :size])
    expected = context_after(model, [40, 41, *TOKENS])[:size]
    torch.testing.assert_close(contexts[-1], expected, rtol=1e-4, atol=1e-5)
