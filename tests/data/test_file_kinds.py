"""Files as people have them: spreadsheets' CSV, other encodings and line ends, formats under the other's name."""

import codecs
import json
import os

import pytest

from newllm_lib.data.conversations import load_conversations
from newllm_lib.data.files import check_file, read_rows
from newllm_lib.data.text import load_text
from newllm_lib.errors import InputError

ROWS = [{"prompt": f"Wie groß ist {n}?", "completion": f"So groß, {n}."} for n in range(3)]
AS_CSV = "prompt,completion\n" + "".join(f'"{row["prompt"]}","{row["completion"]}"\n' for row in ROWS)
AS_LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def rows_of(path) -> list:
    return [row for _, row in read_rows(check_file(path, "data"), "data")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.json", AS_LINES.encode()),
        ("list.jsonl", ("\n" + json.dumps(ROWS, indent=2)).encode()),
        ("blank.jsonl", AS_LINES.replace("\n", "\n \n").encode()),
        ("marked.jsonl", codecs.BOM_UTF8 + AS_LINES.encode()),
        ("utf16.jsonl", AS_LINES.encode("utf-16")),
        ("big.jsonl", codecs.BOM_UTF16_BE + AS_LINES.encode("utf-16-be")),
        ("utf32.json", json.dumps(ROWS).encode("utf-32")),
        ("mac.jsonl", AS_LINES.replace("\n", "\r").encode()),
        ("plain.csv", AS_CSV.encode()),
        ("semicolon.csv", AS_CSV.replace('","', '";"').replace("prompt,", "prompt;").encode()),
        ("tab.csv", AS_CSV.replace('","', '"\t"').replace("prompt,", "prompt\t").encode()),
        ("spaced.csv", AS_CSV.replace("prompt,", "prompt , ").encode()),
        ("utf16.csv", AS_CSV.encode("utf-16")),
        ("mac.csv", AS_CSV.replace("\n", "\r").encode()),
        ("windows.csv", AS_CSV.replace("\n", "\r\n").encode()),
        ("tail.csv", (AS_CSV + ",\n , \n\n,,,\n").encode()),
        ("nan.jsonl", (AS_LINES + '{"prompt": null, "completion": NaN}\n').encode()),
    ],
)
def test_a_file_is_read_for_what_it_is(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert rows_of(path) == ROWS


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"prompt,completion\na,b\na,b, c\n", "line 3: 3 cells under 2 names; write a text with ',' between quotes"),
        (b"prompt;completion\n\na;b;c\n", "line 3: 3 cells under 2 names; write a text with ';' between quotes"),
        (b'prompt,completion\n"a\nb","c"\nd\n', "line 4: 'completion' is empty"),
    ],
)
def test_a_bad_row_of_a_spreadsheet_is_named_or_left_out(tmp_path, content, complaint):
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        list(load_conversations(data=str(path), eval_data=str(path)).train)
    train = load_conversations(data=str(path), eval_data=str(path), skip_bad_rows=True).train
    assert [complaint in told for _, messages, told in train.read(0) if messages is None] == [True]


def test_running_text_with_a_bad_row_is_refused(tmp_path):
    path = tmp_path / "text.csv"
    path.write_text("text\nOne, two\n")
    with pytest.raises(InputError, match="line 2: 2 cells under 1 names"):
        load_text(data=str(path))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("open.csv", b'a,b\n1,2\n3,"4\n5,6\n', "the row that begins in line 3 is not CSV"),
        ("later.csv", b'a,b\n1,2\n3,"4\n"5","6"\n', "the row that begins in line 3 is not CSV"),
        ("twice.csv", b"output,instruction,output\na,b,c\n", "has two columns 'output'"),
        ("twice.jsonl", b'{"a": 1, "a": 2}\n', None),
        ("object.json", b'{\n"prompt": "a"\n}\n', "is one JSON object; give a JSON list of rows, or a row a line"),
        ("broken.json", b'[{"a": 1},\n{"a"', "is not JSON: .* line 2"),
        ("deep.json", b"[" * 100_000, "is not JSON"),
        ("no.parquet", b"prompt", "cannot be read as Parquet after row 0"),
        ("unmarked.csv", "prompt,completion\n".encode("utf-16-le"), r"is a binary file \(a zero byte in line 1\)"),
        ("latin.csv", b"prompt,completion\na,b\nc,\xe9\n", r"is not UTF-8 text \(line 3, byte 3\)"),
        ("cut.jsonl", '{"prompt": "日"'.encode("utf-16")[:-3], r"is not UTF-16 text \(after line 0\)"),
    ],
)
def test_a_file_that_is_none_says_where(tmp_path, name, content, complaint):
    path = tmp_path / name
    path.write_bytes(content)
    if complaint is None:
        assert str(rows_of(path)[0]) == "not JSON: 'a' stands there twice"
        return
    with pytest.raises(InputError, match=complaint):
        rows_of(path)


def test_a_damaged_parquet_file_says_after_which_row(tmp_path):
    import pandas

    path = tmp_path / "rows.parquet"
    pandas.DataFrame({"prompt": [f"{n} {os.urandom(20).hex()}" for n in range(2_000)]}).to_parquet(path)
    whole = path.read_bytes()
    assert len(rows_of(path)) == 2_000
    path.write_bytes(whole[:2_000] + b"\xff" * 4_000 + whole[6_000:])
    with pytest.raises(InputError, match=r"cannot be read as Parquet after row \d+: "):
        rows_of(path)


def test_a_parquet_file_with_one_name_twice_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="has two columns 'text'"):
        rows_of(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("x" * 300 + ".txt", "cannot be read"),
        ("a\0b.txt", "cannot be read"),
        ("text.txt/rows.jsonl", "does not exist"),
        ("dangling.txt", "does not exist"),
        ("pipe.txt", "cannot be read; name a file that you may open"),
    ],
)
def test_a_path_that_leads_nowhere(tmp_path, path, complaint):
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match=complaint):
        check_file(f"{tmp_path}/{path}", "data")


def test_a_half_character_in_a_text_is_a_bad_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\n{"text": "half \\ud83d"}\n')
    with pytest.raises(InputError, match="line 2: 'text' holds half a character"):
        load_text(data=str(path), eval_data=str(path))
    assert list(load_text(data=str(path), eval_data=str(path), skip_bad_rows=True).train.strings()) == ["good"]


def test_names_of_columns_are_cut_in_a_complaint(tmp_path):
    """A file without a header has the user's text there."""
    path = tmp_path / "rows.csv"
    path.write_text(f"{'My secret diary. ' * 20},{','.join(map(str, range(50)))}\n1,2\n")
    with pytest.raises(InputError) as raised:
        list(load_conversations(data=str(path), eval_data=str(path)).train)
    assert len(str(raised.value)) < 500 + len(str(path))
