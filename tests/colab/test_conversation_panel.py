"""Notebooks 2 to 4: what they start from, what they show of their data, and the answers before and after."""

import dataclasses
import json
import os
import re
from html import unescape
from pathlib import Path

import pytest
from chats import write_conversations
from panel_page import plain
from training_cell import train_models

from newllm_lib.colab import live_plot, preview, results
from newllm_lib.colab.live_plot import LivePlot
from newllm_lib.colab.panel import lookups, stage
from newllm_lib.colab.panel.lookups import finished_runs, start_sentence
from newllm_lib.colab.panel.settings_panel import SettingsPanel
from newllm_lib.data.chat_template import TEMPLATES, ConversationFormat
from newllm_lib.data.sources import DATASETS, HubProblem
from newllm_lib.errors import InputError
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.stages.sft import BANDS, OF_THE_MODEL, sft
from newllm_lib.training.checkpoint import SETTINGS_FILE, read_settings
from newllm_lib.training.disk import write_json

STAGES = (stage.DIALOGUE, stage.INSTRUCTIONS, stage.CONVERSATION)


@pytest.fixture
def shown(monkeypatch):
    """All that is displayed, as HTML or as a sentence."""
    contents = []
    for module in (preview, results):
        monkeypatch.setattr(module, "show", contents.append)
        monkeypatch.setattr(module, "say", lambda sentence, status="ok": contents.append(f"{status}: {sentence}"))
    monkeypatch.setattr(live_plot, "say", contents.append)
    handle = type("Handle", (), {"update": lambda self, content: None})()
    monkeypatch.setattr(live_plot, "LivePlot", lambda names: LivePlot(names, show=lambda content: handle))
    return contents


@pytest.fixture
def data(tmp_path):
    return write_conversations(tmp_path / "data.jsonl")


@pytest.fixture
def make_panel(tmp_path, data, monkeypatch):
    """The panel of a stage over a small file, with small rows and few updates."""
    monkeypatch.setenv("NEWLLM_PRESET", "smoke")
    monkeypatch.delenv("NEWLLM_DATA_SOURCE", raising=False)

    def make(which=stage.DIALOGUE, models=("newllm",)) -> SettingsPanel:
        small = {"max_steps": 4, "max_length": 64, "per_device_train_batch_size": 4, "tokenizer": "byte"}
        presets = {"smoke": {**which.presets["smoke"], **small, "eval_steps": 0.5, "save_steps": 0.5}}
        panel = SettingsPanel(dataclasses.replace(which, models=models, presets=presets), tmp_path)
        panel.controls["data"].widget.value = str(data)
        panel.controls["data_source"].widget.value = "file"
        return panel

    return make


@pytest.fixture
def start(tmp_path, text_file):
    """A finished run of notebook 1."""
    args = PretrainArguments(
        data=str(text_file), tokenizer="byte", num_parameters=80_000, max_length=32, max_steps=4, eval_steps=0.5,
        save_steps=0.5, max_eval_tokens=500, per_device_train_batch_size=4,
        output_dir=str(tmp_path / "01_pretrain" / "smoke-1" / "newllm"),
    )  # fmt: skip
    return pretrain(args).parent


def finish(runs, name, seconds, models=("newllm", "tiny-gpt2")):
    for model in models:
        path = runs / name / model / "results.json"
        path.parent.mkdir(parents=True)
        path.write_text('{"loss": 1.0}')
        path.with_name("model.safetensors").touch()
        os.utime(path, (seconds, seconds))
    return runs / name


def test_the_newest_run_with_all_models_of_the_nearest_notebook_comes_first(tmp_path):
    old = finish(tmp_path, "01_pretrain/a", 100)
    new = finish(tmp_path, "01_pretrain/b", 300)
    half = finish(tmp_path, "01_pretrain/c", 400, ["newllm"])
    later = finish(tmp_path, "02_dailydialog/d", 200, ["newllm"])
    (tmp_path / "01_pretrain" / "settings-panel.json").write_text("{}")
    assert finished_runs(tmp_path, ["01_pretrain"], ["newllm", "tiny-gpt2"]) == [new, old]
    assert finished_runs(tmp_path, ["02_dailydialog", "01_pretrain"], ["newllm"]) == [later, half, new, old]
    assert finished_runs(tmp_path / "gone", ["01_pretrain"], ["newllm"]) == []


