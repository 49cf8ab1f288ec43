"""The run folder: settings, checkpoints that are known to be complete, results. Written so that a machine may vanish
at any moment."""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..models.configuration_newllm import EARLIER_FIELDS, NewLLMConfig

SETTINGS_FILE = "settings.json"
RESULTS_FILE = "results.json"
COMPLETE_FILE = "complete.json"
MODEL_FILES = ("config.json", "model.safetensors")
REFERENCE_FOLDER = "reference"  # in a run of adapters: the model they are trained on, where the run has made it
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")

logger = logging.getLogger(__name__)


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all: temporary name, fsync, rename."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def open_run(folder: Path, run: dict[str, Any], session: dict[str, Any]) -> None:
    """Claim `folder` for a run, or find that it holds that very run already.

    Args:
        run: what makes the run this run; has to be the same every time.
        session: what may differ from one session to the next (paths, micro-batch); the newest is kept.

    Raises:
        InputError: the folder holds something else, a run with other settings (which are named), or one of an earlier
            version.
    """
    if (folder / SETTINGS_FILE).exists():
        check_version(folder)
        before = read_settings(folder)["run"]
        # Only what both sides know: another release of transformers has other fields, and that is no other run.
        differing = sorted(name for name in before.keys() & run.keys() if before[name] != run[name])
        if differing:
            changes = "; ".join(f"{name} was {before[name]!r}, is {run[name]!r}" for name in differing)
            raise InputError(
                f"output_dir {str(folder)!r} holds a run with other settings ({changes}); give the same settings to "
                "continue it, or another --output_dir.",
                "NL-404",
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"output_dir {str(folder)!r} is in use and holds no run of ours; choose another --output_dir.", "NL-404"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS_FILE, {"run": run, "session": session})


def read_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """{"run": ..., "session": ...} of the run in `folder`.

    Raises:
        InputError: the folder is not a run of ours.
    """
    try:
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        return {"run": settings["run"], "session": settings["session"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{str(folder)!r} is not the folder of a run of ours (no readable {SETTINGS_FILE}); name a folder that "
            "newllm has written.",
            "NL-404",
        ) from error


def read_results(folder: Path) -> dict[str, Any] | None:
    """The final metrics of a finished run, None while it is unfinished."""
    path = folder / RESULTS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def seal_checkpoint(checkpoint: Path) -> None:
    """State the size of every file of a checkpoint, after all of them are written."""
    write_json(checkpoint / COMPLETE_FILE, _file_sizes(checkpoint))


def numbered_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(update, checkpoint) of a run folder, complete or not, the oldest first."""
    found = [(CHECKPOINT_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*")]
    return sorted((int(match[1]), path) for match, path in found if match)


def is_complete(checkpoint: Path) -> bool:
    """True if the files of a checkpoint are all there in full."""
    seal = checkpoint / COMPLETE_FILE
    return seal.exists() and json.loads(seal.read_text(encoding="utf-8")) == _file_sizes(checkpoint)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all there in full. One that was cut off while being written is told of
    and removed: training will pass its step again."""
    for _, path in reversed(numbered_checkpoints(folder)):
        if is_complete(path):
            return path
        logger.warning("%s was not written to its end and is removed.", path.name)
        shutil.rmtree(path)
    return None


def _file_sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != COMPLETE_FILE
    }


def has_adapters(folder: Path) -> bool:
    """True if what the folder holds are adapters, PEFT's, and not a whole model."""
    return (folder / ADAPTER_CONFIG).exists()


def is_of_earlier_version(folder: Path) -> bool:
    """True if the model in the folder, or a checkpoint of it, is a New-LLM that this version cannot go on with."""
    for holder in (folder, *(checkpoint for _, checkpoint in numbered_checkpoints(folder))):
        try:
            config = json.loads((holder / "config.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # none yet, or cut off while it was written: that is no model at all
            continue
        if config.get("model_type") == NewLLMConfig.model_type and any(name in config for name in EARLIER_FIELDS):
            return True
    return False


def check_version(folder: Path) -> None:
    """Raises InputError for a New-LLM that an earlier version has trained."""
    if is_of_earlier_version(folder):
        raise InputError(
            f"{str(folder)!r} holds a New-LLM that an earlier version has trained, whose model was another one; train "
            "it anew in another folder, or open it with the version that made it.",
            "NL-404",
        )


def check_model_folder(path: str | Path) -> Path:
    """The folder of one of our trained models, or of adapters that were trained on a model.

    Raises:
        InputError: it does not exist, holds no model with a tokenizer, or one that this version cannot open.
    """
    folder = Path(path).expanduser()
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
