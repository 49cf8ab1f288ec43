"""The budget against what a small 4-bit Gemma really keeps and allocates on a CPU, and what is made of it."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_gemma import GEMMA_2B
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig

from newllm_lib.adapters import memory_budget as module
from newllm_lib.adapters.arguments import QloraLwfArguments
from newllm_lib.adapters.lora import four_bit_config
from newllm_lib.adapters.memory_budget import GB, USABLE_SHARE, check_memory, memory_budget, model_sizes
from newllm_lib.errors import InputError
from newllm_lib.models import LSTMConfig, NewLLMConfig, NewLLMReferenceConfig
from newllm_lib.training.device import Device

SMALL = {
    "hidden_size": 256, "num_hidden_layers": 2, "intermediate_size": 1024, "num_attention_heads": 4,
    "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 512,
}  # fmt: skip
ROWS, TOKENS, RANK = 2, 96, 8  # few: most CPUs multiply bf16 slowly


def budget(config, rows: int = ROWS, length: int = TOKENS, **settings) -> dict[str, int]:
    args = QloraLwfArguments(**{"bf16": True, "use_cpu": True, "lora_r": RANK, **settings})
    return memory_budget(args, model_sizes(config), rows, length)


def small_budget(layers: int = 2, **settings) -> dict[str, int]:
    return budget(GemmaConfig(**{**SMALL, "num_hidden_layers": layers}), **settings)


def gemma_2b(rows: int = 4, length: int = 512, **settings) -> dict[str, int]:
    return budget(GemmaConfig(**GEMMA_2B), rows, length, **settings)


@pytest.fixture(scope="module")
def qlora(tmp_path_factory):
    """A small Gemma in NF4 with adapters, computing in bf16 as a GPU does in fp16."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gemma")
    AutoModelForCausalLM.from_config(GemmaConfig(**SMALL), dtype=torch.bfloat16).save_pretrained(folder)
    options = {"quantization_config": four_bit_config(torch.bfloat16), "device_map": {"": "cpu"}}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)
    model = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear")).train()
    model.enable_input_require_grads()
    return model


@pytest.fixture
def autocast_seen(monkeypatch):
    """peft asks whether CUDA's autocast is on, and would otherwise keep fp32 copies that a GPU run does not have."""
    ask = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cpu": ask(device))


