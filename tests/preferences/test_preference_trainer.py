"""Stage 6's trainer: TRL's loss, our metrics, adapters alone are trained."""

import dataclasses
import math

import pytest
import torch
from preference_runs import dpo_arguments, opened

pytest.importorskip("trl")

from datasets import Dataset
from transformers import Trainer, TrainerState, TrainingArguments
from trl import DPOTrainer

from newllm_lib.preferences.dpo import prepare
from newllm_lib.preferences.pairs import encode_preferences
from newllm_lib.preferences.scores import preference_metrics
from newllm_lib.preferences.trainer import ChosenFalls, PreferenceTrainer, chosen_falls, dpo_config


def trainer_of(args, **fields):
    prepared = prepare(args)
    rows = prepared.train_rows
    return PreferenceTrainer(prepared.model, args, rows, prepared.held_out, prepared.tokenizer, **fields), rows


def test_our_settings_reach_trl(tmp_path):
    args = dpo_arguments(
        tmp_path, beta=0.3, loss_type="ipo", sft_weight=0.5, learning_rate=3e-4, max_length=77, warmup_steps=3
    )
    config = dpo_config(args)
    for field in dataclasses.fields(TrainingArguments):
        if field.init:
            assert getattr(config, field.name) == getattr(args, field.name), field.name
    assert (config.beta, config.loss_type, config.loss_weights) == (0.3, ["ipo", "sft"], [1.0, 0.5])
    assert (config.max_length, config.bf16, config.fp16, config.disable_dropout) == (77, False, False, True)


@pytest.mark.parametrize("model_type", ["tiny-gpt2", "newllm", "newllm-reference"])
def test_the_first_loss_is_ln_2_and_only_adapters_move(tmp_path, model_type):
    args = dpo_arguments(tmp_path, model_type=model_type, load_best_model_at_end=False)
    trainer, _ = trainer_of(args)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.resume_or_start()
    log = trainer.state.log_history
    first = next(entry for entry in log if "loss" in entry)
    assert first["step"] == 1 and first["loss"] == pytest.approx(math.log(2), abs=1e-3)
    start = next(entry for entry in log if "eval_loss" in entry)
    assert start["step"] == 0 and start["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert start["eval_kl"] == pytest.approx(0, abs=1e-6) and start["eval_accuracy"] == 0.5
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, trainer.model.get_parameter(name))}
    assert moved and all(".lora_" in name for name in moved)
    adapters = {name for name in before if ".lora_" in name}
    assert moved == adapters  # every one of them: none is left out of the graph
    assert {trainer.model.get_parameter(name).dtype for name in adapters} == {torch.float32}
    last = [entry for entry in log if "eval_loss" in entry][-1]
    assert last["eval_loss"] < 0.62 and last["eval_margin"] > 0.1 and last["eval_train_accuracy"] > 0.9


@pytest.mark.parametrize("model_type", ["tiny-gpt2", "newllm"])
def test_our_metrics_are_trls(tmp_path, model_type):
    """On one batch, where TRL's means over batches are means over pairs."""
    args = dpo_arguments(tmp_path, model_type=model_type, max_eval_tokens=10**6, load_best_model_at_end=False)
    trainer, rows = trainer_of(args)
    trainer.resume_or_start()
    pairs = list(encode_preferences(rows.pairs, trainer.processing_class, args.max_length))
    ours = preference_metrics(trainer.score_pairs(pairs), args.beta)
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[n] for n in range(len(pairs))]))
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
    theirs = {name: sum(values) / len(values) for name, values in trainer._metrics["eval"].items()}
    assert float(loss) == pytest.approx(ours["loss"], abs=1e-5)
    assert theirs["rewards/accuracies"] == pytest.approx(ours["accuracy"])  # a mean in fp32
    assert ours["accuracy"] > 0.9
    assert theirs["rewards/margins"] == pytest.approx(ours["margin"], abs=1e-4)
    assert theirs["logps/chosen"] == pytest.approx(ours["chosen_logp"], abs=1e-3)
    assert theirs["logps/rejected"] == pytest.approx(ours["rejected_logp"], abs=1e-3)


def test_an_evaluation_takes_nothing_from_the_log_of_training(tmp_path):
    trainer, _ = trainer_of(dpo_arguments(tmp_path, logging_steps=4, eval_steps=2))
    trainer.resume_or_start()
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in lines] == [4] and "rewards/margins" in lines[0]
    assert all("rewards/margins" not in entry for entry in trainer.state.log_history if "eval_loss" in entry)


def test_what_trl_learns_from_is_what_it_would_make_of_the_conversations(tmp_path):
    trainer, pairs = trainer_of(dpo_arguments(tmp_path))
    rows = [
        {"prompt": list(pair.prompt)}
        | {side: [{"role": "assistant", "content": getattr(pair, side)}] for side in ("chosen", "rejected")}
        for pair in pairs.pairs
    ]
    whole = Dataset.from_list(rows), trainer.processing_class, trainer.args, "train"
    for row, wanted in zip(trainer.train_dataset, DPOTrainer._prepare_dataset(trainer, *whole), strict=True):
        assert row == {name: wanted[name] for name in row}


def test_the_base_is_not_half_precision(tmp_path):
    model = opened(prepare(dpo_arguments(tmp_path)).base.path).half()
    model.save_pretrained(tmp_path / "tiny-gpt2")
    assert {parameter.dtype for parameter in prepare(dpo_arguments(tmp_path)).model.parameters()} == {torch.float32}


def test_it_is_told_when_the_chosen_answers_become_less_likely():
    start = {"eval_chosen_logp": -50.0, "eval_margin": 0.0}
    assert chosen_falls(start, {"eval_chosen_logp": -50.5, "eval_margin": 2.0}) == ""
    assert chosen_falls(start, {"eval_chosen_logp": -60.0, "eval_margin": -0.1}) == ""
    sentence = chosen_falls(start, {"eval_chosen_logp": -60.0, "eval_margin": 3.0})
    assert "(-50.0 -> -60.0 nats per answer)" in sentence and "now 3.00" in sentence


def test_the_warning_is_given_once_also_after_a_resume(caplog):
    start, fallen = {"eval_chosen_logp": -50.0, "eval_margin": 0.0}, {"eval_chosen_logp": -60.0, "eval_margin": 3.0}
    for log_history, evaluations in (([], [start, fallen, fallen]), ([start], [fallen, fallen])):
        caplog.clear()
        callback, state = ChosenFalls(), TrainerState(log_history=log_history)
        callback.on_train_begin(None, state, None)
        with caplog.at_level("WARNING", logger="newllm_lib.preferences.trainer"):  # a notebook shows it another way
            for metrics in evaluations:
                callback.on_evaluate(None, state, None, metrics=metrics)
        assert caplog.text.count("have become less likely") == 1


def test_trls_own_model_card_stays_away(tmp_path):
    trainer, _ = trainer_of(dpo_arguments(tmp_path))
    trainer.resume_or_start()
    assert not (tmp_path / "run" / "README.md").exists() and isinstance(trainer, Trainer)
    assert not list((tmp_path / "run").rglob("training_args.bin"))
