"""Notebooks 2 to 5: the data set is chosen among those of the catalogue, and all that is said follows the choice."""

import types

import datasets
import huggingface_hub
import pytest
from panel_page import plain, set_to
from tiny_gemma import tiny_gemma_folder

from newllm_lib.colab import preview
from newllm_lib.colab.panel import lookups, stage
from newllm_lib.colab.panel.settings_panel import SettingsPanel
from newllm_lib.data.sources import CONVERSATION_DATASETS, DATASETS, HubProblem
from newllm_lib.errors import InputError
from newllm_lib.stages.data import rows_of

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
    monkeypatch.setattr(preview, "display", lambda content: shown.append(content.data))
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
