"""Storage: every way in which Google Drive can fail ends in one sentence and a folder that works."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from newllm_lib.colab import storage


class MessageError(Exception):
    """As google.colab raises it when the browser answers no."""


@pytest.fixture
def said(monkeypatch):
    sentences = []
    monkeypatch.setattr(storage, "say", lambda sentence, status="ok": sentences.append((status, sentence)))
    return sentences


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """A stand-in for google.colab; `mount` may be replaced. Drive's folder is inside `tmp_path`."""
    monkeypatch.delenv("NEWLLM_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    google, colab, drive = ModuleType("google"), ModuleType("google.colab"), ModuleType("google.colab.drive")
    colab.drive = drive
    drive.mount = lambda mountpoint: None
    for module in (google, colab, drive):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(storage, "DRIVE_FOLDER", tmp_path / "drive" / "MyDrive" / "New-LLM")
    return drive


def failing(error):
    def mount(mountpoint):
        raise error

    return mount


def test_elsewhere_runs_are_beside_the_notebook(monkeypatch, tmp_path, said):
    monkeypatch.delenv("NEWLLM_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert not storage.on_colab()
    assert storage.open_storage() == tmp_path / "runs"
    assert (tmp_path / "runs").is_dir() and [status for status, _ in said] == ["ok"]


def test_the_environment_has_the_last_word(monkeypatch, tmp_path, colab, said):
    monkeypatch.setenv("NEWLLM_RUNS", str(tmp_path / "elsewhere"))
    colab.mount = failing(AssertionError("must not be mounted"))
    assert storage.open_storage() == tmp_path / "elsewhere"


def test_on_colab_runs_are_on_drive(colab, said):
    places = []
    colab.mount = places.append
    assert storage.open_storage() == storage.DRIVE_FOLDER
    assert places == ["/content/drive"] and "Google Drive" in said[-1][1]
    assert list(storage.DRIVE_FOLDER.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("Mountpoint must not already contain files"), "restart the session"),
        (MessageError("Error: credential propagation was unsuccessful"), "tick every box"),
        (ValueError("mount failed: invalid oauth code"), "tick every box"),
        (ValueError("mount failed: timeout during initial read of root folder; for more info: x"), "top folder"),
        (TimeoutError("timed out"), "run this cell again"),
        (ValueError("The domain policy has disabled Drive File Stream: https://x"), "private account"),
        (NotImplementedError("google.colab.drive is unsupported in this environment."), "has none"),
        (ValueError("mount failed"), "could not be mounted (mount failed)"),
        (AssertionError(), "could not be mounted (AssertionError)"),
        (KeyboardInterrupt(), "stopped by hand"),
    ],
    ids=str,
)
def test_a_failed_mount_is_one_sentence_and_a_local_folder(colab, said, tmp_path, error, words):
    colab.mount = failing(error)
    assert storage.open_storage() == tmp_path / "runs"
    (status, sentence), (_, place) = said
    assert status == "note" and words in sentence and "lost when Colab" in sentence
    assert "on this machine" in place


def test_a_drive_that_cannot_be_written_to_is_not_used(colab, said, tmp_path, monkeypatch):
    def full(path, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert storage.open_storage() == tmp_path / "runs"
    assert "No space left" in said[0][1]
