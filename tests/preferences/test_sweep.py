"""A sweep: one table, nothing twice, gone on with after a kill, the best settings at hand."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from preference_runs import dpo_fields
from run_files import StopAt

pytest.importorskip("trl")
pytest.importorskip("optuna")

from newllm_lib.chat import Chat
from newllm_lib.errors import InputError
from newllm_lib.preferences import sweep as stage
from newllm_lib.preferences.sweep import (
    SweepArguments,
    best_trial,
    margin_histories,
    sweep,
    sweep_settings,
    trial_folder,
)
from newllm_lib.preferences.trials import read_trials
from newllm_lib.training.callbacks import TrainingInterrupted


def sweep_arguments(folder, name="sweep", **fields):
    few = {"trials": 3, "search_loss_type": "sigmoid,ipo", "max_steps": 4, "logging_steps": 2}
    return SweepArguments(**dpo_fields(folder, name, **{**few, **fields}))


def times_written(folder, rows) -> list[int]:
    return [(trial_folder(folder, row["trial"]) / "results.json").stat().st_mtime_ns for row in rows]


def test_every_trial_is_a_row_and_the_best_is_at_hand(tmp_path, caplog):
    with caplog.at_level("INFO", logger="newllm_lib"):
        folder = sweep(sweep_arguments(tmp_path))
    rows = read_trials(folder)
    assert [row["trial"] for row in rows] == [1, 2, 3] and {row["state"] for row in rows} == {"finished"}
    assert all(0.02 <= row["beta"] <= 0.5 and row["lora_r"] in (4, 8, 16, 32) for row in rows)
    assert len({(row["beta"], row["learning_rate"]) for row in rows}) == 3
    best = best_trial(rows)
    assert sweep_settings(folder) == {name: best[name] for name in ("beta", "learning_rate", "lora_r", "loss_type")}
    assert "Best of 3" in caplog.text and margin_histories(folder, rows).keys() == {1, 2, 3}
    assert not list(folder.rglob("checkpoint-*")) and not list(folder.rglob("merged"))
    written = times_written(folder, rows)
    sweep(sweep_arguments(tmp_path, trials=4))
    again = read_trials(folder)
    assert again[:3] == rows and len(again) == 4 and times_written(folder, rows) == written


def test_an_interrupted_sweep_ends_like_an_unbroken_one(tmp_path):
    whole = read_trials(sweep(sweep_arguments(tmp_path, "whole")))
    stop = StopAt(10**9)
    calls = []

    class InSecondTrial(StopAt):
        def on_train_begin(self, args, state, control, **kwargs):
            calls.append(args.output_dir)
            self.step = 2 if len(calls) == 2 else stop.step

    with pytest.raises(TrainingInterrupted, match="Stopped in trial 2"):
        sweep(sweep_arguments(tmp_path, "broken"), (InSecondTrial(0),))
    rows = read_trials(tmp_path / "broken")
    assert [row["state"] for row in rows] == ["finished", "running"]
    broken = read_trials(sweep(sweep_arguments(tmp_path, "broken")))
    assert broken == whole


def test_the_reference_is_made_once_for_all_trials(tmp_path):
    folder = sweep(sweep_arguments(tmp_path, trials=2, sft_epochs=1.0))
    assert [path.parents[1].name for path in folder.rglob("reference/results.json")] == [folder.name]
    settings = [json.loads((folder / f"trial-00{n}" / "settings.json").read_text()) for n in (1, 2)]
    assert {item["session"]["model"] for item in settings} == {str(folder / "reference")}
    moved = shutil.move(folder, tmp_path / "unpacked")
    assert next(Chat(Path(moved) / "trial-001", max_new_tokens=2).reply("Hello"), "") is not None
    shutil.rmtree(Path(moved) / "reference")
    with pytest.raises(InputError, match="say with --base where it is now"):
        Chat(Path(moved) / "trial-001")


def test_a_killed_sweep_repeats_no_finished_trial(tmp_path):
    args = dpo_fields(tmp_path, "killed", max_steps=4)
    flags = [part for name, value in args.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "newllm_lib", "sweep", *flags, "--trials", "3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    table = tmp_path / "killed" / "trials.jsonl"
    deadline = time.monotonic() + 120
    while not (table.exists() and '"finished"' in table.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = read_trials(tmp_path / "killed")
    finished = [row for row in before if row["state"] == "finished"]
    assert 1 <= len(finished) < 3
    written = times_written(tmp_path / "killed", finished)
    assert subprocess.run(command, capture_output=True).returncode == 0
    after = read_trials(tmp_path / "killed")
    assert after[: len(finished)] == finished and [row["state"] for row in after] == ["finished"] * 3
    assert times_written(tmp_path / "killed", finished) == written


def test_a_trial_that_fails_is_a_row_and_the_sweep_goes_on(tmp_path, monkeypatch):
    real, calls = stage.dpo, []

    def dpo(args, callbacks=()):
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("CUDA out of memory.\nTried to allocate 20 GB")
        return real(args, callbacks)

    monkeypatch.setattr(stage, "dpo", dpo)
    rows = read_trials(sweep(sweep_arguments(tmp_path, trials=2)))
    assert [row["state"] for row in rows] == ["failed", "finished"]
    assert rows[0]["error"] == "RuntimeError: CUDA out of memory. Tried to allocate 20 GB"
    assert best_trial(rows) == rows[1]


def test_of_equally_good_trials_the_one_nearest_to_its_reference_is_best():
    rows = [
        {"trial": 1, "state": "finished", "accuracy": 0.9, "kl": 0.5},
        {"trial": 2, "state": "finished", "accuracy": 0.9, "kl": 0.2},
        {"trial": 3, "state": "failed"},
    ]
    assert best_trial(rows)["trial"] == 2 and best_trial(rows[2:]) is None


def test_other_settings_are_another_sweep(tmp_path):
    sweep(sweep_arguments(tmp_path, trials=1))
    with pytest.raises(InputError, match=r"holds a run with other settings .*search_lora_r"):
        sweep(sweep_arguments(tmp_path, trials=1, search_lora_r="4"))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"trials": 0}, "trials has to be at least 1, got 0"),
        ({"search_beta": "0.5,0.1"}, "search_beta has to be one positive number, or .* got '0.5,0.1'"),
        ({"search_learning_rate": "fast"}, "search_learning_rate has to be .* got 'fast'"),
        ({"search_lora_r": "4,-8"}, "search_lora_r has to be ranks such as 4,8,16, got '4,-8'"),
        ({"search_loss_type": "sigmoid,x"}, "search_loss_type has to be of sigmoid, .* got 'x'"),
    ],
)
def test_searches_that_cannot_be(tmp_path, fields, complaint):
    with pytest.raises(InputError, match=complaint):
        sweep_arguments(tmp_path, **fields)


def test_what_is_tested_on_chooses_no_trial(tmp_path):
    """The rows of the table are of the pairs held out, and the trials' results of those to test on."""
    pairs = [{"prompt": f"Q{n}", "chosen": "no no no", "rejected": "yes"} for n in range(8)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    folder = sweep(sweep_arguments(tmp_path, trials=1, test_data=str(tmp_path / "test.jsonl")))
    (row,), results = read_trials(folder), json.loads((folder / "trial-001" / "results.json").read_text())
    assert results["split"] == "test" and results["pairs"] == 8 != results["validation"]["pairs"]
    assert row["loss"] == results["validation"]["loss"] != results["loss"]


def test_without_optuna_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'newllm\[sweep,dpo\]'"):
        sweep(sweep_arguments(tmp_path))


def test_no_best_setting_without_a_finished_trial(tmp_path):
    with pytest.raises(InputError, match="holds no finished trial"):
        sweep_settings(tmp_path)
    assert json.dumps(read_trials(tmp_path)) == "[]"


def test_a_second_sweep_on_one_folder_says_who_is_at_work(tmp_path):
    folder = sweep(sweep_arguments(tmp_path, trials=2))
    before = read_trials(folder)
    program = "import sys, pathlib; from newllm_lib.training.disk import in_use\n"
    program += "with in_use(pathlib.Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "mine\n"
    with pytest.raises(InputError, match=f"in use by process {other.pid}"):
        sweep(sweep_arguments(tmp_path, trials=3))
    other.communicate("")
    assert read_trials(folder) == before and len(read_trials(sweep(sweep_arguments(tmp_path, trials=3)))) == 3


@pytest.mark.parametrize("damage", [bytes(40), b"[1]\n", b'{"trial": 1, "sta', b"\xff\xfe"])
def test_a_damaged_table_is_one_sentence(tmp_path, damage):
    (tmp_path / "trials.jsonl").write_bytes(damage)
    with pytest.raises(InputError, match=r"trials\.jsonl, is damaged; choose another --output_dir"):
        stage.sweep_settings(tmp_path)
