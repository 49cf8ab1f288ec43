"""The settings panel: whatever it can be set to either runs or is refused in one sentence; it survives the session."""

import json
import random
import re
from pathlib import Path

import ipywidgets as widgets
import pytest

from newllm_lib.colab.page.notices import CellStopped
from newllm_lib.colab.panel import lookups
from newllm_lib.colab.panel import settings_panel as panel_module
from newllm_lib.colab.panel.estimate import MeasuredUpdate
from newllm_lib.colab.panel.settings_panel import PANEL_FILE
from newllm_lib.data.sources import DATASETS, HubProblem
from newllm_lib.errors import InputError
from newllm_lib.models import build_config, count_parameters
from newllm_lib.stages.pretrain import PRESETS, PretrainArguments

SLIDERS = {
    "max_length", "vocab_size", "num_parameters", "num_layers", "dropout", "max_steps", "num_train_epochs",
    "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "warmup_steps", "weight_decay",
    "seed", "early_stopping_patience",
}  # fmt: skip


def reachable_values(widget) -> list:
    """All the values a user can choose; of long sliders the ends, the middle and a step beside."""
    if isinstance(widget, widgets.Checkbox):
        return [True, False]
    if isinstance(widget, widgets.SelectionSlider | widgets.Dropdown):
        return [value for _, value in widget.options]
    if isinstance(widget, widgets.IntSlider | widgets.FloatSlider):
        middle = widget.min + round((widget.max - widget.min) / 2 / widget.step) * widget.step
        return [widget.min, widget.min + widget.step, middle, widget.max]
    return []


def refused_or_typed(panel) -> bool:
    """True if the panel as it stands gives arguments of the right types, False if it says why not."""
    try:
        args = panel.arguments("newllm")
    except InputError as error:
        assert "✗" in panel.line.value and str(error)
        return False
    assert "✗" not in panel.line.value
    for name, control in panel.controls.items():
        value = getattr(args, name)
        if control.kind is int:
            assert value is None or type(value) is int, name
        elif control.kind is float:
            assert isinstance(value, float), name
    return True


def test_the_panel_offers_every_field_with_a_range(make_panel):
    assert make_panel().controls.keys() >= SLIDERS
    assert "model_type" not in make_panel().controls


@pytest.mark.parametrize("name", sorted(SLIDERS | {"data_source", "tokenizer", "carry_context", "skip_bad_rows"}))
def test_every_reachable_value_runs_or_is_refused(make_panel, name):
    panel = make_panel(models=("newllm",))
    widget = panel.controls[name].widget
    runs = []
    for value in reachable_values(widget):
        widget.value = value
        runs.append(refused_or_typed(panel))
    assert any(runs)


def test_random_combinations_run_or_are_refused(make_panel, monkeypatch):
    monkeypatch.setattr(lookups, "_answering", lambda dataset: (DATASETS[dataset].sources[0], None))
    panel = make_panel(models=("newllm",))
    generator = random.Random(0)
    outcomes = set()
    for _ in range(40):
        panel._filling = True  # all sliders at once: the live line is written for the last
        for control in panel.controls.values():
            if values := reachable_values(control.widget):
                control.widget.value = generator.choice(values)
        panel._filling = False
        panel.controls["data_source"].widget.value = "auto"
        panel.controls["data_source"].widget.value = "file"
        outcomes.add(refused_or_typed(panel))
    assert outcomes == {True, False}


def test_a_float_from_the_page_stays_an_integer(make_panel):
    panel = make_panel(models=("newllm",))
    panel.controls["max_steps"].widget.options = [("20", 20.0)]  # Colab's sliders have sent 20.0 for 20
    assert type(panel.arguments("newllm").max_steps) is int


def test_a_preset_is_applied_whole(make_panel):
    panel = make_panel(models=("newllm",))
    panel.controls["dropout"].widget.value = 0.4
    panel.preset.value = "long"
    args = panel.arguments("newllm")
    assert {name: getattr(args, name) for name in PRESETS["long"]} == PRESETS["long"]
    assert args.max_steps == -1 and args.preset == "long"
    panel.preset.value = "smoke"
    args = panel.arguments("newllm")
    assert {name: getattr(args, name) for name in PRESETS["smoke"]} == PRESETS["smoke"]
    assert args.dropout == PretrainArguments.dropout
    assert args.data_source == "file", "where the text comes from is not the preset's business"


