"""Rows of every known shape become the same preference; a bad one says why."""

import pytest

from newllm_lib.data.files import RowError
from newllm_lib.preferences.pairs import any_preference

USER = {"role": "user", "content": "Why?"}
YES, NO = {"role": "assistant", "content": "Because."}, {"role": "assistant", "content": "No idea."}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea."},
        {"prompt": " Why?\n", "chosen": "Because. ", "rejected": "No idea."},
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
        {"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": [USER], "chosen": "Because.", "rejected": "No idea."},
        {"instruction": "Why?", "input": "", "output": "unused", "chosen": "Because.", "rejected": "No idea."},
        {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No idea."},
        {"question": "Why?", "chosen": "Because.", "rejected": "No idea.", "system": None},
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"chosen": [{"from": "human", "value": "Why?"}, YES], "rejected": [USER, NO]},
    ],
)
def test_rows_of_every_shape(row):
    pair = any_preference(row)
    assert pair.prompt == (USER,) and (pair.chosen, pair.rejected, pair.kind) == ("Because.", "No idea.", "")


def test_a_prompt_of_several_turns_a_context_and_a_kind():
    row = {"prompt": [USER, YES, {"role": "user", "content": "Really?"}], "chosen": "Yes.", "rejected": "Yes?"}
    assert [message["role"] for message in any_preference(row).prompt] == ["user", "assistant", "user"]
    row = {"instruction": "Sum up.", "input": "A b.", "chosen": "A.", "rejected": "B.", "kind": "vague"}
    pair = any_preference(row)
    assert [message["role"] for message in pair.prompt] == ["user", "context"] and pair.kind == "vague"


def test_system_and_history_are_part_of_the_prompt():
    row = {"system": "S", "history": [["Hi", "Yes?"]], "question": "Why?", "chosen": "Because.", "rejected": "No idea."}
    turns = [(turn["role"], turn["content"]) for turn in any_preference(row).prompt]
    assert turns == [("system", "S"), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]
    row = {"system": "S", "prompt": "Why?", "chosen": [USER, YES], "rejected": [USER, NO]}
    assert any_preference(row).chosen == "Because."


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"chosen": "a", "questions": "b"}, r"there is no 'prompt' or .* column .*found: 'chosen', 'questions'"),
        ({"prompt": "a", "chosen": "b"}, r"there is no 'rejected' column"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, r"'rejected' is empty"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, r"'prompt' is empty"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, r"'prompt' has to be a string or a list of messages, got int"),
        ({"prompt": "a", "chosen": None, "rejected": "c"}, r"'chosen' is empty"),
        ({"prompt": "a", "chosen": [{"role": "x"}], "rejected": "c"}, r"'chosen': turn 1 has to be an object"),
        ({"prompt": [USER, YES], "chosen": "b", "rejected": "c"}, r"'prompt' has to end with a turn that is to be"),
        ({"prompt": [USER], "chosen": [NO, USER, YES], "rejected": "c"}, r"'chosen' begins with another conversation"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
            r"differ before their last answer",
        ),
    ],
)
def test_a_bad_row_says_why(row, complaint):
    with pytest.raises(RowError, match=complaint):
        any_preference(row)
