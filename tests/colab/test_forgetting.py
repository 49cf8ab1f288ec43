"""What was learned and what was forgotten, in the words and colours that the figures deserve."""

import copy
import json

import pytest

from newllm_lib.colab import results
from newllm_lib.colab.live_plot import LivePlot
from newllm_lib.colab.page.notices import CellStopped
from newllm_lib.training.checkpoint import read_history
from newllm_lib.training.curves import curves_figure


@pytest.fixture
def shown(shown_by):
    return shown_by(results)


def measured(new=(2.0, 1.0), general=(1.0, 1.1)):
    def pair(before, after):
        figures = {"perplexity": 5.0, "token_accuracy": 0.5}
        return {
            "text": "some text",
            "before": {"bits_per_byte": before, **figures},
            "after": {"bits_per_byte": after, "kl_to_base": 0.25, **figures},
        }

    return {"new_task": pair(*new), "general_text": pair(*general)}


@pytest.mark.parametrize(
    ("new", "general", "words"),
    [
        (
            (2.0, 1.0),
            (1.0, 1.1),
            ("Learned: the new task takes 50.0% fewer", "Forgotten: general text takes 10.0% more"),
        ),
        ((2.0, 2.2), (1.0, 0.9), ("Nothing was learned", "10.0% more", "Nothing was forgotten", "10.0% fewer")),
        ((2.0, 2.0), (1.0, 1.0), ("Hardly anything was learned", "Nothing was forgotten", "as many bits")),
    ],
)
def test_the_verdict_says_what_happened_whatever_it_is(new, general, words):
    sentence = results.forgetting_verdict(measured(new, general))
    assert all(word in sentence for word in words) and "0.250 nats" in sentence and "one seed" in sentence.lower()


def test_arrows_point_to_what_the_figures_say():
    def arrows(figure):
        (axes,) = figure.axes
        low, high = axes.get_xlim()
        found = {}
        for kind, note in zip(("general_text", "new_task"), axes.texts[::2], strict=True):
            assert low < note.xy[0] < high and note.xyann[0] == 0
            found[kind] = (note.xy[0], note.arrow_patch.get_edgecolor())
        return found

    better = arrows(results.forgetting_figure(measured((2.0, 1.0), (1.0, 1.1))))
    assert better["new_task"][0] == pytest.approx(-50) and better["general_text"][0] == pytest.approx(10)
    assert better["new_task"][1] != better["general_text"][1]
    arrows(results.forgetting_figure(measured((2.0, 2.0), (1.0, 1.0))))


def test_a_run_shows_its_table_picture_and_answers(adapter_run, shown):
    results.show_forgetting(adapter_run)
    table, picture, layers, most, sentence = shown
    figures = results.read_measured(adapter_run, results.FORGETTING_FILE)
    for kind in results.KINDS:
        for when in ("before", "after"):
            assert f"{figures[kind][when]['bits_per_byte']:.3f}" in table
    assert "data:image/png" in picture and sentence.startswith("ok: ")
    assert (adapter_run.parent / results.FORGETTING_PICTURE).is_file()
    assert "data:image/png" in layers and (adapter_run.parent / results.LAYERS_PICTURE).is_file()
    assert max(figures["layers"], key=figures["layers"].get) in most

    shown.clear()
    results.show_answers_of_both(adapter_run)
    assert shown[0].count("<tr") == 7 and "base" in shown[0] and "of 5" in shown[1]

    shown.clear()
    results.show_saved_files([adapter_run])
    assert "adapter_model.safetensors" in shown[0] and "forgetting.json" in shown[0]
    assert ">-<" not in shown[0], "a file that is not there"
    assert "newllm export" in shown[1] and "comparison" not in shown[1]


def test_an_unfinished_run_is_one_sentence(tmp_path):
    for cell in (results.show_forgetting, results.show_answers_of_both):
        with pytest.raises(CellStopped, match="run the training cell again"):
            cell(tmp_path)


def test_the_live_plot_follows_both_kinds_of_text(adapter_run):
    pages = []
    handle = type("Handle", (), {"update": lambda self, content: pages.append(content.data)})()
    LivePlot(["tuned"], show=lambda content: handle).add_finished("tuned", adapter_run)
    assert (
        "bits per byte held out" in pages[-1] and "of general text" in pages[-1] and "nats from the base" in pages[-1]
    )


def test_curves_of_a_tuned_model_show_task_distance_and_both_texts(adapter_run):
    history = read_history(adapter_run)
    task, distance, held_out = curves_figure({"tuned": history}).axes
    assert [len(axes.get_lines()) for axes in (task, distance, held_out)] == [1, 2, 2]
    assert distance.get_lines()[1].get_ydata()[0] == pytest.approx(0.0, abs=1e-9), "the run begins at its base"
    alone = copy.deepcopy(history)
    for entry in alone:
        if "kl_to_teacher" in entry:
            entry["kl_to_teacher"] = 0.0
    assert len(curves_figure({"tuned": alone}).axes[1].get_lines()) == 1, "what was not measured is not drawn"
    plain = [{"step": 1, "loss": 3.0}, {"step": 1, "eval_bits_per_byte": 2.0}]
    assert len(curves_figure({"newllm": plain}).axes) == 2
    json.dumps(history)
