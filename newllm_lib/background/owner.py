"""Who works on a run: the process that has noted itself in the run folder, or that was started for it."""

import time
from pathlib import Path
from typing import Any

import psutil

from ..training.disk import OWNER_FILE, TIME_FORMAT, own_note, read_json, temporary

SLACK_SECONDS = 2.0  # a note and the start of the machine are known to the second


def started_file(folder: Path) -> Path:
    """Where `start` notes what it has started for the run, which has no folder before its data are prepared."""
    return temporary(folder, ".started.json")


def log_file(folder: Path) -> Path:
    """What a run that was started in the background has printed."""
    return folder.with_name(f"{folder.name}.log")


def find_owner(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """(the folder that is worked on: the run's, or that of a part such as a trial; the note of who does). None: nobody
    does. If nobody does on this machine, it is who has noted another one, which alone knows if that is still so."""
    parts = [*sorted(path.parent for path in folder.glob(f"*/{OWNER_FILE}")), folder]
    owners = [(part, note) for part in parts if _is_note(note := read_json(part / OWNER_FILE))]
    starter = [(folder, note) for note in [read_json(started_file(folder))] if _is_note(note)]
    alive = [(part, note) for part, note in owners + starter if is_here(note) and is_alive(note)]
    elsewhere = [(part, note) for part, note in owners if not is_here(note)]
    return next(iter(alive + elsewhere), None)


def _is_note(content: Any) -> bool:
    return isinstance(content, dict) and "process" in content


def is_here(note: dict[str, Any]) -> bool:
    """True if the note is of this machine."""
    return note.get("machine") == own_note()["machine"]


def is_alive(note: dict[str, Any]) -> bool:
    """True if the process of a note of this machine is still there, and is not a later one with its number."""
    try:
        process = psutil.Process(note["process"])
        since = time.mktime(time.strptime(note["since"], TIME_FORMAT))
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < since + SLACK_SECONDS
    except (psutil.Error, LookupError, TypeError, ValueError):  # it is gone, or the note is damaged
        return False
