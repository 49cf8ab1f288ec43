"""What fine-tuning a 4-bit model with adapters needs on a GPU, item by item from the sizes of its tensors, before a
byte is allocated; and the nearest setting that fits when the one asked for does not.

The items are not all alive at the same moment, so their sum is more than the peak. A decoder layer is counted as Gemma,
Llama and Qwen compute it; GPT-2's activation function is written out and keeps half as much again.

Dimensions: B rows (the micro-batch), T tokens, H hidden, L layers.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from ..errors import InputError
from ..models.frozen_head import CHUNK_ELEMENTS
from ..training.device import GB

FP32 = 4  # bytes
USABLE_SHARE = 0.9  # of the device; the rest is for what is not counted
SHORTEST = 64  # tokens per row; below it there is little left to learn from

BLOCK = 64  # weights that share a scale in NF4 ...
SCALES_PER_BLOCK = 256  # ... and scales that share theirs, with double quantisation
NF4_TABLES = FP32 * (16 + 256 + 1)  # per layer: the 16 values of a weight, the 256 of a scale, the scales' mean

LOSS_BUFFER = FP32 * CHUNK_ELEMENTS  # of all models together: the loss takes the head's logits in pieces
CUDA_CONTEXT = int(0.6 * GB)  # ESTIMATED: context, cuBLAS workspaces, the kernels of torch and bitsandbytes
FRAGMENTATION = 0.1  # ESTIMATED share of what the allocator holds in pieces too small to use
WIDE_IN_FLIGHT = 2  # gradients as wide as the MLP at a time, beside what waits for its backward pass
SCORES_IN_FLIGHT = 3  # attention scores at a time: raw, masked, softmax; backward, two gradients

GEMMA_2B_CONFIG = {  # google/gemma-2b, config.json; for GemmaConfig
    "vocab_size": 256_000, "hidden_size": 2048, "intermediate_size": 16_384, "num_hidden_layers": 18,
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip


class BudgetItem(NamedTuple):
    """What takes so many bytes; `how`: one phrase on how the figure comes about."""

    name: str
    bytes: int
    how: str


class LinearSize(NamedTuple):
    """A linear layer that is not the head; `block` is its decoder layer's name, "" outside of all."""

    name: str
    block: str
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


class ModelSizes(NamedTuple):
    linear: list[LinearSize]
    blocks: list[str]
    norms: int  # in one block
    other_parameters: int  # embeddings, a head of its own, norms, biases


