"""Packed rows: nothing lost, nothing twice, labels and positions right, and prepared once whatever happens."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import synthetic_conversations
from byte_ids import ASSISTANT, END, END_OF_TURN, PAD, USER, byte_ids, ids_with_roles, text_ids
from synthetic_conversations import FORM, conversation, dialogue_tokenizer, synthetic

from newllm_lib.data import conversations as module
from newllm_lib.data.chat_template import ConversationFormat, encode_conversations, template_for
from newllm_lib.data.conversations import Conversations, conversation_documents, conversation_rows
from newllm_lib.data.text import IGNORED
from newllm_lib.errors import InputError

SCRIPT = Path(synthetic_conversations.__file__)


@pytest.fixture
def tokenizer():
    return dialogue_tokenizer()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def talk(*contents: str) -> list[dict]:
    return [{"role": "assistant" if turn % 2 else "user", "content": content} for turn, content in enumerate(contents)]


def conversations_of(*talks: list[dict] | None, identity: str) -> Conversations:
    def read(first_row: int):
        for number, messages in list(enumerate(talks))[first_row:]:
            yield number, messages, "" if messages else f"row {number + 1}: bad"

    return Conversations("test conversations", "none", identity, read)


def test_a_row_exactly(cache, tokenizer):
    """Two conversations of 24 and 22 tokens in a row of 50: ids, shifted labels and positions, literally."""
    data = conversations_of(talk("ab", "cd"), talk("e", "f"), identity="exact")
    rows, counts = conversation_rows(data, tokenizer, ConversationFormat(50))
    assert len(rows) == 1
    first, second = byte_ids("<|endoftext|>User: ab\nAssistant: cd"), byte_ids("<|endoftext|>User: e\nAssistant: f")
    assert rows[0]["input_ids"].tolist() == [*first, END, *second, END, *[PAD] * 4]
    labels = [IGNORED] * 50
    labels[19:23] = [*byte_ids(" cd"), END]  # the label of a token is the next one
    labels[42:45] = [*byte_ids(" f"), END]
    assert rows[0]["labels"].tolist() == labels
    assert rows[0]["position_ids"].tolist() == [*range(24), *range(26)]
    assert int(rows[0]["row"]) == 0
    assert (counts.documents, counts.all_tokens, counts.tokens, counts.bytes) == (2, 46, 7, 3)


def test_a_row_of_role_tokens_exactly(cache, tokenizer):
    """As above; a role that a text spells is text in the row, and in what is held out."""
    tokenizer.chat_template = template_for(tokenizer, "dialogue")
    data = conversations_of(talk("ab", "cd"), talk("<|end|>", "f"), identity="exact roles")
    rows, counts = conversation_rows(data, tokenizer, ConversationFormat(32))
    assert len(rows) == 1
    first = ids_with_roles("<|endoftext|><|user|> ab<|assistant|> cd<|end|>")
    second = [END, USER, *text_ids(" <|end|>"), ASSISTANT, *text_ids(" f"), END_OF_TURN]
    assert rows[0]["input_ids"].tolist() == [*first, *second, *[PAD] * 8]
    labels = [IGNORED] * 32
    labels[5:9] = [*text_ids(" cd"), END_OF_TURN]
    labels[20:23] = [*text_ids(" f"), END_OF_TURN]
    assert rows[0]["labels"].tolist() == labels
    assert rows[0]["position_ids"].tolist() == [*range(10), *range(22)]
    assert (counts.documents, counts.all_tokens, counts.tokens, counts.bytes) == (2, 24, 7, 3)
    documents = conversation_documents(data, tokenizer, ConversationFormat(32))
    assert [document.token_ids.tolist() for document in documents.documents] == [first[1:], second[1:]]


def contents_of(rows, tokenizer) -> list[list[int]]:
    """The conversations that packed rows hold, as token ids."""
    found = []
    for row in rows:
        ids, positions, labels = row["input_ids"], row["position_ids"], row["labels"]
        used = int((ids != tokenizer.pad_token_id).sum())
        assert (ids[used:] == tokenizer.pad_token_id).all() and (labels[used - 1 :] == IGNORED).all()
        starts = [*np.flatnonzero(positions[:used] == 0), used]
        assert starts[0] == 0
        for begin, end in itertools.pairwise(starts):
            assert positions[begin:end].tolist() == list(range(end - begin))
            found.append(ids[begin:end].tolist())
        learned = labels != IGNORED
        assert (labels[learned] == np.roll(ids, -1)[learned]).all()
    return found


def test_every_conversation_is_there_once(cache, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 1_000)
    rows, counts = conversation_rows(synthetic(2_300), tokenizer, FORM)
    told = [messages for number in range(2_300) if (messages := conversation(number)) is not None]
    items = encode_conversations(told, tokenizer, FORM)
    expected = [item.token_ids.tolist() for item in items if item is not None]
    found = contents_of(rows, tokenizer)
    assert sorted(found) == sorted(expected)
    assert len(list(cache.glob("conversations-*/shard-*.rows"))) == 3
    assert [int(row["row"]) for row in rows] == list(range(len(rows)))
    assert counts.documents == len(expected)
    assert counts.all_tokens == sum(map(len, expected))
    assert counts.tokens == sum(int((row["labels"] != IGNORED).sum()) for row in rows)
    assert (counts.rows_read, counts.bad_rows) == (2_300, 2_300 - len(told))
    assert counts.complaints == [f"row {number}: bad" for number in (6, 103, 200, 297, 394)]
    assert counts.shortened == sum(item.turns_left_out > 0 for item in items if item is not None) > 0
    assert counts.too_long == sum(item is None for item in items) > 0
    assert counts.all_tokens / (len(rows) * FORM.max_length) > 0.75  # little padding


def test_rows_are_prepared_once(cache, tokenizer):
    reads: list[int] = []
    first, counts = conversation_rows(synthetic(300, reads), tokenizer, FORM)
    assert len(reads) == 300
    again, counts_again = conversation_rows(synthetic(300, reads), tokenizer, FORM)
    assert len(reads) == 300 and counts == counts_again
    assert same_rows(first, again)
    conversation_rows(synthetic(300, reads), tokenizer, ConversationFormat(80))
    assert len(reads) == 600


def test_what_the_rows_are_read_as_is_part_of_what_they_are(cache, tokenizer):
    """One file may hold the columns of two datasets."""
    one = conversations_of(talk("a", "b"), identity="same file")
    other = Conversations("other", "none", "same file", lambda first: iter([(0, talk("c", "d"), "")]), "hh_rlhf")
    ids = [conversation_rows(data, tokenizer, FORM)[0][0]["input_ids"].tolist() for data in (one, other)]
    assert ids[0] != ids[1]


def same_rows(one, other) -> bool:
    return len(one) == len(other) and all(
        all(np.array_equal(a[name], b[name]) for name in ("input_ids", "labels", "position_ids", "row"))
        for a, b in zip(one, other, strict=True)
    )


def test_a_preparation_that_was_killed_goes_on_at_the_row(cache, tokenizer, monkeypatch, tmp_path):
    argv = [sys.executable, str(SCRIPT), "1000", "3700", "4000"]
    process = subprocess.Popen(argv, env=os.environ | {"NEWLLM_CACHE": str(cache)})
    try:
        deadline = time.monotonic() + 120
        while not list(cache.glob("conversations-*/shard-00001.json")):
            assert process.poll() is None and time.monotonic() < deadline, "nothing was prepared"
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 1_000)
    reads: list[int] = []
    resumed, counts = conversation_rows(synthetic(4_000, reads), tokenizer, FORM)
    assert reads == list(range(2_000, 4_000))
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "unbroken"))
    unbroken, counts_unbroken = conversation_rows(synthetic(4_000), tokenizer, FORM)
    assert counts == counts_unbroken
    assert same_rows(resumed, unbroken)


@pytest.mark.parametrize("name", ["shard-00001.rows", "shard-00000.json", "shard-00002.json"])
def test_a_damaged_shard_is_made_anew(cache, tokenizer, monkeypatch, name):
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 500)
    whole, counts = conversation_rows(synthetic(1_500), tokenizer, FORM)
    whole = list(whole)  # which are read from the files themselves
    (path,) = cache.glob(f"conversations-*/{name}")
    path.write_bytes(bytes(path.stat().st_size))
    reads: list[int] = []
    again, counts_again = conversation_rows(synthetic(1_500, reads), tokenizer, FORM)
    assert same_rows(whole, again) and counts == counts_again
    first = 500 * int(name[6:11])
    assert reads[:500] == list(range(first, first + 500))
    reads.clear()
    assert conversation_rows(synthetic(1_500, reads), tokenizer, FORM)[1] == counts and not reads


def test_memory_does_not_grow_with_the_data(tmp_path):
    argv = [sys.executable, str(SCRIPT), "500", "-1", "3000", "30000"]
    environment = os.environ | {"NEWLLM_CACHE": str(tmp_path)}
    done = subprocess.run(argv, env=environment, capture_output=True, check=True, text=True)
    few, many = map(int, done.stdout.split())
    assert many < 1.1 * few


def test_no_conversation_at_all_is_refused(cache, tokenizer):
    with pytest.raises(
        InputError, match=r"gives no conversation to train on; 2 rows are no conversations .*row 1: bad"
    ):
        conversation_rows(conversations_of(None, None, identity="bad"), tokenizer, FORM)
    long = conversations_of(talk("a", "b" * 90), identity="long")
    with pytest.raises(InputError, match="1 conversations have no answer within 64 tokens"):
        conversation_rows(long, tokenizer, FORM)


def test_held_out_conversations_are_scored_where_they_are_learned(tokenizer, cache):
    data = conversations_of(talk("ab", "cd"), None, talk("a", "b" * 90), identity="held out")
    documents = conversation_documents(data, tokenizer, FORM)
    (document,) = documents.documents
    assert document.token_ids.tolist() == byte_ids("User: ab\nAssistant: cd<|endoftext|>")
    assert document.supervised.tolist() == [False] * 19 + [True] * 4
    assert (document.counts.tokens, document.counts.bytes) == (4, 2)
    _, counts = conversation_rows(data, tokenizer, FORM)
    assert (counts.rows_read, counts.bad_rows, counts.too_long, counts.documents) == (3, 1, 1, 1)
