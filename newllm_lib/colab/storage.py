"""Where runs are kept: Google Drive on Colab, a folder beside the notebook elsewhere. A Drive that cannot be used
costs one sentence, never the session."""

import os
import shutil
import sys
from pathlib import Path

from .notices import say

MOUNT_POINT = Path("/content/drive")
DRIVE_FOLDER = MOUNT_POINT / "MyDrive" / "New-LLM"

# What the message of a failed mount contains -> what to do about it. The first that fits is taken.
REMEDIES = (
    ("already contain files", "files were written to its place before it was mounted: restart the session, run again"),
    ("credential propagation", "the permission was not given: run this cell again, tick every box, allow pop-ups"),
    ("invalid oauth", "the permission was not given: run this cell again, tick every box, allow pop-ups"),
    ("timeout during initial read", "it took too long to answer, as happens with very many files in its top folder"),
    ("timed out", "it took too long to answer: run this cell again"),
    ("domain policy", "your organisation does not allow it: a private account does"),
    ("unsupported in this environment", "this kind of Colab has none"),
)


def on_colab() -> bool:
    """True inside Google Colab, whose kernel loads google.colab before anything else."""
    return "google.colab" in sys.modules


def open_storage() -> Path:
    """The folder that runs are kept in, made if need be; says where it is and what is kept there."""
    folder, problem = choose_folder()
    folder.mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(folder).free / 2**30
    if problem:
        say(problem, "note")
    where = "on your Google Drive" if folder == DRIVE_FOLDER else "on this machine"
    say(f"Runs are kept {where} in {folder} ({free_gb:,.0f} GB free); what is there already is continued.")
    return folder


def choose_folder() -> tuple[Path, str]:
    """(folder for runs, what went wrong on the way or ""); NEWLLM_RUNS has the last word."""
    if os.environ.get("NEWLLM_RUNS"):
        return Path(os.environ["NEWLLM_RUNS"]).expanduser().absolute(), ""
    if on_colab():
        problem = mount_drive()
        if not problem:
            return DRIVE_FOLDER, ""
        return Path("runs").absolute(), (
            f"Drive was not mounted: {problem}. Runs stay on this machine and are lost when Colab takes it back."
        )
    return Path("runs").absolute(), ""


def mount_drive() -> str:
    """Mount Google Drive and make our folder there; "" if that worked, else why not."""
    from google.colab import drive

    try:
        drive.mount(str(MOUNT_POINT))
    except KeyboardInterrupt:
        return "mounting was stopped by hand"
    except Exception as error:  # Colab raises ValueError, NotImplementedError and a MessageError of its own
        return _remedy(error)
    try:
        DRIVE_FOLDER.mkdir(parents=True, exist_ok=True)
        probe = DRIVE_FOLDER / ".write-test"
        probe.write_text("New-LLM")
        probe.unlink()
    except OSError as error:
        return f"it cannot be written to ({error.strerror or error}): is it full?"
    return ""


def _remedy(error: Exception) -> str:
    message = str(error)
    for part, remedy in REMEDIES:
        if part in message.lower():
            return remedy
    return f"it could not be mounted ({message or type(error).__name__})"
