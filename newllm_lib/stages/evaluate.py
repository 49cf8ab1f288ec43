"""Metrics of one trained model on held-out text."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..data.batches import EvaluationDocuments, evaluation_documents
from ..data.chat_template import ConversationFormat, borrowed_template
from ..data.conversation_rows import conversation_documents
from ..data.conversations import Conversations, load_conversations
from ..data.files import content_hash
from ..data.preferences import drop_too_long, encode_preferences, load_preferences
from ..data.text import Text, load_text
from ..errors import InputError
from ..evaluation.perplexity import TextMetrics, score_documents
from ..evaluation.preference_scores import accuracy_by_kind, preference_metrics, score_pairs
from ..training.arguments import ModelArguments
from ..training.checkpoint import (
    ADAPTER_WEIGHTS,
    CHECKPOINT_NAME,
    REFERENCE_FOLDER,
    SETTINGS_FILE,
    check_model_folder,
    has_adapters,
    read_results,
    read_settings,
)
from ..training.device import find_device
from ..training.model_folder import RunSettings, check_tokens_fit, read_generation, read_tokenizer, read_weights


@dataclasses.dataclass
class TrainedModel:
    """A model as its folder holds it."""

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    run: RunSettings
    session: RunSettings

    @property
    def name(self) -> str:
        return self.run.get("model_type", self.folder.name)


def open_model(path: str | Path, base: str | None = None, unpack: bool = False) -> TrainedModel:
    """Load a finished run onto the device that is there.

    Args:
        base: where the model is now that adapters were trained on; None: where it was.
        unpack: its 4-bit weights as the plain numbers they stand for.

    Raises:
        InputError: the folder is not one of our trained models, or damaged.
    """
    folder = run_folder(path)
    settings = read_settings(folder)
    run, session = (RunSettings(settings[part]) for part in ("run", "session"))
    tokenizer = read_tokenizer(folder)
    if has_adapters(folder):
        model = _open_adapted(folder, run, session, base, unpack)
    else:
        model = read_weights(folder, dtype=torch.float32).to(find_device().kind)
    check_tokens_fit(model, tokenizer, folder)
    return TrainedModel(folder, model, tokenizer, run, session)


def run_folder(path: str | Path) -> Path:
    """The folder of one of our trained models.

    Raises:
        InputError: it is none; of a checkpoint, it says whose.
    """
    folder = Path(path).expanduser()
    if CHECKPOINT_NAME.fullmatch(folder.name) and (folder.parent / SETTINGS_FILE).exists():
        raise InputError(
            f"{str(path)!r} is a checkpoint, which its run goes on from; name the run, {str(folder.parent)!r}, after "
            "it has come to its end.",
            "NL-404",
        )
    return check_model_folder(folder)


def _open_adapted(
    folder: Path, run: RunSettings, session: RunSettings, base: str | None, unpack: bool
) -> PreTrainedModel:
    """The base of a run of adapters, in 4 bit where it was trained so, with the adapters on it."""
    from ..training.adapters import allow_old_torchao, read_adapters
    from ..training.base_model import base_of_run, find_base_model, open_base

    allow_old_torchao()
    # Steps of DPO are smaller than half precision can tell: its models stay in fp32, as those that were trained so.
    is_half = run["stage"] != "dpo" and (session.get("bf16") or session.get("fp16"))
    dtype = None if is_half else torch.float32
    own = folder / REFERENCE_FOLDER
    named = session.get("model") if base is None else base
    found = find_base_model(str(own)) if own.is_dir() else base_of_run(run["base"], named)
    model = open_base(found, run["load_in_4bit"], dtype=dtype)
    if unpack and run["load_in_4bit"]:
        model.dequantize()
    adapted = read_adapters(model, folder)
    # How its answers are made is of the run, too, and not of the base.
    model.generation_config = adapted.generation_config = read_generation(folder)
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
    settings = {name: value for name, value in {**run, **session}.items() if name in names and value is not None}
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
    names = ("loss_on", "too_long")
    given = {name: as_trained.run[name] for name in names if name in as_trained.run}
    form = ConversationFormat(as_trained.run["max_length"], **given)
    documents, counts = conversation_documents(text, tokenizer, form)
    if not documents.documents:
        remarks = " ".join(counts.remarks(form.max_length))
        raise InputError(f"{text.origin} holds no conversation to evaluate on; {remarks}", "NL-403")
    return documents


def evaluate(
    path: str | Path,
    data: str | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    base: str | None = None,
) -> dict[str, Any]:
    """The metrics of the model in folder `path`, every token of the text scored once.

    Args:
        base: as of `open_model`.

    Returns:
        loss, perplexity, token_accuracy, bits_per_byte, word_perplexity, unk_rate, and tokens, words, bytes; plus
        `text`, where the text came from. Of a model tuned by preferences: see `evaluate_preferences`.

    Raises:
        InputError: bad folder or file.
    """
    trained = open_model(path, base)
    if trained.run["stage"] == "dpo":
        return evaluate_preferences(trained, data, max_length, batch_size)
    documents = held_out_documents(trained, held_out_text(trained, data))
    metrics = score(trained, documents, max_length, batch_size)
    return {**metrics, "text": documents.origin}


def evaluate_preferences(
    trained: TrainedModel, data: str | None, max_length: int | None, batch_size: int | None
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
    rows = batch_size or trained.session["per_device_eval_batch_size"]
    scores = score_pairs(trained.model, pairs, trained.tokenizer.pad_token_id, rows)
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
    names = [field.name for field in dataclasses.fields(TextMetrics)]
    if results is None or not results.keys() >= set(names) or trained.run["validation_text"] != text.identity:
        return None
    counts = documents.counts
    if (results["tokens"], results["bytes"]) != (counts.tokens, counts.bytes):
        return None
    return {name: results[name] for name in names}


def score(
    trained: TrainedModel, documents: EvaluationDocuments, max_length: int | None = None, batch_size: int | None = None
) -> dict[str, Any]:
    """The metrics as a dictionary; rows are as long, and as many at a time, as in training unless something else is
    said."""
    length = max_length or trained.run["max_length"]
    rows = batch_size or trained.session["per_device_eval_batch_size"]
    return dataclasses.asdict(score_documents(trained.model, documents, trained.tokenizer.bos_token_id, length, rows))


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
