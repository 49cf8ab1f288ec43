"""Copies to Drive in the background: the newest wins, faults are retried, and the training notices nothing."""

import errno
import os
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from run_folders import contents, make_checkpoint, make_run

from newllm_lib.colab.drive import drive_copy, run_copy
from newllm_lib.colab.drive.drive_copy import (
    STAGING,
    DriveCopier,
    callbacks_for,
    problem_of,
    span,
    wait_for_drive,
)
from newllm_lib.colab.drive.run_copy import MANIFEST_FILE, DamagedCopy, bring_back


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def copier(tmp_path, clock):
    (tmp_path / "here").mkdir()
    return DriveCopier(tmp_path / "here", tmp_path / "drive", clock)


@pytest.fixture
def run(copier):
    return make_run(copier.local / "01_pretrain" / "quick-1" / "newllm")


def save(copier, run, step):
    checkpoint = make_checkpoint(run, step, best=step)
    copier.copy_later(run, checkpoint)
    return checkpoint


def checkpoints_on_drive(copier, run):
    return sorted(path.name for path in copier.copy_of(run).glob("checkpoint-*"))


def failing(monkeypatch, error, times=1):
    """Writing to Drive fails so many times."""
    plain, calls = run_copy.copy_checked, []

    def copy_checked(*args, **kwargs):
        calls.append(args)
        if len(calls) <= times:
            raise error
        return plain(*args, **kwargs)

    monkeypatch.setattr(run_copy, "copy_checked", copy_checked)
    return calls


def test_a_checkpoint_goes_to_drive(copier, run, clock):
    assert copier.status(run) == ("not on Drive yet", False)
    checkpoint = save(copier, run, 10)
    assert copier.status(run) == ("not on Drive yet", False)
    copier.work()
    clock.now += 38
    assert copier.status(run) == ("saved to Drive 38 s ago ✓", True)
    on_drive = contents(copier.copy_of(run) / "checkpoint-10")
    assert on_drive.pop(MANIFEST_FILE) and on_drive == contents(checkpoint)
    assert (copier.copy_of(run) / "settings.json").is_file()
    assert list((copier.local / STAGING).iterdir()) == []


def test_of_several_that_wait_the_newest_is_copied(copier, run):
    for step in (10, 20, 30):
        save(copier, run, step)
    other = make_run(copier.local / "01_pretrain" / "quick-1" / "tiny-gpt2")
    save(copier, other, 5)
    assert len(list((copier.local / STAGING).iterdir())) == 2, "those that were replaced take no room"
    copier.work()
    assert checkpoints_on_drive(copier, run) == ["checkpoint-30"]
    assert checkpoints_on_drive(copier, other) == ["checkpoint-5"]


def test_a_checkpoint_that_is_deleted_while_it_waits_is_copied_all_the_same(copier, run):
    checkpoint = save(copier, run, 10)
    before = contents(checkpoint)
    shutil.rmtree(checkpoint)
    copier.work()
    on_drive = contents(copier.copy_of(run) / "checkpoint-10")
    assert {name: on_drive[name] for name in before} == before


def test_the_best_checkpoint_goes_along(copier, run):
    make_checkpoint(run, 10, best=10)
    copier.copy_later(run, make_checkpoint(run, 20, best=10))
    copier.work()
    assert checkpoints_on_drive(copier, run) == ["checkpoint-10", "checkpoint-20"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "Drive is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Drive is full"),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), "Drive does not answer"),
        (PermissionError(errno.EACCES, "Permission denied"), "Drive cannot be written to (Permission denied)"),
        (DamagedCopy("optimizer.pt does not read as it was written"), "Drive did not keep what was written"),
        (ValueError("unforeseen"), "Drive cannot be written to (unforeseen)"),
    ],
    ids=str,
)
def test_a_fault_is_told_and_tried_again(copier, run, clock, monkeypatch, error, words):
    save(copier, run, 10)
    copier.work()
    before = contents(copier.drive)
    save(copier, run, 20)
    with monkeypatch.context() as patch:
        failing(patch, error, times=100)
        copier.work()
    assert copier.status(run)[0].startswith(words)
    assert copier.status(run)[0].endswith("next try in 5 s")
    after = contents(copier.drive)
    assert {name: after.get(name) for name in before} == before, "nothing that was there is lost"
    assert not list(copier.copy_of(run).glob(".*")), "nor does half a copy take room"
    copier.work()
    assert checkpoints_on_drive(copier, run) == ["checkpoint-10", "checkpoint-20"]
    assert copier.status(run)[0] == "saved to Drive 0 s ago ✓"


