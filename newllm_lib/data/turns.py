"""A conversation as it is trained on, made of the turns of a row, whatever public data call the roles and the keys."""

from typing import Any

# {"role": one of ROLES, "content": text}, and "train": False in an answer that is not to be learned.
Message = dict[str, Any]
ROLES = ("system", "user", "context", "assistant")
# What others call our roles.
ROLE_NAMES = {
    **{role: role for role in ROLES},
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "context",
    "function": "context",
    "observation": "context",
}
TURN_KEYS = ("role", "from", "content", "value", "weight", "train")
CALLS = ("tool_calls", "function_call")  # keys of a turn whose words only announce what is not text
MOST_TURNS = 4_000  # of a conversation: a template takes time with the square of it


class RowError(ValueError):
    """A row that is no conversation; the message says why, without naming the place."""


def is_missing(value: object) -> bool:
    """True for null, and for NaN, which tables write in its place."""
    return value is None or (isinstance(value, float) and value != value)


def is_blank(value: object) -> bool:
    return is_missing(value) or value == [] or (isinstance(value, str) and not value.strip())


def is_unicode(text: str) -> bool:
    """False for text with half of a surrogate pair, which JSON can spell and no tokenizer reads."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_messages(messages: list) -> list[Message]:
    """The conversation as it is trained on: roles by our names, neighbouring turns of one speaker joined by an empty
    line, and what comes after the last learned answer left out, for nothing is learned there. An answer keeps the
    blanks that its first line begins with. A turn of weight 0, and one that calls a tool, is context.

    Raises:
        RowError: a turn that has no known role and no text, a system turn that is not the first, turns of which only
            some are learned and that cannot be joined, more than MOST_TURNS, or no answer to learn.
    """
    if len(messages) > MOST_TURNS:
        raise RowError(f"{len(messages):,} turns are more than the {MOST_TURNS:,} that are read; part the conversation")
    joined: list[tuple[str, bool, list[str]]] = []
    for number, message in enumerate(messages, start=1):
        role, content, learned = _checked_turn(number, message)
        if content is None:
            continue
        if role == "system" and joined and joined[-1][0] != "system":
            raise RowError(f"turn {number}: a system turn has to be the first")
        if not joined or joined[-1][0] != role:
            joined.append((role, learned, [content]))
        elif joined[-1][1] == learned:
            joined[-1][2].append(content)
        else:
            raise RowError(f"turn {number}: of two answers in a row, one is not to be learned; leave it out")
    is_told = any(not learned for _, learned, _ in joined)
    while joined and not (joined[-1][0] == "assistant" and joined[-1][1]):
        joined.pop()
    if not joined:
        why = "; calls of tools and turns of weight 0 are not learned" if is_told else ""
        raise RowError(f"there is no assistant turn to learn from{why}")
    return [
        {"role": role, "content": "\n\n".join(parts)} | ({} if learned else {"train": False})
        for role, learned, parts in joined
    ]


def _checked_turn(number: int, message: object) -> tuple[str, str | None, bool]:
    """(role, content, whether it is learned if it is an answer) of a turn; no content: it only calls a tool."""
    if not isinstance(message, dict):
        raise RowError(f"turn {number} has to be an object with 'role' and 'content'")
    name, content = message.get("role"), message.get("content")
    name = message.get("from") if is_missing(name) else name
    content = message.get("value") if is_missing(content) else content
    has_marks = message.keys() != {"role", "content"}  # most turns of millions have none
    has_call = has_marks and not all(is_blank(message.get(key)) for key in CALLS)
    if name is None or (content is None and not has_call and "content" not in message):
        raise RowError(f"turn {number} has to be an object with 'role' and 'content'")
    role = ROLE_NAMES.get(name) if isinstance(name, str) else None
    if role is None:
        raise RowError(f"turn {number}: role has to be one of {', '.join(ROLE_NAMES)}, got {str(name)[:40]!r}")
    if has_call and is_blank(content):
        return role, None, False
    if isinstance(content, list):
        content = "".join(_part(number, part) for part in content)
    if is_missing(content):
        content = ""
    if not isinstance(content, str):
        raise RowError(f"turn {number}: content has to be a string, got {type(content).__name__}")
    if not content.strip():
        raise RowError(f"turn {number} ({role}) is empty")
    if not is_unicode(content):
        raise RowError(f"turn {number} ({role}) holds half a character (a lone surrogate)")
    if role != "assistant":
        return role, content.strip(), True
    first_line = content.rfind("\n", 0, len(content) - len(content.lstrip())) + 1
    return role, content[first_line:].rstrip(), not has_marks or (not has_call and _is_learned(number, message))


def _part(number: int, part: object) -> str:
    """The text of a part of a turn's content."""
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise RowError(f"turn {number}: content has a part that is no text, {str(kind)[:40]!r}")
    return part["text"]


def _is_learned(number: int, message: dict) -> bool:
    """What `weight` (0 or 1) or `train` (false or true) say about an answer."""
    for key in ("weight", "train"):
        mark = message.get(key)
        if not is_missing(mark) and mark not in (0, 1):
            raise RowError(f"turn {number}: {key} has to be 0 or 1, got {str(mark)[:40]!r}")
    return message.get("weight") != 0 and message.get("train") != 0
