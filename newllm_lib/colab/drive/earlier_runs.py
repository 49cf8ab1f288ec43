"""Runs of earlier sessions: brought back from Drive when a session begins, and described in a sentence."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ...preferences.sweep import TRIALS_FILE, read_trials
from ...training import checkpoint
from ...training.checkpoint import COMPLETE_FILE, RESULTS_FILE, SETTINGS_FILE, numbered_checkpoints
from ...training.device import GB
from . import run_copy
from .drive_copy import DriveCopier, problem_of

MODELS = "[!.]*/[!.]*/[!.]*"  # of a storage: notebook, run and model, none of them hidden
# The newest models are brought back at once, as many as take a minute or less; others when they are trained on.
BUDGET_BYTES = GB
# Another session may be copying to the same Drive: what it has not touched for so long was left by a killed one.
UNTOUCHED_SECONDS = 3600.0


@dataclass
class Returned:
    """Folders of models that were brought back; what did not verify and was left out; what failed, and why."""

    models: list[Path] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def bring_back_runs(copier: DriveCopier, tell: Callable[[str], None], budget_bytes: int = BUDGET_BYTES) -> Returned:
    """Bring back what is further on Drive than here, the newest first, each run on its own: whatever is wrong with one,
    the others come. `tell` hears the name of each model before that. Raises OSError: Drive cannot be listed."""
    result, spent, saved_at = Returned(), 0, {}
    for path in copier.drive.glob(f"{MODELS}/{run_copy.MANIFEST_FILE}"):
        with _on_its_own(_name(path.parent), result):
            saved_at[path.parent] = run_copy.read_manifest(path.parent).saved_at
    for copy in sorted(saved_at, key=saved_at.__getitem__, reverse=True):
        with _on_its_own(_name(copy), result):
            model = copier.local / copy.relative_to(copier.drive)
            run_copy.tidy(copy, UNTOUCHED_SECONDS)
            run_copy.tidy(model.parent)
            if run_copy.progress_of_copy(copy) <= run_copy.progress_here(model):
                continue
            size = run_copy.size_of_copy(copy)
            if spent and spent + size > budget_bytes:
                copier.left.add(model)
                continue
            tell(_name(model))
            brought = copier.fetch(model)
            spent += size
            result.damaged += [f"{_name(model)}/{damage}" for damage in brought.damaged]
            if brought.progress > run_copy.NOTHING:
                result.models.append(model)
    # Panels' settings, comparisons and pictures stand in the folders above.
    folders = {folder for model in result.models for folder in (model.parent, model.parent.parent)}
    folders |= {copier.local / path.parent.name for path in copier.drive.glob(f"*/{run_copy.MANIFEST_FILE}")}
    for folder in sorted(folders):
        with _on_its_own(folder.name, result):
            folder.mkdir(parents=True, exist_ok=True)
            run_copy.tidy(copier.copy_of(folder), UNTOUCHED_SECONDS)
            damaged = run_copy.bring_missing_files(copier.copy_of(folder), folder)
            result.damaged += [f"{folder.name}/{name}" for name in damaged]
    return result


@contextmanager
def _on_its_own(name: str, result: Returned) -> Iterator[None]:
    """Note what goes wrong with one copy, and go on."""
    try:
        yield
    except (OSError, ValueError) as error:  # a disk, or what is damaged on it
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        result.failed.append(f"{name} ({words})")


def fetch_sentences(copier: DriveCopier | None, models: Sequence[Path]) -> list[tuple[str, str]]:
    """Bring back those of `models` that are further on Drive than here; returns (sentence, status) of each."""
    said = []
    for model in models if copier is not None else ():
        try:
            brought = copier.fetch(model)
        except (OSError, ValueError) as error:
            problem = f"{_name(model)} could not be brought back from Drive: {problem_of(error)}."
            said.append((f"{problem} To wait for it, press ■ and run the storage cell again.", "note"))
            continue
        if brought is None:
            continue
        if brought.damaged:
            said.append((f"Damaged on Drive, and left out: {_name(model)}/{', '.join(brought.damaged)}.", "note"))
        if brought.progress > run_copy.NOTHING:
            said.append((f"{_name(model)} {_state(model)}: brought back from your Drive and verified.", "ok"))
    return said


def newest_run(runs: Path) -> Path | None:
    """The run folder in which something was saved last."""
    times: dict[Path, float] = {}
    for settings in runs.glob(f"{MODELS}/{SETTINGS_FILE}"):
        model = settings.parent
        files = [settings, model / RESULTS_FILE, *(path / COMPLETE_FILE for _, path in numbered_checkpoints(model))]
        newest = max(path.stat().st_mtime for path in files if path.is_file())
        times[model.parent] = max(times.get(model.parent, 0.0), newest)
    return max(times, key=times.__getitem__, default=None)


def run_sentence(run: Path) -> str:
    """How far the models of a run are, or how many trials of a sweep are finished."""
    models = sorted(settings.parent for settings in run.glob(f"[!.]*/{SETTINGS_FILE}"))
    try:
        if trials := read_trials(run):
            finished = sum(row["state"] == "finished" for row in trials)
            progress = f"{finished} of {len(trials)} trials are finished"
        else:
            progress = ", ".join(f"{model.name} {_state(model)}" for model in models)
    except (OSError, ValueError, LookupError, TypeError):  # whatever a damaged file of the run may give
        progress = "what is saved of it cannot be read"
    return f"{run.parent.name}/{run.name}: {progress}"


def is_finished(run: Path) -> bool:
    """True if there is nothing left to train in a run; a sweep never says so."""
    if (run / TRIALS_FILE).exists():
        return False
    models = [settings.parent for settings in run.glob(f"*/{SETTINGS_FILE}")]
    return all((model / RESULTS_FILE).is_file() or checkpoint.is_of_earlier_version(model) for model in models)


def _state(model: Path) -> str:
    if checkpoint.is_of_earlier_version(model):
        return "was trained by an earlier version and is of no use to this one"
    progress = run_copy.progress_here(model)
    if progress == run_copy.FINISHED:
        return "is finished"
    if progress == run_copy.NOTHING:
        return "has no checkpoint yet"
    updates = run_copy.planned_updates(dict(numbered_checkpoints(model))[progress])
    return f"is at update {progress:,} of {updates:,}"


def _name(model: Path) -> str:
    return "/".join(model.parts[-3:])
