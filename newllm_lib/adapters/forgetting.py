"""What tuning has cost: the answers of a tuned model, and of its base, which is the model with its adapters off."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..data.chat_template import conversation_ids
from ..data.tokenizer import end_token_ids
from ..models.frozen_head import adapters_off

# Asked before and after tuning: the same in every run, so that answers can be compared.
PROMPTS = (
    "Explain in simple terms why people need sleep.",
    "What are the main factors that support an economy?",
    "What are common causes of depression?",
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
    with model.get_output_embeddings().register_forward_pre_hook(lambda head, args: (args[0].contiguous(),)):
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
