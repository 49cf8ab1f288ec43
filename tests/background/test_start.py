"""What `newllm start` puts together: what a stage starts from, one process for all of it, and no second one."""

import json
import os
import subprocess
from types import SimpleNamespace

import pytest
from run_folders import make_run

from newllm_lib.adapters import base_model
from newllm_lib.adapters.arguments import QloraLwfArguments
from newllm_lib.background import start as starting
from newllm_lib.background.owner import is_alive, log_file, started_file
from newllm_lib.background.start import bases
from newllm_lib.cli import main
from newllm_lib.preferences.arguments import DpoArguments
from newllm_lib.preferences.sweep import SweepArguments
from newllm_lib.stages.sft import SftArguments
from newllm_lib.training.disk import own_note, write_json


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sft_arguments(**fields):
    return SftArguments(dataset="dailydialog", output_dir="runs/talk", **fields)


def words(commands: list[list[str]]) -> list[str]:
    return [" ".join(word for word in command if word != "--use_cpu") for command in commands]


PRETRAIN = "pretrain --model_type {0} --tokenizer {1} --preset smoke --data_source offline --output_dir runs/{0}"


def test_conversations_start_from_a_model_that_is_trained_first():
    commands, found = bases("sft", sft_arguments(preset="smoke", data_source="offline"))
    assert words(commands) == [PRETRAIN.format("newllm", "bpe")] and found == ["--model", "runs/newllm"]
    commands, found = bases(
        "sft", sft_arguments(preset="smoke", data_source="offline", model_type="lstm", tokenizer="byte")
    )
    assert words(commands) == [PRETRAIN.format("lstm", "byte")] and found == ["--model", "runs/lstm"]
    commands, _ = bases("sft", sft_arguments(preset="published-ultrachat"))
    assert "--preset" not in commands[0] and "--data_source" not in commands[0]


def test_what_is_trained_is_taken(here):
    make_run(here / "runs" / "newllm", finished=True)
    assert bases("sft", sft_arguments()) == ([], ["--model", "runs/newllm"])


@pytest.mark.parametrize("fields", [{"model": "runs/other"}, {"num_parameters": 100_000}])
def test_who_names_or_describes_a_model_gets_that(fields):
    assert bases("sft", sft_arguments(**fields)) == ([], [])


@pytest.mark.parametrize(("model", "found"), [("runs/old", ["--model", "runs/old"]), (None, [])])
def test_a_run_goes_on_from_what_it_has_started_from(here, model, found):
    make_run(here / "runs" / "talk")
    write_json(here / "runs" / "talk" / "settings.json", {"run": {"stage": "sft"}, "session": {"model": model}})
    assert bases("sft", sft_arguments()) == ([], found)


@pytest.mark.parametrize(("stage", "kind"), [("dpo", DpoArguments), ("sweep", SweepArguments)])
def test_preferences_are_taught_to_dialogpt_or_to_a_chat_model_that_is_trained_first(here, monkeypatch, stage, kind):
    args = kind(output_dir="runs/preferred", preset="smoke")
    commands, found = bases(stage, args)  # the hub is not asked, for HF_HUB_OFFLINE is set
    first, then = words(commands)
    assert first == PRETRAIN.format("tiny-gpt2", "bpe").replace("--data_source offline ", "")
    dialogue = "runs/tiny-gpt2-dialogue"
    assert then == f"sft --preset smoke --dataset dailydialog --model runs/tiny-gpt2 --output_dir {dialogue}"
    assert found == ["--model", dialogue]
    make_run(here / dialogue, finished=True)
    assert bases(stage, args) == ([], found)
    monkeypatch.setattr(base_model, "find_base_model", lambda name: name)
    assert bases(stage, args) == ([], [])


def test_other_stages_find_theirs_themselves():
    assert bases("qlora-lwf", QloraLwfArguments(output_dir="runs/gemma")) == ([], [])


@pytest.fixture
def popen(monkeypatch):
    calls = []
    monkeypatch.setattr(
        starting.subprocess,
        "Popen",
        lambda command, **how: calls.append((command, how)) or SimpleNamespace(pid=os.getpid()),
    )
    return calls


def test_one_process_trains_it_all_and_is_noted(here, popen, capsys):
    argv = ["start", "sft", "--preset", "smoke", "--dataset", "dailydialog", "--output_dir", "runs/talk"]
    assert main(argv) == 0
    ((command, how),) = popen
    first, then = json.loads(command[-1])
    assert first[0] == "pretrain" and then == [*argv[1:], "--model", "runs/newllm"]
    assert how["start_new_session"] and how["stdin"] is subprocess.DEVNULL
    run = here / "runs" / "talk"
    assert log_file(run).read_text().endswith(f" newllm {' '.join(argv[1:])}\n")
    assert is_alive(json.loads(started_file(run).read_text()))
    said = capsys.readouterr().out
    for part in ("First it trains what sft starts from: newllm pretrain", "runs/talk.log", "status runs/talk --follow"):
        assert part in said


@pytest.mark.parametrize("busy", ["talk", "newllm"])
def test_a_run_that_is_being_worked_on_is_not_started_again(here, popen, capsys, busy):
    write_json(started_file(make_run(here / "runs" / busy)), own_note())
    make_run(here / "runs" / "newllm", finished=False)
    write_json(here / "runs" / "talk.json", {})
    argv = ["start", "sft", "--preset", "smoke", "--dataset", "dailydialog", "--output_dir", "runs/talk"]
    assert main(argv) == 2 and not popen
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert f"output_dir 'runs/{busy}' is in use by process {os.getpid()}, since" in complaint
    assert f"newllm stop runs/{busy} ends it, saved" in complaint


def test_what_another_machine_has_left_is_no_owner(here, popen):
    write_json(started_file(make_run(here / "runs" / "talk")), {**own_note(), "machine": "gone.example"})
    assert main(["start", "sft", "--dataset", "dailydialog", "--output_dir", "runs/talk"]) == 0 and popen


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "the following arguments are required: stage"),
        (["chat"], "invalid choice: 'chat'"),
        (["sft", "--learning_rat", "1"], "did you mean '--learning_rate'?"),
    ],
)
def test_bad_words_are_refused_before_anything_is_started(popen, capsys, argv, expected):
    assert main(["start", *argv]) == 2 and not popen
    assert expected in capsys.readouterr().err
