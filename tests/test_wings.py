"""The core lives without its wings: in a copy that lacks them everything else works, and their commands say so."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conversations import make_conversations, write_conversations
from sample_text import make_text

ROOT = Path(__file__).parents[1]
WINGS = ("kernels", "adapters", "preferences", "background", "export", "colab")
# Of the core's tests those that train, score and read with nothing of a wing.
CORE_TESTS = ("stages/test_pretrain.py", "stages/test_sft.py", "evaluation", "models/test_modeling_newllm.py")
# An editable installation finds whatever the copy lacks.
ALONE = "import runpy, sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in str(finder)]; "
SMALL = shlex.split(
    "--num_parameters 30000 --max_steps 2 --per_device_train_batch_size 4 --max_length 16 --vocab_size 300"
)


@pytest.fixture(scope="module")
def core(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("core")
    leave_out = shutil.ignore_patterns(*WINGS, "browser", "notebooks", "__pycache__")
    for name in ("newllm_lib", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave_out)
    shutil.copy2(ROOT / "pyproject.toml", folder)
    return folder


def run(core: Path, module: str, *words: str) -> subprocess.CompletedProcess:
    code = f"{ALONE} sys.argv[1:] = {list(words)!r}; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    environment = {**os.environ, "PYTHONPATH": str(core)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=core, env=environment, capture_output=True, text=True, input="Hello!\n")


@pytest.mark.parametrize("command", ["qlora-lwf", "export", "dpo", "sweep", "status", "stop", "start"])
def test_a_command_of_a_missing_wing_says_so(core, command):
    words = {"export": ["runs/x", "--format", "html"], "stop": ["runs/x"], "start": ["pretrain"]}
    done = run(core, "newllm_lib", command, *words.get(command, []))
    assert done.returncode == 2
    wing = {"qlora-lwf": "adapters", "export": "export", "dpo": "preferences", "sweep": "preferences"}
    wing = wing.get(command, "background")
    assert done.stderr.splitlines()[-1].startswith(f"newllm: this copy of newllm has no newllm_lib.{wing};")


@pytest.mark.slow
def test_the_core_trains_scores_and_chats_without_them(core):
    (core / "book.txt").write_text(make_text(240), encoding="utf-8")
    write_conversations(core / "talk.jsonl", make_conversations(20))
    for line in (
        ["pretrain", "--data", "book.txt", "--output_dir", "runs/book", *SMALL],
        ["sft", "--data", "talk.jsonl", "--model", "runs/book", "--output_dir", "runs/talk", "--max_steps", "2"],
        ["evaluate", "runs/talk"],
        ["compare", "runs/book"],
        ["generate", "runs/book", "--prompt", "The", "--max_new_tokens", "4"],
        ["chat", "runs/talk", "--max_new_tokens", "4"],
    ):
        done = run(core, "newllm_lib", *line)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_tests_of_the_core_pass_without_them(core):
    done = run(core, "pytest", "-q", "-m", "not slow", *(f"tests/{name}" for name in CORE_TESTS))
    assert done.returncode == 0, done.stdout[-3000:]
