"""The run as a zip and on the Hugging Face hub, private unless said otherwise; and the GPU's memory given back."""

import os
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from accelerate.utils.memory import clear_device_cache
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from IPython.display import HTML, FileLink, display

from ..errors import InputError
from ..export.model_folder import model_files, read_card
from ..training import checkpoint
from ..training.disk import PARTIAL, size, temporary
from .chat_box import ChatBox
from .drive.drive_copy import wait_for_drive
from .page.notices import in_one_sentence, say
from .page.pieces import button_box, escape, sentence_html, table_html
from .storage import drive_copier, on_colab

SECRET = "HF_TOKEN"
LARGEST_UNASKED = 50 * 2**20  # bytes that go to the browser without a click


@in_one_sentence()
def save_and_share(
    folders: Sequence[str | Path], download: bool = True, hub_repository: str = "", private: bool = True
) -> None:
    """Check the models' cards, send the run to the browser as a zip, and put the models on the hub, if one is named."""
    folders = [checkpoint.check_model_folder(folder) for folder in folders]
    if unfinished := [folder.name for folder in folders if checkpoint.read_results(folder) is None]:
        raise InputError(f"{', '.join(unfinished)} is not finished: run the training cell again.", "NL-404")
    facts = [read_card(folder) for folder in folders]
    rows = [["model card", *(f"<b>{escape(folder.name)}</b>" for folder in folders)]]
    for name in dict.fromkeys(name for model in facts for name in model):
        rows.append([escape(name.replace("_", " ")), *(escape(model.get(name, "-")) for model in facts)])
    display(HTML(table_html(rows, header=True)))
    run = folders[0].parent
    archive = write_zip(run, Path.cwd() / f"{run.parent.name}-{run.name}.zip")
    if download:
        offer(archive)
    without = f"without its checkpoints ({size(archive.stat().st_size)})"
    on_drive = wait_for_drive(drive_copier(run), lambda: None)  # what the cells above have added to the run
    say(f"{archive.name} holds the run {without}; its cards say what one has to know.{on_drive}")
    if hub_repository.strip():
        addresses = push_to_hub(folders, hub_repository, private)
        say(f"On the hub, {'private' if private else 'public'}, without checkpoints: {', '.join(addresses)}.")


def write_zip(run: Path, archive: Path) -> Path:
    """Pack all but checkpoints and hidden files. Raises OSError: the disk is full; an older archive is still there."""
    partial = temporary(archive, PARTIAL)
    is_left_out = re.compile(rf"\..*|{checkpoint.CHECKPOINT_NAME.pattern}").fullmatch
    try:
        with zipfile.ZipFile(partial, "w", strict_timestamps=False) as packed:
            for path in sorted(run.rglob("*")):
                if path.is_file() and not any(map(is_left_out, path.relative_to(run).parts)):
                    # These do not get smaller by being packed.
                    packing = zipfile.ZIP_STORED if path.suffix in {".safetensors", ".png"} else zipfile.ZIP_DEFLATED
                    packed.write(path, path.relative_to(run.parent), packing)
        return partial.replace(archive)
    finally:
        partial.unlink(missing_ok=True)


