"""A conversation as chat bubbles: who asks on the right, who answers on the left."""

from collections.abc import Sequence

from .notices import FAINT, escape

ASKED = "rgba(31,111,235,.18)"
NAMES = {"user": "", "assistant": "", "system": "system: ", "context": "context: "}


def bubbles_html(messages: Sequence[dict[str, str]], most_characters: int | None = None) -> str:
    """The turns one under the other, line breaks kept.

    Args:
        most_characters: longer turns are shortened to this.
    """
    return "".join(_bubble(message["role"], message["content"], most_characters) for message in messages)


def _bubble(role: str, content: str, most_characters: int | None) -> str:
    if most_characters is not None and len(content) > most_characters:
        content = content[:most_characters].rstrip() + " …"
    side, tint = ("flex-start", FAINT) if role == "assistant" else ("flex-end", ASKED)
    return (
        f'<div style="display:flex;justify-content:{side};margin:4px 0">'
        f'<div style="max-width:80%;background:{tint};border-radius:10px;padding:4px 10px;white-space:pre-wrap;'
        f'overflow-wrap:anywhere;font-size:14px;line-height:1.45">{NAMES[role]}{escape(content) or "…"}</div></div>'
    )
