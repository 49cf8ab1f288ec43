"""Notebooks 2 to 5: the data set is chosen among those of the catalogue, and all that is said follows the choice."""

import dataclasses
import types

import datasets
import huggingface_hub
import pytest
from panel_page import plain, set_to
from tiny_gemma import tiny_gemma_folder

from newllm_lib.colab import preview
from newllm_lib.colab.panel import lookups, stage
from newllm_lib.colab.panel.estimate import MeasuredUpdate
from newllm_lib.colab.panel.preference_panel import PreferencePanel
from newllm_lib.colab.panel.settings_panel import SettingsPanel
from newllm_lib.data.sources import CONVERSATION_DATASETS, DATASETS, HubProblem
from newllm_lib.errors import InputError
from newllm_lib.stages.data import rows_of
from newllm_lib.stages.sft import PRESETS

STAGES = (stage.DIALOGUE, stage.INSTRUCTIONS, stage.CONVERSATION, stage.ADAPTER)


@pytest.fixture
def hub(monkeypatch):
    """A hub that says it has every dataset; nothing is downloaded for the panel."""
    monkeypatch.setattr(lookups, "_answering", lambda dataset: (DATASETS[dataset].sources[0], None))


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr(lookups, "_answering", lambda dataset: (None, HubProblem("unreachable", "no connection")))


