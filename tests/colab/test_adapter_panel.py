"""Notebook 5: a panel that names the base, the adapters and the GPU's memory without opening a model; the terms."""

import re

import pytest
from chats import write_conversations
from panel_page import plain, set_to
from sample_text import make_text
from tiny_gemma import GEMMA_2B, tiny_gemma_folder, trainable
from transformers import GemmaConfig

from newllm_lib.adapters import memory_budget, offline_gemma, qlora_lwf
from newllm_lib.adapters.qlora_lwf import prepare
from newllm_lib.colab import preview
from newllm_lib.colab.panel import estimate, lookups
from newllm_lib.colab.panel.estimate import DataSize
from newllm_lib.colab.panel.settings_panel import SettingsPanel
from newllm_lib.colab.panel.stage import ADAPTER
from newllm_lib.errors import InputError
from newllm_lib.training.device import Device, find_device
from newllm_lib.training.disk import KB, MB
from newllm_lib.training.trained_model import BaseModel

SLIDERS = {
    "model", "load_in_4bit", "lora_r", "lora_alpha", "lora_dropout", "distill_weight", "temperature",
    "rehearsal_ratio", "rehearsal_data", "rehearsal_eval_data", "repetition_penalty", "max_steps", "learning_rate",
    "max_length", "max_samples", "per_device_train_batch_size", "gradient_accumulation_steps",
}  # fmt: skip


@pytest.fixture
def model(tmp_path):
    return tiny_gemma_folder(tmp_path / "tiny-gemma")


@pytest.fixture
def make_panel(tmp_path, model, monkeypatch):
    """The panel over a small file, as a new session would build it."""
    monkeypatch.setenv("NEWLLM_PRESET", "smoke")
    monkeypatch.setenv("NEWLLM_MODEL", str(model))
    monkeypatch.delenv("NEWLLM_DATA_SOURCE", raising=False)
    data = write_conversations(tmp_path / "data.jsonl")
    text = tmp_path / "text.txt"
    text.write_text(make_text(240), encoding="utf-8")

    def make() -> SettingsPanel:
        panel = SettingsPanel(ADAPTER, tmp_path / "runs")
        for name, value in {"data": str(data), "rehearsal_data": str(text), "load_in_4bit": False}.items():
            panel.controls[name].widget.value = value
        panel.controls["data_source"].widget.value = "file"
        return panel

    return make


@pytest.fixture
def t4(monkeypatch):
    """A GPU of 15 GB, and Gemma-2B's config: nothing of either is there."""
    device = Device("cuda", "Tesla T4", 14.7, (7, 5), 2)
    base = BaseModel("gemma-2b", "unsloth/gemma-2b", f"unsloth/gemma-2b@{'0' * 40}", "Gemma", "0" * 40)
    for module in (estimate, memory_budget):
        monkeypatch.setattr(module, "find_device", lambda use_cpu: device)
    for module in (lookups, estimate):
        monkeypatch.setattr(module, "base_of", lambda args: base)
        monkeypatch.setattr(module, "config_of", lambda base: GemmaConfig(**GEMMA_2B))


def test_the_panel_offers_the_settings_of_adapters(make_panel):
    panel = make_panel()
    assert panel.controls.keys() >= SLIDERS and not {"tokenizer", "vocab_size", "num_layers"} & panel.controls.keys()
    assert "Gemma-2B" in panel.controls["model"].widget.placeholder
    assert [value for _, value in panel.controls["lora_alpha"].widget.options] == [4, 8, 16, 32, 64, 128]
    for name in panel.presets:
        panel.preset.value = name
        args = panel.arguments("tuned")
        assert {field: getattr(args, field) for field in panel.presets[name]} == panel.presets[name], name
        assert "✗" not in panel.line.value and args.model.endswith("tiny-gemma"), "the model is no preset's business"


@pytest.fixture
def no_gpu(monkeypatch):
    """The panel of a machine without one, which says nothing of its memory and reads no config for it."""
    for module in (estimate, qlora_lwf):
        monkeypatch.setattr(module, "find_device", lambda use_cpu: find_device(use_cpu=True))


def test_the_line_says_what_will_be_trained(make_panel, no_gpu):
    panel = make_panel()
    line = plain(panel.line.value)
    assert "tiny-gemma in full precision" in line and "12 updates of 4 examples" in line
    assert "here for all updates" not in line and "GB" not in line
    args = panel.arguments("tuned")
    counted = lookups.count_trainable(args, lookups.base_of(args))
    prepared = prepare(args)
    assert counted == sum(parameter.numel() for parameter in trainable(prepared.model).values())
    set_to(panel, "max_steps", -1)
    assert "3 epochs of your file" in plain(panel.line.value)


def test_the_disk_that_a_run_takes_is_not_less_than_said(make_panel):
    panel = make_panel()
    said, unit = re.search(r"at least ([\d.]+) (kB|MB) on disk", plain(panel.line.value)).groups()
    folder = qlora_lwf.qlora_lwf(panel.arguments("tuned"))
    adapters = sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in (".safetensors", ".pt"))
    assert 0.7 * adapters < float(said) * {"kB": KB, "MB": MB}[unit] <= adapters


def test_conversations_that_were_counted_are_named(make_panel, monkeypatch):
    panel = make_panel()
    monkeypatch.setattr(estimate, "taken_conversations", lambda args: 1000)
    set_to(panel, "max_steps", -1)
    assert "900 updates of 4 examples, out of up to 1,000 conversations and 200 stretches" in plain(panel.line.value)


