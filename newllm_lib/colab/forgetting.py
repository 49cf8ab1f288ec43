"""What tuning has brought and what it has cost: the tuned model beside its base, from what the run has measured."""

from pathlib import Path
from typing import Any

from IPython.display import HTML, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..adapters.qlora_lwf import ANSWER_TOKENS, FORGETTING_FILE
from .answers import read_measured, show_before_and_after
from .page.notices import escape, in_one_sentence, picture_html, say, table_html

PICTURE_FILE = "forgetting.png"
KINDS = {"new_task": "new task", "general_text": "general text"}
BETTER, WORSE, UNCHANGED = "#1a7f37", "#cf222e", "#6e7781"
NO_CHANGE = 0.002  # a smaller change is none: another held-out sample would move the figures as far


@in_one_sentence
def show_forgetting(folder: str | Path) -> None:
    """A table, a picture and a sentence: what was learned and what was forgotten."""
    measured = read_forgetting(folder)
    picture = Path(folder).parent / PICTURE_FILE
    forgetting_figure(measured).savefig(picture, dpi=110)
    display(HTML(table_html(forgetting_cells(measured), header=True, numbers=True)))
    display(HTML(picture_html(picture.read_bytes(), "learned and forgotten")))
    say(verdict(measured))


@in_one_sentence
def show_answers_of_both(folder: str | Path) -> None:
    """What base and tuned model say to the same questions, side by side."""
    show_before_and_after(read_forgetting(folder), "base", ANSWER_TOKENS)


def read_forgetting(folder: str | Path) -> dict[str, Any]:
    """What the run in `folder` has measured when it was finished.

    Raises:
        InputError: it is not finished.
    """
    return read_measured(folder, FORGETTING_FILE)


def forgetting_cells(measured: dict[str, Any]) -> list[list[str]]:
    """Both kinds of text, before and after."""
    rows = [["", "bits per byte", "perplexity (per token)", "token accuracy", "KL to the base (nats per token)"]]
    for kind, name in KINDS.items():
        before, after = measured[kind]["before"], measured[kind]["after"]
        text = f'<div style="opacity:.75;font-size:12px">{escape(measured[kind]["text"])}</div>'
        rows.append([f"<b>{name}</b>, base{text}", *_figures(before), "0"])
        share = f'<div style="opacity:.75;font-size:12px">{_share(change(measured, kind))}</div>'
        bits, *others = _figures(after)
        rows.append([f"<b>{name}</b>, tuned", bits + share, *others, f"{after['kl_to_base']:.3f}"])
    return rows


def _figures(metrics: dict[str, Any]) -> list[str]:
    return [f"{metrics['bits_per_byte']:.3f}", f"{metrics['perplexity']:,.1f}", f"{metrics['token_accuracy']:.1%}"]


def change(measured: dict[str, Any], kind: str) -> float:
    """How many more bits per byte the tuned model needs than its base, as a share; below 0: fewer."""
    return measured[kind]["after"]["bits_per_byte"] / measured[kind]["before"]["bits_per_byte"] - 1


def _share(share: float) -> str:
    return f"{share:+.1%}"


def forgetting_figure(measured: dict[str, Any]) -> Figure:
    """An arrow from the base to the tuned model for each kind of text: to the left is better."""
    figure = Figure(figsize=(8, 2.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    changes = {kind: 100 * change(measured, kind) for kind in KINDS}
    # The base in view, with room for words beside it; a change of next to nothing looks like it.
    width = max(max(changes.values()) - min(0, *changes.values()), 2.0)
    for height, kind in enumerate(reversed(KINDS)):
        percent = changes[kind]
        colour = UNCHANGED if abs(percent) < 100 * NO_CHANGE else BETTER if percent < 0 else WORSE
        axes.annotate("", (percent, height), (0, height), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 3})
        axes.plot(0, height, marker="o", markersize=7, markerfacecolor="white", color=UNCHANGED)
        before, after = (measured[kind][when]["bits_per_byte"] for when in ("before", "after"))
        words = f"{before:.3f} → {after:.3f} bits per byte ({_share(percent / 100)})"
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # hides the base's line
        place = {"textcoords": "offset points", "ha": "center"}
        axes.annotate(words, (percent / 2, height), (0, 9), **place, color=colour, bbox=ground)
    axes.axvline(0, color=UNCHANGED, linewidth=1, zorder=0)
    axes.set(
        xlabel="bits that held-out text takes, against the base, in % (to the left is better)",
        xlim=(min(0, *changes.values()) - 0.4 * width, max(0, *changes.values()) + 0.4 * width),
        ylim=(-0.5, len(KINDS) - 0.3),
        yticks=range(len(KINDS)),
        yticklabels=list(reversed(KINDS.values())),
    )
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def verdict(measured: dict[str, Any]) -> str:
    """What was gained and what was lost, whichever it is."""
    learned, lost = (change(measured, kind) for kind in KINDS)
    distance = measured["general_text"]["after"]["kl_to_base"]
    return (
        f"{_learned(learned)} {_forgotten(lost)} There the tuned model is {distance:.3f} nats per token from its base. "
        "One run with one seed, on a sample of held-out text."
    )


def _learned(share: float) -> str:
    if abs(share) < NO_CHANGE:
        return f"Hardly anything was learned: the new task takes as many bits as before ({share:+.1%})."
    if share > 0:
        return f"Nothing was learned: the new task takes {share:.1%} more bits than before."
    return f"Learned: the new task takes {-share:.1%} fewer bits than before."


def _forgotten(share: float) -> str:
    if abs(share) < NO_CHANGE:
        return f"Nothing was forgotten: general text takes as many bits as before ({share:+.1%})."
    if share > 0:
        return f"Forgotten: general text takes {share:.1%} more bits than before."
    return f"Nothing was forgotten: general text takes {-share:.1%} fewer bits than before."
