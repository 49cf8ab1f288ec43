"""What tuning has changed: the answers of a tuned model, and of its base, which is the model with its adapters off;
and which layers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..data.chat_template import conversation_ids
from ..data.tokenizer import end_token_ids
from ..models.frozen_head import adapters_off
from ..progress import Progress

# Asked before and after tuning: the same in every run, so that answers can be compared.
PROMPTS = (
    "Explain in simple terms why people need sleep.",
    "What are the main factors that support an economy?",
    "What were the main causes of the Great Depression?",
    "Write a Python function that returns the prime numbers up to n.",
    "Make a table of the GDP of three large countries.",
)


def replies_before_and_after(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], max_new_tokens: int
) -> dict[str, Any]:
    """What the base and the tuned model answer: {"answers": [{"prompt", "before", "after"}, ...],
    "ended_by_themselves": {"before": how many, "after": how many}}."""
    with adapters_off(model):
        before = reply_to_each(model, tokenizer, prompts, max_new_tokens)
    after = reply_to_each(model, tokenizer, prompts, max_new_tokens)
    replies = zip(prompts, before, after, strict=True)
    answers = [{"prompt": prompt, "before": old, "after": new} for prompt, (old, _), (new, _) in replies]
    ended = {"before": sum(end for _, end in before), "after": sum(end for _, end in after)}
    return {"answers": answers, "ended_by_themselves": ended}


@torch.no_grad()
def layer_changes(model: PeftModel) -> dict[str, float]:
    """layer -> the size of what its adapter adds, (alpha / r) B A, as a share of its weights' (Frobenius norms)."""
    changes = {}
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            (adapter,) = layer.active_adapters
            weights = dequantize_module_weight(layer.get_base_layer()).float()
            changes[name] = float(layer.get_delta_weight(adapter).norm() / weights.norm())
    return changes


def changes_figure(changes: Mapping[str, float]) -> Figure:
    """Which layers changed most: a row for each kind of layer, a column for each block, in the model's order."""
    blocks, kinds, cells = {}, {}, []
    for name, change in changes.items():
        block = re.match(r".+?\.\d+(?=\.)", name)
        column = blocks.setdefault(block[0] if block else "", len(blocks))
        cells.append((kinds.setdefault(name.rsplit(".", 1)[-1], len(kinds)), column, 100 * change))
    table = torch.full((len(kinds), len(blocks)), torch.nan)
    for row, column, percent in cells:
        table[row, column] = percent
    figure = Figure(figsize=(8, 0.9 + 0.3 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table.numpy(), aspect="auto", vmin=0, cmap="viridis")
    axes.set_yticks(range(len(kinds)), list(kinds))
    labels = [block.rsplit(".", 1)[-1] if block else "-" for block in blocks]
    every = -(-len(labels) // 24)
    axes.set_xticks(range(0, len(labels), every), labels[::every])
    axes.set_xlabel("block of layers")
    figure.colorbar(image, label="what adapters add,\nin % of the weights")
    return figure


@torch.no_grad()
def reply_to_each(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], max_new_tokens: int
) -> list[tuple[str, bool]]:
    """For each prompt (the model's answer, the most likely token each time; whether it ended it by itself). The
    repetition penalty is that of the model's generation settings."""
    rows = [conversation_ids([{"role": "user", "content": prompt}], tokenizer) for prompt in prompts]
    end_ids = end_token_ids(tokenizer)
    # In a model with few positions the prompt gives way; New-LLM has none.
    window = getattr(model.config, "max_position_embeddings", max(map(len, rows)) + max_new_tokens)
    rows = [row[-max(window - max_new_tokens, 1) :] for row in rows]
    padded = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt").to(model.device)
    length = padded["input_ids"].shape[1]
    model.eval()
    # The last position of several rows is a slice with gaps, for which torch would copy the head once a row: 1.7 GB for
    # five of Gemma 3 270M, 5 GB of Gemma-2B.
    contiguous = model.get_output_embeddings().register_forward_pre_hook(lambda head, args: (args[0].contiguous(),))
    with contiguous, Progress(desc="answering"):
        made = model.generate(
            **padded,
            max_new_tokens=min(max_new_tokens, window - length),
            do_sample=False,
            eos_token_id=end_ids,
            pad_token_id=tokenizer.pad_token_id,
        )[:, length:]
    ended = torch.isin(made, made.new_tensor(end_ids)).any(dim=1).tolist()
    texts = tokenizer.batch_decode(made, skip_special_tokens=True)
    return [(text.strip(), end) for text, end in zip(texts, ended, strict=True)]
