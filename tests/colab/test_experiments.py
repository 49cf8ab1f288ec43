"""Notebook 7: one table that is updated in place, nothing twice, and the best settings where they are used."""

import dataclasses
import json
from functools import partial
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from panel_page import plain
from preference_runs import make_pairs, tiny_chat_model, write_pairs
from run_files import StopAt
from run_folders import contents
from training_cell import run_experiments

pytest.importorskip("trl")
pytest.importorskip("optuna")

from newllm_lib.colab import experiments
from newllm_lib.colab.drive.drive_copy import DriveCopier
from newllm_lib.colab.experiments import LiveTrials, coordinates_figure, margins_figure, trial_cells
from newllm_lib.colab.page.notices import CellStopped
from newllm_lib.colab.panel.preference_panel import PreferencePanel, SweepPanel
from newllm_lib.colab.panel.stage import EXPERIMENTS, PREFERENCES
from newllm_lib.colab.storage import bring_back_runs, is_finished, run_sentence
from newllm_lib.preferences.reference import ReferenceArguments
from newllm_lib.preferences.sweep import SweepArguments, sweep, sweep_settings
from newllm_lib.preferences.trials import read_trials

FEW = {
    "trials": 2, "max_steps": 4, "sft_epochs": 0.0, "max_length": 96, "per_device_train_batch_size": 4,
    "max_eval_tokens": 300, "eval_steps": 0.5, "save_steps": 0.5, "logging_steps": 2, "held_out_share": 0.25,
}  # fmt: skip


@pytest.fixture
def shown(monkeypatch):
    """All that is displayed: HTML, sentences, and what the live table has shown."""
    found = SimpleNamespace(contents=[], live=[])
    put, handle = found.contents.append, SimpleNamespace(update=lambda content: found.live.append(content.data))
    monkeypatch.setattr(experiments, "display", lambda content: put(getattr(content, "data", content)))
    monkeypatch.setattr(experiments, "say", lambda sentence, status="ok": put(f"{status}: {sentence}"))
    monkeypatch.setattr(experiments, "LiveTrials", partial(LiveTrials, show=lambda content: handle))
    return found


@pytest.fixture
def make_panel(tmp_path, monkeypatch):
    """The panel of few short trials over a small file, as a new session would build it."""
    monkeypatch.setenv("NEWLLM_PRESET", "smoke")
    for variable in ("NEWLLM_DATA_SOURCE", "NEWLLM_MODEL"):
        monkeypatch.delenv(variable, raising=False)
    stage = dataclasses.replace(EXPERIMENTS, presets={"smoke": FEW})
    data = tmp_path / "pairs.jsonl"

    def make() -> SweepPanel:
        panel = SweepPanel(stage, tmp_path / "runs")
        panel.controls["model"].set(str(tiny_chat_model(tmp_path / "tiny-gpt2")))
        panel.controls["data"].set(str(data if data.exists() else write_pairs(data, make_pairs(48))))
        panel.controls["data_source"].set("file")
        return panel

    return make


def test_from_the_first_trial_to_the_settings_of_notebook_6(make_panel, shown, tmp_path):
    panel = make_panel()
    folder = run_experiments(panel)
    rows = read_trials(folder)
    assert [row["state"] for row in rows] == ["finished"] * 2
    assert shown.contents == [f"ok: 2 trials are finished; everything is in {folder}."]
    assert any("update 4 of 4" in page or "scoring" in page for page in shown.live)
    assert any("0 of 2 trials" in page and "■" in page for page in shown.live)
    last = shown.live[-1]
    assert "2 of 2 trials" in last and "■" not in last and last.count("<tr") == 3 and "data:image/png" in last

    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert run_experiments(make_panel()) == folder
    assert "All 2 trials were finished before" in shown.contents[-1]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == times

    shown.contents.clear()
    best = experiments.show_experiments(panel, folder)
    coordinates, margins, table, sentence = shown.contents
    assert "data:image/png" in coordinates and "data:image/png" in margins and table.count("<tr") == 3
    assert (folder / "parallel-coordinates.png").is_file() and (folder / "margins.png").is_file()
    assert f"Best of 2: trial {int(best.name[-3:])}" in sentence and "held-out pairs (±" in sentence

    shown.contents.clear()
    experiments.show_sweep_files(folder)
    assert "trials.jsonl" in shown.contents[0] and shown.contents[0].count("trial-00") == 2
    applies_to_notebook_6(panel, folder, shown, tmp_path / "runs")
    comes_back_from_drive(folder, tmp_path)


