"""Stage 1 end to end on small text: what a run leaves, resume to the bit, and what stops it."""

import json
import random
import shutil

import pytest
import torch
from run_files import RUN_FILES, StopAt, assert_same_weights, log_without_clock
from safetensors.torch import load_file
from sample_text import make_text

from newllm_lib.errors import InputError
from newllm_lib.stages.evaluate import evaluate
from newllm_lib.stages.pretrain import PRESETS, PretrainArguments, prepare, pretrain
from newllm_lib.training.callbacks import TrainingInterrupted
from newllm_lib.training.checkpoint import read_history, read_results

STEPS = 12


def arguments(text_file, folder, **fields) -> PretrainArguments:
    small = {"tokenizer": "byte", "max_length": 32, "num_parameters": 120_000, "per_device_train_batch_size": 4}
    small |= {"max_steps": STEPS, "eval_steps": 4, "save_steps": 4, "logging_steps": 2}
    small |= {"data": str(text_file), "output_dir": str(folder)}
    return PretrainArguments(**{**small, **fields})


@pytest.mark.parametrize("model_type", ["newllm", "newllm-reference", "tiny-gpt2", "lstm"])
def test_a_finished_run_holds_everything(text_file, tmp_path, model_type):
    folder = pretrain(arguments(text_file, tmp_path / "run", model_type=model_type, auto_precision=False))
    names = {path.name for path in folder.iterdir()}
    assert names >= RUN_FILES
    assert not list(folder.rglob("*.bin")), "no pickle of settings"
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    results = json.loads((folder / "results.json").read_text())
    losses = [entry["eval_loss"] for entry in read_history(folder) if "eval_loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    # The text held out is small enough to be scored whole each time: the result is the best of the evaluations.
    assert results["loss"] == pytest.approx(min(losses), rel=1e-6)
    assert evaluate(folder)["loss"] == pytest.approx(results["loss"], rel=1e-6)
    assert results["bits_per_byte"] == pytest.approx(results["loss"] / 0.6931471805599453, rel=1e-9)
    card = (folder / "README.md").read_text()
    assert "text.txt" in card
    assert f"{results['parameters']:,} parameters" in card


def test_a_run_in_bf16_scores_nearly_as_evaluate_does_in_fp32(text_file, tmp_path):
    folder = pretrain(arguments(text_file, tmp_path / "run", bf16=True, use_cpu=True))
    results = json.loads((folder / "results.json").read_text())
    assert evaluate(folder)["loss"] == pytest.approx(results["loss"], rel=1e-3)


ACCUMULATED = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}


@pytest.mark.parametrize(
    ("stop_at", "fields"),
    [
        (1, {}),
        (None, {}),
        (8, {**ACCUMULATED, "logging_steps": 5}),
        (5, {"model_type": "tiny-gpt2"}),
        (5, {"model_type": "lstm"}),
    ],
)
def test_interrupted_and_run_again_gives_the_same_bits(text_file, tmp_path, stop_at, fields):
    """None: at any update; drawn here, for tests that run side by side have to have the same names."""
    if stop_at is None:
        stop_at = random.randrange(STEPS - 1)
    unbroken = pretrain(arguments(text_file, tmp_path / "unbroken", **fields))
    with pytest.raises(TrainingInterrupted, match=rf"Stopped at update {stop_at + 1} of {STEPS}"):
        pretrain(arguments(text_file, tmp_path / "broken", **fields), callbacks=(StopAt(stop_at),))
    assert not (tmp_path / "broken" / "results.json").exists()
    broken = pretrain(arguments(text_file, tmp_path / "broken", **fields))
    assert_same_weights(unbroken / f"checkpoint-{STEPS}", broken / f"checkpoint-{STEPS}")
    assert log_without_clock(unbroken) == log_without_clock(broken)


