"""Copies that somebody else has written, or of which a disk has lost half: nothing that they say reaches anything but
the partial folder that a run is brought back into."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from run_folders import contents, make_checkpoint, make_run

from newllm_lib.colab.drive.run_copy import (
    FINISHED,
    MANIFEST_FILE,
    NOTHING,
    DamagedCopy,
    bring_back,
    bring_folder,
    bring_missing_files,
    copy_checked,
    copy_checkpoint,
    discard,
    planned_updates,
    progress_here,
    progress_of_copy,
    read_manifest,
    replace_folder,
    tidy,
    update_files,
    write_manifest,
)
from newllm_lib.training.checkpoint import best_beside

DEEP = "[" * 100_000
# What a name in a file may be, and none of which is the name of a checkpoint.
NAMES = [
    "x/..",
    "..",
    ".",
    "",
    "/",
    "../newllm",
    "checkpoint-10/..",
    "checkpoint-10/../../..",
    "..\\..",
    "C:\\",
    "newllm",
]
NAMES += ["checkpoint-", "checkpoint--1", "checkpoint-10 ", "checkpoint-10\n", "\0", "x" * 5000, "~", "settings.json"]
NOT_JSON = ["", " ", "null", "[]", "{}", "3", '"x"', "{", '{"files": ', "\x00", DEEP, "NaN", "1" * 5000, "\udcff"]


@pytest.fixture
def here(tmp_path):
    """A folder of runs with a sibling of the one that is brought back, and files beside it."""
    for name in ("newllm", "tiny-gpt2"):
        make_run(tmp_path / "here" / name, (5,))
    (tmp_path / "here" / "notes.txt").write_text("mine")
    (tmp_path / "outside.txt").write_text("mine, too")
    return tmp_path / "here" / "newllm"


@pytest.fixture
def copy(tmp_path):
    """Checkpoints 10 and 20 of a run, on Drive; 20 is the one to attack."""
    run = make_run(tmp_path / "elsewhere" / "newllm")
    copy = tmp_path / "drive" / "newllm"
    for step in (10, 20):
        make_checkpoint(run, step, best=step)
        copy_checkpoint(run, copy, run / f"checkpoint-{step}")
    return copy


def fingerprint(path: Path) -> dict:
    content = path.read_bytes()
    state = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {**state, "modified": path.stat().st_mtime_ns}


def rewrite(folder: Path, name: str, content: str) -> None:
    """Another content of a file, which the manifest and the seal of its folder know of: nothing but sense is amiss."""
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    if name != "complete.json" and (folder / "complete.json").exists():
        seal = json.loads((folder / "complete.json").read_text())
        seal["files"][name] = {key: fingerprint(folder / name)[key] for key in ("bytes", "sha256")}
        rewrite(folder, "complete.json", json.dumps(seal))
    files = read_manifest(folder)
    write_manifest(folder, {**files, name: [fingerprint(folder / name)]})


def all_but(folder: Path, run: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if not name.startswith(f"here/{run.name}/")}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_removes_nothing(here, copy, tmp_path, name):
    state = {"global_step": 20, "max_steps": 300, "best_model_checkpoint": name}
    rewrite(copy / "checkpoint-20", "trainer_state.json", json.dumps(state))
    before = all_but(tmp_path, here)
    brought = bring_back(copy, here, beyond=5)
    assert brought.progress == 10
    assert brought.damaged == ["checkpoint-20: trainer_state.json names no checkpoint as the best"]
    assert all_but(tmp_path, here) == before and progress_here(here) == 10
    assert sorted(path.name for path in here.parent.iterdir()) == ["newllm", "notes.txt", "tiny-gpt2"]


@pytest.mark.parametrize("content", [*NOT_JSON, '{"best_model_checkpoint": {}}', '{"max_steps": []}'])
@pytest.mark.parametrize("file", ["trainer_state.json", "complete.json"])
def test_a_file_of_no_sense_costs_its_checkpoint_alone(here, copy, tmp_path, file, content):
    rewrite(copy / "checkpoint-20", file, content)
    before = all_but(tmp_path, here)
    brought = bring_back(copy, here, beyond=5)
    assert brought.progress == 10 and len(brought.damaged) == 1 and "checkpoint-20: " in brought.damaged[0]
    assert all_but(tmp_path, here) == before


def stated(**changes) -> list[dict]:
    return [{"bytes": 4, "sha256": hashlib.sha256(b"evil").hexdigest(), "modified": 1} | changes]


MANIFESTS = [
    *NOT_JSON,
    *(json.dumps({"files": files}) for files in ([], {"a": 3}, {"a": [3]}, {"a": [{}]}, 5, "x")),
    *(json.dumps({"files": {"settings.json": [{**stated()[0], key: value}]}})
      for key in ("bytes", "modified") for value in ("x", None, 1e999, 10**400, [], "9" * 5000)),
]  # fmt: skip


@pytest.mark.parametrize("content", MANIFESTS)
def test_a_manifest_of_no_sense_brings_nothing(here, copy, content):
    (copy / MANIFEST_FILE).write_bytes(content.encode(errors="surrogateescape"))
    before = contents(here.parent)
    assert read_manifest(copy) == {} or progress_of_copy(copy) == 20
    assert bring_back(copy, here, beyond=5).progress == NOTHING and bring_missing_files(copy, here) == []
    assert contents(here.parent) == before


ESCAPES = ["../evil", "/evil/evil", "a/../../evil", "./evil", "a//evil", "a/", "..", "", "a\\..\\..\\evil", "x\0y"]


@pytest.mark.parametrize("name", [*ESCAPES, "y" * 300, "z/" * 200 + "evil"])
def test_a_manifest_states_files_of_its_own_folder_alone(tmp_path, name):
    copy, target = tmp_path / "drive" / "a" / "b", tmp_path / "here" / "a" / "b"
    (copy / "a").mkdir(parents=True)
    target.mkdir(parents=True)
    for place in (copy.parent, copy.parent.parent, copy, copy / "a"):
        (place / "evil").write_bytes(b"evil")
    write_manifest(copy, {name: stated()})
    before = contents(tmp_path)
    assert bring_missing_files(copy, target) == []
    with pytest.raises(DamagedCopy):
        bring_folder(copy, tmp_path / "here" / "back")
    assert contents(tmp_path) == before


def test_links_are_not_followed_out_of_a_copy(here, copy, tmp_path):
    secret = tmp_path / "outside.txt"
    checkpoint = copy / "checkpoint-20"
    for name in ("optimizer.pt", "model.safetensors"):
        files = read_manifest(checkpoint)
        (checkpoint / name).unlink()
        os.symlink(secret, checkpoint / name)
        write_manifest(checkpoint, {**files, name: [fingerprint(secret)]})
    os.symlink(tmp_path / "here", copy / "more")
    write_manifest(copy, {**read_manifest(copy), "more/notes.txt": [fingerprint(here.parent / "notes.txt")]})
    brought = bring_back(copy, here, beyond=5)
    assert brought.progress == 10 and "checkpoint-20: " in brought.damaged[0]
    assert not (here / "more").exists() and secret.read_text() == "mine, too"


def test_what_is_removed_behind_a_link_is_the_link(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter").write_text("dear")
    old = tmp_path / "runs" / "old"
    old.mkdir(parents=True)
    os.symlink(mine, old / "folder")
    os.symlink(mine / "letter", old / "file")
    os.symlink(tmp_path / "nothing", old / "dangling")
    discard(old)
    assert not old.exists()
    for link, target in (("l1", mine), ("l2", mine / "letter"), ("l3", tmp_path / "nothing")):
        os.symlink(target, tmp_path / link)
        discard(tmp_path / link)
        assert not os.path.lexists(tmp_path / link)
    assert contents(mine) == {"letter": b"dear"}


def test_a_link_in_the_place_of_a_copy_is_replaced_and_not_written_through(copy, here, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter").write_text("dear")
    os.symlink(mine / "letter", copy / ".metrics.jsonl.partial")
    (here / "metrics.jsonl").write_text("{}")
    update_files(here, copy, ["metrics.jsonl"])
    copy_checked(here / "metrics.jsonl", tmp_path / "drive" / "plain")
    os.symlink(mine, copy / "checkpoint-15")
    os.symlink(mine, copy / ".checkpoint-9.partial")
    os.symlink(mine, tmp_path / "here" / ".newllm.partial")
    make_checkpoint(here, 30, best=30)
    copy_checkpoint(here, copy, here / "checkpoint-30")
    assert bring_back(copy, here, beyond=5).progress == 30
    os.symlink(mine, tmp_path / "link")
    replace_folder(here, tmp_path / "link")
    assert (tmp_path / "link" / "checkpoint-30").is_dir() and not (tmp_path / "link").is_symlink()
    assert contents(mine) == {"letter": b"dear"}


def test_what_else_stands_where_a_file_should_be(here, copy):
    checkpoint = copy / "checkpoint-20"
    (checkpoint / "optimizer.pt").unlink()
    os.mkfifo(checkpoint / "optimizer.pt")  # reading it would wait for good
    (copy / "checkpoint-15").write_text("a file")
    (copy / "checkpoint-99").mkdir()
    assert bring_back(copy, here, beyond=5).progress == 10
    (copy / "checkpoint-10" / "model.safetensors").unlink()
    (copy / "checkpoint-10" / "model.safetensors").mkdir()
    assert bring_back(copy, here, beyond=10).progress == NOTHING and progress_here(here) == 10


def test_names_of_folders_are_matched(here, copy):
    for name in ("checkpoint-x", "checkpoint-20.partial", "checkpoint- 7", "Checkpoint-30", "checkpoint-30\n"):
        (copy / name).mkdir()
        write_manifest(copy / name, {"a": stated()})
    assert progress_of_copy(copy) == 20 and bring_back(copy, here, beyond=5).progress == 20


@pytest.mark.parametrize("name", ["..partial", "...old", "....old", ".old", ".partial", ".. .old"])
def test_leftovers_are_names_in_their_folder(tmp_path, name):
    folder = tmp_path / "a" / "b"
    (folder / name).mkdir(parents=True)
    (folder / "kept").write_text("kept")
    (tmp_path / "a" / "kept").write_text("kept")
    tidy(folder)
    assert contents(tmp_path) == {"a/b/kept": b"kept", "a/kept": b"kept"}


def test_a_best_checkpoint_is_named_by_any_system(tmp_path):
    for best in ("/content/runs/a/checkpoint-10", "checkpoint-10", "C:\\runs\\a\\checkpoint-10", "../x/checkpoint-10"):
        (tmp_path / "trainer_state.json").write_text(json.dumps({"max_steps": 9, "best_model_checkpoint": best}))
        assert planned_updates(tmp_path) == 9 and best_beside(tmp_path).name == "checkpoint-10"


def test_a_damaged_results_file_does_not_say_that_a_run_is_finished(here, copy):
    (here / "results.json").write_text("")
    assert progress_here(here) == 5 < FINISHED
    for content in ("", "[]", "{}", DEEP, '{"loss": 1.0}'):  # the last one has no weights beside it
        rewrite(copy, "results.json", content)
        assert progress_of_copy(copy) == FINISHED
        brought = bring_back(copy, here, beyond=5)
        assert brought.progress == 20 and brought.damaged == ["its files are not those of a finished run"]


def test_a_manifest_that_cannot_be_read_is_not_taken_for_none(copy):
    """Else it would be replaced by one that states the newest files alone."""
    (copy / MANIFEST_FILE).unlink()
    (copy / MANIFEST_FILE).mkdir()
    with pytest.raises(IsADirectoryError):
        read_manifest(copy)
