"""One widget per setting, made from the metadata of the dataclass field: slider, drop-down, check box or text."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import ipywidgets as widgets

from ..errors import InputError
from .notices import FAINT, escape

# What the panel calls a field where its own name would not tell a student; also the order of the panel.
LABELS = {
    "trials": "trials",
    "search_beta": "beta",
    "search_learning_rate": "learning rate",
    "search_lora_r": "rank",
    "search_loss_type": "loss",
    "data_source": "data",
    "data": "your file",
    "eval_data": "held-out file",
    "skip_bad_rows": "skip bad rows",
    "dataset": "dataset",
    "pairs": "pairs",
    "max_samples": "rows taken",
    "tokenizer": "tokenizer",
    "vocab_size": "vocabulary",
    "max_length": "row length",
    "num_parameters": "parameters",
    "num_layers": "layers",
    "model": "base model",
    "load_in_4bit": "4 bit",
    "lora_r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout of the adapters",
    "repetition_penalty": "repetition penalty",
    "distill_weight": "held to the base",
    "temperature": "temperature",
    "rehearsal_ratio": "rehearsal",
    "rehearsal_data": "file to rehearse",
    "rehearsal_eval_data": "file for forgetting",
    "beta": "beta",
    "loss_type": "loss",
    "loss_on": "learn",
    "max_steps": "updates",
    "num_train_epochs": "epochs",
    "learning_rate": "learning rate",
    "sft_epochs": "all answers first",
    "sft_weight": "weight of the chosen",
    "per_device_train_batch_size": "batch size",
    "gradient_accumulation_steps": "accumulation",
    "activation_checkpointing": "compute twice",
    "warmup_steps": "warm-up",
}
CHOICE_LABELS = {"file": "my file", "assistant": "the assistant's words", "all": "every token"}
PLACEHOLDERS = {
    "model": "empty: Gemma-2B, offline Gemma 3 270M",
    "dataset": "empty: generated Japanese pairs",
}
# What the panel needs to know beside our dataclasses, and fields of transformers that these say nothing about.
EXTRA_METADATA = {
    "lora_alpha": {"steps": (4.0, 8.0, 16.0, 32.0, 64.0, 128.0)},
    "repetition_penalty": {"group": "Model"},
    "sft_epochs": {"group": "Training"},
    "sft_weight": {"group": "Training"},
    "search_beta": {"help": "From, to; both knobs on one value keep it."},
    "search_learning_rate": {"help": "From, to; both knobs on one value keep it."},
    "max_steps": {
        "help": "Length of the run in updates; or let the epochs decide.",
        "group": "Training",
        "low": 10,
        "high": 20_000,
        "steps": (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000),
    },
}
AUTOMATIC = "automatic"
UNSET = 0  # stands for None in a slider of steps, where ipywidgets would take None for no step at all
BY_EPOCHS = "by epochs"  # what max_steps shows when it does not decide


@dataclasses.dataclass
class Control:
    """The widget of one setting and what is laid out around it."""

    name: str
    widget: widgets.Widget
    box: widgets.Widget
    kind: type
    optional: bool

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
        """Show `value`; a slider of steps gets a step for it.

        Raises:
            InputError: the setting cannot have that value.
        """
        if value is None:
            value = "" if isinstance(self.widget, widgets.Text) else UNSET
        try:
            if isinstance(self.widget, widgets.SelectionSlider):
                steps = [step for _, step in self.widget.options]
                if value not in steps:
                    self.widget.options = _labelled(self.name, sorted([*steps, self.kind(value)]))
            self.widget.value = value
        except Exception as error:  # the widget's own complaint comes in several types
            raise InputError(f"{self.name} cannot be {value!r}.") from error

    def show_if(self, visible: bool) -> None:
        self.box.layout.display = None if visible else "none"


def settings_fields(arguments_class: type) -> list[dataclasses.Field]:
    """The fields that a panel offers, in its order: those with a range, choices, a yes or no, or a file."""
    fields = [field for field in dataclasses.fields(arguments_class) if _metadata(field).get("group")]
    fields = [field for field in fields if field.name != "model_type" and _is_offered(field)]
    order = list(LABELS)
    return sorted(fields, key=lambda field: order.index(field.name) if field.name in order else len(order))


def columns(fields: Iterable[dataclasses.Field], controls: Mapping[str, Control]) -> list[widgets.Widget]:
    """The controls by group, each group a column: three where there is room for them, else two or one, and none ever
    narrower than its sliders."""
    groups: dict[str, list[widgets.Widget]] = {}
    for field in fields:
        groups.setdefault(_metadata(field)["group"], []).append(controls[field.name].box)
    layout = {"flex": "1 1 290px", "min_width": "270px", "margin": "4px 16px 8px 0"}
    style = f"font-weight:bold;font-size:15px;padding:2px 8px;background:{FAINT}"
    return [
        widgets.VBox([widgets.HTML(f'<div style="{style}">{group}</div>'), *boxes], layout=widgets.Layout(**layout))
        for group, boxes in groups.items()
    ]


def make_control(
    field: dataclasses.Field, extra_values: Iterable[Any] = (), suggestions: Sequence[str] = ()
) -> Control:
    """The control of one field.

    Args:
        extra_values: values a slider of steps has to have beside its own, such as those of presets.
        suggestions: what a text field offers to whoever begins to type.
    """
    metadata = _metadata(field)
    kind, optional = _plain_type(field)
    layout = widgets.Layout(width="auto", min_width="0")
    if field.type is bool:
        widget = widgets.Checkbox(value=field.default, indent=False, layout=layout, description="yes")
    elif kind is str and not get_args(kind) and "low" not in metadata and optional:
        placeholder = PLACEHOLDERS.get(field.name, "path, for example /content/my_text.txt")
        kind_of_text = {"placeholder": placeholder, "continuous_update": False, "layout": layout}
        widget = widgets.Combobox(options=suggestions, **kind_of_text) if suggestions else widgets.Text(**kind_of_text)
    elif get_origin(field.type) is Literal:
        options = [(CHOICE_LABELS.get(choice, choice), choice) for choice in get_args(field.type)]
        widget = widgets.Dropdown(options=options, value=field.default, layout=layout)
    else:
        widget = _slider(field, metadata, kind, optional, extra_values)
    return Control(field.name, widget, labelled(field, widget), kind, optional)


def labelled(field: dataclasses.Field, widget: widgets.Widget) -> widgets.Widget:
    """The widget under its name and help text."""
    tooltip = f"--{field.name}"
    # ipywidgets 7 knows tooltips of buttons only, and the page fails to show a box that has one.
    if "tooltip" in widget.traits() and not isinstance(widget, widgets.Box):
        widget.tooltip = tooltip
    label = LABELS.get(field.name, field.name.replace("_", " "))
    text = (
        f'<div style="line-height:1.35;margin-top:8px"><b title="{tooltip}">{escape(label)}</b>'
        f'<div style="opacity:.75;font-size:12px">{escape(_help(_metadata(field)))}</div></div>'
    )
    heading = widgets.HTML(text, layout=widgets.Layout(width="auto", min_width="0"))
    return widgets.VBox([heading, widget], layout=widgets.Layout(width="auto"))


def _slider(field, metadata, kind, optional, extra_values) -> widgets.Widget:
    low, high = metadata["low"], metadata["high"]
    # The knob at the left end is wider than the rail: without the margin half of it would be cut off.
    layout = widgets.Layout(width="auto", min_width="0", margin="2px 2px 2px 8px")
    common = {"continuous_update": False, "layout": layout}
    if metadata.get("log") or optional or "steps" in metadata:
        steps = metadata.get("steps")
        if steps is None:
            steps = log_steps(low, high, kind) if metadata.get("log") else range(int(low), int(high) + 1)
        default = UNSET if field.default is None else field.default
        options = _labelled(field.name, sorted({*steps, *extra_values, default, *([UNSET] if optional else [])}))
        return widgets.SelectionSlider(options=options, value=default, **common)
    if kind is int:
        return widgets.IntSlider(min=int(low), max=int(high), value=field.default, **common)
    step = _nice(max((high - low) / 50, 1e-9))
    digits = max(-math.floor(math.log10(step)), 0)
    return widgets.FloatSlider(
        min=low, max=high, step=step, value=field.default, readout_format=f".{digits}f", **common
    )


def log_steps(low: float, high: float, kind: type) -> list[float]:
    """Integers: doublings of `low`. Other numbers: 1, 2, 3 and 5 times each power of ten."""
    if kind is int:
        return [*(int(low) * 2**k for k in range(64) if int(low) * 2**k < high), int(high)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 3, 5)]
    return [step for step in steps if low <= step <= high]


def _nice(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `step`."""
    power = 10 ** math.floor(math.log10(step))
    return next(float(f"{m * power:.6g}") for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def _labelled(name: str, values: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(_label(name, value), value) for value in values]


def _label(name: str, value: Any) -> str:
    if name == "max_steps" and value <= 0:
        return BY_EPOCHS
    if value == UNSET:
        return "all" if name == "max_samples" else AUTOMATIC
    if isinstance(value, int):
        return f"{value / 1e6:g} M" if value >= 500_000 else f"{value:,}"
    return f"{value:g}"


def in_the_panels_words(text: str) -> str:
    """A help text or a complaint with the panel's names in the place of flags."""
    return re.sub(r"--(\w+)", lambda flag: LABELS.get(flag[1], flag[1]), text)


def _help(metadata: dict[str, Any]) -> str:
    return in_the_panels_words(metadata["help"].replace("%%", "%"))  # argparse wants the sign doubled


def _metadata(field: dataclasses.Field) -> dict[str, Any]:
    return {**field.metadata, **EXTRA_METADATA.get(field.name, {})}


def _plain_type(field: dataclasses.Field) -> tuple[type, bool]:
    """(type without None, whether None is allowed)."""
    choices = [choice for choice in get_args(field.type) if choice is not type(None)]
    optional = len(choices) < len(get_args(field.type)) and get_origin(field.type) is not Literal
    if optional:
        return choices[0], True
    return (str if get_origin(field.type) is Literal else field.type), False


def _is_offered(field: dataclasses.Field) -> bool:
    kind, optional = _plain_type(field)
    choices = get_origin(field.type) is Literal
    is_search = field.name.startswith("search_")  # whose values a range or ticks stand for
    return choices or kind is bool or (kind is str and optional) or "low" in _metadata(field) or is_search
