"""The settings panel of a stage: presets, sliders by group, and a live line on what a run costs and where it stands."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from ...data.tokenizer import DEFAULT_VOCAB_SIZE, TOKENIZERS
from ...errors import InputError
from ...stages.sft import OF_THE_MODEL
from ...training.checkpoint import read_results
from ...training.device import find_device
from ...training.disk import read_json, write_json
from ..page.languages import LANGUAGES, chosen_language, text, translate, use_language
from ..page.notices import error_html, in_one_sentence, say
from ..page.pieces import FAINT, button, escape, html_widget, wrapping_row
from ..storage import drive_copier
from . import lookups
from .controls import in_the_panels_words, make_control, metadata_of, relabel, settings_fields, title_of
from .estimate import MeasuredUpdate, count_model, minutes_of_preset
from .stage import NotebookStage

# The environment may decide these, where a notebook runs without a reader.
ENVIRONMENT = {"NEWLLM_DATA_SOURCE": "data_source", "NEWLLM_MODEL": "model"}
# Where things come from is not a preset's business.
NOT_OF_A_PRESET = (
    "data_source", "data", "eval_data", "test_data", "skip_bad_rows", "dataset", "mix", "model", "rehearsal_data",
    "rehearsal_eval_data",
)  # fmt: skip
# Left alone, these take no part in the name of a run's folder: folders made without them are found.
LATER_SETTINGS = ("mix", "scale_learning_rate")
FIXED_VOCABULARIES = set(TOKENIZERS) - DEFAULT_VOCAB_SIZE.keys()
FROM_SCRATCH = ""  # where a start model's run folder stands otherwise
PANEL_FILE = "settings-panel.json"
AUTOMATIC = "automatic"  # in the form of the settings cell: as last time, at first as the machine is
GROUP_STYLE = f"font-weight:bold;font-size:15px;padding:2px 8px;background:{FAINT}"


class SettingsPanel:
    """Every setting that makes sense as a slider, for training the stage's models: new ones of equal size, or those of
    an earlier notebook. In the storage `runs` each set of settings has a run folder of its own: changing a setting
    starts a new run, and going back continues the old one. The panel is kept there, too; NEWLLM_PRESET and
    NEWLLM_LANGUAGE come first. Raises InputError: these, or NEWLLM_DATA_SOURCE, name nothing we have."""

    @in_one_sentence()
    def __init__(self, stage: NotebookStage, runs: str | Path):
        self.stage, self.runs = stage, Path(runs)
        self.presets, self.output_dir = stage.presets, self.runs / stage.folder
        self.measured: dict[str, MeasuredUpdate] = {}
        self._filling = False
        # The model to go on with is chosen among the finished runs.
        hidden = {*stage.hidden, *(["model"] if stage.continues else [])}
        fields = [field for field in settings_fields(stage.arguments) if field.name not in hidden]
        self.controls, boxes = {}, {}  # by field; their boxes by group
        for field in fields:
            of_presets = [preset[field.name] for preset in self.presets.values() if preset.get(field.name) is not None]
            self.controls[field.name] = control = make_control(field, of_presets, stage.dataset)
            boxes.setdefault(metadata_of(field)["group"], [widgets.HTML()]).append(control.box)
        self.defaults = {name: control.value for name, control in self.controls.items()}
        wide = widgets.Layout(width="auto", flex="1 1 240px")
        self.preset = widgets.Dropdown(options=list(self.presets), layout=wide)
        self.start = widgets.Dropdown(layout=wide)
        languages = [(name, code) for code, name in LANGUAGES.items()]
        self.language = widgets.ToggleButtons(options=languages, style={"button_width": "auto"})
        self.reset = button("", self._apply_preset, "150px")
        self.line = html_widget()
        # Three columns where there is room.
        column = widgets.Layout(flex="1 1 290px", min_width="270px", margin="4px 16px 8px 0")
        self.columns = {group: widgets.VBox(parts, layout=column) for group, parts in boxes.items()}
        self.titles = {name: widgets.HTML() for name in ("preset", "go on from")}
        lines = [[self.language], [self.titles["preset"], self.preset, self.reset]]
        if stage.continues:
            lines.append([self.titles["go on from"], self.start])
        top = [wrapping_row(*parts, width="auto", max_width="640px") for parts in lines]
        body = wrapping_row(*self.columns.values(), align_items="stretch")
        self.box = widgets.VBox([*top, body, self.line], layout=widgets.Layout(width="100%"))
        self._restore()
        self.language.observe(lambda change: self._speak(), names="value")
        self.preset.observe(lambda change: self._filling or self._apply_preset(), names="value")
        self.start.observe(lambda change: self.refresh(), names="value")
        for control in self.controls.values():
            control.observe(lambda change: self.refresh())
        self._speak()

    def show(self, language: str = AUTOMATIC, preset: str = AUTOMATIC) -> None:
        """Display the panel, with what the form of its cell says, and measure an update for its live line."""
        self._take_form(language, preset)
        self.line.value = live_line_html([text("One update is measured ...")])
        display(self.box)
        self._measure()
        if self.stage.continues:
            start = lookups.start_sentence(self.start_run, self.stage.continues, self.models)
            say(start, "ok" if self.start_run else "note")
        say("During Run all this panel cannot answer: what you move shows when all cells have ended.", "note")
        say(f"Settings are kept in {self.output_dir / PANEL_FILE}; the cells below take them as they stand.")

    @in_one_sentence()
    def _take_form(self, language: str, preset: str) -> None:
        """Raises InputError: the form names a language or a preset that there is not."""
        languages = {name: code for code, name in LANGUAGES.items()}
        for name, value, choices in (("language", language, languages), ("preset", preset, self.presets)):
            if value not in (AUTOMATIC, *choices):
                raise InputError(f"{name} has to be one of {', '.join((AUTOMATIC, *choices))}, got {value!r}.")
        if language != AUTOMATIC and not os.environ.get("NEWLLM_LANGUAGE"):
            self.language.value = languages[language]
        if preset != AUTOMATIC and not os.environ.get("NEWLLM_PRESET"):
            self.preset.value = preset

    @property
    def models(self) -> tuple[str, ...]:
        """What is trained: the stage's models and after them, if it is another, the one that the preset is for."""
        model = self.presets[self.preset.value].get("model_type")
        return self.stage.models if model in (None, *self.stage.models) else (*self.stage.models, model)

    @property
    def start_run(self) -> Path | None:
        """The run whose models are trained on, None for new ones."""
        return Path(self.start.value) if self.start.value != FROM_SCRATCH else None

    def start_model(self, model: str) -> Path | None:
        return None if self.start_run is None else self.start_run / model

    def values(self) -> dict[str, Any]:
        """Field -> value as the panel stands, the preset's other fields included; what is hidden is left alone."""
        values = {name: control.value for name, control in self.controls.items()}
        if values["data_source"] != "file":
            values |= {"data": None, "eval_data": None, "test_data": None}
        elif self.stage.dataset and "dataset" in values:
            # The dataset is the template of a file's rows, if they have its columns.
            values |= {"dataset": self.stage.dataset, "mix": None}
        if values.get("tokenizer") in FIXED_VOCABULARIES:
            values["vocab_size"] = None
        values = {**self.presets[self.preset.value], **values}
        if self.start_run is not None:
            values = {name: value for name, value in values.items() if name not in OF_THE_MODEL}
            del values["tokenizer"]  # the model brings its own
        return values

    def arguments(self, model_type: str) -> Any:
        """The settings of one model's run, and its folder. Raises InputError: as they stand they cannot be run."""
        values = self.values()
        values |= {**self._settled(values)[0], "preset": self.preset.value, "output_dir": str(self.output_dir)}
        if "model_type" in {field.name for field in dataclasses.fields(self.stage.arguments)}:
            values["model_type"] = model_type
        if (start := self.start_model(model_type)) is not None:
            values["model"] = str(start)
        elif model_type in self.stage.models and values.get("num_layers") and values["num_parameters"] is None:
            # Given layers change the default New-LLM's size, which the library would not match with the others.
            default = self.stage.arguments(**{**values, "model_type": self.models[0]})
            values["num_parameters"] = count_model(default)
        args = self.stage.arguments(**values)
        found = {**self.stage.resolve(args), "text": lookups.data_identity(args)}
        # Only what the panel offers and presets set: another release of transformers brings other fields. What is left
        # to each model, such as its learning rate, does not part the models of a run.
        ran = args.run_settings()
        settings = {name: None if value is None else ran[name] for name, value in values.items() if name in ran}
        settings = {name: value for name, value in settings.items() if value or name not in LATER_SETTINGS}
        settings |= {"batch": args.effective_batch_size, "model_type": None, **found}
        if self.start_run is not None:
            weights = [self.start_model(model) / "model.safetensors" for model in self.models]
            settings["starts"] = [lookups.file_identity(str(path)) for path in weights]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
        args.output_dir = str(self.output_dir / f"{self.preset.value}-{digest}" / model_type)
        return args

    def _settled(self, values: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """(what the settings that leave a choice come to, what the user should know about it)."""
        files = values["data"], values["eval_data"], values["test_data"]
        dataset = values.get("dataset") or self.stage.dataset
        source, note = lookups.resolve_source(dataset, values["data_source"], *files)
        if values.get("mix"):
            lookups.check_mix(values["mix"], dataset, source)
        found = {"data_source": source}
        if "dataset" in values and values["data"] is not None:
            found["dataset"] = lookups.dataset_of_file(dataset, values["data"])
        return found, note

    def _speak(self) -> None:
        use_language(self.language.value)
        self._filling = True  # new names for the choices set them back for a moment
        for control in self.controls.values():
            control.speak()
        relabel(self.preset, [(title_of(name), name) for name in self.presets])
        relabel(self.start, self._named_starts())
        self._filling = False
        for group, column in self.columns.items():
            column.children[0].value = f'<div style="{GROUP_STYLE}">{escape(text(group))}</div>'
        for name, title in self.titles.items():
            title.value = f"<b>{text(name)}</b>"
        self.reset.description = text("Reset to preset")
        self.refresh()

    def _measure(self) -> None:
        try:
            self.measured = self.stage.measure({model: self.arguments(model) for model in self.models})
        except InputError:
            self.measured = {}  # the live line says what is wrong
        self.refresh()

    def _offer_starts(self) -> None:
        """Offer the finished runs of all models. A recipe for a model of its own begins with a new one."""
        self.starts = [*map(str, lookups.finished_runs(self.runs, self.stage.continues, self.models)), FROM_SCRATCH]
        self.newest = self.starts[0] if self.models == self.stage.models else FROM_SCRATCH
        self.offered = self.models
        self.start.options = self._named_starts()
        self.start.value = self.newest

    def _named_starts(self) -> list[tuple[str, str]]:
        new = text("nothing: train new models")
        return [("/".join(Path(run).parts[-2:]) if run else new, run) for run in self.starts]

    def _restore(self) -> None:
        """Start from the preset that is asked for, then what the panel's file holds for it."""
        saved = read_panel_file(self.output_dir)
        language = chosen_language() or saved.get("language") or last_language(self.runs)
        use_language(language)
        self.language.value = language
        usual = "standard" if find_device().kind == "cuda" else "quick"
        preset = os.environ.get("NEWLLM_PRESET") or saved.get("preset", usual)
        if preset not in self.presets:
            if os.environ.get("NEWLLM_PRESET"):
                raise InputError(f"NEWLLM_PRESET has to be one of {', '.join(self.presets)}, got {preset!r}.")
            preset, saved = "quick", {}
        self.preset.value = preset
        self._offer_starts()
        self._fill({**self.defaults, **self.presets[preset]})
        for name, value in saved["values"].items() if saved.get("preset") == preset else ():
            with suppress(InputError):  # written by another version: the preset's value stands
                self._fill({name: value})
        if saved.get("start") in self.starts:
            self.start.value = saved["start"]
        for variable, name in ENVIRONMENT.items():
            if os.environ.get(variable):
                self._fill({name: os.environ[variable]})

    def _fill(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if name in self.controls:
                self.controls[name].set(value)

    def _of_the_preset(self) -> dict[str, Any]:
        """The preset's values, but for where text and models come from, unless it names them."""
        kept = {name: value for name, value in self.defaults.items() if name not in NOT_OF_A_PRESET}
        return {**kept, **self.presets[self.preset.value]}

    def _apply_preset(self) -> None:
        trains_others = self.models != self.offered
        self._filling = True
        self._fill(self._of_the_preset())
        if trains_others:
            self._offer_starts()
        self._filling = False
        self.refresh()
        if trains_others and self.measured:
            self._measure()

    def refresh(self) -> None:
        """Show what the settings hide, keep them, and write the live line."""
        if self._filling:
            return
        values = {name: control.value for name, control in self.controls.items()}
        for name in ("data", "eval_data", "test_data", "skip_bad_rows"):
            self.controls[name].show_if(values["data_source"] == "file")
        for name in {"dataset", "mix"} & self.controls.keys():
            self.controls[name].show_if(values["data_source"] != "file")
        for name in {"tokenizer", *OF_THE_MODEL} & self.controls.keys():
            self.controls[name].show_if(self.start_run is None)
        if values.get("tokenizer") in FIXED_VOCABULARIES:
            self.controls["vocab_size"].show_if(False)
        self.controls["num_train_epochs"].show_if(values["max_steps"] <= 0)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        kept = {"preset": self.preset.value, "values": values, "language": self.language.value}
        if self.start.value != self.newest:  # else a newer one is taken as soon as there is one
            kept["start"] = self.start.value
        write_json(self.output_dir / PANEL_FILE, kept)
        self.line.value = self._line()

    def _line(self) -> str:
        try:
            arguments = {model: self.arguments(model) for model in self.models}
            parts = self.stage.phrases(arguments, self.measured)
            if any(args.scale_learning_rate for args in arguments.values()):
                rates = dict.fromkeys(f"{args.peak_learning_rate:.3g}" for args in arguments.values())
                parts.append(f"learning rate <b>{', '.join(rates)}</b>")
            _, note = self._settled(self.values())
        except InputError as error:
            return error_html(error, in_the_panels_words)
        folder, state = self._state(Path(arguments[self.models[0]].output_dir))
        run = text("run folder <b>{folder}</b>: {state}", folder=escape(folder.name), state=state)
        start = lookups.start_sentence(self.start_run, self.stage.continues, self.models)
        of_preset = {name: it for name, it in self._of_the_preset().items() if name in self.controls}
        is_as_it_is = all(self.controls[name].value == value for name, value in of_preset.items())
        usual = minutes_of_preset(self.stage.folder, self.preset.value) if is_as_it_is else ""
        notes = (escape(translate(line)) for line in (usual, start if self.stage.continues else "", note) if line)
        return live_line_html([" · ".join(map(translate, parts)), run, *notes])

    def _state(self, output_dir: Path) -> tuple[Path, str]:
        """(the run's folder, whether it is new, under way or finished, by its models)."""
        folder, copier, states = output_dir.parent, drive_copier(output_dir), []
        for model in self.models:
            if read_results(folder / model) is not None:
                states.append(text("{folder} is finished", folder=model))
            elif any((folder / model).glob("checkpoint-*")):
                states.append(text("{folder} will be continued", folder=model))
            elif copier is not None and folder / model in copier.left:
                states.append(text("{folder} will be brought back from Drive", folder=model))
        return folder, text(", ").join(states) or text("new")


def read_panel_file(folder: Path) -> dict[str, Any]:
    """{"preset", "values", "language", maybe "start"}; {} if there is none of ours: the next change writes it."""
    saved = read_json(folder / PANEL_FILE)
    return saved if isinstance(saved, dict) and isinstance(saved.get("values"), dict) else {}


def last_language(runs: Path) -> str:
    """The language of the panel that was used last, in whichever notebook; at first English."""
    files = sorted(runs.glob(f"*/{PANEL_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = (read_panel_file(path.parent).get("language") for path in files)
    return next((language for language in found if language in LANGUAGES), "en")


def live_line_html(lines: Sequence[str]) -> str:
    style = f"background:{FAINT};padding:6px 10px;line-height:1.6;font-size:14px;overflow-wrap:anywhere"
    return f'<div style="{style}">{"<br>".join(lines)}</div>'
