"""Every dataset of the catalogue by a literal row: its messages, its text, its tokens and which of them are learned."""

import re

import pytest
from byte_ids import byte_ids

from newllm_lib.data import examples, sources
from newllm_lib.data.chat_template import TEMPLATES, ConversationFormat, encode_conversations, render
from newllm_lib.data.examples import check_messages
from newllm_lib.data.files import RowError
from newllm_lib.data.sources import CONVERSATION_DATASETS, DATASETS
from newllm_lib.data.tokenizer import build_tokenizer


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def context(content: str) -> dict:
    return {"role": "context", "content": content}


def assistant(content: str) -> dict:
    return {"role": "assistant", "content": content}


# (dataset, row, messages, text with what is learned between « and »); after the last end of turn nothing is kept.
LITERAL_ROWS = [
    (
        "dailydialog",
        {"dialog": [" Hi , Bob . ", "Hello !", "Bye .", "See you . "], "act": [1, 1, 1, 1], "emotion": [0, 0, 0, 0]},
        [user("Hi , Bob ."), assistant("Hello !"), user("Bye ."), assistant("See you .")],
        "User: Hi , Bob .\nAssistant:« Hello !<|endoftext|>»\nUser: Bye .\nAssistant:« See you .<|endoftext|>»",
    ),
    (
        "dolly",
        {"instruction": "Who runs it?", "context": "Ann runs it.", "response": "Ann.", "category": "closed_qa"},
        [user("Who runs it?"), context("Ann runs it."), assistant("Ann.")],
        "Instruction: Who runs it?\nContext: Ann runs it.\nResponse:« Ann.<|endoftext|>»",
    ),
    (
        "dolly",
        {"instruction": "Name a colour.", "context": "", "response": "Blue.\nOr red.", "category": "open_qa"},
        [user("Name a colour."), assistant("Blue.\nOr red.")],
        "Instruction: Name a colour.\nResponse:« Blue.\nOr red.<|endoftext|>»",
    ),
    (
        "dolly-ja",
        {"instruction": "訳して", "input": "cat", "output": "猫", "category": "qa", "index": "7"},
        [user("訳して"), context("cat"), assistant("猫")],
        "Instruction: 訳して\nContext: cat\nResponse:« 猫<|endoftext|>»",
    ),
    (
        "ultrachat",
        {"prompt": "Q", "prompt_id": "x", "messages": [user("Q"), assistant("A"), user("More"), assistant("B")]},
        [user("Q"), assistant("A"), user("More"), assistant("B")],
        "User: Q\nAssistant:« A<|endoftext|>»\nUser: More\nAssistant:« B<|endoftext|>»",
    ),
    (
        "ultrachat-full",
        {"id": "0", "data": ["Q", "A", "left over"]},
        [user("Q"), assistant("A")],
        "User: Q\nAssistant:« A<|endoftext|>»",
    ),
    (
        "hh-rlhf",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Two\n\nlines\n\nAssistant: Fine.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: No.",
        },
        [user("Hi"), assistant("Yes?"), user("Two\n\nlines"), assistant("Fine.")],
        "User: Hi\nAssistant:« Yes?<|endoftext|>»\nUser: Two\n\nlines\nAssistant:« Fine.<|endoftext|>»",
    ),
    (
        "alpaca",
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        [user("Add."), context("1 2"), assistant("3")],
        "Instruction: Add.\nContext: 1 2\nResponse:« 3<|endoftext|>»",
    ),
    (
        "alpaca-ja",
        {"instruction": "挨拶を", "input": None, "output": "こんにちは🙂"},
        [user("挨拶を"), assistant("こんにちは🙂")],
        "Instruction: 挨拶を\nResponse:« こんにちは🙂<|endoftext|>»",
    ),
    (
        "codealpaca",
        {"instruction": "Print 1.", "input": "", "output": "for x in [1]:\n    print(x)\n"},
        [user("Print 1."), assistant("for x in [1]:\n    print(x)")],
        "Instruction: Print 1.\nResponse:« for x in [1]:\n    print(x)<|endoftext|>»",
    ),
]


@pytest.mark.parametrize(("name", "row", "messages", "marked"), LITERAL_ROWS, ids=[row[0] for row in LITERAL_ROWS])
def test_a_literal_row(name, row, messages, marked):
    entry = DATASETS[name]
    assert set(entry.columns) <= row.keys()
    assert examples.any_conversation(row) == messages
    tokenizer = build_tokenizer("byte", [])
    tokenizer.chat_template = TEMPLATES[entry.template]
    parts = re.split("[«»]", f"<|endoftext|>{marked}")  # every other one is learned
    (text,), _ = render([messages], tokenizer)
    assert text == "".join(parts)
    (item,) = encode_conversations([messages], tokenizer, ConversationFormat(1024))
    assert item.token_ids.tolist() == byte_ids(text)
    assert item.supervised.tolist() == [number % 2 == 1 for number, part in enumerate(parts) for _ in byte_ids(part)]


