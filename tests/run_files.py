"""What a finished run's folder holds, and how a run is interrupted, for whoever tests it."""

import signal

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


class StopAt(TrainerCallback):
    """Sends the interrupt a user's Ctrl-C would send, during one update."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGINT)
