"""Where runs are kept: on the machine's own disk, and on Colab on Google Drive, too, to which they are copied while
they train. A Drive that cannot be used costs one sentence, never the session."""

import os
import shutil
import sys
from pathlib import Path

from IPython.display import HTML, display

from ..training.device import size
from .drive.drive_copy import DriveCopier, problem_of
from .drive.earlier_runs import Returned, bring_back_runs, is_finished, newest_run, run_sentence
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

_copiers: dict[Path, DriveCopier] = {}  # local folder -> its copier, one for as long as the session lasts


def on_colab() -> bool:
    """True inside Google Colab, whose kernel loads google.colab before anything else."""
    return "google.colab" in sys.modules


@in_one_sentence
def open_storage() -> Path:
    """The folder of runs (NEWLLM_RUNS names another, without Drive); what is further on Drive is brought back."""
    named = os.environ.get("NEWLLM_RUNS")
    folder = Path(named or "runs").expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    place = f"Runs are kept on this machine in {folder} ({size(shutil.disk_usage(folder).free)} free)"
    returned = Returned()
    if not on_colab() or named:
        say(f"{place}; what is there already is continued.")
    elif problem := mount_drive():
        lost = "Runs are lost when Colab takes this machine back."
        say(f"Drive was not mounted: {problem}. {lost}", "note", "NL-201")
        say(f"{place}.")
    else:
        returned = _open_drive(folder)
        say(f"{place} and copied to your Drive, folder {DRIVE_FOLDER.name}, whenever they are saved.")
    if (run := newest_run(folder)) is not None:
        came = " brought back from your Drive and verified;" if run in {m.parent for m in returned.models} else ""
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


def is_only_on_drive(folder: Path) -> bool:
    """True if a run is further on Drive than here: it is brought back when it is trained on."""
    copier = drive_copier(folder)
    return copier is not None and folder in copier.left


def _open_drive(folder: Path) -> Returned:
    """Bring back what is further on Drive than here, then begin to copy what is further here."""
    try:
        DRIVE_FOLDER.mkdir(exist_ok=True)
        (DRIVE_FOLDER / ".write-test").write_text("New-LLM")
        (DRIVE_FOLDER / ".write-test").unlink()
    except OSError as error:
        meanwhile = "it is tried again from time to time, and until then runs are on this machine alone"
        say(f"{problem_of(error)}: {meanwhile}.", "note", "NL-202")
    copier = _copiers.get(folder)
    is_new = copier is None
    if is_new:
        copier = _copiers[folder] = DriveCopier(folder, DRIVE_FOLDER)
    line, sentence = display(HTML(""), display_id=True), "{} is brought back from your Drive."
    try:
        returned = bring_back_runs(copier, lambda model: line.update(HTML(sentence_html(sentence.format(model)))))
    except (OSError, KeyboardInterrupt) as error:
        returned = Returned(failed=[problem_of(error) if isinstance(error, OSError) else "it was stopped by hand"])
    if failed := returned.failed:
        more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
        say(f"Not everything was brought back: {'; '.join(failed[:3])}{more}. What is on Drive stays there.", "note")
    if returned.damaged:
        say(f"Damaged on Drive, and left out: {'; '.join(returned.damaged)}.", "note")
    if copier.left:
        say(f"{len(copier.left)} older models stay on Drive until they are trained on.", "note")
    (copier.start if is_new else copier.try_again)()
    return returned
