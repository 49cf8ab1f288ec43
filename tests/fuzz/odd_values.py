"""What hypothesis makes files and settings of: real ones in which something is odd."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

# Stand for what json.dumps cannot write.
DEEP, DIGITS = "@deep@", "@digits@"
SPELLED = {f'"{DEEP}"': "[" * 100_000 + "]" * 100_000, f'"{DIGITS}"': "9" * 5_000}

NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 0.5, -0.0, float("nan"), float("inf"), 1e308, 10**30, -(2**63), 2**32, 2**31 - 1]
)
TEXTS = st.sampled_from(
    ["", " ", "a", "Why?", "\ud800", "a\ud83d", "\0", "日本\r\n", "<|endoftext|>", '"', ",;\t", DEEP]
)
LEAVES = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.integers(), st.floats(), TEXTS, st.text(max_size=9), st.just(DIGITS)
)


def json_values(names: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Anything that JSON can spell; objects have these names."""
    return st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=6
    )


def spelled(value: Any, **options: Any) -> str:
    """As JSON; what stands for something else is that."""
    text = json.dumps(value, **options)
    for word, meaning in SPELLED.items():
        text = text.replace(word, meaning)
    return text


@st.composite
def mutated(draw, value: Any, names: st.SearchStrategy[str], most: int = 3) -> Any:
    """The value with some of what is in it, at any depth, replaced, missing, renamed, doubled or wrapped."""
    value = copy.deepcopy(value)
    odd = json_values(names)
    for _ in range(draw(st.integers(0, most))):
        holder, key = _place(draw, value)
        if holder is None:
            return draw(odd)
        inner = holder[key]
        match draw(st.sampled_from(["odd", "odd", "gone", "renamed", "wrapped", "doubled", "number"])):
            case "odd":
                holder[key] = draw(odd)
            case "gone":
                del holder[key]
            case "renamed" if isinstance(holder, dict):
                holder[draw(names)] = holder.pop(key)
            case "wrapped":
                holder[key] = draw(st.sampled_from([[inner], {"a": inner}, str(inner)[:99], [[inner, inner]]]))
            case "doubled" if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(inner))
            case "number" if isinstance(inner, int | float):
                holder[key] = draw(st.sampled_from([inner + 1, -inner, inner * 1000, inner / 2, inner - 1, not inner]))
    return value


def _place(draw, value: Any) -> tuple[Any, Any]:
    """(list or object, index or name) somewhere in a value; the deeper the rarer."""
    holder = key = None
    while isinstance(value, dict | list) and value and (holder is None or draw(st.booleans())):
        holder, key = value, draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
        value = holder[key]
    return holder, key


@st.composite
def damaged(draw, content: bytes, most: int = 3) -> bytes:
    """The bytes cut, or with a few changed, left out, inserted or doubled; more often near the beginning."""
    for _ in range(draw(st.sampled_from([0, 0, *range(most + 1)]))):
        size = len(content)
        begin = draw(st.integers(0, size) | st.integers(0, min(size, 300)))
        end = min(size, begin + draw(st.sampled_from([0, 1, 2, 8, 200])))
        piece = content[begin:end]
        odd = draw(st.sampled_from([b"", b"\0", b"\xff", b"-1", b"null", b"99999999999", b"\xef\xbb\xbf", b'"', b"{"]))
        middle = draw(st.sampled_from([b"", odd, bytes(len(piece)), piece * 2, bytes(b ^ 1 for b in piece), None]))
        content = content[:begin] + (b"" if middle is None else middle + content[end:])
    return content
