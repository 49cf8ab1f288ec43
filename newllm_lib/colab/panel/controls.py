"""One widget per setting; its range stands beside the setting (`setting` of training/arguments.py)."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args, get_origin

import ipywidgets as widgets

from ...data.sources import CONVERSATION_DATASETS, DATASETS
from ...errors import InputError
from ...preferences.arguments import LOSS_TYPES
from ...stages.data import rows_of
from ..page.languages import text
from ..page.pieces import escape, html_widget, slider_options, small_html

# What the panel calls a field where its own name would not tell a student; also the order of the panel.
LABELS = {
    "trials": "trials", "search": "what is tried", "grid_points": "values of a range",
    "search_beta": "beta", "search_learning_rate": "learning rate", "search_lora_r": "rank",
    "search_loss_type": "loss", "data_source": "data", "data": "your file", "eval_data": "held-out file",
    "test_data": "test file", "skip_bad_rows": "skip bad rows", "dataset": "dataset", "mix": "mix in", "pairs": "pairs",
    "max_samples": "rows taken", "tokenizer": "tokenizer", "vocab_size": "vocabulary", "max_length": "row length",
    "num_parameters": "parameters", "num_layers": "layers", "model": "base model", "load_in_4bit": "4 bit",
    "bnb_4bit_quant_type": "4-bit values", "bnb_4bit_use_double_quant": "double quantisation",
    "lora_r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout of the adapters",
    "repetition_penalty": "repetition penalty", "distill_weight": "held to the base", "temperature": "temperature",
    "rehearsal_ratio": "rehearsal", "rehearsal_data": "file to rehearse",
    "rehearsal_eval_data": "file for forgetting", "beta": "beta", "loss_type": "loss", "loss_on": "learn",
    "max_steps": "updates", "num_train_epochs": "epochs", "learning_rate": "learning rate",
    "scale_learning_rate": "scale it with the batch",
    "sft_epochs": "all answers first", "sft_weight": "weight of the chosen",
    "per_device_train_batch_size": "batch size", "gradient_accumulation_steps": "accumulation",
    "activation_checkpointing": "compute twice", "warmup_steps": "warm-up",
}  # fmt: skip
CHOICE_LABELS = {"file": "my file", "assistant": "the assistant's words", "all": "every token"}
PRESET_TITLES = {
    "smoke": "Smoke: does everything run?", "demo": "Demo: a first look", "quick": "Quick: for a CPU",
    "standard": "Standard: for a GPU", "long": "Long: for a GPU and more time",
    "published": "Published: the usual recipe",
}  # fmt: skip
PATH = "path, for example /content/my_text.txt"
PLACEHOLDERS = {"model": "empty: Gemma-2B, on a CPU Gemma 3 270M", "dataset": "empty: generated Japanese pairs"}
# What the panel needs to know beside our dataclasses, and fields of transformers that these say nothing about.
EXTRA_METADATA = {
    "lora_alpha": {"steps": (4.0, 8.0, 16.0, 32.0, 64.0, 128.0)},
    "repetition_penalty": {"group": "Model"},
    "sft_epochs": {"group": "Training"},
    "sft_weight": {"group": "Training"},
    "search_beta": {"help": "From, to; both knobs on one value keep it."},
    "search_learning_rate": {"help": "From, to; both knobs on one value keep it."},
    "max_steps": {
        "help": "Length of the run in updates; or let the epochs decide.", "group": "Training", "low": 10,
        "high": 20_000, "steps": (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000),
    },
}  # fmt: skip
# What a sweep searches: a range with two knobs, or values to tick.
RANGES = {"search_beta": (0.01, 1.0), "search_learning_rate": (1e-6, 1e-2)}
CHOICES = {"search_lora_r": ("2", "4", "8", "16", "32", "64"), "search_loss_type": LOSS_TYPES}
AUTOMATIC = "automatic"
UNSET = 0  # stands for None in a slider of steps, where ipywidgets would take None for no step at all
BY_EPOCHS = "by epochs"  # what max_steps shows when it does not decide
NO_MIX = ""
NAMED = [(name, name) for name in CONVERSATION_DATASETS]


@dataclasses.dataclass
class Control:
    field: dataclasses.Field
    widget: widgets.Widget
    placeholder: str = ""  # what an empty text field says, in English

    def __post_init__(self):
        self.name = self.field.name
        self.kind, self.optional = _plain_type(self.field)
        self.box = widgets.VBox([html_widget(), self.widget], layout=widgets.Layout(width="auto"))

    @property
    def value(self) -> Any:
        """The setting's value in the type of its field: Colab's sliders have delivered 3.0 for 3."""
        value = self.widget.value
        if isinstance(value, bool):
            return value
        if isinstance(value, str):
            return value.strip() or None
        if self.optional and value == UNSET:
            return None
        return int(value) if self.kind is int else float(f"{value:.6g}")

    def set(self, value: Any) -> None:
        """Show `value`; a slider of steps gets a step for it. Raises InputError: the setting cannot have that value."""
        try:
            self._show(value)
        except Exception as error:  # the widget's own complaint comes in several types
            raise InputError(f"{self.name} cannot be {value!r}.") from error

    def _show(self, value: Any) -> None:
        if value is None:
            value = "" if isinstance(self.widget, widgets.Text) else UNSET
        if isinstance(self.widget, widgets.SelectionSlider):
            self._offer(self.kind(value))
        self.widget.value = value

    def _offer(self, *values: float) -> None:
        steps = {step for _, step in self.widget.options}
        if not steps.issuperset(values):
            self.widget.options = _labelled(self.name, sorted(steps.union(values)))

    def observe(self, changed: Callable[[Any], Any]) -> None:
        self.widget.observe(changed, names="value")

    def show_if(self, visible: bool) -> None:
        self.box.layout.display = None if visible else "none"

    def speak(self) -> None:
        """Say everything in the session's language."""
        label = f'<b title="--{self.name}">{escape(text(label_of(self.name)))}</b>'
        label += small_html(escape(text(help_of(self.field))))
        self.box.children[0].value = f'<div style="line-height:1.35;margin-top:8px">{label}</div>'
        if isinstance(self.widget, widgets.Checkbox):
            self.widget.description = text("yes")
        elif isinstance(self.widget, widgets.Text):
            self.widget.placeholder = text(self.placeholder)
        elif isinstance(self.widget, widgets.SelectionSlider | widgets.Dropdown):
            relabel(self.widget, _labelled(self.name, [choice for _, choice in self.widget.options]))


