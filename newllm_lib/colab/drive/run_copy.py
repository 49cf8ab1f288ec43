"""Copies of runs on disks that may fill up or vanish at any moment, such as Drive: what is copied there while a run
trains, and what is brought back when this machine is another one. Only what verifies is brought back.

A copy is written under a temporary name, read back, and renamed into place; a manifest in its folder states size and
SHA-256 of every file. Whatever goes wrong, what was there before stays. A copy may be anyone's: the names that it
states are matched before they are used, and links are never followed.
"""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from ...data.files import content_hash
from ...training import checkpoint as run_folder
from ...training.callbacks import CURVES_FILE, METRICS_FILE
from ...training.disk import OLD, PARTIAL, discard, read_json, temporary, write_json

MANIFEST_FILE = "manifest.json"
CHUNK_BYTES = 2**22
NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0]{1,200}")  # of a file in its folder, and of no other
LARGEST = 2**62  # bytes, or nanoseconds

# What reading a file as a manifest may raise that is none.
NO_MANIFEST = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)

Report = Callable[[int], None]  # takes the bytes of every chunk
# Only these of an unfinished run are worth keeping beside its checkpoints: the others are still to come.
OF_AN_UNFINISHED_RUN = (run_folder.SETTINGS_FILE, METRICS_FILE, CURVES_FILE)
FINISHED, NOTHING = math.inf, -1  # how far a run is, in updates


class DamagedCopy(OSError):
    """What is read is not what was written, or not what the manifest states."""


@dataclass(frozen=True)
class Manifest:
    """File name -> its possible states, newest first ({"bytes", "sha256", "modified" in ns}); seconds since 1970."""

    files: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    saved_at: float = 0.0


def read_manifest(folder: Path) -> Manifest:
    """The files of the folder that its manifest states; none of a damaged one. Raises OSError: it cannot be read."""
    files = {}
    try:
        content = json.loads((folder / MANIFEST_FILE).read_bytes())
        for name, states in content["files"].items():
            if all(NAME.fullmatch(part) for part in name.split("/")):
                found = ((int(s["bytes"]), str(s["sha256"]), int(s["modified"])) for s in states)
                found = [dict(zip(("bytes", "sha256", "modified"), state, strict=True)) for state in found]
                files[name] = [state for state in found if max(state["bytes"], abs(state["modified"])) < LARGEST]
        saved_at = float(content["saved_at"])
    except (FileNotFoundError, NotADirectoryError, *NO_MANIFEST):
        return Manifest()
    files = {name: states for name, states in files.items() if states}
    return Manifest(files, saved_at) if math.isfinite(saved_at) else Manifest()


def write_manifest(folder: Path, files: dict[str, list[dict[str, Any]]]) -> None:
    write_json(folder / MANIFEST_FILE, {"saved_at": time.time(), "files": files})


def fingerprint(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"bytes": status.st_size, "sha256": content_hash(path), "modified": status.st_mtime_ns}


def same_content(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[key] == other[key] for key in ("bytes", "sha256"))


