"""The budget against what a small 4-bit Gemma really keeps and allocates on a CPU, and what is made of it."""

import re
from functools import partial
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GemmaConfig, LlamaConfig

from newllm_lib.adapters.memory_budget import (
    CUDA_CONTEXT,
    GB,
    GEMMA_2B_CONFIG,
    LOSS_BUFFER,
    USABLE_SHARE,
    BudgetItem,
    budget_table,
    check_fits,
    memory_budget,
    model_sizes,
    nearest_that_fits,
    total_bytes,
)
from newllm_lib.errors import InputError
from newllm_lib.models import NewLLMConfig

SMALL = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 512,
}
ROWS, TOKENS, RANK = 2, 96, 8  # few: most CPUs multiply bf16 slowly
ACTIVATIONS = ("projections, MLP", "attention", "norms")
QLORA = {"target_modules": "all-linear", "quantized": True, "distills": True, "gradient_checkpointing": True}
gemma_2b = partial(memory_budget, GemmaConfig(**GEMMA_2B_CONFIG), **{**QLORA, "rank": 8})


def by_name(items: list[BudgetItem]) -> dict[str, int]:
    assert len({item.name for item in items}) == len(items)
    return {item.name: item.bytes for item in items}


def small_budget(**changes) -> dict[str, int]:
    settings = {**QLORA, "rank": RANK, "micro_batch": ROWS, "max_length": TOKENS, **changes}
    return by_name(memory_budget(GemmaConfig(**SMALL), **settings))