def applies_to_notebook_6(panel, folder, shown, runs):
    """Run all applies nothing; the button applies the settings, and nothing else."""
    shown.contents.clear()
    box = experiments.offer_best(panel, folder)
    settings = sweep_settings(folder)
    assert f"loss {settings['loss_type']}" in shown.contents[-1]
    button, line = box.children
    assert PreferencePanel(PREFERENCES, runs).controls["lora_r"].value == 16
    button.click()
    assert "Notebook 6 has them now" in plain(line.value) and "✓" in line.value
    applied = PreferencePanel(PREFERENCES, runs)
    for name, value in {**settings, "lora_alpha": 64.0, "max_length": 96}.items():
        expected = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
        assert applied.controls[name].value == expected, name
    assert applied.controls["max_steps"].value == PREFERENCES.presets["smoke"]["max_steps"], "its length is its own"


def comes_back_from_drive(folder, tmp_path):
    """The table stands in the folder above the trials, and has to come along."""
    copier = DriveCopier(tmp_path / "runs", tmp_path / "drive")
    copier.work()
    assert not copier.problem
    elsewhere = DriveCopier(tmp_path / "new machine", tmp_path / "drive")
    models, damaged, _ = bring_back_runs(elsewhere, lambda name: None)
    there = elsewhere.local / folder.relative_to(copier.local)
    assert len(models) == 2 and not damaged
    names = ("trials.jsonl", "best.json", "settings.json", "trial-002/adapter_model.safetensors")
    assert all(contents(there)[name] == contents(folder)[name] for name in names)
    assert run_sentence(there).endswith("2 of 2 trials are finished") and not is_finished(there)


def test_a_sweep_that_is_stopped_says_so_and_goes_on(make_panel, shown):
    calls = []

    class InSecondTrial(StopAt):
        def on_train_begin(self, args, state, control, **kwargs):
            calls.append(args.output_dir)
            self.step = 2 if len(calls) == 2 else 10**9

    stopper = InSecondTrial(10**9)
    panel = make_panel()
    with pytest.raises(CellStopped, match=r"Stopped in trial 2; 1 are finished and kept. What this one has done is"):
        run_experiments(panel, lambda args, callbacks: sweep(args, (*callbacks, stopper)))
    assert "stopped" in shown.live[-1] and "1 trials are finished" in plain(panel.line.value)
    folder = run_experiments(make_panel())
    assert [row["state"] for row in read_trials(folder)] == ["finished"] * 2
    assert calls[0].endswith("trial-001") and calls[1].endswith("trial-002")


ROWS = [
    {"trial": 1, "state": "finished", "beta": 0.1, "learning_rate": 1e-3, "lora_r": 8, "loss_type": "sigmoid",
     "accuracy": 0.8, "margin": 1.0, "kl": 0.1},
    {"trial": 2, "state": "failed", "beta": 0.2, "learning_rate": 1e-3, "lora_r": 64, "loss_type": "ipo",
     "error": "OutOfMemoryError: <too large>"},
    {"trial": 3, "state": "finished", "beta": 0.05, "learning_rate": 3e-3, "lora_r": 4, "loss_type": "hinge",
     "accuracy": 0.9, "margin": 0.7, "kl": 0.3},
    {"trial": 4, "state": "finished", "beta": 0.3, "learning_rate": 3e-3, "lora_r": 4, "loss_type": "hinge",
     "accuracy": 0.9, "margin": 3.0, "kl": 0.2},
    {"trial": 5, "state": "running", "beta": 0.3, "learning_rate": 3e-3, "lora_r": 4, "loss_type": "hinge"},
]  # fmt: skip
HISTORIES = {1: [(0, 0.0), (4, 1.0)], 3: [(0, 0.0), (4, 0.7)], 4: [(0, 0.0), (4, 3.0)], 5: [(0, 0.0)]}


def test_the_table_says_what_every_trial_is_doing():
    head, *lines = trial_cells([*ROWS[:4], {**ROWS[4], "doing": "update 2 of 4", "accuracy": 0.95}])
    assert head[1:5] == ["beta", "learning rate", "rank", "loss"]
    assert ["best" in line[0] for line in lines] == [False, False, False, True, False], "nearer to its reference"
    assert "&lt;too large&gt;" in lines[1][5] and lines[1][6:] == ["", "", ""]
    assert "update 2 of 4" in lines[4][5] and lines[4][6] == "95.0%" and lines[4][7] == ""


