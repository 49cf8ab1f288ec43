"""What a cell says: one sentence of what happened, and errors as one sentence in place of a traceback."""

import errno
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from IPython.display import HTML, display

from ...errors import CODES, FULL, InputError
from ...progress import working
from .languages import language, translate
from .pieces import sentence_html

FAULT = "NL-901"
# What a mounted Drive that has gone away answers.
GONE = {errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ECONNABORTED}
NUMBERS = {**dict.fromkeys(FULL, "NL-104"), **dict.fromkeys(GONE, "NL-202")}
# Words in messages of libraries that raise their own types for what an OSError with a number would say.
SAID = {
    "NL-103": ("out of memory", "can't allocate memory", "cannot allocate memory"),
    "NL-104": ("no space left on device", "os error 28", "disk quota exceeded"),
    "NL-302": ("gated repo", "401 client error", "403 client error"),
    "NL-301": ("couldn't connect to", "offline mode is enabled"),
}
OF_THE_HUB = {"HfHubHTTPError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}
HTTP_LIBRARIES = {"requests", "httpx", "httpcore", "urllib3", "aiohttp"}


class CellStopped(Exception):
    """Ends a cell, and with it Run all, by one sentence. IPython asks an exception how it wants to be shown."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class CellFailed(CellStopped):
    """A fault of ours: the traceback, and below it the sentence, where it is read first."""

    def _render_traceback_(self) -> list[str]:
        return [*traceback.format_exception(self.__context__), str(self)]


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Let whatever goes wrong inside end the cell with one sentence and its code; only a fault of ours shows more. A
    cell that takes long shows that it works."""
    try:
        with working():
            yield
    except CellStopped:
        raise
    except (Exception, KeyboardInterrupt) as error:
        code, sentence = code_and_sentence(error)
        mark = "■" if isinstance(error, KeyboardInterrupt) else "✗"
        raise (CellFailed if code == FAULT else CellStopped)(f"{mark} {explained(code, sentence)} [{code}]") from None


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


def explained(code: str, sentence: str) -> str:
    """The sentence in the session's language; one that is there in English alone is followed by what its code means."""
    told = translate(sentence)
    return told if told != sentence or language() == "en" else f"{sentence} {translate(' '.join(CODES[code]))}"


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, the newest first."""
    seen = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _code(error: BaseException) -> str:
    words, kind, library = str(error).lower(), type(error).__name__, type(error).__module__.split(".")[0]
    if isinstance(error, InputError):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return "NL-501"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "NL-103"
    if isinstance(error, OSError) and error.errno in NUMBERS:
        return NUMBERS[error.errno]
    if said := next((code for code, phrases in SAID.items() if any(phrase in words for phrase in phrases)), None):
        return said
    if kind == "GatedRepoError":
        return "NL-302"
    is_of_hub = library in HTTP_LIBRARIES or kind in OF_THE_HUB or isinstance(error, ConnectionError)
    return "NL-301" if is_of_hub else FAULT


def say(sentence: str, status: str = "ok", code: str = "") -> None:
    """Show `sentence_html`; the README explains the code."""
    show(sentence_html(sentence, status, code))


def show(content: str) -> None:
    """Show HTML below the cell."""
    display(HTML(content))


def error_html(error: Exception, words: Callable[[str], str] = str) -> str:
    """An error inside a panel, where it ends no cell. `words`: what the sentence goes through first."""
    code, sentence = code_and_sentence(error)
    return sentence_html(explained(code, words(sentence)), "fail", code)
