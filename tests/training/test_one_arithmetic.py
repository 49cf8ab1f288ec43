"""A model has one score on a text, whoever reports it: its run under autocast, a run that was killed after its last
checkpoint, and `evaluate`."""

import dataclasses
import json

import pytest
from lwf_runs import lwf_arguments
from preference_runs import dpo_arguments
from transformers import TrainerCallback

from newllm_lib.adapters.qlora_lwf import qlora_lwf
from newllm_lib.evaluation.perplexity import TextMetrics
from newllm_lib.preferences.dpo import dpo
from newllm_lib.stages.evaluate import evaluate
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.training.checkpoint import METRICS_FILE

COMPARED = [field.name for field in dataclasses.fields(TextMetrics)]


def of_pretrain(model_type):
    def arguments(folder, text_file, name):
        return pretrain, PretrainArguments(
            data=str(text_file), output_dir=str(folder / name), model_type=model_type, tokenizer="byte", max_length=32,
            num_parameters=120_000, max_steps=6, eval_steps=3, save_steps=3, logging_steps=3, bf16=True,
            per_device_train_batch_size=4, max_eval_tokens=10**6, learning_rate=1e-2,
        )  # fmt: skip

    return arguments


def of_dpo(folder, text_file, name):
    pytest.importorskip("trl")
    return dpo, dpo_arguments(folder, name, bf16=True, max_eval_tokens=10**6)


def of_qlora_lwf(folder, text_file, name):
    pytest.importorskip("peft")
    return qlora_lwf, lwf_arguments(folder, name, bf16=True, max_eval_tokens=10**6, max_test_tokens=10**6)


class Killed(RuntimeError):
    """The machine is gone."""


class KillAtTheEnd(TrainerCallback):
    def on_train_end(self, args, state, control, **kwargs):
        raise Killed


def results(folder):
    found = json.loads((folder / "results.json").read_text())
    return {name: found[name] for name in COMPARED if found.get(name) is not None}


@pytest.mark.parametrize(
    "make", [of_pretrain("newllm"), of_pretrain("newllm-reference"), of_pretrain("tiny-gpt2"), of_pretrain("lstm"),
             of_dpo, of_qlora_lwf],
    ids=["newllm", "newllm-reference", "tiny-gpt2", "lstm", "dpo", "qlora-lwf"],
)  # fmt: skip
def test_the_figures_of_a_model_are_one(tmp_path, text_file, make, monkeypatch):
    monkeypatch.setattr("newllm_lib.training.device.cpu_multiplies_bf16", lambda: True)
    stage, args = make(tmp_path, text_file, "whole")
    whole = stage(args)
    stage, args = make(tmp_path, text_file, "killed")
    with pytest.raises(Killed):
        stage(args, (KillAtTheEnd(),))
    stage, args = make(tmp_path, text_file, "killed")
    assert results(stage(args)) == pytest.approx(results(whole), rel=1e-6)
    again = evaluate(whole)
    assert {name: again[name] for name in results(whole)} == pytest.approx(results(whole), rel=1e-5)
    lines = [json.loads(line) for line in (whole / METRICS_FILE).read_text().splitlines()]
    assert results(whole)["loss"] == pytest.approx(min(line["eval_loss"] for line in lines if "eval_loss" in line))
