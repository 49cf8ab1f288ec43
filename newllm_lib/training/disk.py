"""What the disk refuses, in whatever words libraries say it; files that are written whole or not at all; the one owner
that a run folder has at a time; and how much it holds."""

import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from ..errors import FULL, InputError

PARTIAL, OLD = ".partial", ".old"
RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors and tokenizers
TORCH_ERROR = re.compile(r"inline_container|PytorchStreamWriter|iostream|irectory .* does not exist|cannot be opened")
TORCH_SAYS = "a file could not be written to its end: the disk is full, or gone"
FULL_SAID = (*map(os.strerror, sorted(FULL)), TORCH_SAYS)
LOCK_FILE, OWNER_FILE = ".in-use.lock", ".in-use.json"
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
WORKERS_END_SECONDS = 10.0  # a data loader's processes outlive a killed owner by five seconds, and hold its lock
KB, MB, GB = 2**10, 2**20, 2**30  # as torch, nvidia-smi and Colab count

logger = logging.getLogger(__name__)


def size(count: float) -> str:
    """Bytes as people read them: "1.5 GB"."""
    unit, name = next((pair for pair in ((GB, "GB"), (MB, "MB")) if count >= pair[0]), (KB, "kB"))
    return f"{count / unit:,.1f} {name}"


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
    """The hidden name beside `path` under which a file is written (PARTIAL) or what it replaces waits (OLD)."""
    return path.with_name(f".{path.name}{ending}")


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all: temporary name, fsync, rename."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes) -> None:
    unfinished = temporary(path, f".{os.getpid()}.tmp")
    with unfinished.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, path)


@contextmanager
def unwritten_folder(output: str | Path) -> Iterator[tuple[Path, Path]]:
    """(a hidden folder to write into, `output`, whose name it has once all is written: whole or not there). Raises
    InputError: `output` exists, or the disk refuses it."""
    target, refused = Path(os.path.expanduser(output)), f"output {str(output)!r} cannot be written to"
    partial = temporary(target, PARTIAL)
    try:
        with saying(refused, "choose another --output"):
            if target.exists():
                raise InputError(f"output {str(output)!r} exists; choose another --output.")
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            partial.mkdir(parents=True)
            yield partial, target
            os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_json(path: Path) -> Any:
    """What the file says, None if there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def own_note() -> dict[str, Any]:
    """How this process notes that it owns a run folder."""
    return {"process": os.getpid(), "machine": socket.gethostname(), "since": time.strftime(TIME_FORMAT)}


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Own a run folder: no other process writes to it meanwhile. The system takes the lock from a process that dies,
    whatever is left of its files, and a copy of the folder is not locked. What it was writing is removed. Raises
    InputError: another process owns it."""
    lock, note = FileLock(folder / LOCK_FILE), folder / OWNER_FILE
    known = read_json(note)
    owner = {"process": None, "machine": "?", "since": "?", **(known if isinstance(known, dict) else {})}
    is_alive = isinstance(owner["process"], int) and psutil.pid_exists(owner["process"])
    try:
        lock.acquire(timeout=0 if is_alive else WORKERS_END_SECONDS)
        write_json(note, own_note())
    except Timeout:
        named = "process {process} of {machine}, since {since}".format_map(owner)
        raise InputError(
            f"output_dir {str(folder)!r} is in use by {named if owner['process'] else 'another process'}; wait for its "
            "end, stop it, or choose another --output_dir.",
            "NL-404",
        ) from None
    except (OSError, NotImplementedError) as error:  # a disk without locks, or a full one
        logger.warning("%s cannot be locked (%s): let no second command work on it.", folder, error)
    try:
        remove_unfinished(folder)
        yield
    finally:
        with suppress(OSError):  # the folder may be gone, or have become read-only
            for path in (note, folder / LOCK_FILE):
                path.unlink(missing_ok=True)
        lock.release()


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that is no more has not written to its end: `.NAME.PROCESS.tmp` of ours, and `.tmpXXXXXX`
    of safetensors."""
    for path in [*folder.glob(".*.tmp"), *folder.glob(".tmp*")]:
        process = path.suffixes[-2][1:] if len(path.suffixes) > 1 else ""
        if not (process.isdecimal() and psutil.pid_exists(int(process))):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
