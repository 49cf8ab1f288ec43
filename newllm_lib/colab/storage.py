"""Where runs are kept: on the machine's own disk, and on Colab on Google Drive, too, to which they are copied while
they train. A Drive that cannot be used costs one sentence, never the session."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from IPython.display import HTML, display

from ..preferences.trials import TRIALS_FILE, read_trials
from ..training import checkpoint
from ..training.checkpoint import COMPLETE_FILE, RESULTS_FILE, SETTINGS_FILE, numbered_checkpoints
from ..training.disk import GB, size
from .drive import run_copy
from .drive.drive_copy import DriveCopier, problem_of
from .page.languages import text, translate
from .page.notices import in_one_sentence, say
from .page.pieces import sentence_html

MOUNT_POINT = Path("/content/drive")
DRIVE_FOLDER = MOUNT_POINT / "MyDrive" / "New-LLM"

NOT_PERMITTED = "the permission was not given: run this cell again, tick every box, allow pop-ups"
# What the message of a failed mount contains -> what to do about it. The first that fits is taken.
REMEDIES = {
    "already contain files": "files were written to its place before it was mounted: restart the session, run again",
    "credential propagation": NOT_PERMITTED,
    "invalid oauth": NOT_PERMITTED,
    "timeout during initial read": "it took too long to answer, as happens with very many files in its top folder",
    "timed out": "it took too long to answer: run this cell again",
    "domain policy": "your organisation does not allow it: a private account does",
    "unsupported in this environment": "this kind of Colab has none",
}

MODELS = "[!.]*/[!.]*/[!.]*"  # of a storage: notebook, run and model, none of them hidden
# The newest models are brought back at once, as many as take a minute or less; others when they are trained on.
BUDGET_BYTES = GB
# Another session may be copying to the same Drive: what it has not touched for so long was left by a killed one.
UNTOUCHED_SECONDS = 3600.0

_copiers: dict[Path, DriveCopier] = {}  # local folder -> its copier, one for as long as the session lasts


def on_colab() -> bool:
    """True inside Google Colab, whose kernel loads google.colab before anything else."""
    return "google.colab" in sys.modules


@in_one_sentence()
def open_storage() -> Path:
    """Return the folder of runs (NEWLLM_RUNS names another, without Drive), after fetching what is further on Drive."""
    named = os.environ.get("NEWLLM_RUNS")
    folder = Path(os.path.expanduser(named or "runs")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    place = f"Runs are kept on this machine in {folder} ({size(shutil.disk_usage(folder).free)} free)"
    returned = []
    if not on_colab() or named:
        say(f"{place}; what is there already is continued.")
    elif problem := mount_drive():
        say(f"Drive was not mounted: {problem}. Runs are lost when Colab takes this machine back.", "note", "NL-201")
        say(f"{place}.")
    else:
        returned = _open_drive(folder)
        say(f"{place} and copied to your Drive, folder {DRIVE_FOLDER.name}, whenever they are saved.")
    if (run := newest_run(folder)) is not None:
        came = " brought back from your Drive and verified;" if run in {model.parent for model in returned} else ""
        goes_on = "nothing is left to train" if is_finished(run) else "with the same settings the training goes on"
        say(f"The newest run is {run_sentence(run)};{came} {goes_on}.")
    return folder


def mount_drive() -> str:
    """Mount Google Drive; "" if that worked, else why not."""
    from google.colab import drive

    try:
        drive.mount(str(MOUNT_POINT))
        if not os.path.isdir(DRIVE_FOLDER.parent):  # it was mounted, and has been lost since
            drive.mount(str(MOUNT_POINT), force_remount=True)
    except KeyboardInterrupt:
        return "mounting was stopped by hand"
    except Exception as error:  # Colab raises ValueError, NotImplementedError and a MessageError of its own
        message = str(error)
        otherwise = f"it could not be mounted ({message or type(error).__name__})"
        return next((remedy for part, remedy in REMEDIES.items() if part in message.lower()), otherwise)
    return ""


def drive_copier(folder: Path) -> DriveCopier | None:
    """What copies the runs below `folder` to Drive; None where they stay on this machine."""
    return next((copier for local, copier in _copiers.items() if folder.is_relative_to(local)), None)


def _open_drive(folder: Path) -> list[Path]:
    """Bring back what is further on Drive than here, which is returned, then begin to copy what is further here."""
    try:
        DRIVE_FOLDER.mkdir(exist_ok=True)
        (DRIVE_FOLDER / ".write-test").write_text("New-LLM")
        (DRIVE_FOLDER / ".write-test").unlink()
    except OSError as error:
        meanwhile = "it is tried again from time to time, and until then runs are on this machine alone"
        say(f"{problem_of(error)}: {meanwhile}.", "note", "NL-202")
    copier = _copiers[folder] = _copiers.get(folder) or DriveCopier(folder, DRIVE_FOLDER)
    line = display(HTML(""), display_id=True)

    def tell(model: str) -> None:
        line.update(HTML(sentence_html(f"{model} is brought back from your Drive.")))

    try:
        returned, damaged, failed = bring_back_runs(copier, tell)
    except (OSError, KeyboardInterrupt) as error:
        why = problem_of(error) if isinstance(error, OSError) else "it was stopped by hand"
        returned, damaged, failed = [], [], [why]
    if failed:
        more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
        say(f"Not everything was brought back: {'; '.join(failed[:3])}{more}. What is on Drive stays there.", "note")
    if damaged:
        say(f"Damaged on Drive, and left out: {'; '.join(damaged)}.", "note")
    if copier.left:
        say(f"{len(copier.left)} older models stay on Drive until they are trained on.", "note")
    copier.start()
    return returned


def bring_back_runs(
    copier: DriveCopier, tell: Callable[[str], None], budget_bytes: int = BUDGET_BYTES
) -> tuple[list[Path], list[str], list[str]]:
    """Bring back what is further on Drive than here, the newest first, each run on its own: whatever is wrong with one,
    the others come. `tell` hears the name of each model before that. Returns (folders of the models that came, what did
    not verify and was left out, what failed and why). Raises OSError: Drive cannot be listed."""
    models, damaged, failed, spent = [], [], [], 0
    manifests = copier.drive.glob(f"{MODELS}/{run_copy.MANIFEST_FILE}")
    for manifest in sorted(manifests, key=lambda path: path.lstat().st_mtime, reverse=True):
        copy = manifest.parent
        with _on_its_own(name_of(copy), failed):
            model = copier.local / copy.relative_to(copier.drive)
            run_copy.tidy(copy, UNTOUCHED_SECONDS)
            run_copy.tidy(model.parent)
            if run_copy.progress_of_copy(copy) <= run_copy.progress_here(model):
                continue
            if spent >= budget_bytes:
                copier.left.add(model)
                continue
            tell(name_of(model))
            brought = copier.fetch(model)
            damaged += [f"{name_of(model)}/{damage}" for damage in brought.damaged]
            if brought.progress > run_copy.NOTHING:
                models.append(model)
                spent += run_copy.bytes_in(model)
    # Panels' settings, comparisons and pictures stand in the folders above.
    folders = {folder for model in models for folder in (model.parent, model.parent.parent)}
    folders |= {copier.local / path.parent.name for path in copier.drive.glob(f"*/{run_copy.MANIFEST_FILE}")}
    for folder in sorted(folders):
        with _on_its_own(folder.name, failed):
            folder.mkdir(parents=True, exist_ok=True)
            run_copy.tidy(copier.copy_of(folder), UNTOUCHED_SECONDS)
            names = run_copy.bring_missing_files(copier.copy_of(folder), folder)
            damaged += [f"{folder.name}/{name}" for name in names]
    return models, damaged, failed


@contextmanager
def _on_its_own(name: str, failed: list[str]) -> Iterator[None]:
    """Note what goes wrong with one copy, and go on."""
    try:
        yield
    except (OSError, ValueError) as error:  # a disk, or what is damaged on it
        failed.append(f"{name} ({getattr(error, 'strerror', None) or error})")


def fetch_sentences(copier: DriveCopier | None, models: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Bring back those of `models` that are further on Drive than here; yields (sentence, status) of each."""
    for model in models if copier is not None else ():
        try:
            brought = copier.fetch(model)
        except (OSError, ValueError) as error:
            problem = f"{name_of(model)} could not be brought back from Drive: {problem_of(error)}."
            yield f"{problem} To wait for it, press ■ and run the storage cell again.", "note"
            continue
        if brought.damaged:
            yield f"Damaged on Drive, and left out: {name_of(model)}/{', '.join(brought.damaged)}.", "note"
        if brought.progress > run_copy.NOTHING:
            yield f"{name_of(model)} {_state(model)}: brought back from your Drive and verified.", "ok"


