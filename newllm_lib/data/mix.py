"""Two data sets as one: rows of a second one between those of the first, in a share that is given."""

import functools
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

from ..errors import InputError
from .sources import Origin

BLOCK = 100  # rows in which the share holds exactly; their order is drawn by the block's number
Side = TypeVar("Side", bound=Origin)


def parse_mix(mix: str) -> tuple[str, int]:
    """("codealpaca", 20) of "codealpaca:0.2". Raises InputError: it is no name with a share."""
    found = re.fullmatch(r"(.+):0?\.(\d\d?)", mix)
    percent = int(found[2].ljust(2, "0")) if found else 0
    if percent == 0:
        raise InputError(f"mix has to be a dataset and its share, from 0.01 to 0.99: codealpaca:0.2, got {mix!r}.")
    return found[1], percent


def same_data(mix: str, what: str) -> InputError:
    return InputError(f"mix {mix!r} is the same data as the dataset here, {what}; choose another, or leave it out.")


def mixed(first: Side, second: Side, percent: int, again: bool) -> Side:
    """The rows of `first` in their order and, in between, so many of `second` that these are `percent` % of all. They
    end with `first`; where `second` ends before, it begins `again`, or its places stay empty. Both sides' `read` gives
    (number, conversation, complaint)."""

    @functools.lru_cache(maxsize=2)
    def places(block: int) -> frozenset[int]:
        return frozenset(random.Random(block).sample(range(BLOCK), percent))

    def read(first_row: int) -> Iterator[tuple[int, Any, str]]:
        block, place = divmod(first_row, BLOCK)
        taken = block * percent + sum(other < place for other in places(block))
        passes = itertools.count() if again else range(1)
        ours = itertools.islice(first.read(0), first_row - taken, None)
        others = itertools.islice(itertools.chain.from_iterable(second.read(0) for _ in passes), taken, None)
        for number in itertools.count(first_row):
            is_other = number % BLOCK in places(number // BLOCK)
            row = next(others if is_other else ours, None)
            if row is not None:
                yield number, *row[1:]
            elif not is_other:
                return

    if next(iter(second.read(0)), None) is None:
        raise InputError(f"{second.origin} holds no rows to mix in; leave out --mix.", "NL-403")
    licences = dict.fromkeys((first.licence, second.licence))
    return replace(
        first,
        origin=f"{first.origin}, with {percent} % of {second.origin}",
        licence=" and ".join(licences),
        identity=f"{first.identity} + {percent} % {second.identity}",
        read=read,
    )