def test_resume_in_a_later_epoch_gives_the_same_bits(tmp_path):
    """Each epoch starts at another row: the resumed run has to find the order of the epoch it is in."""
    short = tmp_path / "short.txt"
    short.write_text(make_text(24))
    fields = {"max_steps": 24, "eval_steps": 24, "save_steps": 24}
    unbroken = pretrain(arguments(short, tmp_path / "unbroken", **fields))
    assert read_history(unbroken)[-1]["epoch"] > 1.5
    with pytest.raises(TrainingInterrupted):
        pretrain(arguments(short, tmp_path / "broken", **fields), callbacks=(StopAt(18),))
    broken = pretrain(arguments(short, tmp_path / "broken", **fields))
    assert_same_weights(unbroken, broken)


def test_a_machine_that_vanishes_while_saving_loses_one_interval(text_file, tmp_path):
    """The last checkpoint is cut off in the middle of a file: the run goes on from the one before, to the same bits."""
    unbroken = pretrain(arguments(text_file, tmp_path / "unbroken"))
    with pytest.raises(TrainingInterrupted):
        pretrain(arguments(text_file, tmp_path / "broken"), callbacks=(StopAt(9),))
    optimizer = tmp_path / "broken" / "checkpoint-10" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    broken = pretrain(arguments(text_file, tmp_path / "broken"))
    assert_same_weights(unbroken, broken)


@pytest.mark.parametrize("keeps_best", [True, False])
def test_a_machine_that_vanishes_after_the_last_checkpoint_trains_nothing_more(text_file, tmp_path, keeps_best):
    fields = {"load_best_model_at_end": keeps_best}
    unbroken = pretrain(arguments(text_file, tmp_path / "unbroken", **fields))
    broken = tmp_path / "broken"
    shutil.copytree(unbroken, broken)
    for name in ("results.json", "README.md", "model.safetensors"):
        (broken / name).unlink()
    pretrain(arguments(text_file, broken, **fields))
    assert read_results(broken) == read_results(unbroken) and read_results(broken)["updates"] == STEPS
    assert_same_weights(unbroken, broken)


def test_a_stop_in_the_last_update_stops_nothing_of_this_run(text_file, tmp_path):
    with pytest.raises(TrainingInterrupted, match="is finished"):
        pretrain(arguments(text_file, tmp_path / "run"), callbacks=(StopAt(STEPS - 1),))
    assert read_results(tmp_path / "run")["updates"] == STEPS


def test_the_context_is_carried_between_batches(text_file, tmp_path):
    """Carrying changes what is learned, and only for recurrent models."""
    weights = {}
    for carry in (True, False):
        folder = pretrain(arguments(text_file, tmp_path / f"carry-{carry}", carry_context=carry, max_steps=4))
        weights[carry] = load_file(folder / "model.safetensors")
    name = "model.layers.0.forget_gate.weight"
    assert not torch.equal(weights[True][name], weights[False][name])
    assert (tmp_path / "carry-True" / "checkpoint-4" / "carried_context.safetensors").exists()
    assert not (tmp_path / "carry-False" / "checkpoint-4" / "carried_context.safetensors").exists()


def test_every_parameter_learns(text_file, tmp_path):
    args = arguments(text_file, tmp_path / "run", max_steps=2)
    before = {name: parameter.clone() for name, parameter in prepare(args).model.named_parameters()}
    after = load_file(pretrain(args) / "checkpoint-2" / "model.safetensors")
    for name, tensor in before.items():
        assert not torch.equal(tensor, after[name]), f"{name} did not move"


def test_the_same_seed_gives_the_same_model(text_file, tmp_path):
    assert_same_weights(*(pretrain(arguments(text_file, tmp_path / name, max_steps=2)) for name in "ab"))


