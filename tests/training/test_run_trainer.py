"""A loss that is no number ends a run before its weights are harmed, and what was saved can be gone on with."""

import math
import traceback
from types import SimpleNamespace

import pytest
import torch
from earlier_tokenizer import earlier_byte_tokenizer
from preference_runs import dpo_arguments
from run_files import StopAt, log_without_clock
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainerCallback

from newllm_lib.errors import InputError, TrainingDiverged
from newllm_lib.preferences.dpo import dpo
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.training import run_trainer
from newllm_lib.training.checkpoint import numbered_checkpoints
from newllm_lib.training.run_trainer import MOST_UNSEEN, PATIENCE, RunTrainerMixin
from newllm_lib.training.trainer import GraphedTrainer

FIELDS = {"max_steps": 12, "eval_steps": 4, "save_steps": 4}


def train_language_model(folder, name, text_file, callbacks=(), **fields):
    small = {"tokenizer": "byte", "max_length": 32, "num_parameters": 120_000, "per_device_train_batch_size": 4}
    fields = {**small, **FIELDS, **fields}
    return pretrain(PretrainArguments(data=str(text_file), output_dir=str(folder / name), **fields), callbacks)


def tune_preferences(folder, name, text_file, callbacks=(), **fields):
    pytest.importorskip("trl")
    return dpo(dpo_arguments(folder, name, **{**FIELDS, **fields}), callbacks)


def break_losses(monkeypatch, train, *numbers):
    """Let these losses of `train`, counted from 1, be no numbers. What a CUDA graph gives has passed no `Trainer`."""
    kind = GraphedTrainer if train is train_language_model else Trainer
    real, count = kind.training_step, 0

    def training_step(*args, **kwargs):
        nonlocal count
        count += 1
        loss = real(*args, **kwargs)
        return loss * math.nan if count in numbers else loss

    monkeypatch.setattr(kind, "training_step", training_step)


@pytest.mark.parametrize("train", [train_language_model, tune_preferences])
def test_it_ends_at_once_and_goes_on_from_what_was_saved(tmp_path, text_file, monkeypatch, train):
    whole = train(tmp_path, "whole", text_file)
    with monkeypatch.context() as patch:
        break_losses(patch, train, 7)
        with pytest.raises(TrainingDiverged, match=r"learning_rate 0\.\d+: the loss of update 7 is no finite") as error:
            train(tmp_path, "broken", text_file)
    assert error.value.code == "NL-502"
    assert [path.name for path in (tmp_path / "broken").glob("checkpoint-*")] == ["checkpoint-4"]
    again = train(tmp_path, "broken", text_file)
    for path in whole.glob("*model.safetensors"):
        first, second = load_file(path), load_file(again / path.name)
        assert all(torch.equal(first[name], second[name]) for name in first)


