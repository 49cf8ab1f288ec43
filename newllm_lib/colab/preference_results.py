"""What tuning by preferences has brought: metrics on held-out and on training pairs, accuracy by kind of flaw, and what
the model answers, before and after."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IPython.display import HTML, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..preferences.dpo import ANSWER_TOKENS, PREFERENCES_FILE
from ..preferences.generator import KINDS
from ..preferences.scores import chosen_falls
from ..training.curves import COLOURS, as_label
from .answers import read_measured, show_before_and_after
from .page.notices import in_one_sentence, picture_html, say, table_html
from .panel.controls import in_the_panels_words
from .panel.preference_panel import PreferencePanel
from .preference_preview import BAG, shortcut_accuracies, title

PICTURE_FILE = "preferences.png"
CHANCE = 0.5
AT_THE_START = {"loss": math.log(2), "accuracy": CHANCE, "margin": 0.0, "kl": 0.0}  # whatever the model
# name in the results, in words, form
METRICS = (
    ("loss", "loss of DPO", ".3f"),
    ("accuracy", "pairs with the chosen answer ahead", ".1%"),
    ("margin", "reward margin, chosen - rejected", ".2f"),
    ("chosen_logp", "log-probability of a chosen answer (nats)", ".1f"),
    ("rejected_logp", "log-probability of a rejected answer (nats)", ".1f"),
    ("kl", "KL to the reference (nats per token)", ".3f"),
    ("pairs", "pairs scored", ","),
)


@in_one_sentence
def show_preferences(panel: PreferencePanel, folder: str | Path) -> None:
    """A table, a picture and a verdict: what the model prefers now, and what that is worth."""
    measured = read_preferences(folder)
    splits = panel.arguments(panel.models[0]).load_preferences()
    display(HTML(table_html(metric_cells(measured), header=True, numbers=True)))
    if measured["accuracy_by_kind"]:
        picture = Path(folder).parent / PICTURE_FILE
        kinds_figure(measured, Counter(pair.kind for pair in splits.validation.pairs)).savefig(picture, dpi=95)
        display(HTML(picture_html(picture.read_bytes(), "accuracy by kind of flaw")))
    if warning := chosen_falls(as_logged({"margin": 0.0, **measured["reference"]}), as_logged(measured["held_out"])):
        say(in_the_panels_words(warning), "note")
    say(verdict(measured, shortcut_accuracies(splits)[BAG]))


@in_one_sentence
def show_preferred_answers(folder: str | Path) -> None:
    """What the model says to held-out prompts before and after, side by side."""
    show_before_and_after(
        read_preferences(folder), "reference", ANSWER_TOKENS, " To prefer an answer is not to be able to write it."
    )


def read_preferences(folder: str | Path) -> dict[str, Any]:
    """What the run in `folder` has measured when it was finished.

    Raises:
        InputError: it is not finished.
    """
    return read_measured(folder, PREFERENCES_FILE)


def metric_cells(measured: dict[str, Any]) -> list[list[str]]:
    """A row per metric: of the reference and the tuned model on held-out pairs, of this one on training pairs, too."""
    columns = ({**AT_THE_START, **measured["reference"]}, measured["held_out"], measured["train"])
    rows = [["", "reference, held-out pairs", "tuned, held-out pairs", "tuned, training pairs"]]
    for name, words, form in METRICS:
        rows.append([words, *(format(column[name], form) if name in column else "" for column in columns)])
    return rows


def as_logged(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics under the names that a trainer logs them by."""
    return {f"eval_{name}": value for name, value in metrics.items()}


def kinds_figure(measured: dict[str, Any], counts: Mapping[str, int]) -> Figure:
    """A bar for each kind of flaw, and one for all held-out pairs; the line is chance.

    Args:
        counts: kind -> held-out pairs; told if all of them were scored.
    """
    by_kind = measured["accuracy_by_kind"]
    order = [kind for kind in KINDS if kind in by_kind] + sorted(set(by_kind) - set(KINDS))
    are_all = sum(counts.values()) == measured["held_out"]["pairs"]
    titles = {kind: as_label(title(kind)) for kind in order}
    names = [f"{titles[kind]} ({counts[kind]})" if are_all else titles[kind] for kind in order]
    names.append(f"all ({measured['held_out']['pairs']:,})")
    shares = [by_kind[kind] for kind in order] + [measured["held_out"]["accuracy"]]
    figure = Figure(figsize=(4.9, 0.7 + 0.3 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    heights = range(len(names) - 1, -1, -1)
    axes.barh(heights, shares, height=0.62, color=[COLOURS[0]] * len(order) + ["#57606a"])
    for height, share in zip(heights, shares, strict=True):
        axes.annotate(f"{share:.0%}", (share, height), (4, 0), textcoords="offset points", va="center")
    axes.axvline(CHANCE, color="#cf222e", linewidth=1, linestyle="--")
    axes.annotate(
        "chance", (CHANCE, heights[0] + 0.42), (3, 0), textcoords="offset points", color="#cf222e", va="bottom"
    )
    axes.set(
        xlim=(0, 1.08), ylim=(-0.6, len(names) - 0.1), yticks=heights, yticklabels=names,
        xlabel="held-out pairs with the chosen answer ahead",
    )  # fmt: skip
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(alpha=0.25, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def verdict(measured: dict[str, Any], bag: float) -> str:
    """What the accuracy is, how sure it is, and what it is worth beside who has counted characters.

    Args:
        bag: the accuracy of that.
    """
    held_out, train = measured["held_out"], measured["train"]
    accuracy, error = held_out["accuracy"], standard_error(held_out["accuracy"], held_out["pairs"])
    words = [f"The chosen answer is ahead in {accuracy:.1%} of {held_out['pairs']:,} held-out pairs (± {error:.1%})."]
    if accuracy - CHANCE < 2 * error:
        words.append("That is no better than chance.")
    elif accuracy - bag < error:
        words.append(f"Counting characters gets {bag:.0%}, so nothing here shows that it has read them.")
    else:
        words.append(f"Counting characters gets {bag:.0%}.")
    if (gap := train["accuracy"] - accuracy) > 2 * error:
        words.append(f"On training pairs it is {gap:.0%} more: part of it was learned by heart.")
    if measured["accuracy_by_kind"]:
        kind, share = min(measured["accuracy_by_kind"].items(), key=lambda item: item[1])
        words.append(f"Weakest: {title(kind)}, {share:.0%}.")
    return " ".join([*words, "One run with one seed."])


def standard_error(share: float, count: int) -> float:
    """Of a share of `count` pairs."""
    return math.sqrt(max(share * (1 - share), 1 / (4 * count)) / count)