class RangeControl(Control):
    """Two knobs on one rail; the setting's text is "low,high", or one number where both stand together."""

    @property
    def value(self) -> str:
        return ",".join(f"{number:g}" for number in dict.fromkeys(self.widget.value))

    def _show(self, value: Any) -> None:
        numbers = sorted(map(float, str(value).split(",")))
        self._offer(*numbers)
        self.widget.value = (numbers[0], numbers[-1])


class ChoicesControl(Control):
    """A row of boxes to tick; the setting's text is what is ticked, with commas between."""

    @property
    def value(self) -> str:
        return ",".join(box.description for box in self.widget.children if box.value)

    def observe(self, changed: Callable[[Any], Any]) -> None:
        for box in self.widget.children:
            box.observe(changed, names="value")

    def _show(self, value: Any) -> None:
        names = {part.strip() for part in str(value).split(",")} - {""}
        if not names <= {box.description for box in self.widget.children}:
            raise ValueError("there is no box for it")
        for box in self.widget.children:
            box.value = box.description in names


class DatasetControl(Control):
    """A list of the catalogue's conversations; below it what the chosen one is."""

    def __init__(self, field: dataclasses.Field, dataset: str):
        super().__init__(field, widgets.Dropdown(options=NAMED, value=dataset, layout=in_the_column()))
        self.about = html_widget()
        self.box.children = (*self.box.children, self.about)
        self.widget.observe(lambda change: self._describe(), names="value")

    def speak(self) -> None:
        super().speak()
        self._describe()

    def _describe(self) -> None:
        self.about.value = about_html(self.widget.value)


