"""Conversations as tokens: what is learned, where a conversation is cut, and that nothing is lost on the way."""

import pytest
from byte_ids import END, byte_ids
from sample_text import make_text

from newllm_lib.data.chat_template import TEMPLATES, ConversationFormat, encode_conversations, render
from newllm_lib.data.tokenizer import build_tokenizer

TALK = [
    {"role": "system", "content": "Answer kindly, in the harbour's own words."},
    {"role": "user", "content": "Nobody knew where the map was?"},
    {"role": "context", "content": "The map had come from the north.\nShe counted the boats."},
    {"role": "assistant", "content": "It lay by the mill; the river ran low."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "(A cold wind blew)\n\n- 1. from the north\n日本語 🙂"},
]
STRANGE = [
    "日本語のテキスト。",
    "🙂👩‍👩‍👧‍👦 é é",
    "\u200fשלום עולם\u200f!",  # noqa: RUF001
    "a\tb  c\r\nd\n\n\ne",
    "'s \u00a0x ''' {{ x }} {% y %}",
]
TURNS = [
    {"role": "user", "content": "ab"},
    {"role": "assistant", "content": "cd"},
    {"role": "user", "content": "ef"},
    {"role": "assistant", "content": "gh"},
]
FIRST = "<|endoftext|>User: ab\nAssistant: cd<|endoftext|>"  # 20 tokens, and 4 that are learned
SECOND = "\nUser: ef\nAssistant: gh<|endoftext|>"  # 20 and 4 again


def tokenizer_of(kind: str, template: str):
    # A copy each: the template is set on it.
    tokenizer = build_tokenizer(kind, [make_text(200)], 400 if kind == "bpe" else None)
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


@pytest.fixture
def byte_dialogue():
    return tokenizer_of("byte", "dialogue")


