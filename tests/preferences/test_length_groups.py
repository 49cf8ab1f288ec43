"""Batches of like length: every row once, little padding, and an order that a resumed run finds again."""

import random
from itertools import pairwise

import pytest

from newllm_lib.preferences.trainer import ShuffledLengthGroups

CHANCE = random.Random(0)
LENGTHS = [CHANCE.randint(10, 200) for _ in range(403)]


def batches(sampler) -> list[list[int]]:
    indices = list(sampler)
    return [indices[first : first + sampler.batch_size] for first in range(0, len(indices), sampler.batch_size)]


def padded(groups) -> int:
    return sum(len(group) * max(LENGTHS[index] for index in group) for group in groups)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_row_is_seen_once(batch_size):
    sampler = ShuffledLengthGroups(batch_size, LENGTHS, seed=0)
    assert sorted(sampler) == list(range(403)) and len(sampler) == 403


def test_little_is_padded():
    grouped = padded(batches(ShuffledLengthGroups(4, LENGTHS, seed=0)))
    mixed = list(range(403))
    random.Random(1).shuffle(mixed)
    assert grouped < 1.1 * sum(LENGTHS) < padded([mixed[first : first + 4] for first in range(0, 403, 4)])


def test_long_batches_do_not_come_before_short_ones():
    longest = [max(LENGTHS[index] for index in group) for group in batches(ShuffledLengthGroups(4, LENGTHS, seed=0))]
    rises = sum(after > before for before, after in pairwise(longest))
    assert 0.3 * len(longest) < rises < 0.7 * len(longest)


def test_the_order_depends_on_seed_and_epoch_alone():
    sampler, again = ShuffledLengthGroups(4, LENGTHS, seed=0), ShuffledLengthGroups(4, LENGTHS, seed=0)
    first = list(sampler)
    assert first == list(sampler) == list(again) != list(ShuffledLengthGroups(4, LENGTHS, seed=7))
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    again.set_epoch(1)
    assert list(again) == second
