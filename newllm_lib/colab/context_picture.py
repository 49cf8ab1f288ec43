"""A picture of the context vector as it changes token by token: what a New-LLM remembers of a text, beside the last
token.

Dimensions: L layers, C channels of the context of one layer; N = L * C numbers of the context vector; T tokens.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from IPython.display import HTML, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from ..errors import InputError
from ..evaluation.context_trace import trace_context
from ..evaluation.half_life import half_lives_of_biases
from ..evaluation.token_stream import document_ids
from ..models import NewLLMForCausalLM
from ..models.context_cache import RecurrentGenerationMixin
from ..training.curves import as_label, in_the_font
from ..training.trained_model import open_model
from .page.notices import in_one_sentence, picture_html, quiet_notebook, say

MOST_TOKENS = 48  # more would not be legible side by side
LONGEST_TOKEN = 12  # characters of its label
MOST_ROWS = 192  # more would be thinner than a line of pixels and a half
COLOURS = "RdBu_r"  # blue below zero, white at zero, red above: told apart by every kind of colour vision
WITHIN_COLOURS = 0.9  # share of the values; a few are so large that all others would be white beside them
DPI = 100


def context_figure(
    tokens: Sequence[str], contexts: torch.Tensor, half_lives: torch.Tensor | None = None, title: str = ""
) -> Figure:
    """Below, a column for each token and rows of channels, quick ones above slow ones, one layer below the other;
    above, how far each token has moved the whole vector. Of many channels evenly spaced ones are shown.

    Args:
        tokens: T texts.
        contexts: [T + 1, N] context before the first of them, and after each.
        half_lives: [L, C] what is known of the channels; None: one layer, whose channels are ordered by how much they
            change for their size.
    """
    steps = contexts.diff(dim=0)  # [T, N]
    moved = steps.pow(2).mean(dim=1).sqrt()
    if half_lives is None:
        size = contexts[1:].abs().mean(dim=0).clamp(min=1e-6)
        half_lives = size[None] / steps.abs().mean(dim=0)
    layers, channels = half_lives.shape
    shown = min(max(MOST_ROWS // layers, 1), channels)
    order = half_lives.argsort(dim=1)[:, torch.linspace(0, channels - 1, shown).round().long()]
    order += channels * torch.arange(layers)[:, None]
    values = contexts[1:, order.flatten()].T  # [rows, T], the first row on top
    bound = max(float(values.abs().quantile(WITHIN_COLOURS)), 1e-6)
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=(1, 3.6), sharex=True)
    positions = range(len(tokens))
    above.bar(positions, moved.numpy(), color="#57606a", width=0.8)
    above.set(ylabel="moved by")
    above.spines[["top", "right"]].set_visible(False)
    above.tick_params(axis="x", length=0, labelbottom=False)
    image = below.imshow(values.numpy(), aspect="auto", interpolation="nearest", cmap=COLOURS, vmin=-bound, vmax=bound)
    for layer in range(1, layers):
        below.axhline(layer * shown - 0.5, color="#24292f", linewidth=1.2)
    # parse_math: what stands between two dollar signs is no formula here.
    below.set_xticks(positions, [label(token) for token in tokens], rotation=90, fontsize=8, parse_math=False)
    numbers = range(1, layers + 1) if layers > 1 else ()
    below.set_yticks([(number - 0.5) * shown - 0.5 for number in numbers], numbers, fontsize=8)
    below.tick_params(axis="y", length=0)
    count = f"{channels} channels" if shown == channels else f"{shown} of {channels} channels"
    count = f"layers, {count} each" if layers > 1 else count
    below.set(ylabel=f"{count},\nthe slowest at the bottom", xlabel="token read")
    figure.colorbar(image, ax=below, label="value", pad=0.01, fraction=0.03, extend="both")
    if title:
        figure.suptitle(as_label(title), fontsize=11)
    return figure


def context_picture(
    tokens: Sequence[str], contexts: torch.Tensor, model: PreTrainedModel | None = None, title: str = ""
) -> str:
    """`context_figure` as HTML; of a New-LLM `model` the channels are ordered by the biases of their forget gates."""
    half_lives = half_lives_of_biases(model) if isinstance(model, NewLLMForCausalLM) else None
    buffer = io.BytesIO()
    context_figure(tokens, contexts, half_lives, title).savefig(buffer, format="png", dpi=DPI)
    return picture_html(buffer.getvalue(), "the context vector after each token, as colours")


def label(token: str) -> str:
    """A token with its white space made visible, cut where it is long; what the font lacks is a box."""
    shown = token.replace("\n", "↵").replace("\t", "→").replace(" ", "·") or "∅"
    if len(shown) > LONGEST_TOKEN:
        shown = shown[: LONGEST_TOKEN - 1] + "…"
    return in_the_font(shown)


@in_one_sentence
def show_context(folder: str | Path, text: str) -> None:
    """Let a trained New-LLM read `text`, and show its context after each token.

    Raises:
        CellStopped: no such model, or one without a context; or there is no text.
    """
    quiet_notebook()
    trained = open_model(folder)
    if not isinstance(trained.model, RecurrentGenerationMixin):
        raise InputError(f"{trained.name} carries no context vector; name the folder of a New-LLM.", "NL-404")
    token_ids = document_ids(trained.tokenizer, text)
    if len(token_ids) < 2:
        raise InputError("text is empty: write something to read.")
    read = token_ids[-MOST_TOKENS:]
    contexts = trace_context(trained.model, token_ids, len(read))
    tokens = [trained.tokenizer.decode([token]) for token in read]
    display(HTML(context_picture(tokens, contexts, trained.model)))
    size = contexts.shape[1]
    say(
        f"{trained.name} has read {len(token_ids):,} tokens, one column each, and keeps of them the last column, "
        f"{size} numbers ({4 * size:,} bytes), and the last token. It would keep no more after a million tokens."
    )
