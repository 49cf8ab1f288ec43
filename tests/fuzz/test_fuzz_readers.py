"""Whatever a file holds, its readers give rows that can be encoded, or one InputError."""

import pandas
import pytest
from hypothesis import strategies as st
from odd_values import TEXTS, damaged, json_values, mutated, spelled

from newllm_lib import cli
from newllm_lib.data.chat_template import ConversationFormat, template_for
from newllm_lib.data.conversations import conversation_documents, load_conversations
from newllm_lib.data.examples import COLUMNS, ROLE_NAMES, TURN_KEYS
from newllm_lib.data.files import SUFFIXES
from newllm_lib.data.text import evaluation_documents, load_text
from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.errors import InputError
from newllm_lib.preferences.pairs import drop_too_long, encode_preferences, load_preferences

NAMES = [name for names in COLUMNS.values() for name in names]
NAMES += ["text", "rejected", "kind", "", "tool_calls", "\ud800", *TURN_KEYS, *ROLE_NAMES]
NAMES = st.sampled_from(NAMES)
CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]
OTHER = {"role": "assistant", "content": "c."}
ROWS = {
    "text": [{"text": "A first text. <|endoftext|> And more.\n"}],
    "conversations": [
        {"messages": CHAT},
        {"messages": [*CHAT, {"role": "user", "content": "c?"}, {"role": "assistant", "content": "d.", "weight": 0}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a?"}]}, CHAT[2]]},
        {"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b."}], "system": "s"},
        {"instruction": "a?", "input": "c", "output": "b.", "history": [["d?", "e."]]},
        {"prompt": "a?", "completion": "b.", "kind": None},
        {"dialog": ["a?", "b.", "c?", "d."]},
    ],
    "preferences": [
        {"prompt": "a?", "chosen": "b.", "rejected": "c.", "kind": "vague"},
        {"prompt": CHAT[:2], "chosen": [CHAT[2]], "rejected": [OTHER]},
        {"chosen": CHAT[1:], "rejected": [CHAT[1], OTHER]},
        {"chosen": "\n\nHuman: a?\n\nAssistant: b.", "rejected": "\n\nHuman: a?\n\nAssistant: c."},
    ],
}
HEADERS = {"text": ["text"], "conversations": ["instruction", "input", "output"]}
HEADERS |= {"preferences": ["prompt", "chosen", "rejected"]}
SKIPS = st.sampled_from([True, True, True, False])
ENDS = ["\n", "\n", "\n", "\r\n", "\r", "\n\n", "\u2028", "\x0b", "\n\r"]
ENCODINGS = [*["utf-8"] * 9, "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "shift_jis", "cp037"]
CELLS = [  # of Parquet, four a column
    ["a?", "b.", "", None],
    ["a", " ", "日本\r\n", "<|endoftext|>"],
    [b"\xff", b"a", None, b""],
    [1, 2, -(2**63), 0],
    [float("nan"), 0.5, None, 1e308],
    [["a", "b"], [], None, ["c"]],
    [CHAT, CHAT[1:], [], None],
    [{"a": 1}, {"a": None}, None, {"a": 2}],
    [pandas.Timestamp.max, pandas.Timestamp.min, None, None],
    [[["a?", "b."]], [[]], None, [["a?", None]]],
]


@st.composite
def files(draw, suffix: str, path) -> tuple[str, bytes]:
    """What a file is for, one of ROLES, and what it holds: rows of that kind, odd or not, and bytes damaged or not."""
    role = draw(st.sampled_from(["text"] * 5 + list(ROLES) if suffix == ".txt" else list(ROLES)))
    headers = st.just(HEADERS[role]) | st.lists(NAMES.filter("\ud800".__ne__), min_size=1, max_size=4)
    if suffix == ".parquet":
        cells = st.just(CELLS[0]) | st.sampled_from(CELLS)
        pandas.DataFrame({name: draw(cells) for name in draw(headers)}).to_parquet(path)
        return role, draw(damaged(path.read_bytes()))
    end = draw(st.sampled_from(ENDS))
    if suffix == ".csv":
        plain = st.sampled_from(["a?", "b.", '"a, b"', '"a""b"', '"two\nlines"'])
        cell = draw(st.sampled_from([plain, plain | TEXTS]))
        sign, header = draw(st.sampled_from(",;\t|")), draw(headers)
        width = draw(st.sampled_from([0, 0, 1]))
        rows = draw(st.lists(st.lists(cell, min_size=len(header) - width, max_size=len(header) + width), max_size=5))
        text = end.join(map(sign.join, [header, *rows]))
    elif suffix == ".txt":
        parts = st.sampled_from([" = Title = \n", "A line of text.\n", "<|endoftext|>", "<|endof", "x" * 70_000])
        text = "".join(draw(st.lists(parts | TEXTS | st.text(max_size=9), max_size=12))).replace("\n", end)
    else:
        real = st.sampled_from(ROWS[role])
        row = draw(st.sampled_from([real, real.flatmap(lambda row: mutated(row, NAMES)), real | json_values(NAMES)]))
        rows = draw(st.lists(row, min_size=draw(st.integers(0, 2)), max_size=6))
        options = {"ensure_ascii": draw(st.booleans()), "indent": draw(st.sampled_from([None, None, 1]))}
        text = end.join(spelled(row, **options) for row in rows) if draw(st.booleans()) else spelled(rows, **options)
    encoding, other = draw(st.sampled_from(ENCODINGS)), draw(st.sampled_from(ENCODINGS))
    half = draw(st.sampled_from([*[len(text)] * 5, len(text) // 2]))
    errors = draw(st.sampled_from(["replace", "surrogatepass"]))
    try:
        content = text[:half].encode(encoding, errors) + text[half:].encode(other, errors)
    except UnicodeEncodeError:  # these encodings know no surrogates
        content = text.encode("utf-8", "surrogatepass")
    return role, draw(damaged(content))


def texts(splits, tokenizer) -> int:
    return len(evaluation_documents(splits.train, tokenizer).documents)


def conversations(splits, tokenizer) -> int:
    return len(conversation_documents(splits.train, tokenizer, ConversationFormat(64)).documents)


def preferences(splits, tokenizer) -> int:
    return len(list(encode_preferences(drop_too_long(splits.train, tokenizer, 64, True).pairs, tokenizer, 64)))


ROLES = {"text": (load_text, texts), "conversations": (load_conversations, conversations)}
ROLES |= {"preferences": (load_preferences, preferences)}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = build_tokenizer("byte", [])
    tokenizer.chat_template = template_for(tokenizer, "dialogue")
    return tokenizer


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_gives_rows_or_a_sentence(fuzz, tmp_path, tokenizer, suffix):
    path = tmp_path / f"a{suffix}"

    def read(file: tuple[str, bytes], skips: bool, held_out: bool) -> str:
        role, content = file
        path.write_bytes(content)
        load, encoded = ROLES[role]
        try:
            splits = load(data=str(path), eval_data=None if held_out else str(path), skip_bad_rows=skips)
            return "read" if encoded(splits, tokenizer) else "empty"
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 900
            return "refused"

    held_out = st.sampled_from([False] * 4 + [True])
    assert {"read", "refused"} <= set(fuzz(read, 100, file=files(suffix, path), skips=SKIPS, held_out=held_out))


@pytest.mark.parametrize("suffix", SUFFIXES[1:])  # conversations are in none of .txt
def test_the_command_data_shows_rows_or_says_a_sentence(fuzz, tmp_path, capsys, suffix):
    path = tmp_path / f"a{suffix}"

    def show(file: tuple[str, bytes], skips: bool) -> str:
        path.write_bytes(file[1])
        code = cli.main(["data", "--data", str(path), "--skip_bad_rows", str(skips)])
        told = capsys.readouterr().err
        assert code in (0, 2) and (code == 0 or told.count("\n") == 1)
        return "shown" if code == 0 else "refused"

    assert "refused" in fuzz(show, 20, file=files(suffix, path), skips=SKIPS)
