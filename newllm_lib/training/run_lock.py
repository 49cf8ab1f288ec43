"""A run folder has one owner at a time."""

import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from ..errors import InputError
from .checkpoint import read_json, write_json

LOCK_FILE, OWNER_FILE = ".in-use.lock", ".in-use.json"
WORKERS_END_SECONDS = 10.0  # a data loader's processes outlive a killed owner by five seconds, and hold its lock

logger = logging.getLogger(__name__)


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Own a run folder: no other process writes to it meanwhile. The system takes the lock from a process that dies,
    whatever is left of its files, and a copy of the folder is not locked. What it was writing is removed.

    Raises:
        InputError: another process owns it.
    """
    lock, note = FileLock(folder / LOCK_FILE), folder / OWNER_FILE
    owner = {"process": os.getpid(), "machine": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        lock.acquire(timeout=0 if _is_alive(note) else WORKERS_END_SECONDS)
        write_json(note, owner)
    except Timeout:
        raise InputError(
            f"output_dir {str(folder)!r} is in use by {_owner(note)}; wait for its end, stop it, or choose another "
            "--output_dir.",
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


def _is_alive(note: Path) -> bool:
    owner = read_json(note)
    return isinstance(owner, dict) and isinstance(owner.get("process"), int) and psutil.pid_exists(owner["process"])


def _owner(note: Path) -> str:
    owner = read_json(note)
    if not isinstance(owner, dict):
        return "another process"
    return "process {process} of {machine}, since {since}".format_map({"machine": "?", "since": "?", **owner})
