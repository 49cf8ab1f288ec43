"""Metrics of one trained model on held-out text, or on public benchmarks such as winogrande and mmlu."""

import copy
import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import huggingface_hub

from ..data.chat_template import ConversationFormat, borrowed_template
from ..data.conversations import Conversations, conversation_documents, load_conversations
from ..data.sources import DATASETS, hub_problem
from ..data.text import EvaluationDocuments, Text, evaluation_documents, load_text
from ..errors import InputError
from ..evaluation.perplexity import TextMetrics, score_documents
from ..training.checkpoint import read_results
from ..training.trained_model import TrainedModel, is_chat, open_model
from ..wings import wing


def held_out_text(trained: TrainedModel, data: str | None = None) -> Text | Conversations:
    """What to evaluate on, text or conversations as the model was trained on: the file `data`, or else what was held
    out when the model was trained. Raises InputError: a bad file, or what was held out is out of reach."""
    run, session = trained.run, trained.session
    if data is None and run["stage"] == "dpo":
        raise InputError(f"{str(trained.folder)!r} was trained on preferences; name conversations with --data.")
    load, names = load_text, ["skip_bad_rows"]
    if is_chat(trained):
        load, names = load_conversations, [*names, "dataset", "held_out", "held_out_share"]
    settings = {name: value for name, value in {**run, **session}.items() if name in names and value is not None}
    if data is not None:
        return load(data=data, eval_data=data, **settings).validation
    files = {name: session[name] for name in ("data", "eval_data") if name in session}
    text = load(data_source=run["text_source"], **files, **settings).validation
    if text.identity != run["validation_text"]:
        raise InputError(f"the text held out of {str(trained.folder)!r} has changed since; name a text with --data.")
    return text


def held_out_documents(
    trained: TrainedModel, text: Text | Conversations, as_trained: TrainedModel | None = None
) -> EvaluationDocuments:
    """The text as the model's tokens; conversations are cut as in the training of the chat model `as_trained` (none: of
    the model itself), whose template a model that has none borrows."""
    if not isinstance(text, Conversations):
        return evaluation_documents(text, trained.tokenizer)
    as_trained = as_trained or trained
    tokenizer = trained.tokenizer
    if tokenizer.chat_template is None:
        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = borrowed_template(tokenizer, as_trained.tokenizer)
    given = {name: as_trained.run[name] for name in ("loss_on", "too_long") if name in as_trained.run}
    return conversation_documents(text, tokenizer, ConversationFormat(as_trained.run["max_length"], **given))


def evaluate(
    path: str | Path,
    data: str | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    base: str | None = None,
) -> dict[str, Any]:
    """The metrics of the model in folder `path`, every token of the text scored once: those of `TextMetrics`, and
    `text`, where the text came from. For a model tuned by preferences: see `evaluate_preferences`. `base` is that of
    `open_model`. Raises InputError: bad folder or file."""
    trained = open_model(path, base)
    if trained.run["stage"] == "dpo":
        return wing("preferences.scores").evaluate_preferences(trained, data, max_length, batch_size)
    documents = held_out_documents(trained, held_out_text(trained, data))
    metrics = score(trained, documents, max_length, batch_size)
    return {**metrics, "text": documents.origin}


def final_metrics(
    trained: TrainedModel, text: Text | Conversations, documents: EvaluationDocuments
) -> dict[str, Any] | None:
    """The metrics that the run itself ended with, if they are of `text` as `documents` has it: it need not be scored
    again."""
    results, counts = read_results(trained.folder) or {}, documents.counts
    names = [field.name for field in dataclasses.fields(TextMetrics)]
    if not results.keys() >= set(names) or trained.run["validation_text"] != text.identity:
        return None
    is_same = (results["tokens"], results["bytes"]) == (counts.tokens, counts.bytes)
    return {name: results[name] for name in names} if is_same else None


def score(
    trained: TrainedModel, documents: EvaluationDocuments, max_length: int | None = None, batch_size: int | None = None
) -> dict[str, Any]:
    """The metrics as a dictionary; rows are as long, and as many at a time, as in training unless given."""
    length = max_length or trained.run["max_length"]
    rows = batch_size or trained.session["per_device_eval_batch_size"]
    return dataclasses.asdict(score_documents(trained.model, documents, trained.tokenizer.bos_token_id, length, rows))


def evaluate_tasks(
    path: str | Path, tasks: Sequence[str], batch_size: int = 4, limit: int | None = None, base: str | None = None
) -> dict[str, dict[str, Any]]:
    """task -> its metrics, of the model in folder `path`; lm-evaluation-harness knows the names of `tasks`, whose data
    come from the hub. It asks the first `limit` questions of each, or all. `base` is that of `open_model`. Raises
    InputError: no harness, bad folder, no such task, or its data are out of reach."""
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
    # Out of reach of the hub, what was fetched before is found, and nothing waits a minute for the rest.
    offline = {"HF_HUB_OFFLINE": problem is not None or huggingface_hub.constants.HF_HUB_OFFLINE}
    try:
        with mock.patch.multiple(huggingface_hub.constants, **offline), mock.patch.multiple(datasets.config, **offline):
            return simple_evaluate(model, tasks=list(tasks), limit=limit, task_manager=manager)["results"]
    except OSError as error:  # all that the loaders of data raise when they cannot reach them
        why = problem or " ".join(str(error).split())[:200]
        what = f"tasks {', '.join(tasks)}: their questions could not be had from the hub ({why})"
        raise InputError(f"{what}; check the network and try again.", "NL-301") from error