class MixControl(Control):
    """A second data set and its share; the setting's text is "name:share", or nothing."""

    def __init__(self, field: dataclasses.Field):
        self.dataset = widgets.Dropdown(options=[NO_MIX, *CONVERSATION_DATASETS], value=NO_MIX, layout=in_the_column())
        self.share = widgets.FloatSlider(value=0.2, min=0.05, max=0.95, step=0.05, **slider_options())
        self.about = html_widget()
        super().__init__(field, widgets.VBox([self.dataset, self.share, self.about], layout=in_the_column()))
        self.dataset.observe(lambda change: self._describe(), names="value")

    @property
    def value(self) -> str | None:
        return f"{self.dataset.value}:{self.share.value:g}" if self.dataset.value else None

    def observe(self, changed: Callable[[Any], Any]) -> None:
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
        self.about.value = about_html(name) if name else ""


def about_html(dataset: str) -> str:
    """A sentence on a data set: how large it is, in which language, under which licence, and what it is good for."""
    entry = DATASETS[dataset]
    told = f"{rows_of(entry)} rows, {entry.language}, licence: {entry.licence}. Good for: {entry.good_for}."
    return small_html(escape(told), "line-height:1.35")


def in_the_column() -> widgets.Layout:
    """As wide as the column that the widget stands in."""
    return widgets.Layout(width="auto", min_width="0")


def settings_fields(arguments_class: type) -> list[dataclasses.Field]:
    """The fields that a panel offers, in its order: those with a range, choices, a yes or no, or a file."""
    fields = filter(_is_offered, dataclasses.fields(arguments_class))
    order = list(LABELS)
    return sorted(fields, key=lambda field: order.index(field.name) if field.name in order else len(order))


def make_control(field: dataclasses.Field, extra_values: Iterable[Any], dataset: str) -> Control:
    """The control of one field. A slider of steps also has the `extra_values`, such as those of presets; a list of the
    catalogue begins with `dataset`, where there is one."""
    if field.name == "mix":
        return MixControl(field)
    if field.name == "dataset" and dataset:
        return DatasetControl(field, dataset)
    kind, control, layout = _plain_type(field)[0], Control, in_the_column()
    if field.name in RANGES:
        control, steps = RangeControl, _labelled(field.name, log_steps(*RANGES[field.name], float))
        widget = widgets.SelectionRangeSlider(options=steps, index=(0, len(steps) - 1), **slider_options())
    elif field.name in CHOICES:
        apart = widgets.Layout(width="auto", margin="0 12px 0 0")
        boxes = [widgets.Checkbox(description=name, indent=False, layout=apart) for name in CHOICES[field.name]]
        row = widgets.Layout(flex_flow="row wrap", width="auto")
        control, widget = ChoicesControl, widgets.HBox(boxes, layout=row)
    elif kind is bool:
        widget = widgets.Checkbox(value=field.default, indent=False, layout=layout)
    elif kind is str:
        widget = widgets.Combobox(continuous_update=False, layout=layout)
    elif kind is Literal:
        options = _labelled(field.name, get_args(field.type))
        widget = widgets.Dropdown(options=options, value=field.default, layout=layout)
    else:
        widget = _slider(field, extra_values)
    # ipywidgets 7 knows tooltips of buttons only, and the page fails to show a box that has one.
    if widget.has_trait("tooltip") and not isinstance(widget, widgets.Box):
        widget.tooltip = f"--{field.name}"
    made = control(field, widget, PLACEHOLDERS.get(field.name, PATH))
    if control is not Control:  # what is searched has no widget that can be made at its default
        made.set(field.default)
    return made


