"""Pictures of what a New-LLM remembers: its context vector token by token, and how long its channels remember.

Dimensions: L layers, C channels of the context of one layer; N = L * C numbers of the context vector; T tokens.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import functional
from transformers import PreTrainedModel

from ..errors import InputError
from ..evaluation.generation import document_ids, trace_context
from ..evaluation.perplexity import token_sequence
from ..models import NewLLMForCausalLM, build_model
from ..models.recurrent_model import RecurrentGenerationMixin
from ..stages.evaluate import held_out_documents, held_out_text
from ..training.curves import COLOURS, as_label, in_the_font, plain
from ..training.trained_model import open_model
from .page.languages import text
from .page.notices import in_one_sentence, say, show
from .page.pieces import figure_html

MOST_TOKENS = 48  # more would not be legible side by side
LONGEST_TOKEN = 12  # characters of its label
MOST_ROWS = 192  # more would be thinner than a line of pixels and a half
DIVERGING = "RdBu_r"  # blue below zero, white at zero, red above: every kind of colour vision can tell them apart
WITHIN_COLOURS = 0.9  # share of the values; a few are so large that all others would be white beside them
DPI = 100
MOST_MEASURED = 4096  # held-out tokens that the forget gates are measured on
LAYERS_IN_A_ROW = 4


def context_figure(
    tokens: Sequence[str], contexts: torch.Tensor, half_lives: torch.Tensor | None = None, title: str = ""
) -> Figure:
    """Below, a column for each of the T tokens and rows of channels (evenly spaced ones where there are many), quick
    ones above slow ones, layer below layer; above, how far each token has moved the whole vector. `contexts`: [T + 1,
    N]. `half_lives`: [L, C]; None: one layer, whose channels are ordered by how much they change for their size."""
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
    above, below = figure.subplots(2, 1, height_ratios=(1, 3.6), sharex=True)
    positions = range(len(tokens))
    above.bar(positions, moved.numpy(), color="#57606a", width=0.8)
    above.set(ylabel="moved by")
    above.spines[["top", "right"]].set_visible(False)
    above.tick_params(axis="x", length=0, labelbottom=False)
    colours = {"cmap": DIVERGING, "vmin": -bound, "vmax": bound}
    image = below.imshow(values.numpy(), aspect="auto", interpolation="nearest", **colours)
    for layer in range(1, layers):
        below.axhline(layer * shown - 0.5, color="#24292f", linewidth=1.2)
    # parse_math: what stands between two dollar signs is no formula here.
    below.set_xticks(positions, [label(token) for token in tokens], rotation=90, fontsize=8, parse_math=False)
    numbers = range(1, layers + 1) if layers > 1 else ()
    below.set_yticks([(number - 0.5) * shown - 0.5 for number in numbers], numbers, fontsize=8)
    below.tick_params(axis="y", length=0)
    count = f"{'' if shown == channels else f'{shown} of '}{channels} channels"
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
    figure = context_figure(tokens, contexts, half_lives, title)
    return figure_html(figure, "the context vector after each token, as colours", dpi=DPI)


def label(token: str) -> str:
    """A token with its white space made visible, cut where it is long, in letters that can be drawn."""
    shown = token.replace("\n", "↵").replace("\t", "→").replace(" ", "·") or "∅"
    shown = in_the_font(shown[: LONGEST_TOKEN + 1])
    return shown if len(shown) <= LONGEST_TOKEN else shown[: LONGEST_TOKEN - 1] + "…"


@in_one_sentence()
def show_context(folder: str | Path, text: str) -> None:
    trained = open_model(folder)
    if not isinstance(trained.model, RecurrentGenerationMixin):
        raise InputError(f"{trained.name} carries no context vector; name the folder of a New-LLM.", "NL-404")
    token_ids = document_ids(trained.tokenizer, text)
    if len(token_ids) < 2:
        raise InputError("text is empty: write something to read.")
    read = token_ids[-MOST_TOKENS:]
    contexts = trace_context(trained.model, token_ids, len(read))
    tokens = [trained.tokenizer.decode([token]) for token in read]
    show(context_picture(tokens, contexts, trained.model))
    size = contexts.shape[1]
    say(
        f"{trained.name} has read {len(token_ids):,} tokens, one column each, and keeps of them the last column, "
        f"{size} numbers ({4 * size:,} bytes), and the last token. It would keep no more after a million tokens."
    )


def half_life_figure(before: torch.Tensor, after: torch.Tensor) -> Figure:
    """A plot for each layer: its channels' half-lives in tokens, sorted; before and after training, [L, C]."""
    layers, channels = before.shape
    columns = min(layers, LAYERS_IN_A_ROW)
    rows = math.ceil(layers / columns)
    figure = Figure(figsize=(max(2.8 * columns, 4.5), 2.8 * rows), layout="constrained")
    plots = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for number, axes in enumerate(plots):
        if number >= layers:
            axes.remove()
            continue
        for colour, name, half_lives in zip(
            COLOURS, ("before training", "after training"), (before, after), strict=False
        ):
            axes.plot(range(1, channels + 1), half_lives[number].sort().values, color=colour, label=name, linewidth=1.6)
        axes.set(title=f"layer {number + 1}", xlabel="channels, sorted", yscale="log")
        plain(axes)
    for axes in plots[:layers:columns]:
        axes.set_ylabel("half-life (tokens)")
    plots[0].yaxis.set_major_formatter("{x:g}")
    plots[0].legend(frameon=False)
    return figure


