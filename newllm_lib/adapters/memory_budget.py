"""What torch's tensors take on a GPU while adapters train, from the sizes of the model alone, before a byte is
allocated; and the nearest setting that fits where the one asked for does not.

The parts are not all alive at the same moment, so their sum is more than the peak: 3 to 12 % more for Gemma-2B
(docs/RESULTS.md). A decoder layer is counted as Gemma, Llama and Qwen compute it; GPT-2's activation function is
written out and keeps half as much again.

Dimensions: B rows (the micro-batch), T tokens, H hidden, L layers.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from ..errors import InputError
from ..models.frozen_head import CHUNK_ELEMENTS
from ..training.device import find_device
from ..training.disk import GB
from .arguments import QloraLwfArguments

FP32 = 4  # bytes
USABLE_SHARE = 0.9  # of the device; CUDA itself takes some 0.6 GB, and the allocator's pieces do not all fit
SHORTEST = 64  # tokens per row; below it there is little left to learn from


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
    norms: int  # in one block
    other_parameters: int  # embeddings, a head of its own, norms, biases
    hidden: int
    heads: int  # 0 without attention


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
    others = sum(parameter.numel() for parameter in model.parameters()) - sum(layer.weights for layer in linear)
    heads = getattr(config, "num_attention_heads", 0)
    return ModelSizes(linear, max(norms.values(), default=0), others, config.hidden_size, heads)


def memory_budget(args: QloraLwfArguments, sizes: ModelSizes, micro_batch: int, max_length: int) -> dict[str, int]:
    """Bytes on the GPU while adapters train with these settings, but with `micro_batch` rows of `max_length` tokens in
    a forward pass, by what they are for. What is not quantised is in the dtype of autocast, and so are products."""
    rank, quantized, compute_bytes = args.lora_r, args.load_in_4bit, args.compute_dtype.itemsize
    tokens = micro_batch * max_length
    hidden = tokens * sizes.hidden  # numbers of one [B, T, H]
    scores = FP32 * tokens * sizes.heads * max_length  # one [B, heads, T, T]
    targets = {layer.name for layer in sizes.linear if is_target(layer.name, args.targets)}
    adapters = rank * sum(layer.inputs + layer.outputs for layer in sizes.linear if layer.name in targets)
    largest = max(layer.weights for layer in sizes.linear)

    def kept(layers: list[LinearSize]) -> int:
        """What one decoder layer keeps for its backward pass. A frozen weight keeps no input, but the adapter beside it
        does. Attention is torch's plain kernel in fp32, with keys and values for every head: a T4 gets it wherever the
        fused kernel does not take grouped heads, which needs less."""
        into_stream = [layer.inputs for layer in layers if layer.outputs == sizes.hidden]  # attention's and the MLP's
        widest = max(max(layer.inputs, layer.outputs) for layer in layers)  # what the activation function makes
        inner = rank * sum(layer.name in targets for layer in layers)
        projections = sum(layer.outputs for layer in layers) + sum(into_stream) + widest + inner
        attention = 3 * FP32 * tokens * min(into_stream, default=0) + scores
        norms = sizes.norms * hidden * (FP32 + compute_bytes)  # before in fp32, after in half
        return projections * tokens * compute_bytes + attention + norms

    blocks = {layer.block for layer in sizes.linear} - {""} or {""}  # a model without numbered blocks is one
    kept_by_block = [kept([layer for layer in sizes.linear if layer.block == block]) for block in blocks]
    wide = tokens * compute_bytes * max(max(layer.inputs, layer.outputs) for layer in sizes.linear)
    is_double = args.bnb_4bit_use_double_quant
    of_layers = [
        four_bit_bytes(layer.weights, is_double) if quantized else compute_bytes * layer.weights
        for layer in sizes.linear
    ]
    return {
        "linear layers": sum(of_layers),
        "embeddings, norms, biases": sizes.other_parameters * compute_bytes,
        # In fp32 they, their gradients and AdamW's two moments; autocast keeps a copy.
        "adapters": (4 * FP32 + compute_bytes) * adapters,
        "layer inputs": len(blocks) * hidden * compute_bytes if args.activation_checkpointing else 0,
        "layers' activations": max(kept_by_block) if args.activation_checkpointing else sum(kept_by_block),
        # Two gradients as wide as the MLP. Attention goes backward when the MLP's gate, up and product are already
        # free: two gradients of scores beside the softmax.
        "gradients in flight": max(2 * wide, 3 * scores - 3 * wide),
        # The largest, and its scales in fp32.
        "a dequantised weight": largest * compute_bytes + 2 * FP32 * math.ceil(largest / 64) if quantized else 0,
        # Student, its gradient and teacher; in fp32 the gradient and the last norm.
        "hidden states for the loss": ((2 + args.distills) * compute_bytes + 2 * FP32) * hidden,
        "the loss's logits": FP32 * CHUNK_ELEMENTS,  # of both models together and whatever the vocabulary
    }


def is_target(name: str, targets: str | Sequence[str]) -> bool:
    """Whether PEFT puts an adapter on this linear layer; `targets` as `AdapterArguments.targets` has them."""
    return targets == "all-linear" or any(name == target or name.endswith("." + target) for target in targets)


def four_bit_bytes(weights: int, double_quant: bool = True) -> int:
    """Bytes of one linear layer in NF4 or FP4 (bitsandbytes' QuantState): half a byte per weight, a table of 16 values,
    and a scale per block of 64: in fp32, or with double quantisation a byte, an fp32 number per 256 blocks, and tables:
    256 values of a scale, a mean."""
    blocks = math.ceil(weights / 64)
    scales = blocks + FP32 * (math.ceil(blocks / 256) + 256 + 1) if double_quant else FP32 * blocks
    return math.ceil(weights / 2) + FP32 * 16 + scales


def check_memory(args: QloraLwfArguments, sizes: ModelSizes) -> None:
    """Raises InputError for settings that do not fit into the GPU's memory: what they need, what there is, and the
    nearest ones that fit. These have as many rows per update: the micro-batch gives way first, which costs time only,
    and then the length."""
    memory_gb = find_device(args.use_cpu).memory_gb
    if memory_gb is None:
        return

    def needed_gb(rows: int, length: int) -> float:
        return sum(memory_budget(args, sizes, rows, length).values()) / GB

    micro_batch, max_length = args.per_device_train_batch_size, args.max_length
    usable_gb, asked_gb = USABLE_SHARE * memory_gb, needed_gb(micro_batch, max_length)
    if asked_gb <= usable_gb:
        return
    lengths = [max_length]
    while lengths[-1] > SHORTEST:
        lengths.append(max(lengths[-1] // 2, SHORTEST))
    divisors = [rows for rows in range(micro_batch, 0, -1) if micro_batch % rows == 0]
    settings = ((rows, length) for length in lengths for rows in divisors)
    remedy = f"not even one row of {lengths[-1]} tokens fits; choose a smaller --model."
    if nearest := next((setting for setting in settings if needed_gb(*setting) <= usable_gb), None):
        rows, length = nearest
        remedy = (
            f"the nearest setting that fits is --per_device_train_batch_size {rows} --gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps * micro_batch // rows} --max_length {length}."
        )
    raise InputError(
        f"per_device_train_batch_size {micro_batch} with gradient_accumulation_steps "
        f"{args.gradient_accumulation_steps} and max_length {max_length} needs about {asked_gb:.1f} GB, but "
        f"{usable_gb:.1f} of the device's {memory_gb:.1f} GB may be used: {remedy}",
        "NL-105",
    )
