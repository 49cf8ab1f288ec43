"""Conversations from the user's file and from the stand-ins: bad rows, what is held out, what they are known by."""

import csv
import json

import datasets
import pytest

from newllm_lib.data.conversations import conversation_hash, hold_out, load_conversations
from newllm_lib.data.stand_ins import documentation_rows
from newllm_lib.errors import InputError


def row_of(number: int) -> dict:
    return {"prompt": f"Question {number}?", "completion": f"Answer {number}."}


def write_rows(path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def hundred(tmp_path) -> str:
    return write_rows(tmp_path / "hundred.jsonl", [row_of(number) for number in range(100)])


def rows_of(part) -> list[int]:
    return [number for number, _, _ in part.read(0)]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_conversations(tmp_path, suffix):
    import pandas

    rows = [
        {"prompt": 'with "quotes", commas\nand lines', "completion": "日本語 🙂"},
        {"prompt": "b", "completion": "x" * 200_000},  # more than the csv module takes by itself
    ]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        write_rows(path, rows)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".csv":
        pandas.DataFrame(rows).to_csv(path, encoding="utf-8-sig")  # with a byte order mark and an index, as from Excel
    else:
        pandas.DataFrame(rows).to_parquet(path)
    splits = load_conversations(data=str(path), eval_data=str(path))
    expected = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in rows
    ]
    assert list(splits.train) == list(splits.validation) == expected
    assert (splits.source, splits.template) == ("file", "dialogue")
    assert csv.field_size_limit() > 200_000 or suffix != ".csv"


BAD_ROWS = [
    ("alpaca", {"instruction": "a", "input": "", "output": ""}, "line 2: 'output' is empty"),
    (None, {"messages": [{"role": "user", "content": "a"}]}, "line 2: there is no assistant turn to learn from"),
    (None, [1], "line 2: expected an object, got list"),
    (None, "not json", "line 2: not JSON: Expecting value"),
    (None, "[" * 100_000, "line 2: not JSON: "),
    (None, {"text": "a"}, "line 2: there is neither a 'messages' column nor"),
]


@pytest.mark.parametrize(("dataset", "bad", "complaint"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_bad_row_is_named_or_left_out_and_told(tmp_path, dataset, bad, complaint):
    good = {"instruction": "a", "input": "", "output": "b"} if dataset else row_of(1)
    lines = [json.dumps(good), bad if isinstance(bad, str) else json.dumps(bad), json.dumps(good)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError) as raised:
        list(load_conversations(dataset, data=str(path), eval_data=str(path)).train)
    message = str(raised.value)
    assert message.startswith(f"data {str(path)!r}, {complaint}") and "--skip_bad_rows leaves such rows out" in message
    train = load_conversations(dataset, data=str(path), eval_data=str(path), skip_bad_rows=True).train
    items = list(train.read(0))
    assert [number for number, _, _ in items] == [0, 1, 2]
    assert [messages is None for _, messages, _ in items] == [False, True, False]
    assert items[1][2].startswith(complaint)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "there is nothing to train on; name a --dataset, or a file with --data"),
        ({"dataset": "dolli"}, "dataset has to be one of dailydialog, dolly, .* got 'dolli'"),
        ({"dataset": "wikitext"}, "dataset has to be one of"),
        ({"dataset": "dolly", "data_source": "disk"}, "data_source has to be one of auto, hub, offline, file"),
        ({"dataset": "dolly", "data_source": "file"}, "data_source 'file' needs the path"),
        ({"dataset": "dolly", "data": "x.jsonl", "data_source": "hub"}, "contradicts data_source 'hub'"),
        ({"dataset": "dolly", "max_samples": 0}, "max_samples has to be at least 1, got 0"),
        ({"data": "nowhere.jsonl"}, "data 'nowhere.jsonl' does not exist"),
        ({"dataset": "dolly-ja"}, "dataset 'dolly-ja' could not be had from the hub"),
        ({"dataset": "dolly-ja", "data_source": "offline"}, "dataset 'dolly-ja' has no offline stand-in"),
    ],
)
def test_bad_settings_are_refused(settings, complaint):
    with pytest.raises(InputError, match=complaint):
        load_conversations(**settings)


def test_running_text_is_no_conversation(text_file):
    with pytest.raises(InputError, match=r"is running text; conversations come as \.jsonl"):
        load_conversations(data=str(text_file))


