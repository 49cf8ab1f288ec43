"""Tokens for what a tokenizer takes apart."""

import copy
import re
from collections import Counter

import pytest

from newllm_lib.preferences.generator import preference_pairs
from newllm_lib.preferences.reference import MIN_USES, new_tokens


@pytest.fixture(scope="module")
def japanese():
    return [text for pair in preference_pairs(300)[0] for text in (pair.prompt, pair.chosen, pair.rejected)]


def test_they_shorten_the_text_and_lose_nothing(japanese, byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    pieces = new_tokens(japanese, tokenizer, 400)
    before = sum(map(len, tokenizer(japanese)["input_ids"]))
    assert tokenizer.add_tokens(pieces) == len(pieces) <= 400
    encoded = tokenizer(japanese)["input_ids"]
    assert sum(map(len, encoded)) < 0.6 * before
    assert [tokenizer.decode(ids) for ids in encoded] == japanese


def test_each_is_used_often_enough_to_be_learned_and_stays_within_a_phrase(japanese, byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    pieces = new_tokens(japanese, tokenizer, 400)
    tokenizer.add_tokens(pieces)
    uses = Counter(token for text in japanese for token in tokenizer.tokenize(text))
    assert pieces and min(uses[piece] for piece in pieces) >= MIN_USES
    assert not [piece for piece in pieces if len(piece) > 1 and re.search("[、。\\s]", piece)]
    assert pieces == new_tokens(japanese, byte_tokenizer, 400)  # whatever else was made before


def test_text_that_the_tokenizer_knows_gets_none(japanese, byte_tokenizer):
    english = [text for text in japanese if text.isascii()]
    assert len(english) > 30 and new_tokens(english, byte_tokenizer, 400) == []
    assert new_tokens(japanese, byte_tokenizer, 0) == []