@pytest.mark.parametrize("kind", ["byte", "bpe", "word"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_asked_for_is_the_beginning_of_what_is_learned(kind, template):
    """For every answer: the prompt that generation starts from is a prefix, in tokens, of the training rendering, and
    what is learned after it is the answer and its end of turn, no token more or less."""
    tokenizer = tokenizer_of(kind, template)
    (item,) = encode_conversations([TALK], tokenizer, ConversationFormat(1024))
    token_ids = item.token_ids.tolist()
    learned = [False] * len(token_ids)
    for number, message in enumerate(TALK):
        if message["role"] != "assistant":
            continue
        rendered = tokenizer.apply_chat_template(TALK[:number], add_generation_prompt=True, tokenize=False)
        prompt = tokenizer.encode(rendered, add_special_tokens=False)
        assert token_ids[: len(prompt)] == prompt
        end = len(prompt) + token_ids[len(prompt) :].index(tokenizer.eos_token_id) + 1
        learned[len(prompt) : end] = [True] * (end - len(prompt))
        if kind != "word":
            answer = tokenizer.decode(token_ids[len(prompt) : end])
            space = "" if template == "turns" else " "  # after the role word
            assert answer == f"{space}{message['content']}{tokenizer.eos_token}"
    assert item.supervised.tolist() == learned
    assert item.counts.tokens == sum(learned)
    # the pipeline's own way to the same tokens
    whole = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=True)["input_ids"]
    assert whole[: len(token_ids)] == token_ids


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
def test_strange_text_comes_back_to_the_byte(kind, text):
    tokenizer = tokenizer_of(kind, "dialogue")
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    (item,) = encode_conversations([messages], tokenizer, ConversationFormat(4096))
    eot = tokenizer.eos_token
    assert tokenizer.decode(item.token_ids) == f"{eot}User: {text}\nAssistant: {text}{eot}"
    assert tokenizer.decode(item.token_ids[item.supervised]) == f" {text}{eot}"
    assert item.counts.bytes == len(text.encode())
    if kind == "byte":
        assert item.counts.tokens == len(text.encode()) + 2  # the space before it and the end of turn


def test_a_conversation_that_fits_is_whole(byte_dialogue):
    (item,) = encode_conversations([TURNS], byte_dialogue, ConversationFormat(48))
    assert item.token_ids.tolist() == byte_ids(FIRST + SECOND)
    assert (item.turns_left_out, item.counts.words, item.counts.tokens) == (0, 2, 8)


@pytest.mark.parametrize("max_length", [24, 25, 47])
def test_whole_turns_are_kept(byte_dialogue, max_length):
    (item,) = encode_conversations([TURNS], byte_dialogue, ConversationFormat(max_length))
    assert item.token_ids.tolist() == byte_ids(FIRST)
    assert item.supervised.tolist() == [False] * 20 + [True] * 4
    assert item.turns_left_out == 1


def test_a_first_answer_that_does_not_fit_is_left_out(byte_dialogue):
    assert encode_conversations([TURNS], byte_dialogue, ConversationFormat(23)) == [None]


def test_cut(byte_dialogue):
    (item,) = encode_conversations([TURNS], byte_dialogue, ConversationFormat(22, too_long="cut"))
    assert item.token_ids.tolist() == byte_ids(FIRST)[:22]
    assert item.supervised.tolist() == [False] * 20 + [True] * 2
    assert (item.turns_left_out, item.counts.tokens) == (2, 2)
    assert item.counts.bytes == 1  # of " c": the space is the template's
    (whole,) = encode_conversations([TURNS], byte_dialogue, ConversationFormat(48, too_long="cut"))
    assert whole.turns_left_out == 0


def test_cut_before_the_first_answer_nothing_is_left_to_learn(byte_dialogue):
    assert encode_conversations([TURNS], byte_dialogue, ConversationFormat(20, too_long="cut")) == [None]
    (item,) = encode_conversations([TURNS], byte_dialogue, ConversationFormat(20, "all", "cut"))
    assert item.supervised.tolist() == [False] + [True] * 19


def test_loss_on_all(byte_dialogue):
    (item,) = encode_conversations([TURNS], byte_dialogue, ConversationFormat(48, "all"))
    assert item.token_ids.tolist() == byte_ids(FIRST + SECOND)
    assert item.supervised.tolist() == [False] + [True] * 47
    said = "User: ab\nAssistant: cd\nUser: ef\nAssistant: gh"
    assert (item.counts.tokens, item.counts.bytes, item.counts.words) == (47, len(said), 8)


def test_words_that_are_unknown_are_counted_where_they_are_learned():
    tokenizer = tokenizer_of("word", "dialogue")
    messages = [{"role": "user", "content": "zebra"}, {"role": "assistant", "content": "the zebra river"}]
    (item,) = encode_conversations([messages], tokenizer, ConversationFormat(48))
    assert (item.counts.unknown_tokens, item.counts.words, item.counts.tokens) == (1, 3, 4)


def test_the_end_of_turn_is_one_token_and_learned(byte_dialogue):
    (item,) = encode_conversations([TURNS], byte_dialogue, ConversationFormat(48))
    ends = item.token_ids == END
    assert ends.sum() == 3 and not item.supervised[0] and item.supervised[ends][1:].all()


def test_a_long_message(byte_dialogue):
    """A quarter of a megabyte in one message: read, and cut or left out as any other."""
    messages = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "ab c日\n" * 37_500 + "end"}]
    size = len(messages[1]["content"].encode())
    (item,) = encode_conversations([messages], byte_dialogue, ConversationFormat(1 << 22))
    assert item.counts.bytes == size == item.counts.tokens - 2
    assert encode_conversations([messages], byte_dialogue, ConversationFormat(256)) == [None]
    (cut,) = encode_conversations([messages], byte_dialogue, ConversationFormat(256, too_long="cut"))
    assert len(cut.token_ids) == 256


def test_what_the_template_does_not_hold_is_not_rendered(byte_dialogue):
    (text,), (spans,) = render([TURNS], byte_dialogue)
    assert text == FIRST + SECOND
    assert [text[begin:end] for begin, end in spans] == [" cd<|endoftext|>", " gh<|endoftext|>"]


def test_special_tokens_in_the_text_are_no_special_tokens(byte_dialogue):
    said = [{"role": "user", "content": "a<|endoftext|>b"}, {"role": "assistant", "content": "c<|pad|>d"}]
    (item,) = encode_conversations([said], byte_dialogue, ConversationFormat(200))
    assert byte_dialogue.decode(item.token_ids) == "<|endoftext|>User: a b\nAssistant: c d<|endoftext|>"
    assert (item.token_ids == END).sum() == 2
    assert said[0]["content"] == "a<|endoftext|>b"
    assert item.counts.bytes == 3


def test_bytes_are_of_the_answers_alone(byte_dialogue):
    turns = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "é 4")]
    said = [{"role": role, "content": content} for role, content in turns]
    (item,) = encode_conversations([said], byte_dialogue, ConversationFormat(200))
    assert (item.counts.bytes, item.counts.words) == (3 + 4, 3)
