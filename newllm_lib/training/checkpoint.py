"""The run folder: settings, checkpoints that are known to be complete, log, results. A machine may vanish at any
moment. Whoever watches a run reads it without torch and transformers, which take seconds and memory.

A checkpoint is written in a hidden folder, and stands among the others when it is sealed. One is removed when a newer
one stands there, and never before: one that is damaged stays until then, for it may be good after all.
"""

import functools
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

from ..data.files import content_hash
from ..errors import InputError
from .disk import read_json, saying, write_json

SETTINGS_FILE = "settings.json"
RESULTS_FILE = "results.json"
COMPLETE_FILE = "complete.json"
TRAINER_STATE_NAME = "trainer_state.json"  # transformers' own name, which takes seconds to import
METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
# Metric of an evaluation -> (title, width, format) of its column in the log.
COLUMNS = {
    "loss": ("loss", 8, ".4f"), "perplexity": ("perplexity", 11, ".2f"), "token_accuracy": ("accuracy", 9, ".2%"),
    "bits_per_byte": ("bits/byte", 10, ".4f"), "accuracy": ("accuracy", 9, ".2%"), "margin": ("margin", 8, ".3f"),
    "chosen_logp": ("chosen", 8, ".1f"), "rejected_logp": ("rejected", 9, ".1f"), "kl": ("KL", 7, ".3f"),
}  # fmt: skip
MODEL_FILES = ("config.json", "model.safetensors")
# In a run: a model of the weights after its last update, where the best ones are another's.
FINAL_FOLDER = "final-weights"
REFERENCE_FOLDER = "reference"  # in a run of adapters: the model they are trained on, where the run has made it
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
SAVING = ".saving"  # holds the checkpoint that is being written
PASSED_OVER = ".passed-over"  # in a checkpoint that could not be gone on with

logger = logging.getLogger(__name__)


def open_run(folder: Path, run: dict[str, Any], session: dict[str, Any]) -> None:
    """Claim `folder` for a run, or find that it holds that very run already: `run` has to be the same every time, and
    `session` (paths, micro-batch) may differ; the newest is kept. Raises InputError: the folder cannot be written to or
    holds something else, a run with other settings (which are named), or one of an earlier version."""
    with saying(f"output_dir {str(folder)!r} cannot be written to", "choose another --output_dir"):
        if holds_run(folder):
            check_version(folder)
            before = read_settings(folder)["run"]
            # Only what both sides know: another release of transformers has other fields, and that is no other run.
            if differing := sorted(name for name in before.keys() & run.keys() if before[name] != run[name]):
                changes = "; ".join(f"{name} was {before[name]!r}, is {run[name]!r}" for name in differing)
                raise InputError(
                    f"output_dir {str(folder)!r} holds a run with other settings ({changes}); give the same settings "
                    "to continue it, or another --output_dir.",
                    "NL-404",
                )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SETTINGS_FILE, {"run": run, "session": session})


def holds_run(folder: Path) -> bool:
    """True if a run of ours is in `folder`, False if there is room for one. Raises InputError: something else is
    there."""
    if (folder / SETTINGS_FILE).exists() or any(_settings(folder)):
        return True
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"output_dir {str(folder)!r} is a link to nothing; choose another --output_dir.")
    if folder.exists() and (not folder.is_dir() or any(path.name[0] != "." for path in folder.iterdir())):
        raise InputError(
            f"output_dir {str(folder)!r} is in use and holds no run of ours; choose another --output_dir.", "NL-404"
        )
    return False


def check_place(folder: Path) -> None:
    """Find out before any long work whether a run can be written to `folder`, by making it for a moment. Raises
    InputError: it cannot."""
    with saying(f"output_dir {str(folder)!r} cannot be written to", "choose another --output_dir"):
        holds_run(folder)
        there = folder.absolute()
        while not os.path.lexists(there):
            there = there.parent
        with tempfile.TemporaryDirectory(prefix=".newllm-", dir=there) as trial:
            Path(trial, folder.absolute().relative_to(there)).mkdir(parents=True, exist_ok=True)


def read_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """{"run": ..., "session": ...} of the run in `folder`; where its file is lost or damaged, as the newest checkpoint
    states them. Raises InputError: the folder is not a run of ours."""
    folder = run_of(folder)
    settings = next(_settings(folder), None)
    if settings is None:
        raise InputError(
            f"{str(folder)!r} is not the folder of a run of ours (no readable {SETTINGS_FILE}, and no checkpoint "
            "that states what it said); name a folder that newllm has written, or train in another one.",
            "NL-404",
        )
    if settings != read_json(folder / SETTINGS_FILE):
        logger.warning("%s of %s is lost or damaged; its newest checkpoint states it, too.", SETTINGS_FILE, folder)
    return settings


