"""A conversation as chat bubbles: who asks on the right, who answers on the left."""

from collections.abc import Mapping, Sequence

from .notices import AS_WRITTEN, FAINT, beside_html, escape, shortened, small_html

ASKED = "rgba(31,111,235,.18)"
NAMES = {"user": "", "assistant": "", "system": "system: ", "context": "context: "}


def bubbles_html(messages: Sequence[dict[str, str]], most_characters: int | None = None) -> str:
    """The turns one under the other, line breaks kept; those longer than `most_characters` are shortened."""
    bubbles = []
    for message in messages:
        role, content = message["role"], message["content"]
        content = shortened(content, most_characters or len(content))
        side, tint = ("flex-start", FAINT) if role == "assistant" else ("flex-end", ASKED)
        style = f"max-width:80%;background:{tint};border-radius:10px;padding:4px 10px;{AS_WRITTEN};font-size:14px"
        bubble = f'<div style="{style};line-height:1.45">{NAMES[role]}{escape(content) or "…"}</div>'
        bubbles.append(f'<div style="display:flex;justify-content:{side};margin:4px 0">{bubble}</div>')
    return "".join(bubbles)


def one_exchange(said: str, reply: str, is_going: bool) -> list[dict[str, str]]:
    """What was said and the reply so far, as two turns; a reply that goes on ends in a block."""
    reply += " ▌" if is_going else ""
    return [{"role": "user", "content": said}, {"role": "assistant", "content": reply}]


def columns_html(conversations: Mapping[str, Sequence[dict[str, str]]], notes: Mapping[str, str] | None = None) -> str:
    """Conversations with several models side by side where there is room, the model's name above each. `notes`: name ->
    what there is to know before its first bubble."""
    columns = []
    for name, messages in conversations.items():
        title = f"<b>{escape(name)}</b>" if len(conversations) > 1 else ""
        note = small_html(escape(notes[name])) if notes and notes.get(name) else ""
        columns.append(f'<div style="flex:1 1 260px;min-width:240px">{title}{note}{bubbles_html(messages)}</div>')
    return beside_html(columns, gap="4px 16px")