def copy_checked(
    source: Path, target: Path, states: Sequence[dict[str, Any]] | None = None, report: Report = lambda size: None
) -> dict[str, Any]:
    """Copy one file and read the copy back; returns its fingerprint, with the time of `source`. Raises DamagedCopy:
    `source` is in none of the `states` of a manifest, or the copy reads otherwise; OSError: the disk is full, gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    discard(target)  # it may be a link
    digest, size, modified = hashlib.sha256(), 0, source.stat().st_mtime_ns
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
            size += len(chunk)
            report(len(chunk))
        writer.flush()
        os.fsync(writer.fileno())
    written = {"bytes": size, "sha256": digest.hexdigest(), "modified": modified}
    if states is not None:
        state = next((state for state in states if same_content(state, written)), None)
        if state is None:
            raise DamagedCopy(f"{source.name} is not what was saved")
        written = state
        os.utime(target, ns=(state["modified"], state["modified"]))
    if not same_content(fingerprint(target), written):
        raise DamagedCopy(f"{target.name} does not read as it was written")
    return written


def copy_folder(source: Path, target: Path, report: Report = lambda size: None) -> None:
    """Copy a folder that is not being written; `target` is replaced as a whole, or (OSError) not at all."""
    partial = temporary(target, PARTIAL)
    discard(partial)
    try:
        names = [path.relative_to(source).as_posix() for path in files_of(source)]
        write_manifest(partial, {n: [copy_checked(source / n, partial / n, report=report)] for n in names})
        replace_folder(partial, target)
    except OSError:
        discard(partial)  # a full disk needs the room
        raise


def holds_copy_of(checkpoint: Path, copy: Path) -> bool:
    """True if `copy` is one of the checkpoint, as the seals of both and the sizes of its files show."""
    seal, other = (read_json(path / run_folder.COMPLETE_FILE) for path in (checkpoint, copy))
    return (copy / MANIFEST_FILE).is_file() and seal == other and run_folder.is_complete(copy, sizes_only=True)


def bring_folder(source: Path, target: Path) -> None:
    """Copy the files that a folder of copies states to `target`. Raises DamagedCopy, OSError: as `copy_checked`."""
    stated = read_manifest(source).files
    if not stated:
        raise DamagedCopy("it was not copied to its end")
    for name, states in stated.items():
        copy_checked(plain_file(source, name), target / name, states)


def plain_file(folder: Path, name: str) -> Path:
    """The path of a file of a copy. Raises DamagedCopy: there is none, or only a link that leads elsewhere."""
    path = folder / name
    if not path.is_file() or path.resolve() != folder.resolve() / name:
        raise DamagedCopy(f"{name} is missing")
    return path


def update_files(source: Path, target: Path, names: Sequence[str]) -> None:
    """Bring files of `target` up to date, in the order of `names`. While they are renamed into place, the manifest
    knows what each was and what it becomes: it is right at any moment. Raises OSError: as `copy_checked`."""
    stated = read_manifest(target).files
    changed = [name for name in names if not _is_up_to_date(source / name, target / name, stated.get(name, []))]
    if not changed and all(len(stated[name]) == 1 for name in names):
        return
    tidy(target)
    copies = {name: stated[name][0] for name in names if name not in changed}
    try:
        for name in changed:
            copies[name] = copy_checked(source / name, temporary(target / name, PARTIAL))
        write_manifest(target, {**stated, **{name: [copies[name], *stated.get(name, [])] for name in changed}})
    except OSError:
        for name in changed:
            discard(temporary(target / name, PARTIAL))
        raise
    for name in changed:
        os.replace(temporary(target / name, PARTIAL), target / name)
    write_manifest(target, {**stated, **{name: [copies[name]] for name in names}})


def _is_up_to_date(source: Path, target: Path, states: Sequence[dict[str, Any]]) -> bool:
    """True if `target` is a copy of `source`. A file that may be in several states has to be read."""
    if not states or not target.is_file():
        return False
    content = fingerprint(source)
    return same_content(states[0], content) and (len(states) == 1 or same_content(fingerprint(target), content))


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
    hidden = sorted(folder.glob(".*"))
    left = [path for path in hidden if path.name.endswith((OLD, PARTIAL)) or path.name.startswith(f".{MANIFEST_FILE}.")]
    for path in left:
        if time.time() - path.lstat().st_mtime < untouched_seconds:
            continue
        target = folder / path.name[1 : -len(OLD)]
        if path.name.endswith(OLD) and not os.path.lexists(target):
            os.rename(path, target)
        discard(path)


def files_of(folder: Path) -> Iterator[Path]:
    """Every file in and below a folder, but for a manifest, in an order that does not change."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST_FILE)


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
    return next(
        (step for step, path in reversed(run_folder.numbered_checkpoints(folder)) if run_folder.is_complete(path)),
        NOTHING,
    )


def progress_of_copy(copy: Path) -> float:
    """How far the copy of a run says that it is; what it says has yet to be verified."""
    if run_folder.RESULTS_FILE in read_manifest(copy).files:
        return FINISHED
    checkpoints = reversed(run_folder.numbered_checkpoints(copy))
    return next((step for step, path in checkpoints if (path / MANIFEST_FILE).is_file()), NOTHING)


