"""Which checkpoint a run goes on from, and what is never removed."""

import json
import os
import shutil
import time

import pytest
from run_folders import contents, make_checkpoint

from newllm_lib.training.checkpoint import (
    COMPLETE_FILE,
    PASSED_OVER,
    SAVING,
    best_beside,
    is_complete,
    numbered_checkpoints,
    resume_point,
    rotate,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "stray", [".DS_Store", "desktop.ini", ".ipynb_checkpoints/model-checkpoint.json", "notes/a.txt"]
)
def test_a_stray_file_does_not_matter(tmp_path, stray):
    newest = make_checkpoint(tmp_path, 8)
    (newest / stray).parent.mkdir(exist_ok=True)
    (newest / stray).write_text("of somebody else")
    assert resume_point(tmp_path, True) == newest
    rotate(tmp_path, 8, 1, None)
    assert is_complete(newest)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "flipped": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "null": lambda path: path.write_text("null"),
    "{}": lambda path: path.write_text("{}"),
    "a list": lambda path: path.write_text('{"files": [1]}'),
    "no states": lambda path: path.write_text('{"files": {"model.safetensors": {"size": "all"}}}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", COMPLETE_FILE])
def test_a_damaged_file_costs_one_checkpoint(tmp_path, caplog, name, damage):
    older, newest = make_checkpoint(tmp_path, 8, best=8), make_checkpoint(tmp_path, 20, best=8)
    DAMAGE[damage](newest / name)
    found = contents(newest)
    assert resume_point(tmp_path, True) == older
    assert "checkpoint-20" in caplog.text and "goes on from checkpoint-8" in caplog.text
    assert contents(newest) == {**found, PASSED_OVER: b""}, "it is kept as it was"


def test_where_nothing_is_whole_training_begins_anew_and_nothing_is_removed(tmp_path, caplog):
    for step in (8, 20):
        flip(make_checkpoint(tmp_path, step) / "optimizer.pt")
    assert resume_point(tmp_path, True) is None
    assert names(tmp_path) == ["checkpoint-20", "checkpoint-8"]
    assert "begins anew" in caplog.text
    make_checkpoint(tmp_path, 10)
    rotate(tmp_path, 10, 3, None)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-20"], "update 20 is not passed yet"


def written(folder, step):
    """A sealed checkpoint that does not stand among the others yet."""
    (folder / SAVING).mkdir()
    return make_checkpoint(folder, step).rename(folder / SAVING / f"checkpoint-{step}")


@pytest.mark.parametrize("there", ["nothing", "a whole one", "a damaged one", "it has given way already"])
def test_what_was_sealed_when_a_process_died_is_gone_on_with(tmp_path, there):
    make_checkpoint(tmp_path, 4)
    new = contents(written(tmp_path, 8))
    if there != "nothing":
        old = make_checkpoint(tmp_path, 8)
        if there == "a damaged one":
            flip(old / "optimizer.pt")
        if there == "it has given way already":
            old.rename(tmp_path / SAVING / "replaced")
    assert resume_point(tmp_path, True) == tmp_path / "checkpoint-8"
    assert contents(tmp_path / "checkpoint-8") == new and names(tmp_path) == ["checkpoint-4", "checkpoint-8"]


@pytest.mark.parametrize("harm", [flip, os.unlink])
@pytest.mark.parametrize("file", ["optimizer.pt", COMPLETE_FILE])
def test_what_was_not_written_to_its_end_leaves_the_one_that_is_there(tmp_path, file, harm):
    old = make_checkpoint(tmp_path, 8)
    (tmp_path / SAVING).mkdir()
    cut_off = shutil.copytree(old, tmp_path / SAVING / "checkpoint-8")
    harm(cut_off / file)
    before = contents(old)
    assert resume_point(tmp_path, True) == old
    assert contents(old) == before and names(tmp_path) == ["checkpoint-8"]


@pytest.mark.parametrize("needs_best", [True, False])
def test_the_best_one_has_to_be_whole_where_it_becomes_the_result(tmp_path, caplog, needs_best):
    for step, best in ((4, 4), (8, 8), (12, 8)):
        make_checkpoint(tmp_path, step, best=best)
    flip(tmp_path / "checkpoint-8" / "model.safetensors")
    assert resume_point(tmp_path, needs_best).name == ("checkpoint-4" if needs_best else "checkpoint-12")
    assert is_complete(tmp_path / "checkpoint-12")
    assert ("needs checkpoint-8, the best one so far" in caplog.text) == needs_best


def test_what_was_passed_over_is_gone_on_with_when_it_is_whole_again(tmp_path):
    make_checkpoint(tmp_path, 4)
    newest = make_checkpoint(tmp_path, 12)
    flip(newest / "model.safetensors")
    assert resume_point(tmp_path, True).name == "checkpoint-4" and (newest / PASSED_OVER).exists()
    flip(newest / "model.safetensors")
    assert resume_point(tmp_path, True) == newest and not (newest / PASSED_OVER).exists()


def test_without_its_best_one_a_run_goes_on_rather_than_begin_anew(tmp_path):
    newest = make_checkpoint(tmp_path, 12, best=8)
    assert resume_point(tmp_path, True) == newest


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (6, None, [2, 4, 6, 8, 10]),  # one more may stay than there are
        (1, None, [10]),
        (1, "checkpoint-10", [10]),
        (1, "checkpoint-4", [4, 10]),
        (2, "checkpoint-4", [4, 10]),
        (3, "checkpoint-4", [4, 8, 10]),
        (3, None, [6, 8, 10]),
        (3, "checkpoint-99", [6, 8, 10]),
        (9, None, [2, 4, 6, 8, 10]),
        (None, None, [2, 4, 6, 8, 10]),
        (0, None, [2, 4, 6, 8, 10]),
    ],
)
@pytest.mark.parametrize("broken", [(), (1, 3, 5, 7, 9)])
def test_the_oldest_are_removed_by_number(tmp_path, limit, best, kept, broken):
    """Whatever their times are, and however many half-removed or cut-off ones lie beside them."""
    for step in (2, 4, 6, 8, 10):
        checkpoint = make_checkpoint(tmp_path, step)
        future = time.time() + 1000 * (10 - step)
        os.utime(checkpoint, (future, future))
    for step in broken:
        (make_checkpoint(tmp_path, step) / "model.safetensors").unlink()
    (tmp_path / SAVING / "replaced").mkdir(parents=True)  # the disk has not let it go
    rotate(tmp_path, 10, limit, best)
    assert [step for step, _ in numbered_checkpoints(tmp_path)] == kept
    assert len(names(tmp_path)) == len(kept)


@pytest.mark.parametrize("best", ["x/..", "..", "", "/etc", "checkpoint-8/..", 3, None, ["a"]])
def test_the_best_one_is_a_name_beside(tmp_path, best):
    checkpoint = make_checkpoint(tmp_path, 8)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": best}))
    assert best_beside(checkpoint) is None
