"""The cache: whatever happens to it, it costs time at most, and where it is to blame a sentence says where it is."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from newllm_lib.cli import main
from newllm_lib.data import cache as module
from newllm_lib.data.cache import cache_folder, cache_path, kept, known, made
from newllm_lib.data.text import load_text, packed_rows
from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.errors import InputError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("NEWLLM_CACHE", str(folder))
    return folder


@pytest.fixture
def text(text_file):
    return load_text(data=str(text_file)).train


def prepare(text):
    """Everything that is kept of a text: its tokenizer and its rows."""
    tokenizer = build_tokenizer("bpe", (piece.text for piece in text.read()), 300, text.identity)
    rows, counts = packed_rows(text, tokenizer, 32)
    return tokenizer.backend_tokenizer.to_str(), [row["input_ids"].tolist() for row in rows], counts


def entry(name: str, size: int, used: float) -> Path:
    """A sealed file of the cache that was used at a time."""
    path = cache_path("rows", ".rows", name)
    kept(path, lambda target: target.write_bytes(b"x" * size))
    os.utime(path, (used, used))
    os.utime(path.with_suffix(".json"), (used, used))
    return path


DAMAGES = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a byte": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"\x01" + path.read_bytes()[-8:]),
    "no json": lambda path: path.write_text('{"sha256": [[['),
    "deep": lambda path: path.write_text("[" * 100_000),
    "of other things": lambda path: path.write_text(json.dumps({"sha256": "x", "said": {"tokens": "many"}})),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: path.unlink() or path.mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", ["rows-*.rows", "rows-*.json", "tokenizer-*.tokenizer", "tokenizer-*.json"])
def test_what_is_damaged_is_made_anew(cache, text, pattern, damage):
    right = prepare(text)
    names = sorted(path.name for path in cache.iterdir())
    (path,) = cache.glob(pattern)
    DAMAGES[damage](path)
    assert prepare(text) == right
    assert sorted(path.name for path in cache.iterdir()) == names and len(names) == 4
    assert all(known(path) is not None for path in cache.iterdir() if path.suffix != ".json")


def test_a_count_that_was_changed_is_not_believed(cache):
    path = entry("a", 10, time.time())
    stated = path.with_suffix(".json")
    stated.write_text(stated.read_text().replace("10", "11"))
    assert known(path) is None


def test_what_is_there_may_be_used_from_a_cache_that_may_only_be_read(cache, text, monkeypatch):
    right = prepare(text)

    def refused(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("replace", "utime", "mkdir"):
        monkeypatch.setattr(module.os, name, refused)
    assert prepare(text) == right
    with pytest.raises(InputError, match=r"cache folder '.*cache' cannot be written to \(Read-only file system\)"):
        packed_rows(text, build_tokenizer("byte", []), 16)


@pytest.mark.parametrize("place", ["/proc/newllm-cache", "/dev/null/cache", "file/cache", "file", "dangling"])
def test_a_folder_that_cannot_be_is_said_to_be_the_cache(tmp_path, text_file, monkeypatch, capsys, place):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "dangling").symlink_to("/proc/nothing/there")
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / place))
    flags = ["--data", str(text_file), "--output_dir", str(tmp_path / "run"), "--num_parameters", "100000"]
    assert main(["pretrain", *flags, "--vocab_size", "300", "--max_length", "16", "--max_steps", "2"]) == 2
    said = capsys.readouterr().err
    assert "the cache folder" in said and "NEWLLM_CACHE" in said and "Traceback" not in said


def test_a_full_disk_is_said_in_one_sentence(cache, text, monkeypatch):
    """The file that would be written is the device that is always full."""
    cache.mkdir()
    tokenizer = build_tokenizer("byte", [])
    plain, full = Path.open, Path("/dev/full")

    def opened(path, *how, **more):
        return plain(full if path.suffix == ".tmp" else path, *how, **more)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(InputError, match="No space left on device") as caught:
        packed_rows(text, tokenizer, 16)
    assert caught.value.code == "NL-104" and str(cache) in str(caught.value) and not list(cache.iterdir())


def test_no_other_error_is_blamed_on_the_cache(cache, tmp_path):
    def reads_elsewhere(target):
        (tmp_path / "gone" / "x").read_text()

    def network(target):
        raise ConnectionError("no route")

    makers = {reads_elsewhere: FileNotFoundError, network: ConnectionError, lambda target: 1 / 0: ArithmeticError}
    for make, kind in makers.items():
        with pytest.raises(kind):
            kept(cache_path("rows", ".rows", "x"), make)
    assert not list(cache.iterdir())


KILLED = """
import sys, time
from newllm_lib.data.cache import cache_path, writing
with writing(cache_path("rows", ".rows", sys.argv[1])) as path, path.open("wb") as stream:
    stream.write(b"half"), stream.flush(), print("half", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_has_left_is_removed(cache):
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen([*command, "a"], stdout=subprocess.PIPE) as killed:
        assert killed.stdout.readline() == b"half\n"
        killed.send_signal(signal.SIGKILL)
    with subprocess.Popen([*command, "b"], stdout=subprocess.PIPE) as at_work:
        assert at_work.stdout.readline() == b"half\n"
        folder = cache_path("conversations", "", "c")
        folder.mkdir()
        # As earlier versions left them, and one whose number another process has by now.
        left = [folder / "shard-00001.999999.tmp", cache / f".{cache_path('gemma', '', 1).name}.999999.tmp"]
        left += [cache / f"{cache_path('rows', '', 1).name}.{os.getpid()}.tmp"]
        for path in left:
            path.write_text("half")
        os.utime(left[-1], (1, 1))
        mine = cache / "notes.999999.tmp"
        mine.write_text("no entry of the cache")
        entry("d", 10, time.time())
        at_work.kill()
        names = {path.name for path in cache.rglob("*.tmp")}
    assert names == {mine.name, f"{cache_path('rows', '', 'b').name}.{at_work.pid}.tmp"}


def test_the_cache_does_not_grow_beyond_its_bound(cache, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_BYTES", 25_000)
    (cache).mkdir()
    (cache / "my thesis.txt").write_bytes(b"x" * 50_000)  # whatever else is in the folder counts not and stays
    now = time.time()
    first, second = entry("first", 10_000, now - 300), entry("second", 10_000, now - 200)
    assert known(first) == 10_000  # used now
    folder = cache_path("conversations", "", "old")
    made(folder / "shard-00000.rows", lambda path: path.write_bytes(b"x" * 10_000))
    for path in folder.iterdir():
        os.utime(path, (now - 250, now - 250))
    entry("third", 10_000, now)
    assert first.exists() and not folder.exists()
    entry("fourth", 10_000, now)
    assert (cache / "my thesis.txt").exists() and not second.exists()
    assert {path.stem for path in cache.glob("*.json")} == {path.stem for path in cache.glob("*.rows")}


def test_the_readme_names_it():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert "NEWLLM_CACHE" in readme


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv("NEWLLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "newllm"
    monkeypatch.setenv("NEWLLM_CACHE", "~/x")
    assert cache_folder() == Path.home() / "x"
