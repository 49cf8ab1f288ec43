"""Copies: whole or not at all, whatever the disk does, and never less than what was there before."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_folders import contents

from newllm_lib.colab.drive import run_copy
from newllm_lib.colab.drive.run_copy import (
    MANIFEST_FILE,
    DamagedCopy,
    bring_folder,
    changed_files,
    copy_folder,
    names_in,
    read_manifest,
    replace_folder,
    tidy,
    update_files,
)
from newllm_lib.training.disk import temporary


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    (folder / "below").mkdir(parents=True)
    (folder / "weights").write_bytes(os.urandom(10_000))
    (folder / "below" / "empty").write_bytes(b"")
    return folder


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(run_copy, "CHUNK_BYTES", 1000)


def test_a_folder_comes_back_as_it_was(source, tmp_path, small_chunks):
    reported = []
    os.utime(source / "weights", ns=(10**18, 10**18))
    copy_folder(source, tmp_path / "copy", reported.append)
    assert sum(reported) == 10_000 and len(reported) == 10
    stated = json.loads((tmp_path / "copy" / MANIFEST_FILE).read_text())["files"]
    assert stated.keys() == {"weights", "below/empty"} and stated["weights"][0]["bytes"] == 10_000
    bring_folder(tmp_path / "copy", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)
    assert (tmp_path / "back" / "weights").stat().st_mtime_ns == 10**18


def test_the_same_copy_is_known_again(source, tmp_path):
    copy, names = tmp_path / "copy", names_in(source)
    assert names == ["below/empty", "weights"] == changed_files(source, copy, names)
    copy_folder(source, copy)
    assert changed_files(source, copy, names) == []
    os.truncate(copy / "weights", 9_999)
    assert changed_files(source, copy, names) == ["weights"]
    copy_folder(source, copy)
    (source / "weights").write_bytes(os.urandom(10_000))
    assert changed_files(source, copy, names) == ["weights"]
    copy_folder(source, copy)
    bring_folder(copy, tmp_path / "back")
    assert changed_files(tmp_path / "back", copy, names) == [], "what came back need not be copied again"


def full_disk_after(monkeypatch, chunks: int):
    """A disk that takes so many chunks more."""
    plain_open, left = Path.open, [chunks]

    class Stream:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.stream.close()

        def __getattr__(self, name):
            return getattr(self.stream, name)

        def write(self, chunk):
            left[0] -= 1
            if left[0] < 0:
                self.stream.write(chunk[: len(chunk) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.stream.write(chunk)

    def opened(path, mode="r", *args, **kwargs):
        stream = plain_open(path, mode, *args, **kwargs)
        return Stream(stream) if mode == "wb" else stream

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize("chunks", [0, 3, 9])
def test_a_full_disk_leaves_what_was_there(source, tmp_path, monkeypatch, small_chunks, chunks):
    copy = tmp_path / "disk" / "copy"
    copy_folder(source, copy)
    before = contents(copy)
    (source / "weights").write_bytes(os.urandom(10_000))
    with monkeypatch.context() as patch:
        full_disk_after(patch, chunks)
        with pytest.raises(OSError, match="No space"):
            copy_folder(source, copy)
    assert contents(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"], "the half of a copy has gone"
    copy_folder(source, copy)
    assert contents(copy)["weights"] == contents(source)["weights"]


def test_a_disk_that_keeps_something_else_is_found_out(source, tmp_path, monkeypatch):
    copy_folder(source, tmp_path / "copy")
    before = contents(tmp_path / "copy")
    (source / "weights").write_bytes(b"new")

    def fsync(number):
        os.ftruncate(number, 1)

    monkeypatch.setattr(run_copy.os, "fsync", fsync)
    with pytest.raises(DamagedCopy, match="does not read as it was written"):
        copy_folder(source, tmp_path / "copy")
    assert contents(tmp_path / "copy") == before


@pytest.mark.parametrize("damage", ["other bytes", "cut off", "gone", "no manifest", "torn manifest"])
def test_a_copy_that_has_changed_is_not_brought_back(source, tmp_path, damage):
    copy_folder(source, tmp_path / "copy")
    file, manifest = tmp_path / "copy" / "weights", tmp_path / "copy" / MANIFEST_FILE
    if damage == "other bytes":
        content = bytearray(file.read_bytes())
        content[5000] ^= 1
        file.write_bytes(content)
    elif damage == "cut off":
        os.truncate(file, 9_999)
    elif damage == "gone":
        file.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        os.truncate(manifest, manifest.stat().st_size // 2)
    with pytest.raises(DamagedCopy):
        bring_folder(tmp_path / "copy", tmp_path / "back")


def test_a_manifest_reaches_no_other_folder(tmp_path):
    state = {"bytes": 1, "sha256": "0", "modified": 1}
    files = {"../outside": [state], "/outside": [state], "inside": [state], "never": []}
    (tmp_path / MANIFEST_FILE).write_text(json.dumps({"files": files}))
    assert read_manifest(tmp_path).keys() == {"inside"}


KILLED = """
import sys, time
from pathlib import Path
from newllm_lib.colab.drive import run_copy
run_copy.CHUNK_BYTES = 20_000
def slowly(size):
    print("chunk", flush=True)
    time.sleep(0.02)
