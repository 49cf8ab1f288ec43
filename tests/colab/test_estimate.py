"""The cost line of models that are trained whole, against what their runs do; and the update that is measured."""

import math
from types import SimpleNamespace

import pytest
import torch

from newllm_lib.colab.panel import estimate
from newllm_lib.colab.panel.estimate import (
    STAND_IN_SIZES,
    WIKITEXT_OFFLINE,
    MeasuredUpdate,
    bytes_per_token,
    gpu_phrase,
    measured_update,
)
from newllm_lib.colab.panel.stage import DIALOGUE
from newllm_lib.data.conversations import load_conversations
from newllm_lib.data.sources import CONVERSATION_DATASETS, DATASETS
from newllm_lib.data.text import load_text
from newllm_lib.models import build_config, build_model
from newllm_lib.stages.pretrain import PRESETS, PretrainArguments, prepare, pretrain
from newllm_lib.training.device import Device
from newllm_lib.training.disk import GB
from newllm_lib.training.trainer import count_training_tokens

UPDATE = MeasuredUpdate(2.0, 1_000_000, 2_048, 3 * GB)


def arguments(text_file, **values):
    return PretrainArguments(output_dir="runs/x", data=str(text_file), data_source="file", **values)


def line(args, measured=None) -> str:
    return " ".join(estimate.phrases({"newllm": args}, measured or {}))


def test_updates_and_tokens_of_a_run_by_steps_are_exact(text_file):
    assert "<b>20</b> updates of 32 rows of 64 tokens = <b>0.04 M</b>" in line(arguments(text_file, **PRESETS["smoke"]))


def test_updates_of_a_run_by_epochs_are_near_and_said_to_be_about(text_file):
    args = arguments(text_file, num_train_epochs=50.0, tokenizer="byte", max_length=16, per_device_train_batch_size=2)
    exact, _ = count_training_tokens(args, len(prepare(args).train_rows))
    said = line(args)
    number = int(said.split("<b>about ")[1].split("</b> updates")[0].replace(",", ""))
    assert number == pytest.approx(exact, rel=0.25)


def test_the_known_sizes_of_the_offline_data_are_right():
    pytest.importorskip("chitchat_dataset")
    size = sum(len(text.encode()) for text in load_text("offline").train.strings())
    assert WIKITEXT_OFFLINE.bytes == pytest.approx(size, rel=0.01)
    for dataset in ("dailydialog", "dolly"):
        sizes = [sum(len(m["content"]) for m in messages) for messages in load_conversations(dataset, "offline").train]
        known = STAND_IN_SIZES[DATASETS[dataset].offline]
        # The standard library's documentation differs between releases of Python.
        assert known.conversations == pytest.approx(len(sizes), rel=0.25)
        assert known.bytes == pytest.approx(sum(sizes), rel=0.35)


def test_the_size_of_every_dataset_is_known_on_the_hub():
    assert estimate.DATA_SIZES.keys() == DATASETS.keys()
    for name in CONVERSATION_DATASETS:
        entry, known = DATASETS[name], estimate.DATA_SIZES[name]
        rows = entry.sources[0].rows.get("train", entry.about)
        held_out = 0 if "validation" in entry.sources[0].splits else 0.05
        assert known.conversations == pytest.approx(rows * (1 - held_out), rel=0.001), name


def test_every_preset_has_its_parameters_minutes_and_disk(text_file):
    for values in PRESETS.values():
        said = line(arguments(text_file, **values), {"newllm": UPDATE})
        assert "parameters" in said and "here for all updates (one was measured)" in said and " on disk" in said


def test_minutes_are_the_measured_update_times_the_updates(text_file):
    args = arguments(text_file, max_steps=1200, num_parameters=1_000_000, vocab_size=512)
    update = MeasuredUpdate(0.5, estimate.count_model(args), 2_048)
    assert "about <b>10 minutes</b> here for all updates" in line(args, {"newllm": update})
    args.max_steps = 2400
    assert "about <b>20 minutes</b> here for all updates" in line(args, {"newllm": update})
    two = ("newllm", "another")
    said = " ".join(estimate.phrases(dict.fromkeys(two, args), dict.fromkeys(two, update)))
    assert "about <b>40 minutes</b> here for all updates of both models (one was measured)" in said


