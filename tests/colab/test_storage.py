"""Storage: runs on the machine's disk and on Drive; every way in which Drive can fail ends in one sentence, and earlier
runs are found."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from google_colab import MessageError
from run_folders import contents, make_checkpoint, make_run

from newllm_lib.colab import storage
from newllm_lib.colab.drive.drive_copy import DriveCopier


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    """Copies are made when a test asks for them, not by a thread."""
    monkeypatch.setattr(DriveCopier, "_run", lambda self: None)


@pytest.fixture
def said(monkeypatch):
    sentences = []
    monkeypatch.setattr(storage, "display", lambda *args, **kwargs: SimpleNamespace(update=lambda content: None))
    monkeypatch.setattr(storage, "say", lambda sentence, status="ok", code="": sentences.append((status, sentence)))
    return sentences


def next_session(runs):
    """The machine is taken back, and another one begins with an empty disk."""
    storage._copiers.clear()
    os.unlink(storage.MOUNT_POINT / "MyDrive")
    shutil.rmtree(runs)


def test_elsewhere_runs_are_beside_the_notebook(monkeypatch, tmp_path, said):
    monkeypatch.delenv("NEWLLM_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert not storage.on_colab()
    assert storage.open_storage() == tmp_path / "runs"
    assert (tmp_path / "runs").is_dir() and [status for status, _ in said] == ["ok"]
    assert storage.drive_copier(tmp_path / "runs") is None


def test_the_environment_has_the_last_word(monkeypatch, tmp_path, colab, said):
    monkeypatch.setenv("NEWLLM_RUNS", str(tmp_path / "elsewhere"))
    assert storage.open_storage() == tmp_path / "elsewhere"
    assert colab.mounts == [] and storage.drive_copier(tmp_path / "elsewhere") is None


def test_on_colab_runs_are_here_and_on_drive(colab, said, tmp_path):
    runs = storage.open_storage()
    assert runs == tmp_path / "content" / "runs"
    assert colab.mounts == [(str(storage.MOUNT_POINT), False)]
    assert [status for status, _ in said] == ["ok"] and "copied to your Drive, folder New-LLM" in said[0][1]
    assert list((tmp_path / "my-drive" / "New-LLM").iterdir()) == []
    copier = storage.drive_copier(runs / "01_pretrain" / "run" / "newllm")
    assert copier.copy_of(runs / "x") == storage.DRIVE_FOLDER / "x"
    assert storage.drive_copier(tmp_path) is None


def test_the_cell_may_be_run_again(colab, said):
    copier = storage.drive_copier(storage.open_storage())
    assert storage.drive_copier(storage.open_storage()) is copier
    assert copier.asked == 1, "what failed is tried again at once"


def test_a_bad_copy_costs_a_sentence_and_no_other_run(colab, said, tmp_path):
    runs = storage.open_storage()
    for name in ("a", "b", "c"):
        run = make_run(runs / "01_pretrain" / name / "newllm", (10,))
        storage.drive_copier(runs).copy_later(run, run / "checkpoint-10")
        storage.drive_copier(runs).work()
    next_session(runs)
    on_drive = tmp_path / "my-drive" / "New-LLM" / "01_pretrain"
    (on_drive / "c" / "newllm" / "checkpoint-10" / "complete.json").write_text("")
    (on_drive / "b" / "newllm" / "manifest.json").unlink()
    (on_drive / "b" / "newllm" / "manifest.json").mkdir()
    said.clear()
    assert storage.open_storage() == runs and (runs / "01_pretrain" / "a" / "newllm" / "checkpoint-10").is_dir()
    notes = [sentence for status, sentence in said if status == "note"]
    assert (
        len(notes) == 2 and "01_pretrain/b/newllm (Is a directory)" in notes[0] and "What is on Drive stays" in notes[0]
    )
    assert "01_pretrain/c/newllm/checkpoint-10: complete.json is not what was saved" in notes[1]
    assert "The newest run is 01_pretrain/a: newllm is at update 10 of 300" in said[-1][1]


def test_a_drive_that_was_lost_is_mounted_anew(colab, said, tmp_path):
    storage.open_storage()
    (tmp_path / "my-drive").rename(tmp_path / "gone")
    colab.mounts.clear()
    storage.MOUNT_POINT.joinpath("MyDrive").unlink()
    storage.MOUNT_POINT.joinpath("MyDrive").symlink_to(tmp_path / "nowhere")
    plain = colab.mount

    def mount(mountpoint, force_remount=False):  # Colab goes by its own record, and thinks it is there
        colab.mounts.append((mountpoint, force_remount))
        if force_remount:
            plain(mountpoint, force_remount)

    storage.sys.modules["google.colab.drive"].mount = mount
    storage.open_storage()
    assert (str(storage.MOUNT_POINT), True) in colab.mounts and storage.DRIVE_FOLDER.is_dir()


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
    colab.mount_error = error
    assert storage.open_storage() == tmp_path / "content" / "runs"
    (status, sentence), (_, place) = said
    assert status == "note" and words in sentence and "lost when Colab" in sentence
    assert "on this machine" in place and "Drive" not in place
    assert storage.drive_copier(tmp_path / "content" / "runs") is None


def test_a_mount_point_with_files_in_it_is_said_to_be_one(colab, said):
    storage.MOUNT_POINT.mkdir()
    (storage.MOUNT_POINT / "written too early").touch()
    storage.open_storage()
    assert "restart the session" in said[0][1]


def test_a_full_drive_is_told_and_tried_again(colab, said, tmp_path, monkeypatch):
    def full(path, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    runs = storage.open_storage()
    (status, sentence), *_ = said
    assert status == "note" and sentence.startswith("Drive is full: it is tried again")
    assert runs == tmp_path / "content" / "runs" and storage.drive_copier(runs) is not None


def test_an_unfinished_run_is_brought_back_and_named(colab, said):
    runs = storage.open_storage()
    run = make_run(runs / "01_pretrain" / "quick-1" / "newllm", (10, 20))
    (runs / "01_pretrain" / "settings-panel.json").write_text("{}")
    copier = storage.drive_copier(runs)
    copier.copy_later(run, run / "checkpoint-20")
    copier.work()
    before = contents(run / "checkpoint-20")
    next_session(runs)
    said.clear()
    assert storage.open_storage() == runs
    assert contents(run / "checkpoint-20") == before
    assert (runs / "01_pretrain" / "settings-panel.json").read_text() == "{}", "the panel comes up as it was"
    assert [status for status, _ in said] == ["ok", "ok"]
    assert said[-1][1] == (
        "The newest run is 01_pretrain/quick-1: newllm is at update 20 of 300; brought back from your Drive and "
        "verified; with the same settings the training goes on."
    )


def test_the_newest_run_that_verifies_is_named(colab, said):
    runs = storage.open_storage()
    copier = storage.drive_copier(runs)
    for number, name in enumerate(("old", "new")):
        run = make_run(runs / "01_pretrain" / name / "newllm", (10,))
        for path in (run / "settings.json", run / "checkpoint-10" / "complete.json"):
            os.utime(path, (10**9 + number, 10**9 + number))
        copier.copy_later(run, run / "checkpoint-10")
        copier.work()
    damaged = copier.copy_of(run) / "checkpoint-10" / "optimizer.pt"
    damaged.write_bytes(b"cut off")
    next_session(runs)
    said.clear()
    storage.open_storage()
    assert "01_pretrain/old: newllm is at update 10" in said[-1][1]
    (note,) = [sentence for status, sentence in said if status == "note"]
    assert note.startswith("Damaged on Drive, and left out: 01_pretrain/new/newllm/checkpoint-10: optimizer.pt")
    assert not run.exists() and damaged.read_bytes() == b"cut off"


def test_what_is_further_here_is_kept(colab, said):
    runs = storage.open_storage()
    run = make_run(runs / "01_pretrain" / "quick-1" / "newllm", (10,))
    copier = storage.drive_copier(runs)
    copier.copy_later(run, run / "checkpoint-10")
    copier.work()
    make_checkpoint(run, 30, best=30)
    before = contents(run)
    storage.open_storage()
    assert contents(run) == before and "brought back" not in said[-1][1]


def test_a_run_on_this_machine_is_named_too(monkeypatch, tmp_path, said):
    monkeypatch.setenv("NEWLLM_RUNS", str(tmp_path))
    run = tmp_path / "02_dailydialog" / "demo-2"
    make_run(run / "newllm", finished=True)
    make_run(run / "tiny-gpt2")
    storage.open_storage()
    assert "02_dailydialog/demo-2: newllm is finished, tiny-gpt2 has no checkpoint yet" in said[-1][1]
    shutil.rmtree(run / "tiny-gpt2")
    storage.open_storage()
    assert said[-1][1].endswith("newllm is finished; nothing is left to train.")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), "Drive does not answer"),
        (OSError(errno.ENOSPC, "No space left on device"), "Drive is full"),
        (KeyboardInterrupt(), "stopped by hand"),
    ],
)
def test_a_drive_that_fails_while_runs_come_back_costs_a_sentence(colab, said, monkeypatch, error, words):
    def bring_back_runs(*args):
        raise error

    monkeypatch.setattr(storage, "bring_back_runs", bring_back_runs)
    storage.open_storage()
    assert said[0][0] == "note" and words in said[0][1]
