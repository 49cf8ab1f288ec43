"""Saves by the clock: on time, and without a trace in what is learned. A request to stop is never
lost."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from run_files import StopAt, log_without_clock
from safetensors.torch import load_file
from transformers import TrainerCallback

from newllm_lib.errors import InputError
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.training import callbacks as report
from newllm_lib.training import curves
from newllm_lib.training.callbacks import EvaluateAtEnd, Heartbeat, SaveByMinutes, SaveOnInterrupt, TrainingInterrupted
from newllm_lib.training.checkpoint import numbered_checkpoints, read_settings
from newllm_lib.training.disk import OWNER_FILE, read_json


@pytest.mark.parametrize(("strategy", "step", "expected"), [("steps", 9, True), ("steps", 8, False), ("no", 9, False)])
def test_the_last_update_is_evaluated(strategy, step, expected):
    control = SimpleNamespace(should_evaluate=False)
    args, state = SimpleNamespace(eval_strategy=strategy), SimpleNamespace(global_step=step, max_steps=9)
    assert EvaluateAtEnd().on_step_end(args, state, control).should_evaluate is expected


def test_a_save_is_asked_for_when_it_is_due(tmp_path):
    now = [0.0]
    callback = SaveByMinutes(10, clock=lambda: now[0])
    args, asked = SimpleNamespace(world_size=1, output_dir=str(tmp_path)), []
    callback.on_train_begin(args, None, None)
    for step in range(1, 101):
        now[0] += 30
        control = SimpleNamespace(should_save=step == 50)
        callback.on_step_end(args, None, control)
        if control.should_save:
            asked.append(step)
            (tmp_path / f"checkpoint-{step}").mkdir()
            callback.on_save(args, SimpleNamespace(global_step=step), control)
    assert asked == [20, 40, 50, 70, 90], "20 updates of half a minute; 50 was saved for itself"


def test_after_a_save_that_failed_the_next_try_is_a_minute_later(tmp_path):
    now = [0.0]
    callback = SaveByMinutes(10, clock=lambda: now[0])
    args, state = SimpleNamespace(world_size=1, output_dir=str(tmp_path)), SimpleNamespace(global_step=5)
    callback.on_train_begin(args, None, None)
    callback.on_save(args, state, None)
    control = SimpleNamespace(should_save=False)
    now[0] = 59.0
    assert not callback.on_step_end(args, state, control).should_save
    now[0] = 60.0
    assert callback.on_step_end(args, state, control).should_save


def test_processes_agree(monkeypatch):
    asked = []
    monkeypatch.setattr(report, "any_process", lambda flag, args: asked.append(flag) or True)
    callback = SaveByMinutes(10, clock=lambda: 0.0)
    callback.on_train_begin(None, None, None)
    args = SimpleNamespace(world_size=2, device="cpu")
    assert callback.on_step_end(args, None, SimpleNamespace(should_save=False)).should_save
    assert asked == [False], "this one's clock is behind"


@pytest.fixture
def of_two(monkeypatch):
    """A callback on one of two processes, its own signals, and what happens while they agree."""
    monkeypatch.setattr(signal, "signal", lambda number, handler: handler)
    meanwhile = []

    def agree(flag, args):
        for happens in meanwhile:
            happens(signal.SIGINT, None)
        return flag

    monkeypatch.setattr(report, "any_process", agree)
    callback = SaveOnInterrupt()
    args = SimpleNamespace(world_size=2, device="cpu")
    callback.on_train_begin(args, None, None)
    return callback, meanwhile, lambda: callback.on_step_end(args, None, SimpleNamespace(should_training_stop=False))


def test_a_signal_that_comes_while_the_processes_agree_is_kept(of_two):
    callback, meanwhile, end_step = of_two
    meanwhile.append(callback._ask)
    assert not end_step().should_training_stop, "the other process has not heard of it"
    meanwhile.clear()
    assert end_step().should_training_stop and callback.interrupted


def test_the_launcher_passes_on_what_the_terminal_has_sent_to_everyone(of_two):
    callback, _, end_step = of_two
    callback._ask(signal.SIGINT, None)
    callback._ask(signal.SIGTERM, None)
    assert end_step().should_training_stop


def test_whoever_asks_twice_with_sigterm_gets_his_checkpoint(of_two):
    callback, _, end_step = of_two
    callback.is_alone = True
    callback._ask(signal.SIGTERM, None)
    callback._ask(signal.SIGTERM, None)
    assert end_step().should_training_stop
    with pytest.raises(KeyboardInterrupt):
        callback._ask(signal.SIGINT, None)


class SendSignal(TrainerCallback):
    def __init__(self, number):
        self.number = number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), self.number)


class SendSignalAfterAll(SendSignal):
    def on_step_begin(self, args, state, control, **kwargs):
        pass

    def on_train_end(self, args, state, control, **kwargs):
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves(text_file, tmp_path, number):
    before = signal.signal(number, signal.default_int_handler)  # the tests may run under nohup
    try:
        with pytest.raises(TrainingInterrupted, match="Stopped at update 4 of 12"):
            pretrain(arguments(text_file, tmp_path / "run"), callbacks=(SendSignal(number),))
    finally:
        signal.signal(number, before)
    assert [step for step, _ in numbered_checkpoints(tmp_path / "run")] == [4]


@pytest.mark.parametrize("when", [SendSignal, SendSignalAfterAll])
def test_a_stop_at_the_last_update_is_not_lost_on_what_would_come_next(text_file, tmp_path, when):
    """A sweep, a comparison or `newllm start` go on with another training, and nobody asks twice."""
    whole, run = pretrain(arguments(text_file, tmp_path / "whole", max_steps=4)), tmp_path / "run"
    with pytest.raises(TrainingInterrupted, match=r"after the last update: the run in .* is finished"):
        pretrain(arguments(text_file, run, max_steps=4), callbacks=(when(signal.SIGINT),))
    assert_same(whole, run)


def test_a_run_under_nohup_goes_on(text_file, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        folder = pretrain(arguments(text_file, tmp_path / "run", max_steps=5), callbacks=(SendSignal(signal.SIGHUP),))
        assert (folder / "results.json").exists() and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_note_of_the_owner_says_how_far_it_is(text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "HEARTBEAT_SECONDS", 0.0)
    notes = []

    class Read(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            notes.append(read_json(tmp_path / "run" / OWNER_FILE))

    pretrain(arguments(text_file, tmp_path / "run"), callbacks=(Read(),))
    assert [(note["update"], note["updates"]) for note in notes] == [(update, 12) for update in range(1, 13)]
    assert {note["process"] for note in notes} == {os.getpid()} and not (tmp_path / "run" / OWNER_FILE).exists()


def test_it_is_told_every_few_seconds_whatever_the_clock_and_the_disk_do(tmp_path, monkeypatch):
    now, told, state = [100.0], [], SimpleNamespace(global_step=0, max_steps=9)
    (tmp_path / OWNER_FILE).write_text('{"process": 1}')
    heart = Heartbeat(tmp_path, clock=lambda: now[0])

    def write(path, content):
        told.append(content["told"])
        raise OSError("the disk is full")

    monkeypatch.setattr(report, "write_json", write)
    heart.on_train_begin(None, state, None)
    for now[0] in (101.0, 104.0, 106.0, 108.0, 50.0, 51.0):
        heart.on_step_end(None, state, None)
    assert told == [100.0, 106.0, 50.0]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(curves, "save_curves", lambda histories, path: path.write_bytes(b"png"))


def arguments(text_file, folder, **fields) -> PretrainArguments:
    small = {
        "tokenizer": "byte", "max_length": 32, "num_parameters": 80_000, "max_steps": 12, "logging_steps": 2,
        "per_device_train_batch_size": 4, "eval_steps": 6, "save_steps": 6, "save_total_limit": None,
        "max_eval_tokens": 500,
    }  # fmt: skip
    return PretrainArguments(data=str(text_file), output_dir=str(folder), **{**small, **fields})


def test_saving_by_the_clock_changes_nothing_that_is_learned(text_file, tmp_path):
    always, never = 1e-9, 0
    timed = pretrain(arguments(text_file, tmp_path / "timed", save_minutes=always))
    plain = pretrain(arguments(text_file, tmp_path / "plain", save_minutes=never))
    assert [step for step, _ in numbered_checkpoints(timed)] == list(range(1, 13))
    assert [step for step, _ in numbered_checkpoints(plain)] == [6, 12]
    assert_same(timed, plain)


def test_a_run_cut_off_after_a_timed_save_is_as_if_it_had_not_been(text_file, tmp_path, monkeypatch):
    unbroken = pretrain(arguments(text_file, tmp_path / "unbroken", save_minutes=0))
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt) as stop:  # at once, without a last save: what a vanished machine leaves
        pretrain(arguments(text_file, broken, save_minutes=1e-9), callbacks=(StopAt(9), StopAt(9)))
    assert not isinstance(stop.value, TrainingInterrupted)
    assert numbered_checkpoints(broken)[-1][0] == 9, "between two lines of the log"
    pretrain(arguments(text_file, broken, save_minutes=10))
    assert_same(unbroken, broken)


def test_it_is_a_setting_of_the_session(text_file, tmp_path):
    args = arguments(text_file, tmp_path / "run", save_minutes=3.0)
    assert args.session_settings()["save_minutes"] == 3.0 and "save_minutes" not in args.run_settings()
    folder = pretrain(arguments(text_file, tmp_path / "run", save_minutes=3.0, max_steps=2))
    assert read_settings(folder)["session"]["save_minutes"] == 3.0
    with pytest.raises(InputError, match="save_minutes has to be at least 0, got -1"):
        arguments(text_file, tmp_path, save_minutes=-1)


def assert_same(one, other):
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert log_without_clock(one) == log_without_clock(other)
    assert (one / "results.json").read_text() == (other / "results.json").read_text()
