"""The controls of the data sets in the catalogue: which one is learned from, and which one is mixed in."""

import dataclasses

import ipywidgets as widgets

from ...data.sources import CONVERSATION_DATASETS, DATASETS
from ...stages.data import rows_of
from ..page.languages import text
from ..page.pieces import escape, html_widget, slider_options, small_html
from .controls import Control, relabel

NO_MIX = ""
NAMED = [(name, name) for name in CONVERSATION_DATASETS]


class DatasetControl(Control):
    """A list of the catalogue's conversations; below it what the chosen one is."""

    def __init__(self, field: dataclasses.Field, dataset: str):
        super().__init__(field, widgets.Dropdown(options=NAMED, value=dataset, layout=_wide()))
        self.about = html_widget()
        self.box.children = (*self.box.children, self.about)
        self.widget.observe(lambda change: self._describe(), names="value")

    def speak(self) -> None:
        super().speak()
        self._describe()

    def _describe(self) -> None:
        self.about.value = _about_html(self.widget.value)


class MixControl(Control):
    """A second data set and its share; the setting's text is "name:share", or nothing."""

    def __init__(self, field: dataclasses.Field):
        self.dataset = widgets.Dropdown(options=[NO_MIX, *CONVERSATION_DATASETS], value=NO_MIX, layout=_wide())
        self.share = widgets.FloatSlider(value=0.2, min=0.05, max=0.95, step=0.05, **slider_options())
        self.about = html_widget()
        super().__init__(field, widgets.VBox([self.dataset, self.share, self.about], layout=_wide()))
        self.dataset.observe(lambda change: self._describe(), names="value")

    @property
    def value(self) -> str | None:
        return f"{self.dataset.value}:{self.share.value:g}" if self.dataset.value else None

    def observe(self, changed) -> None:
        for widget in (self.dataset, self.share):
            widget.observe(changed, names="value")

    def speak(self) -> None:
        super().speak()
        relabel(self.dataset, [(name or text("nothing"), name) for name in (NO_MIX, *CONVERSATION_DATASETS)])
        self._describe()

    def _show(self, value: str | None) -> None:
        name, _, share = (value or NO_MIX).rpartition(":")
        self.dataset.value = name
        if name:
            self.share.value = float(share)

    def _describe(self) -> None:
        name = self.dataset.value
        self.share.layout.display = None if name else "none"
        self.about.value = _about_html(name) if name else ""


def about(name: str) -> str:
    """A sentence on a data set: how large it is, in which language, under which licence, and what it is good for."""
    entry = DATASETS[name]
    return f"{rows_of(entry)} rows, {entry.language}, licence: {entry.licence}. Good for: {entry.good_for}."


def _about_html(name: str) -> str:
    return small_html(escape(about(name)), "line-height:1.35")


def _wide() -> widgets.Layout:
    return widgets.Layout(width="auto", min_width="0")