@pytest.fixture
def make_panel(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_PRESET", "quick")
    for name in ("NEWLLM_DATA_SOURCE", "NEWLLM_MODEL"):
        monkeypatch.delenv(name, raising=False)
    return lambda which=stage.INSTRUCTIONS: SettingsPanel(which, tmp_path)


@pytest.mark.parametrize("which", STAGES, ids=lambda which: which.folder)
def test_all_conversations_of_the_catalogue_are_offered_with_what_they_are(which, tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_PRESET", "quick")
    control = SettingsPanel(which, tmp_path).controls["dataset"]
    assert control.value == which.dataset
    assert tuple(name for _, name in control.widget.options) == CONVERSATION_DATASETS
    for name in CONVERSATION_DATASETS:
        control.set(name)
        entry, said = DATASETS[name], plain(control.about.value)
        assert said == f"{rows_of(entry)} rows, {entry.language}, licence: {entry.licence}. Good for: {entry.good_for}."


def test_a_choice_is_a_run_of_its_own_and_going_back_finds_the_old_one(make_panel, hub):
    panel = make_panel()
    first, line = panel.arguments("newllm").output_dir, panel.line.value
    set_to(panel, "dataset", "codealpaca")
    args = panel.arguments("newllm")
    assert (args.dataset, args.data_source) == ("codealpaca", "hub") and args.output_dir != first
    assert "auto takes codealpaca from the hub" in plain(panel.line.value) and panel.line.value != line
    panel.preset.value = "standard"
    assert panel.controls["dataset"].value == "codealpaca", "where data come from is no preset's business"
    panel.preset.value = "quick"
    assert make_panel().arguments("newllm").output_dir == args.output_dir, "the choice is kept"
    set_to(panel, "dataset", "dolly")
    assert panel.arguments("newllm").output_dir == first


def test_the_estimate_follows_the_choice(make_panel, hub):
    panel = make_panel(stage.CONVERSATION)
    panel.preset.value = "long"
    updates = {}
    for name in ("ultrachat", "ultrachat-full", "codealpaca"):
        set_to(panel, "dataset", name)
        count = plain(panel.line.value).split(" updates of")[0].split("about ")[-1]
        updates[name] = int(count.replace(",", ""))
    assert updates["ultrachat-full"] > 6 * updates["ultrachat"] > 6 * updates["codealpaca"]


def test_without_a_hub_the_stand_in_is_named_or_that_there_is_none(make_panel, no_hub):
    panel = make_panel()
    assert "auto takes Python's own documentation offline" in plain(panel.line.value)
    set_to(panel, "dataset", "hh-rlhf")
    assert panel.arguments("newllm").data_source == "offline"
    assert "auto takes the ChitChat conversations offline" in plain(panel.line.value)
    set_to(panel, "dataset", "dolly-ja")
    assert "could not be had from the hub" in plain(panel.line.value) and "✗" in panel.line.value
    set_to(panel, "data_source", "offline")
    with pytest.raises(InputError, match="dataset 'dolly-ja' has no offline stand-in; give a file with --data"):
        panel.arguments("newllm")


def test_a_file_hides_the_choice(make_panel, tmp_path):
    panel = make_panel()
    (tmp_path / "mine.jsonl").write_text('{"messages": [{"role": "user", "content": "Say A."}]}\n')
    set_to(panel, "dataset", "codealpaca")
    set_to(panel, "data", str(tmp_path / "mine.jsonl"))
    set_to(panel, "data_source", "file")
    assert panel.controls["dataset"].box.layout.display == "none" and panel.arguments("newllm").dataset is None


def test_notebook_4_reads_the_full_ultrachat(make_panel, monkeypatch):
    """From the panel to the tokens: streamed from a stand-in of the hub."""
    talks = [{"id": str(number), "data": [f"Question {number}?", f"Answer {number}."]} for number in range(300)]
    commit = types.SimpleNamespace(sha="ab" * 20)
    asked = []

    def load_dataset(hub_id, config, split, revision, streaming):
        asked.append((hub_id, streaming))
        return datasets.Dataset.from_list(talks).to_iterable_dataset()

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **kwargs: commit)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    shown = []
    monkeypatch.setattr(preview, "show", shown.append)
    monkeypatch.setattr(preview, "say", lambda sentence, status="ok": shown.append(sentence))
    panel = make_panel(stage.CONVERSATION)
    for name, value in {"dataset": "ultrachat-full", "data_source": "hub", "tokenizer": "byte"}.items():
        set_to(panel, name, value)
    preview.preview_conversations(panel)
    assert set(asked) == {("openbmb/UltraChat", True)}
    assert "openbmb/UltraChat, train" in shown[0] and "MIT by its card" in shown[0]
    assert "conversations are ready" in shown[1]


def test_notebook_5_takes_another_dataset(make_panel, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_MODEL", str(tiny_gemma_folder(tmp_path / "tiny-gemma")))
    panel = make_panel(stage.ADAPTER)
    panel.controls["load_in_4bit"].set(False)
    panel.preset.value = "long"
    args, line = panel.arguments("tuned"), plain(panel.line.value)
    assert args.dataset == "alpaca" and "49,172 conversations" in line
    set_to(panel, "dataset", "codealpaca")
    chosen = panel.arguments("tuned")
    assert chosen.dataset == "codealpaca" and chosen.output_dir != args.output_dir
    assert "19,021 conversations" in plain(panel.line.value)


@pytest.mark.parametrize("which", STAGES[:3], ids=lambda which: which.folder)
def test_the_published_recipes_are_presets_of_the_panel(which, make_panel, hub):
    panel = make_panel(which)
    for name in ("published", "published-hh-rlhf", "published-ultrachat", "published-dailydialog"):
        panel.preset.value = name
        assert panel.models == (*which.models, "newllm-reference") and panel.start_run is None, name
        args, recipe = panel.arguments("newllm-reference"), PRESETS[name]
        assert {field: getattr(args, field) for field in recipe} == recipe, name
        assert args.num_parameters is None, "the published cell is as large as published"
        assert "✗" not in panel.line.value and "newllm-reference 1.4" in plain(panel.line.value)
    assert "Published: hh-rlhf" in [label for label, _ in panel.preset.options]
    panel.preset.value = "quick"
    assert panel.models == which.models and panel.controls["num_train_epochs"].widget.step == 1


def test_a_recipe_of_another_model_is_measured_when_it_is_chosen(make_panel, hub, monkeypatch):
    asked = []

    def measure(arguments):
        asked.append([*arguments])
        return dict.fromkeys(arguments, MeasuredUpdate(1.0, 1_000_000, 2_048))

    which = dataclasses.replace(stage.INSTRUCTIONS, measure=measure)
    panel = make_panel(which)
    panel.preset.value = "published"
    assert asked == [] and "was measured" not in panel.line.value, "nothing is shown yet"
    panel.show()
    panel.preset.value = "quick"
    panel.preset.value = "published"
    assert asked == [["newllm", "newllm-reference"], ["newllm"], ["newllm", "newllm-reference"]]
    assert "updates of both models (one was measured)" in panel.line.value


def test_a_recipe_begins_with_a_new_model_and_may_go_on_from_its_own(make_panel, hub, tmp_path):
    for run, models in {"a": ["newllm"], "b": ["newllm", "newllm-reference"]}.items():
        for model in models:
            folder = tmp_path / "02_dailydialog" / run / model
            folder.mkdir(parents=True)
            (folder / "results.json").write_text('{"loss": 1.0}')
            (folder / "model.safetensors").touch()
    panel = make_panel()
    assert panel.start_run is not None
    panel.preset.value = "published-dailydialog"
    assert panel.start_run is None and len(panel.starts) == 2
    panel.start.value = panel.starts[0]
    panel.preset.value = "published"
    assert panel.start_run.name == "b", "the models are the same: the choice stays"
    panel.preset.value = "quick"
    assert len(panel.starts) == 3 and panel.start.value == panel.starts[0]


def test_notebooks_1_5_and_6_have_their_published_presets_too(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_PRESET", "published")
    kinds = SettingsPanel, SettingsPanel, PreferencePanel
    for kind, which in zip(kinds, (stage.PRETRAIN, stage.ADAPTER, stage.PREFERENCES), strict=True):
        panel = kind(which, tmp_path)
        assert ("newllm-reference" in panel.models) == (which is stage.PRETRAIN)
        assert panel.preset.value == "published", which.folder
        assert ("Published: the usual recipe", "published") in panel.preset.options


def test_the_panel_scales_the_rate_with_the_batch(make_panel, hub):
    panel = make_panel()
    first = panel.arguments("newllm").output_dir
    set_to(panel, "scale_learning_rate", True)
    assert panel.arguments("newllm").output_dir != first and "learning rate 0.002" in plain(panel.line.value)
    set_to(panel, "per_device_train_batch_size", 128)
    assert panel.arguments("newllm").peak_learning_rate == 0.004 and "learning rate 0.004" in plain(panel.line.value)
    set_to(panel, "per_device_train_batch_size", 32)
    set_to(panel, "scale_learning_rate", False)
    assert panel.arguments("newllm").output_dir == first and "learning rate" not in plain(panel.line.value)


def test_a_second_dataset_is_mixed_in_by_the_panel(make_panel, hub):
    panel = make_panel()
    panel.preset.value = "long"
    first, line, control = panel.arguments("newllm"), plain(panel.line.value), panel.controls["mix"]
    assert first.mix is None and control.share.layout.display == "none" and control.about.value == ""
    control.dataset.value = "codealpaca"
    assert control.share.layout.display is None and "20,022 rows, English" in plain(control.about.value)
    args = panel.arguments("newllm")
    assert args.mix == "codealpaca:0.2" and args.output_dir != first.output_dir and plain(panel.line.value) != line
    control.share.value = 0.35
    assert panel.arguments("newllm").mix == "codealpaca:0.35"
    panel.preset.value = "quick"
    assert make_panel().values()["mix"] == "codealpaca:0.35", "the choice is kept, and is no preset's business"
    panel.preset.value = "long"
    control.dataset.value = "dolly"
    assert "✗" in panel.line.value and "same data as the dataset here, dolly" in plain(panel.line.value)
    control.dataset.value = ""
    assert panel.arguments("newllm").output_dir == first.output_dir


def test_what_is_mixed_in_offline_needs_a_stand_in_of_its_own(make_panel, no_hub):
    panel = make_panel()
    for mix, complaint in {"codealpaca:0.2": "same data", "alpaca-ja:0.2": "no offline stand-in"}.items():
        set_to(panel, "mix", mix)
        with pytest.raises(InputError, match=complaint):
            panel.arguments("newllm")
    set_to(panel, "mix", "dailydialog:0.2")
    assert panel.arguments("newllm").mix == "dailydialog:0.2" and "✗" not in panel.line.value
