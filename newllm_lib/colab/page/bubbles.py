"""A conversation as chat bubbles: who asks on the right, who answers on the left."""

from collections.abc import Mapping, Sequence

from .notices import FAINT, escape

ASKED = "rgba(31,111,235,.18)"
NAMES = {"user": "", "assistant": "", "system": "system: ", "context": "context: "}


def bubbles_html(messages: Sequence[dict[str, str]], most_characters: int | None = None) -> str:
    """The turns one under the other, line breaks kept.

    Args:
        most_characters: longer turns are shortened to this.
    """
    return "".join(_bubble(message["role"], message["content"], most_characters) for message in messages)


def one_exchange(said: str, reply: str, is_going: bool) -> list[dict[str, str]]:
    """What was said and the reply so far, as two turns; a reply that goes on ends in a block."""
    reply += " ▌" if is_going else ""
    return [{"role": "user", "content": said}, {"role": "assistant", "content": reply}]


def columns_html(conversations: Mapping[str, Sequence[dict[str, str]]], notes: Mapping[str, str] | None = None) -> str:
    """Conversations with several models side by side where there is room, the model's name above each.

    Args:
        notes: name -> what there is to know before its first bubble.
    """
    columns = []
    for name, messages in conversations.items():
        title = f"<b>{escape(name)}</b>" if len(conversations) > 1 else ""
        note = (notes or {}).get(name, "")
        if note:
            note = f'<div style="opacity:.75;font-size:12px">{escape(note)}</div>'
        columns.append(f'<div style="flex:1 1 260px;min-width:240px">{title}{note}{bubbles_html(messages)}</div>')
    return f'<div style="display:flex;flex-wrap:wrap;gap:4px 16px;margin-top:6px">{"".join(columns)}</div>'


def _bubble(role: str, content: str, most_characters: int | None) -> str:
    if most_characters is not None and len(content) > most_characters:
        content = content[:most_characters].rstrip() + " …"
    side, tint = ("flex-start", FAINT) if role == "assistant" else ("flex-end", ASKED)
    return (
        f'<div style="display:flex;justify-content:{side};margin:4px 0">'
        f'<div style="max-width:80%;background:{tint};border-radius:10px;padding:4px 10px;white-space:pre-wrap;'
        f'overflow-wrap:anywhere;font-size:14px;line-height:1.45">{NAMES[role]}{escape(content) or "…"}</div></div>'
    )
