"""Pure functions from the rows of a dataset to pieces of text, one function per dataset."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

WIKITEXT_TITLE = re.compile(r" = [^=\s](.*[^=\s])? = \n?")
PIECE_CHARACTERS = 1 << 16


class TextPiece(NamedTuple):
    """A stretch of a document; a long document comes as several, so that memory stays flat."""

    text: str
    starts_document: bool


def pieces_of_lines(lines: Iterable[str]) -> Iterator[TextPiece]:
    """Lines of running text (ends kept) -> pieces. A WikiText article title starts a new document; text without such
    titles is one document. Joined, the pieces are the lines exactly."""
    held: list[str] = []
    held_characters = 0
    starts_document = True
    for line in lines:
        is_title = WIKITEXT_TITLE.fullmatch(line) is not None
        if held and (is_title or held_characters >= PIECE_CHARACTERS):
            yield TextPiece("".join(held), starts_document)
            held, held_characters, starts_document = [], 0, False
        if is_title:
            starts_document = True
        held.append(line)
        held_characters += len(line)
    if held:
        yield TextPiece("".join(held), starts_document)


def piece_of_conversation(turns: Iterable[str]) -> TextPiece:
    """Utterances of one conversation -> one document, an utterance a line."""
    return TextPiece("".join(turn.strip() + "\n" for turn in turns), True)


Message = dict[str, str]  # {"role": one of ROLES, "content": text}
ROLES = ("system", "user", "context", "assistant")
HH_TURN = re.compile(r"\n\n(Human|Assistant):")


class RowError(ValueError):
    """A row that is no conversation; the message says why, without naming the place."""


def _text(row: dict, column: str) -> str:
    """The text in a column, "" where it is missing or null."""
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"{column!r} has to be a string, got {type(value).__name__}")
    return value


def _filled(row: dict, column: str) -> str:
    if column not in row:
        raise RowError(f"there is no {column!r} column (found: {', '.join(map(repr, row)) or 'none'})")
    value = _text(row, column)
    if not value.strip():
        raise RowError(f"{column!r} is empty")
    return value


def _turns(row: dict, column: str) -> list[Message]:
    """A list of utterances, of which the user speaks the first, the third, ..."""
    turns = row.get(column)
    if not isinstance(turns, list):
        raise RowError(f"{column!r} has to be a list of utterances, got {type(turns).__name__}")
    return [{"role": ROLES[1 if index % 2 == 0 else 3], "content": turn} for index, turn in enumerate(turns)]


def dailydialog(row: dict) -> list[Message]:
    """{"dialog": [utterance, ...]}"""
    return check_messages(_turns(row, "dialog"))


def dialogues_of_utterances(rows: Iterable[dict]) -> Iterator[dict]:
    """Rows of one utterance each with the `dialog_id` they belong to -> rows of DailyDialog."""
    for _, group in itertools.groupby(rows, key=lambda row: row["dialog_id"]):
        yield {"dialog": [row["utterance"] for row in group]}


def utterances_as_dialogue(rows: Iterable[dict]) -> Iterator[dict]:
    """{"utterances": [...]} -> rows of DailyDialog."""
    return ({"dialog": row["utterances"]} for row in rows)


def ultrachat(row: dict) -> list[Message]:
    """{"data": [utterance, ...]}"""
    return check_messages(_turns(row, "data"))


def _prompt(row: dict, prompt: str, context: str | None) -> list[Message]:
    messages = [{"role": "user", "content": _filled(row, prompt)}]
    if context is not None and _text(row, context).strip():
        messages.append({"role": "context", "content": _text(row, context)})
    return messages


def _instruction(row: dict, prompt: str, context: str | None, answer: str) -> list[Message]:
    return check_messages([*_prompt(row, prompt, context), {"role": "assistant", "content": _filled(row, answer)}])


def dolly(row: dict) -> list[Message]:
    """{"instruction", "context" (may be empty), "response"}"""
    return _instruction(row, "instruction", "context", "response")


def alpaca(row: dict) -> list[Message]:
    """{"instruction", "input" (may be empty), "output"}"""
    return _instruction(row, "instruction", "input", "output")


def alpaca_prompt(row: dict) -> list[Message]:
    """The same row without its answer, which may be missing."""
    return _prompt(row, "instruction", "input")


def hh_rlhf(row: dict, column: str = "chosen") -> list[Message]:
    """{"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ..."}, a transcript that is split at its turns."""
    first, *parts = HH_TURN.split(_filled(row, column))
    if first.strip():
        raise RowError(f"{column!r} has to begin with a turn of Human or Assistant")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[0::2], parts[1::2], strict=True)
    return check_messages([{"role": roles[speaker], "content": content} for speaker, content in turns])


def messages_column(row: dict) -> list[Message]:
    """{"messages": [{"role", "content"}, ...]}"""
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise RowError(f"'messages' has to be a list of turns, got {type(messages).__name__}")
    return check_messages(messages)


def any_conversation(row: dict) -> list[Message]:
    """A row of messages, of prompt and completion, or of the columns of Dolly or Alpaca."""
    if "messages" in row:
        return messages_column(row)
    if "prompt" in row and "completion" in row:
        return _instruction(row, "prompt", None, "completion")
    if "instruction" in row and "response" in row:
        return dolly(row)
    if "instruction" in row and "output" in row:
        return alpaca(row)
    found = ", ".join(map(repr, row)) or "none"
    raise RowError(
        "there is neither a 'messages' column nor 'prompt' and 'completion', nor 'instruction' with 'response' or "
        f"'output' (found: {found})"
    )


def _is_unicode(text: str) -> bool:
    """False for text with half of a surrogate pair, which JSON can spell and no tokenizer reads."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_messages(messages: list) -> list[Message]:
    """The conversation as it is trained on: neighbouring turns of one speaker joined by an empty line, and what comes
    after the last answer left out, for nothing is learned there.

    Raises:
        RowError: a turn that is no {"role", "content"} of known role and non-empty text, a system turn that is not the
            first, or no answer at all.
    """
    joined: list[Message] = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise RowError(f"turn {number} has to be an object with 'role' and 'content'")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise RowError(f"turn {number}: role has to be one of {', '.join(ROLES)}, got {role!r}")
        if not isinstance(content, str):
            raise RowError(f"turn {number}: content has to be a string, got {type(content).__name__}")
        if not content.strip():
            raise RowError(f"turn {number} ({role}) is empty")
        if not _is_unicode(content):
            raise RowError(f"turn {number} ({role}) holds half a character (a lone surrogate)")
        if role == "system" and joined:
            raise RowError(f"turn {number}: a system turn has to be the first")
        if joined and joined[-1]["role"] == role:
            joined[-1]["content"] += "\n\n" + content.strip()
        else:
            joined.append({"role": role, "content": content.strip()})
    while joined and joined[-1]["role"] != "assistant":
        joined.pop()
    if not joined:
        raise RowError("there is no assistant turn to learn from")
    return joined
