"""Which finished models of earlier notebooks a stage can go on with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...preferences.arguments import DIALOGPT
from ...stages.sft import SftArguments
from ...training.checkpoint import RESULTS_FILE, is_of_earlier_version
from ..page.languages import text
from .base_lookup import base_named
from .stage import CHAT_PRESETS


def finished_runs(runs: str | Path, folders: Sequence[str], models: Sequence[str]) -> list[Path]:
    """Run folders in which all of `models` are finished, by a version whose models this one can open: notebook by
    notebook in the order of `folders`, of one notebook the newest first."""
    found = []
    for folder in folders:
        newest = {}
        for run in (Path(runs) / folder).glob("*"):
            results = [run / model / RESULTS_FILE for model in models]
            files = (*results, *(run / model / "model.safetensors" for model in models))
            is_finished = all(path.is_file() for path in files)
            if is_finished and not any(is_of_earlier_version(run / model) for model in models):
                newest[run] = max(path.stat().st_mtime for path in results)
        found += sorted(newest, key=newest.__getitem__, reverse=True)
    return found


def start_sentence(start: Path | None, folders: Sequence[str], models: Sequence[str]) -> str:
    """What is trained on from, or that there is nothing to go on with."""
    both = len(models) > 1
    if start is not None:
        run = f"{start.parent.name}/{start.name}"
        if both:
            return text("Both models go on from {run}.", run=run)
        return text("{model} goes on from {run}.", model=models[0], run=run)
    numbers = text(" or ").join(str(int(folder.split("_")[0])) for folder in folders)
    whole = "both models are" if both else "{model} is"
    unused = "No finished model of notebook {numbers} is used: " + whole + " trained from scratch."
    return text(unused, numbers=numbers, model=models[0])


SMALL_FOLDER = "06_chat_model"
# (notebooks, model): the preferred one first. Only notebook 2 makes a TinyGPT2, which DialoGPT resembles most.
WHERE_THEY_ARE = (
    (("02_dailydialog",), "tiny-gpt2"),
    (("04_ultrachat", "03_dolly", "02_dailydialog"), "newllm"),
    ((SMALL_FOLDER,), "tiny-gpt2"),
)


@dataclass(frozen=True)
class ModelChoice:
    """What is tuned: a folder, or an id on the hub; None: there is no chat model yet. `note`: how it was chosen."""

    model: str | None
    note: str = ""


def chat_models(runs: str | Path) -> list[Path]:
    """The folders of the finished chat models in the storage, the preferred one first."""
    return [run / model for folders, model in WHERE_THEY_ARE for run in finished_runs(runs, folders, [model])]


def choose_model(model: str | None, data_source: str, runs: str | Path) -> ModelChoice:
    """The model that is tuned.

    Args:
        model: what the user has named, if anything.
        data_source: "offline" does not ask the hub, "hub" takes nothing else; otherwise it is tried first.

    Raises:
        InputError: it has to come from the hub, and cannot.
    """
    if model is not None:
        return ModelChoice(model)
    why = ""
    if data_source != "offline":
        try:
            return ModelChoice(base_named(DIALOGPT).path)
        except InputError as error:
            if data_source == "hub":
                raise
            why = f" ({str(error).split(';')[0]})"
    here = chat_models(runs)
    if not here:
        return ModelChoice(None, f"No chat model is there yet{why}.")
    return ModelChoice(str(here[0]), f"The newest chat model here is tuned: {name_of(here[0])}{why}.")


def name_of(folder: Path) -> str:
    """Notebook, run and model."""
    return "/".join(folder.parts[-3:])


def small_chat_model(runs: str | Path) -> SftArguments:
    """How the small one is trained: as notebook 2 trains TinyGPT2 with its smallest preset, from fewer rows at a time.
    A minute on a CPU; what it says makes no sense."""
    few = {"per_device_train_batch_size": 8, "eval_steps": 0.5, "save_steps": 0.5}
    return SftArguments(
        **{**CHAT_PRESETS["smoke"], **few},
        dataset="dailydialog",
        data_source="offline",
        model_type="tiny-gpt2",
        output_dir=str(Path(runs) / SMALL_FOLDER / "smoke" / "tiny-gpt2"),
    )
