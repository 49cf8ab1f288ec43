"""Run folders that look like those of a training, without the training, for whoever tests how they are copied."""

import json
import os
from pathlib import Path

from newllm_lib.training.checkpoint import RESULTS_FILE, SETTINGS_FILE, seal_checkpoint
from newllm_lib.training.disk import write_json

MAX_STEPS = 300


def make_checkpoint(run: Path, step: int, best: int | None = None, size: int = 3000) -> Path:
    """A complete checkpoint of random bytes; `best` is the step of the best one so far."""
    checkpoint = run / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(os.urandom(size))
    (checkpoint / "optimizer.pt").write_bytes(os.urandom(2 * size))
    state = {
        "global_step": step,
        "max_steps": MAX_STEPS,
        "best_model_checkpoint": None if best is None else str(run / f"checkpoint-{best}"),
    }
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    seal_checkpoint(checkpoint, run)
    return checkpoint


def make_run(run: Path, steps: tuple[int, ...] = (), finished: bool = False) -> Path:
    """A run of one model: its settings, checkpoints of which the newest is the best, and what a finished one has."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / SETTINGS_FILE, {"run": {"stage": "pretrain", "seed": 1}, "session": {}})
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0}\n')
    for step in steps:
        make_checkpoint(run, step, best=step)
    if finished:
        (run / "model.safetensors").write_bytes(os.urandom(4000))
        (run / "config.json").write_text("{}")
        write_json(run / RESULTS_FILE, {"loss": 4.0})
    return run


def contents(folder: Path) -> dict[str, bytes]:
    """name -> bytes of all files in and below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_earlier_model(folder: Path) -> Path:
    """A finished New-LLM as version 0.1.0 wrote it, with weights of no sense."""
    make_run(folder, finished=True)
    (folder / "tokenizer.json").write_text("{}")
    config = {
        "architectures": ["NewLLMForCausalLM"],
        "context_clamp": 10.0,
        "context_size": 320,
        "dropout": 0.1,
        "embedding_scale": 16.0,
        "embedding_size": 256,
        "hidden_size": 640,
        "initializer": "scaled",
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-05,
        "model_type": "newllm",
        "num_hidden_layers": 1,
        "recurrent_dropout": False,
        "tie_word_embeddings": True,
        "transformers_version": "5.23.0",
        "vocab_size": 64,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
