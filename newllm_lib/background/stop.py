"""Ask the process that works on a run to save it and to end."""

import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil

from ..errors import InputError
from .owner import find_owner, is_alive, is_here
from .status import one_line, run_folder, run_status

POLL_SECONDS, TELL_SECONDS, LONGEST_SECONDS = 0.2, 8.0, 600.0


def stop(name: str, longest: float = LONGEST_SECONDS) -> Iterator[str]:
    """End the run after its current update, saved, and wait for it. Yields what happens, as sentences. Raises
    InputError: it does not run, runs on another machine, or does not end."""
    folder = run_folder(name)
    owner = find_owner(folder)
    if owner is None:
        state = one_line(run_status(folder))
        raise InputError(f"run {name!r} does not run, so that there is nothing to stop ({state}).")
    note = owner[1]
    who = f"process {note['process']} of {note.get('machine', '?')}, since {note.get('since', '?')}"
    if not is_here(note):
        raise InputError(f"run {name!r} belongs to {who}; give this command on that machine.")
    try:
        process = psutil.Process(note["process"])
        process.send_signal(signal_for(process, note))
    except psutil.AccessDenied:
        raise InputError(f"run {name!r} belongs to {who}, of another user, who alone can stop it.") from None
    except psutil.NoSuchProcess:
        yield "It has come to its end this moment."
    yield f"Stopping {who}: it ends its update and saves."
    began = told = time.monotonic()
    while (owner := find_owner(folder)) and owner[1]["process"] == note["process"] and is_alive(note):
        time.sleep(POLL_SECONDS)
        if time.monotonic() > told + TELL_SECONDS:
            told = time.monotonic()
            yield f"Still saving, for {told - began:.0f} seconds."
        if time.monotonic() > began + longest:
            remedy = f"kill -9 {note['process']} ends it at once, and what was saved is kept"
            raise InputError(f"run {name!r} has not ended within {longest:.0f} seconds; {remedy}.")
    yield f"{one_line(run_status(folder))}."


def signal_for(process: psutil.Process, note: dict[str, Any]) -> signal.Signals:
    """SIGTERM, which a training takes any number of times. For a notebook's kernel between trainings that of its stop
    button: it has no training to save, and SIGTERM would end the session."""
    is_training = note.get("update", 0) < note.get("updates", 0)
    is_kernel = any("ipykernel" in word for word in process.cmdline())
    return signal.SIGINT if is_kernel and not is_training else signal.SIGTERM
