"""Pure functions from the rows of a dataset to preferences: a prompt, the answer that is wanted, one that is not."""

from dataclasses import dataclass

from ..data.rows import answer_turns, columns_read, prompt_turns, whole_conversation
from ..data.turns import Message, RowError, check_messages, is_unicode


@dataclass(frozen=True)
class Preference:
    """A choice between two answers.

    Attributes:
        prompt: the conversation up to the answer; the last turn is not the assistant's.
        kind: what is wrong with the rejected answer, where that is known.
        place: where it stands in its file, for whoever has to mend it.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    kind: str = ""
    place: str = ""


class IdenticalSides(RowError):
    """Both answers are the same: there is nothing to prefer."""


def any_preference(row: dict) -> Preference:
    """A row of a prompt, by the table of columns, with `chosen` and `rejected`, each a text or turns that may repeat
    the prompt, as TRL has them; or of two whole conversations that differ in their last answer, turns or transcripts.

    Raises:
        RowError: it is none of these, a side is empty or no text, or (IdenticalSides) both sides are the same.
    """
    if "prompt" not in columns_read(row) and "chosen" in row and "rejected" in row:
        chosen, rejected = whole_conversation(row, "chosen"), whole_conversation(row, "rejected")
        if chosen[:-1] != rejected[:-1]:
            raise RowError("'chosen' and 'rejected' differ before their last answer")
        if len(chosen) < 2:
            raise RowError("'chosen' has no turn before its answer")
        return _checked(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], row)
    prompt = _prompt(row)
    return _checked(prompt, _answer(row, "chosen", prompt), _answer(row, "rejected", prompt), row)


def preference_columns(row: dict) -> tuple[str, ...]:
    """The columns that `any_preference` reads of a row."""
    read = columns_read(row)
    meanings = ("system", "history", "prompt", "context") if "prompt" in read else ()
    return (*(read[meaning] for meaning in meanings if meaning in read), "chosen", "rejected", "kind")


def _conversation(column: str, messages: list[Message]) -> list[Message]:
    try:
        return check_messages(messages)
    except RowError as error:
        raise RowError(f"{column!r}: {error}") from error


def _prompt(row: dict) -> list[Message]:
    turns = prompt_turns(row)
    # The check wants an answer at the end of every conversation: the prompt gets one for as long as it takes.
    checked = _conversation("prompt", [*turns, {"role": "assistant", "content": "?"}])
    if len(checked) < 2 or checked[-1]["content"] != "?":
        raise RowError("'prompt' has to end with a turn that is to be answered")
    return checked[:-1]


def _answer(row: dict, column: str, prompt: list[Message]) -> str:
    """The last answer of a column, which may repeat the prompt before it, with or without its system turn."""
    messages = _conversation(column, answer_turns(row, column))
    without_system = [turn for turn in prompt if turn["role"] != "system"]
    if len(messages) > 1 and messages[:-1] not in (prompt, without_system):
        raise RowError(f"{column!r} begins with another conversation than 'prompt'")
    return messages[-1]["content"]


def _checked(prompt: list[Message], chosen: str, rejected: str, row: dict) -> Preference:
    if chosen == rejected:
        raise IdenticalSides("'chosen' and 'rejected' are the same")
    kind = row.get("kind")
    return Preference(tuple(prompt), chosen, rejected, kind if isinstance(kind, str) and is_unicode(kind) else "")
