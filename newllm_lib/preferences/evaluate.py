"""What a model tuned by preferences prefers."""

import dataclasses
from typing import Any

from ..errors import InputError
from ..training.trained_model import TrainedModel
from .pairs import drop_too_long, encode_preferences, load_preferences
from .scores import accuracy_by_kind, preference_metrics, score_pairs


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
