"""What notebooks 6 and 7 say of minutes and disk, against the pairs and the runs themselves."""

import re

import pytest
from panel_page import plain, set_to
from preference_runs import make_pairs, tiny_chat_model, write_pairs

pytest.importorskip("trl")
pytest.importorskip("optuna")

from newllm_lib.colab.panel.estimate import sequence_tokens
from newllm_lib.colab.panel.preference_panel import PreferencePanel, SweepPanel
from newllm_lib.colab.panel.stage import EXPERIMENTS, PREFERENCES
from newllm_lib.preferences.dpo import dpo, prepare
from newllm_lib.preferences.pairs import encode_preferences
from newllm_lib.preferences.sweep import sweep
from newllm_lib.training.device import MB


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A storage with one chat model."""
    monkeypatch.setenv("NEWLLM_PRESET", "smoke")
    monkeypatch.setenv("NEWLLM_DATA_SOURCE", "offline")
    monkeypatch.delenv("NEWLLM_MODEL", raising=False)
    folder = tiny_chat_model(
        tmp_path / "runs" / "02_dailydialog" / "quick-1" / "tiny-gpt2", "tiny-gpt2", max_length=256
    )
    (folder / "results.json").write_text("{}")
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("make", "stage", "run"), [(PreferencePanel, PREFERENCES, dpo), (SweepPanel, EXPERIMENTS, sweep)]
)
def test_the_disk_that_it_takes_is_not_less_than_said(runs, make, stage, run):
    panel = make(stage, runs)
    if make is SweepPanel:
        set_to(panel, "trials", 2)
        set_to(panel, "search_lora_r", "16")
    (said,) = re.findall(r"at least ([\d.]+) MB on disk", plain(panel.line.value))
    folder = run(panel.arguments("tuned"))
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert 0.6 * taken < float(said) * MB <= taken


@pytest.mark.parametrize(("make", "stage"), [(PreferencePanel, PREFERENCES), (SweepPanel, EXPERIMENTS)])
def test_minutes_are_told_once_updates_are_measured(runs, make, stage):
    panel = make(stage, runs)
    assert "was measured" not in panel.line.value
    panel.show()
    assert "here for all updates (one was measured)" in panel.line.value
    assert panel.measured.keys() == {"answers", "pairs"}
    length = round(sequence_tokens(panel.arguments("tuned")))
    assert panel.measured["pairs"].tokens == 8 * length, "four pairs"
    slow = panel.measured["pairs"]._replace(seconds=60.0)
    panel.measured = panel.measured | {"pairs": slow}
    set_to(panel, "max_steps", 50)
    trials = panel.controls["trials"].value if make is SweepPanel else 1
    (said,) = re.findall(r"about ([\d.]+) (?:minutes|hours) here for all updates", plain(panel.line.value))
    assert float(said) == pytest.approx(50 * trials if trials == 1 else 50 * trials / 60, rel=0.15)


def test_answers_have_more_tokens_without_new_ones(runs):
    panel = PreferencePanel(PREFERENCES, runs)
    tokens = sequence_tokens(panel.arguments("tuned"))
    set_to(panel, "sft_epochs", 0.0)
    assert sequence_tokens(panel.arguments("tuned")) > 1.2 * tokens


def test_the_tokens_of_a_pair_are_counted_by_its_tokenizer(runs):
    args = PreferencePanel(PREFERENCES, runs).arguments("tuned")
    prepared = prepare(args)
    encoded = list(encode_preferences(prepared.train_rows.pairs, prepared.tokenizer, args.max_length))
    lengths = [2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in encoded]
    assert 2 * sequence_tokens(args) == pytest.approx(sum(lengths) / len(lengths), rel=0.15)


def test_for_pairs_that_are_not_counted_there_are_no_minutes(runs, tmp_path):
    panel = PreferencePanel(PREFERENCES, runs)
    panel.show()
    set_to(panel, "data", str(write_pairs(tmp_path / "pairs.jsonl", make_pairs(20))))
    set_to(panel, "data_source", "file")
    assert "was measured" not in panel.line.value and "on disk" in panel.line.value
    set_to(panel, "max_steps", -1)
    assert "on disk" not in panel.line.value
    panel.show()
    assert "✗" not in panel.line.value
