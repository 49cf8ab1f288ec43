"""Public benchmarks such as winogrande and mmlu by EleutherAI's lm-evaluation-harness, on any of our models."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import InputError
from .evaluate import open_model


def evaluate_tasks(
    path: str | Path, tasks: Sequence[str], batch_size: int = 4, limit: int | None = None
) -> dict[str, dict[str, Any]]:
    """task -> its metrics, of the model in folder `path`.

    Args:
        tasks: names that the harness knows; their data come from the hub.
        limit: questions of each task to ask, the first ones; None asks all.

    Raises:
        InputError: no harness, bad folder, or no such task.
    """
    if find_spec("lm_eval") is None:
        raise InputError("tasks are run by the package lm-eval; run pip install 'newllm[eval]'.", "NL-102")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    unknown = [task for task in tasks if task not in manager.all_tasks and not Path(task).exists()]
    if unknown:
        raise InputError(f"tasks: lm-eval knows no {', '.join(map(repr, unknown))}; lm_eval ls tasks lists them.")
    trained = open_model(path)
    model = HFLM(pretrained=trained.model, tokenizer=trained.tokenizer, batch_size=batch_size)
    return simple_evaluate(model, tasks=list(tasks), limit=limit, task_manager=manager)["results"]