def copy_checkpoints(
    run: Path, copy: Path, checkpoints: Sequence[Path], best: str | None, report: Report = lambda size: None
) -> None:
    """Bring the copy of a run up to the last of complete `checkpoints`; the best one is among them, for without it the
    run cannot end as it would. The best and the last two stay. Raises OSError: nothing was lost."""
    copy.mkdir(parents=True, exist_ok=True)
    tidy(copy)
    update_files(run, copy, [name for name in OF_AN_UNFINISHED_RUN if (run / name).is_file()])
    for checkpoint in checkpoints:
        if not holds_copy_of(checkpoint, copy / checkpoint.name):
            copy_folder(checkpoint, copy / checkpoint.name, report)
    newest = _step(checkpoints[-1])
    # Those beyond it are of a session that came further: they are left alone until they are passed again.
    before = [path for step, path in run_folder.numbered_checkpoints(copy) if step < newest]
    for path in before[:-1]:
        if path.name != best:
            os.rename(path, temporary(path, OLD))
            discard(temporary(path, OLD))


def bring_back(copy: Path, run: Path, beyond: float = NOTHING) -> BroughtBack:
    """Bring a run back from its copy if that is further than update `beyond`: finished, or with the newest checkpoint
    that verifies and the best one. Raises OSError: a disk is full or gone; what was in `run` is as it was."""
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
    if run_folder.RESULTS_FILE in read_manifest(copy).files:
        with _leaving_out(partial, result):
            bring_folder(copy, partial)
            if run_folder.read_results(partial) is None:
                raise DamagedCopy("its files are not those of a finished run")
            return True
    return False


@contextmanager
def _leaving_out(folder: Path, result: BroughtBack, name: str = "") -> Iterator[None]:
    """Note what is damaged, and remove what of it is in `folder` already."""
    try:
        yield
    except DamagedCopy as damage:
        result.damaged.append(f"{name}{damage}")
        discard(folder)


def _bring_unfinished(copy: Path, partial: Path, beyond: float, result: BroughtBack) -> float:
    """The update that was brought back, or NOTHING."""
    if (states := read_manifest(copy).files.get(run_folder.SETTINGS_FILE)) is None:
        return NOTHING
    with _leaving_out(partial, result):
        copy_checked(plain_file(copy, run_folder.SETTINGS_FILE), partial / run_folder.SETTINGS_FILE, states)
    if not partial.exists():
        return NOTHING
    candidates = [path for step, path in reversed(run_folder.numbered_checkpoints(copy)) if step > beyond]
    # Without its best checkpoint a run goes on, but may end with other weights: that is the second choice.
    for needs_best in (True, False):
        for path in candidates:
            if not _bring_checkpoint(path, partial, result):
                continue
            best = run_folder.best_beside(partial / path.name)
            is_there = best is None or best.is_dir() or _bring_checkpoint(copy / best.name, partial, result)
            if is_there or not needs_best:
                os.utime(partial / path.name)  # transformers takes the checkpoint that was changed last for the newest
                return _step(path)
            discard(partial / path.name)
    return NOTHING


def _bring_checkpoint(path: Path, partial: Path, result: BroughtBack) -> bool:
    if any(damage.startswith(f"{path.name}:") for damage in result.damaged):
        return False
    with _leaving_out(partial / path.name, result, f"{path.name}: "):
        bring_folder(path, partial / path.name)
        planned_updates(partial / path.name)  # nothing but its sense is looked at
        if not run_folder.is_complete(partial / path.name):
            raise DamagedCopy("its files are not those of a complete checkpoint")
        return True
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
    files, folders = read_manifest(copy).files, 1
    if run_folder.RESULTS_FILE not in files:
        newest = next((path for _, path in reversed(run_folder.numbered_checkpoints(copy))), copy)
        files, folders = read_manifest(newest).files, 2  # with the best one
    return folders * sum(states[0]["bytes"] for states in files.values())
