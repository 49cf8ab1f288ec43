"""What a finished run's folder holds, and how a run is interrupted, for whoever tests it."""

import json
import signal
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

RUN_FILES = {
    "config.json", "model.safetensors", "tokenizer.json", "settings.json", "metrics.jsonl", "curves.png", "README.md",
    "results.json",
}  # fmt: skip
ADAPTER_FILES = RUN_FILES - {"config.json", "model.safetensors"} | {
    "adapter_config.json", "adapter_model.safetensors", "generation_config.json", "forgetting.json",
}  # fmt: skip
PREFERENCE_FILES = ADAPTER_FILES - {"forgetting.json"} | {"preferences.json", "merged"}
SWEEP_FILES = {"trials.jsonl", "best.json", "settings.json", "parallel-coordinates.png", "margins.png", "trial-001"}

CLOCK = ("runtime", "per_second", "flos")


def log_without_clock(folder: Path) -> list[dict]:
    """The lines of a run's log, but for what the clock says."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if not any(word in k for word in CLOCK)} for entry in entries]


def assert_same_weights(first: Path, second: Path) -> None:
    """Of two runs or checkpoints, to the bit."""
    expected, found = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert expected.keys() == found.keys()
    assert not [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]


class StopAt(TrainerCallback):
    """Sends the interrupt a user's Ctrl-C would send, during one update."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGINT)
