"""Rows in the formats of public data: what their columns and turns mean, what is learned of them, what is named."""

import json
import time

import pytest

from newllm_lib.data import examples
from newllm_lib.data.chat_template import ROLE_TEMPLATE, TEMPLATES, ConversationFormat, encode_conversations
from newllm_lib.data.conversations import load_conversations
from newllm_lib.data.examples import MOST_TURNS, check_messages
from newllm_lib.data.files import RowError
from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.preferences.pairs import load_preferences
from newllm_lib.stages.data import inspect_dataset

NAN = float("nan")


def said(*turns: tuple[str, str]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in turns]


QUESTION, ANSWER = ("user", "Why?"), ("assistant", "Because.")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "completion": "Because."},
        {"prompt": "Why?", "response": "Because."},
        {"question": "Why?", "answer": "Because."},
        {"query": "Why?", "response": "Because."},
        {"input": "Why?", "output": "Because."},
        {"instruction": "Why?", "input": NAN, "output": "Because."},
        {"instruction": "Why?", "context": None, "input": "", "response": "Because.", "system": " "},
        {"messages": said(QUESTION, ANSWER), "prompt": "Why?", "system": ""},
        {"prompt": "Why?", "completion": "Because.", "messages": [], "data": "2024-01-01"},
        {"prompt": "Why?", "completion": "Because.", "conversations": None},
        {"conversations": said(QUESTION, ANSWER)},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Wh"}, {"text": "y?"}]}, said(ANSWER)[0]]},
        # As Parquet gives rows in which only some have a key.
        {"messages": [{**said(QUESTION)[0], "from": None, "tool_calls": None, "weight": NAN}, *said(ANSWER)]},
        {"dialog": ["Why?", "Because."]},
        {"prompt": said(QUESTION), "completion": said(ANSWER)},
        {"prompt": said(QUESTION), "completion": "Because."},
        {"chosen": said(QUESTION, ANSWER), "rejected": said(QUESTION, ("assistant", "No."))},
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    ],
)
def test_one_conversation_in_every_format(row):
    assert examples.any_conversation(row) == said(QUESTION, ANSWER)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Why?", "input": "Rain.", "response": "Because."}, [QUESTION, ("context", "Rain."), ANSWER]),
        ({"instruction": "Why?", "context": "Rain.", "output": "Because."}, [QUESTION, ("context", "Rain."), ANSWER]),
        ({"system": "S", "prompt": "Why?", "completion": "Because."}, [("system", "S"), QUESTION, ANSWER]),
        ({"system_prompt": "S", "messages": said(QUESTION, ANSWER)}, [("system", "S"), QUESTION, ANSWER]),
        (
            {"instruction": "Why?", "output": "Because.", "history": [["Hi", "Yes?"]]},
            [("user", "Hi"), ("assistant", "Yes?"), QUESTION, ANSWER],
        ),
        (
            {"messages": said(("developer", "S"), QUESTION, ("tool", "42"), ANSWER)},
            [("system", "S"), QUESTION, ("context", "42"), ANSWER],
        ),
    ],
)
def test_columns_and_roles_that_carry_meaning_are_used(row, expected):
    assert examples.any_conversation(row) == said(*expected)
    assert examples.unread(row, examples.conversation_columns(row)) == []


def test_what_is_not_read_is_named(tmp_path):
    turn = {**said(ANSWER)[0], "reasoning_content": "Hm.", "name": None}
    row = {"messages": [*said(QUESTION), turn], "tools": [{"name": "f"}], "id": 7, "history": [], "prompt": ""}
    assert examples.unread(row, examples.conversation_columns(row)) == [
        "'tools'",
        "'id'",
        "'reasoning_content' of the turns in 'messages'",
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text((json.dumps(row) + "\n") * 30)
    assert "not read: 'tools', 'id', 'reasoning_content' of the turns in 'messages'." in inspect_dataset(data=file)
    pair = {"question": "Why?", "chosen": "Because.", "rejected": "No.", "score": 3, "kind": "vague"}
    file.write_text((json.dumps(pair) + "\n") * 30)
    assert "not read: 'score'." in load_preferences(data=str(file), eval_data=str(file)).note


@pytest.mark.parametrize("template", [ROLE_TEMPLATE, TEMPLATES["dialogue"]], ids=["roles", "words"])
@pytest.mark.parametrize(
    "mark",
    [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"tool_calls": [{"function": {"name": "f"}}]}],
    ids=lambda mark: next(iter(mark)),
)
def test_a_turn_that_is_not_to_be_learned_is_context(template, mark):
    turns = said(QUESTION, ("assistant", "BAD"), ("user", "Again."), ANSWER, ("user", "And?"), ("assistant", "BAD"))
    turns[1] |= mark
    turns[5] |= mark
    messages = check_messages(turns)
    assert [turn["content"] for turn in messages] == ["Why?", "BAD", "Again.", "Because."]
    tokenizer = build_tokenizer("byte", [])
    tokenizer.chat_template = template
    (item,) = encode_conversations([messages], tokenizer, ConversationFormat(256))
    assert "BAD" in tokenizer.decode(item.token_ids)
    learned = tokenizer.decode(item.token_ids[item.supervised], skip_special_tokens=True)
    assert learned.strip() == "Because." and item.counts.bytes == len("Because.")


