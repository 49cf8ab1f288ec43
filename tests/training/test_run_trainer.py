"""A loss that is no number ends a run before its weights are harmed, and what was saved can be gone on with."""

import math

import pytest
import torch
from earlier_tokenizer import earlier_byte_tokenizer
from preference_runs import dpo_arguments
from safetensors.torch import load_file
from transformers import Trainer

from newllm_lib.errors import InputError, TrainingDiverged
from newllm_lib.stages.dpo import dpo
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.training.run_trainer import PATIENCE, RunTrainerMixin

FIELDS = {"max_steps": 12, "eval_steps": 4, "save_steps": 4}


def train_language_model(folder, name, text_file):
    small = {"tokenizer": "byte", "max_length": 32, "num_parameters": 120_000, "per_device_train_batch_size": 4}
    return pretrain(PretrainArguments(data=str(text_file), output_dir=str(folder / name), **small, **FIELDS))


def tune_preferences(folder, name, text_file):
    pytest.importorskip("trl")
    return dpo(dpo_arguments(folder, name, **FIELDS))


def break_losses(monkeypatch, *numbers):
    """Let these losses of all that follow, counted from 1, be no numbers."""
    real, count = Trainer.training_step, 0

    def training_step(*args, **kwargs):
        nonlocal count
        count += 1
        loss = real(*args, **kwargs)
        return loss * math.nan if count in numbers else loss

    monkeypatch.setattr(Trainer, "training_step", training_step)


@pytest.mark.parametrize("train", [train_language_model, tune_preferences])
def test_it_ends_at_once_and_goes_on_from_what_was_saved(tmp_path, text_file, monkeypatch, train):
    whole = train(tmp_path, "whole", text_file)
    with monkeypatch.context() as patch:
        break_losses(patch, 7)
        with pytest.raises(TrainingDiverged, match=r"learning_rate 0\.\d+: the loss of update 7 is no finite") as error:
            train(tmp_path, "broken", text_file)
    assert error.value.code == "NL-502"
    assert [path.name for path in (tmp_path / "broken").glob("checkpoint-*")] == ["checkpoint-4"]
    again = train(tmp_path, "broken", text_file)
    for path in whole.glob("*model.safetensors"):
        first, second = load_file(path), load_file(again / path.name)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_with_another_tokenizer_is_not_gone_on_with(tmp_path, text_file, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("newllm_lib.stages.pretrain.build_tokenizer", lambda *args: earlier_byte_tokenizer())
        break_losses(patch, 7)
        with pytest.raises(TrainingDiverged):
            train_language_model(tmp_path, "broken", text_file)
    with pytest.raises(InputError, match=r"an earlier version, with another tokenizer; choose another --output_dir"):
        train_language_model(tmp_path, "broken", text_file)


class OneLoss(Trainer):
    def __init__(self, fp16):
        self.args = type("Args", (), {"fp16": fp16, "learning_rate": 1.0, "output_dir": "runs/x"})
        self.state = type("State", (), {"global_step": 0})


class Checked(RunTrainerMixin, OneLoss):
    pass


def test_under_fp16_some_losses_may_be_no_numbers_for_their_updates_are_left_out(monkeypatch):
    monkeypatch.setattr(Trainer, "training_step", lambda self, loss: torch.tensor(loss))
    trainer = Checked(fp16=True)
    for loss in [math.inf] * PATIENCE + [1.0] + [math.nan] * PATIENCE:
        trainer.training_step(loss)
    with pytest.raises(TrainingDiverged):
        trainer.training_step(math.nan)