def test_reset_goes_back_to_the_preset(make_panel):
    panel = make_panel(models=("newllm",))
    before = panel.arguments("newllm").output_dir
    panel.controls["learning_rate"].widget.value = 1e-3
    assert panel.arguments("newllm").output_dir != before
    panel.reset.click()
    assert panel.arguments("newllm").output_dir == before


def test_the_panel_is_rebuilt_from_its_file(make_panel):
    panel = make_panel()
    panel.controls["learning_rate"].widget.value = 1e-3
    panel.controls["num_layers"].widget.value = 2
    panel.controls["carry_context"].widget.value = False
    again = make_panel()
    assert again.values() == panel.values()
    assert again.arguments("tiny-gpt2").output_dir == panel.arguments("tiny-gpt2").output_dir


def test_another_preset_asked_for_wins_over_the_file(make_panel, monkeypatch):
    make_panel().controls["dropout"].widget.value = 0.4
    monkeypatch.setenv("NEWLLM_PRESET", "quick")
    panel = make_panel()
    assert panel.preset.value == "quick" and panel.values()["dropout"] == PretrainArguments.dropout


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        '{"preset": "smoke", "values": 3}',
        '{"preset": "gone", "values": {}}',
        json.dumps({"preset": "smoke", "values": {"dropout": "high", "seed": 7, "tokenizer": "gone", "new": 1}}),
    ],
)
def test_a_strange_file_does_not_stop_the_panel(make_panel, tmp_path, monkeypatch, content):
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / PANEL_FILE).write_text(content, encoding="utf-8")
    assert make_panel().values()["dropout"] == PretrainArguments.dropout
    if "seed" in content:
        assert make_panel().values()["seed"] == 7
    monkeypatch.delenv("NEWLLM_PRESET")
    assert make_panel().preset.value in ("smoke", "quick", "standard")


def test_same_settings_same_folder_other_settings_another(make_panel, text_file):
    panel = make_panel()
    first = panel.arguments("newllm").output_dir
    panel.controls["seed"].widget.value = 43
    other = panel.arguments("newllm").output_dir
    panel.controls["seed"].widget.value = 42
    assert panel.arguments("newllm").output_dir == first != other
    text_file.write_text(text_file.read_text() + "One line more.\n")
    assert panel.arguments("newllm").output_dir != first, "another text is another run"


def test_batch_and_accumulation_may_share_an_update_differently(make_panel):
    panel = make_panel()
    first = panel.arguments("newllm").output_dir
    panel.controls["per_device_train_batch_size"].widget.value = 16
    panel.controls["gradient_accumulation_steps"].widget.value = 2
    assert panel.arguments("newllm").output_dir == first


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("parameters", [0, 1_000_000])
def test_both_models_have_one_size(make_panel, layers, parameters):
    panel = make_panel()
    panel.controls["num_layers"].widget.value = layers
    panel.controls["num_parameters"].widget.value = parameters
    counts = []
    for model in panel.models:
        args = panel.arguments(model)
        config = build_config(
            model, args.vocab_size, args.max_length, num_layers=args.num_layers, num_parameters=args.num_parameters,
            bos_token_id=0, eos_token_id=0, pad_token_id=1,
        )  # fmt: skip
        counts.append(count_parameters(config))
    assert abs(counts[0] - counts[1]) <= 0.03 * counts[0]


def test_the_live_line_follows_the_sliders(make_panel):
    panel = make_panel()
    assert "<b>20</b> updates of 32 rows of 64 tokens" in panel.line.value and ": new" in panel.line.value
    assert "minutes" not in panel.line.value and "a minute" not in panel.line.value, "nothing was measured yet"
    panel.measured = dict.fromkeys(panel.models, MeasuredUpdate(12.0, 1_000_000, 2_048))
    panel.controls["max_steps"].widget.value = 20_000
    assert "<b>20,000</b> updates" in panel.line.value
    assert "here for all updates of both models (one was measured)" in panel.line.value
    panel.controls["num_parameters"].widget.value = 8_000_000
    sizes = [float(size) for size in re.findall(r"([\d.]+) M", panel.line.value)[:2]]
    assert sizes == pytest.approx([8, 8], rel=0.02)


