"""The settings panels of notebooks 6 and 7: which pairs, and which model is tuned, found or made."""

from pathlib import Path
from typing import Any

from ...data.sources import find_dataset
from ...errors import InputError
from ...preferences.dpo import check_trl
from ...preferences.pairs import GENERATED
from ...preferences.sweep import SweepArguments, check_optuna
from ...preferences.trials import TRIALS_FILE, read_trials
from ..page.languages import text
from ..page.notices import in_one_sentence
from .lookups import chat_models, choose_model, resolve_source
from .settings_panel import SettingsPanel, live_line_html
from .stage import NotebookStage

NO_CHAT_MODEL = "No chat model is there yet: the cell below trains a small one first, in about a minute."


class PreferencePanel(SettingsPanel):
    """The panel of notebook 6. Its box `data` also says whether the hub is asked for the model."""

    @in_one_sentence()
    def __init__(self, stage: NotebookStage, runs: str | Path):
        super().__init__(stage, runs)
        model = self.controls["model"]
        model.widget.options = [str(folder) for folder in chat_models(self.runs)]
        model.placeholder = "empty: DialoGPT-small"
        model.speak()

    def values(self) -> dict[str, Any]:
        """As of any panel; what does not belong to the kind of pairs is left alone."""
        values = super().values()
        if values["data_source"] == "file":
            values["dataset"] = None
        return values | ({"max_samples": None} if _generates(values) else {"pairs": self.defaults["pairs"]})

    def lacks_chat_model(self) -> bool:
        """True if there is no model to tune but one that is trained for it."""
        values = self.values()
        try:
            return choose_model(values["model"], values["data_source"], self.runs)[0] is None
        except InputError:
            return False  # the hub's model was asked for; what is wrong with it is shown where it is needed

    def _settled(self, values: dict[str, Any]) -> tuple[dict[str, Any], str]:
        check_trl()
        source = values["data_source"]
        model, note = choose_model(values["model"], source, self.runs)
        if model is None:
            raise InputError("no chat model is there yet: run the cell below the settings, which trains one.", "NL-404")
        if source == "file":
            resolve_source("", source, values["data"], values["eval_data"], values["test_data"])
        elif _generates(values):
            source = "offline"
        elif source == "offline":
            raise InputError(f"dataset {values['dataset']!r} is on the hub only; leave it empty for generated pairs.")
        else:
            find_dataset(values["dataset"])
            source = "hub"
        return {"data_source": source, "model": model}, note

    def refresh(self) -> None:
        super().refresh()
        values = self.values()
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

    def arguments(self, model_type: str) -> SweepArguments:
        """The settings of the sweep, whose trials have folders of their own in the sweep's."""
        check_optuna()
        args = super().arguments(model_type)
        args.output_dir = str(Path(args.output_dir).parent)
        return args

    def _state(self, output_dir: Path) -> tuple[Path, str]:
        if not (output_dir / TRIALS_FILE).exists():
            return output_dir, text("new")
        finished = sum(row["state"] == "finished" for row in read_trials(output_dir))
        return output_dir, text("{trials} trials are finished", trials=str(finished))
