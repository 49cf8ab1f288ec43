"""A settings panel over a small text file, with the smallest preset."""

import dataclasses

import pytest
from chats import train_adapters

from newllm_lib.colab.panel import SettingsPanel
from newllm_lib.colab.stage import PRETRAIN


@pytest.fixture
def make_panel(tmp_path, text_file, monkeypatch):
    """Builds the panel of the folder `tmp_path`, each time as a new session would."""
    monkeypatch.setenv("NEWLLM_PRESET", "smoke")
    monkeypatch.delenv("NEWLLM_DATA_SOURCE", raising=False)

    def make(models=("newllm", "tiny-gpt2"), own_file=True, stage=PRETRAIN) -> SettingsPanel:
        panel = SettingsPanel(dataclasses.replace(stage, folder="runs", models=models), tmp_path)
        if own_file and panel.controls["data"].value is None:
            panel.controls["data"].widget.value = str(text_file)
            panel.controls["data_source"].widget.value = "file"
        return panel

    return make


@pytest.fixture(scope="session")
def adapter_run(tmp_path_factory):
    """The folder of a finished run of stage 5."""
    return train_adapters(tmp_path_factory.mktemp("adapters"))
