"""What a cell says: one sentence of what happened, small tables, and errors of one sentence in place of a traceback.

Colours are chosen to be read on a light and on a dark page: text keeps the page's colour, tints are translucent.
"""

import base64
import errno
import html
import io
import logging
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ipywidgets as widgets
import torch
from IPython.display import HTML, display
from matplotlib.figure import Figure

from ...errors import CODES, FULL, InputError
from ...quiet import quiet_libraries

# status -> mark, colour of its badge (white text on it is readable on any page)
MARKS = {"ok": ("✓", "#1a7f37"), "note": ("!", "#9a6700"), "fail": ("✗", "#cf222e")}
GRID = "rgba(128,128,128,.35)"
FAINT = "rgba(128,128,128,.12)"
AS_WRITTEN = "white-space:pre-wrap;overflow-wrap:anywhere"  # line breaks are kept, long words broken

FAULT = "NL-901"
# Words in messages of libraries that raise their own types for what an OSError with a number would say.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
DISK_FULL = ("no space left on device", "os error 28", "disk quota exceeded")
GATED = ("gated repo", "401 client error", "403 client error")
NO_HUB = ("couldn't connect to", "offline mode is enabled")
OF_THE_HUB = ("HfHubHTTPError", "OfflineModeIsEnabled", "LocalEntryNotFoundError")
HTTP_LIBRARIES = {"requests", "httpx", "httpcore", "urllib3", "aiohttp"}
# What a mounted Drive that has gone away answers.
GONE = {errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ECONNABORTED}

# The knob at the left end of a slider is wider than the rail: without the margin half of it would be cut off.
SLIDER = {"width": "auto", "min_width": "0", "margin": "2px 2px 2px 8px"}

Result = TypeVar("Result")


class CellStopped(Exception):
    """Ends a cell, and with it Run all, by one sentence. IPython asks an exception how it wants to be shown."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class CellFailed(CellStopped):
    """A fault of ours: the traceback, and below it the sentence, where it is read first."""

    def _render_traceback_(self) -> list[str]:
        return [*traceback.format_exception(self.__context__), str(self)]


@contextmanager
def one_sentence() -> Iterator[None]:
    """Let whatever goes wrong inside end the cell with one sentence and its code; only a fault of ours shows more."""
    try:
        yield
    except CellStopped:
        raise
    except (Exception, KeyboardInterrupt) as error:
        code, sentence = code_and_sentence(error)
        mark = "■" if isinstance(error, KeyboardInterrupt) else "✗"
        raise (CellFailed if code == FAULT else CellStopped)(f"{mark} {sentence} [{code}]") from None


def in_one_sentence(function: Callable[..., Result]) -> Callable[..., Result]:
    """The function of a cell, inside `one_sentence`."""
    return one_sentence()(function)


def code_and_sentence(error: BaseException) -> tuple[str, str]:
    """(one of CODES, what to show): the library's own sentence where it has one, else what the code stands for."""
    if isinstance(error, InputError):
        return error.code, str(error)
    code = next((code for link in causes(error) if (code := _code(link)) != FAULT), FAULT)
    happened, remedy = CODES[code]
    if code == FAULT:
        line = next(iter(str(error).strip().splitlines()), "")
        line = line if len(line) <= 200 else line[:199] + "…"
        happened = f"{happened[:-1]} ({type(error).__name__}: {line})."
    return code, f"{happened} {remedy}"


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, the newest first."""
    seen = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _code(error: BaseException) -> str:
    words, kind = str(error).lower(), type(error).__name__

    def says(phrases: Sequence[str]) -> bool:
        return any(phrase in words for phrase in phrases)

    if isinstance(error, InputError):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return "NL-501"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or says(OUT_OF_MEMORY):
        return "NL-103"
    number = error.errno if isinstance(error, OSError) else None
    if number in FULL or says(DISK_FULL):
        return "NL-104"
    if number in GONE:
        return "NL-202"
    if kind == "GatedRepoError" or says(GATED):
        return "NL-302"
    is_of_hub = type(error).__module__.split(".")[0] in HTTP_LIBRARIES or kind in OF_THE_HUB
    return "NL-301" if is_of_hub or isinstance(error, ConnectionError) or says(NO_HUB) else FAULT


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


def error_html(error: Exception, words: Callable[[str], str] = str) -> str:
    """An error inside a panel, where it ends no cell. `words`: what the sentence goes through first."""
    code, sentence = code_and_sentence(error)
    return sentence_html(words(sentence), "fail", code)


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


def small_html(content: str, style: str = "") -> str:
    """HTML in a smaller, paler type, on lines of its own."""
    return f'<div style="opacity:.75;font-size:12px;{style}">{content}</div>'


def beside_html(cards: Sequence[str], gap: str = "8px", align: str = "stretch") -> str:
    """Elements side by side, as many as there is room for."""
    style = f"display:flex;flex-wrap:wrap;gap:{gap};align-items:{align};margin:6px 0"
    return f'<div style="{style}">{"".join(cards)}</div>'


def escape(text: str) -> str:
    """Text for use inside HTML, though not in a tag. Jupyter would set what stands between two dollar signs, between
    \\( and \\), or \\begin and \\end as a formula: each dollar and backslash is hidden in an element of its own."""
    return re.sub(r"[$\\]", r"<span>\g<0></span>", html.escape(text))


def shortened(text: str, most_characters: int) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most_characters else text[:most_characters].rstrip() + " …"


def table_html(rows: Sequence[Sequence[str]], header: bool = False, numbers: bool = False) -> str:
    """Rows of HTML fragments as a table that scrolls sideways where the page is narrow; if `header`, the first row is
    one; if `numbers`, all columns but the first are set to the right."""
    lines = []
    for number, row in enumerate(rows):
        tag = "th" if header and number == 0 else "td"
        cells = []
        for column, cell in enumerate(row):
            align = "right" if numbers and column else "left"
            style = f"text-align:{align};vertical-align:top;padding:4px 12px 4px 4px;border-bottom:1px solid {GRID}"
            cells.append(f'<{tag} style="{style}">{cell}</{tag}>')
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


def figure_html(figure: Figure, description: str, file: Path | None = None, dpi: int = 110) -> str:
    """The figure as a picture, which is also kept in `file`."""
    png = png_of(figure, dpi)
    if file is not None:
        file.write_bytes(png)
    return picture_html(png, description)


def png_of(figure: Figure, dpi: int, **options: Any) -> bytes:
    """The figure as a PNG, with `options` of matplotlib's savefig."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, **options)
    return buffer.getvalue()


