import json

import pytest

from newllm_lib.data import sources
from newllm_lib.data import text as module
from newllm_lib.data.files import check_file
from newllm_lib.data.text import PIECE_CHARACTERS, TextPiece, load_text, pieces_of_lines, read_pieces
from newllm_lib.errors import InputError


def test_wikitext_titles_start_documents_and_nothing_is_lost():
    lines = ["preface\n", "\n", " = Robert Boulter = \n", " = = Career = = \n", " text , with = signs = \n"]
    lines += [" = X = \n", "end"]
    pieces = list(pieces_of_lines(lines))
    assert pieces == [
        TextPiece("preface\n\n", True),
        TextPiece(" = Robert Boulter = \n = = Career = = \n text , with = signs = \n", True),
        TextPiece(" = X = \nend", True),
    ]


def test_a_long_document_comes_in_several_pieces():
    lines = [f"line {number} {'x' * 1000}\n" for number in range(200)]
    pieces = list(pieces_of_lines(lines))
    assert [piece.starts_document for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert "".join(piece.text for piece in pieces) == "".join(lines)
    assert max(len(piece.text) for piece in pieces) < PIECE_CHARACTERS + 1100


def test_a_conversation_is_one_document(monkeypatch):
    examples = sources.Examples("t", "MIT", "t", lambda first: [{"dialog": ["Hi! ", "Hello.", "  How are you?"]}])
    found = sources.Found("offline", {"train": examples, "validation": examples})
    monkeypatch.setattr(module, "find_data", lambda *arguments: found)
    assert list(load_text().train.read()) == [TextPiece("Hi!\nHello.\nHow are you?\n", True)]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_row_format_gives_the_same_documents(tmp_path, suffix):
    texts = ['first, with a comma and a "quote"', "second\nwith two lines", "日本語 🙂"]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    elif suffix == ".json":
        path.write_text(json.dumps([{"text": text} for text in texts]), encoding="utf-8")
    else:
        import pandas

        frame = pandas.DataFrame({"text": texts})
        frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    assert list(read_pieces(path, "data")) == [TextPiece(text, True) for text in texts]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"text": "a"}\n{"text": \n', r"line 2: not JSON: Expecting value"),
        (b'{"text": "a"}\n\n{"prompt": "b"}\n', r"line 3: there is no 'text' column \(found: 'prompt'\)"),
        (b'{"text": "a"}\n[1]\n', r"line 2: expected an object"),
        (b'{"text": 5}\n', r"line 1: 'text' has to be a string, got int"),
        (b'{"text": ""}\n', r"line 1: 'text' is empty"),
        (b'{"text": "\xff"}\n', r"not UTF-8 text \(line 1, byte 11\)"),
    ],
)
def test_a_bad_row_is_named_by_line(tmp_path, content, complaint):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        list(read_pieces(path, "data"))


def test_bad_rows_can_be_skipped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"prompt": "b"}\n{"text": "c"}\n')
    with pytest.raises(InputError, match="line 2"):
        load_text(data=str(path), eval_data=str(path))
    train = load_text(data=str(path), eval_data=str(path), skip_bad_rows=True).train
    assert list(train.strings()) == ["a", "c"]
    assert train.origin == "file rows.jsonl without 1 bad rows"


def test_bad_files_are_refused_before_they_are_read(tmp_path):
    for name, content, complaint in [("empty.txt", b"", "is empty"), ("text.pdf", b"x", r"has to end in one of \.txt")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=complaint):
            check_file(tmp_path / name, "data")
    with pytest.raises(InputError, match="does not exist"):
        check_file(tmp_path / "missing.txt", "data")
    with pytest.raises(InputError, match="is a folder"):
        check_file(tmp_path, "data")


def test_binary_text_is_refused(tmp_path):
    path = tmp_path / "image.txt"
    path.write_bytes(b"GIF89a\0\0")
    with pytest.raises(InputError, match="binary file"):
        load_text(data=str(path))


def test_white_space_alone_is_no_text(tmp_path):
    path = tmp_path / "blank.txt"
    path.write_text(" \n\n")
    with pytest.raises(InputError, match="holds no text"):
        load_text(data=str(path))


def test_without_eval_data_the_end_is_held_out_once(text_file):
    splits = load_text(data=str(text_file))
    train, held_out = ("".join(text.strings()) for text in (splits.train, splits.validation))
    assert train + held_out == text_file.read_text()
    assert 0.03 < len(held_out) / len(train + held_out) < 0.07
    assert next(iter(splits.validation.read())).starts_document
    assert "held out" in splits.note


def test_text_knows_when_a_file_changed(text_file):
    before = load_text(data=str(text_file)).train.identity
    text_file.write_text(text_file.read_text() + "more\n")
    assert load_text(data=str(text_file)).train.identity != before


def test_no_hub_and_no_offline_package_says_which_extra(monkeypatch):
    monkeypatch.setattr("newllm_lib.data.sources.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"newllm\[offline\]"):
        load_text("auto")
    with pytest.raises(InputError, match=r"newllm\[offline\]"):
        load_text("offline")


def test_auto_tells_that_it_took_the_offline_text():
    pytest.importorskip("chitchat_dataset")
    splits = load_text("auto")
    assert "ChitChat" in splits.train.origin
    assert "hub could not be reached (HF_HUB_OFFLINE is set)" in splits.note
    with pytest.raises(InputError, match="could not be had from the hub"):
        load_text("hub")


def test_chitchat_splits_are_disjoint_and_stable():
    pytest.importorskip("chitchat_dataset")
    first, second = load_text("offline"), load_text("offline")
    train, held_out = list(first.train.strings()), list(first.validation.strings())
    assert len(train) + len(held_out) == 7_168
    assert held_out == list(second.validation.strings())
    assert len(held_out) == pytest.approx(7_168 / 20, abs=1)


def test_wikitext_from_the_hub_is_read_whole(monkeypatch):
    """The hub's rows are lines; titles start documents, and a wrong number of rows is refused."""
    import datasets

    from newllm_lib.data.sources import DATASETS, Dataset, HubSource

    served = {"train": [" = A = \n", "text\n", ""], "validation": [" = B = \n", "more\n"]}

    def load_dataset(hub_id, config, split, revision, streaming):
        assert (hub_id, config) == ("Salesforce/wikitext", "wikitext-2-raw-v1")
        assert len(revision) == 40
        return datasets.Dataset.from_dict({"text": served[split]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "hub_problem", lambda source: None)
    with pytest.raises(InputError, match=r"train has 3 rows where 36718"):
        load_text("hub")
    both = {"train": "train", "validation": "validation"}
    small = HubSource("Salesforce/wikitext", "0" * 40, "wikitext-2-raw-v1", both, {"train": 3, "validation": 2})
    monkeypatch.setitem(DATASETS, "wikitext", Dataset("CC", (small,), ("text",)))
    splits = load_text("hub")
    assert [piece.text for piece in splits.train.read()] == [" = A = \ntext\n"]
    assert [piece.text for piece in splits.validation.read()] == [" = B = \nmore\n"]
