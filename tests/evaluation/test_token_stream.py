"""The lean loop gives the tokens that transformers' `generate` gives."""

import pytest
import torch

from newllm_lib.evaluation.generation import TokenStream
from newllm_lib.models import ContextCache, build_config, build_model

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


def test_goes_on_beyond_a_window_and_counts_what_it_drops(model):
    stream = TokenStream(model)
    tokens = list(stream.continue_with(PROMPT * 20, 200, []))
    assert len(tokens) == 200
    whole = [*PROMPT * 20, *tokens[:-1]]  # the last one was chosen, not read
    assert stream.read == whole[stream.dropped :]
    assert (stream.dropped > 0) == hasattr(model.config, "n_positions")


def test_catching_up_reads_without_a_word(model):
    stream, talker = TokenStream(model, temperature=0), TokenStream(model, temperature=0)
    stream.catch_up(PROMPT[:2])
    stream.catch_up(PROMPT)
    stream.catch_up(PROMPT)
    assert stream.read == PROMPT
    expected = list(talker.continue_with([*PROMPT, 3], 5, []))
    assert list(stream.continue_with([*PROMPT, 3], 5, [])) == expected
    stream.catch_up([1, 2])
    assert stream.read == [1, 2], "another text is read from its start"


def test_a_generator_of_its_own_leaves_the_global_one_alone(model):
    before = torch.random.get_rng_state()
    draws = []
    for seed in (1, 1, 2):
        stream = TokenStream(model, generator=torch.Generator().manual_seed(seed))
        draws.append(list(stream.continue_with(PROMPT, 20, [])))
    assert draws[0] == draws[1] != draws[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_recurrent_model_begins_with_a_given_context(model):
    stream = TokenStream(model, temperature=0)
    stream.catch_up(PROMPT)
    if not isinstance(stream.cache, ContextCache):
        pytest.skip("it keeps a key and a value of every token")
    heir = TokenStream(model, temperature=0)
    heir.begin(stream.cache.context, len(PROMPT))
    first = list(heir.continue_with([11, 12], 6, []))
    assert first == list(stream.continue_with([*PROMPT, 11, 12], 6, []))
    assert heir.cache.seen_tokens == len(PROMPT) + 2 + 5
    assert list(heir.continue_with([11, 12], 6, [])) == first, "read anew, it begins there again"
