"""Stage 5 end to end on a tiny random Gemma: what is trained and what is not, resumed, measured, merged, talked to."""

import dataclasses
import json

import pytest
import torch
from lwf_runs import lwf_arguments
from run_files import StopAt, log_without_clock
from safetensors.torch import load_file
from tiny_gemma import tiny_gemma_folder, trainable
from transformers import TrainerCallback

from newllm_lib.adapters.merge import merge
from newllm_lib.adapters.qlora_lwf import FORGETTING_FILE, QloraLwfArguments, prepare, qlora_lwf
from newllm_lib.chat import Chat
from newllm_lib.errors import InputError
from newllm_lib.stages.evaluate import evaluate
from newllm_lib.training.callbacks import TrainingInterrupted
from newllm_lib.training.checkpoint import read_history, read_results, read_settings
from newllm_lib.training.device import Device
from newllm_lib.training.trained_model import open_model

ADAPTERS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run in 4 bit."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("lwf")
    return qlora_lwf(lwf_arguments(folder, load_in_4bit=True, max_steps=24, save_steps=12, eval_steps=12))


def layers_in_four_bit(model) -> int:
    from bitsandbytes.nn import Linear4bit

    return sum(isinstance(module, Linear4bit) for module in model.modules())


def test_a_run_folder_holds_adapters_and_all_that_belongs_to_them(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        ADAPTERS, "adapter_config.json", "tokenizer.json", "settings.json", "metrics.jsonl", "curves.png", "README.md",
        "results.json", FORGETTING_FILE, "generation_config.json",
    }  # fmt: skip
    assert "model.safetensors" not in names
    assert not list(finished.rglob("*.bin"))
    assert {tensor.dtype for tensor in load_file(finished / ADAPTERS).values()} == {torch.float32}
    assert "licence" in (finished / "README.md").read_text()


def test_the_new_task_is_learned_and_both_kinds_of_text_are_measured(finished):
    results, measured = read_results(finished), json.loads((finished / FORGETTING_FILE).read_text())
    new = results["forgetting"]["new_task"]
    assert new["bits_per_byte_after"] < 0.8 * new["bits_per_byte_before"]
    assert new["kl_to_base"] > 0.05
    assert results["bits_per_byte"] == new["bits_per_byte_after"]
    assert measured["general_text"]["before"]["tokens"] > 100
    assert len(measured["answers"]) == 5 and {"prompt", "before", "after"} == measured["answers"][0].keys()
    log = read_history(finished)
    assert {"task_loss", "kl_to_teacher"} <= next(entry for entry in log if "loss" in entry).keys()
    first = next(entry for entry in log if "eval_loss" in entry)
    assert first["step"] == 0 and first["eval_general_kl_to_base"] == pytest.approx(0.0, abs=1e-6)
    assert next(entry["kl_to_teacher"] for entry in log if "loss" in entry) == pytest.approx(0.0, abs=1e-6)


def test_the_base_is_in_four_bit_and_bit_for_bit_as_before(tmp_path):
    pytest.importorskip("bitsandbytes")
    before, after = {}, {}

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            before.update(copies(model))

        def on_train_end(self, args, state, control, model=None, **kwargs):
            after.update(copies(model))

    def copies(model):
        assert layers_in_four_bit(model) == 14
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    qlora_lwf(lwf_arguments(tmp_path, load_in_4bit=True, load_best_model_at_end=False), (Look(),))
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {name for name in before if ".lora_" in name}
    assert any(tensor.dtype == torch.uint8 for name, tensor in before.items() if "base_layer" in name)


def test_the_kind_of_four_bit_is_a_setting_that_the_run_is_opened_with_again(tmp_path):
    pytest.importorskip("bitsandbytes")
    fields = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False, "max_steps": 2}
    folder = qlora_lwf(lwf_arguments(tmp_path, **fields))

    def kinds(model) -> set[tuple[str, bool]]:
        states = [state for p in model.parameters() if (state := getattr(p, "quant_state", None)) is not None]
        return {(state.quant_type, state.nested) for state in states}

    assert kinds(open_model(folder).model) == {("fp4", False)}
    settings = json.loads((folder / "settings.json").read_text())
    del settings["run"]["bnb_4bit_quant_type"], settings["run"]["bnb_4bit_use_double_quant"]  # a run without them
    (folder / "settings.json").write_text(json.dumps(settings))
    assert kinds(open_model(folder).model) == {("nf4", True)}
    with pytest.raises(InputError, match="bnb_4bit_quant_type has to be nf4 or fp4, got 'int4'"):
        lwf_arguments(tmp_path, bnb_4bit_quant_type="int4")


