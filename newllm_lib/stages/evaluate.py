"""Metrics of one trained model on held-out text."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from .. import models  # noqa: F401  registers our models with the Auto classes
from ..data.batches import EvaluationDocuments, evaluation_documents
from ..data.chat_template import ConversationFormat, borrowed_template
from ..data.conversation_rows import conversation_documents
from ..data.conversations import Conversations, load_conversations
from ..data.files import content_hash
from ..data.preferences import drop_too_long, encode_preferences, load_preferences
from ..data.text import Text, load_text
from ..errors import InputError
from ..evaluation.forgetting import score_against_base
from ..evaluation.perplexity import TextMetrics, score_documents
from ..evaluation.preference_scores import accuracy_by_kind, preference_metrics, score_pairs
from ..models import load_model
from ..training.arguments import ModelArguments
from ..training.checkpoint import (
    ADAPTER_WEIGHTS,
    REFERENCE_FOLDER,
    check_model_folder,
    has_adapters,
    read_results,
    read_settings,
)
from ..training.device import find_device

MANY_TYPES = 2**16  # token types from which on the logits of a batch are too many to hold


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
    run, session = settings["run"], settings["session"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if has_adapters(folder):
        return TrainedModel(folder, open_adapted(folder, run, session), tokenizer, run, session)
    return TrainedModel(folder, load_model(folder).to(find_device().kind), tokenizer, run, session)


def open_adapted(folder: Path, run: dict[str, Any], session: dict[str, Any], unpack: bool = False) -> PreTrainedModel:
    """The base of a run of adapters, in 4 bit where it was trained so, with the adapters on it.

    Args:
        unpack: 4-bit weights as the plain numbers they stand for.

    Raises:
        InputError: the base is out of reach.
    """
    from peft import PeftModel

    from ..training.adapters import allow_old_torchao
    from ..training.base_model import base_of_run, find_base_model, open_base

    allow_old_torchao()
    # Steps of DPO are smaller than half precision can tell: its models stay in fp32.
    dtype = torch.float32 if run["stage"] == "dpo" else None
    own = folder / REFERENCE_FOLDER
    found = find_base_model(str(own)) if own.is_dir() else base_of_run(run["base"], session["model"])
    base = open_base(found, run["load_in_4bit"], dtype=dtype)
    if unpack and run["load_in_4bit"]:
        base.dequantize()
    adapted = PeftModel.from_pretrained(base, folder).eval()
    # How its answers are made is of the run, too, and not of the base.
    base.generation_config = adapted.generation_config = GenerationConfig.from_pretrained(folder)
    return adapted


def held_out_text(trained: TrainedModel, data: str | None = None) -> Text | Conversations:
    """What to evaluate on, text or conversations as the model was trained on: the file `data`, or else what was held
    out when the model was trained.

    Raises:
        InputError: a bad file, or what was held out is out of reach.
    """
    run, session = trained.run, trained.session
    if data is None and run["stage"] == "dpo":
        raise InputError(f"{str(trained.folder)!r} was trained on preferences; name conversations with --data.")
    names = ["skip_bad_rows"]
    load = load_text
    if is_chat(trained):
        load, names = load_conversations, [*names, "dataset", "held_out", "held_out_share"]
    settings = {name: value for name, value in {**run, **session}.items() if name in names}
    if data is not None:
        return load(data=data, eval_data=data, **settings).validation
    files = {name: session[name] for name in ("data", "eval_data") if name in session}
    text = load(data_source=run["text_source"], **files, **settings).validation
    if text.identity != run["validation_text"]:
        raise InputError(f"the text held out of {str(trained.folder)!r} has changed since; name a text with --data.")
    return text


def is_chat(trained: TrainedModel) -> bool:
    """True for a model that was trained on conversations."""
    return trained.run["stage"] in ("sft", "qlora-lwf", "dpo")


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
    names = ("max_length", "loss_on", "too_long")
    form = ConversationFormat(**{name: as_trained.run[name] for name in names if name in as_trained.run})
    documents, counts = conversation_documents(text, tokenizer, form)
    if not documents.documents:
        remarks = " ".join(counts.remarks(form.max_length))
        raise InputError(f"{text.origin} holds no conversation to evaluate on; {remarks}", "NL-403")
    return documents


def evaluate(
    path: str | Path, data: str | None = None, max_length: int | None = None, batch_size: int = 32
) -> dict[str, Any]:
    """The metrics of the model in folder `path`, every token of the text scored once.

    Returns:
        loss, perplexity, token_accuracy, bits_per_byte, word_perplexity, unk_rate, and tokens, words, bytes; plus
        `text`, where the text came from. Of a model tuned by preferences: see `evaluate_preferences`.

    Raises:
        InputError: bad folder or file.
    """
    trained = open_model(path)
    if trained.run["stage"] == "dpo":
        return evaluate_preferences(trained, data, max_length, batch_size)
    documents = held_out_documents(trained, held_out_text(trained, data))
    metrics = score(trained, documents, max_length, batch_size)
    return {**metrics, "text": documents.origin}


def evaluate_preferences(
    trained: TrainedModel, data: str | None, max_length: int | None, batch_size: int
) -> dict[str, Any]:
    """What a model tuned by preferences prefers, of the pairs held out when it was trained, or of those in a file.

    Returns:
        The fields of `PreferenceMetrics`, `accuracy_by_kind` of flaw, and `text`, where the pairs came from.

    Raises:
        InputError: a bad file, or what was held out is out of reach or has changed.
    """
    run, length = trained.run, max_length or trained.run["max_length"]
    names = ("dataset", "skip_bad_rows", "pairs", "pairs_seed", "held_out_share")
    settings = {name: run[name] for name in names if name in run}
    if data is not None:
        held_out = load_preferences(**{**settings, "data": data, "eval_data": data}).validation
    else:
        files = {name: trained.session[name] for name in ("data", "eval_data") if name in trained.session}
        held_out = load_preferences(**settings, **files, max_samples=run.get("max_samples")).validation
        if held_out.identity != run["validation_text"]:
            raise InputError(
                f"the pairs held out of {str(trained.folder)!r} have changed since; name some with --data."
            )
    held_out = drop_too_long(held_out, trained.tokenizer, length, skips=True)
    pairs = list(encode_preferences(held_out.pairs, trained.tokenizer, length))
    scores = score_pairs(trained.model, pairs, trained.tokenizer.pad_token_id, batch_size)
    return {
        **dataclasses.asdict(preference_metrics(scores, run["beta"])),
        "accuracy_by_kind": accuracy_by_kind(scores, pairs, run["beta"]),
        "text": held_out.origin,
    }


def final_metrics(
    trained: TrainedModel, text: Text | Conversations, documents: EvaluationDocuments
) -> dict[str, Any] | None:
    """The metrics that the run itself ended with, if they are of `text` as `documents` has it: it need not be scored
    again."""
    results = read_results(trained.folder)
    if results is None or trained.run["validation_text"] != text.identity:
        return None
    counts = documents.counts
    if (results["tokens"], results["bytes"]) != (counts.tokens, counts.bytes):
        return None
    return {field.name: results[field.name] for field in dataclasses.fields(TextMetrics)}


def score(
    trained: TrainedModel, documents: EvaluationDocuments, max_length: int | None = None, batch_size: int = 32
) -> dict[str, Any]:
    """The metrics as a dictionary; rows are as long as in training unless `max_length` says otherwise."""
    length, tokenizer = max_length or trained.run["max_length"], trained.tokenizer
    if len(tokenizer) >= MANY_TYPES:
        rows = min(batch_size, trained.session["per_device_eval_batch_size"])
        metrics, _ = score_against_base(trained.model, documents, tokenizer.bos_token_id, length, rows, compare=False)
    else:
        metrics = score_documents(trained.model, documents, tokenizer.bos_token_id, length, batch_size)
    return dataclasses.asdict(metrics)


def weights_hash(folder: str | Path) -> str:
    """What a model is known by: its weights, wherever they lie."""
    folder = check_model_folder(folder)
    return content_hash(folder / (ADAPTER_WEIGHTS if has_adapters(folder) else "model.safetensors"))[:16]


def open_teacher(
    args: ModelArguments, tokenizer: PreTrainedTokenizerFast
) -> tuple[PreTrainedModel | None, dict[str, str]]:
    """(the model to learn from that the settings name, or None; what a run with it is known by).

    Raises:
        InputError: its tokenizer is not `tokenizer`, or its window is shorter than a row.
    """
    if args.teacher is None:
        return None, {}
    teacher = open_model(args.teacher)
    if teacher.tokenizer.backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str():
        raise InputError(f"teacher {args.teacher!r} has another tokenizer than the model; both need the same.")
    window = getattr(teacher.model.config, "n_positions", args.max_length)
    if window < args.max_length:
        raise InputError(f"teacher {args.teacher!r} reads {window} tokens; choose --max_length {window} or less.")
    return teacher.model, {"teacher_weights": weights_hash(args.teacher)}
