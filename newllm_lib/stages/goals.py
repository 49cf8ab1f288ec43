"""What the published guides count as success, held against the figures of a comparison."""

from collections.abc import Sequence
from typing import Any

from ..training.checkpoint import read_results
from ..training.trained_model import TrainedModel

OURS, BASELINES = ("newllm", "newllm-reference"), ("tiny-gpt2", "lstm")
# In the published setting (a thousand words, every token scored) a dataset counts as learned below this perplexity.
LEARNED = {"wikitext": 20, "dolly": 17, "hh-rlhf": 21, "ultrachat": 26, "ultrachat-full": 26, "codealpaca": 32}
EQUAL_SIZE = 0.05  # by how much the numbers of parameters may differ
NEAR = 30  # per cent behind a baseline
UNCHANGED = 0.002  # of the bits that general text takes: another held-out sample would move them as far


def percent(value: float | None, other: float | None) -> float | None:
    """By how many per cent `value` is more than `other`; None where one is not known, or nothing is more than 0."""
    return None if value is None or not other else 100 * (value / other - 1)


def goals(trained: TrainedModel, row: dict[str, Any], others: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals that a model of a comparison can be held to, each with `goal`, `met` and the `figure` that says so;
    `others` are all rows."""
    found: list[dict[str, Any]] = []

    def hold(goal: str, met: bool, figure: str) -> None:
        found.append({"goal": goal, "met": met, "figure": figure})

    run, is_ours = trained.run, trained.run.get("model_type") in OURS
    is_hubs = run["stage"] == "pretrain" and run["text_source"] == "hub"
    limit = LEARNED.get("wikitext" if is_hubs else run.get("dataset"))
    setting = run.get("tokenizer"), run.get("loss_on", "all")
    if limit and setting == ("word", "all") and row["split"] != "another text":
        hold(f"perplexity below {limit}", row["perplexity"] < limit, f"{row['perplexity']:.1f}")
    if is_ours:
        first, *_, last = row["state_bytes"].items()
        figure = f"{first[1]:,} bytes after {int(first[0]):,} tokens, {last[1]:,} after {int(last[0]):,}"
        hold("a memory of the text that does not grow", first[1] == last[1], figure)
    for other in others if is_ours else ():
        if other["model_type"] not in BASELINES or abs(row["parameters"] / other["parameters"] - 1) > EQUAL_SIZE:
            continue
        key = "perplexity" if row["tokens"] == other["tokens"] else "bits_per_byte"
        if (more := percent(row[key], other[key])) is not None:
            name = f"{other['name']} at equal size"
            hold(f"at most {NEAR} % behind {name}", more <= NEAR, f"{key.replace('_', ' ')} {more:+.1f} %")
            hold(f"as good as {name}, or better", more <= 0, f"{key.replace('_', ' ')} {more:+.1f} %")
    if general := (read_results(trained.folder) or {}).get("forgetting", {}).get("general_text"):
        before, after = general["bits_per_byte_before"], general["bits_per_byte_after"]
        hold("general text is kept", after / before - 1 <= UNCHANGED, f"{before:.3f} -> {after:.3f} bits per byte")
    return found
