"""A look at the pairs before training on them: counts, one pair for each kind of flaw, and how far somebody gets who
does not read them."""

from collections import Counter
from collections.abc import Sequence

from IPython.display import HTML, display

from ..preferences.generator import KINDS
from ..preferences.pairs import Preferences, PreferenceSplits
from ..preferences.rows import Preference
from ..preferences.shortcuts import CLASSIFIERS, held_out_accuracy
from .page.notices import FAINT, escape, in_one_sentence, say, table_html
from .panel.preference_panel import PreferencePanel

# kind -> what is wrong with the rejected answer
FLAWS = {
    "off_topic": "right, but about another topic",
    "vague": "general phrases that say nothing",
    "impolite": "right, but rude",
    "wrong_fact": "untrue",
    "cut_short": "breaks off",
    "repetitive": "says the same again and again",
    "wrong_language": "English in the place of Japanese",
}
UNLABELLED = 4  # pairs shown of data whose flaws nobody has named
MOST_CHARACTERS = 280
# Pairs that the shortcuts are learned from and tried on: enough to tell, and quick.
MOST_LEARNED, MOST_TRIED = 2_000, 500
BAG = "bag of characters"


@in_one_sentence
def preview_pairs(panel: PreferencePanel) -> None:
    """Load the pairs as the panel says and show what training will see."""
    splits = panel.arguments(panel.models[0]).load_preferences()
    display(HTML(counts_html(splits)))
    display(HTML(pairs_html(pairs_to_show(splits.train))))
    shortcuts = shortcut_accuracies(splits)
    say(
        f"{len(splits.train.pairs):,} pairs are ready, {len(splits.validation.pairs):,} more are held out. "
        + shortcut_sentence(shortcuts)
    )


def counts_html(splits: PreferenceSplits) -> str:
    """Where the pairs are from, how many there are, how long their answers are, and which flaws they have."""
    sides = (splits.train, splits.validation)
    rows = [
        ["", "<b>for training</b>", "<b>held out</b>"],
        ["pairs", *(f"{len(side.pairs):,}" for side in sides)],
        ["data", *(escape(side.origin) for side in sides)],
        ["licence", *(escape(side.licence) for side in sides)],
        ["chosen answers", *(_length([pair.chosen for pair in side.pairs]) for side in sides)],
        ["rejected answers", *(_length([pair.rejected for pair in side.pairs]) for side in sides)],
        ["rejected is longer", *(f"{_longer(side.pairs):.0%} of the pairs" for side in sides)],
    ]
    if any(pair.kind for side in sides for pair in side.pairs):
        rows.append(["flaws", *(_kinds(side.pairs) for side in sides)])
    remarks = [remark for side in sides for remark in side.remarks()]
    rows += [["remark", escape(remark), ""] for remark in filter(None, [splits.note, *remarks])]
    return table_html(rows)


def _length(answers: Sequence[str]) -> str:
    return f"{sum(map(len, answers)) / len(answers):.0f} characters on average, {max(map(len, answers))} at most"


def _longer(pairs: Sequence[Preference]) -> float:
    return sum(len(pair.rejected) > len(pair.chosen) for pair in pairs) / len(pairs)


def _kinds(pairs: Sequence[Preference]) -> str:
    counts = Counter(pair.kind for pair in pairs if pair.kind)
    return ", ".join(f"{count}&nbsp;{escape(title(kind))}" for kind, count in sorted(counts.items()))


def title(kind: str) -> str:
    """A kind of flaw in words."""
    return kind.replace("_", " ")


def pairs_to_show(side: Preferences) -> list[Preference]:
    """The first pair of each kind of flaw; of data without labels the first few."""
    first = {}
    for pair in side.pairs:
        first.setdefault(pair.kind, pair)
    if set(first) == {""}:
        return side.pairs[:UNLABELLED]
    order = {kind: number for number, kind in enumerate(KINDS)}
    return sorted(first.values(), key=lambda pair: (order.get(pair.kind, len(order)), pair.kind))


def pairs_html(pairs: Sequence[Preference]) -> str:
    """A row per pair: the flaw and the question, the chosen answer, the rejected one, and their lengths."""
    rows = [["flaw and question", "chosen", "rejected"]]
    for pair in pairs:
        flaw = f"<b>{escape(title(pair.kind))}</b>" if pair.kind else ""
        if pair.kind in FLAWS:
            flaw += f'<div style="opacity:.75;font-size:12px">{FLAWS[pair.kind]}</div>'
        question = _shortened("\n".join(turn["content"] for turn in pair.prompt))
        rows.append(
            [f'<div style="min-width:130px">{flaw}{question}</div>', _answer(pair.chosen), _answer(pair.rejected)]
        )
    return f"<b>Pairs to train on</b>{table_html(rows, header=True)}"


def _answer(text: str) -> str:
    return (
        f'<div style="min-width:170px;background:{FAINT};padding:2px 8px">{_shortened(text)}</div>'
        f'<div style="opacity:.75;font-size:12px">{len(text)} characters</div>'
    )


def _shortened(text: str) -> str:
    text = text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS].rstrip() + " …"
    return f'<div style="white-space:pre-wrap;overflow-wrap:anywhere">{escape(text)}</div>'


def shortcut_accuracies(splits: PreferenceSplits) -> dict[str, float]:
    """Classifier -> share of held-out pairs it tells; of many pairs the first ones."""
    train, held_out = splits.train.pairs[:MOST_LEARNED], splits.validation.pairs[:MOST_TRIED]
    return {name: held_out_accuracy(train, held_out, features)["all"] for name, features in CLASSIFIERS.items()}


def shortcut_sentence(shortcuts: dict[str, float]) -> str:
    """What can be had without reading, against which an accuracy is to be held."""
    by_length = max(accuracy for name, accuracy in shortcuts.items() if name != BAG)
    return (
        f"Who knows only how long the answers are tells at most {by_length:.0%} of the held-out pairs; who counts "
        f"their characters, and reads nothing, {shortcuts[BAG]:.0%}. Half is chance."
    )
