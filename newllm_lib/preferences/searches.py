"""Where a sweep looks: the settings that every sweep has, and those of sweeps of stages 2 to 5. Stage 6 has its own."""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from ..adapters.arguments import QloraLwfArguments
from ..errors import InputError
from ..stages.sft import SftArguments
from ..training.arguments import setting
from .arguments import values_for

METRICS = ("loss", "perplexity", "bits_per_byte", "token_accuracy", "updates")  # of a finished trial, of its results


@dataclass
class Search:
    """Settings of every sweep. A field `search_X` says where the stage's X is looked for."""

    trial: ClassVar[type]  # the dataclass of a trial's settings
    continuous: ClassVar[tuple[str, ...]] = ("learning_rate",)  # between two numbers, on a logarithmic scale
    discrete: ClassVar[tuple[str, ...]] = ()  # of a few values

    trials: int = setting(12, "Runs in all, finished ones included.", "Search", low=2, high=100, session=True)
    search: Literal["tpe", "random", "grid"] = setting(
        "tpe", "What is tried next: tpe learns from the trials, random draws, grid takes every combination.", "Search"
    )
    grid_points: int = setting(3, "With search grid: values between smallest and largest.", "Search", low=2, high=10)
    search_learning_rate: str = setting("1e-4,5e-3", "Smallest and largest; one number: keep it.", "Search")

    def __post_init__(self):
        super().__post_init__()
        self.ranges()  # refused now if they cannot be
        for name, values in self.choices().items():
            for value in values:
                self.trial(**{**values_for(self.trial, self), name: value})
        if self.search == "grid":
            self.trials = min(self.trials, len(self.grid()))

    def ranges(self) -> dict[str, tuple[float, float]]:
        """(smallest, largest) of the fields that are searched on a logarithmic scale. Raises InputError: not one or two
        positive numbers in order."""
        found = {}
        for name in self.continuous:
            text = getattr(self, f"search_{name}")
            try:
                numbers = [float(part) for part in text.split(",")]
            except ValueError:
                numbers = []
            are_numbers = all(0 < number < math.inf for number in numbers)  # nan is neither
            if len(numbers) not in (1, 2) or not are_numbers or numbers != sorted(numbers):
                wanted = "one positive number, or the smallest and the largest such as 0.02,0.5"
                raise InputError(f"search_{name} has to be {wanted}, got {text!r}.")
            found[name] = (numbers[0], numbers[-1])
        return found

    def choices(self) -> dict[str, list[Any]]:
        """The values of the fields that are searched one by one. Raises InputError: they are not numbers."""
        defaults = {field.name: field.default for field in fields(self)}
        found = {}
        for name in self.discrete:
            text, kind = getattr(self, f"search_{name}"), type(defaults[name])
            try:
                found[name] = [kind(part) for part in text.split(",")]
            except ValueError as error:
                such = defaults[f"search_{name}"]
                raise InputError(f"search_{name} has to be numbers such as {such}, got {text!r}.") from error
        return found

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, in an order that is drawn once: a sweep that ends early has looked everywhere a little."""
        axes = {name: list(self._between(*ends)) for name, ends in self.ranges().items()} | self.choices()
        combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        random.Random(self.seed).shuffle(combinations)
        return combinations

    def _between(self, low: float, high: float) -> Iterator[float]:
        """`grid_points` numbers, each as many times the one before it; one where both ends are the same."""
        points = self.grid_points if high > low else 1
        for number in range(points):
            yield float(f"{low * (high / low) ** (number / max(points - 1, 1)):.3g}")

    def figures(self, results: dict[str, Any]) -> dict[str, Any]:
        """What the table keeps of a trial's results; of `objective` the smallest is best."""
        return {name: results[name] for name in METRICS} | {"objective": results["loss"]}


@dataclass
class SftSweepArguments(Search, SftArguments):
    """Settings of a sweep over stages 2 to 4."""

    trial: ClassVar[type] = SftArguments
    discrete: ClassVar[tuple[str, ...]] = ("dropout", "weight_decay")

    stage: Literal["sft"] = setting("sft", "The stage whose settings are looked for.")
    search_dropout: str = setting("0,0.1,0.2", "Shares of hidden units dropped to choose from.", "Search")
    search_weight_decay: str = setting("0.1,0.4", "Weight decays to choose from.", "Search")
    output_dir: str = setting("runs/sft-sweep", "Folder of the sweep: a table, and a folder per trial.")


@dataclass
class QloraLwfSweepArguments(Search, QloraLwfArguments):
    """Settings of a sweep over stage 5."""

    trial: ClassVar[type] = QloraLwfArguments
    discrete: ClassVar[tuple[str, ...]] = ("lora_r", "lora_alpha", "lora_dropout", "distill_weight")

    stage: Literal["qlora-lwf"] = setting("qlora-lwf", "The stage whose settings are looked for.")
    search_lora_r: str = setting("4,8,16", "Ranks to choose from.", "Search")
    search_lora_alpha: str = setting("8,16,32", "Values of alpha to choose from.", "Search")
    search_lora_dropout: str = setting("0.05", "Dropouts of the adapters to choose from.", "Search")
    search_distill_weight: str = setting("0.5", "Weights of the base's predictions to choose from.", "Search")
    output_dir: str = setting("runs/qlora-lwf-sweep", "Folder of the sweep: a table, and a folder per trial.")

    def __post_init__(self):
        super().__post_init__()
        if self.rank_schedule is not None:
            raise InputError("rank_schedule decides lora_r, which a sweep looks for; leave it out.")

    def figures(self, results: dict[str, Any]) -> dict[str, Any]:
        """What is forgotten counts as much as what is learned: bits per byte of either text, added."""
        general = results["forgetting"]["general_text"]
        both = {"general_bits_per_byte": general["bits_per_byte_after"], "general_kl_to_base": general["kl_to_base"]}
        objective = results["bits_per_byte"] + general["bits_per_byte_after"]
        return super().figures(results) | both | {"objective": objective}
