"""`scripts/colab_train.sh` from the start of a run to its end, with what a person does on the way: look, stop, start
again, lose the machine, start again."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from chats import write_conversations
from preference_runs import make_pairs, tiny_chat_model, write_pairs
from sample_text import make_text
from tiny_gemma import tiny_gemma_folder

from newllm_lib.background.owner import find_owner
from newllm_lib.background.status import run_status
from newllm_lib.cli import main
from newllm_lib.training.checkpoint import is_complete, numbered_checkpoints

ROOT = Path(__file__).parents[2]
SECONDS = 240
ENDLESS = """--max_steps 100000 --eval_steps 50000 --save_steps 50000 --logging_steps 5 --max_eval_tokens 200
    --per_device_train_batch_size 4 --auto_precision False"""
PAIRS = "--model chat --data pairs.jsonl --held_out_share 0.25 --max_length 96 --lora_r 4"
# name -> (the stage and its flags, the part in which it is stopped)
STAGES = {
    "sft": ("sft --data talk.jsonl --tokenizer byte --num_parameters 80000 --max_length 64", None),
    "qlora-lwf": ("qlora-lwf --model gemma --data talk.jsonl --rehearsal_data text.txt --load_in_4bit False "
        "--max_length 64 --gradient_accumulation_steps 1 --max_test_tokens 200", None),
    "dpo": (f"dpo {PAIRS} --sft_epochs 1000", "reference"),
    "sweep": (f"sweep {PAIRS} --sft_epochs 0 --trials 2", "trial-001"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with data, in which to train; no process is left there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEWLLM_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("text.txt").write_text(make_text(240), encoding="utf-8")
    yield tmp_path
    if owner := find_owner(tmp_path / "runs" / "run"):
        os.kill(owner[1]["process"], signal.SIGKILL)


def start(line: str) -> subprocess.CompletedProcess:
    command = [
        "bash",
        str(ROOT / "scripts" / "colab_train.sh"),
        *shlex.split(f"{line} {ENDLESS} --output_dir runs/run"),
    ]
    return subprocess.run(command, capture_output=True, text=True)


def wait_for(folder: Path, is_there) -> dict:
    deadline = time.monotonic() + SECONDS
    while not is_there(status := run_status(folder)):
        assert time.monotonic() < deadline and status["state"] != "stopped", status
        time.sleep(0.3)
    return status


def is_under_way(status: dict) -> bool:
    return status["state"] == "training" and status["update"] > status.get("saved_update", 0) and "loss" in status


# An interpreter that has New-LLM once pip has installed it, of a virtual environment or not.
STUB = """#!/bin/sh
here=$(dirname "$0")
echo "$*" >>"$here/calls"
case "$*" in
*find_spec*) test -f "$here/installed" ;;
*base_prefix*) test -f "$here/virtual" ;;
"-m pip list"*) echo torch==2.6; echo newllm==0.0.1 ;;
"-m pip install"*) cp "$5" "$here/constraints" && test ! -f "$here/broken" && touch "$here/installed" ;;
"-m newllm_lib"*) echo "started by $here" ;;
esac
"""


@pytest.fixture
def bare(tmp_path):
    """A clone, and the interpreter of a machine without the library."""
    shutil.copytree(ROOT / "scripts", tmp_path / "clone" / "scripts")
    return make_stub(tmp_path / "bin")


def make_stub(folder: Path, *marks: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "python").write_text(STUB)
    (folder / "python").chmod(0o755)
    for mark in marks:
        (folder / mark).touch()
    return folder


def script(bare: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", str(bare.parent / "clone" / "scripts" / "colab_train.sh"), *words]
    found = {name: value for name, value in os.environ.items() if name != "COLAB_RELEASE_TAG"}
    found |= {"NEWLLM_PYTHON": str(bare / "python"), **environment}
    return subprocess.run(command, cwd=bare, env=found, capture_output=True, text=True)


@pytest.mark.parametrize("place", ["virtual", "Colab"])
def test_what_is_missing_is_installed_from_the_clone(bare, place):
    if place == "virtual":
        (bare / "virtual").touch()
    done = script(bare, "dpo", "--preset", "smoke", **({"COLAB_RELEASE_TAG": "x"} if place == "Colab" else {}))
    assert done.returncode == 0, done.stderr
    calls = (bare / "calls").read_text().splitlines()
    (install,) = [call for call in calls if call.startswith("-m pip install")]
    assert install.endswith(f"{bare.parent}/clone[offline,dpo]") and " trl peft" in calls[0]
    assert (bare / "constraints").read_text() == "torch==2.6\n", "what is installed stays, but for another New-LLM"
    assert calls[-1] == "-m newllm_lib start dpo --preset smoke" and f"started by {bare}" in done.stdout


def test_what_is_there_is_used(bare):
    (bare / "installed").touch()
    assert "started by" in script(bare, "sft").stdout and "pip" not in (bare / "calls").read_text()


def test_the_environment_of_the_clone_is_used(bare):
    own = make_stub(bare.parent / "clone" / ".venv" / "bin", "installed")
    assert f"started by {own}" in script(bare, "pretrain").stdout


def test_an_installation_that_fails_is_said_and_nothing_started(bare):
    (bare / "virtual").touch()
    (bare / "broken").touch()
    done = script(bare, "sft")
    assert done.returncode == 2 and "not installed; what pip says above tells why." in done.stderr
    assert "started" not in done.stdout


def test_a_word_that_is_no_stage_is_refused(bare):
    done = script(bare, "chat")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "STAGE has to be one of pretrain" in done.stderr
    assert "usage: bash scripts/colab_train.sh STAGE" in script(bare, "--help").stdout


@pytest.mark.slow
def test_start_look_stop_start_again_lose_the_machine_start_again(folder, capsys):
    run, log = folder / "runs" / "run", folder / "runs" / "run.log"
    line = "pretrain --data text.txt --tokenizer byte --num_parameters 120000 --max_length 32"
    begun = start(line)
    assert begun.returncode == 0, begun.stderr
    for part in ("log     runs/run.log", "status runs/run --follow", "stop runs/run"):
        assert part in begun.stdout
    wait_for(run, is_under_way)
    assert main(["status", "runs/run"]) == 0
    assert "training · update" in (said := capsys.readouterr().out) and "minutes left" in said and " of memory" in said

    second = start(line)
    assert second.returncode == 2 and second.stderr.count("\n") == 1
    assert "output_dir 'runs/run' is in use by process" in second.stderr

    assert main(["stop", "runs/run"]) == 0
    assert "stopped · update" in capsys.readouterr().out
    saved, checkpoint = numbered_checkpoints(run)[-1]
    assert is_complete(checkpoint) and f"Stopped at update {saved} of 100000" in log.read_text()
    assert main(["stop", "runs/run"]) == 2
    assert "does not run, so that there is nothing to stop (runs/run: stopped" in capsys.readouterr().err

    assert start(line).returncode == 0
    status = wait_for(run, is_under_way)
    assert f"Continuing at update {saved} of 100000" in log.read_text()
    os.kill(status["process"], signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while run_status(run)["state"] != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.1)

    assert start(line).returncode == 0
    wait_for(run, is_under_way)
    assert log.read_text().count(f"Continuing at update {saved} of 100000") == 2
    assert main(["stop", "runs/run"]) == 0
    assert numbered_checkpoints(run)[-1][0] > saved and "Traceback" not in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_watched_and_stopped(folder, capsys, stage):
    line, part = STAGES[stage]
    write_conversations(Path("talk.jsonl"), 60)
    write_pairs(Path("pairs.jsonl"), make_pairs(48))
    tiny_gemma_folder(Path("gemma"))
    tiny_chat_model(Path("chat"))
    begun = start(line)
    assert begun.returncode == 0, begun.stderr
    run = folder / "runs" / "run"
    status = wait_for(run, is_under_way)
    assert status.get("part") == part and status["updates"] >= 1000
    assert main(["stop", "runs/run"]) == 0
    assert "stopped · " in capsys.readouterr().out
    saved, checkpoint = numbered_checkpoints(run / (part or ""))[-1]
    assert saved >= status["update"] and is_complete(checkpoint)
    log = (folder / "runs" / "run.log").read_text()
    assert "Traceback" not in log and "The same command continues from there." in log
    assert (status := run_status(run))["state"] == "stopped" and status["saved_update"] == saved


@pytest.mark.slow
def test_a_stop_before_anything_is_trained_ends_in_a_sentence(folder, capsys):
    Path("many.txt").write_text(make_text(240) * 2000, encoding="utf-8")
    assert start("pretrain --data many.txt --num_parameters 120000 --max_length 32 --vocab_size 300").returncode == 0
    run = folder / "runs" / "run"
    wait_for(
        run, lambda status: status["state"] == "preparing" and psutil.Process(status["process"]).cpu_times().user > 4
    )
    assert main(["stop", "runs/run"]) == 0
    assert "stopped · nothing saved yet" in capsys.readouterr().out and not run.exists()
    assert "Traceback" not in (log := (folder / "runs" / "run.log").read_text()), log
    assert log.endswith("newllm: Interrupted; nothing that was saved is lost.\n")
