"""The pictures of what is remembered: of the context vector one column a token, one row a dimension, legible whatever
the text is; of half-lives a plot for each layer, before beside after. Half-lives by hand, and as the gates are."""

import math
import warnings

import numpy as np
import pytest
import torch
from sample_text import make_text

from newllm_lib.colab import context_picture
from newllm_lib.colab.context_picture import (
    MOST_ROWS,
    MOST_TOKENS,
    context_figure,
    half_life_figure,
    half_lives_of_biases,
    label,
    measured_half_lives,
    show_context,
    show_half_lives,
)
from newllm_lib.colab.page.notices import CellStopped
from newllm_lib.models import ContextCache, NewLLMConfig, NewLLMForCausalLM
from newllm_lib.models.modeling_newllm import FORGET_BIAS_AT_FIRST
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.training.curves import in_the_font

TOKENS = ["User", ":", " $1$", "日本", "\n"]
TOKEN_IDS = [5, 9, 20, 3, 7, 8]


@pytest.fixture
def contexts():
    """Dimension 2 stands still, dimension 0 moves most."""
    contexts = torch.zeros(6, 3)
    contexts[:, 0] = torch.tensor([0.0, 2, -2, 2, -2, 2])
    contexts[:, 1] = torch.linspace(0, 1, 6)
    contexts[:, 2] = 0.5
    return contexts


def test_columns_are_tokens_and_rows_go_from_the_quickest_to_the_slowest(contexts):
    figure = context_figure(TOKENS, contexts)
    above, below = figure.axes[:2]
    (image,) = below.get_images()
    np.testing.assert_allclose(image.get_array(), contexts[1:, [0, 1, 2]].T)
    assert [text.get_text() for text in below.get_xticklabels()] == ["User", ":", "·$1$", in_the_font("日本"), "↵"]
    assert image.norm.vmin == -image.norm.vmax < 0, "zero is white"
    moved = [bar.get_height() for bar in above.patches]
    np.testing.assert_allclose(moved, contexts.diff(dim=0).pow(2).mean(dim=1).sqrt(), rtol=1e-6)
    assert "3 channels" in below.get_ylabel() and figure.axes[2].get_ylabel() == "value"


def test_layers_are_apart_and_their_channels_go_from_the_quickest_to_the_slowest():
    contexts = torch.randn(6, 6)
    figure = context_figure(TOKENS, contexts, torch.tensor([[3.0, 1.0, 2.0], [1.0, 9.0, 4.0]]))
    below = figure.axes[1]
    (image,) = below.get_images()
    np.testing.assert_allclose(image.get_array(), contexts[1:, [1, 2, 0, 3, 5, 4]].T)
    assert [line.get_ydata()[0] for line in below.get_lines()] == [2.5]
    assert [text.get_text() for text in below.get_yticklabels()] == ["1", "2"]


def test_of_many_channels_some_are_shown_from_end_to_end():
    contexts = torch.randn(6, 3 * 500)
    figure = context_figure(TOKENS, contexts, torch.arange(500.0).expand(3, 500))
    (image,) = figure.axes[1].get_images()
    rows = image.get_array()
    assert len(rows) == MOST_ROWS
    np.testing.assert_allclose(rows[[0, 63, 64, -1]], contexts[1:, [0, 499, 500, 1499]].T)
    assert "64 of 500 channels each" in figure.axes[1].get_ylabel()


def test_no_text_makes_matplotlib_complain(contexts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        html = context_picture.context_picture(TOKENS, contexts, title="New-LLM")
        context_picture.context_picture(TOKENS[:1], torch.zeros(2, 3))
    assert "background:#fff" in html and 'alt="the context vector' in html, "black text needs a ground of its own"


def test_labels_are_short_and_visible():
    assert label(" well") == "·well" and label("a" * 30) == "a" * 11 + "…" and label("") == "∅"


def test_the_cell_lets_a_model_read(small_chats, monkeypatch):
    shown, said = [], []
    monkeypatch.setattr(context_picture, "show", shown.append)
    monkeypatch.setattr(context_picture, "say", said.append)
    show_context(small_chats["newllm"], "It was a long day. " * 10)
    assert "<img" in shown[0] and "has read 191 tokens" in said[0] and "bytes" in said[0]
    assert MOST_TOKENS < 191
    with pytest.raises(CellStopped, match="no context vector"):
        show_context(small_chats["tiny-gpt2"], "It was")
    with pytest.raises(CellStopped, match="text is empty"):
        show_context(small_chats["newllm"], "")


@pytest.fixture
def model():
    config = NewLLMConfig(
        vocab_size=29, hidden_size=6, context_size=5, intermediate_size=9, num_hidden_layers=2, dropout=0.5
    )
    return NewLLMForCausalLM(config)


def test_a_new_model_has_the_half_lives_of_its_biases(model):
    expected = [math.log(2) / math.log1p(math.exp(-bias)) for bias in torch.linspace(*FORGET_BIAS_AT_FIRST, 5).tolist()]
    torch.testing.assert_close(half_lives_of_biases(model), torch.tensor([expected, expected]))
    for layer in model.model.layers:
        layer.forget_gate.weight.data.zero_()
    torch.testing.assert_close(measured_half_lives(model, TOKEN_IDS), half_lives_of_biases(model))


def test_after_its_half_life_half_of_a_channel_is_left(model):
    """With gates that no token moves, and nothing written."""
    forget = 0.5 ** (1 / 4)
    bias = math.log(forget / (1 - forget))
    for layer in model.model.layers:
        layer.forget_gate.weight.data.zero_()
        layer.forget_gate.bias.data.fill_(bias)
        layer.delta.weight.data.zero_()
    model.eval()
    cache = ContextCache(torch.ones(1, 2 * (5 + 2 * 6)))
    with torch.no_grad():
        model(input_ids=torch.tensor([[3, 4, 5, 6]]), past_key_values=cache)
    torch.testing.assert_close(cache.context[:, :10], torch.full((1, 10), 0.5))
    torch.testing.assert_close(half_lives_of_biases(model), torch.full((2, 5), 4.0))


def test_measuring_is_a_mean_over_tokens_and_leaves_no_trace(model):
    seen = []
    hook = model.model.layers[1].forget_gate.register_forward_hook(lambda gate, inputs, z: seen.append(z.detach()))
    found = measured_half_lives(model.train(), TOKEN_IDS)
    hook.remove()
    assert model.training and not model.model.layers[0].forget_gate._forward_hooks
    expected = math.log(2) / -seen[0].sigmoid().log().mean(dim=(0, 1))
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=0)


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


def test_the_cell_of_half_lives(tmp_path, small_chats, monkeypatch):
    shown, said = [], []
    monkeypatch.setattr(context_picture, "show", shown.append)
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