def test_where_training_starts_is_one_sentence():
    both = ("newllm", "tiny-gpt2")
    assert start_sentence(Path("x/01_pretrain/a"), ("01_pretrain",), both) == "Both models go on from 01_pretrain/a."
    assert "newllm is trained from scratch" in start_sentence(None, ("02_dailydialog", "01_pretrain"), ("newllm",))
    assert "notebook 2 or 1" in start_sentence(None, ("02_dailydialog", "01_pretrain"), ("newllm",))


@pytest.mark.parametrize("which", STAGES, ids=lambda which: which.folder)
def test_every_stage_has_ten_prompts_and_a_panel(which, make_panel):
    assert len(set(which.prompts)) == 10
    panel = make_panel(which)
    assert {"loss_on", "max_samples", "max_length"} <= panel.controls.keys()
    assert not {"model", "model_type"} & panel.controls.keys() and panel.controls["dataset"].value == which.dataset
    args = panel.arguments("newllm")
    assert (
        args.dataset is (which.dataset if "messages" in DATASETS[which.dataset].columns else None)
        and args.model is None
        and "✗" not in panel.line.value
    )
    assert "from scratch" in panel.line.value


def test_new_models_are_as_large_as_notebook_1_makes_them(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_PRESET", "smoke")
    monkeypatch.setenv("NEWLLM_DATA_SOURCE", "offline")
    args = SettingsPanel(stage.INSTRUCTIONS, tmp_path).arguments("newllm")
    assert (args.num_parameters, args.vocab_size) == (500_000, 512)


def test_a_start_model_brings_its_sizes(make_panel, start):
    panel = make_panel()
    assert panel.start_run == start
    args = panel.arguments("newllm")
    assert args.model == str(start / "newllm")
    assert all(getattr(args, name) is None for name in OF_THE_MODEL)
    for name in ("num_parameters", "num_layers", "vocab_size", "tokenizer"):
        assert panel.controls[name].box.layout.display == "none"
    assert "go" in panel.line.value and "01_pretrain/smoke-1" in panel.line.value
    assert "0.08 M" in panel.line.value

    panel.start.value = ""
    assert panel.arguments("newllm").model is None and "from scratch" in panel.line.value
    assert panel.arguments("newllm").output_dir != args.output_dir, "another start is another run"
    assert panel.controls["num_layers"].box.layout.display is None
    assert make_panel().start_run is None, "the choice is kept"
    panel.start.value = str(start)
    assert make_panel().start_run == start


def test_from_the_data_to_the_answers(make_panel, start, shown):
    panel = make_panel()
    preview.preview_conversations(panel)
    html, sentence = shown
    assert "3 conversations" in html and "left out" in html and html.count("flex-end") >= 3
    assert "4 updates" in sentence

    shown.clear()
    folders = train_models(panel, sft)
    results.show_progress(panel, folders)
    assert "newllm before" in shown[1] and "newllm after" in shown[1] and "perplexity" in shown[2]
    assert "bits per byte of the answers" in shown[2] and "newllm chat" not in shown[2]

    shown.clear()
    results.show_answers(panel, folders)
    table, sentence = shown
    assert table.count("<tr") == 12 and all(prompt.split("?")[0] in plain(table) for prompt in panel.stage.prompts)
    assert re.search(r"newllm before \d+, newllm after \d+", sentence)


def test_the_verdict_says_the_bands_of_the_stage(make_panel, shown, monkeypatch):
    monkeypatch.setitem(BANDS, "dolly", (1, 100_000, "", "train on with more --max_samples", ""))
    panel = make_panel(stage.INSTRUCTIONS)
    for name, value in {"num_parameters": 500_000, "tokenizer": "word", "vocab_size": None, "loss_on": "all"}.items():
        panel.controls[name].set(value)
    path = Path(panel.controls["data"].value)
    rows = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    dolly = [{"instruction": row[0]["content"], "context": "", "response": row[1]["content"]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in dolly))
    folders = train_models(panel, sft)
    results.show_progress(panel, folders)
    assert "comparable only to runs with the same words" in shown[2], "a file may be anything"
    settings = read_settings(folders[0])
    write_json(folders[0] / SETTINGS_FILE, settings | {"run": settings["run"] | {"text_source": "hub"}})
    shown.clear()
    results.show_progress(panel, folders)
    assert "is good (1 to 100000): train on with more rows taken." in shown[1]


def test_the_published_cell_is_trained_and_shown_beside_ours(make_panel, shown):
    recipe = {"model_type": "newllm-reference", "num_parameters": 500_000}
    panel = make_panel(dataclasses.replace(stage.INSTRUCTIONS, presets={"smoke": stage.CHAT_PRESETS["smoke"] | recipe}))
    folders = train_models(panel, sft)
    assert [folder.name for folder in folders] == ["newllm", "newllm-reference"]
    shown.clear()
    results.show_progress(panel, folders)
    results.show_answers(panel, folders)
    results.show_comparison(folders)
    assert all("newllm-reference" in html for html in (shown[0], shown[2], shown[4]))


def test_new_models_have_no_before(make_panel, shown):
    panel = make_panel()
    panel.controls["num_parameters"].widget.value = 500_000
    folders = train_models(panel, sft)
    results.show_progress(panel, folders)
    assert "before</td>" not in shown[1] and "no before" in shown[2]
    shown.clear()
    results.show_answers(panel, folders)
    assert "newllm after" in shown[0] and "newllm before" not in shown[0] and "There is no before" in shown[1]


def test_the_learned_tokens_are_marked_and_nothing_is_changed(byte_tokenizer, monkeypatch):
    monkeypatch.setattr(byte_tokenizer, "chat_template", TEMPLATES["dialogue"])
    messages = [{"role": "user", "content": "5 < 6?"}, {"role": "assistant", "content": "Größer."}]
    html = preview.learned_html([messages], byte_tokenizer, ConversationFormat(64))
    spans = html.split("margin:6px 0")[1].split(">", 1)[1]
    assert "User: 5 < 6?\nAssistant: Größer." in plain(spans)
    learned = "".join(re.findall(r'text-decoration:underline">(.*?)</span>', spans))
    assert unescape(learned).strip().startswith("Größer.") and "User" not in learned
    assert preview.learned_html([messages], byte_tokenizer, ConversationFormat(4)) == ""


def test_a_file_may_have_the_columns_of_the_dataset(tmp_path, data):
    path = tmp_path / "dolly.jsonl"
    path.write_text(json.dumps({"instruction": "Say A.", "context": "", "response": "A."}) + "\n")
    assert lookups.dataset_of_file("dolly", str(path)) == "dolly"
    assert lookups.dataset_of_file("dolly", str(data)) is None
    (tmp_path / "text.txt").write_text("Text.")
    with pytest.raises(InputError, match="running text"):
        lookups.dataset_of_file("dolly", str(tmp_path / "text.txt"))


def test_the_source_of_a_dataset(monkeypatch):
    monkeypatch.setattr(lookups, "_answering", lambda dataset: (None, HubProblem("unreachable", "no connection")))
    assert lookups.resolve_source("dolly", "auto", None)[0] == "offline"
    assert "Python's own documentation" in lookups.resolve_source("dolly", "offline", None)[1]
    with pytest.raises(InputError, match="no offline stand-in"):
        lookups.resolve_source("dolly-ja", "offline", None)
    with pytest.raises(InputError, match="could not be had from the hub"):
        lookups.resolve_source("dolly-ja", "auto", None)
    monkeypatch.setattr(lookups, "_answering", lambda dataset: (DATASETS[dataset].sources[0], None))
    assert lookups.resolve_source("dolly", "auto", None)[0] == "hub"


def test_a_comparison_of_conversations_has_the_time_of_a_batch(make_panel, shown):
    panel = make_panel()
    panel.controls["num_parameters"].widget.value = 500_000
    folders = train_models(panel, sft)
    shown.clear()
    results.show_comparison(folders)
    assert "ms per batch of 4 x 64 tokens, training" in shown[0]
    rows = json.loads((folders[0].parent / results.COMPARISON_FILE).read_text())
    assert rows[0]["batch_time"]["milliseconds"] > 0
