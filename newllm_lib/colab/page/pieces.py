"""HTML and widgets that can be read on a light and on a dark page: tints are translucent, text has its colour."""

import base64
import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text

from ...training.curves import can_be_drawn, png_of
from .languages import language, translate

# status -> mark, colour of its badge (white text on it is readable on any page)
MARKS = {"ok": ("✓", "#1a7f37"), "note": ("!", "#9a6700"), "fail": ("✗", "#cf222e")}
GRID = "rgba(128,128,128,.35)"
FAINT = "rgba(128,128,128,.12)"
ASKED = "rgba(31,111,235,.18)"
AS_WRITTEN = "white-space:pre-wrap;overflow-wrap:anywhere"  # line breaks are kept, long words broken
SPEAKERS = {"user": "", "assistant": "", "system": "system: ", "context": "context: "}


def sentence_html(sentence: str, status: str = "ok", code: str = "") -> str:
    """The sentence with its mark and code; a failure also has a red tint."""
    style = "padding:4px 8px;line-height:1.5;font-size:14px;overflow-wrap:anywhere"
    if status == "fail":
        style += ";background:rgba(207,34,46,.14);border-left:4px solid #cf222e"
    return f'<div style="{style}">{mark_html(status)} {escape(translate(sentence))}{code_html(code)}</div>'


def code_html(code: str) -> str:
    """One of CODES, small, after a sentence; nothing for none."""
    return f' <span style="opacity:.75;font-size:12px;white-space:nowrap">{code}</span>' if code else ""


def mark_html(status: str) -> str:
    """✓ ! or ✗ in a small badge."""
    mark, colour = MARKS[status]
    style = "display:inline-block;width:1.4em;border-radius:4px;text-align:center;font-weight:bold;color:#fff"
    return f'<span style="{style};background:{colour}">{mark}</span>'


def small_html(content: str, style: str = "") -> str:
    return f'<div style="opacity:.75;font-size:12px;{style}">{in_words(content)}</div>'


def beside_html(cards: Sequence[str], gap: str = "8px", align: str = "stretch") -> str:
    style = f"display:flex;flex-wrap:wrap;gap:{gap};align-items:{align};margin:6px 0"
    return f'<div style="{style}">{"".join(cards)}</div>'


def escape(text: str) -> str:
    """Text inside HTML, not in a tag. Jupyter would set what stands between two dollar signs, or \\( and \\), as a
    formula: each dollar and backslash gets an element of its own."""
    return re.sub(r"[$\\]", r"<span>\g<0></span>", html.escape(text))


def in_words(content: str) -> str:
    """HTML in the session's language, but for what stands in a div, where users and models have their words."""
    if language() == "en" or "<div" in content:
        return content
    return re.sub(r"[^<>]+(?=<|$)", lambda words: html.escape(translate(html.unescape(words[0]))), content)


def shortened(text: str, most_characters: int) -> str:
    return text if len(text) <= most_characters else text[:most_characters].rstrip() + " …"


def table_html(rows: Sequence[Sequence[str]], header: bool = False, numbers: bool = False) -> str:
    """A table that scrolls sideways; `header`: its first row is one; `numbers`: columns but the first stand right."""
    lines = []
    for number, row in enumerate(rows):
        tag, cells = "th" if header and number == 0 else "td", ""
        for column, cell in enumerate(row):
            style = f"vertical-align:top;padding:4px 12px 4px 4px;border-bottom:1px solid {GRID}"
            style += f";text-align:{'right' if numbers and column else 'left'}"
            cells += f'<{tag} style="{style}">{in_words(cell)}</{tag}>'
        # Jupyter stripes table rows in colours of its own, which here would only add noise.
        lines.append(f'<tr style="background:transparent">{cells}</tr>')
    style = "border-collapse:collapse;font-size:14px;line-height:1.45;margin:4px 0"
    return f'<div style="overflow-x:auto"><table style="{style}">{"".join(lines)}</table></div>'


