"""Conversations that a test writes, and the small settings it trains them with."""

import json
from pathlib import Path

from sample_text import SENTENCES

from newllm_lib.stages.sft import SftArguments

COLOURS = ("red", "blue", "green", "amber", "black", "white", "grey", "pink")


def make_conversations(count: int) -> list[list[dict]]:
    """One or two exchanges each, all different."""
    conversations = []
    for number in range(count):
        turns = [(f"{number}: what is {COLOURS[number % 8]}?", SENTENCES[number % 5][: 20 + number % 17].strip())]
        if number % 3 == 0:
            turns.append((f"And {number + 1}?", f"That is {COLOURS[(number * 5 + 3) % 8]}."))
        conversations.append(
            [
                {"role": role, "content": content}
                for turn in turns
                for role, content in zip(("user", "assistant"), turn, strict=True)
            ]
        )
    return conversations


def write_conversations(path: Path, conversations: list[list[dict]]) -> Path:
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations), encoding="utf-8")
    return path


def sft_arguments(data: Path, folder: Path, **fields) -> SftArguments:
    small = {
        "data": str(data),
        "output_dir": str(folder),
        "tokenizer": "byte",
        "max_length": 128,
        "held_out_share": 0.2,
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "eval_steps": 2,
        "save_steps": 2,
        "logging_steps": 1,
    }
    if "model" not in fields:
        small["num_parameters"] = 120_000
    return SftArguments(**{**small, **fields})
