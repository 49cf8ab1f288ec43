"""Learning curves of one or several runs, as a matplotlib figure."""

import functools
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, findSystemFonts, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .disk import write_bytes

LONGEST_LABEL = 24  # characters
COLOURS = ("#1f6feb", "#d1495b", "#2a9d8f", "#e09f3e")
FAMILY = "DejaVu Sans"  # comes with matplotlib
# Families with Japanese letters, as they come with Linux, macOS and Windows, or are installed there.
JAPANESE = (
    "Noto Sans CJK JP", "Noto Sans JP", "Source Han Sans JP", "IPAexGothic", "IPAGothic", "TakaoGothic", "VL Gothic",
    "Hiragino Sans", "Yu Gothic", "Meiryo", "MS Gothic", "Arial Unicode MS", "Droid Sans Fallback",
)  # fmt: skip
SPELLED = re.compile(r"(?:HIRAGANA|KATAKANA) LETTER (?:SMALL )?(\w+)|HANGUL SYLLABLE (\w+)")


def as_label(text: str) -> str:
    """A user's text as a label, cut where it is long. matplotlib would set a formula between two dollar signs, and
    leave a name that begins with an underscore out of a legend."""
    shown = in_the_font(text[: LONGEST_LABEL + 1])
    shown = shown if len(shown) <= LONGEST_LABEL else shown[: LONGEST_LABEL - 1] + "…"
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")


def in_the_font(text: str) -> str:
    """The text in letters that can be drawn. Any other is spelled as it sounds, as kana and hangul are, or stands as
    its number: U+65E5."""
    return "".join(letter if can_be_drawn(letter) else _spelled(letter) for letter in text)


def can_be_drawn(text: str) -> bool:
    return _characters().issuperset(map(ord, text))


