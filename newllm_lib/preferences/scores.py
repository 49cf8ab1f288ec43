"""What a model prefers: how likely it and its reference find two answers, pair by pair.

Dimensions: B rows (two per pair), T tokens, N scored tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from ..adapters.mixture import collate_examples
from ..adapters.trainer import rows_of
from ..errors import InputError
from ..models.frozen_head import adapters_off, split_head, token_scores
from ..training.trained_model import TrainedModel
from .pairs import EncodedPreference, drop_too_long, load_preferences

NOTABLE_FALL = 1.0  # nats of a whole answer
ROUNDING = 1e-3  # nats of a whole answer in fp32


class PairScores(NamedTuple):
    """For every pair [P]: log-probabilities of its answers under model and reference; the KL of the chosen answer,
    summed over its tokens, and how many these are."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    reference_chosen: torch.Tensor
    reference_rejected: torch.Tensor
    kl: torch.Tensor
    tokens: torch.Tensor

    def margins(self, beta: float) -> torch.Tensor:
        """Rewards of the chosen answers minus those of the rejected ones, [P]."""
        return beta * ((self.chosen - self.reference_chosen) - (self.rejected - self.reference_rejected))


@torch.no_grad()
def score_pairs(model: PreTrainedModel, pairs: Sequence[EncodedPreference], batch_size: int) -> PairScores:
    """Both answers of every pair under the model and under the model without its adapters."""
    was_training = model.training
    model.eval()
    batches = [pairs[first : first + batch_size] for first in range(0, len(pairs), batch_size)]
    try:
        parts = [_score_batch(model, batch) for batch in batches]
    finally:
        model.train(was_training)
    return PairScores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _score_batch(model: PreTrainedModel, pairs: Sequence[EncodedPreference]) -> list[torch.Tensor]:
    decoder, head = split_head(model)
    rows = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    examples = [
        {"input_ids": prompt + answer, "supervised": [False] * len(prompt) + [True] * len(answer)}
        for prompt, answer in rows
    ]
    batch = {name: tensor.to(head.weight.device) for name, tensor in collate_examples(examples).items()}
    input_ids, scored = batch["input_ids"], batch["supervised"]
    labels = batch["labels"].flatten()[scored]
    read = decoder, input_ids, scored, torch.ones_like(input_ids)  # GPT-2 warns without a mask, which none needs
    hidden = rows_of(*read)
    with adapters_off(model):
        of_reference = rows_of(*read)
    nats, _, _ = token_scores(hidden, head, labels)
    reference_nats, _, divergence = token_scores(of_reference, head, labels, hidden)
    row = scored.cpu() // input_ids.shape[1]
    sums = [
        torch.zeros(len(rows), dtype=torch.float64).index_add_(0, row, values.double().cpu())
        for values in (-nats, -reference_nats, divergence, torch.ones_like(nats))
    ]
    (log_p, log_q, kl, tokens), half = sums, len(pairs)
    return [log_p[:half], log_p[half:], log_q[:half], log_q[half:], kl[:half], tokens[:half]]


def preference_metrics(scores: PairScores, beta: float) -> dict[str, float]:
    """Means over all pairs. A reward is beta * (log-probability under the model - under the reference), the reference
    being the model with its adapters off.

    Returns:
        `loss`: DPO's, -log sigmoid(margin) (Rafailov et al. 2023, equation 7), whatever the loss in training;
        `accuracy`: share of pairs whose chosen answer has the higher reward, a tie counting half; `margin`: reward of
        the chosen answer minus that of the rejected one; `chosen_logp`, `rejected_logp`: log-probability of the whole
        answer in nats; `kl`: KL(model ‖ reference) per token of the chosen answers in nats; `pairs`: how many.
    """
    margins = scores.margins(beta)
    return {
        "loss": float(-functional.logsigmoid(margins).mean()),
        "accuracy": share_ahead(margins, beta),
        "margin": float(margins.mean()),
        "chosen_logp": float(scores.chosen.mean()),
        "rejected_logp": float(scores.rejected.mean()),
        "kl": float(scores.kl.sum() / scores.tokens.sum()),
        "pairs": len(margins),
    }


def share_ahead(margins: torch.Tensor, beta: float) -> float:
    """Share of positive margins; one that rounding alone could have made counts half."""
    tied = margins.abs() <= ROUNDING * beta
    return float((margins > 0)[~tied].sum() + tied.sum() / 2) / len(margins)


def accuracy_by_kind(scores: PairScores, pairs: Sequence[EncodedPreference], beta: float) -> dict[str, float]:
    """Accuracy on the pairs of each kind of flaw; pairs without a label are left out."""
    margins = scores.margins(beta)
    kinds = sorted({pair.kind for pair in pairs} - {""})
    return {kind: share_ahead(margins[torch.tensor([pair.kind == kind for pair in pairs])], beta) for kind in kinds}


def chosen_falls(before: dict[str, float], now: dict[str, float]) -> str:
    """A sentence if the chosen answers have become less likely while the margin has grown, else nothing; `before` and
    `now` are evaluations as a trainer logs them."""
    fall = before["eval_chosen_logp"] - now["eval_chosen_logp"]
    if fall < NOTABLE_FALL or now["eval_margin"] <= before["eval_margin"]:
        return ""
    return (
        f"The margin grows (now {now['eval_margin']:.2f}), but the chosen answers have become less likely, too "
        f"({before['eval_chosen_logp']:.1f} -> {now['eval_chosen_logp']:.1f} nats per answer): the model unlearns the "
        "rejected ones more than it learns the chosen ones. A larger --beta, a smaller --learning_rate or some "
        "--sft_weight counters that."
    )


def evaluate_preferences(
    trained: TrainedModel, data: str | None, max_length: int | None, batch_size: int | None
) -> dict[str, Any]:
    """Score a model tuned by preferences on the pairs held out when it was trained, or on those in a file: its
    `preference_metrics`, `accuracy_by_kind` of flaw, and `text`, where the pairs came from. Raises InputError: a bad
    file, or the held-out pairs are out of reach or have changed."""
    run, length = trained.run, max_length or trained.run["max_length"]
    names = ("dataset", "skip_bad_rows", "pairs", "pairs_seed", "held_out_share")
    settings = {name: run[name] for name in names if name in run}
    if data is not None:
        settings |= {"data": data, "eval_data": data}
    else:
        settings |= {name: trained.session[name] for name in ("data", "eval_data") if name in trained.session}
        settings["max_samples"] = run.get("max_samples")
    held_out = load_preferences(**settings).validation
    if data is None and held_out.identity != run["validation_text"]:
        raise InputError(f"the pairs held out of {str(trained.folder)!r} have changed since; name some with --data.")
    pairs = drop_too_long(held_out, trained.tokenizer, length, skips=True).encoded
    rows = batch_size or trained.session["per_device_eval_batch_size"]
    scores = score_pairs(trained.model, pairs, rows)
    kinds = accuracy_by_kind(scores, pairs, run["beta"])
    return {**preference_metrics(scores, run["beta"]), "accuracy_by_kind": kinds, "text": held_out.origin}