def test_every_dataset_has_a_literal_row():
    assert {row[0] for row in LITERAL_ROWS} == set(CONVERSATION_DATASETS)


def test_mirrors_are_regrouped():
    said = [(0, "Hi"), (0, "Yo"), (1, "Bye"), (1, "Ciao")]
    utterances = [{"dialog_id": number, "utterance": turn, "emotion": "none"} for number, turn in said]
    assert list(sources.dialogues_of_utterances(utterances)) == [{"dialog": ["Hi", "Yo"]}, {"dialog": ["Bye", "Ciao"]}]
    regroup = DATASETS["dailydialog"].sources[2].regroup
    assert list(regroup([{"utterances": ["Hi", "Yo"], "acts": [1, 2]}])) == [{"dialog": ["Hi", "Yo"]}]


def test_rows_of_the_users_own():
    # pandas writes its index under an empty name
    assert examples.any_conversation({"": "0", "prompt": "Q", "completion": "A"}) == [user("Q"), assistant("A")]
    with pytest.raises(RowError, match=r"neither a 'messages' column nor .* \(found: 'text'\)"):
        examples.any_conversation({"text": "Q"})


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("a"), user(" b "), assistant("c")], [user("a\n\nb"), assistant("c")]),
        ([user("a"), assistant("b"), assistant("c")], [user("a"), assistant("b\n\nc")]),
        ([user("a"), assistant("b"), user("c")], [user("a"), assistant("b")]),
        ([user("a"), assistant("b"), user("c"), context("d")], [user("a"), assistant("b")]),
        ([SYSTEM, user("a"), assistant("b")], [SYSTEM, user("a"), assistant("b")]),
        ([assistant("Welcome.")], [assistant("Welcome.")]),
        ([{**user("a"), "name": "Ann"}, assistant("b")], [user("a"), assistant("b")]),
    ],
)
def test_conversations_as_they_are_trained_on(messages, expected):
    before = [dict(message) for message in messages]
    assert check_messages(messages) == expected
    assert messages == before


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([user("a"), assistant(" \n ")], r"turn 2 \(assistant\) is empty"),
        ([user(""), assistant("b")], r"turn 1 \(user\) is empty"),
        ([user("a")], "there is no assistant turn to learn from"),
        ([], "there is no assistant turn to learn from"),
        ([user("a"), SYSTEM, assistant("b")], "turn 2: a system turn has to be the first"),
        ([user("a"), {"role": "assistant", "content": ["b"]}], "turn 2: content has a part that is no text, 'str'"),
        ([user("a"), {"role": "assistant", "content": None}], r"turn 2 \(assistant\) is empty"),
        ([user("a"), {"role": "bot", "content": "b"}], "turn 2: role has to be one of system, user, .*got 'bot'"),
        ([user("a"), {"role": "assistant"}], "turn 2 has to be an object with 'role' and 'content'"),
        ([user("a"), "b"], "turn 2 has to be an object with 'role' and 'content'"),
        ([user("a\ud83d"), assistant("b")], r"turn 1 \(user\) holds half a character"),
    ],
)
def test_what_is_no_conversation_says_why(messages, complaint):
    with pytest.raises(RowError, match=complaint):
        check_messages(messages)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"dialog": "Hi"}, "'dialog' has to be a list of turns, got str"),
        ({"dialog": ["Hi", 5]}, r"turn 2 \(assistant\) has to be a string, got int"),
        ({"instruction": "a", "context": ""}, r"no 'completion' or 'response' .*\(found: 'instruction', 'context'\)"),
        ({"instruction": "a", "context": 1, "response": "b"}, "'context' has to be a string, got int"),
        ({"instruction": "a", "input": "", "output": " "}, "'output' is empty"),
        ({"instruction": None, "input": "", "output": "b"}, "'instruction' is empty"),
        ({"chosen": "Hello\n\nHuman: a"}, "'chosen' has to begin with a turn of Human or Assistant"),
        ({"chosen": "\n\nHuman: a\n\nAssistant:"}, r"turn 2 \(assistant\) is empty"),
        ({"messages": "[]"}, "'messages' has to be a list of turns, got str"),
        ({"data": None}, "'data' is empty"),
    ],
)
def test_a_row_that_does_not_fit_says_why(row, complaint):
    with pytest.raises(RowError, match=complaint):
        examples.any_conversation(row)
