"""What the disk refuses, in whatever words the libraries below us say it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..data.cache import FULL
from ..errors import InputError

RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors and tokenizers
TORCH_ERROR = re.compile(r"inline_container|PytorchStreamWriter|iostream|irectory .* does not exist|cannot be opened")
TORCH_SAYS = "a file could not be written to its end: the disk is full, or gone"
FULL_SAID = (*map(os.strerror, sorted(FULL)), TORCH_SAYS)


def refusal(error: BaseException) -> str:
    """What the disk has refused; empty if the error is none of the disk's. torch, safetensors and tokenizers raise
    other errors than Python does."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if found := RUST_ERROR.search(str(error)):
        return os.strerror(int(found[1]))
    return TORCH_SAYS if isinstance(error, RuntimeError) and TORCH_ERROR.search(str(error)) else ""


@contextmanager
def saying(problem: str, remedy: str) -> Iterator[None]:
    """Where the disk refuses something, an InputError says `problem`, why, and `remedy`."""
    try:
        yield
    except Exception as error:
        if not (why := refusal(error)):
            raise
        raise InputError(f"{problem} ({why}); {remedy}.", "NL-104" if why in FULL_SAID else "NL-401") from error
