"""Which finished models of earlier notebooks a stage can go on with."""

from collections.abc import Sequence
from pathlib import Path

from ...training.checkpoint import RESULTS_FILE, is_of_earlier_version
from ..page.languages import text


def finished_runs(runs: str | Path, folders: Sequence[str], models: Sequence[str]) -> list[Path]:
    """Run folders in which all of `models` are finished, by a version whose models this one can open: notebook by
    notebook in the order of `folders`, of one notebook the newest first."""
    found = []
    for folder in folders:
        newest = {}
        for run in (Path(runs) / folder).glob("*"):
            results = [run / model / RESULTS_FILE for model in models]
            weights = [run / model / "model.safetensors" for model in models]
            if all(path.is_file() for path in (*results, *weights)) and not any(
                is_of_earlier_version(run / model) for model in models
            ):
                newest[run] = max(path.stat().st_mtime for path in results)
        found += sorted(newest, key=newest.__getitem__, reverse=True)
    return found


def start_sentence(start: Path | None, folders: Sequence[str], models: Sequence[str]) -> str:
    """What is trained on from, or that there is nothing to go on with."""
    both = len(models) > 1
    if start is not None:
        run = f"{start.parent.name}/{start.name}"
        return (
            text("Both models go on from {run}.", run=run)
            if both
            else text("{model} goes on from {run}.", model=models[0], run=run)
        )
    numbers = text(" or ").join(str(int(folder.split("_")[0])) for folder in folders)
    whole = "both models are" if both else "{model} is"
    unused = "No finished model of notebook {numbers} is used: " + whole + " trained from scratch."
    return text(unused, numbers=numbers, model=models[0])