def test_tries_become_rarer_and_the_newest_checkpoint_is_what_is_tried(copier, run, clock, monkeypatch):
    pauses = []
    with monkeypatch.context() as patch:
        failing(patch, OSError(errno.ENOSPC, "No space left on device"), times=100)
        for step in range(1, 10):
            save(copier, run, step)
            copier.work()
            pauses.append(copier.retry_at - clock())
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    copier.work()
    assert checkpoints_on_drive(copier, run) == ["checkpoint-9"] and copier.problem == ""


def test_a_full_disk_of_this_machine_does_not_end_the_training(copier, run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(drive_copy, "link", lambda *names: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        save(copier, run, 10)
    assert not copier.jobs and not list((copier.local / STAGING).iterdir())
    assert copier.status(run)[0] == "not on Drive yet"
    assert "The disk of this machine is full: the last copy is not" in wait_for_drive(copier, copier.work)
    save(copier, run, 20)
    assert wait_for_drive(copier, copier.work) == " It is on your Drive, too."


def test_without_drive_in_its_place_nothing_is_made_there(copier, run):
    copier.drive = copier.drive / "MyDrive" / "New-LLM"  # its parent is Drive's own folder, which has gone
    save(copier, run, 10)
    copier.work()
    assert copier.status(run)[0] == "Drive does not answer, next try in 5 s"
    assert not copier.drive.parent.exists()
    copier.drive.parent.mkdir(parents=True)
    copier.work()
    assert checkpoints_on_drive(copier, run) == ["checkpoint-10"]


def test_a_run_under_way_is_copied_when_it_saves_and_everything_else_when_it_changes(copier, run):
    (run.parent.parent / "settings-panel.json").write_text("{}")
    (run / "half-written").write_bytes(b"half")
    copier.work()
    assert contents(copier.drive / "01_pretrain").keys() == {"settings-panel.json", MANIFEST_FILE}
    make_run(run, finished=True)
    (run.parent / "comparison.json").write_text("[]")
    copier.work()
    assert (copier.copy_of(run) / "results.json").is_file() and (copier.copy_of(run) / "model.safetensors").is_file()
    assert (copier.copy_of(run.parent) / "comparison.json").read_text() == "[]"
    assert copier.status(run)[1]


def test_what_has_not_changed_is_not_read_again(copier, run, monkeypatch):
    make_run(run, finished=True)
    copier.work()
    monkeypatch.setattr(run_copy, "copy_checked", lambda path, *rest: pytest.fail(f"{path} is read"))
    copier.work()
    assert copier.problem == ""


def test_the_results_come_last(copier, run, monkeypatch):
    make_run(run, finished=True)
    (run / "zzz").write_text("z")
    order, plain = [], os.replace

    def replace(source, target):
        order.append(os.path.basename(target))
        plain(source, target)

    monkeypatch.setattr(run_copy.os, "replace", replace)
    copier.work()
    of_the_run = [name for name in order if name != MANIFEST_FILE]
    assert of_the_run[-1] == "results.json" and len(of_the_run) == 6


def test_waiting_ends_with_everything_on_drive(tmp_path):
    copier = DriveCopier(tmp_path / "here", tmp_path / "drive")
    run = make_run(copier.local / "01_pretrain" / "quick-1" / "newllm")
    copier.start()
    save(copier, run, 10)
    make_run(run, finished=True)
    assert wait_for_drive(copier, lambda: None) == " It is on your Drive, too."
    assert (copier.copy_of(run) / "results.json").is_file()
    threads = [thread for thread in threading.enumerate() if thread.name == "copy-to-drive"]
    assert threads and all(thread.daemon for thread in threads)


def test_waiting_for_a_drive_that_takes_nothing_ends_in_a_sentence(tmp_path, monkeypatch):
    failing(monkeypatch, OSError(errno.ENOSPC, "No space left on device"), times=1000)
    copier = DriveCopier(tmp_path / "here", tmp_path / "drive")
    run = make_run(copier.local / "01_pretrain" / "quick-1" / "newllm")
    copier.start()
    save(copier, run, 10)
    said = wait_for_drive(copier, lambda: None)
    assert said.startswith(" Drive is full: the last copy is not on Drive yet")


def test_waiting_may_be_stopped(copier, run):
    def stop():
        raise KeyboardInterrupt

    save(copier, run, 10)
    assert "was not waited for" in wait_for_drive(copier, stop)
    assert wait_for_drive(None, stop) == ""


def test_the_callback_hands_over_what_is_saved(copier, run):
    (callback,) = callbacks_for(copier)
    args, state = SimpleNamespace(output_dir=str(run)), SimpleNamespace(global_step=10, is_world_process_zero=True)
    make_checkpoint(run, 10, best=10)
    callback.on_save(args, state, None)
    assert copier.jobs[run].name == "checkpoint-10"
    state.global_step = 20  # which the disk has not taken
    callback.on_save(args, state, None)
    assert copier.jobs[run].name == "checkpoint-10" and copier.status(run) == ("not on Drive yet", False)
    copier.work()
    assert copier.status(run) == ("not on Drive yet", False) and checkpoints_on_drive(copier, run) == ["checkpoint-10"]
    state.is_world_process_zero = False
    callback.on_save(args, state, None)
    assert not copier.jobs


def test_a_share_of_a_copy_is_told(copier, run, monkeypatch):
    monkeypatch.setattr(run_copy, "CHUNK_BYTES", 1000)
    save(copier, run, 10)
    shares, plain = [], copier._count

    def count(size):
        plain(size)
        shares.append(copier.status(run)[0])

    monkeypatch.setattr(copier, "_count", count)
    copier.work()
    assert shares[0].startswith("copying to Drive, ") and shares == sorted(shares, key=lambda s: int(s[18:-1]))
    assert shares[-1] == "copying to Drive, 100%"


def test_a_session_killed_while_copying_goes_on_from_the_last_whole_copy(copier, run, tmp_path, monkeypatch):
    monkeypatch.setattr(run_copy, "CHUNK_BYTES", 20_000)
    save(copier, run, 10)
    copier.work()
    before = contents(copier.drive)
    make_checkpoint(run, 20, best=20, size=200_000)
    if (child := os.fork()) == 0:
        monkeypatch.setattr(copier, "_count", lambda size: time.sleep(0.05))
        copier.copy_later(run, run / "checkpoint-20")
        copier.work()
        os._exit(0)
    weights = copier.copy_of(run) / ".checkpoint-20.partial" / "model.safetensors"
    while not weights.exists() or weights.stat().st_size < 40_000:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it is at work"
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert weights.stat().st_size < 200_000, "it was killed in the middle"
    after = contents(copier.drive)
    assert {name: after.get(name) for name in before} == before
    brought = bring_back(copier.copy_of(run), tmp_path / "next machine" / "newllm")
    assert brought.progress == 10 and brought.damaged == []

    again = DriveCopier(copier.local, copier.drive)
    assert not (again.local / STAGING).exists(), "what waited in the session that was killed takes no room"
    again.copy_later(run, run / "checkpoint-20")
    again.work()
    assert checkpoints_on_drive(again, run) == ["checkpoint-10", "checkpoint-20"]
    assert not list(again.copy_of(run).glob(".*"))


def test_handing_over_takes_no_time(copier, run):
    """Links, not copies: the training goes on at once, however large a checkpoint is."""
    checkpoint = make_checkpoint(run, 10, best=10, size=2**24)
    started = time.perf_counter()
    copier.copy_later(run, checkpoint)
    assert time.perf_counter() - started < 0.1
    assert (copier.jobs[run] / "optimizer.pt").samefile(checkpoint / "optimizer.pt")


def test_times_are_told_in_the_unit_that_suits_them():
    assert [span(seconds) for seconds in (0.4, 38, 119, 120, 600)] == ["0 s", "38 s", "119 s", "2 min", "10 min"]
    assert problem_of(OSError()) == "Drive cannot be written to (OSError)"


def test_a_run_of_adapters_brings_its_reference_along(copier, tmp_path):
    run = make_run(copier.local / "06_dpo" / "quick-1" / "tuned")
    make_run(run / "reference", finished=True)
    save(copier, run, 40)
    copier.work()
    elsewhere = DriveCopier(tmp_path / "new machine", copier.drive)
    there = elsewhere.local / run.relative_to(copier.local)
    assert elsewhere.fetch(there).progress == 40
    assert contents(there / "reference").keys() >= {"model.safetensors", "results.json", "settings.json"}
    assert contents(there / "reference")["model.safetensors"] == contents(run / "reference")["model.safetensors"]


def test_of_a_finished_run_drive_keeps_neither_checkpoints_nor_what_can_be_made_anew(copier, run, monkeypatch):
    reference = make_run(run / "reference")
    for folder in (reference, run):
        save(copier, folder, 40)
        copier.work()
        assert checkpoints_on_drive(copier, folder) == ["checkpoint-40"], "needed to go on"
        (folder / "checkpoint-40" / "mine.txt").write_text("stays here")
        make_run(folder, finished=True)
        if folder == run:
            make_run(run / "merged", finished=True)
            (run / "adapter_config.json").write_text("{}")
        plain = failing(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
        copier.work()
        assert plain and checkpoints_on_drive(copier, folder) == ["checkpoint-40"], "the results are not there yet"
        (folder / "results.json").write_text("damaged")
        copier.work()
        assert checkpoints_on_drive(copier, folder) == ["checkpoint-40"], "they cannot be read: it may go on"
        make_run(folder, finished=True)
        copier.work()
        assert checkpoints_on_drive(copier, folder) == [] and (folder / "checkpoint-40" / "mine.txt").exists()
    assert contents(copier.copy_of(run)).keys() >= {"results.json", "reference/model.safetensors"}
    assert (run / "merged").exists() and not (copier.copy_of(run) / "merged").exists()
    (run / "adapter_config.json").unlink()  # a folder of that name in another run is the user's
    copier.work()
    assert (copier.copy_of(run) / "merged" / "model.safetensors").exists()


def test_a_folder_that_cannot_be_copied_keeps_no_other_from_it(copier, run, monkeypatch):
    plain = run_copy.copy_checked

    def copy_checked(source, *args, **kwargs):
        if source.name == "bad":
            raise PermissionError(errno.EACCES, "Permission denied")
        return plain(source, *args, **kwargs)

    monkeypatch.setattr(run_copy, "copy_checked", copy_checked)
    (run.parent.parent / "bad").write_text("mine alone")
    os.symlink(run / "nothing", run.parent / "dangling")
    make_run(run, finished=True)
    copier.work()
    assert "Permission denied" in copier.problem and (copier.copy_of(run) / "results.json").is_file()
    (run.parent.parent / "bad").unlink()
    copier.work()
    assert copier.problem == ""