@pytest.mark.parametrize("schedule", [None, "2,4"])
def test_an_interrupted_run_ends_like_an_unbroken_one(tmp_path, schedule):
    fields = {"rank_schedule": schedule, "num_train_epochs": 1.0, "max_steps": -1, "distill_weight_end": 1.0}
    fields["logging_steps"] = 4
    whole = qlora_lwf(lwf_arguments(tmp_path, "whole", **fields))
    with pytest.raises(TrainingInterrupted):
        qlora_lwf(lwf_arguments(tmp_path, "broken", **fields), (StopAt(5),))
    assert not (tmp_path / "broken" / "results.json").exists()
    broken = qlora_lwf(lwf_arguments(tmp_path, "broken", **fields))
    first, second = load_file(whole / ADAPTERS), load_file(broken / ADAPTERS)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert log_without_clock(whole) == log_without_clock(broken)


def test_the_last_partial_update_is_not_dropped_and_every_epoch_is_saved(tmp_path):
    args = lwf_arguments(tmp_path, max_steps=-1, num_train_epochs=2.0, rehearsal_ratio=0.0, save_total_limit=9)
    examples = len(prepare(args).train_rows)
    per_epoch = -(-examples // 4)
    assert examples % 4  # else there is no partial update
    folder = qlora_lwf(args)
    assert read_results(folder)["updates"] == 2 * per_epoch
    assert (folder / f"checkpoint-{per_epoch}" / ADAPTERS).exists()
    assert (folder / f"checkpoint-{per_epoch}" / "tokenizer.json").exists()


def test_without_distillation_it_is_plain_fine_tuning(tmp_path):
    """λ = 0: the same adapters as transformers' own loss gives, update by update."""
    from transformers import Trainer

    from newllm_lib.adapters.mixture import MixSampler, collate_examples

    fields = {
        "distill_weight": 0.0, "rehearsal_ratio": 0.0, "lora_dropout": 0.0, "eval_strategy": "no",
        "save_strategy": "no", "load_best_model_at_end": False, "eval_on_start": False,
    }  # fmt: skip
    ours = load_file(qlora_lwf(lwf_arguments(tmp_path, **fields)) / ADAPTERS)
    plain = lwf_arguments(tmp_path, "plain", **fields)
    prepared = prepare(plain)

    def collate(rows):
        batch = collate_examples(rows)
        return {"input_ids": batch["input_ids"], "labels": batch["labels"], "shift_labels": batch["labels"]}

    class PlainTrainer(Trainer):
        def _get_train_sampler(self, dataset=None):
            return MixSampler(self.train_dataset, 0.0, 4, plain.seed)

    trainer = PlainTrainer(prepared.model, plain, collate, prepared.train_rows)
    trainer.train()
    theirs = {name.replace(".default", ""): p.detach().cpu() for name, p in trainable(prepared.model).items()}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5)


def test_the_finished_adapters_are_opened_scored_talked_to_and_merged(finished, tmp_path):
    metrics = evaluate(finished)
    results = read_results(finished)
    trained = open_model(finished)
    assert layers_in_four_bit(trained.model) == 14
    assert metrics["loss"] < 1.0 * results["forgetting"]["new_task"]["bits_per_byte_before"] * 0.7
    chat = Chat(finished, max_new_tokens=5, temperature=0.0)
    assert any(type(warper).__name__.startswith("Repetition") for warper in chat.stream.warpers)
    assert isinstance("".join(chat.reply("0: what is red?")), str)

    merged = merge(finished, tmp_path / "merged")
    whole = open_model(merged)
    ids = torch.randint(0, 256, (1, 20), generator=torch.Generator().manual_seed(0)).to(trained.model.device)
    with torch.no_grad():
        ours, theirs = trained.model(input_ids=ids).logits, whole.model(input_ids=ids).logits
    assert float((ours - theirs).abs().max()) < 0.05 * float(ours.abs().max())  # saved in 16 bit
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    assert evaluate(merged)["loss"] == pytest.approx(metrics["loss"], rel=0.02)
    with pytest.raises(InputError, match="exists"):
        merge(finished, tmp_path / "merged")
    with pytest.raises(InputError, match="no adapters"):
        merge(merged, tmp_path / "again")


def test_a_tuned_model_ends_its_answers(tmp_path):
    """EOS is trained: taught one short answer, the model gives it and stops."""
    from newllm_lib.adapters.forgetting import reply_to_each
    from newllm_lib.models.frozen_head import adapters_off

    rows = [{"prompt": f"{word}?", "completion": "Yes."} for word in ("Red", "Blue", "Green", "Pink", "Grey", "White")]
    data = tmp_path / "yes.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    args = lwf_arguments(tmp_path, max_steps=60, distill_weight=0.0, rehearsal_ratio=0.0, learning_rate=2e-2)
    args = dataclasses.replace(args, data=str(data), eval_data=str(data), lora_r=16)
    trained = open_model(qlora_lwf(args))
    read = []  # by the head: of rows with gaps between them torch would make a copy of it for each
    hook = trained.model.get_output_embeddings().register_forward_hook(lambda head, args, _: read.append(args[0]))
    replies = reply_to_each(trained.model, trained.tokenizer, ["Red?", "Blue?", "Longer than the others?"], 12)
    hook.remove()
    assert len(read[0]) == 3 and all(hidden.is_contiguous() for hidden in read)
    assert [text for text, _ in replies[:2]] == ["Yes.", "Yes."] and all(ended for _, ended in replies)
    with adapters_off(trained.model):
        assert not all(ended for _, ended in reply_to_each(trained.model, trained.tokenizer, ["Red?", "Blue?"], 12))