def push_to_hub(folders: Sequence[Path], repository: str, private: bool = True) -> list[str]:
    """Upload each model to "name" or "owner/name", of several with its own name at the end; returns the addresses. If
    `private`, a public repository is refused. Raises InputError: no token, or the hub refuses it or the name."""
    api, addresses = HfApi(token=find_token()), []
    try:
        name = repository.strip().strip("/")
        if "/" not in name:
            name = f"{api.whoami()['name']}/{name}"
        for folder in folders:
            target = name if len(folders) == 1 else f"{name}-{folder.name}"
            addresses.append(str(api.create_repo(target, private=private, exist_ok=True)))
            if private and not api.model_info(target).private:
                raise InputError(f"hub_repository {target!r} is public: untick private, or choose another name.")
            with model_files(folder, target) as files:
                operations = [CommitOperationAdd(name, file) for name, file in files.items()]
                api.create_commit(target, operations, commit_message="Upload from New-LLM")
    except HFValidationError as error:
        raise InputError(f"hub_repository {repository!r} is no name for a repository: {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            remedy = "make one with the right to write, at huggingface.co/settings/tokens"
            raise InputError(f"the hub refuses the token for {repository!r}: {remedy}.", "NL-302") from error
        raise InputError(f"the hub did not take {repository!r} (HTTP {status}): try again later.", "NL-301") from error
    return addresses


def find_token() -> str:
    """The hub token of Colab's secrets, else of the environment, else of huggingface_hub's own login. Raises
    InputError: how to give one without typing it into the notebook."""
    token, problem = "", f"there is no token: set {SECRET} in the environment, or run hf auth login in a terminal"
    if on_colab():
        from google.colab import userdata

        try:
            token, problem = userdata.get(SECRET).strip(), f"the secret {SECRET} is empty"
        except userdata.NotebookAccessError:
            problem = f"this notebook may not read the secret {SECRET}: click the key on the left and allow it"
        except userdata.SecretNotFoundError:
            problem = f"there is no secret {SECRET}: click the key on the left, add it, and let this notebook read it"
        except Exception as error:  # a time-out, whose class not all of Colab's images have
            problem = f"Colab did not give the secret {SECRET} ({type(error).__name__}): run this cell again"
    stored = Path(constants.HF_TOKEN_PATH)  # get_token() would ask Colab once more, and wait for an answer
    token = token or os.environ.get(SECRET, "").strip()
    token = token or (stored.read_text(encoding="utf-8").strip() if stored.is_file() else "")
    if not token:
        raise InputError(f"nothing was put on the hub: {problem}.", "NL-302")
    return token


def offer(file: Path, ask: bool = False) -> None:
    """Send a file to the browser, a large one or with `ask` any when a button is pressed, which Run all does not; or
    show a link to it where the notebook's server has one."""
    if not on_colab():
        display(FileLink(os.path.relpath(file)))
    elif (there := file.stat().st_size) > LARGEST_UNASKED or ask:
        display(button_box(f"Download ({size(there)})", lambda: sentence_html(*send(file))))
    elif (said := send(file))[1] != "ok":
        say(*said)


def send(file: Path) -> tuple[str, str]:
    """Send a file to the browser of Colab; returns (what happened, its status)."""
    from google.colab import files

    try:
        files.download(str(file))
    except Exception as error:  # the browser's answer, of whatever kind: the file is there all the same
        return f"The browser did not take it ({error}): it is in {file.parent}, under the folder on the left.", "note"
    return f"{file.name} is on its way; the browser shows how far it is.", "ok"


@in_one_sentence()
def offer_release(*boxes: ChatBox) -> None:
    """Display a button that gives the memory back which the page's models take; Run all does not press it."""
    display(button_box("Release the memory", lambda: sentence_html(release(boxes))))
    say(f"{memory_sentence()} The button gives back what the models of this page take.")


def release(boxes: Sequence[ChatBox] = ()) -> str:
    """Let go of the models that the page holds. A chat box loads its model anew when a user writes into it."""
    for box in boxes:
        box.chats.clear()
    # Python keeps these for debuggers; the frames of a training that was stopped hold its model.
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        sys.__dict__.pop(name, None)
    clear_device_cache(garbage_collection=True)
    away = " To give the machine back, too: Runtime > Disconnect and delete runtime." if on_colab() else ""
    return f"Released. {memory_sentence()}{away}"


def memory_sentence() -> str:
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"{size(free)} of {size(total)} of the GPU's memory are free."
    memory = psutil.virtual_memory()
    return f"{size(memory.available)} of {size(memory.total)} of this machine's memory are free."