def test_minutes_are_told_once_a_block_is_measured(make_panel, monkeypatch):
    panel = make_panel()
    panel.show()
    assert "was measured" not in panel.line.value, "the examples of a file are not counted yet"
    monkeypatch.setattr(estimate, "data_size", lambda args: DataSize(180_000, 1000))
    monkeypatch.setattr(estimate, "taken_conversations", lambda args: 1000)
    panel.refresh()
    assert "here for all updates (one was measured)" in panel.line.value


def test_the_panel_opens_no_model(make_panel, monkeypatch):
    monkeypatch.setattr("newllm_lib.adapters.qlora_lwf.open_to_tune", lambda *args: pytest.fail("a model was opened"))
    monkeypatch.setattr(preview, "display", lambda content: None)
    make_panel().show()


def test_settings_find_their_run_again_and_other_weights_are_another_run(make_panel, tmp_path):
    panel = make_panel()
    first = panel.arguments("tuned").output_dir
    assert first.endswith("tuned") and make_panel().arguments("tuned").output_dir == first
    for name, value in {"lora_r": 16, "distill_weight": 1.0, "load_in_4bit": True}.items():
        before = panel.controls[name].value
        set_to(panel, name, value)
        assert panel.arguments("tuned").output_dir != first, name
        set_to(panel, name, before)
    set_to(panel, "activation_checkpointing", False)  # costs memory or time and changes nothing
    assert panel.arguments("tuned").output_dir == first
    (tmp_path / "text.txt").write_text(make_text(240) + "More.\n")
    assert panel.arguments("tuned").output_dir != first, "another text to rehearse"
    (tmp_path / "text.txt").write_text(make_text(240))
    assert panel.arguments("tuned").output_dir == first
    tiny_gemma_folder(tmp_path / "tiny-gemma", hidden_size=64)
    assert panel.arguments("tuned").output_dir != first, "other weights in the same folder"


def test_a_model_out_of_reach_is_one_sentence(make_panel, tmp_path):
    panel = make_panel()
    for name, value in {"model": "no-such-model", "rehearsal_data": str(tmp_path / "gone.txt")}.items():
        before = panel.controls[name].value
        set_to(panel, name, value)
        assert "✗" in panel.line.value and value in plain(panel.line.value)
        with pytest.raises(InputError, match=name):
            panel.arguments("tuned")
        set_to(panel, name, before)
    assert "✗" not in panel.line.value


def test_what_does_not_fit_on_a_t4_is_refused_with_what_does(make_panel, t4):
    panel = make_panel()
    set_to(panel, "load_in_4bit", True)
    assert "14.7 GB on this GPU" in plain(panel.line.value)
    for name, value in {
        "max_length": 2048,
        "per_device_train_batch_size": 64,
        "activation_checkpointing": False,
    }.items():
        set_to(panel, name, value)
    line = plain(panel.line.value)
    assert "✗" in line and "may be used" in line and "--" not in line
    rows, accumulation, length = map(
        int, re.search(r"batch size (\d+) accumulation (\d+) row length (\d+)", line).groups()
    )
    with pytest.raises(InputError, match="nearest setting that fits"):
        panel.arguments("tuned")
    set_to(panel, "max_length", length)
    set_to(panel, "per_device_train_batch_size", rows)
    assert "✗" not in panel.line.value and rows * accumulation == 128


def test_the_preview_shows_what_is_rehearsed(make_panel, monkeypatch):
    shown = []
    monkeypatch.setattr(preview, "display", lambda content: shown.append(content.data))
    monkeypatch.setattr(preview, "say", shown.append)
    preview.preview_conversations(make_panel())
    assert "general text" in shown[0] and "text.txt" in shown[0] and "3 conversations" in shown[0]
    assert "adapters of rank 8" in shown[1] and "of them rehearsed" in shown[1]


@pytest.fixture
def package(monkeypatch, tmp_path, model, no_gpu):
    """The package of the offline model, installed and never used."""
    folder = tmp_path / "converted"
    monkeypatch.setattr(offline_gemma, "release", lambda: "gemma 1.0.0")
    monkeypatch.setattr(offline_gemma, "converted_folder", lambda: folder)
    monkeypatch.setattr(offline_gemma, "terms_text", lambda: "Gemma Terms of Use\n\n<b>Section 1</b>")
    monkeypatch.setattr(offline_gemma, "offline_gemma", lambda terms_were_shown: folder.mkdir(exist_ok=True) or folder)
    lookups._find.cache_clear()
    lookups.sizes_of.cache_clear()
    yield folder
    lookups._find.cache_clear()
    lookups.sizes_of.cache_clear()


def test_terms_are_shown_before_the_first_use_and_only_then(make_panel, package, monkeypatch):
    shown = []
    monkeypatch.setattr(preview, "display", lambda content: shown.append(content.data))
    monkeypatch.setattr(preview, "say", lambda sentence, status="ok": shown.append(f"{status}: {sentence}"))
    panel = make_panel()
    set_to(panel, "model", offline_gemma.NAME)
    assert "1.90 M trainable parameters" in plain(panel.line.value), "its sizes are known before it is converted"
    assert not package.exists()
    preview.show_base_model(panel)
    terms, note, sentence = shown
    assert "overflow-y:auto" in terms and "&lt;b&gt;Section 1" in terms and note.startswith("note: ")
    assert sentence.startswith(f"ok: The base is {offline_gemma.NAME}") and "Gemma Terms of Use" in sentence
    shown.clear()
    preview.show_base_model(panel)
    assert len(shown) == 1


def test_another_model_needs_no_terms(make_panel, monkeypatch):
    shown = []
    monkeypatch.setattr(preview, "display", lambda content: pytest.fail("nothing but a sentence"))
    monkeypatch.setattr(preview, "say", shown.append)
    preview.show_base_model(make_panel())
    assert len(shown) == 1 and "as the model's owner says" in shown[0]