def test_other_settings_are_another_run(tmp_path):
    qlora_lwf(lwf_arguments(tmp_path))
    with pytest.raises(InputError, match=r"distill_weight was 0\.5, is 0\.7"):
        qlora_lwf(lwf_arguments(tmp_path, distill_weight=0.7))
    tiny_gemma_folder(tmp_path / "gemma", initializer_range=0.1)
    with pytest.raises(InputError, match="base was 'folder"):
        qlora_lwf(lwf_arguments(tmp_path))
    assert read_settings(tmp_path / "run")["run"]["stage"] == "qlora-lwf"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rank_schedule": "8,4"}, "rank_schedule has to be rising ranks"),
        ({"rank_schedule": "4,x"}, "rank_schedule has to be rising ranks"),
        ({"lora_r": 0}, "lora_r has to lie in"),
        ({"temperature": 0.0}, "temperature has to be more than 0"),
        ({"distill_weight": -1.0}, "distill_weight has to be at least 0"),
        ({"rehearsal_ratio": -0.1}, "rehearsal_ratio has to be at least 0"),
        ({"teacher_on_cpu": True}, "teacher_on_cpu is for another model"),
        ({"lora_target_modules": "nowhere"}, "nowhere"),
        ({"model": "missing/../folder"}, "neither a folder nor an id"),
        ({"rehearsal_data": "missing.txt"}, "rehearsal_data 'missing.txt' does not exist"),
    ],
)
def test_bad_settings_are_named(tmp_path, fields, sentence):
    with pytest.raises(InputError, match=sentence):
        qlora_lwf(lwf_arguments(tmp_path, **fields))
    assert not (tmp_path / "run").exists()


def test_a_row_that_does_not_fit_is_named_with_its_line(tmp_path):
    args = lwf_arguments(tmp_path)
    with open(args.data, "a") as stream:
        stream.write('{"instruction": "Say it.", "output": ""}\n')
    with pytest.raises(InputError, match="line 61: 'output' is empty; --skip_bad_rows"):
        qlora_lwf(args)


def test_what_does_not_fit_on_the_gpu_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    from newllm_lib.adapters import memory_budget
    from newllm_lib.adapters import qlora_lwf as stage

    monkeypatch.setattr(memory_budget, "find_device", lambda use_cpu: Device("cuda", "small", 2.0, (7, 5), 2))
    monkeypatch.setattr(stage, "open_to_tune", lambda *args: pytest.fail("it was loaded"))
    with pytest.raises(InputError, match=r"needs about .* the nearest setting that fits is --per_device_train_batch_s"):
        qlora_lwf(lwf_arguments(tmp_path, per_device_train_batch_size=4096))


def test_the_published_recipe_is_a_preset():
    published = QloraLwfArguments.presets["published"]
    args = QloraLwfArguments(output_dir="unused", **published)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (4, 8)
    assert (args.learning_rate, args.num_train_epochs, args.max_length) == (2e-4, 3.0, 512)
    assert (args.distill_weight, args.temperature, args.rehearsal_ratio) == (0.5, 1.0, 0.2)
    assert (args.lora_r, args.lora_alpha, args.lora_dropout) == (8, 16.0, 0.05)


def test_other_families_can_be_tuned_too(tmp_path):
    from transformers import AutoModelForCausalLM, GPT2Config

    from newllm_lib.data.tokenizer import build_tokenizer

    tokenizer = build_tokenizer("byte", [])
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=len(tokenizer), n_positions=128, bos_token_id=256, eos_token_id=256
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    folder = qlora_lwf(lwf_arguments(tmp_path, model=str(tmp_path / "gpt2")))
    first = next(entry for entry in read_history(folder) if "loss" in entry)
    assert first["kl_to_teacher"] == pytest.approx(0.0, abs=1e-6)  # its dropout is off


@pytest.mark.parametrize(("given", "expected"), [({"bf16": True}, torch.bfloat16), ({"bf16": False}, torch.float32)])
def test_the_base_is_kept_in_the_precision_that_was_asked_for(tmp_path, given, expected):
    args = lwf_arguments(tmp_path, auto_precision=True, **given)
    kept = {parameter.dtype for name, parameter in prepare(args).model.named_parameters() if "lora_" not in name}
    assert kept == {expected}
