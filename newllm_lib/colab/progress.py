"""What a training has brought and cost: each model before and after, on the same held-out text and the same prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from IPython.display import HTML, display
from matplotlib.figure import Figure

from ..adapters.qlora_lwf import ANSWER_TOKENS, FORGETTING_FILE
from ..data.chat_template import borrowed_template
from ..errors import InputError
from ..evaluation.generation import reply_to
from ..stages.evaluate import held_out_documents, held_out_text, score
from ..training.checkpoint import check_model_folder, read_results
from ..training.disk import read_json
from ..training.model_folder import read_tokenizer
from ..training.trained_model import open_model
from .page.notices import in_one_sentence, say
from .page.pieces import AS_WRITTEN, FAINT, escape, figure_html, small_html, table_html
from .panel.settings_panel import SettingsPanel

MAX_NEW_TOKENS = 60
METRIC_TITLES = ("bits per byte", "perplexity (per token)", "token accuracy")
PICTURE_FILE = "forgetting.png"
KINDS = {"new_task": "new task", "general_text": "general text"}
BETTER, WORSE, UNCHANGED = "#1a7f37", "#cf222e", "#6e7781"
NO_CHANGE = 0.002  # a smaller change is none: another held-out sample would move the figures as far

Answers = tuple[Sequence[str], int]  # of one model to each prompt, and how many ended by themselves


@in_one_sentence
def show_progress(panel: SettingsPanel, folders: Sequence[Path]) -> None:
    """A table of the metrics of what is learned, before and after, and a sentence that sums it up."""
    rows, sentences = [["", *METRIC_TITLES]], []
    for model, folder in zip(panel.models, folders, strict=True):
        after, start = read_results(check_model_folder(folder)), panel.start_model(model)
        now = f"{after['perplexity']:,.1f}"
        if start is None:
            sentences.append(f"{model}: perplexity {now} on held-out answers; it was new, so there is no before.")
        else:
            trained = open_model(folder)
            # The tokens are the same: a model keeps its tokenizer. Its rows are as long as its own training made them.
            before = score(open_model(start), held_out_documents(trained, held_out_text(trained)))
            rows.append([f"{escape(model)} before", *metric_cells(before)])
            moved = "fell" if after["perplexity"] < before["perplexity"] else "rose"
            was = f"{before['perplexity']:,.1f}"
            sentences.append(f"{model}: perplexity on held-out answers {moved} from {was} to {now}.")
        rows.append([f"<b>{escape(model)} after</b>", *metric_cells(after)])
    display(HTML(table_html(rows, header=True, numbers=True)))
    say(" ".join(sentences))


def metric_cells(metrics: dict[str, Any]) -> list[str]:
    """What stands below METRIC_TITLES."""
    bits = "-" if metrics["bits_per_byte"] is None else f"{metrics['bits_per_byte']:.3f}"
    return [bits, f"{metrics['perplexity']:,.1f}", f"{metrics['token_accuracy']:.1%}"]


@in_one_sentence
def show_answers(panel: SettingsPanel, folders: Sequence[Path]) -> None:
    """Put the stage's prompts to every model as it was before this notebook and as it is now."""
    prompts, answers = panel.stage.prompts, {}
    for model, folder in zip(panel.models, folders, strict=True):
        if (before := panel.start_model(model)) is not None:
            answers[f"{model} before"] = ask(before, prompts, template_of=folder)
        answers[f"{model} after"] = ask(folder, prompts)
    _show(prompts, answers, MAX_NEW_TOKENS, "" if panel.start_run else " There is no before: the models were new.")


def ask(folder: str | Path, prompts: Sequence[str], template_of: str | Path | None = None) -> Answers:
    """The answers of the model in `folder`, the most likely token each time; without a chat template it borrows that of
    the model in `template_of`, to be asked in the same words."""
    trained = open_model(folder)
    if trained.tokenizer.chat_template is None and template_of is not None:
        trained.tokenizer.chat_template = borrowed_template(trained.tokenizer, read_tokenizer(template_of))
    asked = ([{"role": "user", "content": prompt}] for prompt in prompts)
    replies = [reply_to(trained.model, trained.tokenizer, messages, MAX_NEW_TOKENS) for messages in asked]
    return [text for text, _ in replies], sum(ended for _, ended in replies)


def read_measured(folder: str | Path, file: str) -> dict[str, Any]:
    """What the run in `folder` has measured, in its `file`. Raises InputError: it is not finished."""
    measured = read_json(Path(folder) / file)
    if measured is None:
        raise InputError(f"{Path(folder).name} is not finished: run the training cell again.", "NL-404")
    return measured


def show_before_and_after(measured: dict[str, Any], before: str, max_new_tokens: int, remark: str = "") -> None:
    """The answers of `replies_before_and_after` side by side, those without adapters under the name `before`."""
    answers, ended = measured["answers"], measured["ended_by_themselves"]
    columns = {n: ([a[key] for a in answers], ended[key]) for n, key in ((before, "before"), ("tuned", "after"))}
    _show([answer["prompt"] for answer in answers], columns, max_new_tokens, remark)


def _show(prompts: Sequence[str], answers: Mapping[str, Answers], max_new_tokens: int, remark: str) -> None:
    """A row per prompt, a column per model, and the count of answers that came to an end."""
    style = f"min-width:150px;max-height:120px;overflow-y:auto;{AS_WRITTEN};background:{FAINT};padding:2px 8px"
    rows = [["", *map(escape, answers)]]
    for number, prompt in enumerate(prompts):
        texts = (escape(said[number]) or "(nothing)" for said, _ in answers.values())
        cells = (f'<div style="{style}">{text}</div>' for text in texts)
        rows.append([f'<div style="min-width:130px">{escape(prompt)}</div>', *cells])
    rows.append(["<b>ended by itself</b>", *(f"{ended} of {len(prompts)}" for _, ended in answers.values())])
    display(HTML(table_html(rows, header=True)))
    counts = ", ".join(f"{title} {ended}" for title, (_, ended) in answers.items())
    say(f"Answers that ended by themselves within {max_new_tokens} tokens, of {len(prompts)}: {counts}.{remark}")


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

    def takes(share: float) -> str:
        if abs(share) < NO_CHANGE:
            return f"takes as many bits as before ({share:+.1%})"
        return f"takes {abs(share):.1%} {'more' if share > 0 else 'fewer'} bits than before"

    new, old = (change(measured, kind) for kind in KINDS)
    learned = "Learned" if new < 0 else "Nothing was learned"
    if abs(new) < NO_CHANGE:
        learned = "Hardly anything was learned"
    forgotten = "Forgotten" if old >= NO_CHANGE else "Nothing was forgotten"
    distance = measured["general_text"]["after"]["kl_to_base"]
    return (
        f"{learned}: the new task {takes(new)}. {forgotten}: general text {takes(old)}. There the tuned model is "
        f"{distance:.3f} nats per token from its base. One run with one seed, on a sample of held-out text."
    )
