"""The lean loop gives the tokens that transformers' `generate` gives."""

import pytest
import torch

from newllm_lib.evaluation.token_stream import TokenStream
from newllm_lib.models import build_config, build_model

PROMPT = [5, 9, 200, 31, 7]
STOP = 256


@pytest.fixture(scope="module", params=["newllm", "newllm-reference", "tiny-gpt2", "lstm"])
def model(request):
    torch.manual_seed(0)
    config = build_config(
        request.param, 258, 128, num_parameters=120_000, bos_token_id=STOP, eos_token_id=STOP, pad_token_id=257
    )
    return build_model(config).eval()


def generated(model, prompt, seed, new_tokens, **sampling):
    torch.manual_seed(seed)
    input_ids = torch.tensor([prompt])
    output = model.generate(input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=new_tokens, **sampling)
    tokens = output[0, len(prompt) :].tolist()
    return tokens[: tokens.index(STOP)] if STOP in tokens else tokens


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize(("temperature", "top_p"), [(0, 1.0), (1.0, 1.0), (0.7, 0.9), (1.5, 1.0)])
def test_equals_generate(model, temperature, top_p, penalty):
    sampling = {"do_sample": False} if temperature == 0 else {"do_sample": True, "temperature": temperature}
    if temperature:
        sampling |= {"top_p": top_p, "top_k": 0}
    for seed in range(3):
        expected = generated(model, PROMPT, seed, 60, repetition_penalty=penalty, **sampling)
        torch.manual_seed(seed)
        stream = TokenStream(model, temperature, top_p, penalty)
        assert list(stream.continue_with(PROMPT, 60, [STOP])) == expected


def test_stops_before_a_stop_token(model):
    stream = TokenStream(model, temperature=0)
    tokens = list(stream.continue_with(PROMPT, 12, []))
    stream = TokenStream(model, temperature=0)
    assert list(stream.continue_with(PROMPT, 12, [tokens[4]])) == tokens[: tokens.index(tokens[4])]


def test_a_conversation_is_not_read_twice(model, monkeypatch):
    stream = TokenStream(model, temperature=0)
    first = list(stream.continue_with(PROMPT, 6, []))
    lengths = []
    forward = type(model).forward

    def counting(self, *args, **kwargs):
        lengths.append(kwargs["input_ids"].shape[1])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", counting)
    conversation = [*PROMPT, *first, 11, 12, 13]
    second = list(stream.continue_with(conversation, 4, []))
    assert lengths == [4, 1, 1, 1], "the last token of the reply and the three new ones, then one at a time"
    assert second == generated(model, conversation, 0, 4, do_sample=False)


def test_another_conversation_is_read_from_its_start(model):
    stream = TokenStream(model, temperature=0)
    list(stream.continue_with(PROMPT, 6, []))
    other = [1, 2, 3]
    assert list(stream.continue_with(other, 5, [])) == generated(model, other, 0, 5, do_sample=False)


def test_goes_on_beyond_a_window(model):
    tokens = list(TokenStream(model).continue_with(PROMPT * 20, 200, []))
    assert len(tokens) == 200
