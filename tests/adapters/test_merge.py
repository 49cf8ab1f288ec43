"""Adapters merged into one plain model: whole or not there, whatever happens on the way."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lwf_runs import train_adapters

from newllm_lib.adapters.merge import merge
from newllm_lib.errors import InputError

HANGS = """
import sys, time
from newllm_lib.adapters import merge
from newllm_lib.training import disk
disk.os.replace = lambda *names: print("written", flush=True) or time.sleep(600)
merge.merge(sys.argv[1], sys.argv[2])
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return train_adapters(tmp_path_factory.mktemp("adapters"))


def test_what_a_killed_process_has_left_gives_way(tuned, tmp_path):
    target = tmp_path / "whole [1]"
    with subprocess.Popen([sys.executable, "-c", HANGS, tuned, target], stdout=subprocess.PIPE, text=True) as process:
        assert "written\n" in process.stdout
        process.send_signal(signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".") and (left / "model.safetensors").stat().st_size > 0
    assert merge(tuned, target) == target
    assert list(tmp_path.iterdir()) == [target] and (target / "model.safetensors").is_file()


@pytest.mark.parametrize("place", ["/proc/merged", "file/merged", "y" * 300])
def test_where_nothing_can_be_written_a_sentence_says_so(tuned, tmp_path, place):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(InputError, match=r"output .* cannot be written to"):
        merge(tuned, tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and Path(tuned).is_dir()
