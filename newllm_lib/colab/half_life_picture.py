"""A picture of how long the channels of a New-LLM remember, before and after its training."""

import io
import math
from pathlib import Path

import numpy as np
import torch
from IPython.display import HTML, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..evaluation.half_life import measured_half_lives
from ..evaluation.perplexity import token_sequence
from ..models import NewLLMForCausalLM, build_model
from ..stages.evaluate import held_out_documents, held_out_text
from ..training.curves import COLOURS
from ..training.trained_model import open_model
from .page.notices import in_one_sentence, picture_html, quiet_notebook, say

MOST_TOKENS = 4096  # held-out tokens that the forget gates are measured on
LAYERS_IN_A_ROW = 4
DPI = 100


def half_life_figure(before: torch.Tensor, after: torch.Tensor) -> Figure:
    """A plot for each layer: the half-lives of its channels, from the quickest to the slowest.

    Args:
        before, after: [L, C] in tokens, before training and after it.
    """
    layers, channels = before.shape
    columns = min(layers, LAYERS_IN_A_ROW)
    rows = math.ceil(layers / columns)
    figure = Figure(figsize=(max(2.8 * columns, 4.5), 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axes in plots[layers:]:
        axes.remove()
    for number, axes in enumerate(plots[:layers]):
        for colour, name, half_lives in zip(COLOURS, ("before", "after"), (before, after), strict=False):
            axes.plot(range(1, channels + 1), half_lives[number].sort().values, color=colour, label=name, linewidth=1.6)
        axes.set(title=f"layer {number + 1}", xlabel="channels, sorted", yscale="log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in plots[:layers:columns]:
        axes.set_ylabel("half-life (tokens)")
    plots[0].yaxis.set_major_formatter("{x:g}")
    plots[0].legend(frameon=False, title="training")
    return figure


@in_one_sentence
def show_half_lives(folder: str | Path) -> None:
    """Show how long the channels of a trained New-LLM remember on held-out text, beside those of a new one of its kind.

    Raises:
        CellStopped: no such model, or its held-out text is out of reach.
    """
    quiet_notebook()
    trained = open_model(folder)
    if not isinstance(trained.model, NewLLMForCausalLM):
        say(f"{trained.name} is no New-LLM: it has no channels with a half-life to show.", "note")
        return
    documents = held_out_documents(trained, held_out_text(trained)).sample(MOST_TOKENS).documents
    read = [token_sequence(document, trained.tokenizer.bos_token_id)[0] for document in documents]
    token_ids = np.concatenate(read)[:MOST_TOKENS].tolist()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        new = build_model(trained.model.config).to(trained.model.device)
    before, after = (measured_half_lives(model, token_ids) for model in (new, trained.model))
    buffer = io.BytesIO()
    half_life_figure(before, after).savefig(buffer, format="png", dpi=DPI)
    display(HTML(picture_html(buffer.getvalue(), "the half-life of every channel, before and after training")))
    say(
        f"Half of what a channel of {trained.name} holds is gone after {_middle(after)} tokens, in four of five "
        f"channels; before training it was {_middle(before)}. Measured on {len(token_ids):,} held-out tokens."
    )


def _middle(half_lives: torch.Tensor) -> str:
    """The range of all but the quickest and the slowest tenth."""
    low, high = half_lives.flatten().quantile(torch.tensor([0.1, 0.9])).tolist()
    return f"{low:.2g} to {high:,.0f}" if high >= 10 else f"{low:.2g} to {high:.2g}"
