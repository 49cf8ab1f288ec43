"""Small runs of stage 6 for tests: tiny random chat models and a few pairs whose rejected side is plainly worse."""

import json
from pathlib import Path

from transformers import AutoModelForCausalLM

from newllm_lib.data.chat_template import template_for
from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.models import build_config, build_model
from newllm_lib.preferences.arguments import DpoArguments

COLOURS = ("red", "blue", "green", "amber", "black", "white", "grey", "pink")


def make_pairs(count: int) -> list[dict]:
    """All different; the chosen answer is polite, the rejected one shouts."""
    pairs = []
    for number in range(count):
        colour = COLOURS[number % 8]
        pairs.append(
            {
                "prompt": f"{number}: what is {colour}?",
                "chosen": f"It is the colour {colour}, thank you.",
                "rejected": f"{colour.upper()}!! GO AWAY {number}!",
                "kind": ("rude", "loud")[number % 2],
            }
        )
    return pairs


def write_pairs(path: Path, pairs: list[dict]) -> Path:
    path.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
    return path


def tiny_chat_model(folder: Path, model_type: str = "tiny-gpt2", **sizes) -> Path:
    """A random model with the byte tokenizer and our chat template, as a finished run would leave it."""
    if not folder.exists():
        tokenizer = build_tokenizer("byte", [])
        tokenizer.chat_template = template_for(tokenizer, "dialogue")
        special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = build_config(
            model_type, vocab_size=len(tokenizer), **{"num_parameters": 80_000, "max_length": 128, **sizes}, **special
        )
        build_model(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def opened(folder: Path) -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder)


def dpo_fields(folder: Path, name: str = "run", model_type: str = "tiny-gpt2", **fields) -> dict:
    data = folder / "pairs.jsonl"
    if not data.exists():
        write_pairs(data, make_pairs(48))
    small = {
        "model": str(tiny_chat_model(folder / model_type, model_type)),
        "data": str(data),
        "held_out_share": 0.25,
        "output_dir": str(folder / name),
        "max_length": 96,
        "sft_epochs": 0.0,
        "sft_weight": 0.0,
        "beta": 0.1,
        "max_steps": 6,
        "learning_rate": 5e-3,
        "lora_r": 4,
        "per_device_train_batch_size": 4,
        "max_eval_tokens": 400,
        "eval_steps": 2,
        "save_steps": 2,
        "logging_steps": 1,
        "auto_precision": False,
    }
    return {**small, **fields}


def dpo_arguments(folder: Path, name: str = "run", **fields) -> DpoArguments:
    return DpoArguments(**dpo_fields(folder, name, **fields))
