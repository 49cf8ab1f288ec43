"""What a cell says: one sentence of what happened, small tables, and errors of one sentence in place of a traceback.

Colours are chosen to be read on a light and on a dark page: text keeps the page's colour, tints are translucent.
"""

import base64
import functools
import html
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from IPython.display import HTML, display

from ..errors import InputError
from ..quiet import quiet_libraries

# status -> mark, colour of its badge (white text on it is readable on any page)
MARKS = {"ok": ("✓", "#1a7f37"), "note": ("!", "#9a6700"), "fail": ("✗", "#cf222e")}
GRID = "rgba(128,128,128,.35)"
FAINT = "rgba(128,128,128,.12)"

Result = TypeVar("Result")


class CellStopped(Exception):
    """Ends a cell, and with it Run all, by one sentence. IPython asks an exception how it wants to be shown."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def in_one_sentence(function: Callable[..., Result]) -> Callable[..., Result]:
    """Let bad input end the cell with the library's sentence alone."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except InputError as error:
            raise CellStopped(f"✗ {error}") from None

    return wrapper


def say(sentence: str, status: str = "ok") -> None:
    """Show one sentence with its mark."""
    display(HTML(sentence_html(sentence, status)))


def sentence_html(sentence: str, status: str = "ok") -> str:
    """The sentence with its mark; a failure also has a red tint."""
    tint = "background:rgba(207,34,46,.14);border-left:4px solid #cf222e;" if status == "fail" else ""
    return (
        f'<div style="{tint}padding:4px 8px;line-height:1.5;font-size:14px;overflow-wrap:anywhere">'
        f"{mark_html(status)} {escape(sentence)}</div>"
    )


def mark_html(status: str) -> str:
    """✓ ! or ✗ in a small badge."""
    mark, colour = MARKS[status]
    return (
        f'<span style="display:inline-block;width:1.4em;border-radius:4px;text-align:center;font-weight:bold;'
        f'color:#fff;background:{colour}">{mark}</span>'
    )


def escape(text: str) -> str:
    """Text for use inside HTML. Jupyter would set what stands between two dollar signs as a formula: each is hidden
    in an element of its own."""
    return html.escape(text).replace("$", "<span>$</span>")


def table_html(rows: Sequence[Sequence[str]], header: bool = False, numbers: bool = False) -> str:
    """Rows of HTML fragments as a table that scrolls sideways where the page is narrow.

    Args:
        header: the first row is one.
        numbers: all columns but the first are set to the right.
    """
    lines = []
    for number, row in enumerate(rows):
        tag = "th" if header and number == 0 else "td"
        cells = []
        for column, cell in enumerate(row):
            align = "right" if numbers and column else "left"
            cells.append(
                f'<{tag} style="text-align:{align};vertical-align:top;padding:4px 12px 4px 4px;'
                f'border-bottom:1px solid {GRID}">{cell}</{tag}>'
            )
        # Jupyter stripes table rows in colours of its own, which here would only add noise.
        lines.append(f'<tr style="background:transparent">{"".join(cells)}</tr>')
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;font-size:14px;line-height:1.45;'
        f'margin:4px 0">{"".join(lines)}</table></div>'
    )


def picture_html(png: bytes, description: str) -> str:
    """The picture inside the page: on white ground, for its text is black, and never shrunk beyond reading."""
    return (
        f'<div style="overflow-x:auto"><img alt="{html.escape(description)}" style="background:#fff;border-radius:6px;'
        f'max-width:max(100%,600px)" src="data:image/png;base64,{base64.b64encode(png).decode()}"></div>'
    )


def quiet_notebook() -> None:
    """The notebook shows progress itself: from the libraries below only errors, from ours only warnings."""
    quiet_libraries()
    logging.getLogger("newllm_lib").setLevel(logging.WARNING)