def hidden_states(model, tokens: int = TOKENS) -> torch.Tensor:
    input_ids = torch.zeros(ROWS, tokens, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        return model.get_base_model().model(input_ids=input_ids, use_cache=False).last_hidden_state


def kept_for_backward(model) -> int:
    """Bytes of the storages that autograd saves in a forward pass, without the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), sdpa_kernel(SDPBackend.MATH):
        output = hidden_states(model)
    assert output.requires_grad
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)


def update(model, tokens: int = TOKENS) -> None:
    """Teacher, student and backward pass, with a loss that costs next to nothing."""
    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad(), model.disable_adapter():
            teacher = hidden_states(model, tokens)
        student = hidden_states(model, tokens)
        ((student - teacher).pow(2).mean() + student.pow(2).mean()).backward()


def peak_bytes(work) -> int:
    """The most that `work` had allocated at a time, by torch's own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def test_weights_equal_bitsandbytes(qlora):
    budget = small_budget()
    quantized = others = adapters = 0
    for name, parameter in qlora.named_parameters():
        if "lora_" in name:
            adapters += parameter.nbytes
        elif hasattr(parameter, "quant_state"):
            state = parameter.quant_state
            tensors = (parameter, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            quantized += sum(tensor.nbytes for tensor in tensors)
        else:
            others += parameter.nbytes
    assert budget["linear layers"] == quantized
    assert budget["embeddings, norms, biases"] == others
    optimizer = torch.optim.AdamW([parameter for parameter in qlora.parameters() if parameter.requires_grad])
    update(qlora, tokens=2)
    gradients = sum(p.grad.nbytes for p in qlora.parameters() if p.grad is not None)
    optimizer.step()
    qlora.zero_grad()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    cast = adapters // 2  # in bf16
    assert budget["adapters"] == adapters + gradients + sum(moment.nbytes for moment in moments) + cast


def test_activations_are_what_autograd_keeps(qlora, autocast_seen):
    qlora.gradient_checkpointing_disable()
    budget = small_budget(activation_checkpointing=False)
    last_norm = 4 * ROWS * TOKENS * SMALL["hidden_size"]  # counted with the hidden states
    cast = budget["adapters"] // 9  # 2 of 18 bytes
    measured = kept_for_backward(qlora) - cast - last_norm
    assert measured <= budget["layers' activations"] <= 1.25 * measured


def test_checkpointed_layers_keep_their_inputs(qlora, autocast_seen):
    qlora.gradient_checkpointing_enable({"use_reentrant": False})
    last_norm = 4 * ROWS * TOKENS * SMALL["hidden_size"]
    measured = kept_for_backward(qlora) - last_norm
    assert small_budget()["layer inputs"] == pytest.approx(measured, rel=0.02)


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_peak_of_an_update_is_within_the_budget(qlora, autocast_seen):
    qlora.gradient_checkpointing_enable({"use_reentrant": False})
    budget = small_budget()
    there_before = 12 / 18 * budget["adapters"]  # weights and moments
    apart = ("linear layers", "embeddings, norms, biases", "the loss's logits")
    counted = sum(size for name, size in budget.items() if name not in apart) - there_before
    update(qlora, tokens=2)  # what the first pass alone allocates
    qlora.zero_grad()
    measured = peak_bytes(lambda: update(qlora))
    qlora.zero_grad()
    assert measured <= counted <= 1.4 * measured


def test_gemma_2b_is_counted_whole():
    parts = gemma_2b()
    sizes = model_sizes(GemmaConfig(**GEMMA_2B))
    assert sum(layer.weights for layer in sizes.linear) + sizes.other_parameters == 2_506_172_416  # published
    assert parts["embeddings, norms, biases"] == 2 * (256_000 * 2048 + 37 * 2048)
    assert parts["layer inputs"] == 18 * 4 * 512 * 2048 * 2
    assert parts["the loss's logits"] == 2**29


@pytest.mark.parametrize(("max_length", "measured"), [(512, 3.02), (1024, 4.09)])
def test_the_budget_is_an_upper_bound_within_15_percent(max_length, measured):
    """Measured: the most that torch had allocated on an H100 that worked in fp16 like a T4, 4 rows."""
    total = sum(gemma_2b(length=max_length).values()) / GB
    assert measured <= total <= 1.15 * measured


def test_more_is_never_less():
    for name, values in {"length": (64, 500, 512, 4096), "rows": (1, 3, 8), "lora_r": (1, 8, 64)}.items():
        budgets = [gemma_2b(**{"rows": 2, name: value}) for value in values]
        for less, more in pairwise(budgets):
            assert all(less[part] <= more[part] for part in less)
            assert sum(less.values()) < sum(more.values())


def test_what_each_option_saves():
    whole = gemma_2b()
    for option in ("load_in_4bit", "activation_checkpointing"):
        assert sum(gemma_2b(**{option: False}).values()) > 1.5 * sum(whole.values())
    assert sum(gemma_2b(distill_weight=0.0).values()) < sum(whole.values())
    assert gemma_2b(bf16=False)["linear layers"] == whole["linear layers"]
    assert gemma_2b(lora_target_modules="q_proj,v_proj")["adapters"] == 18 * 18 * 8 * (2048 + 2048 + 2048 + 256)


def test_layers_count_in_proportion():
    """Twice the layers: twice of what each has, and no more of what one at a time has."""
    few, many = (small_budget(layers) for layers in (2, 4))
    assert all(many[name] == 2 * few[name] for name in ("linear layers", "adapters", "layer inputs"))
    once = ("layers' activations", "gradients in flight", "a dequantised weight")
    assert all(many[name] == few[name] for name in once)
    stored = small_budget(activation_checkpointing=False)
    assert stored["layers' activations"] == 2 * few["layers' activations"] and stored["layer inputs"] == 0


def test_head_of_its_own_is_not_quantised():
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_attention_heads=2, vocab_size=100
    )
    sizes = model_sizes(config)
    assert len(sizes.linear) == 14
    assert sizes.other_parameters == 2 * 100 * 64 + 5 * 64  # embeddings, head, norms


@pytest.fixture
def refused_of(monkeypatch):
    """What `check_memory` says of (rows, accumulation, length) on a GPU of so many bytes, each for a token; None if it
    is content."""

    def refused(usable: float, rows: int, accumulation: int, length: int) -> str | None:
        gpu = Device("cuda", "small", usable / USABLE_SHARE / GB, (7, 5), 2)
        monkeypatch.setattr(module, "find_device", lambda use_cpu: gpu)
        monkeypatch.setattr(module, "memory_budget", lambda args, sizes, rows, length: {"tokens": rows * length})
        batch = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
        try:
            check_memory(QloraLwfArguments(**batch, max_length=length), None)
        except InputError as error:
            return str(error)

    return refused


@pytest.mark.parametrize(
    ("available", "asked", "nearest"),
    [
        (4096, (4, 2, 1024), None),  # it fits
        (4095, (4, 2, 1024), (2, 4, 1024)),
        (1024, (4, 2, 1024), (1, 8, 1024)),
        (1023, (4, 2, 1024), (1, 8, 512)),  # shorter only when a single row is too long
        (100, (6, 1, 100), (1, 6, 100)),
        (200, (6, 1, 100), (2, 3, 100)),
        (300, (6, 1, 100), (3, 2, 100)),
        (500, (5, 1, 101), (1, 5, 101)),  # 5 rows cannot be halved
        (64, (1, 1, 100), (1, 1, 64)),
    ],
)
def test_the_refusal_names_the_nearest_setting_that_fits(refused_of, available, asked, nearest):
    refusal = refused_of(available + 0.01, *asked)
    if nearest is None:
        assert refusal is None
        return
    flags = r"--per_device_train_batch_size (\d+) --gradient_accumulation_steps (\d+) --max_length (\d+)\.$"
    assert tuple(map(int, re.search(flags, refusal).groups())) == nearest
    assert refused_of(available + 0.01, *nearest) is None


@pytest.mark.parametrize(("rows", "length", "shortest"), [(8, 1024, 64), (1, 32, 32)])  # never longer than asked for
def test_refusal_when_nothing_fits(refused_of, rows, length, shortest):
    refusal = refused_of(28, rows, 1, length)
    assert refusal.endswith(f"may be used: not even one row of {shortest} tokens fits; choose a smaller --model.")


def test_a_refusal_says_what_is_needed_and_what_there_is(monkeypatch):
    monkeypatch.setattr(module, "find_device", lambda use_cpu: Device("cuda", "T4", 14.56, (7, 5), 2))
    sizes = model_sizes(GemmaConfig(**GEMMA_2B))
    fits = QloraLwfArguments(bf16=True, use_cpu=True, max_length=1024)
    check_memory(fits, sizes)
    needed = sum(gemma_2b(64, 2048).values()) / GB
    with pytest.raises(InputError) as refusal:
        check_memory(
            replace(fits, per_device_train_batch_size=64, gradient_accumulation_steps=1, max_length=2048), sizes
        )
    assert str(refusal.value).startswith(
        "per_device_train_batch_size 64 with gradient_accumulation_steps 1 and max_length 2048 needs about "
        f"{needed:.1f} GB, but 13.1 of the device's 14.6 GB may be used"
    )


def test_a_model_without_attention_has_a_budget():
    config = NewLLMConfig()
    parts, targets = budget(config), model_sizes(config).linear
    # Three into the context, one out of it, the MLP's; the projection.
    assert len(targets) == 7 * config.num_hidden_layers + 1
    assert parts["adapters"] == 18 * RANK * sum(layer.inputs + layer.outputs for layer in targets)
    assert min(parts.values()) > 0


@pytest.mark.parametrize("config", [NewLLMReferenceConfig(num_hidden_layers=3), LSTMConfig()])
def test_a_model_that_is_no_stack_of_blocks_has_a_budget(config):
    assert min(budget(config).values()) > 0
