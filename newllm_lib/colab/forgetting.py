"""What tuning has brought and what it has cost: the tuned model beside its base, from what the run has measured."""

from pathlib import Path
from typing import Any

from IPython.display import HTML, display
from matplotlib.figure import Figure

from ..adapters.qlora_lwf import ANSWER_TOKENS, FORGETTING_FILE
from .page.notices import in_one_sentence, say
from .page.pieces import escape, figure_html, small_html, table_html
from .progress import METRIC_TITLES, metric_cells, read_measured, show_before_and_after

PICTURE_FILE = "forgetting.png"
KINDS = {"new_task": "new task", "general_text": "general text"}
BETTER, WORSE, UNCHANGED = "#1a7f37", "#cf222e", "#6e7781"
NO_CHANGE = 0.002  # a smaller change is none: another held-out sample would move the figures as far


@in_one_sentence
def show_forgetting(folder: str | Path) -> None:
    """A table, a picture and a sentence: what was learned and what was forgotten."""
    measured = read_measured(folder, FORGETTING_FILE)
    rows = [["", *METRIC_TITLES, "KL to the base (nats per token)"]]
    for kind, name in KINDS.items():
        before, after = measured[kind]["before"], measured[kind]["after"]
        rows.append([f"<b>{name}</b>, base{small_html(escape(measured[kind]['text']))}", *metric_cells(before), "0"])
        bits, *others = metric_cells(after)
        share = small_html(f"{change(measured, kind):+.1%}")
        rows.append([f"<b>{name}</b>, tuned", bits + share, *others, f"{after['kl_to_base']:.3f}"])
    display(HTML(table_html(rows, header=True, numbers=True)))
    picture = Path(folder).parent / PICTURE_FILE
    display(HTML(figure_html(forgetting_figure(measured), "learned and forgotten", picture)))
    say(verdict(measured))


@in_one_sentence
def show_answers_of_both(folder: str | Path) -> None:
    """What base and tuned model say to the same questions, side by side."""
    show_before_and_after(read_measured(folder, FORGETTING_FILE), "base", ANSWER_TOKENS)


def change(measured: dict[str, Any], kind: str) -> float:
    """How many more bits per byte the tuned model needs than its base, as a share; below 0: fewer."""
    return measured[kind]["after"]["bits_per_byte"] / measured[kind]["before"]["bits_per_byte"] - 1


def forgetting_figure(measured: dict[str, Any]) -> Figure:
    """An arrow from the base to the tuned model for each kind of text: to the left is better."""
    figure = Figure(figsize=(8, 2.2), layout="constrained")
    axes = figure.subplots()
    changes = {kind: 100 * change(measured, kind) for kind in KINDS}
    low, high = min(0, *changes.values()), max(0, *changes.values())
    # The base in view, with room for words beside it; a change of next to nothing looks like it.
    room = 0.4 * max(max(changes.values()) - low, 2.0)
    for height, kind in enumerate(reversed(KINDS)):
        percent = changes[kind]
        colour = UNCHANGED if abs(percent) < 100 * NO_CHANGE else BETTER if percent < 0 else WORSE
        axes.annotate("", (percent, height), (0, height), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 3})
        axes.plot(0, height, marker="o", markersize=7, markerfacecolor="white", color=UNCHANGED)
        before, after = (measured[kind][when]["bits_per_byte"] for when in ("before", "after"))
        words = f"{before:.3f} → {after:.3f} bits per byte ({percent / 100:+.1%})"
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # hides the base's line
        place = {"textcoords": "offset points", "ha": "center"}
        axes.annotate(words, (percent / 2, height), (0, 9), **place, color=colour, bbox=ground)
    axes.axvline(0, color=UNCHANGED, linewidth=1, zorder=0)
    axes.set(
        xlabel="bits that held-out text takes, against the base, in % (to the left is better)",
        xlim=(low - room, high + room), ylim=(-0.5, len(KINDS) - 0.3),
        yticks=range(len(KINDS)), yticklabels=list(reversed(KINDS.values())),
    )  # fmt: skip
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def verdict(measured: dict[str, Any]) -> str:
    """What was gained and what was lost, whichever it is."""
    new, old = (change(measured, kind) for kind in KINDS)
    if abs(new) < NO_CHANGE:
        learned = f"Hardly anything was learned: the new task takes as many bits as before ({new:+.1%})."
    elif new > 0:
        learned = f"Nothing was learned: the new task takes {new:.1%} more bits than before."
    else:
        learned = f"Learned: the new task takes {-new:.1%} fewer bits than before."
    if abs(old) < NO_CHANGE:
        forgotten = f"Nothing was forgotten: general text takes as many bits as before ({old:+.1%})."
    elif old > 0:
        forgotten = f"Forgotten: general text takes {old:.1%} more bits than before."
    else:
        forgotten = f"Nothing was forgotten: general text takes {-old:.1%} fewer bits than before."
    distance = measured["general_text"]["after"]["kl_to_base"]
    return (
        f"{learned} {forgotten} There the tuned model is {distance:.3f} nats per token from its base. One run with "
        "one seed, on a sample of held-out text."
    )