def run_of(folder: Path) -> Path:
    """The run that the weights in a folder are of: the folder itself, but for those after the last update."""
    is_part = folder.name == FINAL_FOLDER and not any(_settings(folder)) and any(_settings(folder.parent))
    return folder.parent if is_part else folder


def _settings(folder: Path) -> Iterator[dict[str, Any]]:
    """The settings in their file, and those that the checkpoints state, the newest first; but for damaged ones."""
    yield from filter(_are_settings, [read_json(folder / SETTINGS_FILE)])
    seals = (read_json(path / COMPLETE_FILE) for _, path in reversed(numbered_checkpoints(folder)))
    yield from filter(_are_settings, (seal.get("settings") for seal in seals if isinstance(seal, dict)))


def _are_settings(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(name), dict) for name in ("run", "session"))


def read_results(folder: Path) -> dict[str, Any] | None:
    """The final metrics of a finished run, None while it is unfinished; so is one whose results are damaged, or whose
    weights are gone: the same command makes them anew."""
    results = read_json(folder / RESULTS_FILE)
    has_weights = any((folder / name).is_file() for name in (MODEL_FILES[1], ADAPTER_WEIGHTS))
    return results if isinstance(results, dict) and "loss" in results and has_weights else None


def read_history(folder: Path) -> list[dict]:
    """The metrics log of a run folder, but for lines that a disk has damaged."""
    path, entries = folder / METRICS_FILE, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with suppress(ValueError, RecursionError):
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("step"), int)]


def seal_checkpoint(checkpoint: Path, run: Path) -> None:
    """State of every file of a checkpoint what it holds, after all of them are written, and the settings of its run,
    which everything else depends on. A file whose name begins with a dot is none of ours."""
    names = (str(path.relative_to(checkpoint)) for path in sorted(checkpoint.rglob("*")) if path.is_file())
    files = {name: _content_of(checkpoint / name) for name in names if name != COMPLETE_FILE and name[0] != "."}
    write_json(checkpoint / COMPLETE_FILE, {"files": files, "settings": read_json(run / SETTINGS_FILE)})


