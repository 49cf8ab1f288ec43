"""Terminals that know no UTF-8: what they cannot show is shown as its code, and nothing ends."""

import io
import os
import subprocess
import sys

import pytest
from chats import untrained_chat

from newllm_lib.cli import main


def terminal(monkeypatch, encoding: str, typed: bytes = b"") -> io.BytesIO:
    """Standard streams of that encoding, as Python makes them; returns what is written."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding=encoding))
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding=encoding, write_through=True))
    return written


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp932", "utf-8"])
def test_a_conversation_goes_on_in_any_encoding(tmp_path, monkeypatch, encoding):
    typed = "Grüße, 日本 🙂".encode() + b" \xff\xfe\n" + b"\x80\x81\n"
    written = terminal(monkeypatch, encoding, typed)
    assert main(["chat", str(untrained_chat(tmp_path / "日本"))]) == 0
    assert written.getvalue().count(b"> ") >= 3


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_sentence_is_printed_in_any_encoding(monkeypatch, encoding):
    written = terminal(monkeypatch, encoding)
    assert main(["chat", "/日本/Grüße"]) == 2
    said = written.getvalue().decode(encoding)
    assert "\\u65e5\\u672c" in said and ("Grüße" if encoding == "cp1252" else "Gr\\xfc\\xdfe") in said


def test_a_process_in_such_a_terminal_prints_its_help():
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    for command in ([], ["data"], ["dpo", "--help"]):
        argv = [sys.executable, "-m", "newllm_lib", *command]
        done = subprocess.run(argv, env=os.environ | ascii_only, capture_output=True, check=False)
        assert done.returncode == 0 and b"Traceback" not in done.stderr and len(done.stdout) > 500, done.stderr
