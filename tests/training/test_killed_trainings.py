"""A process that is really killed, while it saves, between sealing and rotation, or while it rotates, loses nothing
that was sealed before, and the run ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_files import RUN_FILES, log_without_clock
from safetensors.torch import load_file
from sample_text import make_text

ROOT = Path(__file__).parents[2]


def trained(folder: Path, text: Path, limit: int, *moments: str) -> list[dict]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("killed_trainings.py"), folder, text, str(limit), *moments],
        # It forks its sessions, and may not wake the GPU when it asks whether there is one.
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(make_text(80), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert trained(folder, text, 3)[-1]["complete"] == [8, 10, 12]
    return folder


def assert_same_end(folder: Path, unbroken: Path) -> None:
    weights = [load_file(run / "model.safetensors") for run in (folder, unbroken)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert log_without_clock(folder) == log_without_clock(unbroken)
    assert (folder / "results.json").read_text() == (unbroken / "results.json").read_text()
    others = {path.name for path in folder.iterdir() if not path.name.startswith("checkpoint-")}
    assert others == {path.name for path in unbroken.iterdir() if not path.name.startswith("checkpoint-")} >= RUN_FILES


@pytest.mark.parametrize("limit", [1, 3])
def test_a_kill_loses_nothing_that_was_sealed(tmp_path, text, unbroken, limit):
    folder = tmp_path / "run"
    moments = ("sealed", "saving:3", "sealed", "rotating", "rotating", "rotating")
    sessions = trained(folder, text, limit, *moments)
    assert [session["exit"] for session in sessions] == [-signal.SIGKILL] * len(moments) + [0]
    newest = 0
    for session in sessions:
        assert session["complete"] and session["complete"][-1] >= newest, "a sealed one is lost only to a newer one"
        newest = session["complete"][-1]
    assert sessions[-1]["complete"] == [8, 10, 12][-limit:]
    assert_same_end(folder, unbroken)
