"""Look for good settings of stage 6: many short runs of `dpo`, each one a row of a table. The rows so far decide what
is tried next (optuna's TPE sampler, Bergstra et al. 2011)."""

import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from ..errors import InputError
from ..training.arguments import setting
from ..training.callbacks import TrainingInterrupted, read_history
from ..training.checkpoint import open_run, read_results
from ..training.disk import in_use, write_json, write_text
from .arguments import LOSS_TYPES, PRESETS, DpoArguments, values_for
from .dpo import dpo, prepare
from .reference import learn_answers

__all__ = ["PRESETS", "SweepArguments", "sweep"]

TRIALS_FILE = "trials.jsonl"
BEST_FILE = "best.json"
SEARCHED = ("beta", "learning_rate", "lora_r", "loss_type")  # the fields
RESULTS = ("accuracy", "margin", "loss", "kl", "chosen_logp", "rejected_logp", "updates")  # of a finished trial

logger = logging.getLogger(__name__)


@dataclass
class SweepArguments(DpoArguments):
    """Settings of a sweep: those of every trial, and where to look."""

    stage: Literal["dpo"] = setting("dpo", "The stage whose settings are looked for.")
    trials: int = setting(12, "Runs in all, finished ones included.", "Search", low=2, high=100, session=True)
    search_beta: str = setting("0.02,0.5", "Smallest and largest beta; one number: keep it.", "Search")
    search_learning_rate: str = setting("1e-4,5e-3", "Smallest and largest; one number: keep it.", "Search")
    search_lora_r: str = setting("4,8,16,32", "Ranks to choose from.", "Search")
    search_loss_type: str = setting("sigmoid,hinge,ipo", "Losses to choose from.", "Search")
    output_dir: str = setting("runs/sweep", "Folder of the sweep: a table, plots, and a folder per trial.")
    save_merged: bool = setting(False, "Write every trial's model with its adapters merged into it, too.")

    def __post_init__(self):
        super().__post_init__()
        self.ranges(), self.choices()  # refused now if they cannot be

    def ranges(self) -> dict[str, tuple[float, float]]:
        """(smallest, largest) of the fields that are searched on a logarithmic scale. Raises InputError: not one or two
        positive numbers in order."""
        found = {}
        for name in ("beta", "learning_rate"):
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
        """The values of the fields that are searched one by one. Raises InputError: a rank that is no positive integer,
        or an unknown loss."""
        ranks = [part.strip() for part in self.search_lora_r.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in ranks):
            raise InputError(f"search_lora_r has to be ranks such as 4,8,16, got {self.search_lora_r!r}.")
        losses = [part.strip() for part in self.search_loss_type.split(",")]
        if unknown := [part for part in losses if part not in LOSS_TYPES]:
            raise InputError(f"search_loss_type has to be of {', '.join(LOSS_TYPES)}, got {unknown[0]!r}.")
        return {"lora_r": [int(part) for part in ranks], "loss_type": losses}


def sweep(args: SweepArguments, callbacks: tuple[TrainerCallback, ...] = ()) -> Path:
    """Run the missing trials; finished ones are never repeated, and one that was cut off is continued.

    Returns:
        The folder: trials.jsonl with a row per trial, best.json, plots, and the trials' run folders.

    Raises:
        InputError: bad input, before any long work, or another process works on the folder.
        TrainingInterrupted: stopped by hand; the same call continues.
    """
    check_optuna()
    folder = Path(args.output_dir)
    open_run(folder, {"sweep": args.stage, **args.run_settings()}, args.session_settings())
    with in_use(folder):
        rows = read_trials(folder)
        reference = {}  # the same for all trials, and made once
        if args.sft_epochs > 0:
            reference = {"model": str(learn_answers(args, prepare(args), callbacks)), "sft_epochs": 0.0}
        while len(rows) < args.trials or rows[-1]["state"] == "running":
            if not rows or rows[-1]["state"] != "running":
                rows.append({"trial": len(rows) + 1, "state": "running", **suggest(args, rows)})
                write_trials(folder, rows)
            rows[-1] = run_trial(args, rows[-1], reference, callbacks)
            write_trials(folder, rows)
            if best := best_trial(rows):
                write_json(folder / BEST_FILE, {"trial": best["trial"], "settings": searched_settings(best)})
            logger.info("%s", trial_line(rows[-1], args.trials))
    logger.info("%s", verdict(rows, folder))
    return folder


