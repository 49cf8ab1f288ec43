"""Every command of README_COLAB is run, in its order, without a network, and on models of a minute. The editions hold
the same commands (test_readme.py)."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sample_text import make_text
from test_readme import EDITIONS, ROOT, blocks
from tiny_gemma import tiny_gemma_folder

from newllm_lib.background import status as background
from newllm_lib.background.status import run_status
from newllm_lib.cli import main
from newllm_lib.training.checkpoint import read_results

COMMON = """--preset smoke --max_steps 2 --eval_steps 2 --save_steps 2 --logging_steps 1 --max_eval_tokens 200
    --per_device_train_batch_size 2 --auto_precision False"""
PAIRS = "--pairs 60 --sft_epochs 0.2 --max_test_tokens 200 --lora_r 2 --max_length 96"
# What is appended to a stage's flags, of which the last one counts.
SMALL = {
    "pretrain": f"{COMMON} --data text.txt --vocab_size 300 --num_parameters 60000 --max_length 32",
    "sft": f"{COMMON} --max_samples 100 --max_length 128",
    "qlora-lwf": f"{COMMON} --model gemma --rehearsal_data text.txt --load_in_4bit False --max_samples 100 "
    "--held_out_share 0.2 --max_length 256 --max_test_tokens 200",
    "dpo": f"{COMMON} {PAIRS}",
    "sweep": f"{COMMON} {PAIRS} --trials 2",
}
ENDLESS = "--max_steps 100000 --eval_steps 50000 --save_steps 50000"  # so that there is something to stop


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEWLLM_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(background, "FOLLOW_SECONDS", 0.5)
    Path("text.txt").write_text(make_text(240), encoding="utf-8")
    tiny_gemma_folder(Path("gemma"))
    return tmp_path


def commands(number: int) -> list[list[str]]:
    """The words of each line of a block."""
    language, lines = blocks(EDITIONS[0])[number]
    assert language == "bash"
    return [words for line in lines if (words := shlex.split(line))]


def run(words: list[str], more: str = "") -> None:
    """A stage with the flags that make it small, any other command as it is."""
    assert words[0] == "newllm"
    small = shlex.split(f"{SMALL[words[1]]} {more}") if words[1] in SMALL else []
    assert main([*words[1:], *small]) == 0, words


@pytest.mark.slow
def test_the_commands_of_the_stages(folder, monkeypatch, capsys):
    Path("runs").mkdir()
    for words in commands(0):
        lines = iter(["Hello!", ""])
        monkeypatch.setattr("builtins.input", lambda prompt, lines=lines: next(lines))
        run(words)
        said = capsys.readouterr().out.strip()
        if words[1] in ("pretrain", "sft", "qlora-lwf", "dpo"):
            assert read_results(Path(words[words.index("--output_dir") + 1])), words
        elif words[1] in ("doctor", "compare", "generate", "evaluate", "data", "chat"):
            assert said, words
    written = ("comparison.png", "gemma-whole/model.safetensors", "instructions/chat.html")
    assert all((Path("runs") / name).is_file() for name in written)
    assert len(Path("runs/sweep/trials.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_the_commands_in_the_background(folder, capsys):
    """The clone is a link to this repository."""
    for line in commands(1):
        first, *words = line
        if first == "!git":
            assert words[0] == "clone"
            os.symlink(ROOT, words[-1])
        elif first == "!bash":
            stage = words[1]
            small = shlex.split(f"{SMALL[stage]} {ENDLESS if stage == 'sweep' else ''}")
            begun = subprocess.run(["bash", *words, *small], capture_output=True, text=True)
            assert begun.returncode == 0, begun.stderr
        else:
            deadline = time.monotonic() + 240
            while words[0] == "stop" and run_status(Path(words[-1]).absolute())["state"] != "training":
                assert time.monotonic() < deadline
                time.sleep(0.5)
            run([first[1:], *words])
            said = capsys.readouterr().out
            if "--follow" in words:
                assert "finished · update 2 of 2" in said, said
            elif words[0] == "stop":
                assert "stopped · 0 of 2 trials done" in said, said
            else:
                assert "runs/sweep: " in said and said.count("finished") == 6, said
