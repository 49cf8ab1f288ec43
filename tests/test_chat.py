"""A conversation with a saved model."""

from pathlib import Path

import pytest
import torch
from chats import untrained_chat
from tiny_gemma import tiny_gemma

from newllm_lib.chat import Chat
from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.errors import InputError
from newllm_lib.training.trained_model import TrainedModel

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(params=["newllm", "tiny-gpt2"])
def folder(request, tmp_path):
    return untrained_chat(tmp_path, request.param, template=None)


def test_a_seed_makes_the_same_conversation(folder):
    conversations = []
    for seed in (1, 1, 2):
        chat = Chat(folder, max_new_tokens=15, seed=seed)
        replies = ["".join(chat.reply(text)) for text in ("Hello", " again")]
        assert [message["content"] for message in chat.messages] == ["Hello", replies[0], " again", replies[1]]
        conversations.append(replies)
    assert conversations[0] == conversations[1] != conversations[2]


def test_what_streams_is_what_the_tokens_say(folder):
    chat = Chat(folder, max_new_tokens=30, temperature=0)
    pieces = list(chat.reply("Ünïcode 日本"))
    read = chat.stream.read[len(chat.tokenizer.encode("Ünïcode 日本")) + 1 :]  # all of the reply but its last token
    whole = chat.tokenizer.decode(read, skip_special_tokens=True)
    assert len(read) == 29
    assert "".join(pieces).replace("\ufffd", "").startswith(whole.replace("\ufffd", ""))


def test_a_reply_of_which_nothing_can_be_shown_can_be_stopped(folder):
    chat = Chat(folder, max_new_tokens=50, temperature=0)
    half = chat.tokenizer.encode("é", add_special_tokens=False)[0]  # of two bytes, again and again

    def only_halves(model, inputs, output):
        output.logits[..., half] = 1e9

    hook = chat.model.register_forward_hook(only_halves)
    replies = chat.reply("Hello")
    assert [next(replies) for _ in range(10)] == [""] * 10
    replies.close()
    hook.remove()
    assert chat.messages[-1] == {"role": "assistant", "content": ""} and len(chat.stream.read) < 30


def test_a_template_is_the_only_home_of_roles(folder):
    chat = Chat(folder, max_new_tokens=5)
    chat.tokenizer.chat_template = TEMPLATE
    list(chat.reply("Hi"))
    rendered = chat.tokenizer.decode(chat.stream.read)
    assert rendered.startswith("user: Hi\nassistant: ")


def test_a_listener_who_leaves_keeps_what_was_said(folder):
    chat = Chat(folder, max_new_tokens=50, seed=1)
    replies = chat.reply("Hello")
    first = next(replies)
    replies.close()
    assert chat.messages[-1] == {"role": "assistant", "content": first}
    chat.reset()
    assert chat.messages == []


@pytest.mark.parametrize(
    ("field", "value"), [("max_new_tokens", 0), ("temperature", -1), ("top_p", 0.0), ("repetition_penalty", 0.0)]
)
def test_values_out_of_range_are_named(tmp_path, field, value):
    with pytest.raises(InputError, match=field):
        Chat(tmp_path, **{field: value})


def test_sampling_changes_between_two_replies_and_the_state_stays(folder):
    chat = Chat(folder, max_new_tokens=5, temperature=0)
    list(chat.reply("Hello"))
    read, cache = list(chat.stream.read), chat.stream.cache
    chat.set_sampling(9, 1.5, 0.9, 1.2)
    assert chat.stream.read == read and chat.stream.cache is cache
    assert chat.max_new_tokens == 9 and not chat.stream.greedy and len(chat.stream.warpers) == 3
    with pytest.raises(InputError, match="top_p"):
        chat.set_sampling(9, 1.5, 0.0)
    chat.set_sampling(9, 1.0, 1.0)
    assert len(chat.stream.warpers) == 0, "the folder asks for no repetition penalty"


def test_a_chat_draws_nothing_from_the_global_generator(folder):
    before = torch.random.get_rng_state()
    list(Chat(folder, max_new_tokens=5, seed=1).reply("Hello"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_state_is_counted_in_bytes(folder):
    chat = Chat(folder, max_new_tokens=5)
    assert chat.state_bytes == 0
    sizes = []
    for text in ("Hello", " and then"):
        list(chat.reply(text))
        sizes.append(chat.state_bytes)
    if chat.is_recurrent:
        config = chat.model.config
        assert sizes == [4 * config.num_hidden_layers * (config.context_size + 2 * config.hidden_size)] * 2
    else:
        assert sizes[0] < sizes[1]
    chat.reset()
    assert chat.state_bytes == 0


def test_a_chat_of_the_base_says_what_the_base_says_while_others_use_the_model():
    peft = pytest.importorskip("peft")
    from newllm_lib.adapters.lora import allow_old_torchao

    allow_old_torchao()
    base = tiny_gemma()
    alone = Chat(opened(base), max_new_tokens=12, temperature=0)
    expected = "".join(alone.reply("Hello"))
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    trained = opened(peft.get_peft_model(base, config))
    of_base, of_tuned = (Chat(trained, max_new_tokens=12, temperature=0, base=is_base) for is_base in (True, False))
    tuned = "".join(Chat(trained, max_new_tokens=12, temperature=0).reply("Hello"))
    pieces = {"base": [], "tuned": []}
    replies = {"base": of_base.reply("Hello"), "tuned": of_tuned.reply("Hello")}
    while replies:
        for name in tuple(replies):
            if (piece := next(replies[name], None)) is None:
                del replies[name]
            else:
                pieces[name].append(piece)
    assert "".join(pieces["base"]) == expected != tuned
    assert "".join(pieces["tuned"]) == tuned


def opened(model) -> TrainedModel:
    return TrainedModel(Path("nowhere"), model, build_tokenizer("byte", []), {}, {})
