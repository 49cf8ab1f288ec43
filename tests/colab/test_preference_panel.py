"""Notebooks 6 and 7: what their panels offer, which pairs and which model they come to, what is one and the same run,
and what they say of minutes and disk."""

import json
import re
from pathlib import Path

import pytest
from chats import write_conversations
from panel_page import plain, set_to
from preference_runs import make_pairs, tiny_chat_model, write_pairs

pytest.importorskip("trl")
pytest.importorskip("optuna")
from tiny_gemma import trainable

from newllm_lib.adapters.lora import add_adapters
from newllm_lib.colab import preview
from newllm_lib.colab.panel import lookups
from newllm_lib.colab.panel.estimate import generated_for_training, sequence_tokens
from newllm_lib.colab.panel.lookups import chat_models as found_models
from newllm_lib.colab.panel.lookups import choose_model
from newllm_lib.colab.panel.preference_panel import PreferencePanel, SweepPanel
from newllm_lib.colab.panel.stage import EXPERIMENTS, PREFERENCES
from newllm_lib.errors import InputError
from newllm_lib.preferences.dpo import dpo, prepare
from newllm_lib.preferences.pairs import encode_preferences
from newllm_lib.preferences.sweep import sweep
from newllm_lib.stages.sft import SftArguments
from newllm_lib.training.disk import MB
from newllm_lib.training.trained_model import BaseModel


def finish_chat_model(runs: Path, name: str, model_type: str = "tiny-gpt2") -> Path:
    """A chat model as a notebook would leave it."""
    folder = tiny_chat_model(runs / name / model_type, model_type, max_length=256)
    (folder / "results.json").write_text("{}")
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_PRESET", "smoke")
    monkeypatch.setenv("NEWLLM_DATA_SOURCE", "offline")
    monkeypatch.delenv("NEWLLM_MODEL", raising=False)
    return tmp_path / "runs"


@pytest.fixture
def chat_model(runs):
    return finish_chat_model(runs, "02_dailydialog/quick-1")


def is_shown(panel, name):
    return panel.controls[name].box.layout.display is None


def test_the_panel_offers_the_settings_of_preferences(runs, chat_model):
    panel = PreferencePanel(PREFERENCES, runs)
    wanted = {"model", "pairs", "dataset", "lora_r", "lora_alpha", "beta", "loss_type", "sft_weight", "max_steps"}
    assert panel.controls.keys() >= wanted | {"learning_rate", "num_train_epochs", "max_length"}
    assert "DialoGPT-small" in panel.controls["model"].widget.placeholder
    assert panel.controls["model"].widget.options == (str(chat_model),)
    assert list(panel.presets) == ["smoke", "demo", "quick", "standard", "long", "published"]
    for name in panel.presets:
        if name != "published":  # GPT-2's layers, and not those of every chat model
            panel.preset.value = name
            args = panel.arguments("tuned")
            assert {field: getattr(args, field) for field in panel.presets[name]} == panel.presets[name], name


def test_the_line_says_what_is_tuned_and_by_how_much(runs, chat_model):
    panel = PreferencePanel(PREFERENCES, runs)
    line = plain(panel.line.value)
    args = panel.arguments("tuned")
    pairs = args.effective_batch_size
    assert "tiny-gpt2" in line and f"12 updates of {pairs} pairs, out of 102 generated ones" in line
    assert "The newest chat model here is tuned: 02_dailydialog/quick-1/tiny-gpt2" in line
    prepared = prepare(args)
    assert len(prepared.train_rows.pairs) == generated_for_training(args) == 102
    adapted = add_adapters(prepared.model, args.lora_r, args.lora_alpha, 0.0, args.targets)
    assert f"{sum(p.numel() for p in trainable(adapted).values()):,} trainable parameters" in line
    set_to(panel, "max_steps", -1)
    assert f"{3 * -(-102 // pairs)} updates of {pairs} pairs" in plain(panel.line.value), "three epochs of 102 pairs"
    assert "after 0.5 passes over all answers" in line
    set_to(panel, "sft_epochs", 0.0)
    assert "passes over all answers" not in plain(panel.line.value)


