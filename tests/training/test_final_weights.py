"""The weights after the last update are kept beside the best ones, and can be asked for."""

import json
import shutil

import pytest
from safetensors.torch import load_file
from sample_text import make_text

from newllm_lib.cli import main
from newllm_lib.errors import InputError
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.training.checkpoint import FINAL_FOLDER, run_of, weights_folder
from newllm_lib.training.trainer import LanguageModelTrainer


def train(folder, best: int, **fields):
    """A run of six updates whose best weights are those of update `best`."""
    (folder / "text.txt").write_text(make_text(120))
    real = LanguageModelTrainer.scores

    def scores(self, held_out):
        return real(self, held_out) | {"loss": 1.0 if self.state.global_step == best else 2.0}

    small = {"tokenizer": "byte", "max_length": 32, "num_parameters": 80_000, "max_steps": 6, "logging_steps": 3}
    small |= {"per_device_train_batch_size": 4, "eval_steps": 2, "save_steps": 2, "auto_precision": False}
    args = PretrainArguments(data=str(folder / "text.txt"), output_dir=str(folder / "run"), **small, **fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModelTrainer, "scores", scores)
        return pretrain(args)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("final"), best=4)


def printed(capsys, *argv: str) -> str:
    assert main([*argv]) == 0
    return capsys.readouterr().out


def test_commands_take_either(run, capsys):
    best, final = (
        json.loads(printed(capsys, "evaluate", str(run), "--json", "--which", it)) for it in ("best", "final")
    )
    assert best["loss"] != final["loss"] and best["text"] == final["text"]
    assert weights_folder(run, "final") == run / "final-weights" and weights_folder(run) == run
    rows = json.loads(printed(capsys, "compare", str(run), str(run / "final-weights"), "--json", "--prompt", "The"))
    assert [row["name"] for row in rows] == ["run", "run, last update"]
    assert rows[1]["loss"] == pytest.approx(final["loss"])
    said = [printed(capsys, "generate", str(run), "--prompt", "The", "--which", it) for it in ("best", "final")]
    assert all(text.startswith("The") for text in said)


def test_a_run_that_only_has_to_end_keeps_them_too(run, tmp_path):
    again = shutil.copytree(run, tmp_path / "run")
    (again / "results.json").unlink()
    shutil.rmtree(again / "final-weights")
    (tmp_path / "text.txt").write_text((run.parent / "text.txt").read_text())
    train(tmp_path, best=4)
    first, second = (load_file(it / "final-weights" / "model.safetensors") for it in (run, again))
    assert all((first[name] == second[name]).all() for name in first)
    assert json.loads((again / "results.json").read_text())["best_update"] == 4


def test_the_best_may_be_the_last(tmp_path):
    folder = train(tmp_path, best=6)
    assert not (folder / "final-weights").exists() and weights_folder(folder, "final") == folder


def test_a_run_of_the_folders_name_stays_what_it_is(tmp_path):
    """In a folder of runs one may be called so; the run above it must not take its place."""
    above = train(tmp_path, best=6)
    shutil.copytree(above, tmp_path / "copy")
    named = (tmp_path / "copy").rename(above / FINAL_FOLDER)
    before = (named / "model.safetensors").read_bytes()
    (above / "results.json").unlink()
    train(tmp_path, best=6)
    assert (named / "model.safetensors").read_bytes() == before and run_of(named) == named


def test_what_was_not_kept_is_said(tmp_path, capsys):
    folder = train(tmp_path, best=2, save_final=False)
    assert main(["generate", str(folder), "--prompt", "The", "--which", "final"]) == 2
    assert "has kept its best weights alone; take --which best" in capsys.readouterr().err
    with pytest.raises(InputError, match="which has to be best or final, got 'worst'"):
        weights_folder(folder, "worst")
