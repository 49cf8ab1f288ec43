"""The live line below a settings panel: what the settings cost, and where their run stands."""

from collections.abc import Sequence
from pathlib import Path

from ..training.checkpoint import read_results
from .languages import text
from .notices import FAINT, escape
from .storage import is_only_on_drive


def live_line_html(lines: Sequence[str]) -> str:
    """HTML phrases below each other, on a faint ground."""
    style = f"background:{FAINT};padding:6px 10px;line-height:1.6;font-size:14px;overflow-wrap:anywhere"
    return f'<div style="{style}">{"<br>".join(lines)}</div>'


def folder_phrase(folder: Path, state: str) -> str:
    """Which run the settings belong to, and how far it is."""
    return text("run folder <b>{folder}</b>: {state}", folder=escape(folder.name), state=state)


def run_state(folder: Path, models: Sequence[str]) -> str:
    """Whether a run is new, under way or finished, by its models."""
    states = []
    for model in models:
        if read_results(folder / model) is not None:
            states.append(text("{model} is finished", model=model))
        elif any((folder / model).glob("checkpoint-*")):
            states.append(text("{model} will be continued", model=model))
        elif is_only_on_drive(folder / model):
            states.append(text("{model} will be brought back from Drive", model=model))
    return ", ".join(states) or text("new")
