"""Widgets for what a sweep looks through: a range with two knobs, and values to tick."""

import dataclasses
from typing import Any

import ipywidgets as widgets
import traitlets

from ...errors import InputError
from ...preferences.arguments import LOSS_TYPES
from .controls import Control, labelled, log_steps

RANGES = {"search_beta": (0.01, 1.0), "search_learning_rate": (1e-6, 1e-2)}
CHOICES = {"search_lora_r": ("2", "4", "8", "16", "32", "64"), "search_loss_type": LOSS_TYPES}


class RangeControl(Control):
    """Two knobs on one rail; the setting's text is "low,high", or one number where both stand together."""

    @property
    def value(self) -> str:
        """As `SweepArguments` takes it."""
        return ",".join(f"{number:g}" for number in dict.fromkeys(self.widget.value))

    def set(self, value: Any) -> None:
        """Show the range; it gets steps for its ends.

        Raises:
            InputError: it is none.
        """
        try:
            numbers = sorted(float(part) for part in str(value).split(","))
        except ValueError as error:
            raise InputError(f"{self.name} cannot be {value!r}.") from error
        steps = sorted({*(step for _, step in self.widget.options), *numbers})
        if len(steps) > len(self.widget.options):
            self.widget.options = [(f"{step:g}", step) for step in steps]
        self.widget.value = (numbers[0], numbers[-1])


class ChoicesControl(Control):
    """Boxes to tick; the setting's text is what is ticked, with commas between."""

    @property
    def value(self) -> str:
        """As `SweepArguments` takes it."""
        return ",".join(self.widget.value)

    def set(self, value: Any) -> None:
        """Tick what the text names.

        Raises:
            InputError: there is no box for it.
        """
        names = [part.strip() for part in str(value).split(",") if part.strip()]
        if unknown := [name for name in names if name not in self.widget.boxes]:
            raise InputError(f"{self.name} cannot be {unknown[0]!r}.")
        self.widget.tick(names)


class Ticks(widgets.HBox):
    """A row of check boxes that wraps; `value` is the names of those that are ticked."""

    value = traitlets.Tuple()

    def __init__(self, names: tuple[str, ...]):
        layout = widgets.Layout(width="auto", margin="0 12px 0 0")
        self.boxes = {name: widgets.Checkbox(description=name, indent=False, layout=layout) for name in names}
        super().__init__(list(self.boxes.values()), layout=widgets.Layout(flex_flow="row wrap", width="auto"))
        for box in self.boxes.values():
            box.observe(lambda change: self._read(), names="value")

    def tick(self, names: list[str]) -> None:
        for name, box in self.boxes.items():
            box.value = name in names

    def _read(self) -> None:
        self.value = tuple(name for name, box in self.boxes.items() if box.value)


def search_control(field: dataclasses.Field) -> Control:
    """The control of one of `SweepArguments`' searched fields, standing at its default."""
    if field.name in RANGES:
        options = [(f"{step:g}", step) for step in log_steps(*RANGES[field.name], float)]
        layout = widgets.Layout(width="auto", min_width="0", margin="2px 2px 2px 8px")
        widget = widgets.SelectionRangeSlider(
            options=options, index=(0, len(options) - 1), continuous_update=False, layout=layout
        )
        control = RangeControl(field.name, widget, labelled(field, widget), str, False, field)
    else:
        widget = Ticks(CHOICES[field.name])
        control = ChoicesControl(field.name, widget, labelled(field, widget), str, False, field)
    control.set(field.default)
    return control
