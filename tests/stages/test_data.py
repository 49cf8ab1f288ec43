"""What `newllm data` finds out, on rows whose every property is known."""

import json
import re

import pytest

from newllm_lib.cli import main
from newllm_lib.data.conversations import load_conversations
from newllm_lib.errors import InputError
from newllm_lib.stages import data
from newllm_lib.stages.data import catalogue_text, inspect_dataset, length_lines, template_rows


def rows_file(path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def row_of(number: int, words: int = 1) -> dict:
    return {"prompt": f"Question {number}?", "completion": " ".join(["word"] * words) + f" {number}."}


@pytest.fixture
def known(tmp_path) -> str:
    """100 conversations, three of them told twice, one bad row, one very long."""
    rows = [row_of(number) for number in range(99)] + [row_of(0), row_of(1), row_of(2)]
    return rows_file(tmp_path / "known.jsonl", [*rows, {"prompt": "a", "completion": ""}, row_of(500, 3_000)])


def numbers(text: str, line: str) -> list[int]:
    """The whole numbers in the line that begins so."""
    (found,) = re.findall(rf"^{re.escape(line)} (.*)$", text, re.MULTILINE)
    return [int(number.replace(",", "")) for number in re.findall(r"(?<![\d.])\d[\d,]*(?![\d.%])", found)]


def test_what_is_found(known):
    text = inspect_dataset(data=known, skip_bad_rows=True, max_length=64)
    splits = load_conversations(data=known, skip_bad_rows=True)
    told = [json.dumps(messages) for messages in splits.train]
    held_out = len(list(splits.validation))
    assert numbers(text, "Looked at") == [104 - held_out] and "all of them" in text
    assert numbers(text, "Bad rows") == [1] and "\n                 line 103: 'completion' is empty\n" in text
    count, _mean, longest = numbers(text, "Conversations")
    assert count == len(told) == 103 - held_out and longest > 3_000
    assert numbers(text, "At 64 tokens") == [0, 1]
    assert numbers(text, "Duplicates") == [len(told) - len(set(told))] != [0]
    assert numbers(text, "In both splits") == [0, held_out]
    assert "Conversation 1\n  <|endoftext|><|user|> Question 0?<|assistant|> word 0.<|end|>\n" in text
    assert "Tokenizer  bpe learned from these conversations, " in text


def test_the_learned_tokens_are_marked(known):
    text = inspect_dataset(data=known, skip_bad_rows=True)
    tokens = text.split("Tokens ([supervised])\n  ")[1].splitlines()[0].split(" ")
    assert (
        "".join(token.strip("[]") for token in tokens)
        == "<|endoftext|><|user|>␣Question␣0?<|assistant|>␣word␣0.<|end|>"
    )
    assert "".join(token.strip("[]") for token in tokens if token[0] == "[") == "␣word␣0.<|end|>"


def test_overlap_between_the_users_own_splits_is_counted(tmp_path, monkeypatch):
    """A random draw does not keep equal conversations together."""
    path = rows_file(tmp_path / "twice.jsonl", [row_of(number % 50) for number in range(100)])
    load = load_conversations
    monkeypatch.setattr(data, "load_conversations", lambda *args, **more: load(*args, held_out="random", **more))
    overlap, held_out = numbers(inspect_dataset(data=path), "In both splits")
    assert 0 < overlap <= held_out == 5


def test_turns_that_are_lost_are_counted(tmp_path):
    turns = [{"role": role, "content": "some words"} for role in ("user", "assistant") * 40]
    path = rows_file(tmp_path / "long.jsonl", [{"messages": turns[: 2 * number]} for number in range(1, 41)])
    text = inspect_dataset(data=path, max_length=64)
    longer = sum(numbers(text, f"  {end // 2 + 1:>7} - {end:>7} ")[-1] for end in (128, 256, 512))
    assert numbers(text, "At 64 tokens") == [longer, 0] and longer > 20


def test_only_the_first_rows_are_looked_at(known, monkeypatch):
    """Of the rows of the file, so that they are those that training with --max_samples takes."""
    text = inspect_dataset(data=known, max_samples=30)
    assert sum(numbers(text, "Looked at")) + numbers(text, "In both splits")[1] == 30
    assert "the first ones: there are more" in text
    monkeypatch.setattr(data, "MAX_ROWS", 20)
    for most in (20, 90):
        text = inspect_dataset(data=known, max_samples=most)
        assert numbers(text, "Looked at") <= [20] and "there are more" in text


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, r"line 103: 'completion' is empty; --skip_bad_rows"),
        ({"max_length": 1}, "max_length has to be at least 2, got 1"),
        ({"max_samples": 0}, "max_samples has to be at least 1, got 0"),
        ({"dataset": "wikitext"}, "wikitext is running text without conversations"),
        ({"model": "nowhere"}, "model folder 'nowhere' does not exist"),
    ],
)
def test_bad_input(known, settings, complaint):
    with pytest.raises(InputError, match=complaint):
        inspect_dataset(data=known, **settings)


@pytest.mark.parametrize("flags", [["--skip_bad_rows", "true"], ["--skip_bad_rows"]])
def test_bad_rows_are_counted_where_the_command_says_so(known, flags, capsys):
    assert main(["data", "--data", known, *flags]) == 0
    assert "Bad rows         1 " in capsys.readouterr().out
    assert main(["data", "--data", known, "--skip_bad_rows", "false"]) == 2


def test_the_catalogue_is_a_table():
    header, *lines = catalogue_text().splitlines()
    assert header.split()[:2] == ["name", "rows"]
    (dolly,) = [line for line in lines if line.startswith("dolly ")]
    for part in ("15,011", "documentation", "CC BY-SA 3.0", "databricks/databricks-dolly-15k"):
        assert part in dolly


def test_the_template_rows_are_accepted(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(template_rows("instruction"), encoding="utf-8")
    talks = list(load_conversations(data=str(path), eval_data=str(path)).train)
    assert [[turn["role"] for turn in talk] for talk in talks] == [
        ["user", "assistant"],
        ["system", "user", "assistant"],
        ["user", "context", "assistant", "user", "assistant"],
    ]
    assert numbers(inspect_dataset(data=str(path)), "Bad rows") == [0]


@pytest.mark.parametrize("answer", ["x" * 50_000, "line\n" * 5_000])
def test_a_long_conversation_is_shown_by_its_beginning(tmp_path, answer):
    path = rows_file(tmp_path / "long.jsonl", [{"prompt": "Go on.", "completion": answer}, row_of(1), row_of(2)])
    shown = inspect_dataset(data=path)
    assert len(shown) < 6_000 and " characters)" in shown
    assert shown.count("line\n") < 25


def test_lengths_are_counted_up_to_powers_of_two():
    lines = [line.replace("█", "").split() for line in length_lines([1, 16, 17, 32, 33, 256, 257])]
    assert [(int(begin), int(end), int(count)) for begin, _, end, count, _ in lines] == [
        (1, 16, 2), (17, 32, 2), (33, 64, 1), (65, 128, 0), (129, 256, 1), (257, 512, 1),
    ]  # fmt: skip
