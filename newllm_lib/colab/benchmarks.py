"""Public benchmarks in notebook 5: the base and the tuned model on the same questions, where somebody asks for them."""

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..install import bring
from ..models.frozen_head import adapters_off
from ..stages.evaluate import evaluate_tasks
from ..training.trained_model import open_model
from .page.notices import in_one_sentence, say, show
from .page.pieces import escape, table_html

Results = dict[str, dict[str, Any]]  # of `evaluate_tasks`


@in_one_sentence()
def show_benchmarks(folder: str | Path, tasks: str = "", questions: int = 20) -> None:
    """Ask base and tuned model the first `questions` of each benchmark (0: all), whose names are separated by commas;
    with none nothing is installed or downloaded."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        say("No benchmark is asked for. Type winogrande,mmlu above and run this cell again.")
        return
    if find_spec("lm_eval") is None:
        say("The package lm-eval is installed; no package that is there is changed.", "note")
        print(*bring(["lm-eval"]), sep="\n")
        importlib.invalidate_caches()
    trained = open_model(folder)
    with adapters_off(trained.model):
        say("The base is asked; the tuned model follows.", "note")
        base = evaluate_tasks(trained, names, limit=questions or None)
    tuned = evaluate_tasks(trained, names, limit=questions or None)
    show(table_html(benchmark_rows(names, base, tuned), header=True, numbers=True))
    say("A difference of less than twice the error says nothing. Guessing gives 50% in Winogrande, 25% in MMLU.")


def benchmark_rows(names: Sequence[str], base: Results, tuned: Results) -> list[list[str]]:
    """A row for each metric of each benchmark that is named; of one in a file, for all that it has."""
    rows = [["benchmark", "base", "tuned", "error"]]
    for task in [task for task in tuned if task in names] or tuned:
        for key, value in tuned[task].items():
            metric, _, how = key.partition(",")
            if how and not metric.endswith("_stderr"):
                error = tuned[task].get(f"{metric}_stderr,{how}")
                rows.append([escape(f"{task}: {metric}"), *map(shown, (base[task][key], value, error))])
    return rows


def shown(value: Any) -> str:
    """A share in per cent; lm-eval has a word where it knows no error."""
    return "-" if not isinstance(value, float) else f"{value:.1%}" if 0 <= value <= 1 else f"{value:.3f}"