def test_what_belongs_to_other_pairs_is_hidden_and_left_alone(runs, chat_model, tmp_path):
    panel = PreferencePanel(PREFERENCES, runs)
    shown = {name: is_shown(panel, name) for name in ("pairs", "dataset", "max_samples", "data")}
    assert shown == {"pairs": True, "dataset": True, "max_samples": False, "data": False}
    generated = panel.arguments("tuned").output_dir
    set_to(panel, "max_samples", 100)
    assert panel.arguments("tuned").output_dir == generated and panel.arguments("tuned").max_samples is None

    panel.controls["data"].widget.value = str(write_pairs(tmp_path / "pairs.jsonl", make_pairs(20)))
    set_to(panel, "data_source", "file")
    shown = {name: is_shown(panel, name) for name in ("pairs", "dataset", "max_samples", "data")}
    assert shown == {"pairs": False, "dataset": False, "max_samples": True, "data": True}
    args = panel.arguments("tuned")
    assert args.dataset is None and args.output_dir != generated and args.max_samples == 100
    set_to(panel, "pairs", 500)
    assert panel.arguments("tuned").output_dir == args.output_dir
    assert "12 updates of" in plain(panel.line.value) and "generated" not in plain(panel.line.value)
    panel.controls["data"].widget.value = ""
    assert "enter the path" in plain(panel.line.value)


def test_a_dataset_of_the_hub_has_to_be_reached(runs, chat_model):
    panel = PreferencePanel(PREFERENCES, runs)
    set_to(panel, "dataset", "hh-rlhf")
    assert "is on the hub only" in plain(panel.line.value) and not is_shown(panel, "pairs")
    panel.controls["model"].set(str(chat_model))
    set_to(panel, "data_source", "auto")
    args = panel.arguments("tuned")
    assert (args.data_source, args.dataset, args.model) == ("hub", "hh-rlhf", str(chat_model))
    assert "✗" not in panel.line.value
    set_to(panel, "dataset", "no-such-set")
    assert "dataset has to be one of" in plain(panel.line.value)


def test_settings_find_their_run_again_and_another_model_is_another_run(runs, chat_model):
    panel = PreferencePanel(PREFERENCES, runs)
    first = panel.arguments("tuned").output_dir
    assert first.endswith("tuned") and PreferencePanel(PREFERENCES, runs).arguments("tuned").output_dir == first
    for name, value in {"beta": 0.5, "loss_type": "ipo", "sft_weight": 0.2, "pairs": 200}.items():
        before = panel.controls[name].value
        set_to(panel, name, value)
        assert panel.arguments("tuned").output_dir != first, name
        set_to(panel, name, before)
    set_to(panel, "model", str(chat_model))  # named, and no other than before
    assert panel.arguments("tuned").output_dir == first
    set_to(panel, "model", str(finish_chat_model(runs, "03_dolly/quick-1", "newllm")))
    assert panel.arguments("tuned").output_dir != first
    assert "newllm" in plain(panel.line.value)


def test_what_the_model_cannot_do_is_said_in_the_panels_words(runs, chat_model):
    panel = PreferencePanel(PREFERENCES, runs)
    set_to(panel, "max_length", 512)
    line = plain(panel.line.value)
    assert "✗" in line and "row length 256 or less" in line and "--" not in line
    set_to(panel, "max_length", 256)
    set_to(panel, "model", str(finish_chat_model(runs, "04_ultrachat/quick-1", "newllm")))
    panel.preset.value = "published"
    assert "no layers called c_attn,c_proj" in plain(panel.line.value)


def test_which_chat_model_is_taken(runs, monkeypatch):
    assert choose_model("some/where", "hub", runs)[0] == "some/where", "what is named is not doubted here"
    assert choose_model(None, "offline", runs)[0] is None
    made = finish_chat_model(runs, "06_chat_model/smoke")
    assert choose_model(None, "offline", runs)[0] == str(made)
    finish_chat_model(runs, "01_pretrain/quick-1")
    instructed = finish_chat_model(runs, "03_dolly/quick-1", "newllm")
    assert found_models(runs) == [instructed, made], "a model of notebook 1 is no chat model"
    talks = finish_chat_model(runs, "02_dailydialog/quick-1")
    chosen, how = choose_model(None, "offline", runs)
    assert chosen == str(talks) and "02_dailydialog/quick-1/tiny-gpt2" in how

    def unreachable(model, offline=False):
        raise InputError(f"model {model!r} could not be had from the hub (no connection); check the network.")

    monkeypatch.setattr(lookups, "base_named", unreachable)
    chosen, how = choose_model(None, "auto", runs)
    assert chosen == str(talks) and "no connection" in how and "check" not in how
    with pytest.raises(InputError, match="could not be had from the hub"):
        choose_model(None, "hub", runs)
    dialogpt = BaseModel("DialoGPT-small", "microsoft/DialoGPT-small", "x@0", "MIT")
    monkeypatch.setattr(lookups, "base_named", lambda model: dialogpt)
    assert choose_model(None, "auto", runs)[0] == choose_model(None, "file", runs)[0] == dialogpt.path


