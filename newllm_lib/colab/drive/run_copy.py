"""Copies of runs on disks that may fill up or vanish at any moment, such as Drive: what is copied there while a run
trains, and what is brought back when this machine is another one. Only what verifies is brought back.

A copy is written under a temporary name, read back, and renamed into place; a manifest in its folder states size and
SHA-256 of every file. Whatever goes wrong, what was there before stays. A copy may be anyone's: the names that it
states are matched before they are used, and links are never followed.
"""

import functools
import hashlib
import json
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.files import content_hash
from ...training import checkpoint as run_folder
from ...training.checkpoint import CURVES_FILE, METRICS_FILE, TRAINER_STATE_NAME
from ...training.disk import OLD, PARTIAL, temporary, write_json

MANIFEST_FILE = "manifest.json"
CHUNK_BYTES = 2**22
NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0]{1,200}")  # of a file in its folder, and of no other
STATE = {"bytes": int, "sha256": str, "modified": int}  # of a file; nanoseconds since 1970
LARGEST = 2**62  # bytes, or nanoseconds

# What reading a file as a manifest may raise that is none.
NO_MANIFEST = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)

Report = Callable[[int], None]  # takes the bytes of every chunk
FINISHED, NOTHING = math.inf, -1  # how far a run is, in updates


class DamagedCopy(OSError):
    """What is read is not what was written, or not what the manifest states."""