def plain(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """The look of every plot: a pale grid behind what is drawn, and no frame above and to the right."""
    axes.grid(alpha=0.25, axis=grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png_of(figure: Figure, dpi: int, **options: Any) -> bytes:
    """The figure as `savefig` draws it, its letters from all of `_families`."""
    families, picture = [*_families()], io.BytesIO()
    for words in figure.findobj(Text):
        words.set_fontfamily(families)
    with rc_context({"font.family": families}):  # of ticks, which are made while it is drawn
        figure.savefig(picture, format="png", dpi=dpi, **options)
    return picture.getvalue()


def _spelled(letter: str) -> str:
    found = SPELLED.fullmatch(unicodedata.name(letter, ""))
    return (found[1] or found[2]).lower() if found else f"U+{ord(letter):04X}"


@functools.cache
def _families() -> tuple[str, ...]:
    """matplotlib's own font and, for the letters that it lacks, the first one of JAPANESE that is here."""
    # What was installed after matplotlib made its list of fonts is not in it.
    for path in set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}:
        with suppress(OSError, RuntimeError):  # of a kind that it cannot read
            fontManager.addfont(path)
    here = {font.name for font in fontManager.ttflist}
    return (FAMILY, *[family for family in JAPANESE if family in here][:1])


@functools.cache
def _characters() -> frozenset[int]:
    """The code points that can be drawn; matplotlib warns of any other, and cannot draw half a surrogate pair."""
    return frozenset(code for family in _families() for code in get_font(findfont(family)).get_charmap())


class Panel(NamedTuple):
    """Curves in one pair of axes."""

    ylabel: str
    curves: Mapping[str, str]  # key of transformers' `log_history` -> label; none: the run's name
    says: str = ""  # what the legend says of a curve's values: "best", "last" or "first → last"
    form: str = ".3f"  # of these values
    is_dashed: bool = False  # the second curve is, in the colour of the first


TRAINING = Panel("training loss (nats per token)", {"loss": ""})
BITS = Panel("held-out bits per byte", {"eval_bits_per_byte": ""}, "best")
LOSS = Panel("held-out loss (nats)", {"eval_loss": ""}, "best")
FORGETTING = (
    Panel("task loss (nats per token)", {"task_loss": ""}),
    Panel("KL to the base (nats per token)",
        {"kl_to_teacher": "what is trained on", "eval_general_kl_to_base": "general text, held out"}),
    Panel("held-out bits per byte",
        {"eval_bits_per_byte": "new task", "eval_general_bits_per_byte": "general text"}, "first → last"),
)  # fmt: skip
PREFERENCES = (
    Panel("DPO loss (nats per pair)", {"eval_loss": "held-out pairs", "eval_train_loss": "training pairs"}, "last"),
    Panel("pairs with the chosen answer ahead",
        {"eval_accuracy": "held-out pairs", "eval_train_accuracy": "training pairs"}, "last", ".0%"),
    Panel("reward margin, chosen - rejected",
        {"eval_margin": "held-out pairs", "eval_train_margin": "training pairs"}, "last", ".1f"),
    Panel("held-out log-probability (nats)",
        {"eval_chosen_logp": "chosen", "eval_rejected_logp": "rejected"}, "last", ".1f", is_dashed=True),
)  # fmt: skip


def curves_figure(histories: Mapping[str, Sequence[dict]]) -> Figure:
    """Left: training loss of every run; right: its held-out bits per byte (or loss, where bytes are not counted). A run
    that is held to its base has other panels: the loss of its task, its distance from the base, and bits per byte of
    both kinds of text. So has a run of preferences: DPO's loss, accuracy, margin, and how likely either answer is.
    `histories` is transformers' `log_history` by the name of the run."""
    keys = {key for history in histories.values() for entry in history for key in entry}
    panels = TRAINING, BITS if "eval_bits_per_byte" in keys else LOSS
    if keys & {"task_loss", "eval_general_bits_per_byte"}:
        panels = FORGETTING
    elif "eval_margin" in keys:
        panels = PREFERENCES
    colours_of_a_run = max(len(panel.curves) for panel in panels)
    width = {2: 10, 3: 12, 4: 14}[len(panels)]
    figure = Figure(figsize=(width, 3.6))
    FigureCanvasAgg(figure)
    # Fixed margins: to find the best ones takes as long as to draw it all.
    figure.subplots_adjust(0.7 / width, 0.15, 1 - 0.15 / width, 0.97, wspace=0.22 if len(panels) < 3 else 0.3)
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for run, (name, history) in enumerate(histories.items()):
            for number, (key, name_of_curve) in enumerate(panel.curves.items()):
                points = [(entry["step"], entry[key]) for entry in history if key in entry]
                values = [value for _, value in points]
                if any(values) or (points and key != "kl_to_teacher"):  # 0: no teacher
                    # A value beside its point would collide with other curves.
                    said = {"best": [min(values)], "last": values[-1:], "first → last": [values[0], values[-1]]}
                    shown = " → ".join(format(value, panel.form) for value in said.get(panel.says, ()))
                    label = (name_of_curve or as_label(name)) + (f": {shown}" if shown else "")
                    look = {"marker": "o", "markersize": 4} if key.startswith("eval_") else {"linewidth": 1.4}
                    look["linestyle"] = "--" if panel.is_dashed and number else "-"
                    of_run = 0 if panel.is_dashed else number
                    colour = COLOURS[(colours_of_a_run * run + of_run) % len(COLOURS)]
                    axes.plot(*zip(*points, strict=True), color=colour, label=label, **look)
        axes.set(xlabel="update", ylabel=panel.ylabel)
        if panel.form.endswith("%"):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        plain(axes)
        axes.margins(y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        if axes.get_lines():
            axes.legend(framealpha=0.7, edgecolor="none", title=panel.says or None, alignment="left")
    return figure


def save_curves(histories: Mapping[str, Sequence[dict]], path: Path) -> None:
    """Write the figure as a PNG, whole or not at all."""
    write_bytes(path, png_of(curves_figure(histories), 120))
