"""The preview of the data, the comparison, the samples and the list of files, over two runs of a few updates."""

import re
from html import unescape

import pytest
from training_cell import train_models

from newllm_lib.colab import live_plot, preview, results
from newllm_lib.colab.live_plot import LivePlot
from newllm_lib.colab.page.notices import CellStopped
from newllm_lib.stages.pretrain import pretrain


@pytest.fixture
def shown(monkeypatch):
    """All that is displayed, as HTML or as a sentence."""
    contents = []
    for module in (preview, results):
        monkeypatch.setattr(module, "show", contents.append)
        monkeypatch.setattr(module, "say", lambda sentence, status="ok": contents.append(f"{status}: {sentence}"))
    return contents


@pytest.fixture
def panel(make_panel):
    panel = make_panel()
    panel.controls["tokenizer"].widget.value = "byte"
    panel.controls["max_steps"].widget.value = 10
    panel.controls["per_device_train_batch_size"].widget.value = 4
    panel.controls["max_length"].widget.value = 16
    panel.presets["smoke"] = {**panel.presets["smoke"], "eval_steps": 0.5, "save_steps": 0.5}
    return panel


def plain(html):
    return unescape(re.sub("<[^>]*>", "", html))


def test_the_preview_names_the_text_and_marks_every_token(panel, shown, text_file):
    preview.preview_data(panel)
    html, sentence = shown
    assert f"file {text_file.name}" in html and "as the file's owner says" in plain(html)
    assert "263 types" in html and "10 updates over 640 tokens" in sentence
    assert html.count("border-radius:3px") > 100 and "3 samples" in html


def test_the_models_before_training_know_nothing(panel, shown):
    results.show_untrained(panel)
    html, sentence = shown
    bits, other = re.findall(r">(\d\.\d{3})<", html)
    assert all(7.5 < float(it) < 10 for it in (bits, other)), "no better than a guess of 8 bits"
    assert html.count("tiny-gpt2") == 2 and "perplexity of 263" in sentence
    assert not list(panel.runs.rglob("model.safetensors")), "nothing is written"


def test_a_text_in_one_piece_is_sampled_too(panel, shown, text_file):
    text_file.write_text("".join(f"Line {number} of a text that is all one document.\n" for number in range(300)))
    panel.controls["max_length"].widget.value = 32
    preview.preview_data(panel)
    assert "3 samples" in shown[0] and "Line 0 of" in shown[0]


def test_tokens_tint_the_text_and_change_nothing_of_it(byte_tokenizer):
    text = "Größe: 5 < 6 & $x$\n\N{SMILE}"
    html = preview.tokens_html(text, byte_tokenizer)
    assert plain(html.split("margin:6px 0")[1].split(">", 1)[1]) == text


def test_a_bad_file_ends_the_preview_in_one_sentence(panel, shown, tmp_path):
    panel.controls["data"].widget.value = str(tmp_path / "gone.txt")
    with pytest.raises(CellStopped, match="does not exist"):
        preview.preview_data(panel)


def test_from_training_to_files(panel, shown, monkeypatch):
    sentences = []
    monkeypatch.setattr(live_plot, "say", sentences.append)
    updates = []
    handle = type("Handle", (), {"update": lambda self, content: updates.append(content)})()
    monkeypatch.setattr(live_plot, "LivePlot", lambda names: LivePlot(names, show=lambda content: handle))
    folders = train_models(panel, pretrain)
    assert "2 of 10" not in updates[-1].data and updates[-1].data.count("finished") == 2

    results.show_comparison(folders)
    table, reached, picture, samples, sentence = shown
    assert "Held-out text (validation)" in plain(table) and "ms per batch of 32 x 16, inference" in table
    assert re.search(r"perplexity \(per token\)</td>.*?\([+-]\d+\.\d %\)", table)
    assert "newllm: a memory of the text that does not grow" in plain(reached) and "tiny-gpt2 at equal size" in reached
    assert "<th" in table and "newllm" in table and "tiny-gpt2" in table and "bits per byte" in table
    assert "data:image/png" in picture and samples.count("tiny-gpt2") == 2
    assert sentence.startswith("ok: ")
    made = (folders[0].parent / results.COMPARISON_FILE).stat().st_mtime_ns
    results.show_comparison(folders)
    assert (folders[0].parent / results.COMPARISON_FILE).stat().st_mtime_ns == made, "it is not measured again"

    shown.clear()
    results.show_samples(folders, "The <river>", max_new_tokens=4)
    assert shown[0].count("<b>The &lt;river&gt;</b>") == 2

    shown.clear()
    results.show_saved_files(folders)
    assert "model.safetensors" in shown[0] and str(folders[0].parent) in shown[1]
    (folders[1] / "results.json").unlink()
    results.show_saved_files(folders)
    assert shown[-1].startswith("note: tiny-gpt2 is not finished")


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (
            (2.0, 2.5),
            "newllm predicts the held-out text better: 2.000 against 2.500 bits per byte of tiny-gpt2, 20.0% less",
        ),
        ((2.5, 2.0), "tiny-gpt2 predicts the held-out text better"),
        ((2.0, 2.001), "No clear winner"),
        ((None, None), "tiny-gpt2 predicts the held-out text better: 3.000 against 4.000 nats per token"),
    ],
)
def test_the_verdict_says_who_is_better_whoever_it_is(scores, words):
    rows = [
        {"name": name, "bits_per_byte": bits, "loss": loss}
        for name, bits, loss in zip(("newllm", "tiny-gpt2"), scores, (4.0, 3.0), strict=True)
    ]
    assert results.verdict(rows).startswith(words)
