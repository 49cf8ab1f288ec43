"""Length does not tell which answer is right, and the classifiers that say so can tell what is there to be told."""

from dataclasses import replace

import pytest

from newllm_lib.preferences.generator import KINDS, preference_pairs
from newllm_lib.preferences.shortcuts import CLASSIFIERS, held_out_accuracy


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("measured", ["characters", "bytes"])
def test_length_does_not_give_the_answer_away(seed, measured):
    sides = preference_pairs(seed=seed)
    assert held_out_accuracy(*sides, CLASSIFIERS[f"length in {measured}"])["all"] < 0.56
    # Nor does an odd length: in bytes English, a seventh of the pairs, is told by it.
    assert held_out_accuracy(*sides, CLASSIFIERS[f"curve of length in {measured}"])["all"] < 0.60


@pytest.mark.parametrize("classifier", ["length in characters", "curve of length in bytes", "bag of characters"])
def test_the_classifiers_find_a_shortcut_where_there_is_one(classifier):
    def given_away(side):
        return [replace(pair, chosen=pair.chosen + "詳しい説明です。" * 20) for pair in side]

    train, held_out = preference_pairs(300)
    accuracy = held_out_accuracy(given_away(train), given_away(held_out), CLASSIFIERS[classifier])
    assert accuracy == dict.fromkeys(("all", *KINDS), 1.0)