class Harm(TrainerCallback):
    """One weight is no number after an update whose loss was one."""

    def __init__(self, step, value=math.nan):
        self.step, self.value = step, value

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            weight = next(weight for weight in model.parameters() if weight.requires_grad)
            weight.data.view(-1)[3] = self.value


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("step", [8, 12])
@pytest.mark.parametrize("save_strategy", ["steps", "no"])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path, text_file, value, step, save_strategy):
    fields = {"save_strategy": save_strategy, "eval_strategy": save_strategy}
    fields |= {"load_best_model_at_end": save_strategy == "steps"}
    whole = train_language_model(tmp_path, "whole", text_file, **fields)
    with pytest.raises(TrainingDiverged, match=r"learning_rate 0\.\d+: .*update (8|9|12) .*no finite number") as error:
        train_language_model(tmp_path, "broken", text_file, (Harm(step, value),), **fields)
    assert error.value.code == "NL-502"
    saved = [number for number, _ in numbered_checkpoints(tmp_path / "broken")]
    assert saved == ([] if save_strategy == "no" else list(range(4, step, 4)))
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    again = train_language_model(tmp_path, "broken", text_file, **fields)
    first, second = load_file(whole / "model.safetensors"), load_file(again / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("train", [train_language_model, tune_preferences])
def test_going_on_repeats_no_evaluation(tmp_path, text_file, train):
    """The one before the first update is in the log, and early stopping has counted it."""
    fields = {"eval_on_start": True, "early_stopping_patience": 1}
    whole = train(tmp_path, "whole", text_file, **fields)
    with pytest.raises(KeyboardInterrupt):  # at once: what a kill leaves
        train(tmp_path, "broken", text_file, (StopAt(5), StopAt(5)), **fields)
    again = train(tmp_path, "broken", text_file, **fields)
    steps = [[entry["step"] for entry in log_without_clock(run)] for run in (whole, again)]
    evaluated = [[entry for entry in log_without_clock(run) if "eval_loss" in entry] for run in (whole, again)]
    assert steps[0] == steps[1] and evaluated[0] == evaluated[1]


@pytest.mark.parametrize("lost", ["model.safetensors", "results.json", "damaged results", "settings.json", "all"])
def test_what_a_finished_run_has_lost_is_made_again(tmp_path, text_file, lost):
    run = train_language_model(tmp_path, "run", text_file)
    expected = {name: (run / name).read_bytes() for name in ("model.safetensors", "results.json", "settings.json")}
    if lost == "damaged results":
        (run / "results.json").write_bytes(expected["results.json"][:40])
    for name in expected if lost == "all" else expected.keys() & {lost}:
        (run / name).unlink()
    train_language_model(tmp_path, "run", text_file)
    assert {name: (run / name).read_bytes() for name in expected} == expected


def test_a_run_with_another_tokenizer_is_not_gone_on_with(tmp_path, text_file, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("newllm_lib.stages.pretrain.build_tokenizer", lambda *args: earlier_byte_tokenizer())
        break_losses(patch, train_language_model, 7)
        with pytest.raises(TrainingDiverged):
            train_language_model(tmp_path, "broken", text_file)
    with pytest.raises(InputError, match=r"an earlier version, with another tokenizer; choose another --output_dir"):
        train_language_model(tmp_path, "broken", text_file)


@pytest.mark.parametrize(("broken", "saved"), [(1, []), (7, [4]), (9, [4, 8]), (12, [4, 8])])
def test_where_the_host_looks_later_no_weights_are_saved_after_such_a_loss(
    tmp_path, text_file, monkeypatch, broken, saved
):
    """As on a GPU: the host looks when it logs, evaluates or saves, and the sentence names the first such update."""
    monkeypatch.setattr(run_trainer, "NO_QUEUE", set())
    whole = train_language_model(tmp_path, "whole", text_file)
    with monkeypatch.context() as patch:
        break_losses(patch, train_language_model, broken, broken + 1)
        with pytest.raises(TrainingDiverged, match=f"the loss of update {broken} is no finite number, and no weights"):
            train_language_model(tmp_path, "broken", text_file)
    assert [step for step, _ in numbered_checkpoints(tmp_path / "broken")] == saved
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    again = train_language_model(tmp_path, "broken", text_file)
    first, second = load_file(whole / "model.safetensors"), load_file(again / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


class Queued(torch.Tensor):
    """A tensor that counts how often the host asks for its value: each time it would wait for a GPU."""

    waits = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        Queued.waits += function in (torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu)
        return super().__torch_function__(function, types, args, kwargs or {})


class OneLoss(Trainer):
    def __init__(self, fp16=False, device="cpu"):
        fields = {"fp16": fp16, "learning_rate": 1.0, "output_dir": "runs/x", "device": torch.device(device)}
        self.args = SimpleNamespace(**fields)
        self.state = SimpleNamespace(global_step=0)


class Checked(RunTrainerMixin, OneLoss):
    pass


def test_the_host_waits_for_no_loss_of_a_gpu_before_it_has_to(monkeypatch):
    monkeypatch.setattr(Trainer, "training_step", lambda self, loss: torch.tensor(loss).as_subclass(Queued))
    monkeypatch.setattr(Queued, "waits", 0)
    trainer = Checked(device="cuda")
    for _ in range(MOST_UNSEEN - 1):
        trainer.training_step(1.0)
    assert Queued.waits == 0
    trainer.training_step(1.0)
    assert Queued.waits == 1 and not trainer.unseen, "what is held of the past has an end"
    trainer.training_step(math.nan)
    with pytest.raises(TrainingDiverged):
        trainer.check_losses()
    assert Queued.waits == 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_under_fp16_some_losses_may_be_no_numbers_for_their_updates_are_left_out(monkeypatch, device):
    monkeypatch.setattr(Trainer, "training_step", lambda self, loss: torch.tensor(loss))
    trainer = Checked(fp16=True, device=device)
    for loss in [math.inf] * PATIENCE + [1.0] + [math.nan] * PATIENCE:
        trainer.training_step(loss)
    trainer.check_losses()
    with pytest.raises(TrainingDiverged):
        trainer.training_step(math.nan)
        trainer.check_losses()


def test_transformers_looks_at_no_loss_either_but_under_fp16(tmp_path):
    """Its filter of the log looks at the loss of every forward pass."""
    args = PretrainArguments(output_dir=str(tmp_path), use_cpu=True)
    assert args.logging_nan_inf_filter is False and "logging_nan_inf_filter" not in args.run_settings()
    assert PretrainArguments(output_dir=str(tmp_path), logging_nan_inf_filter=True).logging_nan_inf_filter is True


class Reads(TorchDispatchMode):
    """Counts how often a value is read from a tensor: from one on a GPU that is a wait. What the head reads on a CPU
    alone, to leave tokens out, does not count."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            callers = {frame.f_code.co_name for frame, _ in traceback.walk_stack(None)}
            self.count += "_loss_without_logits" not in callers
        return function(*args, **(kwargs or {}))


class ReadsOfUpdates(TrainerCallback):
    """Keeps the number of reads in each update, from its first micro-batch to the end of its step."""

    def __init__(self, reads):
        self.reads, self.of_updates = reads, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.before = self.reads.count

    def on_step_end(self, args, state, control, **kwargs):
        self.of_updates.append(self.reads.count - self.before)


@pytest.mark.parametrize("model_type", ["newllm", "lstm"])
def test_an_update_reads_no_value_from_the_device(tmp_path, text_file, monkeypatch, model_type):
    """Neither we nor transformers: a GPU's queue is full while the host prepares the next update."""
    monkeypatch.setattr(run_trainer, "NO_QUEUE", set())
    with Reads() as reads:
        updates = ReadsOfUpdates(reads)
        fields = {"gradient_accumulation_steps": 2, "model_type": model_type, "logging_steps": 4}
        train_language_model(tmp_path, "run", text_file, (updates,), **fields)
    assert updates.of_updates == [0] * 12 and reads.count > 0