def check_optuna() -> None:
    """Raises InputError if there is no optuna, which chooses what is tried next."""
    if find_spec("optuna") is None:
        raise InputError("sweep needs the package optuna; run pip install 'newllm[sweep,dpo]'.")


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """The rows of the table: trial, state (running, finished, failed), the settings and, of finished ones, metrics.
    Raises InputError: the table is damaged."""
    path = folder / TRIALS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) | {} for line in lines]  # a line that is no object is damage, too: a TypeError
    except (ValueError, TypeError, RecursionError) as error:
        remedy = "choose another --output_dir. Its trials stay there, each a run of its own"
        raise InputError(
            f"output_dir {str(folder)!r} holds a sweep whose table, {TRIALS_FILE}, is damaged; {remedy}.", "NL-404"
        ) from error


def write_trials(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(folder / TRIALS_FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def suggest(args: SweepArguments, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings to try next, by field. The finished trials are optuna's study in memory: only the table is kept."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {name: FloatDistribution(low, high, log=True) for name, (low, high) in args.ranges().items()}
    space |= {name: CategoricalDistribution(values) for name, values in args.choices().items()}
    # A seed of its own for every trial: the next one depends on the table alone, not on the process that wrote it.
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=args.seed + len(rows)))
    for row in rows:
        if row["state"] == "finished":
            params = {name: row[name] for name in space}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=row["accuracy"]))
    return study.ask(space).params


def trial_folder(folder: Path, number: int) -> Path:
    return folder / f"trial-{number:03d}"


def searched_settings(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in SEARCHED}


def run_trial(
    args: SweepArguments, row: dict[str, Any], reference: dict[str, Any], callbacks: tuple[TrainerCallback, ...]
) -> dict[str, Any]:
    """The row with the trial's results, or with the error that ended it."""
    folder = trial_folder(Path(args.output_dir), row["trial"])
    values = {**values_for(DpoArguments, args), **searched_settings(row), **reference, "output_dir": str(folder)}
    try:
        dpo(DpoArguments(**values), callbacks)
    except TrainingInterrupted as error:
        raise TrainingInterrupted(
            f"Stopped in trial {row['trial']}; the table and what the trial has done are saved in {args.output_dir}. "
            "The same command continues from there."
        ) from error
    except (RuntimeError, FloatingPointError) as error:  # such as too little memory; other settings may fit
        return {**row, "state": "failed", "error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    results = read_results(folder)
    return {**row, "state": "finished", **{name: results[name] for name in RESULTS}}


def best_trial(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The finished trial with the highest held-out accuracy; of equals the one nearest to its reference."""
    finished = [row for row in rows if row["state"] == "finished"]
    return max(finished, key=lambda row: (row["accuracy"], -row["kl"]), default=None)


def trial_line(row: dict[str, Any], trials: int) -> str:
    what = (
        f"trial {row['trial']} of {trials}: beta {row['beta']:.3g}, learning rate {row['learning_rate']:.2g}, rank "
        f"{row['lora_r']}, {row['loss_type']}"
    )
    if row["state"] == "failed":
        return f"{what}: failed ({row['error']})"
    return f"{what}: accuracy {row['accuracy']:.1%}, margin {row['margin']:.2f}, KL {row['kl']:.3f}"


def verdict(rows: Sequence[dict[str, Any]], folder: Path) -> str:
    """The best trial, and a warning about its accuracy."""
    best = best_trial(rows)
    if best is None:
        return f"No trial was finished; {folder / TRIALS_FILE} says why."
    flags = "--beta {beta:.4g} --learning_rate {learning_rate:.4g} --lora_r {lora_r} --loss_type {loss_type}"
    return (
        f"Best of {len(rows)}: trial {best['trial']}, {best['accuracy']:.1%} of the held-out pairs. These pairs have "
        f"chosen it: expect a little less on others. Its settings: newllm dpo {flags.format(**best)}"
    )


def margin_histories(folder: Path, rows: Sequence[dict[str, Any]]) -> dict[int, list[tuple[int, float]]]:
    """trial -> (update, held-out margin) of its evaluations in order, for the trials that have some."""
    logs = {row["trial"]: read_history(trial_folder(folder, row["trial"])) for row in rows}
    found = {n: [(it["step"], it["eval_margin"]) for it in log if "eval_margin" in it] for n, log in logs.items()}
    return {trial: margins for trial, margins in found.items() if margins}


def sweep_settings(folder: str | Path) -> dict[str, Any]:
    """The best trial's settings, for a run of `dpo`. Raises InputError: no trial is finished, or the table is
    damaged."""
    best = best_trial(read_trials(Path(folder)))
    if best is None:
        raise InputError(f"{str(folder)!r} holds no finished trial; run the sweep first.")
    return searched_settings(best)
