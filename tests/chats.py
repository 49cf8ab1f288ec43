"""Small models to talk to, and conversations to tune them on, for whoever tests what is made of them."""

import json
from pathlib import Path

import torch

from newllm_lib.data.chat_template import template_for
from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.models import build_config, build_model
from newllm_lib.stages.sft import SftArguments, sft

GREETINGS = (
    "Hello",
    "Good morning",
    "How are you",
    "Nice day",
    "What is new",
    "Can you help me",
    "Bye",
    "Is it raining",
)


def write_conversations(path: Path, count: int = 200) -> Path:
    """Rows of messages, of two and of four turns, no two alike."""
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            said = GREETINGS[number % len(GREETINGS)]
            turns = [f"{said}, {number}?", f"{said} to you, {number}.", f"More of {number}.", "That is all."]
            roles = ("user", "assistant") * 2
            messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]
            stream.write(json.dumps({"messages": messages[: 2 + 2 * (number % 2)]}) + "\n")
    return path


def untrained_chat(
    folder: Path, model_type: str = "newllm", template: str | None = "dialogue", seed: int = 0, tokenizer=None
) -> Path:
    """A model with a tokenizer of bytes, which says nothing of sense, as a finished run has it.

    Args:
        template: None: a model that goes on with the text so far.
        tokenizer: another one than ours of today.
    """
    torch.manual_seed(seed)
    tokenizer = tokenizer or build_tokenizer("byte", [])
    tokenizer.chat_template = None if template is None else template_for(tokenizer, template)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    build_model(build_config(model_type, len(tokenizer), 512, num_parameters=120_000, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "settings.json").write_text(
        json.dumps({"run": {"model_type": model_type, "tokenizer": "byte"}, "session": {}})
    )
    return folder


def train_chat(data: Path, folder: Path) -> Path:
    """A model of a few updates, which says nothing of sense."""
    args = SftArguments(
        data=str(data), tokenizer="byte", num_parameters=80_000, max_length=64, max_steps=4, eval_steps=0.5,
        save_steps=0.5, max_eval_tokens=500, per_device_train_batch_size=4, output_dir=str(folder),
    )  # fmt: skip
    return sft(args)