@in_one_sentence()
def show_half_lives(folder: str | Path) -> None:
    """Show how long the channels of a trained New-LLM remember on held-out text, beside those of a new one."""
    trained = open_model(folder)
    if not isinstance(trained.model, NewLLMForCausalLM):
        say(f"{trained.name} is no New-LLM: it has no channels with a half-life to show.", "note")
        return
    documents = held_out_documents(trained, held_out_text(trained)).sample(MOST_MEASURED).documents
    read = [token_sequence(document, trained.tokenizer.bos_token_id)[0] for document in documents]
    token_ids = np.concatenate(read)[:MOST_MEASURED].tolist()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        new = build_model(trained.model.config).to(trained.model.device)
    before, after = (measured_half_lives(model, token_ids) for model in (new, trained.model))

    def middle(half_lives: torch.Tensor) -> str:
        low, high = half_lives.flatten().quantile(torch.tensor([0.1, 0.9])).tolist()  # but for a tenth at both ends
        return text("{low} to {high}", low=f"{low:.2g}", high=f"{high:,.0f}" if high >= 10 else f"{high:.2g}")

    figure = half_life_figure(before, after)
    show(figure_html(figure, "the half-life of every channel, before and after training", dpi=DPI))
    say(
        f"Half of what a channel of {trained.name} holds is gone after {middle(after)} tokens, in four of five "
        f"channels; before training it was {middle(before)}. Measured on {len(token_ids):,} held-out tokens."
    )


@torch.no_grad()
def half_lives_of_biases(model: NewLLMForCausalLM) -> torch.Tensor:
    """[L, C] half-lives in tokens, as the forget gates' biases alone would have them; the same whatever is read."""
    log_forget = torch.stack([functional.logsigmoid(layer.forget_gate.bias) for layer in model.model.layers])
    return math.log(2) / -log_forget.float().cpu()


@torch.no_grad()
def measured_half_lives(model: NewLLMForCausalLM, token_ids: Sequence[int]) -> torch.Tensor:
    """[L, C] half-lives in tokens, from the mean of ln f while the model reads `token_ids`."""
    measured, was_training = [], model.training

    def measure(gate, inputs, z):
        measured.append(functional.logsigmoid(z.float()).mean(dim=(0, 1)))

    with ExitStack() as hooks:
        for layer in model.model.layers:
            hooks.enter_context(layer.forget_gate.register_forward_hook(measure))
        model.eval().model(input_ids=torch.tensor([list(token_ids)], device=model.device), use_cache=False)
    model.train(was_training)
    return math.log(2) / -torch.stack(measured).float().cpu()
