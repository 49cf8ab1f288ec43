"""Half the batch and double the accumulation give the same result (NL-103), in every stage that trains, and in a run
that is gone on with so."""

from contextlib import suppress

import pytest
import torch
from conversations import make_conversations, write_conversations
from lwf_runs import lwf_arguments
from preference_runs import dpo_arguments, make_pairs, write_pairs
from transformers import TrainerCallback

from newllm_lib.adapters.qlora_lwf import qlora_lwf
from newllm_lib.preferences.dpo import dpo
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.stages.sft import SftArguments, sft

SPLITS = ((4, 1), (2, 2), (1, 4))
# Plain gradient descent: Adam would turn the rounding of a gradient near zero into a whole step.
FIELDS = {
    "optim": "sgd", "learning_rate": 1e-2, "max_steps": 6, "save_steps": 3, "eval_steps": 3, "auto_precision": False,
    "load_best_model_at_end": False, "logging_steps": 1,
}  # fmt: skip
SMALL = {"tokenizer": "byte", "num_parameters": 120_000, "dropout": 0.0}


class Stop(RuntimeError):
    """The machine is gone."""


class Gradients(TrainerCallback):
    """Keeps the gradient of every update, as one vector, clipped as it is used."""

    def __init__(self, stop_before: int | None = None):
        self.of_update: dict[int, torch.Tensor] = {}
        self.stop_before = stop_before

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.stop_before:
            raise Stop

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [parameter.grad.flatten().clone() for parameter in model.parameters() if parameter.grad is not None]
        self.of_update[state.global_step + 1] = torch.cat(gradients)


def of_pretrain(folder, text_file, **fields):
    return pretrain, PretrainArguments(data=str(text_file), max_length=32, **SMALL, **fields)


def of_pretrain_shuffled(folder, text_file, **fields):
    return pretrain, PretrainArguments(data=str(text_file), max_length=32, carry_context=False, **SMALL, **fields)


def of_sft(folder, text_file, **fields):
    data = folder / "talk.jsonl"
    if not data.exists():
        write_conversations(data, make_conversations(26))
    return sft, SftArguments(data=str(data), held_out_share=0.2, max_length=64, **SMALL, **fields)


def of_dpo(folder, text_file, **fields):
    pytest.importorskip("trl")
    if not (folder / "pairs.jsonl").exists():  # of many lengths; the last update of an epoch is not whole
        pairs = [{**pair, "chosen": pair["chosen"] * (1 + n % 3)} for n, pair in enumerate(make_pairs(26))]
        write_pairs(folder / "pairs.jsonl", pairs)
    return dpo, dpo_arguments(folder, sft_weight=1.0, max_length=128, **fields)


def of_qlora_lwf(folder, text_file, **fields):
    pytest.importorskip("peft")
    return qlora_lwf, lwf_arguments(folder, lora_dropout=0.0, max_samples=18, **fields)


STAGES = [of_pretrain, of_pretrain_shuffled, of_sft, of_dpo, of_qlora_lwf]


def gradients_of(make, folder, text_file, name, split, stop_before=None) -> dict[int, torch.Tensor]:
    rows, accumulation = split
    fields = {**FIELDS, "per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    stage, args = make(folder, text_file, output_dir=str(folder / name), **fields)
    kept = Gradients(stop_before)
    with suppress(Stop):
        stage(args, (kept,))
    return kept.of_update


@pytest.mark.parametrize("make", STAGES)
def test_half_the_batch_and_double_the_accumulation_give_the_same_gradients(tmp_path, text_file, make):
    expected, *others = (gradients_of(make, tmp_path, text_file, f"{a}x{b}", (a, b)) for a, b in SPLITS)
    assert list(expected) == [1, 2, 3, 4, 5, 6]
    for found in others:
        for update, gradient in expected.items():
            assert torch.dist(found[update], gradient) < 1e-3 * gradient.norm(), update


@pytest.mark.parametrize("make", STAGES)
def test_a_run_that_is_gone_on_with_so_sees_what_an_unbroken_one_does(tmp_path, text_file, make):
    expected = gradients_of(make, tmp_path, text_file, "whole", (4, 1))
    first = gradients_of(make, tmp_path, text_file, "broken", (4, 1), stop_before=5)
    assert list(first) == [1, 2, 3, 4]
    rest = gradients_of(make, tmp_path, text_file, "broken", (2, 2))
    assert list(rest) == [4, 5, 6]
    for update, gradient in rest.items():
        assert torch.dist(gradient, expected[update]) < 1e-3 * gradient.norm(), update