def newest_run(runs: Path) -> Path | None:
    """The run folder in which something was saved last."""
    files = (SETTINGS_FILE, RESULTS_FILE, f"checkpoint-*/{COMPLETE_FILE}")
    found = {settings.parents[1] for settings in runs.glob(f"{MODELS}/{SETTINGS_FILE}")}
    times = {run: max(path.lstat().st_mtime for name in files for path in run.glob(f"*/{name}")) for run in found}
    return max(times, key=times.__getitem__, default=None)


def run_sentence(run: Path) -> str:
    models = sorted(settings.parent for settings in run.glob(f"[!.]*/{SETTINGS_FILE}"))
    try:
        if trials := read_trials(run):
            finished = sum(row["state"] == "finished" for row in trials)
            progress = f"{finished} of {len(trials)} trials are finished"
        else:
            progress = text(", ").join(translate(f"{model.name} {_state(model)}") for model in models)
    except (OSError, ValueError, LookupError, TypeError):  # whatever a damaged file of the run may give
        progress = "what is saved of it cannot be read"
    return f"{run.parent.name}/{run.name}: {progress}"


def is_finished(run: Path) -> bool:
    """True if there is nothing left to train in a run; a sweep never says so."""
    models = [settings.parent for settings in run.glob(f"*/{SETTINGS_FILE}")]
    ended = ((model / RESULTS_FILE).is_file() or checkpoint.is_of_earlier_version(model) for model in models)
    return not (run / TRIALS_FILE).exists() and all(ended)


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


def name_of(model: Path) -> str:
    return "/".join(model.parts[-3:])
