"""What the disk refuses, in whatever words libraries say it, and what is written beside its place first."""

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..data.cache import FULL
from ..errors import InputError

PARTIAL, OLD = ".partial", ".old"
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


def temporary(path: Path, ending: str) -> Path:
    """The hidden name beside `path` under which a copy is written (PARTIAL) or what it replaces waits (OLD)."""
    return path.with_name(f".{path.name}{ending}")


def discard(path: Path) -> None:
    """Remove a file or a folder; of a link the link alone. Google Drive moves what is removed into its bin, where it
    goes on taking room: files are emptied first. Errors are not told: what is left is hidden.
    """
    is_folder = path.is_dir() and not path.is_symlink()
    for file in sorted(path.rglob("*")) if is_folder else [path]:
        try:
            status = file.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:  # the other name of a link keeps its content
                os.truncate(file, 0)
            file.unlink()
        except OSError:
            continue
    shutil.rmtree(path, ignore_errors=True)
