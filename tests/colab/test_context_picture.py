"""The picture of the context vector: one column a token, one row a dimension, legible whatever the text is."""

import warnings

import numpy as np
import pytest
import torch

from newllm_lib.colab import context_picture
from newllm_lib.colab.context_picture import MOST_ROWS, MOST_TOKENS, context_figure, label, show_context
from newllm_lib.colab.page.notices import CellStopped

TOKENS = ["User", ":", " $1$", "日本", "\n"]


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
    assert [text.get_text() for text in below.get_xticklabels()] == ["User", ":", "·$1$", "□□", "↵"]
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
    monkeypatch.setattr(context_picture, "display", lambda content: shown.append(content.data))
    monkeypatch.setattr(context_picture, "say", said.append)
    show_context(small_chats["newllm"], "It was a long day. " * 10)
    assert "<img" in shown[0] and "has read 191 tokens" in said[0] and "bytes" in said[0]
    assert MOST_TOKENS < 191
    with pytest.raises(CellStopped, match="no context vector"):
        show_context(small_chats["tiny-gpt2"], "It was")
    with pytest.raises(CellStopped, match="text is empty"):
        show_context(small_chats["newllm"], "")