def read_manifest(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """File name -> the states (of STATE) that it may be in, the newest first, as the folder's manifest states them; {}
    for a damaged one. Raises OSError: it cannot be read."""
    files = {}
    try:
        for name, states in json.loads((folder / MANIFEST_FILE).read_bytes())["files"].items():
            found = [{key: kind(state[key]) for key, kind in STATE.items()} for state in states]
            found = [state for state in found if max(state["bytes"], abs(state["modified"])) < LARGEST]
            if found and all(NAME.fullmatch(part) for part in name.split("/")):
                files[name] = found
    except (FileNotFoundError, NotADirectoryError, *NO_MANIFEST):
        return {}
    return files


def write_manifest(folder: Path, files: dict[str, list[dict[str, Any]]]) -> None:
    write_json(folder / MANIFEST_FILE, {"files": files})


def copy_checked(
    source: Path, target: Path, states: Sequence[dict[str, Any]] | None = None, report: Report = lambda size: None
) -> dict[str, Any]:
    """Copy one file and read the copy back; returns its state, with the time of `source`. Raises DamagedCopy: `source`
    is in none of the `states` of a manifest, or the copy reads otherwise; OSError: the disk is full, gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    discard(target)  # it may be a link
    digest, modified = hashlib.sha256(), source.stat().st_mtime_ns
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
            report(len(chunk))
        writer.flush()
        os.fsync(writer.fileno())
        written = {"bytes": writer.tell(), "sha256": digest.hexdigest(), "modified": modified}
    if states is not None:
        written = next((state for state in states if state["sha256"] == written["sha256"]), None)
        if written is None:
            raise DamagedCopy(f"{source.name} is not what was saved")
        os.utime(target, ns=(written["modified"], written["modified"]))
    if content_hash(target) != written["sha256"]:
        raise DamagedCopy(f"{target.name} does not read as it was written")
    return written


def copy_folder(source: Path, target: Path, report: Report = lambda size: None) -> None:
    """Copy a folder that is not being written; `target` is replaced as a whole, or (OSError) not at all."""
    partial = temporary(target, PARTIAL)
    discard(partial)
    try:
        files = {name: [copy_checked(source / name, partial / name, report=report)] for name in names_in(source)}
        write_manifest(partial, files)
        replace_folder(partial, target)
    except OSError:
        discard(partial)  # a full disk needs the room
        raise


def bring_folder(source: Path, target: Path, names: Sequence[str] = ()) -> None:
    """Copy the files that a folder of copies states, or those of these `names`, to `target`. Raises DamagedCopy,
    OSError: as `copy_checked`."""
    stated = read_manifest(source)
    if not stated:
        raise DamagedCopy("it was not copied to its end")
    for name in names or stated:
        copy_checked(plain_file(source, name), target / name, stated[name])


def plain_file(folder: Path, name: str) -> Path:
    """The path of a file of a copy. Raises DamagedCopy: there is none, or only a link that leads elsewhere."""
    path = folder / name
    if not path.is_file() or path.resolve() != folder.resolve() / name:
        raise DamagedCopy(f"{name} is missing")
    return path


def update_files(source: Path, target: Path, names: Sequence[str]) -> None:
    """Bring files of `target` up to date, in the order of `names`. While they are renamed into place, the manifest
    knows what each was and what it becomes: it is right at any moment. Raises OSError: as `copy_checked`."""
    partials = {name: temporary(target / name, PARTIAL) for name in changed_files(source, target, names)}
    if not partials:
        return
    stated = read_manifest(target)
    tidy(target)
    try:
        copies = {name: copy_checked(source / name, partial) for name, partial in partials.items()}
        write_manifest(target, stated | {name: [copy, *stated.get(name, [])] for name, copy in copies.items()})
    except OSError:
        for partial in partials.values():
            discard(partial)
        raise
    for name, partial in partials.items():
        os.replace(partial, target / name)
    write_manifest(target, stated | {name: [copy] for name, copy in copies.items()})


def changed_files(source: Path, target: Path, names: Sequence[str]) -> list[str]:
    """Those that `target` has no copy of, by their sizes and times. What may be in several states counts as changed."""
    stated, changed = read_manifest(target), []
    for name in names:
        now, copy = (source / name).stat(), target / name
        states = [(state["bytes"], state["modified"]) for state in stated.get(name, ())]
        is_whole = copy.is_file() and copy.stat().st_size == now.st_size
        if not is_whole or states != [(now.st_size, now.st_mtime_ns)]:
            changed.append(name)
    return changed


def replace_folder(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`; what was there gives way only then."""
    old = temporary(target, OLD)
    if os.path.lexists(target):
        discard(old)
        os.rename(target, old)
    os.rename(partial, target)
    discard(old)


def tidy(folder: Path, untouched_seconds: float = 0.0) -> None:
    """Remove what a copy that was cut off has left in `folder`, and put back what had just given way to it. What was
    changed in the last `untouched_seconds` is left alone: another session may be at work on it."""
    for path in sorted(folder.glob(".*")):
        is_left = path.name.endswith((OLD, PARTIAL)) or path.name.startswith(f".{MANIFEST_FILE}.")
        if not is_left or time.time() - path.lstat().st_mtime < untouched_seconds:
            continue
        target = folder / path.name[1 : -len(OLD)]
        if path.name.endswith(OLD) and not os.path.lexists(target):
            os.rename(path, target)
        discard(path)


def names_in(folder: Path) -> list[str]:
    """The names of all files in and below a folder, but for manifests, in an order that does not change."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST_FILE)
    return [path.relative_to(folder).as_posix() for path in files]


def bytes_in(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in names_in(folder))


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
    if best is not None and run_folder.best_beside(checkpoint) is None:
        raise DamagedCopy(f"{TRAINER_STATE_NAME} names no checkpoint as the best")
    return updates


def progress_here(folder: Path) -> float:
    """How far the run in `folder` is, by its newest complete checkpoint."""
    if run_folder.read_results(folder) is not None:
        return FINISHED
    newest = run_folder.newest_checkpoint(folder)
    return NOTHING if newest is None else int(newest.name.rpartition("-")[2])


def progress_of_copy(copy: Path) -> float:
    """How far the copy of a run says that it is; what it says has yet to be verified."""
    steps = [step for step, path in run_folder.numbered_checkpoints(copy) if (path / MANIFEST_FILE).is_file()]
    return FINISHED if run_folder.RESULTS_FILE in read_manifest(copy) else max(steps, default=NOTHING)


def with_best(checkpoint: Path) -> list[Path]:
    """The checkpoint, and before it the best one, if there is another: without it the run cannot end as it would."""
    best = run_folder.best_beside(checkpoint)
    return [best, checkpoint] if best not in (None, checkpoint) and best.is_dir() else [checkpoint]


def copy_checkpoint(run: Path, copy: Path, checkpoint: Path, report: Report = lambda size: None) -> None:
    """Bring the copy of a run up to a complete checkpoint and the best one beside it. The best and the last two stay
    there. Raises OSError: nothing was lost."""
    tidy(copy)
    names = (run_folder.SETTINGS_FILE, METRICS_FILE, CURVES_FILE)  # the other files of a run are still to come
    update_files(run, copy, [name for name in names if (run / name).is_file()])
    for path in with_best(checkpoint):
        if changed_files(path, copy / path.name, names_in(path)):
            copy_folder(path, copy / path.name, report)
    best, there = run_folder.best_beside(checkpoint), [path for _, path in run_folder.numbered_checkpoints(copy)]
    # Those beyond it are of a session that came further: they are left alone until they are passed again.
    for path in there[: max(there.index(copy / checkpoint.name) - 1, 0)]:
        if best is None or path.name != best.name:
            discard(path)


def bring_back(copy: Path, run: Path, beyond: float = NOTHING) -> BroughtBack:
    """Bring a run back from its copy if that is further than update `beyond`: finished, or with the newest checkpoint
    that verifies and the best one. Raises OSError: a disk is full or gone; what was in `run` is as it was."""
    result, partial, stated = BroughtBack(), temporary(run, PARTIAL), read_manifest(copy)
    discard(partial)
    try:
        if run_folder.RESULTS_FILE in stated and _came(copy, partial, result):
            result.progress = FINISHED
        elif run_folder.SETTINGS_FILE in stated and _came(copy, partial, result, [run_folder.SETTINGS_FILE]):
            result.progress = _bring_checkpoints(copy, partial, beyond, result)
        if result.progress > beyond:
            replace_folder(partial, run)
    finally:
        discard(partial)
    return result


def _came(source: Path, target: Path, result: BroughtBack, names: Sequence[str] = ()) -> bool:
    """Bring a finished run, a checkpoint, or the files of these `names`, if they verify and make sense; else what is
    damaged is noted, and nothing of it stays."""
    is_checkpoint = run_folder.CHECKPOINT_NAME.fullmatch(target.name)
    try:
        bring_folder(source, target, names)
        if is_checkpoint:
            planned_updates(target)  # its state is a trainer's, or damaged
            if not run_folder.is_complete(target):
                raise DamagedCopy("its files are not those of a complete checkpoint")
        elif not names and run_folder.read_results(target) is None:
            raise DamagedCopy("its files are not those of a finished run")
        return True
    except DamagedCopy as damage:
        result.damaged.append(f"{source.name}: {damage}" if is_checkpoint else str(damage))
        discard(target)
        return False


def _bring_checkpoints(copy: Path, partial: Path, beyond: float, result: BroughtBack) -> float:
    """The update that was brought back, or NOTHING."""
    came = functools.cache(lambda name: _came(copy / name, partial / name, result))

    def best_came(name: str) -> bool:
        best = run_folder.best_beside(partial / name)
        return best is None or came(best.name)

    steps = {path.name: step for step, path in reversed(run_folder.numbered_checkpoints(copy)) if step > beyond}
    # Without its best checkpoint a run goes on, but may end with other weights: that is the second choice.
    chosen = next((name for name in steps if came(name) and best_came(name)), None) or next(filter(came, steps), None)
    if chosen is None:
        return NOTHING
    needed = with_best(partial / chosen)
    for _, path in run_folder.numbered_checkpoints(partial):
        if path not in needed:
            discard(path)
    os.utime(partial / chosen)  # transformers takes the checkpoint that was changed last for the newest
    return steps[chosen]


def bring_missing_files(copy: Path, folder: Path) -> list[str]:
    """Bring back single files that are not here; returns those that are damaged. Raises OSError: a disk fails."""
    damaged = []
    for name, states in read_manifest(copy).items():
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


def discard(path: Path) -> None:
    """Remove a file or a folder; of a link the link alone. Google Drive moves what is removed into its bin, where it
    goes on taking room: files are emptied first. An error is no matter: what is left is hidden."""
    for file in sorted(path.rglob("*")) if path.is_dir() and not path.is_symlink() else [path]:
        with suppress(OSError):
            status = file.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:  # the other name of a link keeps its content
                os.truncate(file, 0)
            if not stat.S_ISDIR(status.st_mode):
                file.unlink()
    shutil.rmtree(path, ignore_errors=True)