def test_without_any_chat_model_one_is_trained_and_said_to_be_small(runs, monkeypatch):
    said = []
    monkeypatch.setattr(preview, "say", lambda sentence, status="ok": said.append(f"{status}: {sentence}"))
    panel = PreferencePanel(PREFERENCES, runs)
    assert "the cell below trains a small one first" in panel.line.value
    with pytest.raises(InputError, match="run the cell below the settings"):
        panel.arguments("tuned")
    data = write_conversations(runs / "data.jsonl")
    how = preview.small_chat_model(runs)
    assert (how.model_type, how.dataset, how.data_source, how.max_steps) == ("tiny-gpt2", "dailydialog", "offline", 20)
    few = SftArguments(
        model_type="tiny-gpt2", data=str(data), tokenizer="byte", num_parameters=80_000, max_steps=2, eval_steps=0.5,
        save_steps=0.5, max_eval_tokens=300, per_device_train_batch_size=2, output_dir=how.output_dir,
    )  # fmt: skip
    monkeypatch.setattr(preview, "small_chat_model", lambda runs: few)
    preview.show_tuned_model(panel)
    assert said[0].startswith("note: There is no chat model") and "makes no sense" in said[0]
    assert said[1].startswith("ok: tiny-gpt2 is tuned") and panel.arguments("tuned").model == how.output_dir
    assert "102 generated ones" in plain(panel.line.value)
    said.clear()
    talks = finish_chat_model(runs, "02_dailydialog/quick-1")
    preview.show_tuned_model(panel)
    assert len(said) == 1 and "06_chat_model/smoke/tiny-gpt2" in said[0], "what else could be tuned"
    assert panel.arguments("tuned").model == str(talks)


def test_the_panel_opens_no_model(runs, chat_model, monkeypatch):
    monkeypatch.setattr("newllm_lib.preferences.dpo.open_to_tune", lambda *args: pytest.fail("a model was opened"))
    monkeypatch.setattr(preview, "say", lambda sentence, status="ok": None)
    preview.show_tuned_model(PreferencePanel(PREFERENCES, runs))


def test_ranges_and_ticks_are_the_texts_of_the_sweep(runs, chat_model):
    panel = SweepPanel(EXPERIMENTS, runs)
    assert not {"beta", "learning_rate", "lora_r", "loss_type"} & panel.controls.keys()
    args = panel.arguments("trials")
    assert (args.search_beta, args.search_learning_rate) == ("0.02,0.5", "0.0001,0.005")
    assert (args.search_lora_r, args.search_loss_type) == ("4,8,16,32", "sigmoid,hinge,ipo")
    assert "3 trials of tiny-gpt2" in plain(panel.line.value) and "each 6 updates of" in plain(panel.line.value)

    panel.controls["search_beta"].widget.value = (0.1, 0.1)
    next(box for box in panel.controls["search_lora_r"].widget.children if box.description == "8").value = False
    args = panel.arguments("trials")
    assert args.search_beta == "0.1" and args.search_lora_r == "4,16,32"
    assert args.ranges()["beta"] == (0.1, 0.1)
    assert SweepPanel(EXPERIMENTS, runs).arguments("trials").output_dir == args.output_dir, "the panel is kept"
    set_to(panel, "search_learning_rate", "0.0007,0.004")  # no steps of the slider
    assert panel.arguments("trials").search_learning_rate == "0.0007,0.004"
    set_to(panel, "search_loss_type", "")
    assert "search_loss_type has to be of" in plain(panel.line.value)
    for name, value in {"search_lora_r": "3", "search_beta": "wide"}.items():
        with pytest.raises(InputError, match=name):
            panel.controls[name].set(value)


