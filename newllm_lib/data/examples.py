"""Pure functions from an example of a dataset (a row of its table) to a conversation: one table says what a column
means, another what a role means, whatever public data call them."""

import itertools
import re
from collections.abc import Iterable
from typing import Any

from .files import RowError, checked_text, is_missing, no_column, text_of
from .tokenizer import ROLES

# {"role": one of ROLES, "content": text}, and "train": False in an answer that is not supervised.
Message = dict[str, Any]
ROLE_NAMES = {  # names in public data -> ours
    **{role: role for role in ROLES},
    "developer": "system", "human": "user", "gpt": "assistant", "model": "assistant", "function_call": "assistant",
    "tool": "context", "function": "context", "observation": "context",
}  # fmt: skip
TURN_KEYS = ("role", "from", "content", "value", "weight", "train")
CALLS = ("tool_calls", "function_call")  # keys of a turn whose words only announce something that is not text
MOST_TURNS = 4_000  # in a conversation: the time of a template grows with their square
# What a column means; the first that is filled is read. `chosen` is an answer where nothing else is.
COLUMNS = {
    "turns": ("messages", "conversations", "conversation", "dialog", "data"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "prompt": ("prompt", "instruction", "question", "query", "input"),
    "context": ("context", "input"),
    "answer": ("completion", "response", "output", "answer", "chosen"),
}
SPEAKERS = {"system": "system", "prompt": "user", "context": "context"}  # of a text with this meaning
HH_TURN = re.compile(r"\n\n(Human|Assistant):")
NO_TURN = " has to be an object with 'role' and 'content'"


def is_blank(value: object) -> bool:
    return is_missing(value) or value == [] or (isinstance(value, str) and not value.strip())


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
    return tuple(read[meaning] for meaning in (("turns", "system") if "turns" in read else read) if meaning in read)


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
    hh-rlhf. The turns are those of `check_messages`. Raises RowError: it is none of these, or no conversation."""
    read = columns_read(row)
    if "turns" in read:
        return check_messages(_turns_meaning(row, "system", "turns"))
    if "prompt" in read and "answer" in read:
        return check_messages([*prompt_turns(row), *answer_turns(row, read["answer"])])
    if "chosen" in row:
        return whole_conversation(row, "chosen")
    if "prompt" in read:
        names = " or ".join(repr(name) for name in COLUMNS["answer"] if name != "chosen")
        raise no_column(row, f"no {names} column beside {read['prompt']!r}")
    what = "neither a 'messages' column nor 'prompt' and 'completion', nor 'instruction' with 'response' or 'output'"
    raise no_column(row, what)


def prompt_turns(row: dict) -> list[Message]:
    """The turns before the answer: system, history, prompt and context, as far as the row has them. Raises RowError:
    there is no prompt."""
    if "prompt" not in columns_read(row):
        raise no_column(row, f"no {' or '.join(map(repr, COLUMNS['prompt']))} column")
    return _turns_meaning(row, "system", "history", "prompt", "context")


def _turns_meaning(row: dict, *meanings: str) -> list[Message]:
    """The turns of the columns with these meanings; "turns" and "prompt" have to be filled."""
    read = columns_read(row)
    filled = [name for name in meanings if name in ("turns", "prompt") or not is_blank(row.get(read.get(name)))]
    return [turn for name in filled for turn in _turns(row, read[name], SPEAKERS.get(name))]


def answer_turns(row: dict, column: str) -> list[Message]:
    """The turns of a column that is an answer, or ends with one."""
    if column not in row:
        raise no_column(row, f"no {column!r} column")
    return _turns(row, column, "assistant")


def whole_conversation(row: dict, column: str) -> list[Message]:
    """A conversation up to its last answer, as a list of turns or as one text, "\\n\\nHuman: ...\\n\\nAssistant: ...".
    Raises RowError: it is neither."""
    if isinstance(row[column], list):
        return check_messages(_turns(row, column, None))
    before, *parts = HH_TURN.split(text_of(row, column))
    if before.strip():
        raise RowError(f"{column!r} has to begin with a turn of Human or Assistant")
    turns = zip(parts[0::2], parts[1::2], strict=True)
    return check_messages([{"role": speaker.lower(), "content": content.strip()} for speaker, content in turns])


def _turns(row: dict, column: str, role: str | None) -> list[Message]:
    """The content of a column: a text, which is a turn of `role`, or turns; with no `role`, turns, or utterances, of
    which the user speaks the first, the third, ..., or pairs of them."""
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
    return [{"role": ("user", "assistant")[index % 2], "content": item} for index, item in enumerate(utterances)]


def check_messages(messages: list) -> list[Message]:
    """The conversation as it is trained on: roles by our names, neighbouring turns of one speaker joined by an empty
    line, and turns after the last supervised answer left out. An answer keeps the blanks that its first line begins
    with. A turn of weight 0, and one that calls a tool, is context. Raises RowError: a turn that has no known role and
    no text, a system turn that is not the first, turns of which only some are supervised and that cannot be joined,
    more than MOST_TURNS, or no answer to learn."""
    if len(messages) > MOST_TURNS:
        raise RowError(f"{len(messages):,} turns are more than the {MOST_TURNS:,} that are read; part the conversation")
    checked: list[tuple[int, Message]] = []
    for number, message in enumerate(messages, start=1):
        try:
            turn = _checked_turn(message)
        except RowError as error:
            raise RowError(f"turn {number}{error}") from error
        if turn is not None:
            checked.append((number, turn))
    joined: list[Message] = []
    for role, turns in itertools.groupby(checked, key=lambda item: item[1]["role"]):
        (number, first), *others = turns
        if role == "system" and joined:
            raise RowError(f"turn {number}: a system turn has to be the first")
        if differing := [other for other, turn in others if turn.keys() != first.keys()]:
            raise RowError(f"turn {differing[0]}: of two answers in a row, one is not to be learned; leave it out")
        joined.append(first | {"content": "\n\n".join([first["content"], *(turn["content"] for _, turn in others)])})
    has_context = any("train" in turn for turn in joined)
    while joined and (joined[-1]["role"] != "assistant" or "train" in joined[-1]):
        joined.pop()
    if not joined:
        why = "; calls of tools and turns of weight 0 are not learned" if has_context else ""
        raise RowError(f"there is no assistant turn to learn from{why}")
    return joined


def _checked_turn(message: object) -> Message | None:
    """A turn, with "train": False if it is an answer that is not supervised; None if it only calls a tool. The message
    of a RowError goes on after "turn N"."""
    if not isinstance(message, dict):
        raise RowError(NO_TURN)
    name, content = message.get("role"), message.get("content")
    name = message.get("from") if is_missing(name) else name
    content = message.get("value") if is_missing(content) else content
    has_marks = message.keys() != {"role", "content"}  # most turns of millions have none
    has_call = has_marks and not all(is_blank(message.get(key)) for key in CALLS)
    if name is None or (content is None and not has_call and "content" not in message):
        raise RowError(NO_TURN)
    role = ROLE_NAMES.get(name) if isinstance(name, str) else None
    if role is None:
        raise RowError(f": role has to be one of {', '.join(ROLE_NAMES)}, got {str(name)[:40]!r}")
    if has_call and is_blank(content):
        return None
    if isinstance(content, list):
        content = "".join(map(_text_of_part, content))
    content = checked_text(None if is_blank(content) else content, f" ({role})")
    if role != "assistant":
        return {"role": role, "content": content.strip()}
    for key in ("weight", "train") if has_marks else ():
        mark = message.get(key)
        if not has_call and not is_missing(mark) and mark not in (0, 1):
            raise RowError(f": {key} has to be 0 or 1, got {str(mark)[:40]!r}")
    is_supervised = not has_call and message.get("weight") != 0 and message.get("train") != 0
    first_line = content.rfind("\n", 0, len(content) - len(content.lstrip())) + 1
    answer = {"role": role, "content": content[first_line:].rstrip()}
    return answer if is_supervised else {**answer, "train": False}


def _text_of_part(part: object) -> str:
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise RowError(f": content has a part that is no text, {str(kind)[:40]!r}")
    return part["text"]