def test_the_panel_is_there_while_an_update_is_measured(make_panel, monkeypatch):
    panel, lines = make_panel(models=("newllm",)), []
    monkeypatch.setattr(panel_module, "display", lambda box: lines.append(panel.line.value))
    panel.show()
    assert "One update is measured" in lines[0] and "updates (one was measured)" in panel.line.value
    panel.controls["max_steps"].widget.value = 20_000
    assert re.search(r"about <b>[\d.]+ (minutes|hours)</b>", panel.line.value)


def test_impossible_sizes_are_refused_with_a_way_out(make_panel):
    panel = make_panel()
    panel.controls["num_parameters"].widget.value = 500_000
    panel.controls["vocab_size"].widget.value = 16384
    assert "✗" in panel.line.value and "nearest size" in panel.line.value
    with pytest.raises(InputError, match="num_parameters"):
        panel.arguments("newllm")


def test_my_file_needs_a_file(make_panel, tmp_path):
    panel = make_panel()
    assert panel.controls["data"].box.layout.display is None
    panel.controls["data"].widget.value = str(tmp_path / "gone.txt")
    assert "does not exist" in panel.line.value
    panel.controls["data"].widget.value = ""
    assert "enter the path" in panel.line.value
    panel.controls["data_source"].widget.value = "hub"
    assert panel.controls["data"].box.layout.display == "none"
    assert panel.arguments("newllm").data is None


def test_auto_is_settled_once_and_said(make_panel, monkeypatch):
    panel = make_panel()
    monkeypatch.setattr(lookups, "_answering", lambda dataset: (DATASETS[dataset].sources[0], None))
    panel.controls["data_source"].widget.value = "auto"
    assert panel.arguments("newllm").data_source == "hub" and "auto takes wikitext" in panel.line.value
    monkeypatch.setattr(lookups, "_answering", lambda dataset: (None, HubProblem("unreachable", "no connection")))
    monkeypatch.setattr("newllm_lib.data.sources.find_spec", lambda name: object())
    monkeypatch.setattr("newllm_lib.data.stand_ins.version", lambda name: "0.9.0")
    panel.controls["seed"].widget.value = 1
    assert panel.arguments("newllm").data_source == "offline" and "no connection" in panel.line.value


def test_a_fixed_vocabulary_hides_its_slider(make_panel):
    panel = make_panel()
    panel.controls["tokenizer"].widget.value = "byte"
    assert panel.controls["vocab_size"].box.layout.display == "none"
    assert panel.arguments("newllm").vocab_size is None


def test_given_updates_hide_the_epochs(make_panel):
    panel = make_panel()
    assert panel.controls["num_train_epochs"].box.layout.display == "none"
    panel.controls["max_steps"].widget.value = -1
    assert panel.controls["num_train_epochs"].box.layout.display is None


@pytest.mark.parametrize("name", ["NEWLLM_PRESET", "NEWLLM_DATA_SOURCE"])
def test_a_wrong_environment_is_one_sentence(make_panel, monkeypatch, name):
    monkeypatch.setenv(name, "nonsense")
    with pytest.raises(CellStopped, match="nonsense"):
        make_panel()


def test_what_is_finished_or_begun_is_said(make_panel):
    panel = make_panel()
    folder = Path(panel.arguments("newllm").output_dir)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"loss": 1.0}')
    (folder / "model.safetensors").write_bytes(b"weights")
    panel.controls["seed"].widget.value = 1
    panel.controls["seed"].widget.value = 42
    assert "newllm is finished" in panel.line.value


def test_models_of_a_run_share_its_folder_and_may_have_rates_of_their_own(make_panel):
    panel = make_panel()
    newllm, gpt2 = (panel.arguments(model) for model in ("newllm", "tiny-gpt2"))
    assert (newllm.learning_rate, gpt2.learning_rate) == (5e-3, 3e-3)
    assert Path(newllm.output_dir).parent == Path(gpt2.output_dir).parent
    panel.controls["learning_rate"].set(1e-3)
    assert [panel.arguments(model).learning_rate for model in ("newllm", "tiny-gpt2")] == [1e-3, 1e-3]
    assert Path(panel.arguments("newllm").output_dir).parent != Path(newllm.output_dir).parent