def relabel(widget: widgets.Widget, options: Sequence[tuple[str, Any]]) -> None:
    """Give a widget's choices other names; it would go back to the first one."""
    value = widget.value
    widget.options = options
    widget.value = value


def title_of(preset: str) -> str:
    """What a preset is called, in the session's language."""
    title = PRESET_TITLES.get(preset)
    return text(title) if title else text("Published: {name}", name=preset.removeprefix("published-"))


def label_of(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def _slider(field: dataclasses.Field, extra_values: Iterable[Any]) -> widgets.Widget:
    (kind, optional), metadata, common = _plain_type(field), metadata_of(field), slider_options()
    low, high = metadata["low"], metadata["high"]
    if metadata.get("log") or optional or "steps" in metadata:
        usual = log_steps(low, high, kind) if metadata.get("log") else range(int(low), int(high) + 1)
        default = UNSET if field.default is None else field.default
        steps = {*metadata.get("steps", usual), *extra_values, default, *([UNSET] if optional else [])}
        return widgets.SelectionSlider(options=_labelled(field.name, sorted(steps)), value=default, **common)
    if kind is int:
        return widgets.IntSlider(min=int(low), max=int(max([high, *extra_values])), value=field.default, **common)
    round_numbers = (float(f"{digit}e{power}") for power in range(-9, 9) for digit in (1, 2, 5))
    step = next(number for number in round_numbers if number >= (high - low) / 50 * (1 - 1e-9))
    form = f".{max(-math.floor(math.log10(step)), 0)}f"
    high = max([high, *extra_values])
    return widgets.FloatSlider(min=low, max=high, step=step, value=field.default, readout_format=form, **common)


def log_steps(low: float, high: float, kind: type) -> list[float]:
    """Integers: doublings of `low`. Other numbers: 1, 2, 3 and 5 times each power of ten."""
    if kind is int:
        return [*(int(low) * 2**k for k in range(64) if int(low) * 2**k < high), int(high)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 3, 5)]
    return [step for step in steps if low <= step <= high]


def _labelled(name: str, values: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(_label(name, value), value) for value in values]


def _label(name: str, value: Any) -> str:
    if isinstance(value, str):
        return text(CHOICE_LABELS.get(value, value))
    if name == "max_steps" and value <= 0:
        return text(BY_EPOCHS)
    if value == UNSET:
        return text("all" if name == "max_samples" else AUTOMATIC)
    if isinstance(value, int):
        return f"{value / 1e6:g} M" if value >= 500_000 else f"{value:,}"
    return f"{value:g}"


def in_the_panels_words(sentence: str, spoken: Callable[[str], str] = text) -> str:
    """A complaint with the panel's names, as they are spoken, in the place of flags."""
    return re.sub(r"--(\w+)", lambda flag: spoken(LABELS.get(flag[1], flag[1])), sentence)


def help_of(field: dataclasses.Field) -> str:
    return in_the_panels_words(metadata_of(field)["help"].replace("%%", "%"), spoken=str)  # argparse wants it doubled


def metadata_of(field: dataclasses.Field) -> dict[str, Any]:
    """What the dataclass says of a field, and what the panel adds."""
    return {**field.metadata, **EXTRA_METADATA.get(field.name, {})}


def _plain_type(field: dataclasses.Field) -> tuple[type, bool]:
    """(type without None, whether None is allowed)."""
    choices = get_args(field.type)
    return (choices[0], True) if type(None) in choices else (get_origin(field.type) or field.type, False)


def _is_offered(field: dataclasses.Field) -> bool:
    metadata, has_choices = metadata_of(field), _plain_type(field) in ((Literal, False), (bool, False), (str, True))
    can_be_chosen = has_choices or "low" in metadata or field.name in {*RANGES, *CHOICES}
    return can_be_chosen and bool(metadata.get("group")) and field.name != "model_type"
