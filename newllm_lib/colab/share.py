"""Save and share: the finished run as a zip for the browser and, if its owner says so, on the hub; and the GPU's memory
given back."""

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets
import psutil
import torch
from accelerate.utils.memory import clear_device_cache
from IPython.display import HTML, FileLink, display

from ..errors import InputError
from ..training.checkpoint import CHECKPOINT_NAME, check_model_folder, read_results
from ..training.device import size
from ..training.disk import PARTIAL, temporary
from ..training.model_card import CardFacts, read_card
from .chat_box import ChatBox
from .drive.drive_copy import wait_for_drive
from .drive.hub_push import push_to_hub
from .page.notices import escape, in_one_sentence, say, sentence_html, table_html
from .storage import drive_copier, on_colab

STORED = {".safetensors", ".png"}  # what does not get smaller by being packed
OF_AN_ERROR = ("last_type", "last_value", "last_traceback", "last_exc")  # kept by Python for debuggers


@in_one_sentence
def save_and_share(
    folders: Sequence[str | Path], download: bool = True, hub_repository: str = "", private: bool = True
) -> None:
    """Check the models' cards, pack the run into a zip without its checkpoints, and send it to the browser.

    Args:
        hub_repository: "name" or "owner/name" on the Hugging Face hub to put the models in, too; "": nowhere.
        private: nobody else can see a repository that is made now.
    """
    folders = [check_model_folder(folder) for folder in folders]
    unfinished = [folder.name for folder in folders if read_results(folder) is None]
    if unfinished:
        raise InputError(f"{', '.join(unfinished)} is not finished: run the training cell again.", "NL-404")
    display(HTML(cards_html({folder.name: read_card(folder) for folder in folders})))
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


def cards_html(cards: dict[str, CardFacts]) -> str:
    """What the models' cards say, side by side."""
    facts = [{**card.texts, **card.metrics} for card in cards.values()]
    rows = [["model card", *(f"<b>{escape(name)}</b>" for name in cards)]]
    for name in dict.fromkeys(name for model in facts for name in model):
        rows.append([escape(name.replace("_", " ")), *(escape(model.get(name, "-")) for model in facts)])
    return table_html(rows, header=True)


def write_zip(run: Path, archive: Path) -> Path:
    """Pack all files of a run folder but checkpoints and what is hidden; an older archive is replaced as a whole.

    Raises:
        OSError: the disk is full; an older archive is still there.
    """
    partial = temporary(archive, PARTIAL)
    try:
        with zipfile.ZipFile(partial, "w", strict_timestamps=False) as packed:
            for path in kept_files(run):
                packing = zipfile.ZIP_STORED if path.suffix in STORED else zipfile.ZIP_DEFLATED
                packed.write(path, Path(run.name) / path.relative_to(run), packing)
        return partial.replace(archive)
    finally:
        partial.unlink(missing_ok=True)


def kept_files(run: Path) -> list[Path]:
    """The files of a run that are of use when it is finished."""
    paths = [path for path in sorted(run.rglob("*")) if path.is_file()]
    return [
        path
        for path in paths
        if not any(part.startswith(".") or CHECKPOINT_NAME.fullmatch(part) for part in path.relative_to(run).parts)
    ]


def offer(file: Path) -> None:
    """Send a file to the browser, or show a link to it where the notebook's server has one."""
    if not on_colab():
        display(FileLink(str(file.relative_to(Path.cwd()))))
        return
    from google.colab import files

    try:
        files.download(str(file))
    except Exception as error:  # the browser's answer, of whatever kind: the file is there all the same
        say(f"The browser did not take it ({error}): it is in {file.parent}, under the folder on the left.", "note")


@in_one_sentence
def offer_release(*boxes: ChatBox) -> None:
    """Display a button that gives the memory back which the page's models take; Run all does not press it."""
    button = widgets.Button(description="Release the memory", layout=widgets.Layout(width="180px"))
    line = widgets.HTML(layout=widgets.Layout(width="auto"))

    def press(_) -> None:
        line.value = sentence_html(release(boxes))

    button.on_click(press)
    display(widgets.VBox([button, line]))
    say(f"{memory_sentence()} The button gives back what the models of this page take.")


def release(boxes: Sequence[ChatBox] = ()) -> str:
    """Let go of the models that the page holds; says how much memory is free. A chat box loads its model anew when
    somebody writes into it."""
    for box in boxes:
        box.chats.clear()
    for name in OF_AN_ERROR:  # the frames of a training that was stopped hold its model
        sys.__dict__.pop(name, None)
    clear_device_cache(garbage_collection=True)
    away = " To give the machine back, too: Runtime > Disconnect and delete runtime." if on_colab() else ""
    return f"Released. {memory_sentence()}{away}"


def memory_sentence() -> str:
    """How much memory is free, of the GPU where there is one."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"{size(free)} of {size(total)} of the GPU's memory are free."
    memory = psutil.virtual_memory()
    return f"{size(memory.available)} of {size(memory.total)} of this machine's memory are free."
