"""Notebook 6: the pairs before training, the plot while it lasts, and what the figures afterwards are worth."""

import re
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from panel_page import plain
from preference_runs import dpo_arguments, make_pairs

pytest.importorskip("trl")

from newllm_lib.colab import live_plot, preferences, results
from newllm_lib.colab.live_plot import LivePlot
from newllm_lib.colab.page.notices import CellStopped
from newllm_lib.colab.preferences import BAG, pairs_to_show, shortcut_accuracies
from newllm_lib.preferences.dpo import dpo
from newllm_lib.preferences.generator import KINDS
from newllm_lib.preferences.pairs import Preferences, any_preference, load_preferences
from newllm_lib.training.curves import curves_figure


@pytest.fixture
def shown(monkeypatch):
    """All that is displayed, as HTML or as a sentence."""
    contents = []
    for module in (preferences, results):
        monkeypatch.setattr(module, "show", contents.append)
        monkeypatch.setattr(module, "say", lambda sentence, status="ok": contents.append(f"{status}: {sentence}"))
    return contents


class Page:
    """Stands in for a display that is updated."""

    def __init__(self):
        self.contents = []

    def show(self, content):
        self.contents.append(content.data)
        return SimpleNamespace(update=lambda content: self.contents.append(content.data))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(settings, folder, what the live plot has shown) of a small run."""
    page = Page()
    plot = LivePlot(["tuned"], show=page.show)
    folder = tmp_path_factory.mktemp("preferences")
    args = dpo_arguments(folder, "run/tuned", max_steps=12, eval_steps=6, save_steps=6, sft_epochs=1.0)
    return args, dpo(args, (plot.models["tuned"],)), page.contents


def panel_of(args):
    return SimpleNamespace(models=("tuned",), arguments=lambda model: args)


def test_a_pair_for_each_kind_of_flaw_is_shown(shown):
    args = SimpleNamespace(load_preferences=lambda: load_preferences(pairs=120))
    preferences.preview_pairs(panel_of(args))
    counts, pairs, sentence = shown
    assert "102" in counts and "18" in counts and "licence" in counts and "MIT" in counts
    flaws = re.findall(r"<b>([a-z ]+)</b>", pairs)
    assert flaws == [kind.replace("_", " ") for kind in KINDS] and pairs.count("characters") == 2 * len(KINDS)
    assert "50% of the pairs" in counts, "length is a fair coin"
    assert sentence.startswith("ok: 102 pairs are ready, 18 more") and "Half is chance" in sentence


def test_pairs_without_labels_are_shown_too_and_cannot_break_the_page():
    side = Preferences("file", "own", "x", [any_preference({**pair, "kind": ""}) for pair in make_pairs(9)])
    assert pairs_to_show(side) == side.pairs[:4]
    bad = any_preference({"prompt": "1 < 2?", "chosen": "<b>yes</b> $5", "rejected": "x" * 900})
    html = preferences.pairs_html([bad])
    assert "&lt;b&gt;yes" in html and "900 characters" in html and "x" * 281 not in html


def test_the_shortcuts_are_those_of_the_benchmark():
    splits = load_preferences(pairs=400)
    found = shortcut_accuracies(splits)
    assert BAG in found and len(found) >= 3
    sides = [
        Preferences("", "", "", [any_preference(pair) for pair in part])
        for part in (make_pairs(80)[:60], make_pairs(80)[60:])
    ]
    shouting = shortcut_accuracies(SimpleNamespace(train=sides[0], validation=sides[1]))
    assert shouting[BAG] > 0.95, "who shouts is known by the capitals"


def test_the_live_plot_follows_the_reference_and_then_the_pairs(finished):
    _, folder, contents = finished
    learns = [number for number, content in enumerate(contents) if "learning the answers as such" in content]
    prefers = [number for number, content in enumerate(contents) if "training · update" in content]
    assert learns and prefers and max(learns) < min(prefers)
    newest = contents[-1]
    for words in ("update 12 of 12", "held-out accuracy", "margin", "nats from the reference", "held-out pairs"):
        assert words in newest, words
    assert any("pairs/s" in content for content in contents)
    page = Page()
    LivePlot(["tuned"], show=page.show).add_finished("tuned", folder)
    assert "finished" in page.contents[-1] and "held-out accuracy" in page.contents[-1]


def test_a_chosen_answer_that_becomes_less_likely_is_told_in_the_plot(monkeypatch):
    monkeypatch.setattr(live_plot, "curves_figure", lambda histories: Figure())
    page = Page()
    plot = LivePlot(["tuned"], show=page.show)
    first = {"step": 0, "eval_chosen_logp": -50.0, "eval_margin": 0.0}
    for later, is_told in ((-50.2, False), (-60.0, True)):
        plot.models["tuned"].at.log_history = [first, {"step": 5, "eval_chosen_logp": later, "eval_margin": 2.0}]
        plot.update()
        assert ("have become less likely" in page.contents[-1]) == is_told
    text = plain(page.contents[-1])
    assert "smaller learning rate" in text and "weight of the chosen" in text and "--" not in text


def test_a_run_shows_its_table_picture_and_verdict(finished, shown):
    args, folder, _ = finished
    preferences.show_preferences(panel_of(args), folder)
    measured = results.read_measured(folder, preferences.PREFERENCES_FILE)
    table, picture, *_, sentence = shown
    for side in ("held_out", "train"):
        assert f"{measured[side]['accuracy']:.1%}" in table and f"{measured[side]['kl']:.3f}" in table
    assert f"{measured['reference']['chosen_logp']:.1f}" in table and "0.693" in table
    assert "data:image/png" in picture and (folder.parent / preferences.PICTURE_FILE).is_file()
    assert sentence.startswith("ok: The chosen answer is ahead in") and "One run with one seed" in sentence

    shown.clear()
    preferences.show_preferred_answers(folder)
    assert shown[0].count("<tr") == 7 and "reference" in shown[0] and "of 5" in shown[1]

    shown.clear()
    results.show_saved_files([folder])
    assert (
        all(name in shown[0] for name in ("preferences.json", "merged", "reference"))
        and "forgetting.json" not in shown[0]
    )
    assert ">-<" not in shown[0], "a file that is not there"
    assert "one plain model" in shown[1]


def test_the_reference_column_is_of_the_same_pairs(finished):
    _, folder, _ = finished
    measured = results.read_measured(folder, preferences.PREFERENCES_FILE)
    held_out = measured["held_out"]
    moved = (held_out["chosen_logp"] - measured["reference"]["chosen_logp"]) - (
        held_out["rejected_logp"] - measured["reference"]["rejected_logp"]
    )
    assert held_out["margin"] == pytest.approx(0.1 * moved, rel=1e-4)  # beta


def measured(accuracy=0.9, train=0.92, pairs=150, kinds=None):
    figures = {"loss": 0.3, "margin": 2.0, "chosen_logp": -40.0, "rejected_logp": -60.0, "kl": 0.2}
    return {
        "held_out": {**figures, "accuracy": accuracy, "pairs": pairs},
        "train": {**figures, "accuracy": train, "pairs": 40},
        "reference": {"chosen_logp": -42.0, "rejected_logp": -45.0},
        "accuracy_by_kind": kinds or {},
    }


@pytest.mark.parametrize(
    ("fields", "bag", "words", "not_said"),
    [
        ({"accuracy": 0.52}, 0.8, "no better than chance", "characters"),
        ({"accuracy": 0.86}, 0.87, "nothing here shows that it has read them", "chance"),
        ({"accuracy": 0.97}, 0.87, "Counting characters gets 87%.", "nothing here shows"),
        ({"accuracy": 0.8, "train": 0.99}, 0.6, "learned by heart", "chance"),
        ({"kinds": {"vague": 0.5, "off_topic": 0.95}}, 0.6, "Weakest: vague, 50%.", "by heart"),
    ],
)
def test_the_verdict_says_what_the_accuracy_is_worth(fields, bag, words, not_said):
    sentence = preferences.verdict(measured(**fields), bag)
    assert words in sentence and not_said not in sentence and "one seed" in sentence


def test_bars_are_as_long_as_the_figures_say():
    kinds = {"vague": 0.5, "cut_short": 1.0, "own kind": 0.25}
    figure = preferences.kinds_figure(measured(kinds=kinds), {"vague": 50, "cut_short": 50, "own kind": 50})
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["vague (50)", "cut short (50)", "own kind (50)", "all (150)"]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 1.0, 0.25, 0.9]
    assert axes.get_xlim()[1] > 1
    figure = preferences.kinds_figure(measured(kinds=kinds), {"vague": 50})
    assert figure.axes[0].get_yticklabels()[0].get_text() == "vague", "not all of them were scored"


def test_an_unfinished_run_is_one_sentence(tmp_path, finished):
    with pytest.raises(CellStopped, match="run the training cell again"):
        preferences.show_preferences(panel_of(finished[0]), tmp_path)
    with pytest.raises(CellStopped, match="run the training cell again"):
        preferences.show_preferred_answers(tmp_path)


def test_the_loss_of_dpo_is_drawn_beside_the_rest():
    history = [{"step": step, "eval_margin": step / 9, "eval_loss": 0.7 - step / 90, "eval_train_loss": 0.7 - step / 50}
               for step in (0, 9)]  # fmt: skip
    loss = curves_figure({"tuned": history}).axes[0]
    assert "DPO loss" in loss.get_ylabel()
    assert [line.get_label() for line in loss.get_lines()] == ["held-out pairs: 0.600", "training pairs: 0.520"]
    assert [list(line.get_ydata()) for line in loss.get_lines()] == [[0.7, 0.6], [0.7, 0.52]]
