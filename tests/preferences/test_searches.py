"""Sweeps over stages 2 to 5, by a grid, by chance or by optuna: each trial a run of its stage, all in one table."""

import json

import pytest
from chats import write_conversations
from lwf_runs import lwf_arguments
from run_files import StopAt

from newllm_lib.adapters.arguments import QloraLwfArguments
from newllm_lib.chat import Chat
from newllm_lib.cli import main
from newllm_lib.errors import InputError
from newllm_lib.preferences import sweep as stage
from newllm_lib.preferences.arguments import DpoArguments, values_for
from newllm_lib.preferences.searches import QloraLwfSweepArguments, SftSweepArguments
from newllm_lib.preferences.sweep import SweepArguments, best_trial, suggest, sweep, trial_folder
from newllm_lib.preferences.trials import read_trials
from newllm_lib.training.callbacks import TrainingInterrupted


def sft_fields(folder, **fields) -> dict:
    small = {
        "data": str(write_conversations(folder / "data.jsonl", 60)), "num_parameters": 30_000, "vocab_size": 300,
        "max_length": 64, "max_steps": 3, "eval_steps": 3, "save_steps": 3, "per_device_train_batch_size": 4,
        "max_eval_tokens": 300, "output_dir": str(folder / "sweep"), "search_learning_rate": "1e-3,1e-2",
        "search_dropout": "0,0.2", "search_weight_decay": "0.1",
    }  # fmt: skip
    return {**small, **fields}


def lwf_sweep_arguments(folder, **fields) -> QloraLwfSweepArguments:
    args = lwf_arguments(folder, "sweep", max_steps=4)
    few = {"search_lora_r": "2,4", "search_lora_alpha": "4,8", "trials": 3}
    return QloraLwfSweepArguments(**{**values_for(type(args), args), **few, **fields})


def test_a_grid_over_sft_tries_every_combination_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stage, "find_spec", lambda name: None)  # it needs no optuna
    fields = sft_fields(tmp_path, grid_points=2, trials=50)
    flags = [part for name, value in fields.items() for part in (f"--{name}", str(value))]
    with caplog.at_level("INFO", logger="newllm_lib"):
        assert main(["sweep", "--stage", "sft", "--search", "grid", *flags]) == 0
    rows = read_trials(tmp_path / "sweep")
    tried = [(row["learning_rate"], row["dropout"], row["weight_decay"]) for row in rows]
    assert sorted(tried) == [(0.001, 0.0, 0.1), (0.001, 0.2, 0.1), (0.01, 0.0, 0.1), (0.01, 0.2, 0.1)]
    assert tried != sorted(tried), "an order that is drawn looks everywhere a little"
    for row in rows:
        run = json.loads((trial_folder(tmp_path / "sweep", row["trial"]) / "settings.json").read_text())["run"]
        assert (run["stage"], run["learning_rate"], run["dropout"]) == ("sft", row["learning_rate"], row["dropout"])
    best = best_trial(rows)
    assert best["loss"] == best["objective"] == min(row["loss"] for row in rows)
    said = caplog.messages[-1]
    flags = f"--learning_rate {best['learning_rate']:g} --dropout {best['dropout']:g} --weight_decay 0.1"
    assert f"Its settings: newllm sft {flags}" in said
    order = [int(line.split()[0]) for line in said.splitlines() if line.split()[:1] and line.split()[0].isdecimal()]
    assert order == [row["trial"] for row in sorted(rows, key=lambda row: row["loss"])], "the best is the table's first"
    settings = json.loads((tmp_path / "sweep" / "best.json").read_text())["settings"]
    assert settings == {name: best[name] for name in ("learning_rate", "dropout", "weight_decay")}
    chat = Chat(trial_folder(tmp_path / "sweep", best["trial"]), max_new_tokens=3, seed=0)
    assert isinstance("".join(chat.reply("Hello")), str)


def test_a_sweep_over_stage_5_weighs_what_is_forgotten(tmp_path):
    pytest.importorskip("optuna")
    with pytest.raises(TrainingInterrupted, match="Stopped in trial 1"):
        sweep(lwf_sweep_arguments(tmp_path, search="random"), (StopAt(1),))
    folder = sweep(lwf_sweep_arguments(tmp_path, search="random"))
    rows = read_trials(folder)
    assert len(rows) == 3 and {row["state"] for row in rows} == {"finished"}
    for row in rows:
        assert row["objective"] == pytest.approx(row["bits_per_byte"] + row["general_bits_per_byte"])
        config = json.loads((trial_folder(folder, row["trial"]) / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (row["lora_r"], row["lora_alpha"])
    assert best_trial(rows)["objective"] == min(row["objective"] for row in rows)
    assert not list(folder.rglob("checkpoint-*"))


def test_chance_learns_nothing_from_the_trials_and_tpe_does():
    pytest.importorskip("optuna")
    searched = {"beta": 0.1, "learning_rate": 1e-3, "lora_r": 8, "loss_type": "sigmoid"}

    def after(search: str, accuracies: list[float]) -> dict:
        args = SweepArguments(output_dir="unused", search=search)
        results = [{"accuracy": accuracy, "kl": 0.1} for accuracy in accuracies]
        betas = [0.02 + 0.02 * number for number in range(len(results))]
        rows = [{"state": "finished", **searched, "beta": b, **r} for b, r in zip(betas, results, strict=True)]
        return suggest(args, rows)

    rising = [number / 20 for number in range(20)]
    assert after("random", rising) == after("random", rising[::-1])
    assert after("tpe", rising) != after("tpe", rising[::-1])


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"search_dropout": "some"}, "search_dropout has to be numbers such as 0,0.1,0.2, got 'some'"),
        ({"search_dropout": "0,1.5"}, "dropout has to be less than 1, got 1.5"),
        ({"search_learning_rate": "0"}, "search_learning_rate has to be one positive number"),
        ({"trials": 0}, "trials has to be at least 1"),
        ({"grid_points": 10**9}, r"grid_points has to lie in \[2, 100\]"),
    ],
)
def test_searches_that_cannot_be_are_refused_before_a_trial(tmp_path, fields, complaint):
    with pytest.raises(InputError, match=complaint):
        SftSweepArguments(**sft_fields(tmp_path, **fields))


def test_a_rank_that_grows_is_not_searched(tmp_path):
    with pytest.raises(InputError, match="rank_schedule decides lora_r"):
        lwf_sweep_arguments(tmp_path, rank_schedule="2,4")
    with pytest.raises(InputError, match=r"lora_r has to lie in \[1, 1024\], got 2000"):
        lwf_sweep_arguments(tmp_path, search_lora_r="4,2000")


def test_an_unknown_stage_is_told(capsys):
    assert main(["sweep", "--stage", "pretrain"]) == 2
    assert "argument --stage: invalid choice: 'pretrain'" in capsys.readouterr().err


@pytest.mark.parametrize("stage", [DpoArguments, QloraLwfArguments, SweepArguments, QloraLwfSweepArguments])
def test_adapters_are_not_decayed_unless_somebody_says_so(stage):
    """Of two classes that a stage's settings come from, the later one's default wins."""
    assert stage.__dataclass_fields__["weight_decay"].default == 0.0
