"""Conversations by role tokens: a token a role, answers closed by another, and no text that is either."""

import copy
import threading

import pytest
from byte_ids import ASSISTANT, END, END_OF_TURN, USER, ids_with_roles, text_ids
from sample_text import make_text

from newllm_lib.data.chat_template import (
    ROLE_TEMPLATE,
    TEMPLATES,
    ConversationFormat,
    borrowed_template,
    conversation_ids,
    encode_conversations,
    plain_messages,
    template_for,
)
from newllm_lib.data.conversations import Conversations, learned_tokenizer
from newllm_lib.data.tokenizer import build_tokenizer

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "ab"},
    {"role": "context", "content": "c\nd"},
    {"role": "assistant", "content": "日本"},
    {"role": "user", "content": "ef"},
    {"role": "assistant", "content": "g h"},
]
FIRST = "<|endoftext|><|user|> ab<|assistant|> cd<|end|>"  # 10 tokens, of which 4 are learned
SECOND = "<|user|> ef<|assistant|> gh<|end|>"  # 9, and 4 again
SPELLED = "a<|assistant|>b<|end|> <|endoftext|><|user|>"


def talk(*contents: str) -> list[dict]:
    return [{"role": "assistant" if turn % 2 else "user", "content": content} for turn, content in enumerate(contents)]


def tokenizer_of(kind: str):
    tokenizer = build_tokenizer(kind, [make_text(200)], 400 if kind == "bpe" else None)
    tokenizer.chat_template = template_for(tokenizer, "dialogue")
    return tokenizer


@pytest.fixture(params=["byte", "bpe"])
def tokenizer(request):
    return tokenizer_of(request.param)


@pytest.fixture
def of_bytes():
    return tokenizer_of("byte")


def encoded(messages, tokenizer, max_length=1024, loss_on="assistant", too_long="turns"):
    (item,) = encode_conversations([messages], tokenizer, ConversationFormat(max_length, loss_on, too_long))
    return item


def test_every_token_of_a_conversation(of_bytes):
    parts = [
        ("<|endoftext|><|system|> Be kind.<|user|> ab<|context|> c\nd<|assistant|>", False),
        (" 日本<|end|>", True),
        ("<|user|> ef<|assistant|>", False),
        (" g h<|end|>", True),
    ]
    item = encoded(TALK, of_bytes)
    assert item.token_ids.tolist() == [token for text, _ in parts for token in ids_with_roles(text)]
    assert item.supervised.tolist() == [learned for text, learned in parts for _ in ids_with_roles(text)]
    assert (item.counts.tokens, item.counts.bytes, item.counts.words) == (8 + 5, 6 + 3, 1 + 2)


def test_what_is_asked_for_is_the_beginning_of_what_is_learned(tokenizer):
    item = encoded(TALK, tokenizer)
    token_ids, learned = item.token_ids.tolist(), [False] * len(item.token_ids)
    for number, message in enumerate(TALK):
        if message["role"] == "assistant":
            prompt = conversation_ids(TALK[:number], tokenizer)
            said = conversation_ids(TALK[: number + 1], tokenizer, is_turn_open=False)
            assert prompt == tokenizer.apply_chat_template(TALK[:number], add_generation_prompt=True, return_dict=False)
            assert token_ids[: len(said)] == said and said[: len(prompt)] == prompt and len(prompt) < len(said)
            assert tokenizer.decode(said[len(prompt) :]) == f" {message['content']}<|end|>"
            learned[len(prompt) : len(said)] = [True] * (len(said) - len(prompt))
    assert item.supervised.tolist() == learned
    rendered = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    assert rendered["input_ids"] == token_ids
    assert rendered["assistant_masks"] == item.supervised.astype(int).tolist()


def test_a_role_that_is_spelled_out_is_text(tokenizer):
    messages = talk(SPELLED, SPELLED)
    item = encoded(messages, tokenizer)
    special = [token for token in item.token_ids.tolist() if token in tokenizer.all_special_ids]
    names = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
    assert special == tokenizer.convert_tokens_to_ids(names)
    assert tokenizer.decode(item.token_ids) == f"<|endoftext|><|user|> {SPELLED}<|assistant|> {SPELLED}<|end|>"
    assert item.counts.bytes == len(SPELLED)
    assert conversation_ids(messages, tokenizer, is_turn_open=False) == item.token_ids.tolist()
    # Others render the conversation: there the spelling is taken out.
    plain = plain_messages(messages, tokenizer)
    assert [message["content"] for message in plain] == ["a b    "] * 2
    rendered = tokenizer.apply_chat_template(plain, return_dict=False)
    assert rendered == encoded(plain, tokenizer).token_ids.tolist()
    assert messages[0]["content"] == SPELLED


def test_spelled_out_bytes_exactly(of_bytes):
    assert conversation_ids(talk("<|end|>"), of_bytes) == [END, USER, *text_ids(" <|end|>"), ASSISTANT]


