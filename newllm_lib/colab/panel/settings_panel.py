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
from ..page.languages import LANGUAGES, text, use_language
from ..page.notices import error_html, in_one_sentence, say
from ..page.pieces import FAINT, button, escape, html_widget, wrapping_row
from ..storage import drive_copier
from .controls import PRESET_TITLES, in_the_panels_words, make_control, metadata_of, relabel, settings_fields
from .estimate import MeasuredUpdate, count_model
from .lookups import data_identity, dataset_of_file, file_identity, finished_runs, resolve_source, start_sentence
from .stage import NotebookStage

# The environment may decide these, where a notebook runs without a reader.
ENVIRONMENT = {"NEWLLM_DATA_SOURCE": "data_source", "NEWLLM_MODEL": "model"}
# Where things come from is not a preset's business.
NOT_OF_A_PRESET = (
    "data_source", "data", "eval_data", "skip_bad_rows", "dataset", "model", "rehearsal_data", "rehearsal_eval_data",
)  # fmt: skip
FIXED_VOCABULARIES = set(TOKENIZERS) - DEFAULT_VOCAB_SIZE.keys()
FROM_SCRATCH = ""  # where a start model's run folder stands otherwise
PANEL_FILE = "settings-panel.json"
GROUP_STYLE = f"font-weight:bold;font-size:15px;padding:2px 8px;background:{FAINT}"


