"""Whatever a file holds, its readers give rows or one InputError: seeded, so that what is found is found again."""

import json
import random

import pytest

from newllm_lib.data.conversations import load_conversations
from newllm_lib.data.files import SUFFIXES
from newllm_lib.data.preferences import load_preferences
from newllm_lib.data.rows import COLUMNS
from newllm_lib.data.text import load_text
from newllm_lib.data.turns import ROLE_NAMES, TURN_KEYS
from newllm_lib.errors import InputError

FILES = 250  # of each format
NAMES = [name for names in COLUMNS.values() for name in names]
NAMES += ["text", "rejected", "kind", "", "tool_calls", "\ud800"]
TEXTS = ["", " ", "a", "Why?", "\n\nHuman: a\n\nAssistant: b"]
TEXTS += ["a\ud83d", "\0", "日本\r\n", "<|endoftext|>", '"', ",;\t"]


def value(rng: random.Random, depth: int = 0):
    """Anything that JSON can spell, and more often what rows are made of."""
    kinds = [
        lambda: rng.choice(TEXTS),
        lambda: rng.choice([None, True, False, 0, 1, -1, 0.5, float("nan"), float("inf"), 10**30]),
        lambda: [value(rng, depth + 1) for _ in range(rng.randrange(4))],
        lambda: {rng.choice(NAMES): value(rng, depth + 1) for _ in range(rng.randrange(4))},
        lambda: [turn(rng, depth + 1) for _ in range(rng.randrange(5))],
        lambda: [rng.choice(TEXTS) for _ in range(rng.randrange(4))],
    ]
    return rng.choice(kinds[: 2 if depth > 3 else None])()


def turn(rng: random.Random, depth: int) -> dict:
    role = rng.choice([*ROLE_NAMES, "bot", None])
    row = {rng.choice(["role", "from"]): role, rng.choice(["content", "value"]): value(rng, depth + 2)}
    return row | {rng.choice([*TURN_KEYS, "tool_calls"]): value(rng, depth + 2)} if rng.random() < 0.4 else row


def row(rng: random.Random):
    if rng.random() < 0.1:
        return value(rng)
    return {rng.choice(NAMES): value(rng, 1) for _ in range(rng.randrange(1, 6))}


def damaged(rng: random.Random, content: bytes) -> bytes:
    """The bytes with a few changed, left out or doubled."""
    for _ in range(rng.randrange(4)):
        begin = rng.randrange(len(content) + 1)
        end = min(begin + rng.randrange(1, 20), len(content))
        middle = rng.choice([b"", rng.randbytes(end - begin), content[begin:end] * 2])
        content = content[:begin] + middle + content[end:]
    return content


def written(rng: random.Random, suffix: str, path) -> bytes:
    rows = [row(rng) for _ in range(rng.randrange(6))]
    encoding = rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])
    if suffix == ".parquet":
        import pandas

        kinds = [
            TEXTS[:5],
            [*TEXTS[:5], None],
            [b"\xff", b"a"],
            [1, 2],
            [float("nan"), 0.5],
            [["a", "b"], []],
            [[{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]],
            [pandas.Timestamp.max, pandas.Timestamp.min],
        ]
        columns = {name: rng.choices(rng.choice(kinds), k=4) for name in rng.sample(NAMES[:-1], 3)}
        pandas.DataFrame(columns).to_parquet(path)
        return path.read_bytes()
    if suffix == ".csv":
        sign = rng.choice(",;\t|")
        cells = [rng.sample(NAMES, 3), *([rng.choice(TEXTS) for _ in range(rng.randrange(6))] for _ in range(4))]
        text = "\n".join(sign.join(f'"{cell}"' if rng.random() < 0.5 else cell for cell in line) for line in cells)
    elif suffix == ".txt":
        text = "".join(rng.choice([*TEXTS, " = Title = \n"]) for _ in range(30))
    elif rng.random() < 0.5:
        text = json.dumps(rows, ensure_ascii=rng.random() < 0.5)
    else:
        text = "\n".join(json.dumps(item) for item in rows)
    return text.encode(encoding, "replace")


READERS = {
    load_conversations: iter,
    load_preferences: lambda preferences: preferences.pairs,
    load_text: lambda text: text.read(),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_reader_gives_rows_or_a_sentence(tmp_path, suffix):
    rng = random.Random(suffix)
    read = refused = 0
    for number in range(FILES):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(damaged(rng, written(rng, suffix, path)))
        skips = rng.random() < 0.7
        for load, items in READERS.items():
            try:
                splits = load(data=str(path), eval_data=str(path), skip_bad_rows=skips)
                read += bool(list(items(splits.train)))
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 900
                refused += 1
    assert read and refused