def test_encoding_leaves_the_tokenizer_as_it_is(tokenizer):
    """Of one backend, threads would see the switch that another has set."""
    before = tokenizer.backend_tokenizer.to_str()
    wrong = []

    def render():
        for _ in range(200):
            if len(tokenizer.encode("<|user|>", add_special_tokens=False)) != 1:
                wrong.append("a role that is not one token")

    def encode():
        for _ in range(200):
            if tokenizer.all_special_ids[-1] in conversation_ids(talk("<|end|>"), tokenizer):
                wrong.append("text that is an end of turn")

    threads = [threading.Thread(target=work) for work in (render, encode)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not tokenizer.backend_tokenizer.encode_special_tokens
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("max_length", [10, 18])
def test_whole_turns_are_kept(of_bytes, max_length):
    item = encoded(talk("ab", "cd", "ef", "gh"), of_bytes, max_length)
    assert item.token_ids.tolist() == ids_with_roles(FIRST)
    assert item.supervised.tolist() == [False] * 6 + [True] * 4
    assert (item.turns_left_out, item.counts.bytes) == (1, 2)
    assert encoded(talk("ab", "cd", "ef", "gh"), of_bytes, 9) is None
    whole = encoded(talk("ab", "cd", "ef", "gh"), of_bytes, 19)
    assert whole.token_ids.tolist() == ids_with_roles(FIRST + SECOND) and whole.turns_left_out == 0


def test_cut(of_bytes):
    item = encoded(talk("ab", "cd", "ef", "gh"), of_bytes, 8, too_long="cut")
    assert item.token_ids.tolist() == ids_with_roles(FIRST)[:8]
    assert item.supervised.tolist() == [False] * 6 + [True] * 2
    assert (item.turns_left_out, item.counts.tokens, item.counts.bytes) == (2, 2, 1)  # " c"
    assert encoded(talk("ab", "cd"), of_bytes, 6, too_long="cut") is None  # before the first answer
    item = encoded(talk("ab", "cd"), of_bytes, 6, "all", "cut")
    assert item.supervised.tolist() == [False] + [True] * 5 and item.counts.bytes == 2
    assert encoded(talk("ab", "cd", "ef", "gh"), of_bytes, 17, too_long="cut").counts.bytes == 3  # "cd" and "g"


def test_loss_on_all(of_bytes):
    item = encoded(talk("ab", "cd", "ef", "gh"), of_bytes, 48, "all")
    assert item.token_ids.tolist() == ids_with_roles(FIRST + SECOND)
    assert item.supervised.tolist() == [False] + [True] * 18
    # Roles are learned, but no text: bytes and words are of what is said.
    assert (item.counts.tokens, item.counts.bytes, item.counts.words) == (18, 8, 4)


def test_the_template_of_a_tokenizer():
    assert TEMPLATES.keys() == {"dialogue", "instruction", "turns"}
    assert template_for(build_tokenizer("byte", []), "instruction") == ROLE_TEMPLATE
    words = build_tokenizer("word", [make_text(200)], 40)
    assert template_for(words, "instruction") == TEMPLATES["instruction"]
    lender = tokenizer_of("byte")
    assert borrowed_template(lender, lender) == ROLE_TEMPLATE
    assert borrowed_template(words, lender) == TEMPLATES["dialogue"]
    lender.chat_template = "another one"
    assert borrowed_template(words, lender) == "another one"


def test_a_text_template_stays_what_it_was(of_bytes):
    """Runs that were trained with it go on, also where the tokenizer has role tokens."""
    of_bytes.chat_template = TEMPLATES["dialogue"]
    item = encoded(talk("a<|end|>b", "cd"), of_bytes)
    text = "<|endoftext|>User: a b\nAssistant: cd<|endoftext|>"
    assert item.token_ids.tolist() == ids_with_roles(text)
    assert conversation_ids(talk("a<|end|>b"), of_bytes) == ids_with_roles("<|endoftext|>User: a b\nAssistant:")
    words = build_tokenizer("word", [make_text(200)], 40)
    words.chat_template = TEMPLATES["dialogue"]
    assert words.decode(conversation_ids(talk("the <unk> end"), words)) == "<|endoftext|> <unk> the <unk> <unk> <unk>"


def test_turns_begin_with_words_as_running_text_has_them(tmp_path, monkeypatch):
    """Learned from what is said, `bpe` has one token for a word that is frequent at the beginning of turns."""
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path))
    told = [talk("Hello there", "Hello you")] * 50
    data = Conversations("talk", "none", "talk", lambda first: ((n, t, "") for n, t in enumerate(told)))
    tokenizer = learned_tokenizer(data, "dialogue", "bpe", 275)
    assert tokenizer.chat_template == ROLE_TEMPLATE
    ids = conversation_ids(talk("Hello"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|endoftext|>", "<|user|>", "ĠHello", "<|assistant|>"]


def test_a_new_token_is_used_in_conversations(of_bytes):
    tokenizer = copy.deepcopy(of_bytes)
    conversation_ids(talk("日本"), tokenizer)
    tokenizer.add_tokens(["日本"])
    assert conversation_ids(talk("日本"), tokenizer) == [END, USER, *text_ids(" "), END_OF_TURN + 1, ASSISTANT]