def html_widget(content: str = "") -> widgets.HTML:
    """HTML as wide as there is room."""
    return widgets.HTML(content, layout=widgets.Layout(width="auto"))


def wrapping_row(*parts: widgets.Widget, **layout: str) -> widgets.HBox:
    """Widgets beside each other, on several lines where the page is narrow."""
    layout = {"flex_flow": "row wrap", "align_items": "center", "width": "100%", **layout}
    return widgets.HBox(parts, layout=widgets.Layout(**layout))


def button_box(description: str, press: Callable[[], str], wait: str = "") -> widgets.VBox:
    """A button, which Run all does not press, and below it the HTML that `press` returns. `wait`: HTML to show
    meanwhile."""
    button = widgets.Button(description=description, layout=widgets.Layout(width="180px"))
    line = html_widget()

    def pressed(_) -> None:
        line.value = wait
        line.value = press()

    button.on_click(pressed)
    return widgets.VBox([button, line], layout=widgets.Layout(width="100%"))


def quiet_notebook() -> None:
    """The notebook shows progress itself: from the libraries below only errors, from ours only warnings."""
    quiet_libraries()
    logging.getLogger("newllm_lib").setLevel(logging.WARNING)


@contextmanager
def warnings_in_the_plot() -> Iterator[None]:
    """While a live plot is shown, it shows in its place what stage 6 warns of."""
    logger = logging.getLogger("newllm_lib.preferences.trainer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def download_html(name: str, content: str, label: str) -> str:
    """A link to a text file of that name, which looks like a button."""
    return (
        f'<a download="{escape(name)}" href="data:text/plain;base64,{base64.b64encode(content.encode()).decode()}" '
        f'style="display:inline-block;border:1px solid {GRID};border-radius:6px;padding:2px 10px;margin:4px 8px 4px 0;'
        f'font-size:13px;color:inherit;text-decoration:none">↓ {escape(label)}</a>'
    )
