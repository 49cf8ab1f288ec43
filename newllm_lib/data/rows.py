"""Pure functions from the rows of a dataset to conversations: one table says what a column means, whatever public data
call it."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .turns import ROLES, TURN_KEYS, Message, RowError, check_messages, is_blank, is_missing, is_unicode

# What a column means; of several of one meaning the first that is filled is read.
COLUMNS = {
    "turns": ("messages", "conversations", "conversation", "dialog", "data"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "prompt": ("prompt", "instruction", "question", "query", "input"),
    "context": ("context", "input"),
    "answer": ("completion", "response", "output", "answer", "chosen"),
}
HH_TURN = re.compile(r"\n\n(Human|Assistant):")


class BadRow(NamedTuple):
    """What stands for a row that its file spells wrongly, so that it can be left out as any other bad row."""

    complaint: str


def checked_row(row: object) -> dict:
    """The row, once it is known to have columns.

    Raises:
        RowError: it has none.
    """
    if isinstance(row, BadRow):
        raise RowError(row.complaint)
    if not isinstance(row, dict):
        raise RowError(f"expected an object, got {type(row).__name__}")
    return row


def found(row: dict) -> str:
    """The columns of a row for a complaint; the names are cut, for a file without a header has text there."""
    names = [repr(name if len(name) <= 40 else f"{name[:40]}...") for name in map(str, row)]
    return f"found: {', '.join([*names[:12], *(['...'] if len(names) > 12 else [])]) or 'none'}"


def text_of(row: dict, column: str) -> str:
    """The text in a column that has to be filled.

    Raises:
        RowError: it is not there, empty, no string, or no Unicode.
    """
    if column not in row:
        raise RowError(f"there is no {column!r} column ({found(row)})")
    value = row[column]
    if is_missing(value) or value == "":
        raise RowError(f"{column!r} is empty")
    if not isinstance(value, str):
        raise RowError(f"{column!r} has to be a string, got {type(value).__name__}")
    if not is_unicode(value):
        raise RowError(f"{column!r} holds half a character (a lone surrogate)")
    return value


def dialogues_of_utterances(rows: Iterable[dict]) -> Iterator[dict]:
    """Rows of one utterance each with the `dialog_id` they belong to -> rows of DailyDialog."""
    for _, group in itertools.groupby(rows, key=lambda row: row["dialog_id"]):
        yield {"dialog": [row["utterance"] for row in group]}


def utterances_as_dialogue(rows: Iterable[dict]) -> Iterator[dict]:
    """{"utterances": [...]} -> rows of DailyDialog."""
    return ({"dialog": row["utterances"]} for row in rows)


def columns_read(row: dict) -> dict[str, str]:
    """{meaning: column}, in the order of COLUMNS, for the meanings that the row has. A column is one of turns beside a
    prompt only if it is a list."""
    read: dict[str, str] = {}
    for meaning, names in COLUMNS.items():
        there = [name for name in names if name in row and name not in read.values()]
        if there:
            read[meaning] = next((name for name in there if not is_blank(row[name])), there[0])
    if "prompt" in read and not (isinstance(turns := row.get(read.get("turns")), list) and turns):
        read.pop("turns", None)
    return read


def conversation_columns(row: dict) -> tuple[str, ...]:
    """The columns that `any_conversation` reads of a row."""
    read = columns_read(row)
    meanings = ("turns", "system") if "turns" in read else read
    return tuple(column for meaning, column in read.items() if meaning in meanings)


def unread(row: dict, read: Iterable[str]) -> list[str]:
    """What is filled in a row and is not read: columns but for `read`, and keys of the turns in these."""
    names = [repr(name) for name, value in row.items() if name and name not in read and not is_blank(value)]
    for column in read:
        turns = row[column] if isinstance(row.get(column), list) else []
        keys = dict.fromkeys(key for turn in turns if isinstance(turn, dict) for key in turn if not is_blank(turn[key]))
        names += [f"{key!r} of the turns in {column!r}" for key in keys if key not in TURN_KEYS]
    return names


def any_conversation(row: dict) -> list[Message]:
    """A row with a column of turns, or with a prompt and an answer, by COLUMNS; or a transcript in `chosen`, as in
    hh-rlhf. See `check_messages` for what becomes of it.

    Raises:
        RowError: it is none of these, or no conversation.
    """
    read = columns_read(row)
    if "turns" in read:
        has_system = "system" in read and not is_blank(row[read["system"]])
        system = _turns(row, read["system"], "system") if has_system else []
        return check_messages([*system, *_turns(row, read["turns"], None)])
    if "prompt" in read and "answer" in read:
        return check_messages([*prompt_turns(row), *answer_turns(row, read["answer"])])
    if "chosen" in row:
        return whole_conversation(row, "chosen")
    if "prompt" in read:
        raise RowError(f"there is no {_either(COLUMNS['answer'][:-1])} column beside {read['prompt']!r} ({found(row)})")
    raise RowError(
        "there is neither a 'messages' column nor 'prompt' and 'completion', nor 'instruction' with 'response' or "
        f"'output' ({found(row)})"
    )


def prompt_turns(row: dict) -> list[Message]:
    """The turns before the answer: system, history, prompt and context, as far as the row has them.

    Raises:
        RowError: there is no prompt.
    """
    read = columns_read(row)
    if "prompt" not in read:
        raise RowError(f"there is no {_either(COLUMNS['prompt'])} column ({found(row)})")
    turns = []
    for meaning, role in (("system", "system"), ("history", None), ("prompt", "user"), ("context", "context")):
        if meaning in read and (meaning == "prompt" or not is_blank(row[read[meaning]])):
            turns += _turns(row, read[meaning], role)
    return turns


def answer_turns(row: dict, column: str) -> list[Message]:
    """The turns of a column that is an answer, or ends with one."""
    if column not in row:
        raise RowError(f"there is no {column!r} column ({found(row)})")
    return _turns(row, column, "assistant")


def whole_conversation(row: dict, column: str) -> list[Message]:
    """A conversation up to its last answer, as a list of turns or as one text, "\\n\\nHuman: ...\\n\\nAssistant: ...".

    Raises:
        RowError: it is neither.
    """
    value = row[column]
    if isinstance(value, list):
        return check_messages(_turns(row, column, None))
    before, *parts = HH_TURN.split(text_of(row, column))
    if before.strip():
        raise RowError(f"{column!r} has to begin with a turn of Human or Assistant")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[0::2], parts[1::2], strict=True)
    return check_messages([{"role": roles[speaker], "content": content.strip()} for speaker, content in turns])


def _turns(row: dict, column: str, role: str | None) -> list[Message]:
    """What a column holds: a text, which is a turn of `role`, or turns; with no `role`, turns, or utterances, of which
    the user speaks the first, the third, ..., or pairs of them."""
    value = row[column]
    if is_blank(value):
        raise RowError(f"{column!r} is empty")
    if isinstance(value, str) and role is not None:
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or role in ("system", "context"):
        kinds = {None: "a list of turns", "system": "a string", "context": "a string"}
        kind = kinds.get(role, "a string or a list of messages")
        raise RowError(f"{column!r} has to be {kind}, got {type(value).__name__}")
    if role is None and all(isinstance(item, list) for item in value):
        value = list(itertools.chain.from_iterable(value))
    if role is not None or (value and not isinstance(value[0], str)):
        return value
    utterances = (item.strip() if isinstance(item, str) else item for item in value)
    return [{"role": ROLES[1 if index % 2 == 0 else 3], "content": item} for index, item in enumerate(utterances)]


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(map(repr, names))
