"""Small runs of stage 5 for tests: a tiny random Gemma, a few conversations, a little text to rehearse."""

import json
from pathlib import Path

from chats import write_conversations as write_chats
from conversations import make_conversations, write_conversations
from sample_text import make_text
from tiny_gemma import tiny_gemma_folder

from newllm_lib.adapters.arguments import QloraLwfArguments
from newllm_lib.adapters.base_model import find_base_model, open_base, open_tokenizer
from newllm_lib.adapters.lora import add_adapters
from newllm_lib.adapters.qlora_lwf import qlora_lwf


def lwf_files(folder: Path, kind: str = "gemma3") -> dict[str, str]:
    """Fields of a run: its model, its data."""
    text = folder / "general.txt"
    text.write_text(make_text(80), encoding="utf-8")
    data = write_conversations(folder / "talk.jsonl", make_conversations(60))
    model = folder / "gemma"
    if not model.exists():
        tiny_gemma_folder(model, kind)
    return {"model": str(model), "data": str(data), "rehearsal_data": str(text)}


def lwf_arguments(folder: Path, name: str = "run", **fields) -> QloraLwfArguments:
    small = {
        **lwf_files(folder),
        "output_dir": str(folder / name),
        "load_in_4bit": False,
        "max_length": 96,
        "held_out_share": 0.2,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_eval_tokens": 200,
        "max_test_tokens": 400,
        "eval_steps": 2,
        "save_steps": 2,
        "logging_steps": 1,
        "auto_precision": False,
    }
    return QloraLwfArguments(**{**small, **fields})


def run_of_adapters(folder: Path, base_folder: Path | None = None) -> Path:
    """Adapters of an untrained Gemma, as a finished run has them."""
    base = find_base_model(str(base_folder or tiny_gemma_folder(folder / "base")))
    run = folder / "run"
    model = open_base(base, False)
    add_adapters(model, 2, 4.0, 0.0, "all-linear").save_pretrained(run)
    model.generation_config.save_pretrained(run)
    open_tokenizer(base).save_pretrained(run)
    session = {"model": base.path}
    settings = {"run": {"stage": "qlora-lwf", "base": base.identity, "load_in_4bit": False}, "session": session}
    (run / "settings.json").write_text(json.dumps(settings))
    return run


def train_adapters(folder: Path) -> Path:
    """Adapters on a random base, moved far enough by a few updates to say something else than it."""
    rehearsal = folder / "rehearsal.txt"
    rehearsal.write_text(make_text(240), encoding="utf-8")
    args = QloraLwfArguments(
        model=str(tiny_gemma_folder(folder / "base")), data=str(write_chats(folder / "data.jsonl")),
        rehearsal_data=str(rehearsal), load_in_4bit=False, max_length=128, max_steps=12, learning_rate=1e-2,
        eval_steps=0.5, save_steps=0.5, logging_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=1,
        max_eval_tokens=400, max_test_tokens=400, output_dir=str(folder / "run" / "tuned"),
    )  # fmt: skip
    return qlora_lwf(args)