class SettingsPanel:
    """Every setting that makes sense as a slider, for training the stage's models: new ones of equal size, or those of
    an earlier notebook. In the storage `runs` each set of settings has a run folder of its own: changing a setting
    starts a new run, and going back continues the old one. The panel is kept there, too; NEWLLM_PRESET and
    NEWLLM_LANGUAGE come first. Raises InputError: these, or NEWLLM_DATA_SOURCE, name nothing we have."""

    preset_titles = PRESET_TITLES

    @in_one_sentence()
    def __init__(self, stage: NotebookStage, runs: str | Path):
        self.stage, self.runs = stage, Path(runs)
        self.presets = {name: stage.presets[name] for name in self.preset_titles if name in stage.presets}
        self.output_dir, self.models = self.runs / stage.folder, stage.models
        self.measured: dict[str, MeasuredUpdate] = {}
        self._filling = False
        # The model to go on with is chosen among the finished runs.
        hidden = {*stage.fixed, *stage.hidden, *(["model"] if stage.continues else [])}
        fields = [field for field in settings_fields(stage.arguments) if field.name not in hidden]
        self.controls, boxes = {}, {}  # by field; their boxes by group
        for field in fields:
            of_presets = [preset[field.name] for preset in self.presets.values() if field.name in preset]
            control = self.controls[field.name] = make_control(field, of_presets)
            boxes.setdefault(metadata_of(field)["group"], [widgets.HTML()]).append(control.box)
        self.defaults = {name: control.value for name, control in self.controls.items()}
        self.starts = [*map(str, finished_runs(runs, stage.continues, self.models)), FROM_SCRATCH]
        wide = widgets.Layout(width="auto", flex="1 1 240px")
        self.preset = widgets.Dropdown(options=list(self.presets), layout=wide)
        self.start = widgets.Dropdown(options=self.starts, layout=wide)
        self.newest = self.start.value
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

    def show(self) -> None:
        """Display the panel, and measure an update for its live line."""
        self.line.value = live_line_html([text("One update is measured ...")])
        display(self.box)
        try:
            self.measured = self.stage.measure({model: self.arguments(model) for model in self.models})
        except InputError:
            self.measured = {}  # the live line says what is wrong
        self.refresh()
        if self.stage.continues:
            say(start_sentence(self.start_run, self.stage.continues, self.models), "ok" if self.start_run else "note")
        file = str(self.output_dir / PANEL_FILE)
        say(text("Settings are kept in {file}; the cells below take them as they stand.", file=file))

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
            values |= {"data": None, "eval_data": None}
        if values.get("tokenizer") in FIXED_VOCABULARIES:
            values["vocab_size"] = None
        values = {**self.presets[self.preset.value], **values, **self.stage.fixed}
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
        elif values.get("num_layers") is not None and values["num_parameters"] is None:
            # Given layers change the default New-LLM's size, which the library would not match with the others.
            default = self.stage.arguments(**{**values, "model_type": self.models[0]})
            values["num_parameters"] = count_model(default)
        args = self.stage.arguments(**values)
        found = self.stage.resolve(args)
        # Only what the panel offers and presets set: another release of transformers brings other fields. What is left
        # to each model, such as its learning rate, does not part the models of a run.
        ran = args.run_settings()
        settings = {name: None if value is None else ran[name] for name, value in values.items() if name in ran}
        settings |= {"batch": args.effective_batch_size, "model_type": None, "text": data_identity(args), **found}
        if self.start_run is not None:
            weights = [self.start_model(model) / "model.safetensors" for model in self.models]
            settings["starts"] = [file_identity(str(path)) for path in weights]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
        args.output_dir = str(self.output_dir / f"{self.preset.value}-{digest}" / model_type)
        return args

    def _settled(self, values: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """(what the settings that leave a choice come to, what the user should know about it)."""
        source, note = resolve_source(self.stage.dataset, values["data_source"], values["data"], values["eval_data"])
        found = {"data_source": source}
        if "dataset" in values and values["data"] is not None:
            found["dataset"] = dataset_of_file(self.stage.dataset, values["data"])
        return found, note

    def _speak(self) -> None:
        use_language(self.language.value)
        self._filling = True  # new names for the choices set them back for a moment
        for control in self.controls.values():
            control.speak()
        relabel(self.preset, [(text(self.preset_titles[name]), name) for name in self.presets])
        new = text("nothing: train new models")
        relabel(self.start, [("/".join(Path(run).parts[-2:]) if run else new, run) for run in self.starts])
        self._filling = False
        for group, column in self.columns.items():
            column.children[0].value = f'<div style="{GROUP_STYLE}">{escape(text(group))}</div>'
        for name, title in self.titles.items():
            title.value = f"<b>{text(name)}</b>"
        self.reset.description = text("Reset to preset")
        self.refresh()

    def _restore(self) -> None:
        """Start from the preset that is asked for, then what the panel's file holds for it."""
        saved = read_panel_file(self.output_dir)
        language = os.environ.get("NEWLLM_LANGUAGE") or saved.get("language") or last_language(self.runs)
        use_language(language)
        self.language.value = language
        usual = "standard" if find_device().kind == "cuda" else "quick"
        preset = os.environ.get("NEWLLM_PRESET") or saved.get("preset", usual)
        if preset not in self.presets:
            if os.environ.get("NEWLLM_PRESET"):
                raise InputError(f"NEWLLM_PRESET has to be one of {', '.join(self.presets)}, got {preset!r}.")
            preset, saved = "quick", {}
        self.preset.value = preset
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

    def _apply_preset(self) -> None:
        """The preset's values, but for where text and models come from."""
        values = {**self.defaults, **self.presets[self.preset.value]}
        self._filling = True
        self._fill({name: value for name, value in values.items() if name not in NOT_OF_A_PRESET})
        self._filling = False
        self.refresh()

    def refresh(self) -> None:
        """Show what the settings hide, keep them, and write the live line."""
        if self._filling:
            return
        values = {name: control.value for name, control in self.controls.items()}
        for name in ("data", "eval_data", "skip_bad_rows"):
            self.controls[name].show_if(values["data_source"] == "file")
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
            _, note = self._settled(self.values())
        except InputError as error:
            return error_html(error, in_the_panels_words)
        folder, state = self._state(Path(arguments[self.models[0]].output_dir))
        run = text("run folder <b>{folder}</b>: {state}", folder=escape(folder.name), state=state)
        start = start_sentence(self.start_run, self.stage.continues, self.models) if self.stage.continues else ""
        return live_line_html([" · ".join(parts), run, *(escape(line) for line in (start, note) if line)])

    def _state(self, output_dir: Path) -> tuple[Path, str]:
        """(the run's folder, whether it is new, under way or finished, by its models)."""
        folder, copier, states = output_dir.parent, drive_copier(output_dir), []
        for model in self.models:
            if read_results(folder / model) is not None:
                states.append(text("{model} is finished", model=model))
            elif any((folder / model).glob("checkpoint-*")):
                states.append(text("{model} will be continued", model=model))
            elif copier is not None and folder / model in copier.left:
                states.append(text("{model} will be brought back from Drive", model=model))
        return folder, ", ".join(states) or text("new")


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
