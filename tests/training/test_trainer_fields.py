"""Every field of transformers' `TrainingArguments` is a flag: it works, is refused with a sentence, or says that it has
no effect."""

import dataclasses
import json
import logging
import math

import pytest
import torch
from lwf_runs import lwf_arguments
from preference_runs import dpo_arguments
from transformers import TrainerCallback, TrainingArguments

from newllm_lib.adapters.arguments import QloraLwfArguments
from newllm_lib.cli import main, parse_stage
from newllm_lib.errors import InputError
from newllm_lib.models import MODEL_TYPES
from newllm_lib.preferences.sweep import SweepArguments
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.training.arguments import NO_EFFECT, REFUSED, check_sharding
from newllm_lib.training.device import Device

FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments)}

# A value other than the default, with which the run below goes to its end.
WORKS = {
    "output_dir": "run", "per_device_train_batch_size": 4, "num_train_epochs": 2.0, "max_steps": 6,
    "learning_rate": 1e-2, "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr_rate": 0.1}',
    "warmup_steps": 2, "optim": "sgd", "optim_args": "momentum=0.5", "weight_decay": 0.0, "adam_beta1": 0.8,
    "adam_beta2": 0.9, "adam_epsilon": 1e-6, "gradient_accumulation_steps": 2, "average_tokens_across_devices": False,
    "max_grad_norm": 0.5, "bf16": True, "fp16": False, "tf32": False, "activation_checkpointing": True,
    "activation_checkpointing_kwargs": '{"use_reentrant": false}', "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": '{"use_reentrant": false}', "neftune_noise_alpha": 5.0,
    "torch_empty_cache_steps": 1, "logging_strategy": "steps", "logging_steps": 1, "logging_first_step": True,
    "log_on_each_node": False, "logging_nan_inf_filter": True, "include_num_input_tokens_seen": "all",
    "log_level": "error", "log_level_replica": "warning", "disable_tqdm": False, "report_to": "none",
    "run_name": "name", "project": "name", "trackio_space_id": "name", "trackio_bucket_id": "name",
    "trackio_static_space_id": "name", "eval_strategy": "steps", "eval_steps": 3, "eval_delay": 1,
    "per_device_eval_batch_size": 8, "eval_on_start": True, "save_strategy": "steps", "save_steps": 3,
    "save_total_limit": 2, "load_best_model_at_end": False, "metric_for_best_model": "token_accuracy",
    "greater_is_better": True, "restore_callback_states_from_checkpoint": False, "full_determinism": False, "seed": 7,
    "use_cpu": True, "dataloader_num_workers": 1, "dataloader_pin_memory": False, "dataloader_prefetch_factor": 1,
    "dataloader_persistent_workers": True, "dataloader_multiprocessing_context": "fork",
    "ddp_find_unused_parameters": True, "ddp_bucket_cap_mb": 10, "ddp_broadcast_buffers": True,
    "ddp_static_graph": True, "ddp_timeout": 600, "debug": "underflow_overflow", "skip_memory_metrics": False,
    "do_eval": True,
}  # fmt: skip
# Not set together with the others: what they need is not there, or they would take a minute.
WORKS_ELSEWHERE = {"torch_compile", "torch_compile_backend", "torch_compile_mode", "ddp_backend", "fsdp", "fsdp_config"}
# Other values than the default of fields that are refused or mean nothing, where 1 is no such value.
OTHER = {
    "hub_strategy": "end", "train_sampling_strategy": "sequential", "length_column_name": "n", "deepspeed": "zero.json",
    "accelerator_config": '{"split_batches": true}',
    "hub_token": "secret", "hub_model_id": "me/mine", "hub_revision": "main", "optim_target_modules": "all-linear",
    "resume_from_checkpoint": "true", "liger_kernel_config": {"rope": True}, "parallelism_config": object(),
    "dataloader_in_order": False, "remove_unused_columns": True, "label_names": ["labels"],
    "include_for_metrics": ["loss"], "eval_do_concat_batches": False, "label_smoothing_factor": 0.1,
}  # fmt: skip


