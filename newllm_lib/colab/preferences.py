"""The cells of notebook 6: a look at the pairs, and what tuning by them has brought."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..data.sources import Splits
from ..preferences.dpo import ANSWER_TOKENS, PREFERENCES_FILE
from ..preferences.generator import KINDS
from ..preferences.pairs import Preference, Preferences
from ..preferences.scores import chosen_falls
from ..preferences.shortcuts import CLASSIFIERS, held_out_accuracy
from ..training.curves import COLOURS, as_label, plain
from .page.languages import text, translate
from .page.notices import in_one_sentence, say, show
from .page.pieces import AS_WRITTEN, FAINT, escape, figure_html, label_of, shortened, small_html, table_html
from .panel.controls import in_the_panels_words
from .panel.preference_panel import PreferencePanel
from .results import read_measured, show_before_and_after

# kind -> what is wrong with the rejected answer
FLAWS = {
    "off_topic": "right, but about another topic", "vague": "general phrases that say nothing",
    "impolite": "right, but rude", "wrong_fact": "untrue", "cut_short": "breaks off",
    "repetitive": "says the same again and again", "wrong_language": "English in the place of Japanese",
}  # fmt: skip
UNLABELLED = 4  # pairs shown of data whose flaws have no names
MOST_CHARACTERS = 280
# Pairs that the shortcuts are learned from and tried on: enough to tell, and quick.
MOST_LEARNED, MOST_TRIED = 2_000, 500
BAG = "bag of characters"
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


@in_one_sentence()
def preview_pairs(panel: PreferencePanel) -> None:
    """Show what training will see: counts, a pair for each kind of flaw, and how far a reader of lengths alone gets."""
    splits = panel.arguments(panel.models[0]).load_preferences()
    show(counts_html(splits))
    show(pairs_html(pairs_to_show(splits.train)))
    shortcuts = shortcut_accuracies(splits)
    by_length = max(accuracy for name, accuracy in shortcuts.items() if name != BAG)
    say(
        f"{len(splits.train.pairs):,} pairs are ready, {len(splits.validation.pairs):,} more are held out. Who knows "
        f"only how long the answers are tells at most {by_length:.0%} of the held-out pairs; who counts their "
        f"characters, and reads nothing, {shortcuts[BAG]:.0%}. Half is chance."
    )


@in_one_sentence()
def show_preferences(panel: PreferencePanel, folder: str | Path) -> None:
    """A table, a picture and a verdict: what the model prefers now, and what that is worth."""
    measured = read_measured(folder, PREFERENCES_FILE)
    splits = panel.arguments(panel.models[0]).load_preferences()
    columns = ({**AT_THE_START, **measured["reference"]}, measured["held_out"], measured["train"])
    kept = "held-out pairs" if splits.test is None else "pairs to test on"
    rows = [["", f"reference, {kept}", f"tuned, {kept}", "tuned, training pairs"]]
    for name, words, form in METRICS:
        rows.append([words, *(format(column[name], form) if name in column else "" for column in columns)])
    show(table_html(rows, header=True, numbers=True))
    if measured["accuracy_by_kind"]:
        figure = kinds_figure(measured, Counter(pair.kind for pair in splits.reported.pairs))
        show(figure_html(figure, "accuracy by kind of flaw", Path(folder).parent / PICTURE_FILE, dpi=95))
    # `chosen_falls` compares what a trainer has logged, under these names.
    first, last = ({f"eval_{name}": value for name, value in column.items()} for column in columns[:2])
    if warning := chosen_falls(first, last):
        say(in_the_panels_words(warning), "note")
    say(verdict(measured, shortcut_accuracies(splits)[BAG]))


@in_one_sentence()
def show_preferred_answers(folder: str | Path) -> None:
    remark = " To prefer an answer is not to be able to write it."
    show_before_and_after(read_measured(folder, PREFERENCES_FILE), "reference", ANSWER_TOKENS, remark)


def counts_html(splits: Splits[Preferences]) -> str:
    def length(answers: Sequence[str]) -> str:
        return f"{sum(map(len, answers)) / len(answers):.0f} characters on average, {max(map(len, answers))} at most"

    def column(side: Preferences) -> list[str]:
        chosen, rejected = ([getattr(pair, name) for pair in side.pairs] for name in ("chosen", "rejected"))
        longer = sum(len(pair.rejected) > len(pair.chosen) for pair in side.pairs) / len(side.pairs)
        counts = Counter(pair.kind for pair in side.pairs if pair.kind)
        flaws = ", ".join(f"{count}&nbsp;{escape(translate(title(kind)))}" for kind, count in sorted(counts.items()))
        head = f"{len(side.pairs):,}", escape(side.origin), escape(side.licence)
        return [*head, length(chosen), length(rejected), f"{longer:.0%} of the pairs", flaws]

    sides = (splits.train, splits.validation)
    names = ["pairs", "data", "licence", "chosen answers", "rejected answers", "rejected is longer", "flaws"]
    rows = [row for row in zip(names, *map(column, sides), strict=True) if row[1]]  # flaws have no names everywhere
    remarks = [splits.note, *(remark for side in sides for remark in side.remarks)]
    rows += [["remark", escape(remark), ""] for remark in remarks if remark]
    return table_html([["", "<b>for training</b>", "<b>held out</b>"], *rows])


def title(kind: str) -> str:
    return kind.replace("_", " ")


def pairs_to_show(side: Preferences) -> list[Preference]:
    """The first pair of each kind of flaw; of data without labels the first few."""
    first = {}
    for pair in side.pairs:
        first.setdefault(pair.kind, pair)
    if set(first) == {""}:
        return side.pairs[:UNLABELLED]
    return [first[kind] for kind in in_order(first)]


def in_order(kinds: Iterable[str]) -> list[str]:
    """Our kinds of flaw as the generator has them, then others."""
    return [kind for kind in KINDS if kind in kinds] + sorted(set(kinds) - set(KINDS))


def pairs_html(pairs: Sequence[Preference]) -> str:
    def beginning(written: str) -> str:
        return f'<div style="{AS_WRITTEN}">{escape(shortened(written, MOST_CHARACTERS))}</div>'

    rows = [["flaw and question", "chosen", "rejected"]]
    for pair in pairs:
        flaw = f"<b>{escape(translate(title(pair.kind)))}</b>" if pair.kind else ""
        flaw += small_html(FLAWS[pair.kind]) if pair.kind in FLAWS else ""
        question = beginning("\n".join(turn["content"] for turn in pair.prompt))
        style = f"min-width:170px;background:{FAINT};padding:2px 8px"
        answers = (
            f'<div style="{style}">{beginning(answer)}</div>{small_html(f"{len(answer)} characters")}'
            for answer in (pair.chosen, pair.rejected)
        )
        rows.append([f'<div style="min-width:130px">{flaw}{question}</div>', *answers])
    return f"<b>{text('Pairs to train on')}</b>{table_html(rows, header=True)}"


def shortcut_accuracies(splits: Splits[Preferences]) -> dict[str, float]:
    """Classifier -> share of held-out pairs it gets right, without reading; the first of many pairs."""
    train, held_out = splits.train.pairs[:MOST_LEARNED], splits.validation.pairs[:MOST_TRIED]
    return {name: held_out_accuracy(train, held_out, features)["all"] for name, features in CLASSIFIERS.items()}


def kinds_figure(measured: dict[str, Any], counts: Mapping[str, int]) -> Figure:
    """A bar for each kind of flaw (with `counts`, if all pairs were scored), and one for all; the line is chance."""
    by_kind = measured["accuracy_by_kind"]
    order = in_order(by_kind)
    are_all = sum(counts.values()) == measured["held_out"]["pairs"]
    names = [as_label(title(kind)) + (f" ({counts[kind]})" if are_all else "") for kind in order]
    names = [*map(label_of, [*names, f"all ({measured['held_out']['pairs']:,})"])]
    shares = [by_kind[kind] for kind in order] + [measured["held_out"]["accuracy"]]
    figure = Figure(figsize=(4.9, 0.7 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    heights, place = range(len(names) - 1, -1, -1), {"textcoords": "offset points"}
    axes.barh(heights, shares, height=0.62, color=[COLOURS[0]] * len(order) + ["#57606a"])
    for height, share in zip(heights, shares, strict=True):
        axes.annotate(f"{share:.0%}", (share, height), (4, 0), **place, va="center")
    axes.axvline(CHANCE, color="#cf222e", linewidth=1, linestyle="--")
    axes.annotate("chance", (CHANCE, heights[0] + 0.42), (3, 0), **place, color="#cf222e", va="bottom")
    axes.set(xlim=(0, 1.08), ylim=(-0.6, len(names) - 0.1), yticks=heights, yticklabels=names)
    axes.set_xlabel("held-out pairs with the chosen answer ahead")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    plain(axes, "x")
    return figure


def verdict(measured: dict[str, Any], bag: float) -> str:
    """What the accuracy is, how sure, and what it is worth beside `bag`, the accuracy of a counter of characters."""
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
    return math.sqrt(max(share * (1 - share), 1 / (4 * count)) / count)
