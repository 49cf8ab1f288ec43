import numpy as np
import pytest
import torch
from sample_text import make_text

from newllm_lib.data.text import (
    IGNORED,
    Text,
    TextPiece,
    collate_rows,
    evaluation_documents,
    packed_rows,
    pieces_of_lines,
    positions_within_row,
)
from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.errors import InputError


def text_of(*pieces: TextPiece) -> Text:
    return Text("test text", "none", str(hash(pieces)), lambda: iter(pieces))


def test_rows_exactly(byte_tokenizer):
    """`ab`+`c` (one document in two pieces) and `de`, in rows of 4: ids, shifted labels and positions, literally."""
    text = text_of(TextPiece("ab", True), TextPiece("c", False), TextPiece("de", True))
    rows, counts = packed_rows(text, byte_tokenizer, 4)
    eot = byte_tokenizer.eos_token_id
    a, b, c, d, e = byte_tokenizer.encode("abcde")
    assert rows[0]["input_ids"].tolist() == [eot, a, b, c]
    assert rows[0]["labels"].tolist() == [a, b, c, eot]
    assert rows[0]["position_ids"].tolist() == [0, 1, 2, 3]
    assert rows[1]["input_ids"].tolist() == [eot, d, e, eot]
    assert rows[1]["labels"].tolist() == [d, e, eot, IGNORED]
    assert rows[1]["position_ids"].tolist() == [0, 1, 2, 3]
    assert [int(row["row"]) for row in rows] == [0, 1]
    assert (counts.documents, counts.tokens, counts.bytes, counts.words) == (2, 5, 5, 3)


@pytest.mark.parametrize("max_length", [2, 7, 64])
def test_rows_joined_are_the_text(byte_tokenizer, max_length):
    content = make_text(60)
    text = text_of(*pieces_of_lines(content.splitlines(keepends=True)))
    rows, counts = packed_rows(text, byte_tokenizer, max_length)
    ids = np.concatenate([row["input_ids"] for row in rows])
    positions = np.concatenate([row["position_ids"] for row in rows])
    kept = (ids != byte_tokenizer.eos_token_id) & (ids != byte_tokenizer.pad_token_id)
    assert byte_tokenizer.decode(ids[kept]) == content
    assert counts.bytes == len(content.encode())
    labels = np.concatenate([row["labels"] for row in rows])
    scored = labels != IGNORED
    assert (positions == 0).sum() == counts.documents == (ids[scored] == byte_tokenizer.eos_token_id).sum()
    assert np.array_equal(labels[scored][:-1], ids[1 : scored.sum()])


def test_rows_are_written_once(byte_tokenizer):
    reads = []

    def read():
        reads.append(1)
        return iter([TextPiece("some text to pack", True)])

    text = Text("test text", "none", "written-once", read)
    first, counts = packed_rows(text, byte_tokenizer, 4)
    second, again = packed_rows(text, byte_tokenizer, 4)
    assert len(reads) == 1
    assert counts == again
    assert [row["input_ids"].tolist() for row in first] == [row["input_ids"].tolist() for row in second]
    packed_rows(text, byte_tokenizer, 5)
    assert len(reads) == 2


def test_text_shorter_than_a_row_is_refused(byte_tokenizer):
    with pytest.raises(InputError, match=r"gives 5 tokens, fewer than one row of max_length 16"):
        packed_rows(text_of(TextPiece("short", True)), byte_tokenizer, 16)


def test_collated_batch(byte_tokenizer):
    rows, _ = packed_rows(text_of(TextPiece("abcdefgh", True)), byte_tokenizer, 4)
    batch = collate_rows(rows.__getitems__([0, 1]))
    shapes = dict.fromkeys(("input_ids", "labels", "position_ids", "shift_labels"), (2, 4)) | {"row": (2,)}
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == shapes
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_positions_restart_with_the_row():
    positions = torch.tensor([[5, 6, 7, 8], [9, 0, 1, 2], [0, 1, 0, 0]])
    assert positions_within_row(positions).tolist() == [[0, 1, 2, 3], [0, 0, 1, 2], [0, 1, 0, 0]]


def test_documents_for_evaluation_count_the_original_text():
    tokenizer = build_tokenizer("word", ["a b c d"])
    text = text_of(TextPiece("A b zebra", True), TextPiece(" d ü", False), TextPiece("c", True))
    documents = evaluation_documents(text, tokenizer)
    assert [len(document.token_ids) for document in documents.documents] == [5, 1]
    counts = documents.counts
    assert (counts.tokens, counts.words, counts.unknown_tokens) == (6, 6, 2)
    assert counts.bytes == len("A b zebra d üc".encode())


def test_a_sample_of_documents_is_whole_documents(byte_tokenizer):
    text = text_of(*(TextPiece("x" * 10 + str(number), True) for number in range(10)))
    documents = evaluation_documents(text, byte_tokenizer)
    assert len(documents.sample(10_000).documents) == 10
    sample = documents.sample(40)
    assert [byte_tokenizer.decode(document.token_ids)[10:] for document in sample.documents] == ["0", "3", "6", "9"]
    assert len(documents.sample(1).documents) == 1
