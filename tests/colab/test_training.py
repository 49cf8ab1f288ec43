"""The training cell on Colab: copied to Drive while it trains, continued on the next machine, the same to the bit."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import killed_sessions
import pytest
import torch
from matplotlib.figure import Figure
from run_files import StopAt
from safetensors.torch import load_file
from training_cell import train_models

from newllm_lib.colab import live_plot, storage
from newllm_lib.colab.drive.run_copy import MANIFEST_FILE
from newllm_lib.colab.page.notices import CellStopped
from newllm_lib.colab.panel.settings_panel import SettingsPanel
from newllm_lib.colab.panel.stage import PRETRAIN
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.training import curves


@pytest.fixture
def page(monkeypatch):
    """What the page shows: sentences, and the newest content of the live plot."""
    shown = SimpleNamespace(said=[], plots=[])

    def display(content, **kwargs):
        return SimpleNamespace(update=lambda content: shown.plots.append(content.data))

    for module in (storage, live_plot):
        monkeypatch.setattr(module, "display", display)
    monkeypatch.setattr(live_plot, "curves_figure", lambda histories: Figure())
    monkeypatch.setattr(curves, "save_curves", lambda histories, path: path.write_bytes(b"png"))
    for module in (storage, live_plot):
        monkeypatch.setattr(module, "say", lambda sentence, *args: shown.said.append(sentence))
    return shown


def open_panel(text_file, runs) -> SettingsPanel:
    panel = SettingsPanel(dataclasses.replace(PRETRAIN, models=("newllm",)), runs)
    panel.controls["data"].widget.value = str(text_file)
    panel.controls["data_source"].widget.value = "file"
    return panel


def train(panel: SettingsPanel, text_file, stop_at: int | None = None):
    """The training cell for a far smaller model; it is interrupted in an update, as by ■."""
    stops = () if stop_at is None else (StopAt(stop_at),)

    def small_pretrain(args, callbacks):
        small = PretrainArguments(
            data=str(text_file), output_dir=args.output_dir, tokenizer="byte", num_parameters=80_000, max_length=32,
            max_steps=20, per_device_train_batch_size=4, eval_steps=5, save_steps=5, logging_steps=1,
            max_eval_tokens=500,
        )  # fmt: skip
        return pretrain(small, (*callbacks, *stops))

    return train_models(panel, small_pretrain)


@pytest.fixture(autouse=True)
def smoke(monkeypatch):
    monkeypatch.setenv("NEWLLM_PRESET", "smoke")
    monkeypatch.delenv("NEWLLM_DATA_SOURCE", raising=False)


def next_machine(runs):
    storage._copiers.clear()
    os.unlink(storage.MOUNT_POINT / "MyDrive")
    shutil.rmtree(runs)


def losses(folder):
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["eval_loss"]) for entry in entries if "eval_loss" in entry]


def test_a_run_goes_on_on_the_next_machine_as_if_nothing_had_been(colab, page, text_file, tmp_path):
    (unbroken,) = train(open_panel(text_file, tmp_path / "unbroken"), text_file)
    assert "Drive" not in page.said[-1]

    runs = storage.open_storage()
    with pytest.raises(CellStopped, match=r"Stopped at update 13 of 20.*It is on your Drive, too"):
        train(open_panel(text_file, runs), text_file, stop_at=12)
    assert any("saved to Drive" in content for content in page.plots)
    next_machine(runs)

    page.said.clear()
    storage.open_storage()
    name = f"01_pretrain/{unbroken.parent.name}"
    assert f"{name}: newllm is at update 13 of 20; brought back from your Drive and verified" in page.said[-1]
    panel = open_panel(text_file, runs)
    assert "newllm will be continued" in panel.line.value
    (folder,) = train(panel, text_file)
    assert page.said[-1].endswith("It is on your Drive, too.")
    expected, found = (load_file(path / "model.safetensors") for path in (unbroken, folder))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert losses(unbroken) == losses(folder)
    next_machine(runs)

    page.said.clear()
    storage.open_storage()
    assert "newllm is finished" in page.said[-1]
    assert train(open_panel(text_file, runs), text_file) == [folder]
    assert "finished before" in page.said[-1]
    copy = storage.drive_copier(runs).copy_of(folder)
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in copy.iterdir() if path.is_file() and path.name != MANIFEST_FILE
    }


def test_a_run_that_waits_on_drive_is_brought_back_by_the_training_cell(colab, page, text_file, monkeypatch):
    runs = storage.open_storage()
    with pytest.raises(CellStopped):
        train(open_panel(text_file, runs), text_file, stop_at=3)
    next_machine(runs)
    monkeypatch.setattr(storage, "bring_back_runs", lambda copier, tell: ([], [], []))
    storage.open_storage()
    panel = open_panel(text_file, runs)
    model = panel.output_dir / panel.arguments("newllm").output_dir
    storage.drive_copier(runs).left.add(model)
    panel.refresh()
    assert "newllm will be brought back from Drive" in panel.line.value
    page.said.clear()
    train(panel, text_file)
    assert page.said[0].endswith("newllm is at update 4 of 20: brought back from your Drive and verified.")


def test_a_drive_that_fills_up_costs_a_remark(colab, page, text_file, monkeypatch):
    runs = storage.open_storage()

    def copy_checked(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("newllm_lib.colab.drive.run_copy.copy_checked", copy_checked)
    (folder,) = train(open_panel(text_file, runs), text_file)
    assert (folder / "results.json").is_file()
    assert "Drive is full: the last copy is not on Drive yet" in page.said[-1]
    assert any("Drive is full, next try in" in content for content in page.plots)


@pytest.mark.slow
def test_ten_machines_that_vanish_at_random_leave_no_trace(text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "save_curves", lambda histories, path: path.write_bytes(b"png"))
    unbroken = tmp_path / "unbroken"
    killed_sessions.train(unbroken, str(text_file))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, killed_sessions.__file__, str(tmp_path), str(text_file), "10"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    brought_back = [int(step) for step in re.findall(r"at update (\d+) of 60; brought back", result.stdout)]
    # How far a session comes before it is killed, the machine decides.
    assert len(brought_back) >= 3 and brought_back == sorted(brought_back) and "amaged" not in result.stdout
    run = (tmp_path / "content" / "runs").joinpath(*killed_sessions.RUN)
    expected, found = (load_file(path / "model.safetensors") for path in (unbroken, run))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert losses(unbroken) == losses(run)
