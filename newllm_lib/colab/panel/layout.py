"""Where a settings panel's parts stand, and the live line below them: what the settings cost, and where their run
stands."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import ipywidgets as widgets

from ...training.checkpoint import read_results
from ..page.languages import text
from ..page.notices import FAINT, escape
from ..storage import is_only_on_drive
from .controls import Control, metadata_of


def columns(fields: Iterable[dataclasses.Field], controls: Mapping[str, Control]) -> dict[str, widgets.VBox]:
    """Group -> its controls below each other, a column: three where there is room for them, else two or one, and none
    ever narrower than its sliders."""
    groups: dict[str, list[widgets.Widget]] = {}
    for field in fields:
        groups.setdefault(metadata_of(field)["group"], []).append(controls[field.name].box)
    layout = {"flex": "1 1 290px", "min_width": "270px", "margin": "4px 16px 8px 0"}
    return {
        group: widgets.VBox([widgets.HTML(group_html(group)), *boxes], layout=widgets.Layout(**layout))
        for group, boxes in groups.items()
    }


def group_html(group: str) -> str:
    """The title of a column."""
    style = f"font-weight:bold;font-size:15px;padding:2px 8px;background:{FAINT}"
    return f'<div style="{style}">{escape(text(group))}</div>'


def panel_box(
    lines: Sequence[Sequence[widgets.Widget]], below: Iterable[widgets.Widget], line: widgets.Widget
) -> widgets.Widget:
    """Lines of widgets at the top, the columns below them side by side, and the live line."""
    layout = {"flex_flow": "row wrap", "align_items": "center", "width": "auto", "max_width": "640px"}
    top = [widgets.HBox(list(parts), layout=widgets.Layout(**layout)) for parts in lines]
    body = widgets.HBox(list(below), layout=widgets.Layout(flex_flow="row wrap", width="100%"))
    return widgets.VBox([*top, body, line], layout=widgets.Layout(width="100%"))


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
