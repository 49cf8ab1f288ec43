"""The settings panels of notebooks 6 and 7: pairs are generated, of the hub or of a file, and the model that is tuned
is found, or made; what a sweep looks through is a range with two knobs, or values to tick."""

import dataclasses
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import traitlets

from ...data.sources import find_dataset
from ...errors import InputError
from ...preferences.arguments import LOSS_TYPES
from ...preferences.dpo import check_trl
from ...preferences.generator import generator_identity
from ...preferences.pairs import GENERATED
from ...preferences.sweep import TRIALS_FILE, SweepArguments, check_optuna, read_trials
from ..page.languages import text
from ..page.notices import SLIDER
from .adapter_estimate import is_generated
from .controls import PRESET_TITLES, Control, labelled, log_steps, make_control
from .settings_panel import SettingsPanel, live_line_html
from .start_models import ModelChoice, chat_models, choose_model
from .text_source import file_identity, resolve_source

RANGES = {"search_beta": (0.01, 1.0), "search_learning_rate": (1e-6, 1e-2)}
CHOICES = {"search_lora_r": ("2", "4", "8", "16", "32", "64"), "search_loss_type": LOSS_TYPES}


class RangeControl(Control):
    """Two knobs on one rail; the setting's text is "low,high", or one number where both stand together."""

    @property
    def value(self) -> str:
        """As `SweepArguments` takes it."""
        return ",".join(f"{number:g}" for number in dict.fromkeys(self.widget.value))

    def set(self, value: Any) -> None:
        """Show the range; it gets steps for its ends. Raises InputError: it is none."""
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
        """Tick what the text names. Raises InputError: there is no box for it."""
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
        common = {"continuous_update": False, "layout": widgets.Layout(**SLIDER)}
        widget = widgets.SelectionRangeSlider(options=options, index=(0, len(options) - 1), **common)
    else:
        widget = Ticks(CHOICES[field.name])
    kind = RangeControl if field.name in RANGES else ChoicesControl
    control = kind(field.name, widget, labelled(field, widget), str, False, field)
    control.set(field.default)
    return control


NO_CHAT_MODEL = "No chat model is there yet: the cell below trains a small one first, in about a minute."


class PreferencePanel(SettingsPanel):
    """The panel of notebook 6. Its box `data` also says whether the hub is asked for the model."""

    preset_titles = {**PRESET_TITLES, "published": "Published: the usual recipe"}

    def _make_control(self, field: dataclasses.Field, extra_values: list[Any]) -> Control:
        if field.name != "model":
            return super()._make_control(field, extra_values)
        control = make_control(field, suggestions=[str(folder) for folder in chat_models(self.runs)])
        control.placeholder = "empty: DialoGPT-small, or one of yours"
        control.widget.placeholder = text(control.placeholder)
        return control

    def values(self) -> dict[str, Any]:
        """As of any panel; what does not belong to the kind of pairs is left alone."""
        values = super().values()
        if values["data_source"] == "file":
            values["dataset"] = None
        return values | ({"max_samples": None} if _generates(values) else {"pairs": self.defaults["pairs"]})

    def lacks_chat_model(self) -> bool:
        """True if there is no model to tune but one that is trained for it."""
        try:
            return self._choice(self.values()).model is None
        except InputError:
            return False  # the hub's model was asked for; what is wrong with it is shown where it is needed

    def _choice(self, values: dict[str, Any]) -> ModelChoice:
        return choose_model(values["model"], values["data_source"], self.runs)

    def _resolved(self, values: dict[str, Any]) -> dict[str, Any]:
        check_trl()
        model = self._choice(values).model
        if model is None:
            raise InputError("no chat model is there yet: run the cell below the settings, which trains one.", "NL-404")
        return {"data_source": self._source(values)[0], "model": model}

    def _source(self, values: dict[str, Any]) -> tuple[str, str]:
        note = self._choice(values).note
        if values["data_source"] == "file":
            return resolve_source("", "file", values["data"], values["eval_data"])[0], note
        if _generates(values):
            return "offline", note
        if values["data_source"] == "offline":
            raise InputError(f"dataset {values['dataset']!r} is on the hub only; leave it empty for generated pairs.")
        find_dataset(values["dataset"])
        return "hub", note

    def _identity(self, args: Any) -> str:
        if args.data is not None:
            return " ".join(file_identity(path) for path in (args.data, args.eval_data) if path is not None)
        if is_generated(args):
            return generator_identity(args.pairs, args.pairs_seed, args.held_out_share)
        return f"{args.dataset} {find_dataset(args.dataset).sources[0].revision}"

    def refresh(self) -> None:
        """As of any panel."""
        super().refresh()
        values = self.values()
        self.controls["dataset"].show_if(values["data_source"] != "file")
        self.controls["pairs"].show_if(_generates(values))
        self.controls["max_samples"].show_if(not _generates(values))

    def _line(self) -> str:
        if self.lacks_chat_model():
            return live_line_html([text(NO_CHAT_MODEL)])
        return super()._line()


def _generates(values: dict[str, Any]) -> bool:
    return values["data_source"] != "file" and values["dataset"] in (None, GENERATED)


class SweepPanel(PreferencePanel):
    """The panel of notebook 7: ranges and choices in the place of the settings that are searched."""

    preset_titles = PRESET_TITLES

    def _make_control(self, field: dataclasses.Field, extra_values: list[Any]) -> Control:
        if field.name.startswith("search_"):
            return search_control(field)
        return super()._make_control(field, extra_values)

    def arguments(self, model_type: str) -> SweepArguments:
        """The settings of the sweep, whose trials have folders of their own in the sweep's."""
        check_optuna()
        args = super().arguments(model_type)
        args.output_dir = str(Path(args.output_dir).parent)
        return args

    def _run_folder(self, output_dir: Path) -> Path:
        return output_dir

    def _state(self, folder: Path) -> str:
        rows = read_trials(folder)
        finished = sum(row["state"] == "finished" for row in rows)
        there = (folder / TRIALS_FILE).exists()
        return text("{trials} trials are finished", trials=str(finished)) if there else text("new")