@pytest.fixture(scope="module")
def qlora(tmp_path_factory):
    """A small Gemma in NF4 with adapters, computing in bf16 as a GPU does in fp16."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gemma")
    AutoModelForCausalLM.from_config(GemmaConfig(**SMALL), dtype=torch.bfloat16).save_pretrained(folder)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    options = {"dtype": torch.bfloat16, "quantization_config": quantization, "device_map": {"": "cpu"}}
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
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
    assert budget["linear layers in NF4"] == quantized
    assert budget["embeddings, norms, biases"] == others
    assert budget["adapters"] == budget["adapters' gradients"] == adapters
    optimizer = torch.optim.AdamW([parameter for parameter in qlora.parameters() if parameter.requires_grad])
    update(qlora, tokens=2)
    assert budget["adapters' gradients"] == sum(p.grad.nbytes for p in qlora.parameters() if p.grad is not None)
    optimizer.step()
    qlora.zero_grad()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert budget["AdamW's moments"] == sum(moment.nbytes for moment in moments)


def test_activations_are_what_autograd_keeps(qlora, autocast_seen):
    qlora.gradient_checkpointing_disable()
    budget = small_budget(gradient_checkpointing=False)
    last_norm = 4 * ROWS * TOKENS * SMALL["hidden_size"]  # counted with the hidden states
    measured = kept_for_backward(qlora) - budget["adapters for autocast"] - last_norm
    counted = sum(budget[f"all layers: {name}"] for name in ACTIVATIONS)
    assert measured <= counted <= 1.25 * measured


def test_checkpointed_layers_keep_their_inputs(qlora, autocast_seen):
    qlora.gradient_checkpointing_enable({"use_reentrant": False})
    last_norm = 4 * ROWS * TOKENS * SMALL["hidden_size"]
    measured = kept_for_backward(qlora) - last_norm
    assert small_budget()["layer inputs"] == pytest.approx(measured, rel=0.02)


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_peak_of_an_update_is_within_the_budget(qlora, autocast_seen):
    qlora.gradient_checkpointing_enable({"use_reentrant": False})
    budget = small_budget()
    apart = ("linear layers in NF4", "embeddings, norms, biases", "adapters", "AdamW's moments", "loss buffers")
    apart += ("fragmentation", "CUDA context, workspaces")
    counted = sum(size for name, size in budget.items() if name not in apart)
    update(qlora, tokens=2)  # what the first pass alone allocates
    qlora.zero_grad()
    measured = peak_bytes(lambda: update(qlora))
    qlora.zero_grad()
    assert measured <= counted <= 1.4 * measured


def test_gemma_2b_is_counted_whole():
    items = by_name(gemma_2b(micro_batch=4, max_length=512))
    sizes = model_sizes(GemmaConfig(**GEMMA_2B_CONFIG))
    assert sum(layer.weights for layer in sizes.linear) + sizes.other_parameters == 2_506_172_416  # published
    assert items["embeddings, norms, biases"] == 2 * (256_000 * 2048 + 37 * 2048)
    assert items["layer inputs"] == 18 * 4 * 512 * 2048 * 2
    assert items["loss buffers"] == LOSS_BUFFER
    assert items["CUDA context, workspaces"] == CUDA_CONTEXT
    allocated = sum(size for name, size in items.items() if name not in ("fragmentation", "CUDA context, workspaces"))
    assert items["fragmentation"] == pytest.approx(0.1 * allocated)


@pytest.mark.parametrize("max_length", [512, 1024])
def test_gemma_2b_needs_less_than_10_gb(max_length):
    assert total_bytes(gemma_2b(micro_batch=4, max_length=max_length)) < 10e9


def test_more_is_never_less():
    for name, values in {"max_length": (64, 500, 512, 4096), "micro_batch": (1, 3, 8), "rank": (1, 8, 64)}.items():
        budgets = [by_name(gemma_2b(**{"micro_batch": 2, "max_length": 512, name: value})) for value in values]
        for less, more in pairwise(budgets):
            assert all(less[item] <= more[item] for item in less)
            assert sum(less.values()) < sum(more.values())


def test_what_each_option_saves():
    tokens = {"micro_batch": 4, "max_length": 512}
    whole = total_bytes(gemma_2b(**tokens))
    for option in ("quantized", "gradient_checkpointing"):
        assert total_bytes(gemma_2b(**tokens, **{option: False})) > 1.5 * whole
    alone = by_name(gemma_2b(**tokens, distills=False))
    assert alone["loss buffers"] == LOSS_BUFFER
    assert by_name(gemma_2b(**tokens, compute_bytes=4))["linear layers in NF4"] == alone["linear layers in NF4"]
    two = by_name(gemma_2b(**tokens, target_modules=["q_proj", "v_proj"]))
    assert two == by_name(gemma_2b(**tokens, target_modules=r".*\.(q|v)_proj"))
    assert two["adapters"] == 4 * 18 * 8 * (2048 + 2048 + 2048 + 256)


def test_layers_count_in_proportion():
    """Twice the layers: twice of what each has, and no more of what one at a time has."""
    few, many = (
        by_name(memory_budget(GemmaConfig(**{**SMALL, "num_hidden_layers": layers}), rank=RANK, micro_batch=ROWS,
                              max_length=TOKENS, **QLORA))
        for layers in (2, 4)
    )  # fmt: skip
    each = ("linear layers in NF4", "adapters", "adapters' gradients", "AdamW's moments", "layer inputs")
    assert all(many[name] == 2 * few[name] for name in each)
    once = [*(f"one layer: {name}" for name in ACTIVATIONS), "gradients in flight", "a dequantised weight"]
    assert all(many[name] == few[name] for name in once)
    stored = small_budget(gradient_checkpointing=False)
    assert all(stored[f"all layers: {name}"] == 2 * few[f"one layer: {name}"] for name in ACTIVATIONS)


def test_head_of_its_own_is_not_quantised():
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_attention_heads=2, vocab_size=100
    )
    sizes = model_sizes(config)
    assert len(sizes.linear) == 14
    assert sizes.other_parameters == 2 * 100 * 64 + 5 * 64  # embeddings, head, norms


def test_table_has_a_line_per_item_and_the_total():
    items = gemma_2b(micro_batch=4, max_length=512)
    *lines, last = budget_table(items).splitlines()
    assert [line.split("  ")[0] for line in lines] == [item.name for item in items]
    assert all(item.how and item.how in line for item, line in zip(items, lines, strict=True))
    assert last.split() == ["total", f"{total_bytes(items) / GB:.3f}", "GB"]


def product_budget(micro_batch: int, max_length: int) -> list[BudgetItem]:
    return [BudgetItem("rows and tokens", micro_batch * max_length, "a byte each")]


@pytest.mark.parametrize(
    ("available", "asked", "nearest"),
    [
        (4096, (4, 2, 1024), (4, 2, 1024)),  # it fits
        (4095, (4, 2, 1024), (2, 4, 1024)),
        (1024, (4, 2, 1024), (1, 8, 1024)),
        (1023, (4, 2, 1024), (1, 8, 512)),  # shorter only when a single row is too long
        (100, (6, 1, 100), (1, 6, 100)),
        (300, (6, 1, 100), (3, 2, 100)),
        (500, (5, 1, 101), (1, 5, 101)),  # 5 rows cannot be halved
        (64, (1, 1, 100), (1, 1, 64)),
        (63, (8, 1, 1024), None),
        (31, (1, 1, 32), None),  # never longer than asked for
    ],
)
def test_nearest_that_fits(available, asked, nearest):
    assert nearest_that_fits(available, product_budget, *asked) == nearest


def test_refusal_names_a_setting_that_fits():
    memory, budget_of = 14.56 * GB, lambda rows, length: gemma_2b(micro_batch=rows, max_length=length)
    check_fits(memory, budget_of, 4, 4, 1024)
    with pytest.raises(InputError) as refusal:
        check_fits(memory, budget_of, 64, 1, 2048)
    message = str(refusal.value)
    assert message.startswith(
        "per_device_train_batch_size 64 with gradient_accumulation_steps 1 and max_length 2048 needs about "
    )
    assert f"{total_bytes(budget_of(64, 2048)) / GB:.1f} GB, but 13.1 of the device's 14.6 GB may be used" in message
    flags = r"--per_device_train_batch_size (\d+) --gradient_accumulation_steps (\d+) --max_length (\d+)\.$"
    rows, accumulation, length = map(int, re.search(flags, message).groups())
    assert rows * accumulation == 64 and length == 2048
    check_fits(memory, budget_of, rows, accumulation, length)
    assert total_bytes(budget_of(2 * rows, length)) > USABLE_SHARE * memory  # nothing nearer does


def test_refusal_when_nothing_fits():
    with pytest.raises(
        InputError, match=r"may be used: not even one row of 64 tokens fits; choose a smaller --model\.$"
    ):
        check_fits(2 * GB, lambda rows, length: gemma_2b(micro_batch=rows, max_length=length), 4, 1, 512)


def test_cpu_refuses_nothing():
    check_fits(None, lambda rows, length: pytest.fail("nothing to count"), 10**6, 1, 10**6)


def test_a_model_without_attention_has_a_budget():
    config = NewLLMConfig()
    settings = {**QLORA, "rank": RANK, "micro_batch": ROWS, "max_length": TOKENS}
    items = by_name(memory_budget(config, **settings))
    assert total_bytes(memory_budget(config, **settings)) > CUDA_CONTEXT + items["linear layers in NF4"]
    targets = 7 * config.num_hidden_layers + 1  # three into the context, one out of it, the MLP's; the projection
    (adapters,) = (item.how for item in memory_budget(config, **settings) if item.name == "adapters")
    assert f"on {targets} layers" in adapters