def test_more_trials_are_the_same_sweep_and_other_ranges_another(runs, chat_model):
    panel = SweepPanel(EXPERIMENTS, runs)
    first = Path(panel.arguments("trials").output_dir)
    assert first.parent == runs / "07_dpo_experiments", "its trials are where other notebooks have their models"
    set_to(panel, "trials", 50)
    assert Path(panel.arguments("trials").output_dir) == first
    first.mkdir()
    rows = [{"trial": 1, "state": "finished"}, {"trial": 2, "state": "running"}]
    (first / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    panel.refresh()
    assert "1 trials are finished" in plain(panel.line.value)
    set_to(panel, "search_lora_r", "4,8")
    assert Path(panel.arguments("trials").output_dir) != first and "new" in plain(panel.line.value)


def test_a_box_of_ticks_has_no_tooltip(runs, chat_model):
    """JupyterLab 4 cannot show a box that has one."""
    box = SweepPanel(EXPERIMENTS, runs).controls["search_lora_r"].widget
    assert len(box.children) == 6 and not (box.has_trait("tooltip") and box.tooltip)


@pytest.mark.parametrize(
    ("make", "stage", "run"), [(PreferencePanel, PREFERENCES, dpo), (SweepPanel, EXPERIMENTS, sweep)]
)
def test_the_disk_that_it_takes_is_not_less_than_said(runs, chat_model, make, stage, run):
    panel = make(stage, runs)
    if make is SweepPanel:
        set_to(panel, "trials", 2)
        set_to(panel, "search_lora_r", "16")
    (said,) = re.findall(r"at least ([\d.]+) MB on disk", plain(panel.line.value))
    folder = run(panel.arguments("tuned"))
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert 0.6 * taken < float(said) * MB <= taken


@pytest.mark.parametrize(("make", "stage"), [(PreferencePanel, PREFERENCES), (SweepPanel, EXPERIMENTS)])
def test_minutes_are_told_once_updates_are_measured(runs, chat_model, make, stage):
    panel = make(stage, runs)
    assert "was measured" not in panel.line.value
    panel.show()
    assert "here for all updates (one was measured)" in panel.line.value
    assert panel.measured.keys() == {"answers", "pairs"}
    length = round(sequence_tokens(panel.arguments("tuned")))
    assert panel.measured["pairs"].tokens == 8 * length, "four pairs"
    slow = panel.measured["pairs"]._replace(seconds=60.0)
    panel.measured = panel.measured | {"pairs": slow}
    set_to(panel, "max_steps", 50)
    trials = panel.controls["trials"].value if make is SweepPanel else 1
    (said,) = re.findall(r"about ([\d.]+) (?:minutes|hours) here for all updates", plain(panel.line.value))
    assert float(said) == pytest.approx(50 * trials if trials == 1 else 50 * trials / 60, rel=0.15)


def test_answers_have_more_tokens_without_new_ones(runs, chat_model):
    panel = PreferencePanel(PREFERENCES, runs)
    tokens = sequence_tokens(panel.arguments("tuned"))
    set_to(panel, "sft_epochs", 0.0)
    assert sequence_tokens(panel.arguments("tuned")) > 1.2 * tokens


def test_the_tokens_of_a_pair_are_counted_by_its_tokenizer(runs, chat_model):
    args = PreferencePanel(PREFERENCES, runs).arguments("tuned")
    prepared = prepare(args)
    encoded = list(encode_preferences(prepared.train_rows.pairs, prepared.tokenizer, args.max_length))
    lengths = [2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in encoded]
    assert 2 * sequence_tokens(args) == pytest.approx(sum(lengths) / len(lengths), rel=0.15)


def test_for_pairs_that_are_not_counted_there_are_no_minutes(runs, chat_model, tmp_path):
    panel = PreferencePanel(PREFERENCES, runs)
    panel.show()
    set_to(panel, "data", str(write_pairs(tmp_path / "pairs.jsonl", make_pairs(20))))
    set_to(panel, "data_source", "file")
    assert "was measured" not in panel.line.value and "on disk" in panel.line.value
    set_to(panel, "max_steps", -1)
    assert "on disk" not in panel.line.value
    panel.show()
    assert "✗" not in panel.line.value
