"""Small runs that were tuned on conversations, for whoever tests what is made of them."""

import json
from pathlib import Path

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


def train_chat(data: Path, folder: Path) -> Path:
    """A model of a few updates, which says nothing of sense."""
    args = SftArguments(
        data=str(data), tokenizer="byte", num_parameters=80_000, max_length=64, max_steps=4, eval_steps=0.5,
        save_steps=0.5, max_eval_tokens=500, per_device_train_batch_size=4, output_dir=str(folder),
    )  # fmt: skip
    return sft(args)