def test_every_field_is_in_one_of_the_three_lists():
    lists = [{*WORKS, *WORKS_ELSEWHERE}, {*REFUSED}, {*NO_EFFECT}]
    assert not FIELDS.keys() - set().union(*lists)
    assert sum(map(len, lists)) == len(set().union(*lists)), "a field is in two"


def flags(values: dict) -> list[str]:
    return [word for name, value in values.items() if name in FIELDS for word in (f"--{name}", str(value))]


def test_what_works_is_a_flag_and_a_run_with_all_of_it_comes_to_its_end(tmp_path, text_file):
    argv = ["pretrain", "--data", str(text_file), "--tokenizer", "byte", "--max_length", "32", "--num_parameters"]
    argv += ["80000", "--max_eval_tokens", "300", *flags({**WORKS, "output_dir": tmp_path / "run"})]
    assert main(argv) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [0, 3, 6]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert log[1]["num_input_tokens_seen"] == 4 * 2 * 32


@pytest.mark.parametrize("name", [name for name in REFUSED if name in FIELDS])
def test_what_cannot_be_used_is_refused_with_a_sentence(name):
    with pytest.raises(InputError, match=f"^{name}.* cannot be used here: .+; leave it out.$") as error:
        PretrainArguments(**{name: OTHER.get(name, not FIELDS[name].default)})
    assert "secret" not in str(error.value)


def test_a_model_is_shared_among_several_gpus_or_it_is_said_why_not(monkeypatch):
    with pytest.raises(InputError, match=r"^fsdp True shares a model among several GPUs.+; leave it out\.$"):
        PretrainArguments(fsdp="full_shard")
    sharded = PretrainArguments()
    sharded.fsdp, sharded.fsdp_config = True, {"state_dict_type": "SHARDED_STATE_DICT"}
    monkeypatch.setattr(PretrainArguments, "world_size", 2)
    with pytest.raises(InputError, match="SHARDED_STATE_DICT, which writes no whole model"):
        check_sharding(sharded, Device("cuda", "GPU", 80.0, (9, 0), 1))
    sharded.fsdp_config = {}
    check_sharding(sharded, Device("cuda", "GPU", 80.0, (9, 0), 1))


@pytest.mark.parametrize("name", [name for name in NO_EFFECT if name in FIELDS])
def test_what_has_no_effect_says_so(name, caplog):
    with caplog.at_level(logging.WARNING):
        PretrainArguments(**{name: OTHER.get(name, 1)})
    assert caplog.messages == [f"{name} has no effect here: {NO_EFFECT[name]}."]


def test_nothing_is_told_of_what_was_not_set(caplog):
    with caplog.at_level(logging.WARNING):
        dataclasses.replace(PretrainArguments(), seed=7)
    assert not caplog.messages


def test_the_help_says_what_a_flag_cannot_do(capsys):
    with pytest.raises(SystemExit):
        parse_stage(PretrainArguments, "newllm pretrain", ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"cannot be used here: {REFUSED['deepspeed']}" in shown
    assert f"has no effect here: {NO_EFFECT['do_predict']}" in shown


def test_each_stage_has_its_own_reasons(tmp_path):
    with pytest.raises(InputError, match=r"label_smoothing_factor 0\.1 cannot be used here: of pairs it is --label_s"):
        dpo_arguments(tmp_path, label_smoothing_factor=0.1)
    for arguments in (dpo_arguments, lwf_arguments):
        with pytest.raises(InputError, match="which would hear the noise"):
            arguments(tmp_path, neftune_noise_alpha=5.0)
        with pytest.raises(InputError, match="of several GPUs each has the whole base"):
            arguments(tmp_path, fsdp="full_shard")
    assert lwf_arguments(tmp_path, label_smoothing_factor=0.1).label_smoothing_factor == 0.1


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, (True, False)), ({"bf16": False}, (False, False)), ({"bf16": True}, (True, False)),
     ({"auto_precision": False}, (False, False))],
)  # fmt: skip
def test_the_precision_is_the_one_that_was_asked_for(monkeypatch, given, expected):
    monkeypatch.setattr("newllm_lib.training.arguments.choose_precision", lambda device: ("bf16", "because"))
    args = PretrainArguments(use_cpu=True, **given)
    assert (args.bf16, args.fp16) == expected


