"""The copy of a run: what is kept of it, and what is brought back."""

import errno
import os
import shutil

import pytest
from run_folders import contents, make_checkpoint, make_run

from newllm_lib.colab.drive import run_copy
from newllm_lib.colab.drive.run_copy import (
    FINISHED,
    MANIFEST_FILE,
    NOTHING,
    bring_back,
    bring_missing_files,
    copy_checkpoint,
    progress_here,
    progress_of_copy,
    update_files,
)
from newllm_lib.training.checkpoint import newest_checkpoint


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "here" / "newllm")


@pytest.fixture
def copy(tmp_path):
    return tmp_path / "drive" / "newllm"


def save(run, copy, step, best):
    """Train up to `step`, and copy what was saved there."""
    make_checkpoint(run, step, best=best)
    copy_checkpoint(run, copy, run / f"checkpoint-{step}")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def damage(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_the_best_and_the_last_two_checkpoints_are_kept(run, copy):
    for step, best in ((10, 10), (20, 20), (30, 20), (40, 20), (50, 20)):
        save(run, copy, step, best)
    assert names(copy) == sorted(
        ["checkpoint-20", "checkpoint-40", "checkpoint-50", MANIFEST_FILE, "metrics.jsonl", "settings.json"]
    )
    assert progress_of_copy(copy) == progress_here(run) == 50


def test_a_run_comes_back_with_its_best_checkpoint(run, copy, tmp_path):
    for step, best in ((10, 10), (20, 10), (30, 10)):
        save(run, copy, step, best)
    back = tmp_path / "machine" / "newllm"
    brought = bring_back(copy, back)
    assert brought.progress == 30 and brought.damaged == []
    assert newest_checkpoint(back).name == "checkpoint-30"
    assert names(back) == ["checkpoint-10", "checkpoint-30", "settings.json"]
    for name in ("checkpoint-10", "checkpoint-30"):
        assert contents(back / name) == contents(run / name), "without the manifest, which would break the seal"
    # transformers takes the checkpoint that was changed last for the newest.
    assert (back / "checkpoint-30").stat().st_mtime_ns > (back / "checkpoint-10").stat().st_mtime_ns


def test_a_copy_that_was_cut_off_is_not_continued_from(run, copy, tmp_path):
    save(run, copy, 10, 10)
    save(run, copy, 20, 20)
    (copy / "checkpoint-20" / MANIFEST_FILE).unlink()
    assert progress_of_copy(copy) == 10
    assert bring_back(copy, tmp_path / "back").progress == 10


@pytest.mark.parametrize("file", ["optimizer.pt", "model.safetensors", "trainer_state.json", "complete.json"])
def test_the_newest_that_verifies_is_taken(run, copy, tmp_path, file):
    for step in (10, 20, 30):
        save(run, copy, step, step)
    damage(copy / "checkpoint-30" / file)
    brought = bring_back(copy, tmp_path / "back")
    assert brought.progress == 20 and brought.damaged == [f"checkpoint-30: {file} is not what was saved"]
    assert names(tmp_path / "back") == ["checkpoint-20", "settings.json"]


def test_a_checkpoint_without_its_best_one_is_the_second_choice(run, copy, tmp_path):
    for step, best in ((10, 10), (20, 20), (30, 20)):
        save(run, copy, step, best)
    damage(copy / "checkpoint-20" / "model.safetensors")
    brought = bring_back(copy, tmp_path / "back")
    assert brought.progress == 30, "20 is damaged itself, and 10 has gone"
    assert names(tmp_path / "back") == ["checkpoint-30", "settings.json"]


def test_nothing_that_verifies_brings_nothing_and_changes_nothing(run, copy, tmp_path):
    save(run, copy, 10, 10)
    damage(copy / "checkpoint-10" / "optimizer.pt")
    here = make_run(tmp_path / "back", (5,))
    before, on_drive = contents(here), contents(copy)
    assert bring_back(copy, here, beyond=5).progress == NOTHING
    assert contents(here) == before and contents(copy) == on_drive


def test_a_run_without_its_settings_is_none(run, copy, tmp_path):
    save(run, copy, 10, 10)
    damage(copy / "settings.json")
    brought = bring_back(copy, tmp_path / "back")
    assert brought.progress == NOTHING and brought.damaged == ["settings.json is not what was saved"]
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("files_read", range(5))  # the settings, and four of the checkpoint
def test_a_drive_that_goes_while_it_is_read_leaves_what_is_here(run, copy, tmp_path, monkeypatch, files_read):
    save(run, copy, 10, 10)
    save(run, copy, 20, 20)
    here = make_run(tmp_path / "back", (5,))
    before, calls, plain = contents(here), [], run_copy.copy_checked

    def copy_checked(*args):
        calls.append(args)
        if len(calls) > files_read:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return plain(*args)

    monkeypatch.setattr(run_copy, "copy_checked", copy_checked)
    with pytest.raises(OSError, match="Transport endpoint"):
        bring_back(copy, here, beyond=5)
    assert contents(here) == before
    assert names(here.parent) == ["back", "drive", "here"]


def test_a_finished_run_comes_back_without_checkpoints(run, copy, tmp_path):
    save(run, copy, 10, 10)
    make_run(run, finished=True)
    update_files(run, copy, [name for name in names(run) if (run / name).is_file()])
    assert progress_of_copy(copy) == FINISHED > progress_here(tmp_path / "back")
    assert bring_back(copy, tmp_path / "back").progress == FINISHED
    assert contents(tmp_path / "back") == {
        name: content for name, content in contents(run).items() if not name.startswith("checkpoint")
    }


def test_a_finished_run_that_is_damaged_goes_on_from_its_last_checkpoint(run, copy, tmp_path):
    save(run, copy, 10, 10)
    make_run(run, finished=True)
    update_files(run, copy, [name for name in names(run) if (run / name).is_file()])
    damage(copy / "model.safetensors")
    brought = bring_back(copy, tmp_path / "back")
    assert brought.progress == 10 and brought.damaged == ["model.safetensors is not what was saved"]
    assert not (tmp_path / "back" / "results.json").exists()


def test_a_damaged_checkpoint_is_copied_again_when_it_is_passed(run, copy):
    """A session that had to go back leaves the damaged one where it is, and mends it as soon as it has it anew."""
    for step in (10, 20, 30):
        save(run, copy, step, step)
    damage(copy / "checkpoint-30" / "optimizer.pt")
    shutil.rmtree(run / "checkpoint-30")
    save(run, copy, 25, 25)
    assert (copy / "checkpoint-30").is_dir() and (copy / "checkpoint-20").is_dir()
    save(run, copy, 30, 30)
    assert names(copy)[:2] == ["checkpoint-25", "checkpoint-30"]
    assert bring_back(copy, run.parent / "back").progress == 30


def test_a_damaged_checkpoint_is_mended_by_the_same_one_learned_again(run, copy):
    """On a CPU what is learned again is the same to the bit: its time tells that it has yet to be copied."""
    save(run, copy, 10, 10)
    damage(copy / "checkpoint-10" / "optimizer.pt")
    (run / "checkpoint-10" / "optimizer.pt").touch()
    copy_checkpoint(run, copy, run / "checkpoint-10")
    assert bring_back(copy, run.parent / "back").progress == 10


def test_leftovers_of_a_killed_session_are_removed(run, copy):
    save(run, copy, 10, 10)
    left = copy / ".checkpoint-15.partial"
    left.mkdir()
    (left / "optimizer.pt").write_bytes(b"half")
    save(run, copy, 20, 20)
    assert not left.exists() and names(copy)[:2] == ["checkpoint-10", "checkpoint-20"]


def test_single_files_come_back_where_they_are_missing(tmp_path):
    here, copy = tmp_path / "here", tmp_path / "copy"
    for folder in (here, copy):
        folder.mkdir()
    for name in ("kept", "missing", "damaged"):
        (here / name).write_text(name)
    update_files(here, copy, ["kept", "missing", "damaged"])
    (here / "kept").write_text("newer")
    os.remove(here / "missing")
    os.remove(here / "damaged")
    damage(copy / "damaged")
    assert bring_missing_files(copy, here) == ["damaged"]
    assert contents(here) == {"kept": b"newer", "missing": b"missing"}
