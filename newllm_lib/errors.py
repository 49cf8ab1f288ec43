"""The one exception that means: the input was wrong, nothing was lost, and this sentence says what to do; and the codes
under which the README explains whatever a user may meet."""

import errno

from . import REPOSITORY

# What the system says of a disk that takes no more, and of one that does not take what is written to it.
FULL = {errno.ENOSPC, errno.EDQUOT}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, *FULL}

# code -> (what happened, what to do). README_COLAB.md has the same table; a code keeps its meaning for good.
CODES: dict[str, tuple[str, str]] = {
    "NL-101": ("This machine has no GPU.",
        "Go on with the presets Smoke, Demo or Quick; or Runtime > Change runtime type > T4 GPU, and Run all."),
    "NL-102": ("A package is missing, or its version is not one this release was tested with.",
        "Run the install cell again, or the pip install that the sentence names; a newer version is only a remark."),
    "NL-103": ("The memory of the GPU or of the machine was not enough.",
        "Halve the batch and double the accumulation, which gives the same result; run the cell again. It continues."),
    "NL-104": ("The disk is full, or nearly so.",
        "Delete run folders that you no longer need, empty Drive's bin, and run the cell again. It continues."),
    "NL-105": ("The settings do not fit into the GPU's memory; nothing was started.",
        "Take the nearest settings that fit, which the sentence names."),
    "NL-201": ("Google Drive was not mounted; runs are kept on this machine and vanish with it.",
        "Run the storage cell again, with the same account, tick every box and allow pop-ups."),
    "NL-202": ("Google Drive cannot be written to.",
        "Free some space there (its bin counts, too), or go on: runs are kept on this machine and vanish with it."),
    "NL-301": ("The hub, or the network, did not answer.",
        "Choose offline or my file in the Data box, or run the cell again later."),
    "NL-302": ("The hub refuses this model or data set: it is gated, or not yours to read.",
        "Accept its licence on its page and set HF_TOKEN among Colab's secrets, or name another one."),
    "NL-303": ("What the hub gave is damaged, or not what this release expects.",
        "Run the cell again; if that does not help, choose offline or my file in the Data box."),
    "NL-401": ("A setting, or two of them together, cannot be used.",
        "Set what the sentence names; nothing was started."),
    "NL-402": ("A file cannot be read as what it should be.",
        "Mend the line that the sentence names, tick skip bad rows, or name another file."),
    "NL-403": ("There is too little text, or none of it can be used.",
        "Give more text, or a shorter row length or a smaller vocabulary, as the sentence says."),
    "NL-404": ("A folder holds no finished run, or another one.",
        "Run the training cell to its end first, or name the folder of a finished run."),
    "NL-405": ("A saved memory of a conversation is damaged, or was made by another model.",
        "Load it with the model that made it; the words are not lost, if they were saved with it."),
    "NL-501": ("The cell was stopped by hand.", "Run it again: a training goes on from its last save."),
    "NL-502": ("The loss or a weight is no longer a finite number; training was ended, and no such weights were saved.",
        "Choose a smaller learning rate and train again, which starts a run of its own; what was saved is kept."),
    "NL-901": ("A fault of ours.",
        "Make a report in the notebook's last cell, read it, and put it into a new issue at "
        f"https://github.com/{REPOSITORY}/issues; what was saved is kept."),
}  # fmt: skip
LONGEST = 880  # characters of a sentence; what the user gave stands in its middle


class InputError(ValueError):
    """Bad input, found at the boundary. The message is one sentence naming the field, the value and the remedy: on one
    line, and with its middle left out where a value of any length makes it too long to read. `code` is one of CODES;
    `field` the word that the sentence begins with, which is the setting if it is about one."""

    def __init__(self, message: str, code: str = "NL-401"):
        message = " ".join(message.splitlines())
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
        super().__init__(message)
        self.code, self.field = code, message.partition(" ")[0].rstrip(":")


class TrainingDiverged(InputError, FloatingPointError):
    """The loss of a run is no longer a finite number."""
