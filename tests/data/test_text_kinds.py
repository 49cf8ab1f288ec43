"""Running text as people have it: line ends, marks between documents, no lines, no spaces."""

import codecs
import json
import time

import pytest

from newllm_lib.data.text import (
    PIECE_CHARACTERS,
    PIECES_PER_CALL,
    TextPiece,
    evaluation_documents,
    load_text,
    pieces_of_lines,
    read_pieces,
    tokenized_pieces,
)
from newllm_lib.data.tokenizer import build_tokenizer, short_words

ARTICLES = "".join(f" = Title {n} = \n\nText of {n} .\n" for n in range(40))


def write(path, content: bytes):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        ARTICLES.replace("\n", "\r\n").encode(),
        ARTICLES.replace("\n", "\r").encode(),
        codecs.BOM_UTF8 + ARTICLES.encode(),
        ARTICLES.encode("utf-16"),
    ],
    ids=["windows", "mac", "marked", "utf16"],
)
def test_the_same_articles_however_they_are_written(tmp_path, content):
    plain = load_text(data=str(write(tmp_path / "plain.txt", ARTICLES.encode())))
    other = load_text(data=str(write(tmp_path / "other.txt", content)))
    for side in ("train", "validation"):
        assert list(getattr(other, side).read()) == list(getattr(plain, side).read())
        assert getattr(other, side).identity == getattr(plain, side).identity
    assert "other.txt is 40 documents" in other.note


@pytest.mark.parametrize("kind", ["byte", "word"])
def test_a_mark_between_documents_starts_one_and_is_no_text(tmp_path, kind):
    path = write(tmp_path / "stories.txt", b"<|endoftext|>One day.\n<|endoftext|>\nTwo days.<|endoftext|>Three <|end.")
    pieces = [TextPiece("One day.\n", True), TextPiece("\nTwo days.", True), TextPiece("Three <|end.", True)]
    assert list(read_pieces(path, "data")) == pieces
    splits = load_text(data=str(path), eval_data=str(path))
    assert "stories.txt is 3 documents" in splits.note and "eval_data holds what data holds" in splits.note
    tokenizer = build_tokenizer(kind, splits.train.strings())
    documents = evaluation_documents(splits.train, tokenizer)
    assert len(documents.documents) == 3
    assert all(tokenizer.eos_token_id not in document.token_ids for document in documents.documents)
    assert documents.counts.bytes == sum(len(piece.text) for piece in pieces)
    row = write(tmp_path / "rows.jsonl", json.dumps({"text": "One.<|endoftext|>Two."}).encode())
    assert list(read_pieces(row, "data")) == [TextPiece("One.", True), TextPiece("Two.", True)]


@pytest.mark.parametrize("part", range(1, 40))
def test_a_mark_may_be_cut_by_the_end_of_a_part(part):
    text = "a<|endoftext|>b<|endof<|endoftext|>c<d<|endoftext|"
    pieces = pieces_of_lines(text[begin : begin + part] for begin in range(0, len(text), part))
    documents: list[str] = []
    for piece in pieces:
        if piece.starts_document:
            documents.append("")
        documents[-1] += piece.text
    assert documents == ["a", "b<|endof", "c<d<|endoftext|"]


def test_a_text_without_line_ends_comes_in_pieces(tmp_path):
    text = "word and word " * 40_000
    line = write(tmp_path / "line.txt", text.encode())
    row = write(tmp_path / "row.jsonl", json.dumps({"text": text}).encode())
    for path in (line, row):
        pieces = list(read_pieces(path, "data"))
        assert "".join(piece.text for piece in pieces) == text
        assert max(len(piece.text) for piece in pieces) <= PIECE_CHARACTERS
        assert [piece.starts_document for piece in pieces] == [True] + [False] * (len(pieces) - 1)


def test_what_is_tokenized_together_comes_apart_again():
    pieces = [TextPiece("x" * number, number % 3 == 0) for number in range(2 * PIECES_PER_CALL + 1)]
    tokenized = list(tokenized_pieces(pieces, build_tokenizer("byte", [])))
    assert [(len(ids), starts) for ids, starts, _ in tokenized] == [(n, n % 3 == 0) for n in range(len(pieces))]


def test_text_without_spaces_has_a_held_out_end(tmp_path):
    path = write(tmp_path / "text.txt", ("雨が降る" * 1_000).encode())
    splits = load_text(data=str(path))
    assert sum(map(len, splits.train.strings())) == 3_800 and sum(map(len, splits.validation.strings())) == 200


def test_bpe_is_learned_from_text_without_spaces_in_time():
    import random

    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=300_000)
    begin = time.monotonic()
    tokenizer = build_tokenizer("bpe", ["".join(letters)], 800)
    assert len(tokenizer) == 800 and time.monotonic() - begin < 10  # 30 seconds and more with words as they are
    parts = list(short_words(["".join(letters), "words of \n text", " " * 600]))
    assert max(map(len, parts)) <= 256 and "".join(parts) == "".join(letters) + "words of \n text" + " " * 600
    assert "words of \n text" in parts