class Embeddings(TrainerCallback):
    """Keeps what the embedding gave at the first forward pass."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.seen = []
        model.get_input_embeddings().register_forward_hook(lambda module, args, output: self.seen.append(output))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_noise_is_added_to_the_embeddings_of_every_model(tmp_path, text_file, model_type):
    embeddings = []
    for alpha in (None, 50.0):
        kept = Embeddings()
        args = PretrainArguments(
            data=str(text_file), output_dir=str(tmp_path / str(alpha)), model_type=model_type, tokenizer="byte",
            max_length=32, num_parameters=80_000, per_device_train_batch_size=4, max_steps=1, max_eval_tokens=300,
            auto_precision=False, neftune_noise_alpha=alpha,
        )  # fmt: skip
        pretrain(args, (kept,))
        embeddings.append(kept.seen[0].detach())
    noise = embeddings[1] - embeddings[0]
    largest = 50.0 / math.sqrt(noise[0].numel())
    assert 0.9 * largest < noise.abs().max() <= 1.001 * largest and torch.isfinite(noise).all()


BAD = {
    "seed": (-1, "seed has to be at least 0, got -1"),
    "max_steps": (0, "max_steps has to be at least 1, or -1 for as many as num_train_epochs gives, got 0"),
    "num_layers": (0, "num_layers has to be at least 1, got 0"),
    "vocab_size": (-5, "vocab_size has to be at least 1, got -5"),
    "save_steps": (0, "save_steps has to be more than 0, got 0"),
    "adam_beta2": (1.0, "adam_beta2 has to be less than 1, got 1.0"),
    "dropout": (-0.1, "dropout has to be at least 0, got -0.1"),
    "num_train_epochs": (0, "num_train_epochs has to be more than 0, got 0"),
    "fp16": (True, "fp16 needs an NVIDIA GPU"),
    "optim": ("galore_adamw", "optim galore_adamw needs a package: "),
    "optim_args": ("momentum", "cannot be used: "),
    "lr_scheduler_type": ("warmup_stable_decay", "lr_scheduler_type warmup_stable_decay, lr_scheduler_kwargs None"),
    "report_to": ("wandbb", "report_to has to be none, all, or of "),
    "log_level": ("loud", "log_level loud, "),
    "ddp_backend": ("gloo", "ddp_backend gloo is for several processes"),
    "eval_strategy": ("no", "requires the save and eval strategy to match"),
    "debug": ("everything", "is not a valid DebugOption"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_value_that_no_run_could_use_is_refused_before_anything_else(name):
    value, expected = BAD[name]
    with pytest.raises(InputError) as error:
        PretrainArguments(**{"use_cpu": True, name: value})
    assert expected in str(error.value) and "\n" not in str(error.value)


def numbers(kind) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.init and field.type in (float, float | None)]


@pytest.mark.parametrize("kind", [PretrainArguments, SweepArguments, QloraLwfArguments])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number_is_nan_or_infinite(kind, value):
    assert len(numbers(kind)) > 10
    for name in numbers(kind):
        with pytest.raises(InputError, match=rf"^{name} .*{value}"):
            kind(**{name: value})


@pytest.mark.parametrize("text", ["nan", "0.1,nan", "inf", "0.1,inf"])
def test_nor_is_one_that_a_sweep_looks_between(text):
    with pytest.raises(InputError, match="search_beta has to be"):
        SweepArguments(search_beta=text)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_named_at_once(monkeypatch, name):
    found = "newllm_lib.training.arguments.get_available_reporting_integrations"
    monkeypatch.setattr(found, lambda: [])
    with pytest.raises(InputError, match=f"report_to {name} needs its package"):
        PretrainArguments(report_to=name)


def test_a_compiler_that_is_not_there_is_named_at_once(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match=r"torch_compile needs a C\+\+ compiler"):
        PretrainArguments(torch_compile=True)
