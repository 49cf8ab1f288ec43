"""Public benchmarks such as winogrande and mmlu by EleutherAI's lm-evaluation-harness, on any of our models."""

import contextlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub

from ..data.catalogue import DATASETS
from ..data.hub import hub_problem
from ..errors import InputError
from ..training.trained_model import open_model


def evaluate_tasks(
    path: str | Path, tasks: Sequence[str], batch_size: int = 4, limit: int | None = None, base: str | None = None
) -> dict[str, dict[str, Any]]:
    """task -> its metrics, of the model in folder `path`.

    Args:
        tasks: names that the harness knows; their data come from the hub.
        limit: questions of each task to ask, the first ones; None asks all.
        base: as of `open_model`.

    Raises:
        InputError: no harness, bad folder, no such task, or its data are out of reach.
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
    trained = open_model(path, base)
    model = HFLM(pretrained=trained.model, tokenizer=trained.tokenizer, batch_size=batch_size)
    problem = None if all(Path(task).exists() for task in tasks) else hub_problem(DATASETS["wikitext"].sources[0])
    try:
        with asking_nobody() if problem else contextlib.nullcontext():
            return simple_evaluate(model, tasks=list(tasks), limit=limit, task_manager=manager)["results"]
    except OSError as error:  # all that the loaders of data raise when they cannot reach them
        raise InputError(
            f"tasks {', '.join(tasks)}: their questions could not be had from the hub "
            f"({problem or ' '.join(str(error).split())[:200]}); check the network and try again.",
            "NL-301",
        ) from error


@contextlib.contextmanager
def asking_nobody() -> Iterator[None]:
    """The hub out of reach: what was fetched before is found, for the rest nobody waits a minute."""
    settings = (huggingface_hub.constants, datasets.config)
    before = [module.HF_HUB_OFFLINE for module in settings]
    for module in settings:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(settings, before, strict=True):
            module.HF_HUB_OFFLINE = value