def test_held_out_by_what_is_said(hundred, tmp_path):
    splits = load_conversations(data=hundred, held_out_share=0.2)
    train, held_out = rows_of(splits.train), rows_of(splits.validation)
    assert sorted(train + held_out) == list(range(100))
    assert 8 <= len(held_out) <= 32
    assert "20% of the conversations are held out" in splits.note
    # Whatever is added, and wherever, what was held out is held out again: every conversation is there twice here.
    rows = [row_of(number) for number in range(200)]
    more = write_rows(tmp_path / "more.jsonl", rows + rows[::-1])
    again = load_conversations(data=more, held_out_share=0.2)
    said_train, said_held_out = ({conversation_hash(talk) for talk in part} for part in (again.train, again.validation))
    assert not said_train & said_held_out
    assert {conversation_hash(talk) for talk in splits.validation} <= said_held_out
    assert {conversation_hash(talk) for talk in splits.train} <= said_train
    assert len(rows_of(again.validation)) == 2 * len(said_held_out)


def test_held_out_at_random_is_what_the_published_runs_held_out(hundred):
    whole = load_conversations(data=hundred, eval_data=hundred).train
    published = datasets.Dataset.from_dict({"row": range(100)}).train_test_split(test_size=0.1, seed=42)
    train, held_out = hold_out(whole, "random", 0.1)
    assert rows_of(train) == sorted(published["train"]["row"])
    assert rows_of(held_out) == sorted(published["test"]["row"])
    assert len(rows_of(held_out)) == 10
    with pytest.raises(InputError, match="held_out_share has to lie between 0 and 1, got 1"):
        hold_out(whole, "hash", 1)


def test_the_hash_is_the_same_everywhere():
    talk = [{"role": "user", "content": "日本"}, {"role": "assistant", "content": "é"}]
    assert conversation_hash(talk) == HASH_OF_TALK
    assert conversation_hash([dict(reversed(turn.items())) for turn in talk]) == HASH_OF_TALK
    assert conversation_hash(talk[::-1]) != HASH_OF_TALK


HASH_OF_TALK = 7763089259866071866  # the first 8 bytes of the SHA-256 of the turns as JSON


def test_the_first_rows(hundred):
    splits = load_conversations(data=hundred, max_samples=30)
    assert all(number < 30 for number in rows_of(splits.train))
    assert splits.train.origin.endswith("first 30 rows")
    assert rows_of(splits.validation) == rows_of(load_conversations(data=hundred).validation)


def test_reading_begins_at_any_row(hundred):
    train = load_conversations(data=hundred).train
    numbers = rows_of(train)
    assert [number for number, _, _ in train.read(50)] == [number for number in numbers if number >= 50]


def test_what_changes_the_conversations_changes_what_they_are_known_by(hundred, tmp_path):
    def known_by(**settings):
        train = load_conversations(**{"data": hundred, **settings}).train
        return train.identity, train.read_as

    other = write_rows(tmp_path / "other.jsonl", [row_of(1)] * 20)
    settings = [{}, {"data": other}, {"max_samples": 10}, {"held_out": "random"}, {"held_out_share": 0.2}]
    settings += [{"eval_data": hundred}, {"skip_bad_rows": True}]
    assert len({known_by(**setting) for setting in settings}) == len(settings)
    assert known_by() == known_by()


def test_chitchat_stands_in():
    pytest.importorskip("chitchat_dataset")
    splits = load_conversations("ultrachat", data_source="offline")
    train = [number for number, messages, _ in splits.train.read(6_700) if messages is not None]
    assert train and min(train) >= 6_700
    first = next(iter(splits.validation))
    assert first[0]["role"] == "user" and first[-1]["role"] == "assistant"


def test_the_documentation_stands_in():
    splits = load_conversations("dolly", data_source="offline")
    talks = list(splits.train) + list(splits.validation)
    assert len(talks) == len(documentation_rows()) > 2_000
    assert {talk[-1]["role"] for talk in talks} == {"assistant"}
    assert splits.template == "instruction" and "Python" in splits.train.origin


REAL_FILES = {  # name: (dataset, rows, complaints)
    "dailydialog.jsonl": ("dailydialog", 7_522, []),
    "dolly-15015.jsonl": ("dolly", 15_015, []),
    "hh-rlhf-1200.jsonl": ("hh-rlhf", 1_200, [
        f"line {n}: turn {t} (assistant) is empty" for n, t in ((87, 4), (517, 2), (926, 2), (1104, 2))
    ]),
    "codealpaca-2017.json": ("codealpaca", 2_017, [f"row {n}: 'output' is empty" for n in (238, 1860)]),
    "alpaca-5000.json": ("alpaca", 5_000, [f"row {n}: 'output' is empty" for n in (2336, 4659)]),
    "instruction-ja-669.jsonl": (None, 669, []),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_files(shared_data, name):
    dataset, rows, complaints = REAL_FILES[name]
    path = shared_data / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    items = list(load_conversations(dataset, data=str(path), eval_data=str(path), skip_bad_rows=True).train.read(0))
    assert len(items) == rows
    assert [complaint for _, messages, complaint in items if messages is None] == complaints
