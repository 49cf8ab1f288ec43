"""What a notebook's training has brought: each model on the same held-out conversations and on the same prompts, before
it and after it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from IPython.display import HTML, display

from ..data.chat_template import borrowed_template
from ..errors import InputError
from ..evaluation.generation import reply_to
from ..stages.evaluate import held_out_documents, held_out_text, score
from ..training.checkpoint import check_model_folder, read_results
from ..training.model_folder import read_tokenizer
from ..training.trained_model import open_model
from .page.notices import in_one_sentence, say
from .page.pieces import AS_WRITTEN, FAINT, escape, table_html
from .panel.settings_panel import SettingsPanel

MAX_NEW_TOKENS = 60
METRIC_TITLES = ("bits per byte", "perplexity (per token)", "token accuracy")


@dataclass(frozen=True)
class Answers:
    """What one model said to each prompt, and how often it ended by itself; `title` says which model, and when."""

    title: str
    texts: list[str]
    ended: int


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
    prompts = panel.stage.prompts
    columns = []
    for model, folder in zip(panel.models, folders, strict=True):
        before = panel.start_model(model)
        if before is not None:
            columns.append(ask(f"{model} before", before, prompts, template_of=folder))
        columns.append(ask(f"{model} after", folder, prompts))
    _show(prompts, columns, MAX_NEW_TOKENS, "" if panel.start_run else " There is no before: the models were new.")


def ask(title: str, folder: str | Path, prompts: Sequence[str], template_of: str | Path | None = None) -> Answers:
    """The answers of the model in `folder`, the most likely token each time. `template_of`: the folder whose chat
    template is used for a model without one, so that it is asked in the same words."""
    trained = open_model(folder)
    if trained.tokenizer.chat_template is None and template_of is not None:
        trained.tokenizer.chat_template = borrowed_template(trained.tokenizer, read_tokenizer(template_of))
    asked = ([{"role": "user", "content": prompt}] for prompt in prompts)
    replies = [reply_to(trained.model, trained.tokenizer, messages, MAX_NEW_TOKENS) for messages in asked]
    return Answers(title, [text for text, _ in replies], sum(ended for _, ended in replies))


def read_measured(folder: str | Path, file: str) -> dict[str, Any]:
    """What the run in `folder` has measured, in its `file`, when it was finished. Raises InputError: it is not
    finished."""
    path = Path(folder) / file
    if not path.exists():
        raise InputError(f"{path.parent.name} is not finished: run the training cell again.", "NL-404")
    return json.loads(path.read_text(encoding="utf-8"))


def show_before_and_after(measured: dict[str, Any], before: str, max_new_tokens: int, remark: str = "") -> None:
    """The answers of `replies_before_and_after` side by side, and how many ended by themselves. Without adapters the
    model is called `before`; `remark` is said after it."""
    columns = [
        Answers(title, [answer[key] for answer in measured["answers"]], measured["ended_by_themselves"][key])
        for title, key in ((before, "before"), ("tuned", "after"))
    ]
    _show([answer["prompt"] for answer in measured["answers"]], columns, max_new_tokens, remark)


def _show(prompts: Sequence[str], columns: Sequence[Answers], max_new_tokens: int, remark: str) -> None:
    """A row per prompt, a column per model, and the count of answers that came to an end."""
    style = f"min-width:150px;max-height:120px;overflow-y:auto;{AS_WRITTEN};background:{FAINT};padding:2px 8px"
    rows = [["", *(escape(column.title) for column in columns)]]
    for number, prompt in enumerate(prompts):
        texts = (escape(column.texts[number]) or "(nothing)" for column in columns)
        cells = (f'<div style="{style}">{text}</div>' for text in texts)
        rows.append([f'<div style="min-width:130px">{escape(prompt)}</div>', *cells])
    rows.append(["<b>ended by itself</b>", *(f"{column.ended} of {len(prompts)}" for column in columns)])
    display(HTML(table_html(rows, header=True)))
    counts = ", ".join(f"{column.title} {column.ended}" for column in columns)
    say(f"Answers that ended by themselves within {max_new_tokens} tokens, of {len(prompts)}: {counts}.{remark}")