def test_the_live_table_is_one_display(tmp_path):
    pages, now = [], [0.0]
    handle = SimpleNamespace(update=lambda content: pages.append(content.data))
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    live = LiveTrials(tmp_path, 8, clock=lambda: now[0], show=lambda content: handle)
    chosen = ReferenceArguments(output_dir=str(tmp_path))
    live.on_train_begin(chosen, None, None)
    assert "learning the answers as such" in pages[-1]
    live.on_evaluate(chosen, None, None, {"eval_loss": 1.0})
    live.on_train_end(chosen, None, None)
    pages.clear()
    live.on_train_begin(None, None, None)
    for step in range(1, 9):
        now[0] += 0.5
        live.on_step_end(None, SimpleNamespace(global_step=step, max_steps=8), None)
    assert len(pages) == 1 + 2, "every two seconds"
    assert "4 of 8 trials" in pages[-1] and "update 8 of 8" in pages[-1]
    live.on_evaluate(None, None, None, {"eval_accuracy": 0.75, "eval_margin": 0.5, "eval_kl": 0.01})
    assert "75.0%" in pages[-1]
    live.on_train_begin(None, None, None)
    assert "75.0%" not in pages[-1], "of the trial before"
    assert experiments.HINT in pages[-1]


def test_margins_are_drawn_when_their_share_of_the_time_is_there(tmp_path, monkeypatch):
    now, drawn = [0.0], []

    class SlowFigure(Figure):
        def savefig(self, buffer, **options):
            now[0] += 0.1
            drawn.append(now[0])

    monkeypatch.setattr(experiments, "margins_figure", lambda rows, histories: SlowFigure())
    handle = SimpleNamespace(update=lambda content: None)
    live = LiveTrials(tmp_path, 8, clock=lambda: now[0], show=lambda content: handle)
    live.on_train_begin(None, None, None)
    for _ in range(100):
        now[0] += 1.0
        live.on_evaluate(None, None, None, {"eval_accuracy": 0.75, "eval_margin": 0.5, "eval_kl": 0.01})
    assert len(drawn) > 3 and 0.1 * len(drawn) <= 0.01 * now[0]
    before = len(drawn)
    live.tell("", draw=True)
    assert len(drawn) == before + 1, "the last one in any case"


def test_trials_are_sorted_by_merit_and_the_verdict_knows_chance():
    assert [row["trial"] for row in experiments.by_merit(ROWS)] == [4, 3, 1, 2]
    sentence = experiments.verdict(ROWS, 150)
    assert "trial 4, 90.0% of 150" in sentence and "another one is within that error" in sentence
    assert "1 failed" in sentence and "expect a little less" in sentence
    assert "2 others are within" in experiments.verdict(ROWS, 8)
    assert "no other is within" in experiments.verdict([ROWS[0], ROWS[3]], 150)


def test_pictures_of_trials_show_what_the_table_says():
    (axes, *_) = margins_figure(ROWS, HISTORIES).axes
    widths = {
        line.get_label(): line.get_linewidth() for line in axes.get_lines() if not line.get_label().startswith("_")
    }
    assert list(widths) == ["trial 1: 80%", "trial 3: 90%", "trial 4: 90%, best", "trial 5"]
    assert max(widths, key=widths.get) == "trial 4: 90%, best"
    args = SweepArguments(output_dir="unused")
    (axes,) = coordinates_figure(args, ROWS).axes
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 5]
    assert len(lines) == 3, "the finished ones"
    best = max(lines, key=lambda line: line.get_linewidth()).get_ydata()
    assert best[2] == 0 and best[3] == 0.5 and 0 < best[0] < 1 and max(best) <= 1  # rank 4 of 4 to 32, hinge
    coordinates_figure(args, ROWS[:1])
    margins_figure([], {})
    kept = SweepArguments(output_dir="unused", search_beta="0.1", search_lora_r="8", search_loss_type="sigmoid")
    coordinates_figure(kept, ROWS[:1])


def test_nothing_finished_is_one_sentence(make_panel, shown, tmp_path):
    (tmp_path / "trials.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    for cell in (experiments.show_experiments, experiments.offer_best):
        with pytest.raises(CellStopped, match="finished"):
            cell(make_panel(), tmp_path)
