"""One command at a time works on a run folder; the second is told who does, and a dead owner holds nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from run_folders import make_run

from newllm_lib.errors import InputError
from newllm_lib.training.disk import OWNER_FILE, in_use


@pytest.fixture
def owner(tmp_path):
    """Another process that works on `tmp_path / "run"`."""
    make_run(tmp_path / "run")
    ready, write_end = os.pipe()
    process = os.fork()
    if process == 0:
        with in_use(tmp_path / "run"):
            os.write(write_end, b"!")
            signal.pause()
    os.read(ready, 1)
    yield process
    if not dead(process):
        kill(process)


def dead(process: int) -> bool:
    return not os.path.exists(f"/proc/{process}")


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_the_second_is_told_who_works_there(owner, tmp_path):
    sentence = rf"in use by process {owner} of .*, since 20\d\d-.*--output_dir"
    with pytest.raises(InputError, match=sentence) as refusal, in_use(tmp_path / "run"):
        pytest.fail("it is in use")
    assert "\n" not in str(refusal.value)


def test_a_command_is_refused_before_it_touches_the_run(owner, tmp_path):
    folder = tmp_path / "run"
    (folder / ".results.json.999999999.tmp").write_text("half")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(InputError, match="in use by process"), in_use(folder):
        pytest.fail("it is in use")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_dead_owner_holds_nothing(owner, tmp_path):
    kill(owner)
    assert (tmp_path / "run" / OWNER_FILE).exists()
    with in_use(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / OWNER_FILE).read_text())["process"] == os.getpid()


def test_a_copy_of_the_folder_on_another_disk_is_free(owner, tmp_path):
    copy = shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with in_use(copy):
        assert (copy / OWNER_FILE).exists()


@pytest.mark.parametrize("note", ["", "null", "[]", "{}", '{"process": "x"}', '{"process": 1}', '{"process": -1}'])
def test_whatever_the_note_says_it_is_the_lock_that_counts(tmp_path, note):
    (tmp_path / OWNER_FILE).write_text(note)
    with in_use(tmp_path):
        assert json.loads((tmp_path / OWNER_FILE).read_text())["process"] == os.getpid()


@pytest.mark.parametrize("ends", ["well", "by an error", "without its folder"])
def test_nothing_is_left_of_it(tmp_path, ends):
    folder = make_run(tmp_path / "run")
    before = sorted(path.name for path in folder.iterdir())
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt) if ends == "by an error" else in_use(tmp_path), in_use(folder):
            if ends == "by an error":
                raise KeyboardInterrupt
            if ends == "without its folder":
                shutil.rmtree(folder)
                make_run(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_what_a_killed_owner_was_writing_is_removed(tmp_path):
    folder = make_run(tmp_path / "run")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (folder / f".results.json.{ended.pid}.tmp").write_text("half")
    (folder / ".tmpAb12Cd").write_text("of safetensors")
    (folder / ".curves.png.tmp").write_text("half")
    (folder / f".merged.{ended.pid}.tmp").mkdir()
    (folder / f".merged.{os.getpid()}.tmp").mkdir()
    with in_use(folder):
        left = {path.name for path in folder.iterdir() if path.name.endswith(".tmp") or path.name.startswith(".tmp")}
    assert left == {f".merged.{os.getpid()}.tmp"}, "somebody is writing that one"
