"""A settings panel over a small text file, with the smallest preset."""

import dataclasses
import sys

import pytest
from chats import untrained_chat
from google_colab import StandIn
from lwf_runs import train_adapters

from newllm_lib.colab import storage
from newllm_lib.colab.panel.settings_panel import SettingsPanel
from newllm_lib.colab.panel.stage import PRETRAIN


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


@pytest.fixture
def shown_by(monkeypatch):
    """A call of it gives a list of all that a module displays from now on, as HTML or as a sentence."""

    def shown_by(module) -> list[str]:
        contents = []
        monkeypatch.setattr(module, "show", contents.append)
        monkeypatch.setattr(module, "say", lambda sentence, status="ok": contents.append(f"{status}: {sentence}"))
        return contents

    return shown_by


@pytest.fixture(scope="session")
def adapter_run(tmp_path_factory):
    """The folder of a finished run of stage 5."""
    return train_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """A session on a stand-in of Colab, in the folder `tmp_path`/content; Drive is `tmp_path`/my-drive."""
    monkeypatch.delenv("NEWLLM_RUNS", raising=False)
    content = tmp_path / "content"
    content.mkdir()
    monkeypatch.chdir(content)
    stand_in = StandIn(tmp_path / "my-drive")
    for name, module in stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(storage, "MOUNT_POINT", content / "drive")
    monkeypatch.setattr(storage, "DRIVE_FOLDER", content / "drive" / "MyDrive" / "New-LLM")
    monkeypatch.setattr(storage, "_copiers", {})
    return stand_in


@pytest.fixture
def small_chats(tmp_path):
    """Name -> folder of a model to talk to."""
    return {
        "newllm": untrained_chat(tmp_path / "run" / "newllm"),
        "tiny-gpt2": untrained_chat(tmp_path / "run" / "tiny-gpt2", "tiny-gpt2"),
        "other newllm": untrained_chat(tmp_path / "other" / "newllm", seed=1),
    }
