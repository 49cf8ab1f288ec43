"""Which code and which sentence a failure gets that ends a cell, whoever has raised it."""

import errno
from collections.abc import Iterator

import torch

from ...data.cache import FULL
from ...errors import CODES, InputError

FAULT = "NL-901"
# Words in messages of libraries that raise their own types for what an OSError with a number would say.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
DISK_FULL = ("no space left on device", "os error 28", "disk quota exceeded")
GATED = ("gated repo", "401 client error", "403 client error")
NO_HUB = ("couldn't connect to", "offline mode is enabled")
# What a mounted Drive that has gone away answers.
GONE = {errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ECONNABORTED}
HTTP_LIBRARIES = {"requests", "httpx", "httpcore", "urllib3", "aiohttp"}


def code_and_sentence(error: BaseException) -> tuple[str, str]:
    """(one of CODES, what to show): the library's own sentence where it has one, else what the code stands for."""
    if isinstance(error, InputError):
        return error.code, str(error)
    code = next((code for link in causes(error) if (code := _code(link)) != FAULT), FAULT)
    happened, remedy = CODES[code]
    if code == FAULT:
        happened = f"{happened[:-1]} ({type(error).__name__}: {first_line(error)})."
    return code, f"{happened} {remedy}"


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, the newest first."""
    seen = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def first_line(error: BaseException, most_characters: int = 200) -> str:
    """The beginning of its message."""
    line = next(iter(str(error).strip().splitlines()), "")
    return line if len(line) <= most_characters else line[: most_characters - 1] + "…"


def _code(error: BaseException) -> str:
    words = str(error).lower()
    kind = type(error).__name__
    if isinstance(error, InputError):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return "NL-501"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in words for part in OUT_OF_MEMORY):
        return "NL-103"
    number = error.errno if isinstance(error, OSError) else None
    if number in FULL or any(part in words for part in DISK_FULL):
        return "NL-104"
    if number in GONE:
        return "NL-202"
    if kind == "GatedRepoError" or any(part in words for part in GATED):
        return "NL-302"
    library = type(error).__module__.split(".")[0]
    is_of_hub = library in HTTP_LIBRARIES or kind in (
        "HfHubHTTPError",
        "OfflineModeIsEnabled",
        "LocalEntryNotFoundError",
    )
    if is_of_hub or isinstance(error, ConnectionError) or any(part in words for part in NO_HUB):
        return "NL-301"
    return FAULT
