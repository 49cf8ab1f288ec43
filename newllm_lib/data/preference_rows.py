"""Pure functions from the rows of a dataset to preferences: a prompt, the answer that is wanted, one that is not."""

from dataclasses import dataclass

from .rows import Message, RowError, alpaca_prompt, check_messages, hh_rlhf


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
    """A row of prompt, chosen and rejected (texts, or lists of messages as TRL has them), of Alpaca's instruction and
    input in the place of the prompt, or of two whole transcripts as in hh-rlhf.

    Raises:
        RowError: it is none of these, a side is empty or no text, or (IdenticalSides) both sides are the same.
    """
    if "prompt" in row or "instruction" in row:
        prompt = _prompt(row) if "prompt" in row else alpaca_prompt(row)
        return _checked(prompt, _answer(row, "chosen", prompt), _answer(row, "rejected", prompt), row)
    if "chosen" in row and "rejected" in row:
        return hh_rlhf_preference(row)
    found = ", ".join(map(repr, row)) or "none"
    raise RowError(f"there is no 'prompt' column beside 'chosen' and 'rejected' (found: {found})")


def hh_rlhf_preference(row: dict) -> Preference:
    """{"chosen": transcript, "rejected": transcript}, the same up to the last answer.

    Raises:
        RowError: as `any_preference`, or the transcripts differ before their last answer.
    """
    chosen, rejected = hh_rlhf(row, "chosen"), hh_rlhf(row, "rejected")
    if chosen[:-1] != rejected[:-1]:
        raise RowError("'chosen' and 'rejected' differ before their last answer")
    if len(chosen) < 2:
        raise RowError("'chosen' has no turn before its answer")
    return _checked(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], row)


def _messages(row: dict, column: str, role: str) -> list[Message]:
    """What a column holds, a text or a list of messages; a text is one turn of `role`."""
    if column not in row:
        raise RowError(f"there is no {column!r} column (found: {', '.join(map(repr, row)) or 'none'})")
    value = row[column]
    if not isinstance(value, str | list):
        raise RowError(f"{column!r} has to be a string or a list of messages, got {type(value).__name__}")
    if not (value.strip() if isinstance(value, str) else value):
        raise RowError(f"{column!r} is empty")
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _conversation(column: str, messages: list[Message]) -> list[Message]:
    try:
        return check_messages(messages)
    except RowError as error:
        raise RowError(f"{column!r}: {error}") from error


def _prompt(row: dict) -> list[Message]:
    messages = _messages(row, "prompt", "user")
    # The check wants an answer at the end of every conversation: the prompt gets one for as long as it takes.
    checked = _conversation("prompt", [*messages, {"role": "assistant", "content": "?"}])
    if len(checked) < 2 or checked[-1]["content"] != "?":
        raise RowError("'prompt' has to end with a turn that is to be answered")
    return checked[:-1]


def _answer(row: dict, column: str, prompt: list[Message]) -> str:
    """The last answer of a column, which may repeat the prompt before it."""
    messages = _conversation(column, _messages(row, column, "assistant"))
    if len(messages) > 1 and messages[:-1] != prompt:
        raise RowError(f"{column!r} begins with another conversation than 'prompt'")
    return messages[-1]["content"]


def _checked(prompt: list[Message], chosen: str, rejected: str, row: dict) -> Preference:
    if chosen == rejected:
        raise IdenticalSides("'chosen' and 'rejected' are the same")
    kind = row.get("kind")
    return Preference(tuple(prompt), chosen, rejected, kind if isinstance(kind, str) else "")
