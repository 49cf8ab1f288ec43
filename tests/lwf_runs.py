"""Small runs of stage 5 for tests: a tiny random Gemma, a few conversations, a little text to rehearse."""

from pathlib import Path

from conversations import make_conversations, write_conversations
from sample_text import make_text
from tiny_gemma import tiny_gemma_folder

from newllm_lib.training.lwf_arguments import QloraLwfArguments


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
