"""Which checkpoint a run goes on from, and which ones stay.

A checkpoint is removed when a newer one is sealed, and never before. One that is damaged, or was cut off, is set aside
until then, under another name: nothing that may be good is removed at the start.
"""

import functools
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from .checkpoint import CHECKPOINT_NAME, COMPLETE_FILE, is_complete, numbered_checkpoints, read_json

ASIDE = ".aside-"

logger = logging.getLogger(__name__)


def best_beside(checkpoint: Path) -> Path | None:
    """The best checkpoint so far, as this one has noted it, where it is now; None: nothing was evaluated."""
    state = read_json(checkpoint / TRAINER_STATE_NAME)
    best = state.get("best_model_checkpoint") if isinstance(state, dict) else None
    name = Path(best).name if isinstance(best, str) else ""
    return checkpoint.with_name(name) if CHECKPOINT_NAME.fullmatch(name) else None


def resume_point(folder: Path, needs_best: bool) -> Path | None:
    """The checkpoint to go on from: the newest complete one; those beyond it are set aside.

    Args:
        needs_best: rather an older one than one whose best checkpoint, which becomes the result, is not complete.
    """
    for _, aside in _set_aside(folder):
        checkpoint = aside.with_name(aside.name.removeprefix(ASIDE))
        if is_complete(aside) and not is_complete(checkpoint):
            if checkpoint.exists():
                shutil.rmtree(checkpoint)
            os.rename(aside, checkpoint)
    is_whole = functools.cache(is_complete)
    found = [path for _, path in reversed(numbered_checkpoints(folder))]
    lacks_best = {path: (best := best_beside(path)) is not None and not is_whole(best) for path in found if needs_best}
    chosen = next((path for path in found if is_whole(path) and not lacks_best.get(path)), None)
    chosen = chosen or next(filter(is_whole, found), None)
    for path in found[: None if chosen is None else found.index(chosen)]:
        if is_whole(path):
            why = f"needs {best_beside(path).name}, the best one so far, which is lost or damaged"
        else:
            why = "is damaged" if (path / COMPLETE_FILE).exists() else "was not written to its end"
        goes_on = "begins anew" if chosen is None else f"goes on from {chosen.name}"
        logger.warning("%s %s: training %s. Until it has passed that update again,", path.name, why, goes_on)
        logger.warning("what there is of it is kept as %s.", ASIDE + path.name)
        set_aside(path)
    return chosen


def set_aside(checkpoint: Path) -> None:
    """Give a checkpoint a name that nobody takes for one's. Of two that had the same name the sealed one stays."""
    aside = checkpoint.with_name(ASIDE + checkpoint.name)
    if not aside.exists():
        os.rename(checkpoint, aside)
    elif not (checkpoint / COMPLETE_FILE).exists():
        shutil.rmtree(checkpoint)
    else:
        shutil.rmtree(aside)
        os.rename(checkpoint, aside)


def take_back(checkpoint: Path) -> None:
    """Remove what there is of a checkpoint that could not be written; one that was set aside for it stands again."""
    shutil.rmtree(checkpoint, ignore_errors=True)
    aside = checkpoint.with_name(ASIDE + checkpoint.name)
    if aside.exists() and not checkpoint.exists():
        os.rename(aside, checkpoint)


def rotate(folder: Path, newest: int, limit: int | None, best: str | None) -> None:
    """Remove what the sealed checkpoint of update `newest` makes superfluous: complete ones beyond the limit, the
    oldest first, and whatever is cut off or was set aside. It and the best one always stay.

    Args:
        limit: how many complete ones stay; None or 0: all.
        best: name of the best one.
    """
    older = [path for step, path in numbered_checkpoints(folder) if step < newest]
    removable = [path for path in older if path.name != best]
    complete = [path for path in removable if is_complete(path, sizes_only=True)]
    room = limit - 1 - (len(older) - len(removable)) if limit else len(complete)
    superfluous = len(complete) - max(room, 0)
    for path in removable:
        if path not in complete[max(superfluous, 0) :]:
            set_aside(path)  # half removed it must not be taken for one that is damaged
    remove_aside(folder, newest)


def remove_aside(folder: Path, passed: float) -> None:
    """Remove what was set aside of updates up to `passed`."""
    for step, path in _set_aside(folder):
        if step <= passed:
            shutil.rmtree(path, ignore_errors=True)


def _set_aside(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in sorted(folder.glob(f"{ASIDE}*")):
        if match := CHECKPOINT_NAME.fullmatch(path.name.removeprefix(ASIDE)):
            yield int(match[1]), path