def _content_of(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": content_hash(path)}


def numbered_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(update, checkpoint) of a run folder, complete or not, the oldest first."""
    found = [(CHECKPOINT_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*")]
    return sorted((int(match[1]), path) for match, path in found if match and path.is_dir())


def is_complete(checkpoint: Path, sizes_only: bool = False) -> bool:
    """True if the files of a checkpoint are all there as they were sealed, whatever else has come into its folder. With
    `sizes_only` True for a damaged one, too, and False for one that was cut off."""
    try:
        files = read_json(checkpoint / COMPLETE_FILE)["files"].items()
        is_there = bool(files) and all((checkpoint / it).stat().st_size == state["bytes"] for it, state in files)
        return is_there and (sizes_only or all(_content_of(checkpoint / it) == state for it, state in files))
    except (OSError, LookupError, TypeError, ValueError, AttributeError):  # a file is missing, or the seal is none
        return False


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run folder."""
    return next((path for _, path in reversed(numbered_checkpoints(folder)) if is_complete(path)), None)


def has_adapters(folder: Path) -> bool:
    """True if what the folder holds are adapters, PEFT's, and not a whole model."""
    return (folder / ADAPTER_CONFIG).exists()


def is_of_earlier_version(folder: Path) -> bool:
    """True if the model in the folder, or a checkpoint of it, is a New-LLM that this version cannot go on with."""
    from ..models.configuration_newllm import NewLLMConfig, has_other_layers  # it brings torch

    holders = (folder, *(checkpoint for _, checkpoint in numbered_checkpoints(folder)))
    configs = (read_json(holder / "config.json") for holder in holders)
    # Where there is none yet, or one that was cut off while it was written, there is no model at all.
    ours = (it for it in configs if isinstance(it, dict) and it.get("model_type") == NewLLMConfig.model_type)
    return any(map(has_other_layers, ours))


def check_version(folder: Path) -> None:
    """Raises InputError for a New-LLM that an earlier version has trained."""
    if is_of_earlier_version(folder):
        raise InputError(
            f"{str(folder)!r} holds a New-LLM that an earlier version has trained, whose model was another one; train "
            "it anew in another folder, or open it with the version that made it.",
            "NL-404",
        )


def check_model_folder(path: str | Path) -> Path:
    """The folder of one of our trained models, or of adapters that were trained on a model. Raises InputError: it does
    not exist, is a checkpoint, holds no model with a tokenizer, or one that this version cannot open."""
    folder = Path(os.path.expanduser(path))
    if CHECKPOINT_NAME.fullmatch(folder.name) and (folder.parent / SETTINGS_FILE).exists():
        raise InputError(
            f"{str(path)!r} is a checkpoint, which its run goes on from; name the run, {str(folder.parent)!r}, after "
            "it has come to its end.",
            "NL-404",
        )
    if not folder.is_dir():
        raise InputError(
            f"model folder {str(path)!r} does not exist; name the --output_dir of a finished run.", "NL-404"
        )
    files = MODEL_FILES if not has_adapters(folder) else (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    missing = [name for name in (*files, "tokenizer.json") if not (folder / name).exists()]
    if missing:
        hint = " (the run is not finished: run the same command again)" if (folder / SETTINGS_FILE).exists() else ""
        raise InputError(
            f"{str(path)!r} is not a model folder of ours: {', '.join(missing)} missing{hint}; name the folder of "
            "a finished run.",
            "NL-404",
        )
    check_version(folder)
    return folder


def weights_folder(path: str | Path, which: str = "best") -> Path:
    """The folder of a run's best weights, or with `which` "final" of those after its last update. Raises InputError: it
    is no finished run, or has kept the best ones alone."""
    folder = check_model_folder(path)
    if which == "best":
        return folder
    if which != "final":
        raise InputError(f"which has to be best or final, got {which!r}.")
    results = read_results(folder) or {}
    if "best_update" in results and results["best_update"] == results["updates"]:
        return folder  # they are the same
    if not (folder / FINAL_FOLDER).is_dir() or run_of(folder / FINAL_FOLDER) != folder:
        raise InputError(
            f"{str(path)!r} has kept its best weights alone; take --which best, or train with --save_final true.",
            "NL-404",
        )
    return check_model_folder(folder / FINAL_FOLDER)


def best_beside(checkpoint: Path) -> Path | None:
    """The best checkpoint so far, as this one has noted it, where it is now; None: nothing was evaluated."""
    state = read_json(checkpoint / TRAINER_STATE_NAME)
    best = state.get("best_model_checkpoint") if isinstance(state, dict) else None
    name = PureWindowsPath(best).name if isinstance(best, str) else ""  # of a path of any system
    return checkpoint.with_name(name) if CHECKPOINT_NAME.fullmatch(name) else None


def settle(run: Path, sizes_only: bool = False) -> None:
    """Let a sealed checkpoint under SAVING stand in its run folder, where an older one of its update gives way. What is
    not sealed is removed. Cut off anywhere, this can be done again."""
    for checkpoint in (run / SAVING).glob("checkpoint-*"):
        if is_complete(checkpoint, sizes_only):
            if (run / checkpoint.name).exists():
                os.replace(run / checkpoint.name, run / SAVING / "replaced")
            os.replace(checkpoint, run / checkpoint.name)
    shutil.rmtree(run / SAVING, ignore_errors=True)


def resume_point(folder: Path, needs_best: bool) -> Path | None:
    """The checkpoint to go on from: the newest complete one. With `needs_best` rather an older one than one whose best
    checkpoint, which becomes the result, is not complete."""
    settle(folder)
    is_whole = functools.cache(is_complete)

    def lost_best(path: Path) -> str:
        best = best_beside(path)
        return best.name if needs_best and best is not None and not is_whole(best) else ""

    found = [path for _, path in reversed(numbered_checkpoints(folder))]
    chosen = next((path for path in found if is_whole(path) and not lost_best(path)), None)
    chosen = chosen or next(filter(is_whole, found), None)
    goes_on = "begins anew" if chosen is None else f"goes on from {chosen.name}"
    for path in found[: None if chosen is None else found.index(chosen)]:
        why = "is damaged"
        if is_whole(path):
            why = f"needs {lost_best(path)}, the best one so far, which is lost or damaged"
        logger.warning("%s %s: training %s.", path.name, why, goes_on)
        logger.warning("What there is of it is kept until training has passed that update again.")
        (path / PASSED_OVER).touch()
    if chosen is not None:
        (chosen / PASSED_OVER).unlink(missing_ok=True)
    return chosen


def rotate(folder: Path, newest: int, limit: int | None, best: str | None, is_over: bool = False) -> None:
    """Remove what the sealed checkpoint of update `newest` makes superfluous: complete ones beyond the limit (with None
    or 0 there is none), the oldest first, those that are cut off or were passed over, and what the disk has not let
    `settle` remove; beyond it only when the run is over. It and the `best` one stay, wherever that was then."""
    best = best and Path(best).name
    numbered = numbered_checkpoints(folder)
    older = [path for step, path in numbered if step < newest]
    complete = [path for path in older if is_complete(path, sizes_only=True) and not (path / PASSED_OVER).exists()]
    complete.sort(key=lambda path: path.name == best)  # so that it counts as the newest
    beyond = max(len(complete) - limit + 1, 0) if limit else 0
    stay = {best, *(path.name for path in complete[beyond:])}
    gone = [it for step, it in numbered if (step < newest and it.name not in stay) or (step > newest and is_over)]
    for path in (*gone, folder / SAVING):
        shutil.rmtree(path, ignore_errors=True)
