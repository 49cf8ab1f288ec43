"""What `newllm status` says of a run, from its folder and its process, and what `newllm stop` does to it."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from run_folders import make_checkpoint, make_run

from newllm_lib.background import status as shown
from newllm_lib.background.owner import find_owner, is_alive, log_file, started_file
from newllm_lib.background.status import details, gpus, last_lines, one_line, report, run_status, runs_below
from newllm_lib.background.stop import signal_for, stop
from newllm_lib.errors import InputError
from newllm_lib.training.callbacks import Heartbeat
from newllm_lib.training.disk import OWNER_FILE, in_use, own_note, write_json


@pytest.fixture
def work():
    """Start a process that works on a folder, and has made `update` of 100 updates in ten seconds each."""
    processes = []

    def begin(folder, update=5, on_term=signal.SIG_DFL, finally_do=lambda: None):
        ready, write_end = os.pipe()
        if (process := os.fork()) == 0:
            signal.signal(signal.SIGTERM, on_term)
            with in_use(folder):
                if update is not None:
                    now = [time.time() - 10.0 * update]
                    heart, state = Heartbeat(folder, lambda: now[0]), SimpleNamespace(global_step=0, max_steps=100)
                    heart.on_train_begin(None, state, None)
                    now[0], state.global_step = time.time(), update
                    heart.on_step_end(None, state, None)
                try:
                    os.write(write_end, b"!")
                    while True:
                        signal.pause()
                except KeyboardInterrupt:
                    finally_do()
            os._exit(0)
        os.read(ready, 1)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        end(process)


def end(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def test_a_training_says_how_far_it_is_and_how_long_still(tmp_path, work):
    run = make_run(tmp_path / "run")
    process = work(run, update=20)
    make_checkpoint(run, 10)
    (run / "metrics.jsonl").write_text(
        '{"step": 10, "loss": 2.5}\n{"step": 10, "eval_loss": 3.0, "eval_margin": 0.5}\n'
    )
    status = run_status(run)
    assert (status["state"], status["process"]) == ("training", process)
    assert (status["update"], status["updates"], status["saved_update"]) == (20, 100, 10)
    assert status["seconds_left"] == pytest.approx(800, abs=20) and status["memory_bytes"] > 1e6
    assert "training · update 20 of 100 · loss 2.5000 · 13.3 minutes left · saved at update 10, just" in one_line(
        status
    )
    assert "held out   loss 3.0000, margin 0.500" in details(status)


def test_a_killed_one_is_stopped_and_keeps_what_was_saved(tmp_path, work):
    run = make_run(tmp_path / "run", steps=(10,))
    end(work(run, update=20))
    assert find_owner(run) is None
    status = run_status(run)
    assert (status["state"], status["update"], status["saved_update"]) == ("stopped", 10, 10)


def test_between_training_and_end_it_is_finishing(tmp_path, work):
    run = make_run(tmp_path / "run")
    work(run, update=100)
    assert run_status(run)["state"] == "finishing"


def test_a_part_that_is_being_worked_on_is_named(tmp_path, work):
    run = make_run(tmp_path / "run")
    work(make_run(run / "reference", steps=(4,)), update=5)
    status = run_status(run)
    assert (status["part"], status["update"], status["saved_update"]) == ("reference", 5, 4)
    assert runs_below(tmp_path) == [run]


def test_a_part_that_was_cut_off_is_where_the_run_stands(tmp_path):
    run = make_run(tmp_path / "run")
    os.utime(run / "metrics.jsonl", (1, 1))
    make_run(run / "reference", steps=(4,))
    status = run_status(run)
    assert (status["state"], status["part"], status["saved_update"]) == ("stopped", "reference", 4)


@pytest.mark.parametrize(("states", "state"), [(["finished", "running"], "training"), (["finished"] * 3, "finished")])
def test_a_sweep_counts_its_trials(tmp_path, work, states, state):
    folder = make_run(tmp_path / "sweep")
    write_json(folder / "settings.json", {"run": {"sweep": "dpo"}, "session": {"trials": 3}})
    rows = [json.dumps({"trial": number, "state": state}) for number, state in enumerate(states, start=1)]
    (folder / "trials.jsonl").write_text("\n".join(rows) + "\n")
    if state == "training":
        work(make_run(folder / "trial-002"), update=5)
    status = run_status(folder)
    assert status["state"] == state and f"{states.count('finished')} of 3 trials done" in one_line(status)


@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["stop"]])
def test_whoever_watches_loads_no_library(tmp_path, words):
    """They would take seconds, and hundreds of MB beside a training."""
    folder = make_run(tmp_path / "sweep", steps=(5,))
    write_json(folder / "settings.json", {"run": {"sweep": "dpo"}, "session": {"trials": 3}})
    (folder / "trials.jsonl").write_text('{"trial": 1, "state": "finished"}\n')
    asked = [words[0], str(folder), *words[1:]]
    code = f"import sys; from newllm_lib.cli import main; main({asked}); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = '"trials": {"done": 1, "asked": 3}' if "--json" in words else "1 of 3 trials done"
    assert told in result.stdout + result.stderr
    loaded = set(result.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "transformers", "datasets", "peft", "matplotlib", "numpy"} and "newllm_lib" in loaded


def test_a_later_process_with_its_number_is_not_the_owner():
    note = own_note()
    assert is_alive(note) and not is_alive({**note, "since": "2001-01-01 00:00:00"})
    for damaged in ({}, {"process": os.getpid()}, {**note, "process": "x"}, {**note, "since": 3}):
        assert not is_alive(damaged)


def test_before_it_has_a_folder_it_is_preparing_and_its_log_says_what(tmp_path):
    run = tmp_path / "run"
    write_json(started_file(run), own_note())
    log_file(run).write_text("The hub could not be reached.\nTokenising  10 %\rTokenising  20 %\r\n")
    assert runs_below(tmp_path) == [run]
    status = run_status(run)
    assert status["state"] == "preparing" and one_line(status).endswith(
        "preparing · nothing saved yet · Tokenising  20 %"
    )
    assert details(status).endswith("The hub could not be reached.\n    Tokenising  20 %")
    make_run(run, finished=True)
    assert run_status(run)["state"] == "finishing", "its model is being merged"


def test_of_a_long_log_only_the_end_is_read(tmp_path):
    (tmp_path / "run.log").write_bytes(b"\xff" * 5 + b"line\n" * 10_000 + b"the last\n")
    assert last_lines(tmp_path / "run.log") == ["line"] * 4 + ["the last"]
    assert last_lines(tmp_path / "none.log") == []


def test_a_run_of_another_machine_is_said_to_be_there_and_is_not_stopped(tmp_path):
    run = make_run(tmp_path / "run")
    began = time.time() - 7300
    heart = {"first_update": 0, "begun": began, "update": 3, "updates": 100, "told": began + 60}
    write_json(run / OWNER_FILE, {**own_note(), "machine": "elsewhere.example", **heart})
    assert "elsewhere on elsewhere.example · update 3 of 100 · loss 5.0000 · last heard of 2 hours ago" in one_line(
        run_status(run)
    )
    write_json(started_file(run), {**own_note(), "machine": "before.example"})
    with pytest.raises(InputError, match=r"elsewhere\.example, since .*; give this command on that machine"):
        list(stop(str(run)))


def test_what_was_started_on_another_machine_says_nothing_of_today(tmp_path):
    run = make_run(tmp_path / "run", steps=(4,))
    write_json(started_file(run), {**own_note(), "machine": "before.example"})
    assert run_status(run)["state"] == "stopped"
    make_run(run, finished=True)
    write_json(run / OWNER_FILE, {**own_note(), "machine": "before.example"})
    assert run_status(run)["state"] == "finished"


def test_the_gpu_is_what_nvidia_smi_says(tmp_path, monkeypatch, work):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla T4, 87, 4096, 15360'\necho 'Odd, [N/A], 1, 2'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    run = make_run(tmp_path / "run")
    work(run)
    status = run_status(run)
    assert one_line(status).endswith("GPU 87 %, 4.0 GB")
    assert "GPU        Tesla T4: 4.0 GB of 15.0 GB taken, in use 87 % of the time" in details(status)
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert gpus() == []


def test_runs_of_commands_and_of_notebooks_are_listed(tmp_path):
    plain, model = make_run(tmp_path / "plain", finished=True), make_run(tmp_path / "01" / "run-1" / "newllm")
    make_run(tmp_path / "plain" / "reference")
    assert runs_below(tmp_path) == [model, plain]
    lines = "".join(report(str(tmp_path))).splitlines()
    assert len(lines) == 2 and "finished" in lines[1]
    assert [it["state"] for it in json.loads("".join(report(str(tmp_path), as_json=True)))] == ["stopped", "finished"]
    assert json.loads("".join(report(str(plain), as_json=True)))["state"] == "finished"


def test_a_run_that_is_not_there(tmp_path):
    for what in (report, stop):
        with pytest.raises(InputError, match="is not there: neither a run of ours nor one that was started"):
            list(what(str(tmp_path / "nowhere")))


@pytest.mark.parametrize("on_terminal", [True, False])
def test_it_is_followed_until_it_ends(tmp_path, monkeypatch, work, on_terminal):
    run = make_run(tmp_path / "run")
    process, ticks = work(run), []

    def sleep(seconds):
        ticks.append(seconds)
        if len(ticks) == 3:
            end(process)

    monkeypatch.setattr(shown.time, "sleep", sleep)
    *lines, last = report(str(run), follow=True, on_terminal=on_terminal)
    assert len(ticks) == 3 and last.splitlines()[0].endswith("run: stopped · loss 5.0000 · nothing saved yet")
    assert all("training · update 5 of 100" in line for line in lines[:3])
    assert [line[0] for line in lines[:3]] == ["\r"] * 3 if on_terminal else all(line[-1] == "\n" for line in lines)


def test_who_stops_following_leaves_the_run_alone(tmp_path, monkeypatch, work):
    run = make_run(tmp_path / "run")
    work(run)

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(shown.time, "sleep", interrupted)
    *_, goes_on, last = report(str(run), follow=True)
    assert "The run goes on" in goes_on and "training" in last and find_owner(run) is not None


def test_stop_waits_until_it_is_saved(tmp_path, work):
    run = make_run(tmp_path / "run")

    def save():
        time.sleep(0.5)
        make_checkpoint(run, 6)

    process = work(run, on_term=signal.default_int_handler, finally_do=save)
    stopping, ended = stop(str(run))
    assert f"Stopping process {process} of" in stopping
    assert "stopped · update 6 of 300 · loss 5.0000 · saved at update 6, just now" in ended
    with pytest.raises(InputError, match="does not run, so that there is nothing to stop"):
        list(stop(str(run)))


def test_a_process_that_does_not_end_is_named(tmp_path, work):
    run = make_run(tmp_path / "run")
    process = work(run, on_term=signal.SIG_IGN)
    with pytest.raises(InputError, match=f"has not ended within 1 seconds; kill -9 {process} ends it"):
        list(stop(str(run), longest=1.0))


@pytest.mark.parametrize(
    ("words", "note", "expected"),
    [
        (["python", "-m", "ipykernel_launcher"], {"update": 3, "updates": 9}, signal.SIGTERM),
        (["python", "-m", "ipykernel_launcher"], {"update": 9, "updates": 9}, signal.SIGINT),
        (["python", "-m", "ipykernel_launcher"], {}, signal.SIGINT),
        (["python", "-m", "newllm_lib", "sft"], {}, signal.SIGTERM),
    ],
)
def test_a_notebook_outlives_its_stopped_run(words, note, expected):
    assert signal_for(SimpleNamespace(cmdline=lambda: words), note) is expected
