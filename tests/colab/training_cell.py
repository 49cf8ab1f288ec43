"""The training cell of a notebook, as a function."""

from collections.abc import Callable
from pathlib import Path

from newllm_lib.colab.experiments import live_experiments
from newllm_lib.colab.live_plot import live_training
from newllm_lib.preferences.sweep import sweep


def train_models(panel, stage: Callable[..., Path]) -> list[Path]:
    with live_training(panel) as live:
        for model in live.unfinished:
            stage(panel.arguments(model), callbacks=live.callbacks(model))
    return live.folders


def run_experiments(panel, stage: Callable[..., Path] = sweep) -> Path:
    with live_experiments(panel) as callbacks:
        return stage(panel.arguments("trials"), callbacks=callbacks)