def model_sizes(config: PreTrainedConfig) -> ModelSizes:
    """The sizes of the causal-LM with this config, tied weights once, without allocating it."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.tie_weights()  # transformers 5.0 leaves this out on the meta device
    linear, norms = [], {}
    for name, module in model.named_modules():
        found = re.match(r"(.+?\.\d+)\.", name)
        block = found[1] if found else ""
        if isinstance(module, (nn.Linear, Conv1D)) and module is not model.get_output_embeddings():
            inputs, outputs = module.weight.shape if isinstance(module, Conv1D) else reversed(module.weight.shape)
            linear.append(LinearSize(name, block, inputs, outputs))
        elif block and "norm" in type(module).__name__.lower():
            norms[block] = norms.get(block, 0) + 1
    blocks = list(dict.fromkeys(layer.block for layer in linear if layer.block))
    others = sum(parameter.numel() for parameter in model.parameters()) - sum(layer.weights for layer in linear)
    return ModelSizes(linear, blocks, max(norms.values(), default=0), others)


def memory_budget(
    config: PreTrainedConfig,
    *,
    rank: int,
    target_modules: str | Sequence[str],
    micro_batch: int,
    max_length: int,
    quantized: bool,
    distills: bool,
    gradient_checkpointing: bool,
    compute_bytes: int = 2,
) -> list[BudgetItem]:
    """Bytes on the GPU while adapters train, item by item.

    Args:
        rank: of the LoRA adapters.
        target_modules: as peft takes them: "all-linear", a pattern of names, or a list of their last parts.
        micro_batch, max_length: rows and tokens per row of one forward pass.
        quantized: the linear layers but the head are NF4 with double quantisation.
        distills: a second forward pass, with the adapters off, is the teacher.
        compute_bytes: per number in autocast's dtype, which is also that of the weights that are not quantised.
    """
    sizes = model_sizes(config)
    tokens = micro_batch * max_length
    hidden = tokens * config.hidden_size * compute_bytes  # one [B, T, H]
    scores = FP32 * tokens * getattr(config, "num_attention_heads", 0) * max_length  # one [B, heads, T, T], if any
    targets = [layer for layer in sizes.linear if is_target(layer.name, target_modules)]
    adapters = rank * sum(layer.inputs + layer.outputs for layer in targets)

    weights = sum(layer.weights for layer in sizes.linear)
    name, size = "linear layers", compute_bytes * weights
    if quantized:
        name, size = "linear layers in NF4", sum(nf4_bytes(layer.weights) for layer in sizes.linear)
    rows = [
        (name, size, f"{size / weights:.3f} bytes x {weights:,}, {len(sizes.linear)} layers"),
        ("embeddings, norms, biases", sizes.other_parameters * compute_bytes, "all other parameters; a tied head once"),
        ("adapters", FP32 * adapters, f"fp32 x {adapters:,}: rank {rank} on {len(targets)} layers"),
        ("adapters' gradients", FP32 * adapters, "fp32"),
        ("AdamW's moments", 2 * FP32 * adapters, "fp32, two per adapter weight"),
        ("adapters for autocast", compute_bytes * adapters, f"{compute_bytes} bytes each, kept in its cache"),
    ]
    of_blocks = ([layer for layer in sizes.linear if layer.block == block] for block in sizes.blocks)
    in_blocks = [
        _block_activations(layers, targets, sizes.norms, config, rank, tokens, scores, compute_bytes)
        for layers in of_blocks
    ]
    if gradient_checkpointing:
        rows.append(("layer inputs", len(in_blocks) * hidden, f"B x T x H of {len(in_blocks)} checkpointed layers"))
        largest = max(in_blocks, key=lambda block: sum(size for _, size, _ in block))
        rows += [("one layer: " + name, size, how) for name, size, how in largest]
    else:
        for same in zip(*in_blocks, strict=True):
            rows.append(("all layers: " + same[0][0], sum(size for _, size, _ in same), "each: " + same[0][2]))
    wide = tokens * compute_bytes * max(max(layer.inputs, layer.outputs) for layer in sizes.linear)
    # Attention goes backward when the MLP's gate, up and product are already free.
    in_flight = max(WIDE_IN_FLIGHT * wide, SCORES_IN_FLIGHT * scores - 3 * wide)
    rows.append(
        ("gradients in flight", in_flight, f"{WIDE_IN_FLIGHT} x B x T x MLP, or attention's where that is more")
    )
    if quantized:
        weights = max(layer.weights for layer in sizes.linear)
        unpacked = weights * compute_bytes + 2 * FP32 * math.ceil(weights / BLOCK)
        rows.append(("a dequantised weight", unpacked, f"the largest, {weights:,}, and its scales in fp32"))
    models = 2 if distills else 1
    for_loss = (models + 1) * hidden + 2 * FP32 * tokens * config.hidden_size
    states = "student, teacher, gradient" if distills else "student, gradient"
    rows += [
        ("hidden states for the loss", for_loss, f"B x T x H: {states}; fp32: gradient, last norm"),
        ("loss buffers", LOSS_BUFFER, "2^27 logits in fp32, of all models together and whatever the vocabulary"),
    ]
    lost = FRAGMENTATION * sum(size for _, size, _ in rows)
    rows += [
        ("fragmentation", round(lost), f"estimated: {FRAGMENTATION:.0%} of the above"),
        ("CUDA context, workspaces", CUDA_CONTEXT, "estimated"),
    ]
    return [BudgetItem(*row) for row in rows]


def is_target(name: str, target_modules: str | Sequence[str]) -> bool:
    """Whether peft puts an adapter on this linear layer."""
    if isinstance(target_modules, str):
        return target_modules == "all-linear" or bool(re.fullmatch(target_modules, name))
    return any(name == target or name.endswith("." + target) for target in target_modules)


def nf4_bytes(weights: int) -> int:
    """Bytes of one linear layer in NF4 with double quantisation: half a byte per weight, a byte per block of weights,
    an fp32 number per block of those, and the tables (bitsandbytes' QuantState)."""
    blocks = math.ceil(weights / BLOCK)
    return math.ceil(weights / 2) + blocks + FP32 * math.ceil(blocks / SCALES_PER_BLOCK) + NF4_TABLES


def _block_activations(
    layers: list[LinearSize],
    targets: list[LinearSize],
    norms: int,
    config: PreTrainedConfig,
    rank: int,
    tokens: int,
    scores: int,
    compute_bytes: int,
) -> list[tuple[str, int, str]]:
    """What one decoder layer keeps for its backward pass.

    A frozen weight keeps no input, but the adapter beside it does. Attention is counted as torch's plain kernel
    computes it, in fp32 and with keys and values for every head: that is what a T4 gets wherever torch's fused kernel
    does not take grouped heads. A fused kernel needs less.
    """
    into_stream = [layer.inputs for layer in layers if layer.outputs == config.hidden_size]  # attention's and the MLP's
    widest = max(max(layer.inputs, layer.outputs) for layer in layers)  # what the activation function makes
    inner = rank * sum(layer in targets for layer in layers)
    values = sum(layer.outputs for layer in layers) + sum(into_stream) + widest + inner
    attention = 3 * FP32 * tokens * min(into_stream) + scores
    normed = norms * tokens * config.hidden_size * (FP32 + compute_bytes)
    return [
        ("projections, MLP", tokens * values * compute_bytes, "q, k, v, o, gate, up, activation, product, adapters"),
        ("attention", attention, "q, k, v of all heads and B x heads x T x T scores, fp32"),
        ("norms", normed, f"{norms} x B x T x H, in fp32 before and in half after"),
    ]


def total_bytes(items: Sequence[BudgetItem]) -> int:
    return sum(item.bytes for item in items)


def budget_table(items: Sequence[BudgetItem]) -> str:
    """Name, GB and how, a line per item, and the total."""
    rows = [*items, BudgetItem("total", total_bytes(items), "")]
    width = max(len(row.name) for row in rows)
    return "\n".join(f"{row.name:<{width}}  {row.bytes / GB:7.3f} GB  {row.how}".rstrip() for row in rows)


def nearest_that_fits(
    available_bytes: float,
    budget_of: Callable[[int, int], Sequence[BudgetItem]],
    micro_batch: int,
    accumulation: int,
    max_length: int,
) -> tuple[int, int, int] | None:
    """The (micro_batch, accumulation, max_length) nearest to the one asked for that fits, or None.

    Rows per update stay as they are: the micro-batch gives way first, which costs time only, and then the length.

    Args:
        budget_of: the items at a (micro_batch, max_length).
    """
    while True:
        for rows in halves(micro_batch):
            if total_bytes(budget_of(rows, max_length)) <= available_bytes:
                return rows, accumulation * micro_batch // rows, max_length
        if max_length <= SHORTEST:
            return None
        max_length = max(max_length // 2, SHORTEST)


def halves(rows: int) -> Iterator[int]:
    """`rows`, and again and again its largest divisor of at most half of it, down to 1."""
    yield rows
    while rows > 1:
        rows = next(half for half in range(rows // 2, 0, -1) if rows % half == 0)
        yield rows


def check_fits(
    memory_bytes: float | None,
    budget_of: Callable[[int, int], Sequence[BudgetItem]],
    micro_batch: int,
    accumulation: int,
    max_length: int,
) -> None:
    """Refuse a setting that does not fit into `memory_bytes` of the device; None is a CPU, where nothing is refused.
    Raises InputError: naming the setting, what it needs, what there is, and the nearest setting that fits."""
    if memory_bytes is None:
        return
    usable, needed = USABLE_SHARE * memory_bytes, total_bytes(budget_of(micro_batch, max_length))
    if needed <= usable:
        return
    nearest = nearest_that_fits(usable, budget_of, micro_batch, accumulation, max_length)
    remedy = f"not even one row of {min(max_length, SHORTEST)} tokens fits; choose a smaller --model."
    if nearest:
        flags = "--per_device_train_batch_size {} --gradient_accumulation_steps {} --max_length {}".format(*nearest)
        remedy = f"the nearest setting that fits is {flags}."
    raise InputError(
        f"per_device_train_batch_size {micro_batch} with gradient_accumulation_steps {accumulation} and max_length "
        f"{max_length} needs about {needed / GB:.1f} GB, but {usable / GB:.1f} of the device's {memory_bytes / GB:.1f} "
        f"GB may be used: {remedy}",
        "NL-105",
    )