def test_accumulation_does_not_change_what_is_learned(text_file, tmp_path):
    """Micro-batch x accumulation is the device's affair: same rows, same gradients, up to rounding."""
    fields = {"max_steps": 3, "dropout": 0.0, "auto_precision": False}
    whole = pretrain(arguments(text_file, tmp_path / "whole", **fields))
    halves = pretrain(arguments(text_file, tmp_path / "halves", **fields, **ACCUMULATED))
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, halves))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_finished_run_says_so_and_trains_no_more(text_file, tmp_path, caplog):
    args = arguments(text_file, tmp_path / "run", max_steps=2)
    folder = pretrain(args)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    with caplog.at_level("INFO", logger="newllm_lib"):
        pretrain(args)
    assert "This run is finished" in caplog.text
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_early_stopping_ends_a_run_that_no_longer_improves(text_file, tmp_path):
    wild = {"learning_rate": 1.0, "max_grad_norm": 0.0, "warmup_steps": 0}
    often = {"max_steps": 200, "eval_steps": 2, "save_steps": 2, "early_stopping_patience": 2}
    folder = pretrain(arguments(text_file, tmp_path / "run", **wild, **often))
    assert max(entry["step"] for entry in read_history(folder)) < 200


def test_other_settings_never_overwrite_a_run(text_file, tmp_path):
    folder = pretrain(arguments(text_file, tmp_path / "run", max_steps=2))
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"seed was 42, is 7"):
        pretrain(arguments(text_file, folder, max_steps=2, seed=7))
    text_file.write_text(make_text(250))
    with pytest.raises(InputError, match=r"train_text was"):
        pretrain(arguments(text_file, folder, max_steps=2))
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_model_is_evaluated_on_the_text_that_was_held_out(text_file, tmp_path):
    folder = pretrain(arguments(text_file, tmp_path / "run", max_steps=2))
    other = tmp_path / "other.txt"
    other.write_text("Something else altogether.\n" * 20)
    assert evaluate(folder, str(other))["text"] == "file other.txt"
    text_file.write_text(make_text(250))
    with pytest.raises(InputError, match="has changed since; name a text with --data"):
        evaluate(folder)


def test_unknown_words_are_told_and_not_flattered(text_file, tmp_path, caplog):
    with caplog.at_level("INFO", logger="newllm_lib"):
        folder = pretrain(arguments(text_file, tmp_path / "run", tokenizer="word", vocab_size=20, max_steps=2))
    assert "% of the training tokens are <unk>" in caplog.text
    metrics = evaluate(folder)
    assert metrics["unk_rate"] > 0.1
    assert metrics["bits_per_byte"] is None
    assert "not stated" in (folder / "README.md").read_text()


def test_one_line_per_evaluation(text_file, tmp_path, caplog):
    with caplog.at_level("INFO", logger="newllm_lib"):
        pretrain(arguments(text_file, tmp_path / "run"))
    lines = [record.getMessage() for record in caplog.records]
    header = next(index for index, line in enumerate(lines) if line.lstrip().startswith("epoch"))
    assert lines[header].split() == ["epoch", "loss", "perplexity", "accuracy", "bits/byte", "best", "minutes", "left"]
    rows = lines[header + 1 : header + 4]
    assert len([line for line in rows if "✓" in line]) >= 1
    assert all("%" in line for line in rows)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_sets_of_fields(name):
    PretrainArguments(**PRESETS[name])


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"max_length": 1}, r"max_length has to be at least 2, got 1"),
        ({"learning_rate": 0.0}, r"learning_rate has to be more than 0"),
        ({"num_train_epochs": 0.0, "max_steps": -1}, r"num_train_epochs has to be more than 0"),
    ],
)
def test_values_no_run_could_use(text_file, tmp_path, fields, complaint):
    with pytest.raises(InputError, match=complaint):
        arguments(text_file, tmp_path / "run", **fields)


def test_dropout_out_of_range_is_named(text_file, tmp_path):
    with pytest.raises(InputError, match=r"dropout has to be less than 1, got 1\.5"):
        pretrain(arguments(text_file, tmp_path / "run", dropout=1.5))
    assert not (tmp_path / "run").exists()
