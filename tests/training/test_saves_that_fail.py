"""The disk fills up, vanishes or turns read-only while a run trains: it goes on in memory, says so, and saves when it
can; what was saved, and what is learned, is as if nothing had happened."""

import logging
import resource
import shutil

import pytest
import torch
from run_files import StopAt, log_without_clock
from safetensors.torch import load_file
from test_killed_trainings import assert_same_end
from transformers import TrainerCallback

from newllm_lib.errors import InputError
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.training import curves
from newllm_lib.training.callbacks import TrainingInterrupted
from newllm_lib.training.checkpoint import newest_checkpoint, numbered_checkpoints, read_results


def arguments(text, folder, **fields) -> PretrainArguments:
    small = {
        "tokenizer": "byte", "model_type": "tiny-gpt2", "num_parameters": 60_000, "max_length": 32, "max_steps": 12,
        "per_device_train_batch_size": 4, "eval_steps": 2, "save_steps": 2, "save_minutes": 0, "logging_steps": 1,
        "max_eval_tokens": 200, "auto_precision": False,
    }  # fmt: skip
    return PretrainArguments(data=str(text), output_dir=str(folder), **{**small, **fields})


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(curves, "save_curves", lambda histories, path: path.write_bytes(b"png"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    from sample_text import make_text

    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(make_text(80), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "save_curves", lambda histories, path: path.write_bytes(b"png"))
        return pretrain(arguments(text, tmp_path_factory.mktemp("runs") / "unbroken"))


class Trouble(TrainerCallback):
    """Begins before one update and ends before another; None: never."""

    def __init__(self, begin, end, first=4, last=8):
        self.calls = {first: begin, last: end}

    def on_step_begin(self, args, state, control, **kwargs):
        self.calls.pop(state.global_step, lambda: None)()


@pytest.fixture
def file_sizes():
    """Sets how many bytes the system lets a file have: beyond it a write fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if most is None else most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# So much fits: not the tokenizer; not the weights; the weights, but not what torch.save writes of the optimizer.
@pytest.mark.parametrize("most", [1_000, 100_000, 400_000])
def test_a_full_disk_costs_the_checkpoints_that_do_not_fit(text, unbroken, tmp_path, caplog, file_sizes, most):
    folder = tmp_path / "run"
    during = []
    trouble = Trouble(lambda: file_sizes(most), lambda: (file_sizes(None), during.extend(numbered_checkpoints(folder))))
    pretrain(arguments(text, folder), callbacks=(trouble,))
    assert [step for step, _ in during] == [2, 4], "what was saved before is still there, and no half of another"
    assert caplog.text.count("could not be saved (") == 2 and "What is safe: update 4." in caplog.text
    assert [step for step, _ in numbered_checkpoints(folder)] == [4, 10, 12]
    assert_same_end(folder, unbroken)


def test_a_run_that_is_killed_while_the_disk_is_full_goes_on_from_what_was_saved(text, unbroken, tmp_path, file_sizes):
    trouble = Trouble(lambda: file_sizes(100_000), lambda: None)
    with pytest.raises(KeyboardInterrupt):
        pretrain(arguments(text, tmp_path / "run"), callbacks=(trouble, StopAt(7), StopAt(7)))
    file_sizes(None)
    assert newest_checkpoint(tmp_path / "run").name == "checkpoint-4"
    assert_same_end(pretrain(arguments(text, tmp_path / "run")), unbroken)


@pytest.mark.parametrize("in_its_place", ["nothing", "a file"])
def test_a_folder_that_vanishes_is_written_again_when_it_can_be(text, unbroken, tmp_path, caplog, in_its_place):
    folder = tmp_path / "run"

    def vanish():
        shutil.rmtree(folder)
        if in_its_place == "a file":  # so that nothing can be written there
            folder.write_text("")

    trouble = Trouble(vanish, lambda: folder.unlink() if in_its_place == "a file" else None)
    with caplog.at_level(logging.WARNING):
        pretrain(arguments(text, folder), callbacks=(trouble,))
    assert ("Not a directory" in caplog.text and "cannot be written" in caplog.text) == (in_its_place == "a file")
    assert_same_end(folder, unbroken)
    folder_again = pretrain(arguments(text, folder))
    assert read_results(folder_again) == read_results(unbroken)


def test_a_stop_while_nothing_can_be_saved_says_what_is_safe(text, unbroken, tmp_path, file_sizes):
    trouble = Trouble(lambda: file_sizes(100_000), lambda: None)
    with pytest.raises(TrainingInterrupted, match=r"update 8 of 12, which could not be saved.*from update 4\."):
        pretrain(arguments(text, tmp_path / "run"), callbacks=(trouble, StopAt(7)))
    file_sizes(None)
    assert_same_end(pretrain(arguments(text, tmp_path / "run")), unbroken)


def test_a_result_that_cannot_be_written_is_a_sentence_and_the_same_command_writes_it(
    text, unbroken, tmp_path, file_sizes
):
    trouble = Trouble(lambda: file_sizes(100_000), lambda: None, first=11)
    with pytest.raises(InputError, match=r"the result of the run could not be written to .*the same command"):
        pretrain(arguments(text, tmp_path / "run"), callbacks=(trouble,))
    file_sizes(None)
    assert read_results(tmp_path / "run") is None
    assert_same_end(pretrain(arguments(text, tmp_path / "run")), unbroken)


def test_the_best_of_what_was_saved_becomes_the_result(text, tmp_path, file_sizes, monkeypatch):
    """The best evaluation is of a checkpoint that could not be saved: it is not what is loaded at the end."""
    losses = iter([3.0, 2.0, 1.0, 2.5, 2.6, 2.7, 2.8])
    scored = PretrainedScores(losses)
    monkeypatch.setattr("newllm_lib.training.trainer.LanguageModelTrainer.scores", scored)
    trouble = Trouble(lambda: file_sizes(100_000), lambda: file_sizes(None), first=5, last=6)
    folder = pretrain(arguments(text, tmp_path / "run"), callbacks=(trouble,))
    assert [step for step, _ in numbered_checkpoints(folder)] == [4, 10, 12]
    weights, best = load_file(folder / "model.safetensors"), load_file(folder / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in weights.items())


class PretrainedScores:
    def __init__(self, losses):
        self.losses = losses

    def __get__(self, trainer, kind):
        return lambda documents: {"loss": next(self.losses), "perplexity": 1.0, "token_accuracy": 0.5}


def test_another_fault_in_a_save_is_no_matter_of_the_disk(text, tmp_path, monkeypatch):
    def fault(*args):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("newllm_lib.training.trainer.LanguageModelTrainer.before_seal", fault)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        pretrain(arguments(text, tmp_path / "run"))


def test_the_log_is_whole_after_lines_that_could_not_be_written(text, unbroken, tmp_path, file_sizes):
    trouble = Trouble(lambda: file_sizes(200), lambda: file_sizes(None))
    folder = pretrain(arguments(text, tmp_path / "run"), callbacks=(trouble,))
    assert log_without_clock(folder) == log_without_clock(unbroken)
