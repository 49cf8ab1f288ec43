"""The table of a sweep, a row for each trial, as whoever watches one reads it: without what trains it."""

import json
from pathlib import Path
from typing import Any

from ..errors import InputError

TRIALS_FILE = "trials.jsonl"


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """The rows of the table: trial, state (running, finished, failed), the settings and, of finished ones, metrics.
    Raises InputError: the table is damaged."""
    path = folder / TRIALS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) | {} for line in lines]  # a line that is no object is damage, too: a TypeError
    except (ValueError, TypeError, RecursionError) as error:
        remedy = "choose another --output_dir. Its trials stay there, each a run of its own"
        raise InputError(
            f"output_dir {str(folder)!r} holds a sweep whose table, {TRIALS_FILE}, is damaged; {remedy}.", "NL-404"
        ) from error
