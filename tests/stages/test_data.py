"""What `newllm data` finds out, on rows whose every property is known."""

import json

import pytest

from newllm_lib.cli import main
from newllm_lib.data.conversations import load_conversations
from newllm_lib.errors import InputError
from newllm_lib.stages import data
from newllm_lib.stages.data import DatasetReport, catalogue_text, inspect_dataset, report_text, template_rows


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


def test_what_is_found(known):
    report = inspect_dataset(data=known, skip_bad_rows=True, max_length=64)
    assert report.rows_read + report.held_out == 104
    assert report.documents == report.rows_read - 1
    assert (report.bad_rows, report.complaints) == (1, ["line 103: 'completion' is empty"])
    splits = load_conversations(data=known, skip_bad_rows=True)
    told = [json.dumps(messages) for messages in splits.train]
    assert report.duplicates == len(told) - len(set(told)) > 0
    assert report.overlap == 0
    assert (report.too_long, report.shortened) == (1, 0)
    assert len(report.lengths) == report.documents
    assert sorted(report.lengths)[-2] <= 64 < max(report.lengths)
    assert not report.sampled
    assert report.examples[0] == "<|endoftext|><|user|> Question 0?<|assistant|> word 0.<|end|>"
    assert report.tokenizer.startswith("bpe learned from these conversations")


def test_the_learned_tokens_are_marked(known):
    report = inspect_dataset(data=known, skip_bad_rows=True)
    plain = "".join(token for token, _ in report.spelled)
    learned = "".join(token for token, is_learned in report.spelled if is_learned)
    assert plain == "<|endoftext|><|user|>␣Question␣0?<|assistant|>␣word␣0.<|end|>"
    assert learned == "␣word␣0.<|end|>"
    assert "[<|end|>]" in report_text(report)


def test_overlap_between_the_users_own_splits_is_counted(tmp_path, monkeypatch):
    """A random draw does not keep equal conversations together."""
    path = rows_file(tmp_path / "twice.jsonl", [row_of(number % 50) for number in range(100)])
    load = load_conversations
    monkeypatch.setattr(data, "load_conversations", lambda *args, **more: load(*args, held_out="random", **more))
    report = inspect_dataset(data=path)
    assert report.held_out == 5 and 0 < report.overlap <= 5
    assert f"{report.overlap} (" in report_text(report)


def test_turns_that_are_lost_are_counted(tmp_path):
    turns = [{"role": role, "content": "some words"} for role in ("user", "assistant") * 40]
    path = rows_file(tmp_path / "long.jsonl", [{"messages": turns[: 2 * number]} for number in range(1, 41)])
    report = inspect_dataset(data=path, max_length=64)
    assert report.too_long == 0
    assert report.shortened == sum(length > 64 for length in report.lengths) > 20


def test_only_the_first_rows_are_looked_at(known, monkeypatch):
    report = inspect_dataset(data=known, max_samples=30)
    assert report.sampled and report.rows_read == 30
    assert "the first ones: there are more" in report_text(report)
    monkeypatch.setattr(data, "MAX_ROWS", 20)
    assert inspect_dataset(data=known, max_samples=90).rows_read <= 20
    whole = inspect_dataset(data=known, max_samples=20)
    assert whole.sampled


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
    assert inspect_dataset(data=str(path)).bad_rows == 0


@pytest.mark.parametrize("answer", ["x" * 50_000, "line\n" * 5_000])
def test_a_long_conversation_is_shown_by_its_beginning(tmp_path, answer):
    path = rows_file(tmp_path / "long.jsonl", [{"prompt": "Go on.", "completion": answer}, row_of(1), row_of(2)])
    shown = report_text(inspect_dataset(data=path))
    assert len(shown) < 6_000 and " characters)" in shown
    assert shown.count("line\n") < 25


def test_lengths_are_counted_up_to_powers_of_two():
    lengths = [1, 16, 17, 32, 33, 256, 257]
    lines = report_text(DatasetReport(lengths=lengths, documents=7, all_tokens=sum(lengths))).splitlines()
    buckets = [line.replace("█", "").split() for line in lines if "█" in line or " 0.0%" in line]
    assert [(begin, end, count) for begin, _, end, count, _ in buckets] == [
        ("1", "16", "2"), ("17", "32", "2"), ("33", "64", "1"), ("65", "128", "0"), ("129", "256", "1"),
        ("257", "512", "1"),
    ]  # fmt: skip