def bubbles_html(messages: Sequence[dict[str, str]], most_characters: int | None = None) -> str:
    """The turns one under the other, line breaks kept; those longer than `most_characters` are shortened."""
    bubbles = []
    for message in messages:
        role, content = message["role"], message["content"]
        content = shortened(content, most_characters or len(content))
        side, tint = ("flex-start", FAINT) if role == "assistant" else ("flex-end", ASKED)
        style = f"max-width:80%;background:{tint};border-radius:10px;padding:4px 10px;{AS_WRITTEN};font-size:14px"
        bubble = f'<div style="{style};line-height:1.45">{SPEAKERS[role]}{escape(content) or "…"}</div>'
        bubbles.append(f'<div style="display:flex;justify-content:{side};margin:4px 0">{bubble}</div>')
    return "".join(bubbles)


def columns_html(conversations: Mapping[str, Sequence[dict[str, str]]], notes: Mapping[str, str] | None = None) -> str:
    """Conversations side by side under the models' names; `notes`: name -> what to know before the first bubble."""
    columns = []
    for name, messages in conversations.items():
        title = f"<b>{escape(translate(name))}</b>" if len(conversations) > 1 else ""
        note = small_html(escape(notes[name])) if notes and notes.get(name) else ""
        columns.append(f'<div style="flex:1 1 260px;min-width:240px">{title}{note}{bubbles_html(messages)}</div>')
    return beside_html(columns, gap="4px 16px")


def picture_html(png: bytes, description: str) -> str:
    """The picture inside the page: on white ground, for its text is black, and never shrunk beyond reading."""
    style = "background:#fff;border-radius:6px;max-width:max(100%,600px)"
    image = f'<img alt="{html.escape(translate(description))}" style="{style}" src="{data_url("image/png", png)}">'
    return f'<div style="overflow-x:auto">{image}</div>'


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def figure_html(figure: Figure, description: str, file: Path | None = None, dpi: int = 110) -> str:
    png = spoken_png(figure, dpi)
    if file is not None:
        file.write_bytes(png)
    return picture_html(png, description)


def spoken_png(figure: Figure, dpi: int, **options: Any) -> bytes:
    """The figure in the session's language."""
    for words in figure.findobj(Text) if language() != "en" else ():
        words.set_text(label_of(words.get_text()))
    # Hints would blot out the strokes of letters that stand on end.
    with rc_context({} if language() == "en" else {"text.hinting": "none"}):
        return png_of(figure, dpi, **options)


def label_of(words: str) -> str:
    """Words of ours for a figure, in the session's language if its letters can be drawn."""
    spoken = translate(words)
    if spoken == words:  # maybe words and a number: "held-out pairs: 80%", "vague (12)"
        spoken = re.sub(r"^[^:(]*(?=: | \()", lambda label: translate(label[0]), words)
    return spoken if can_be_drawn(spoken.replace("\n", "")) else words


def slider_options() -> dict[str, Any]:
    """What all sliders share. The knob at the left end is wider than the rail: the margin keeps it from being cut."""
    layout = widgets.Layout(width="auto", min_width="0", margin="2px 2px 2px 8px")
    return {"continuous_update": False, "layout": layout}


def html_widget(content: str = "") -> widgets.HTML:
    return widgets.HTML(content, layout=widgets.Layout(width="auto"))


def wrapping_row(*parts: widgets.Widget, **layout: str) -> widgets.HBox:
    layout = {"flex_flow": "row wrap", "align_items": "center", "width": "100%", **layout}
    return widgets.HBox(parts, layout=widgets.Layout(**layout))


def button(description: str, press: Callable[[], Any], width: str) -> widgets.Button:
    made = widgets.Button(description=translate(description), layout=widgets.Layout(width=width))
    made.on_click(lambda _: press())
    return made


def button_box(description: str, press: Callable[[], str], wait: str = "") -> widgets.VBox:
    """A button, which Run all does not press, and below it the HTML that `press` returns, and `wait` meanwhile."""
    line = html_widget()

    def pressed() -> None:
        line.value = wait
        line.value = press()

    return widgets.VBox([button(description, pressed, "180px"), line], layout=widgets.Layout(width="100%"))


def download_html(name: str, content: str, label: str) -> str:
    style = f"display:inline-block;border:1px solid {GRID};border-radius:6px;padding:2px 10px;margin:4px 8px 4px 0;"
    style += "font-size:13px;color:inherit;text-decoration:none"
    address = data_url("text/plain", content.encode())
    return f'<a download="{escape(name)}" href="{address}" style="{style}">↓ {escape(translate(label))}</a>'
