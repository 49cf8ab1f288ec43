"""The copy of a run folder on Drive: what is copied there while the run trains, and what is brought back when this
machine is another one. Only what verifies is brought back; a name that a copy states is a checkpoint's, or it is
damaged."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from ...training.callbacks import CURVES_FILE, METRICS_FILE
from ...training.checkpoint import (
    RESULTS_FILE,
    SETTINGS_FILE,
    best_beside,
    is_complete,
    numbered_checkpoints,
    read_results,
)
from ...training.disk import OLD, PARTIAL, discard, temporary
from .verified_copy import (
    MANIFEST_FILE,
    NAME,
    DamagedCopy,
    Report,
    bring_folder,
    copy_checked,
    copy_folder,
    holds_copy_of,
    plain_file,
    read_manifest,
    replace_folder,
    tidy,
    update_files,
)

# Only these of an unfinished run are worth keeping beside its checkpoints: the others are still to come.
OF_AN_UNFINISHED_RUN = (SETTINGS_FILE, METRICS_FILE, CURVES_FILE)
FINISHED, NOTHING = math.inf, -1  # how far a run is, in updates


@dataclass
class BroughtBack:
    """The update that a run goes on from (FINISHED, or NOTHING was brought back), and what had to be left out."""

    progress: float = NOTHING
    damaged: list[str] = field(default_factory=list)


def planned_updates(checkpoint: Path) -> int:
    """The updates of a checkpoint's training. Raises DamagedCopy: its state is no trainer's, or names no best one."""
    try:
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
        updates, best = int(state["max_steps"]), state["best_model_checkpoint"]
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise DamagedCopy(f"{TRAINER_STATE_NAME} is not what a trainer writes") from error
    if best is not None and best_beside(checkpoint) is None:
        raise DamagedCopy(f"{TRAINER_STATE_NAME} names no checkpoint as the best")
    return updates


def progress_here(folder: Path) -> float:
    """How far the run in `folder` is, by its newest complete checkpoint."""
    if read_results(folder) is not None:
        return FINISHED
    return next((step for step, path in reversed(numbered_checkpoints(folder)) if is_complete(path)), NOTHING)


def progress_of_copy(copy: Path) -> float:
    """How far the copy of a run says that it is; what it says has yet to be verified."""
    if RESULTS_FILE in read_manifest(copy).files:
        return FINISHED
    checkpoints = reversed(numbered_checkpoints(copy))
    return next((step for step, path in checkpoints if (path / MANIFEST_FILE).is_file()), NOTHING)


def copy_checkpoints(
    run: Path, copy: Path, checkpoints: Sequence[Path], best: str | None, report: Report = lambda size: None
) -> None:
    """Bring the copy of a run up to the newest of complete `checkpoints`, which is the last; the best one is among
    them, for without it the run cannot end as it would. The best and the last two stay. Raises OSError: nothing was
    lost."""
    copy.mkdir(parents=True, exist_ok=True)
    tidy(copy)
    update_files(run, copy, [name for name in OF_AN_UNFINISHED_RUN if (run / name).is_file()])
    for checkpoint in checkpoints:
        if not holds_copy_of(checkpoint, copy / checkpoint.name):
            copy_folder(checkpoint, copy / checkpoint.name, report)
    newest = _step(checkpoints[-1])
    # Those beyond it are of a session that came further: they are left alone until they are passed again.
    before = [path for step, path in numbered_checkpoints(copy) if step < newest]
    for path in before[:-1]:
        if path.name != best:
            os.rename(path, temporary(path, OLD))
            discard(temporary(path, OLD))


def bring_back(copy: Path, run: Path, beyond: float = NOTHING) -> BroughtBack:
    """Bring a run back from its copy, in place of what is in `run`, if it is further than update `beyond`: finished, or
    with the newest checkpoint that verifies and the best one. Raises OSError: a disk is full or gone; `run` is as it
    was."""
    result = BroughtBack()
    partial = temporary(run, PARTIAL)
    discard(partial)
    try:
        is_finished = _bring_finished(copy, partial, result)
        result.progress = FINISHED if is_finished else _bring_unfinished(copy, partial, beyond, result)
        if result.progress > beyond:
            replace_folder(partial, run)
    finally:
        discard(partial)
    return result


def _bring_finished(copy: Path, partial: Path, result: BroughtBack) -> bool:
    if RESULTS_FILE not in read_manifest(copy).files:
        return False
    try:
        bring_folder(copy, partial)
        if read_results(partial) is None:
            raise DamagedCopy("its files are not those of a finished run")
        return True
    except DamagedCopy as damage:
        result.damaged.append(str(damage))
        discard(partial)
        return False


def _bring_unfinished(copy: Path, partial: Path, beyond: float, result: BroughtBack) -> float:
    """The update that was brought back, or NOTHING."""
    states = read_manifest(copy).files.get(SETTINGS_FILE)
    if states is None:
        return NOTHING
    try:
        copy_checked(plain_file(copy, SETTINGS_FILE), partial / SETTINGS_FILE, states)
    except DamagedCopy as damage:
        result.damaged.append(str(damage))
        return NOTHING
    candidates = [path for step, path in reversed(numbered_checkpoints(copy)) if step > beyond]
    # Without its best checkpoint a run goes on, but may end with other weights: that is the second choice.
    for needs_best in (True, False):
        for path in candidates:
            if not _bring_checkpoint(path, partial, result):
                continue
            best = best_beside(partial / path.name)
            is_there = best is None or best.is_dir() or _bring_checkpoint(copy / best.name, partial, result)
            if is_there or not needs_best:
                os.utime(partial / path.name)  # transformers takes the checkpoint that was changed last for the newest
                return _step(path)
            discard(partial / path.name)
    return NOTHING


def _bring_checkpoint(path: Path, partial: Path, result: BroughtBack) -> bool:
    if any(damage.startswith(f"{path.name}:") for damage in result.damaged):
        return False
    try:
        bring_folder(path, partial / path.name)
        planned_updates(partial / path.name)  # nothing but its sense is looked at
        if is_complete(partial / path.name):
            return True
        problem = "its files are not those of a complete checkpoint"
    except DamagedCopy as damage:
        problem = str(damage)
    result.damaged.append(f"{path.name}: {problem}")
    discard(partial / path.name)
    return False


def _step(path: Path) -> int:
    return int(path.name.rsplit("-", 1)[1])


def bring_missing_files(copy: Path, folder: Path) -> list[str]:
    """Bring back single files that are not here; returns those that are damaged. Raises OSError: a disk fails."""
    damaged = []
    for name, states in read_manifest(copy).files.items():
        # Hidden files are never copied, and those in folders below come with these.
        if name.startswith(".") or not NAME.fullmatch(name) or (folder / name).exists():
            continue
        partial = temporary(folder / name, PARTIAL)
        try:
            copy_checked(plain_file(copy, name), partial, states)
            os.replace(partial, folder / name)
        except DamagedCopy:
            damaged.append(name)
            discard(partial)
    return damaged


def size_of_copy(copy: Path) -> int:
    """About how many bytes `bring_back` would copy."""
    manifest = read_manifest(copy)
    if RESULTS_FILE in manifest.files:
        return manifest.total_bytes
    newest = next((path for _, path in reversed(numbered_checkpoints(copy))), copy)
    return 2 * read_manifest(newest).total_bytes  # with the best one
