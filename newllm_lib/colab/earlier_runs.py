"""Runs of earlier sessions: brought back from Drive when a session begins, and told of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..stages.sweep import read_trials
from ..training.checkpoint import (
    COMPLETE_FILE,
    RESULTS_FILE,
    SETTINGS_FILE,
    is_complete,
    is_of_earlier_version,
    numbered_checkpoints,
)
from ..training.run_copy import (
    FINISHED,
    NOTHING,
    bring_missing_files,
    progress_here,
    progress_of_copy,
    size_of_copy,
    training_state,
)
from ..training.verified_copy import MANIFEST_FILE, read_manifest
from .copy_status import problem_of
from .drive_copy import DriveCopier

# The newest models are brought back at once, as many as take a minute or less; others when they are trained on.
BUDGET_BYTES = 2**30


@dataclass
class Returned:
    """What was brought back from Drive.

    Attributes:
        models: their folders on this machine.
        damaged: what did not verify and was left out.
    """

    models: list[Path] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def bring_back_runs(copier: DriveCopier, tell: Callable[[str], None], budget_bytes: int = BUDGET_BYTES) -> Returned:
    """Bring back what is further on Drive than here, the newest first.

    Args:
        tell: called with the name of each model before it is brought back.

    Raises:
        OSError: Drive or the disk fails; what was brought back until then is whole.
    """
    result, spent = Returned(), 0
    manifests = [path for path in copier.drive.glob(f"*/*/*/{MANIFEST_FILE}") if not _is_hidden(path, copier.drive)]
    copies = sorted((path.parent for path in manifests), key=lambda copy: read_manifest(copy).saved_at, reverse=True)
    for copy in copies:
        model = copier.local / copy.relative_to(copier.drive)
        if progress_of_copy(copy) <= progress_here(model):
            continue
        if spent and spent + size_of_copy(copy) > budget_bytes:
            copier.left.add(model)
            continue
        spent += size_of_copy(copy)
        tell(_name(model))
        brought = copier.fetch(model)
        result.damaged += [f"{_name(model)}/{damage}" for damage in brought.damaged]
        if brought.progress > NOTHING:
            result.models.append(model)
    # Panels' settings, comparisons and pictures stand in the folders above.
    folders = {folder for model in result.models for folder in (model.parent, model.parent.parent)}
    folders |= {copier.local / path.parent.name for path in copier.drive.glob(f"*/{MANIFEST_FILE}")}
    for folder in sorted(folders):
        folder.mkdir(parents=True, exist_ok=True)
        bring_missing_files(copier.copy_of(folder), folder)
    return result


def fetch_sentences(copier: DriveCopier | None, models: Sequence[Path]) -> list[tuple[str, str]]:
    """Bring back those of `models` that are further on Drive than here, before they are trained on.

    Returns:
        What to say of it, as (sentence, status).
    """
    said = []
    for model in models if copier is not None else ():
        try:
            brought = copier.fetch(model)
        except OSError as error:
            problem = f"{_name(model)} could not be brought back from Drive: {problem_of(error)}."
            said.append((f"{problem} To wait for it, press ■ and run the storage cell again.", "note"))
            continue
        if brought is None:
            continue
        if brought.damaged:
            said.append((f"Damaged on Drive, and left out: {_name(model)}/{', '.join(brought.damaged)}.", "note"))
        if brought.progress > NOTHING:
            said.append((f"{_name(model)} {_state(model)}: brought back from your Drive and verified.", "ok"))
    return said


def newest_run(runs: Path) -> Path | None:
    """The run folder in which something was saved last."""
    times: dict[Path, float] = {}
    for settings in runs.glob(f"*/*/*/{SETTINGS_FILE}"):
        model = settings.parent
        if not _is_hidden(settings, runs):
            times[model.parent] = max(times.get(model.parent, 0.0), _saved_at(model))
    return max(times, key=times.__getitem__, default=None)


def run_sentence(run: Path) -> str:
    """How far the models of a run are, or how many trials of a sweep are finished."""
    if trials := read_trials(run):
        finished = sum(row["state"] == "finished" for row in trials)
        return f"{run.parent.name}/{run.name}: {finished} of {len(trials)} trials are finished"
    models = sorted(settings.parent for settings in run.glob(f"*/{SETTINGS_FILE}") if settings.parent.name[0] != ".")
    states = ", ".join(f"{model.name} {_state(model)}" for model in models)
    return f"{run.parent.name}/{run.name}: {states}"


def is_finished(run: Path) -> bool:
    """True if there is nothing left to train in a run; a sweep never says so."""
    if read_trials(run):
        return False
    models = [settings.parent for settings in run.glob(f"*/{SETTINGS_FILE}")]
    return all((model / RESULTS_FILE).is_file() or is_of_earlier_version(model) for model in models)


def _state(model: Path) -> str:
    if is_of_earlier_version(model):
        return "was trained by an earlier version and is of no use to this one"
    progress = progress_here(model)
    if progress == FINISHED:
        return "is finished"
    if progress == NOTHING:
        return "has no checkpoint yet"
    state = training_state(model / f"checkpoint-{progress}")
    return f"is at update {progress:,} of {state['max_steps']:,}"


def _saved_at(model: Path) -> float:
    complete = [path / COMPLETE_FILE for _, path in numbered_checkpoints(model) if is_complete(path)]
    files = [model / SETTINGS_FILE, model / RESULTS_FILE, *complete]
    return max(path.stat().st_mtime for path in files if path.is_file())


def _name(model: Path) -> str:
    return "/".join(model.parts[-3:])


def _is_hidden(path: Path, above: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(above).parts)
