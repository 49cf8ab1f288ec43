"""The picture of half-lives: a plot for each layer, before beside after, and a cell that fits every model."""

import warnings

import numpy as np
import torch
from sample_text import make_text

from newllm_lib.colab import context_picture
from newllm_lib.colab.context_picture import half_life_figure, show_half_lives
from newllm_lib.stages.pretrain import PretrainArguments, pretrain


def test_every_layer_has_a_plot_of_its_sorted_channels():
    before, after = torch.rand(5, 7) + 0.1, torch.rand(5, 7) * 100 + 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = half_life_figure(before, after)
        figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes] == [f"layer {number}" for number in range(1, 6)]
    for axes, *expected in zip(figure.axes, before, after, strict=True):
        assert axes.get_yscale() == "log"
        for line, half_lives in zip(axes.get_lines(), expected, strict=True):
            np.testing.assert_allclose(line.get_ydata(), half_lives.sort().values)


def test_the_cell(tmp_path, small_chats, monkeypatch):
    shown, said = [], []
    monkeypatch.setattr(context_picture, "display", lambda content: shown.append(content.data))
    monkeypatch.setattr(context_picture, "say", lambda sentence, status="ok": said.append((sentence, status)))
    text = tmp_path / "text.txt"
    text.write_text(make_text(240), encoding="utf-8")
    folder = pretrain(
        PretrainArguments(
            data=str(text), tokenizer="byte", num_parameters=80_000, max_length=64, max_steps=2, eval_steps=0.5,
            save_strategy="no", load_best_model_at_end=False, per_device_train_batch_size=4,
            output_dir=str(tmp_path / "trained"),
        )
    )  # fmt: skip
    drawn = torch.get_rng_state()
    show_half_lives(folder)
    assert torch.equal(torch.get_rng_state(), drawn), "what is drawn later does not depend on it"
    assert "<img" in shown[0] and "held-out tokens" in said[0][0] and said[0][1] == "ok"
    show_half_lives(small_chats["tiny-gpt2"])
    assert len(shown) == 1 and said[1] == (
        "tiny-gpt2 is no New-LLM: it has no channels with a half-life to show.",
        "note",
    )
