"""Runs of earlier sessions: which come back at once, which wait on Drive, and what is said of them."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from run_folders import contents, make_earlier_model, make_run

from newllm_lib.colab.drive import run_copy
from newllm_lib.colab.drive.drive_copy import DriveCopier
from newllm_lib.colab.drive.run_copy import MANIFEST_FILE
from newllm_lib.colab.panel.lookups import finished_runs
from newllm_lib.colab.storage import bring_back_runs, fetch_sentences, is_finished, newest_run, run_sentence


@pytest.fixture
def copier(tmp_path):
    """Two finished models and an unfinished one, each saved after the one before, on Drive alone."""
    copier = DriveCopier(tmp_path / "here", tmp_path / "drive")
    for run, steps in (("01_pretrain/a/newllm", ()), ("01_pretrain/b/newllm", ()), ("02_dailydialog/c/newllm", (10,))):
        folder = make_run(copier.local / run, steps, finished=not steps)
        if steps:
            copier.copy_later(folder, folder / f"checkpoint-{steps[-1]}")
        (folder.parent / "comparison.json").write_text(run)
        copier.work()
    shutil.rmtree(copier.local)
    return DriveCopier(tmp_path / "here", tmp_path / "drive")


def names(copier):
    return sorted("/".join(path.parts[-3:]) for path in copier.local.glob("*/*/*") if path.is_dir())


def test_everything_comes_back_the_newest_first(copier):
    told = []
    models, damaged, failed = bring_back_runs(copier, told.append)
    assert told == ["02_dailydialog/c/newllm", "01_pretrain/b/newllm", "01_pretrain/a/newllm"]
    assert names(copier) == sorted(told) and len(models) == 3 and not damaged + failed and not copier.left
    assert (copier.local / "01_pretrain" / "a" / "comparison.json").read_text() == "01_pretrain/a/newllm"
    assert newest_run(copier.local) == copier.local / "02_dailydialog" / "c"
    assert run_sentence(newest_run(copier.local)) == "02_dailydialog/c: newllm is at update 10 of 300"


def test_it_is_brought_back_once(copier):
    bring_back_runs(copier, lambda name: None)
    before = contents(copier.local)
    assert bring_back_runs(copier, lambda name: pytest.fail(name)) == ([], [], [])
    assert contents(copier.local) == before


def test_what_would_take_long_waits_until_it_is_trained_on(copier):
    bring_back_runs(copier, lambda name: None, budget_bytes=1)
    assert names(copier) == ["02_dailydialog/c/newllm"], "the newest always comes"
    a = copier.local / "01_pretrain" / "a" / "newllm"
    assert a in copier.left and len(copier.left) == 2
    assert list(fetch_sentences(copier, [a])) == [
        ("01_pretrain/a/newllm is finished: brought back from your Drive and verified.", "ok")
    ]
    assert a.is_dir() and a not in copier.left
    assert list(fetch_sentences(copier, [a, copier.local / "01_pretrain" / "new" / "newllm"])) == []
    assert list(fetch_sentences(None, [a])) == []


def test_a_drive_that_fails_then_is_said_to(copier, monkeypatch):
    def copy_checked(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(run_copy, "copy_checked", copy_checked)
    ((sentence, status),) = fetch_sentences(copier, [copier.local / "01_pretrain" / "a" / "newllm"])
    assert status == "note" and "could not be brought back from Drive: Drive does not answer" in sentence


def test_a_damaged_run_is_named(copier):
    model = copier.local / "02_dailydialog" / "c" / "newllm"
    (copier.copy_of(model) / "checkpoint-10" / "optimizer.pt").unlink()
    ((sentence, status),) = fetch_sentences(copier, [model])
    assert status == "note" and "c/newllm/checkpoint-10: optimizer.pt is missing" in sentence
    assert not model.exists()


def spoil_settings(model):
    (model / "settings.json").unlink()
    (model / "settings.json").mkdir()


def spoil_place(model):
    """A file where the folder of the run would be."""
    here = Path(str(model).replace("/drive/", "/here/")).parent
    here.parent.mkdir(parents=True, exist_ok=True)
    here.write_text("in the way")


SPOILED = {
    "an empty seal": lambda model: (model / "checkpoint-10" / "complete.json").write_text(""),
    "an empty state": lambda model: (model / "checkpoint-10" / "trainer_state.json").write_text(""),
    "an empty manifest": lambda model: (model / "checkpoint-10" / MANIFEST_FILE).write_text(""),
    "a folder for a manifest": lambda model: (model / MANIFEST_FILE).unlink() or (model / MANIFEST_FILE).mkdir(),
    "a folder for a file": spoil_settings,
    "a link that goes round": lambda model: shutil.rmtree(model) or os.symlink(model, model),
    "a link to all of Drive": lambda model: shutil.rmtree(model) or os.symlink(model.parents[2], model),
    "a file in the way": spoil_place,
    "a checkpoint that is a file": lambda model: (model / "checkpoint-30").write_text(""),
    "a number too long": lambda model: (model / f"checkpoint-{'9' * 240}").mkdir(),
}


@pytest.mark.parametrize("how", SPOILED)
def test_each_copy_comes_back_on_its_own(copier, how):
    model = copier.drive / "02_dailydialog" / "c" / "newllm"  # the newest, which is brought back first
    SPOILED[how](model)
    models, _, _ = bring_back_runs(copier, lambda name: None)
    assert {"/".join(path.parts[-3:]) for path in models} >= {"01_pretrain/a/newllm", "01_pretrain/b/newllm"}
    assert (copier.local / "01_pretrain" / "a" / "newllm" / "results.json").is_file()
    assert not list(copier.local.rglob("*.partial"))
    if newest := newest_run(copier.local):
        assert run_sentence(newest)


def test_what_is_here_may_be_damaged_too(copier):
    for number, content in enumerate(("", "[]", "{", '{"max_steps": "x", "best_model_checkpoint": 3}')):
        run = make_run(copier.local / "03_dolly" / str(number) / "newllm", (10,))
        for name in ("complete.json", "trainer_state.json", "config.json"):
            (run / "checkpoint-10" / name).write_text(content)
            (run / name).write_text(content)
        (run / "results.json").write_text(content)
        (run.parent / "trials.jsonl").write_text(content)
        assert run_sentence(run.parent) and is_finished(run.parent) in (True, False)
    assert len(bring_back_runs(copier, lambda name: None)[0]) == 3
    assert newest_run(copier.local) is not None


def test_leftovers_of_killed_sessions_are_removed_but_not_those_of_one_at_work(copier):
    drive = copier.drive / "01_pretrain" / "a"
    old = [drive / "newllm" / ".checkpoint-3.partial", drive / ".comparison.json.partial"]
    new = drive / "newllm" / ".checkpoint-4.partial"
    for path in (*old, new):
        path.write_text("half")
    for path in old:
        os.utime(path, (1, 1))
    here = copier.local / "01_pretrain" / "a" / ".newllm.partial"
    here.mkdir(parents=True)
    (here / "weights").write_text("half")
    bring_back_runs(copier, lambda name: None)
    assert [path.exists() for path in (*old, new, here)] == [False, False, True, False]


def test_there_may_be_none(tmp_path):
    copier = DriveCopier(tmp_path / "here", tmp_path / "drive")
    assert bring_back_runs(copier, lambda name: None) == ([], [], []) and newest_run(tmp_path / "here") is None


def test_a_model_of_an_earlier_version_is_of_no_use(tmp_path):
    run = make_earlier_model(tmp_path / "01_pretrain" / "a" / "newllm").parent
    make_run(run / "tiny-gpt2", finished=True)
    assert finished_runs(tmp_path, ["01_pretrain"], ["newllm"]) == []
    assert finished_runs(tmp_path, ["01_pretrain"], ["tiny-gpt2"]) == [run]
    assert "newllm was trained by an earlier version" in run_sentence(run) and is_finished(run)
