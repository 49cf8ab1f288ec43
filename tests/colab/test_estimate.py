"""What the live line reckons with, against what a run really does."""

import json
import subprocess
import sys

import pytest

from newllm_lib.colab import data_size, estimate
from newllm_lib.colab.step_cost import StepCost
from newllm_lib.data.batches import packed_rows
from newllm_lib.data.conversations import load_conversations
from newllm_lib.data.text import chitchat_splits, load_text
from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.stages.pretrain import PRESETS, PretrainArguments, pretrain

STEP = StepCost(1e-10, 1_000_000, 2_048, 700_000_000, 10_000)


def arguments(text_file, **values):
    return PretrainArguments(output_dir="x", data=str(text_file), data_source="file", **values)


def test_updates_and_tokens_of_a_run_by_steps_are_exact(text_file):
    args = arguments(text_file, **PRESETS["smoke"])
    extent = estimate.extent({"newllm": args})
    assert (extent.updates, extent.tokens) == (20, 20 * 32 * 64)


def test_tokens_of_a_run_by_epochs_are_near(text_file):
    args = arguments(text_file, num_train_epochs=2.0, tokenizer="byte", max_length=16)
    extent = estimate.extent({"newllm": args})
    text = load_text(data=str(text_file)).train
    _, counts = packed_rows(text, build_tokenizer("byte", []), 16)
    assert extent.tokens == pytest.approx(2 * counts.tokens, rel=0.25)


def test_the_known_size_of_the_offline_text_is_right():
    pytest.importorskip("chitchat_dataset")
    size = sum(len(text.encode()) for text in chitchat_splits().train.strings())
    known = data_size.DATA_SIZES["wikitext", "offline"]
    assert known.bytes == pytest.approx(size, rel=0.01)


def test_minutes_grow_with_the_work(text_file):
    rates = dict.fromkeys(("newllm", "tiny-gpt2"), STEP)
    minutes = []
    for steps in (100, 1000, 10_000):
        args = {m: arguments(text_file, max_steps=steps, model_type=m) for m in rates}
        minutes.append(estimate.cost(args, rates).minutes)
    assert minutes == sorted(minutes) and minutes[2] == pytest.approx(10 * minutes[1], rel=0.2)


@pytest.mark.parametrize("model_type", ["newllm", "tiny-gpt2"])
def test_a_measured_step_is_plausible(text_file, model_type):
    args = arguments(text_file, model_type=model_type, **PRESETS["smoke"])
    step = estimate.measure(args)
    assert 1e7 < 1 / step.seconds_per_flop < 1e15
    assert 0 < step.bytes_per_token < 1e6


def test_every_preset_can_be_reckoned(text_file):
    for values in PRESETS.values():
        args = arguments(text_file, **values)
        assert estimate.cost({"newllm": args}, {"newllm": STEP}).minutes > 0


@pytest.mark.parametrize("dataset", ["dailydialog", "dolly"])
def test_the_known_sizes_of_offline_conversations_are_right(dataset):
    pytest.importorskip("chitchat_dataset")
    sizes = [sum(len(m["content"]) for m in messages) for messages in load_conversations(dataset, "offline").train]
    known = data_size.DATA_SIZES[dataset, "offline"]
    # The standard library's documentation differs between releases of Python.
    assert known.conversations == pytest.approx(len(sizes), rel=0.25)
    assert known.bytes == pytest.approx(sum(sizes), rel=0.35)


def test_the_disk_that_a_run_takes_is_near(make_panel):
    panel = make_panel(models=("newllm",))
    panel.controls["max_steps"].widget.value = 10
    args = panel.arguments("newllm")
    expected = estimate.extent({"newllm": args})
    folder = pretrain(args)
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert len(list(folder.glob("checkpoint-*"))) == expected.checkpoints
    assert expected.disk_bytes == pytest.approx(taken, rel=0.15)
    assert f"{expected.checkpoints}</b> checkpoints kept of each model" in panel.line.value


def test_the_memory_that_a_run_takes_is_near(tmp_path):
    """In a process of its own, so that its peak is the run's."""
    pytest.importorskip("chitchat_dataset")
    command = [sys.executable, "benchmarks/cost_line.py", "--presets", "smoke", "--output_dir", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    ((said, taken),) = (row["bytes"] for row in json.loads((tmp_path / "cost_line.json").read_text()))
    assert said == pytest.approx(taken, rel=0.15)
