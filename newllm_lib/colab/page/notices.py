"""What a cell says: one sentence of what happened, small tables, and errors of one sentence in place of a traceback.

Colours are chosen to be read on a light and on a dark page: text keeps the page's colour, tints are translucent.
"""

import base64
import functools
import html
import logging
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from IPython.display import HTML, display

from ...errors import InputError
from ...quiet import quiet_libraries
from .failures import FAULT, code_and_sentence

# status -> mark, colour of its badge (white text on it is readable on any page)
MARKS = {"ok": ("✓", "#1a7f37"), "note": ("!", "#9a6700"), "fail": ("✗", "#cf222e")}
GRID = "rgba(128,128,128,.35)"
FAINT = "rgba(128,128,128,.12)"

Result = TypeVar("Result")


class CellStopped(Exception):
    """Ends a cell, and with it Run all, by one sentence. IPython asks an exception how it wants to be shown."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class CellFailed(CellStopped):
    """A fault of ours: the traceback, and below it the sentence, where it is read first."""

    def _render_traceback_(self) -> list[str]:
        return [*traceback.format_exception(self.__context__), str(self)]


def in_one_sentence(function: Callable[..., Result]) -> Callable[..., Result]:
    """Let whatever goes wrong end the cell with one sentence and its code; only a fault of ours shows more."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except CellStopped:
            raise
        except (Exception, KeyboardInterrupt) as error:
            code, sentence = code_and_sentence(error)
            mark = "■" if isinstance(error, KeyboardInterrupt) else "✗"
            raise (CellFailed if code == FAULT else CellStopped)(f"{mark} {sentence} [{code}]") from None

    return wrapper


def say(sentence: str, status: str = "ok", code: str = "") -> None:
    """Show one sentence with its mark, and the code that the README explains it under."""
    display(HTML(sentence_html(sentence, status, code)))


def sentence_html(sentence: str, status: str = "ok", code: str = "") -> str:
    """The sentence with its mark and code; a failure also has a red tint."""
    tint = "background:rgba(207,34,46,.14);border-left:4px solid #cf222e;" if status == "fail" else ""
    return (
        f'<div style="{tint}padding:4px 8px;line-height:1.5;font-size:14px;overflow-wrap:anywhere">'
        f"{mark_html(status)} {escape(sentence)}{code_html(code)}</div>"
    )


def error_html(error: InputError, words: Callable[[str], str] = str) -> str:
    """Bad input inside a panel, where it ends no cell.

    Args:
        words: what the sentence goes through first.
    """
    return sentence_html(words(str(error)), "fail", error.code)


def code_html(code: str) -> str:
    """One of CODES, small, after a sentence; nothing for none."""
    return f' <span style="opacity:.75;font-size:12px;white-space:nowrap">{code}</span>' if code else ""


def mark_html(status: str) -> str:
    """✓ ! or ✗ in a small badge."""
    mark, colour = MARKS[status]
    return (
        f'<span style="display:inline-block;width:1.4em;border-radius:4px;text-align:center;font-weight:bold;'
        f'color:#fff;background:{colour}">{mark}</span>'
    )


def escape(text: str) -> str:
    """Text for use inside HTML, though not in a tag. Jupyter would set what stands between two dollar signs, between
    \\( and \\), or \\begin and \\end as a formula: each dollar and backslash is hidden in an element of its own."""
    return re.sub(r"[$\\]", r"<span>\g<0></span>", html.escape(text))


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


@contextmanager
def warnings_in_the_plot() -> Iterator[None]:
    """While a live plot is shown, it tells in its place what stage 6 warns of."""
    logger = logging.getLogger("newllm_lib.preferences.trainer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def download_html(name: str, content: bytes | str, label: str, kind: str = "text/plain") -> str:
    """A link that looks like a button.

    Args:
        name: of the file.
        kind: its MIME type.
    """
    content = content.encode() if isinstance(content, str) else content
    return (
        f'<a download="{escape(name)}" href="data:{kind};base64,{base64.b64encode(content).decode()}" '
        f'style="display:inline-block;border:1px solid {GRID};border-radius:6px;padding:2px 10px;margin:4px 8px 4px 0;'
        f'font-size:13px;color:inherit;text-decoration:none">↓ {escape(label)}</a>'
    )
