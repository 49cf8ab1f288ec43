"""What one training step of a model takes on this machine, measured before a run starts; and how a cost is told."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from ..models import build_model, count_parameters
from ..training.arguments import StageArguments
from ..training.device import Device, find_device, peak_of
from ..training.update import timed_update
from .languages import text
from .notices import size

BYTES_OF_A_VALUE = 4
VALUES_IN_TRAINING = 4  # a weight, its gradient and AdamW's two averages of it, all in fp32
RUN_BYTES = 220_000_000  # of the process: libraries, text, pictures; measured with benchmarks/cost_line.py
PROBE_SECONDS = 0.4
PROBE_LENGTH = 128


@dataclass(frozen=True)
class StepCost:
    """What one measured training step of a model took.

    Attributes:
        seconds_per_flop: per floating-point operation, of which a token takes 6 a parameter.
        parameters, tokens: of the model, and of the step.
        peak_bytes: the memory in use, all of the process on a CPU; None where that cannot be told.
        bytes_per_token: of `peak_bytes`, what grows with the tokens of a step.
    """

    seconds_per_flop: float
    parameters: int
    tokens: int
    peak_bytes: int | None
    bytes_per_token: float

    def seconds(self, parameters: int, tokens: float) -> float:
        """Of training a model of that many parameters on so many tokens."""
        return 6 * parameters * tokens * self.seconds_per_flop

    def memory(self, parameters: int, tokens: int) -> int | None:
        """Bytes that steps of so many tokens of a model of that many parameters take at their peak."""
        if self.peak_bytes is None:
            return None
        weights = BYTES_OF_A_VALUE * VALUES_IN_TRAINING * (parameters - self.parameters)
        return int(self.peak_bytes + weights + self.bytes_per_token * (tokens - self.tokens))


@dataclass(frozen=True)
class Cost:
    """What a run will take; None is what nobody can tell before it has started."""

    minutes: float | None = None
    memory_bytes: int | None = None


def measure_step(config: PreTrainedConfig, args: StageArguments, rows: int, length: int) -> StepCost:
    """What one step of a new model on `rows` rows of `length` tokens takes under the precision of `args`; where that
    would take seconds, it is made smaller."""
    device, parameters, length = find_device(), count_parameters(config), min(length, PROBE_LENGTH)
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    (seconds, tokens), memory = peak_of(device, lambda: _step(config, rows, length, device, dtype))
    before, peak = memory or (0, None)
    weights = BYTES_OF_A_VALUE * VALUES_IN_TRAINING * parameters
    growing = max(peak - before - weights, 0) / tokens if memory else 0.0
    return StepCost(seconds / (6 * parameters * tokens), parameters, tokens, peak, growing)


def _step(
    config: PreTrainedConfig, most_rows: int, length: int, device: Device, dtype: torch.dtype | None
) -> tuple[float, int]:
    """Seconds and tokens of one step of a new model."""
    model = build_model(config).to(device.kind).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def seconds(rows: int) -> float:
        input_ids = torch.randint(0, config.vocab_size, (rows, length), device=device.kind)
        return timed_update(model, optimizer, input_ids, dtype)

    rows = 1
    seconds(rows)  # the first step sets things up that the others find ready
    # Few rows are slower, row by row, than many: as many of them as can be had soon.
    while (taken := seconds(rows)) < PROBE_SECONDS and rows < most_rows:
        rows = min(4 * rows, most_rows)
    # The first step of its size has got its memory from the system, page by page.
    return min(taken, seconds(rows)), rows * length


def times(interval: float, updates: int) -> float:
    """How often something happens in a run: every `interval` updates or, below 1, every such share of them."""
    return 1 / interval if interval < 1 else updates / interval


def memory_of_run(peaks: list[int | None]) -> int | None:
    """Bytes that a run takes whose models, one after the other, have these peaks (`StepCost.memory`)."""
    if None in peaks:
        return None
    return max(peaks) + (RUN_BYTES if find_device().kind == "cpu" else 0)


def cost_phrases(cost: Cost, models: int) -> list[str]:
    """HTML phrases of a live line, for a run of so many models."""
    phrases = []
    if cost.minutes is not None:
        whom = " for both models" if models > 1 else ""
        phrase = f"about <b>{{minutes}}</b>{whom} here (estimated from one measured step)"
        phrases.append(text(phrase, minutes=_minutes(cost.minutes)))
    if cost.memory_bytes is not None:
        phrases.append(text("<b>{memory}</b> of memory", memory=size(cost.memory_bytes)))
    return phrases


def _minutes(minutes: float) -> str:
    if minutes < 1.5:
        return text("a minute")
    if minutes < 90:
        return text("{minutes} minutes", minutes=f"{minutes:.0f}")
    return text("{hours} hours", hours=f"{minutes / 60:.1f}")
