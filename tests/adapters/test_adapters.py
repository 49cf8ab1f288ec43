"""LoRA on frozen models: what is trained, in which precision, and how its rank grows."""

import sys
import types

import pytest
import torch
from lwf_runs import run_of_adapters
from peft import PeftModel
from tiny_gemma import tiny_gemma, tiny_gemma_folder, trainable
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config

from newllm_lib.adapters import lora as adapters
from newllm_lib.adapters.lora import (
    RankSchedule,
    add_adapters,
    allow_old_torchao,
    four_bit_config,
    save_generation_settings,
    set_compute_dtype,
)
from newllm_lib.chat import Chat
from newllm_lib.data.tokenizer import build_tokenizer

IDS = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(3))


def in_four_bit(folder, dtype):
    pytest.importorskip("bitsandbytes")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=four_bit_config(dtype))


def test_a_chat_with_adapters_stops_at_either_end(tmp_path):
    save_generation_settings(tiny_gemma(), build_tokenizer("byte", []), 1.1, 40, tmp_path)
    settings = GenerationConfig.from_pretrained(tmp_path)
    assert (settings.eos_token_id, settings.pad_token_id, settings.max_new_tokens) == ([256, 262], 257, 40)


def test_adapters_are_on_every_linear_layer_but_the_head_and_change_nothing():
    model = tiny_gemma().eval()
    before = model(input_ids=IDS).logits
    adapted = add_adapters(model, 4, 8.0, 0.0, "all-linear").eval()
    assert torch.equal(adapted(input_ids=IDS).logits, before)
    layers = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trainable(adapted)}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(trainable(adapted)) == 2 * 7 * 2


def test_named_layers_alone_get_adapters_and_a_wrong_name_is_told():
    adapted = add_adapters(tiny_gemma(), 4, 8.0, 0.0, ["q_proj"])
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trainable(adapted)} == {"q_proj"}
    with pytest.raises(ValueError, match="nowhere"):
        add_adapters(tiny_gemma(), 4, 8.0, 0.0, ["nowhere"])


def test_layers_of_other_families_are_found_too():
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=60, n_positions=16)
    adapted = add_adapters(AutoModelForCausalLM.from_config(config), 2, 4.0, 0.0, "all-linear")
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trainable(adapted)} == {"c_attn", "c_proj", "c_fc"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_trainable_weights_are_fp32_whatever_the_base_is_in(tmp_path, dtype):
    for base in (tiny_gemma().to(dtype), in_four_bit(tiny_gemma_folder(tmp_path / "gemma"), dtype)):
        adapted = add_adapters(base, 4, 8.0, 0.05, "all-linear")
        assert {parameter.dtype for parameter in trainable(adapted).values()} == {torch.float32}
        assert len(trainable(adapted)) == 28


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_stored_compute_dtype_gives_way_to_the_devices(tmp_path, stored):
    """A repository that is in 4 bit already brings its compute dtype along, bf16 mostly; a T4 has none."""
    model = in_four_bit(tiny_gemma_folder(tmp_path / "gemma"), stored)
    model.save_pretrained(tmp_path / "in-4bit")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "in-4bit", dtype=torch.float16)
    layer = loaded.model.layers[0].mlp.up_proj
    set_compute_dtype(loaded, torch.float16)
    assert type(layer).__name__ == "Linear4bit"
    assert layer.compute_dtype == torch.float16 and layer.weight.quant_state.dtype == torch.float16
    floating = {tensor.dtype for tensor in loaded.parameters() if tensor.is_floating_point()}
    assert floating == {torch.float16}
    adapted = add_adapters(loaded, 2, 4.0, 0.0, "all-linear")
    assert {parameter.dtype for parameter in trainable(adapted).values()} == {torch.float32}


def test_lora_works_beside_colabs_torchao(monkeypatch):
    """torchao 0.10, which PEFT 0.19 and newer refuse. The package is not here: what PEFT asks is told that it is."""
    found = {"version": "0.10.0"}
    monkeypatch.setattr(adapters, "version", lambda name: found["version"])
    monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))

    def refuse():
        raise ImportError("Found an incompatible version of torchao. Found version 0.10.0, but only above 0.16.0")

    import peft.tuners.lora.torchao

    for module in [peft.import_utils, peft.tuners.lora.torchao]:
        monkeypatch.setattr(module, "is_torchao_available", refuse)
    with pytest.raises(ImportError, match="torchao"):
        peft.get_peft_model(tiny_gemma(), peft.LoraConfig(target_modules="all-linear"))
    assert isinstance(add_adapters(tiny_gemma(), 2, 4.0, 0.0, "all-linear"), PeftModel)

    for module in [peft.import_utils, peft.tuners.lora.torchao]:
        monkeypatch.setattr(module, "is_torchao_available", refuse)
    found["version"] = "0.16.0"  # one that PEFT takes is left to it
    allow_old_torchao()
    assert peft.tuners.lora.torchao.is_torchao_available is refuse


@pytest.mark.parametrize(("update", "rank"), [(0, 4), (3, 4), (4, 8), (7, 8), (8, 16), (11, 16), (12, 16), (99, 16)])
def test_the_run_spends_equally_long_at_every_rank(update, rank):
    schedule = RankSchedule(add_adapters(tiny_gemma(), 16, 8.0, 0.0, "all-linear"), [4, 8, 16])
    schedule.on_step_begin(None, types.SimpleNamespace(global_step=update, max_steps=12), None)
    assert schedule.rank == rank


def test_the_rank_grows_without_a_jump():
    adapted = add_adapters(tiny_gemma(), 4, 8.0, 0.0, "all-linear").eval()
    schedule = RankSchedule(adapted, [2, 4])
    optimizer = torch.optim.AdamW(trainable(adapted).values(), lr=1e-2, weight_decay=0.0)

    def update():
        adapted(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    state = types.SimpleNamespace(global_step=0, max_steps=10)
    schedule.on_step_begin(None, state, None)
    update(), update()
    up = {name: parameter for name, parameter in trainable(adapted).items() if ".lora_B." in name}
    down = {name: parameter for name, parameter in trainable(adapted).items() if ".lora_A." in name}
    beyond = {name: parameter[2:].clone() for name, parameter in down.items()}
    assert all(bool((parameter[:, :2] != 0).any()) and not parameter[:, 2:].any() for parameter in up.values())
    before = adapted(input_ids=IDS).logits

    state.global_step = 5
    schedule.on_step_begin(None, state, None)
    assert torch.equal(adapted(input_ids=IDS).logits, before)  # growing itself changes nothing
    assert all(torch.equal(down[name][2:], parameter) for name, parameter in beyond.items())
    update()
    assert all(bool(parameter[:, 2:].any()) for parameter in up.values())


def test_four_bit_layers_are_not_rewritten_by_their_first_answer():
    """bitsandbytes would, on a CPU with bf16, and then the base was no longer bit for bit what it had been."""
    modules = pytest.importorskip("bitsandbytes.nn")
    layer = modules.Linear4bit(32, 32)
    layer.support_avx512bf16_for_cpu = True
    set_compute_dtype(torch.nn.Sequential(layer), torch.float32)
    assert layer.support_avx512bf16_for_cpu is False and layer.compute_dtype is torch.float32


def test_an_answer_keeps_to_its_format(tmp_path):
    pytest.importorskip("llguidance", reason="needs newllm[formats]")
    chat = Chat(run_of_adapters(tmp_path), seed=0, max_new_tokens=100, answer_format="(red|blue)!")
    assert "".join(chat.reply("Hello")) in ("red!", "blue!")
