"""Ten fixed prompts, answered before and after tuning, side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from IPython.display import HTML, display

from ..data.chat_template import borrowed_template
from ..errors import InputError
from ..evaluation.generation import reply_to
from ..training.model_folder import read_tokenizer
from ..training.trained_model import open_model
from .page.notices import FAINT, escape, in_one_sentence, say, table_html
from .panel.settings_panel import SettingsPanel

MAX_NEW_TOKENS = 60


@dataclass(frozen=True)
class Answers:
    """What one model said to each prompt, and how often it ended by itself; `title` says which model, and when."""

    title: str
    texts: list[str]
    ended: int


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
    display(HTML(answers_html(prompts, columns)))
    counts = ", ".join(f"{column.title} {column.ended}" for column in columns)
    say(
        f"Answers that ended by themselves within {MAX_NEW_TOKENS} tokens, of {len(prompts)}: {counts}."
        + ("" if panel.start_run else " There is no before: the models were new.")
    )


def read_measured(folder: str | Path, file: str) -> dict[str, Any]:
    """What the run in `folder` has measured, in its `file`, when it was finished.

    Raises:
        InputError: it is not finished.
    """
    path = Path(folder) / file
    if not path.exists():
        raise InputError(f"{path.parent.name} is not finished: run the training cell again.", "NL-404")
    return json.loads(path.read_text(encoding="utf-8"))


def show_before_and_after(measured: dict[str, Any], before: str, max_new_tokens: int, remark: str = "") -> None:
    """The answers of `replies_before_and_after` side by side, and how many ended by themselves.

    Args:
        before: what the model is called without its adapters.
        remark: what is said after it.
    """
    prompts = [answer["prompt"] for answer in measured["answers"]]
    columns = [
        Answers(title, [answer[key] for answer in measured["answers"]], measured["ended_by_themselves"][key])
        for title, key in ((before, "before"), ("tuned", "after"))
    ]
    display(HTML(answers_html(prompts, columns)))
    first, tuned = columns
    say(
        f"Answers that ended by themselves within {max_new_tokens} tokens, of {len(prompts)}: {before} {first.ended}, "
        f"tuned {tuned.ended}.{remark}"
    )


def ask(
    title: str,
    folder: str | Path,
    prompts: Sequence[str],
    template_of: str | Path | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Answers:
    """The answers of the model in `folder`, the most likely token each time.

    Args:
        template_of: the folder whose chat template is used for a model without one, so that it is asked in the same
            words.
    """
    trained = open_model(folder)
    if trained.tokenizer.chat_template is None and template_of is not None:
        lender = read_tokenizer(template_of)
        trained.tokenizer.chat_template = borrowed_template(trained.tokenizer, lender)
    replies = [
        reply_to(trained.model, trained.tokenizer, [{"role": "user", "content": prompt}], max_new_tokens)
        for prompt in prompts
    ]
    return Answers(title, [text for text, _ in replies], sum(ended for _, ended in replies))


def answers_html(prompts: Sequence[str], columns: Sequence[Answers]) -> str:
    """A row per prompt, a column per model, and the count of answers that came to an end."""
    rows = [["", *(escape(column.title) for column in columns)]]
    for number, prompt in enumerate(prompts):
        cells = [
            f'<div style="min-width:150px;max-height:120px;overflow-y:auto;white-space:pre-wrap;overflow-wrap:anywhere;'
            f'background:{FAINT};padding:2px 8px">{escape(column.texts[number]) or "(nothing)"}</div>'
            for column in columns
        ]
        rows.append([f'<div style="min-width:130px">{escape(prompt)}</div>', *cells])
    rows.append(["<b>ended by itself</b>", *(f"{column.ended} of {len(prompts)}" for column in columns)])
    return table_html(rows, header=True)