run_copy.copy_folder(Path(sys.argv[1]), Path(sys.argv[2]), slowly)
"""


def test_a_process_killed_while_copying_loses_nothing(source, tmp_path):
    copy = tmp_path / "disk" / "copy"
    copy_folder(source, copy)
    before = contents(copy)
    (source / "weights").write_bytes(os.urandom(200_000))
    command = [sys.executable, "-c", KILLED, str(source), str(copy)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(4):
            assert process.stdout.readline() == "chunk\n"
        process.send_signal(signal.SIGKILL)
    partial = temporary(copy, ".partial")
    assert 0 < (partial / "weights").stat().st_size < 200_000
    assert contents(copy) == before
    with pytest.raises(DamagedCopy):
        bring_folder(partial, tmp_path / "back")
    tidy(copy.parent)
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_folder_that_is_replaced_is_there_all_the_time(tmp_path, monkeypatch, killed_at):
    new, target = tmp_path / ".run.partial", tmp_path / "run"
    for folder, content in ((new, b"new"), (target, b"old")):
        folder.mkdir()
        (folder / "file").write_bytes(content)
    plain_rename, calls = os.rename, []

    def rename(*names):
        calls.append(names)
        if len(calls) == killed_at:
            raise KeyboardInterrupt  # as good as a kill: nothing that follows is done
        plain_rename(*names)

    with monkeypatch.context() as patch:
        patch.setattr(run_copy.os, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            replace_folder(new, target)
    tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (target / "file").read_bytes() == b"old"


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_single_files_verify_at_any_moment(source, tmp_path, monkeypatch, killed_at):
    (source / "second").write_bytes(b"one")
    copy, names = tmp_path / "copy", ("weights", "second")
    copy.mkdir()
    update_files(source, copy, names)
    old = contents(source)
    for name in names:
        (source / name).write_bytes(f"new {name}".encode())
    plain_replace, calls = os.replace, []

    def replace(*paths):
        calls.append(paths)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        plain_replace(*paths)

    with monkeypatch.context() as patch:  # write_json renames with the same function: the manifest is killed, too
        patch.setattr(run_copy.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            update_files(source, copy, names)
    bring_folder(copy, tmp_path / "back")
    back = contents(tmp_path / "back")
    assert all(back[name] in (old[name], (source / name).read_bytes()) for name in names)
    tidy(copy)
    update_files(source, copy, names)
    assert {name: content for name, content in contents(copy).items() if name != MANIFEST_FILE} == {
        name: (source / name).read_bytes() for name in names
    }
    assert all(len(states) == 1 for states in read_manifest(copy).values())


def test_files_that_are_there_are_not_copied_again(source, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    copy.mkdir()
    update_files(source, copy, ["weights"])
    monkeypatch.setattr(run_copy, "copy_checked", lambda *args, **kwargs: pytest.fail("copied again"))
    update_files(source, copy, ["weights"])


def test_what_is_discarded_takes_no_room_in_a_bin(tmp_path, monkeypatch):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "weights").write_bytes(b"x" * 100)
    (folder / "linked").write_bytes(b"kept")
    os.link(folder / "linked", tmp_path / "other name")
    sizes, plain_unlink = {}, Path.unlink

    def unlink(path, missing_ok=False):
        sizes[path.name] = path.stat().st_size
        plain_unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    run_copy.discard(folder)
    assert sizes["weights"] == 0 and not folder.exists()
    assert (tmp_path / "other name").read_bytes() == b"kept"


def test_copying_is_quick(source, tmp_path):
    (source / "weights").write_bytes(os.urandom(2**24))
    started = time.perf_counter()
    copy_folder(source, tmp_path / "copy")
    assert time.perf_counter() - started < 5