@pytest.mark.parametrize("model_type", ["newllm", "tiny-gpt2"])
def test_an_update_is_measured_on_all_its_tokens_where_it_is_quick(model_type):
    model = build_model(build_config(model_type, vocab_size=512, max_length=64, num_parameters=500_000))
    before = [weight.clone() for weight in model.parameters()]
    args = PretrainArguments(output_dir="runs/x")
    found = measured_update(model, args, rows=4, length=64)
    assert found.tokens == 256 and found.parameters == model.num_parameters() and 0 < found.seconds < 60
    after = [weight.cpu() for weight in model.parameters()]
    assert all((old != new).any() for old, new in zip(before, after, strict=True)), "it was a real update"
    assert found.gpu_bytes is None or torch.cuda.is_available()


def test_what_takes_long_is_measured_on_fewer_tokens(monkeypatch):
    seconds = lambda model, optimizer, input_ids, *rest: lambda: input_ids.numel() / 1000  # noqa: E731
    monkeypatch.setattr(estimate, "TimedUpdate", seconds)
    model = build_model(build_config("newllm", vocab_size=512, max_length=64, num_parameters=500_000))
    found = measured_update(model, PretrainArguments(output_dir="runs/x"), rows=512, length=64)
    assert (found.tokens, found.seconds) == (512, 0.512)


def test_what_does_not_fit_on_the_gpu_is_reckoned_from_fewer_tokens(monkeypatch):
    def update(model, optimizer, input_ids, *rest):
        if input_ids.numel() > 1000:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return lambda: 0.001

    monkeypatch.setattr(estimate, "TimedUpdate", update)
    model = build_model(build_config("newllm", vocab_size=512, max_length=64, num_parameters=500_000))
    assert measured_update(model, PretrainArguments(output_dir="runs/x"), rows=512, length=64).tokens == 512


def test_memory_of_a_gpu_follows_the_sliders_and_what_is_too_much_is_said(monkeypatch, text_file):
    monkeypatch.setattr(estimate, "find_device", lambda use_cpu=False: Device("cuda", "small", 4.0, (7, 5), 2))
    same, larger = UPDATE.gpu_bytes_of(1_000_000, 2_048), UPDATE.gpu_bytes_of(1_000_000, 4_096)
    assert same == 3 * GB and larger == 2 * 3 * GB - 16_000_000
    assert UPDATE.gpu_bytes_of(2_000_000, 2_048) == 3 * GB + 16_000_000
    args = arguments(text_file)
    assert gpu_phrase(args, [None, same]) == ["about <b>3.0 GB of 4.0 GB</b> on this GPU (estimated)"]
    assert "halve the batch size" in gpu_phrase(args, [larger])[0]
    assert gpu_phrase(args, [None]) == []
    monkeypatch.setattr(estimate, "find_device", lambda use_cpu=False: Device("cpu", "CPU", None, None, 2))
    assert gpu_phrase(args, [same]) == [], "there is no figure for a CPU"


def test_the_disk_that_a_run_takes_is_not_less_than_said(make_panel):
    panel = make_panel(models=("newllm",))
    panel.controls["max_steps"].widget.value = 10
    args = panel.arguments("newllm")
    least, checkpoints = estimate.saved_bytes(args, estimate.count_model(args), 10), estimate.kept_checkpoints(args, 10)
    folder = pretrain(args)
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert len(list(folder.glob("checkpoint-*"))) == checkpoints
    assert 0.9 * taken < least <= taken
    assert f"{checkpoints}</b> checkpoints kept of each model" in panel.line.value


def test_a_disk_with_too_little_room_is_named(monkeypatch, text_file):
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    said = line(arguments(text_file, max_steps=10))
    assert "at least <b>79.0 MB</b> on disk, and <b>only 1.0 MB</b> are free" in said


def test_the_tokens_of_a_start_model_are_counted_by_its_own_results(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "results.json").write_text('{"loss": 2.0, "bits_per_byte": 1.0}')
    args = DIALOGUE.arguments(model=str(tmp_path), output_dir="runs/x")
    assert bytes_per_token(args) == pytest.approx(2 / math.log(2))
    (tmp_path / "results.json").write_text("{}")
    assert bytes_per_token(args) == estimate.BYTES_PER_TOKEN["bpe"]
