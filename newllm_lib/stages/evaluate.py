"""Metrics of one trained model on held-out text."""

import dataclasses
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from .. import models  # noqa: F401  registers our models with the Auto classes
from ..data.batches import EvaluationDocuments, evaluation_documents
from ..data.text import Text, load_text
from ..errors import InputError
from ..evaluation.perplexity import TextMetrics, score_documents
from ..models import load_model
from ..training.checkpoint import check_model_folder, read_results, read_settings
from ..training.device import find_device


@dataclasses.dataclass
class TrainedModel:
    """A model as its folder holds it."""

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    run: dict[str, Any]
    session: dict[str, Any]

    @property
    def name(self) -> str:
        return self.run.get("model_type", self.folder.name)


def open_model(path: str | Path) -> TrainedModel:
    """Load a finished run onto the device that is there.

    Raises:
        InputError: the folder is not one of our trained models.
    """
    folder = check_model_folder(path)
    settings = read_settings(folder)
    device = find_device().kind
    return TrainedModel(
        folder,
        load_model(folder).to(device),
        AutoTokenizer.from_pretrained(folder),
        settings["run"],
        settings["session"],
    )


def held_out_text(trained: TrainedModel, data: str | None = None) -> Text:
    """The text to evaluate on: the file `data`, or else the text that was held out when the model was trained.

    Raises:
        InputError: a bad file, or the held-out text is out of reach.
    """
    if data is not None:
        return load_text(data=data, eval_data=data).validation
    run, session = trained.run, trained.session
    files = {name: session[name] for name in ("data", "eval_data", "skip_bad_rows") if name in session}
    text = load_text(run["text_source"], **files).validation
    if text.identity != run["validation_text"]:
        raise InputError(f"the text held out of {str(trained.folder)!r} has changed since; name a text with --data.")
    return text


def evaluate(
    path: str | Path, data: str | None = None, max_length: int | None = None, batch_size: int = 32
) -> dict[str, Any]:
    """The metrics of the model in folder `path`, every token of the text scored once.

    Returns:
        loss, perplexity, token_accuracy, bits_per_byte, word_perplexity, unk_rate, and tokens, words, bytes; plus
        `text`, where the text came from.

    Raises:
        InputError: bad folder or file.
    """
    trained = open_model(path)
    documents = evaluation_documents(held_out_text(trained, data), trained.tokenizer)
    metrics = score(trained, documents, max_length, batch_size)
    return {**metrics, "text": documents.origin}


def final_metrics(trained: TrainedModel, text: Text) -> dict[str, Any] | None:
    """The metrics that the run itself ended with, if they are of `text`: it need not be scored again."""
    results = read_results(trained.folder)
    if results is None or trained.run["validation_text"] != text.identity:
        return None
    return {field.name: results[field.name] for field in dataclasses.fields(TextMetrics)}


def score(
    trained: TrainedModel, documents: EvaluationDocuments, max_length: int | None = None, batch_size: int = 32
) -> dict[str, Any]:
    """The metrics as a dictionary; rows are as long as in training unless `max_length` says otherwise."""
    metrics = score_documents(
        trained.model,
        documents,
        trained.tokenizer.eos_token_id,
        max_length or trained.run["max_length"],
        batch_size,
    )
    return dataclasses.asdict(metrics)
