"""Where a settings panel's parts stand."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import ipywidgets as widgets

from .controls import Control, metadata_of
from .languages import text
from .notices import FAINT, escape


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