@pytest.mark.parametrize(
    ("turn", "complaint"),
    [
        ({"weight": 0}, "no assistant turn to learn from; calls of tools and turns of weight 0 are not learned"),
        ({"tool_calls": [1]}, "no assistant turn to learn from; calls of tools"),
        ({"content": None, "tool_calls": [1]}, "no assistant turn to learn from"),
        ({"weight": 0.5}, "turn 2: weight has to be 0 or 1, got '0.5'"),
        ({"train": "no"}, "turn 2: train has to be 0 or 1, got 'no'"),
        ({"content": [{"type": "image_url"}]}, "turn 2: content has a part that is no text, 'image_url'"),
    ],
)
def test_a_turn_that_cannot_be_learned_says_why(turn, complaint):
    with pytest.raises(RowError, match=complaint):
        check_messages([*said(QUESTION), {**said(ANSWER)[0], **turn}])


def test_a_call_without_words_is_passed_over():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    turns = [*said(QUESTION), call, *said(("tool", "42"), ANSWER)]
    assert check_messages(turns) == said(QUESTION, ("context", "42"), ANSWER)


def test_of_two_answers_in_a_row_both_are_learned_or_none():
    first, second = {**said(ANSWER)[0], "weight": 0}, said(ANSWER)[0]
    with pytest.raises(RowError, match="turn 3: of two answers in a row, one is not to be learned"):
        check_messages([*said(QUESTION), first, second])


@pytest.mark.parametrize(
    ("written", "kept"),
    [("    y = x\n    return y\n", "    y = x\n    return y"), ("\n \n\tpass", "\tpass"), (" A\n\n", " A")],
)
def test_the_indent_of_an_answer_is_kept(written, kept):
    assert examples.any_conversation({"prompt": " def f(x): ", "completion": written}) == said(
        ("user", "def f(x):"), ("assistant", kept)
    )


def test_long_conversations_take_no_square_of_time():
    begin = time.monotonic()
    with pytest.raises(RowError, match=f"100,000 turns are more than the {MOST_TURNS:,} that are read"):
        check_messages(said(*[QUESTION, ANSWER] * 50_000))
    joined = check_messages([*said(QUESTION) * (MOST_TURNS - 1), *said(ANSWER)])
    assert len(joined) == 2 and joined[0]["content"].count("Why?") == MOST_TURNS - 1
    tokenizer = build_tokenizer("byte", [])
    tokenizer.chat_template = TEMPLATES["dialogue"]
    talk = check_messages(said(*[QUESTION, ANSWER] * (MOST_TURNS // 2)))
    (item,) = encode_conversations([talk], tokenizer, ConversationFormat(64))
    assert item.turns_left_out and len(item.token_ids) <= 64
    assert time.monotonic() - begin < 5


def test_training_and_evaluating_on_one_file_is_said(tmp_path):
    file, copy = tmp_path / "rows.jsonl", tmp_path / "copy.jsonl"
    for path in (file, copy):
        path.write_text("".join(json.dumps({"prompt": f"{n}?", "completion": "a"}) + "\n" for n in range(30)))
    assert "eval_data holds what data holds" in load_conversations(data=str(file), eval_data=str(copy)).note
    copy.write_text(json.dumps({"prompt": "?", "completion": "a"}))
    assert "holds what" not in load_conversations(data=str(file), eval_data=str(copy)).note
