"""Look for good settings of a stage: many short runs, each one a row of a table. The rows so far decide what is tried
next (optuna's TPE sampler, Bergstra et al. 2011), or chance does, or a grid."""

import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import TrainerCallback

from ..adapters.qlora_lwf import qlora_lwf
from ..errors import InputError
from ..stages.sft import sft
from ..training.arguments import setting
from ..training.callbacks import TrainingInterrupted
from ..training.checkpoint import open_run, read_history, read_results, read_settings
from ..training.disk import in_use, write_json, write_text
from .arguments import LOSS_TYPES, DpoArguments, values_for
from .dpo import dpo, prepare
from .reference import learn_answers
from .searches import QloraLwfSweepArguments, Search, SftSweepArguments
from .trials import TRIALS_FILE, read_trials

BEST_FILE = "best.json"
RESULTS = ("accuracy", "margin", "loss", "kl", "chosen_logp", "rejected_logp", "updates")  # of a finished trial of dpo
SHOWN = ("accuracy", "margin", "kl", "bits_per_byte", "general_bits_per_byte", "objective")  # of any, in its line

logger = logging.getLogger(__name__)


@dataclass
class SweepArguments(Search, DpoArguments):
    """Settings of a sweep over stage 6: those of every trial, and where to look."""

    trial: ClassVar[type] = DpoArguments
    continuous: ClassVar[tuple[str, ...]] = ("beta", "learning_rate")
    discrete: ClassVar[tuple[str, ...]] = ("lora_r", "loss_type")

    stage: Literal["dpo"] = setting("dpo", "The stage whose settings are looked for.")
    search_beta: str = setting("0.02,0.5", "Smallest and largest beta; one number: keep it.", "Search")
    search_lora_r: str = setting("4,8,16,32", "Ranks to choose from.", "Search")
    search_loss_type: str = setting("sigmoid,hinge,ipo", "Losses to choose from.", "Search")
    output_dir: str = setting("runs/sweep", "Folder of the sweep: a table, plots, and a folder per trial.")
    save_final: bool = setting(False, "Keep every trial's weights after its last update, too.")
    save_merged: bool = setting(False, "Write every trial's model with its adapters merged into it, too.")

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

    def figures(self, results: dict[str, Any]) -> dict[str, Any]:
        return {name: results[name] for name in RESULTS}


# stage -> the settings of its sweep
STAGES: dict[str, type[Search]] = {
    "dpo": SweepArguments, "sft": SftSweepArguments, "qlora-lwf": QloraLwfSweepArguments
}  # fmt: skip


def sweep(args: Search, callbacks: tuple[TrainerCallback, ...] = ()) -> Path:
    """Run the missing trials; finished ones are never repeated, and one that was cut off is continued.

    Returns:
        The folder: trials.jsonl with a row per trial, best.json, plots, and the trials' run folders.

    Raises:
        InputError: bad input, before any long work, or another process works on the folder.
        TrainingInterrupted: stopped by hand; the same call continues.
    """
    if args.search != "grid":
        check_optuna()
    folder, is_main = Path(args.output_dir), args.process_index == 0
    with args.main_process_first(desc="opening the sweep"):
        open_run(folder, {"sweep": args.stage, **args.run_settings()}, args.session_settings())
    with in_use(folder) if is_main else nullcontext():
        # Every process finds the same rows, for what is tried next depends on them alone; the first writes them.
        rows = read_trials(folder)
        reference = {}  # the same for all trials, and made once
        if args.stage == "dpo" and args.sft_epochs > 0:
            reference = {"model": str(learn_answers(args, prepare(args), callbacks)), "sft_epochs": 0.0}
        while len(rows) < args.trials or rows[-1]["state"] == "running":
            if not rows or rows[-1]["state"] != "running":
                rows.append({"trial": len(rows) + 1, "state": "running", **suggest(args, rows)})
                write_trials(args, rows)
            rows[-1] = run_trial(args, rows[-1], reference, callbacks)
            write_trials(args, rows)
            if is_main:
                logger.info("%s", trial_line(rows[-1], args.trials))
    if is_main:
        logger.info("%s", verdict(rows, folder))
    return folder


def check_optuna() -> None:
    """Raises InputError if there is no optuna, which chooses what is tried next."""
    if find_spec("optuna") is None:
        raise InputError("sweep needs the package optuna; run pip install 'newllm[sweep,dpo]'.")


def write_trials(args: SweepArguments, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table and, where there is one, the best trial; for the first process alone."""
    folder = Path(args.output_dir)
    if args.process_index == 0:
        write_text(folder / TRIALS_FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        if best := best_trial(rows):
            write_json(folder / BEST_FILE, {"trial": best["trial"], "settings": searched_settings(best)})


def suggest(args: Search, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings to try next, by field. The finished trials are optuna's study in memory: only the table is kept."""
    if args.search == "grid":
        return args.grid()[len(rows)]
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {name: FloatDistribution(low, high, log=True) for name, (low, high) in args.ranges().items()}
    space |= {name: CategoricalDistribution(values) for name, values in args.choices().items()}
    # A seed of its own for every trial: the next one depends on the table alone, not on the process that wrote it.
    sampler = optuna.samplers.RandomSampler if args.search == "random" else optuna.samplers.TPESampler
    study = optuna.create_study(direction="maximize", sampler=sampler(seed=args.seed + len(rows)))
    for row in rows:
        if row["state"] == "finished":
            params = {name: row[name] for name in space}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=merit(row)[0]))
    return study.ask(space).params


def trial_folder(folder: Path, number: int) -> Path:
    return folder / f"trial-{number:03d}"


def searched_settings(row: dict[str, Any]) -> dict[str, Any]:
    searched = {name for kind in STAGES.values() for name in (*kind.continuous, *kind.discrete)}
    return {name: value for name, value in row.items() if name in searched}


def run_trial(
    args: Search, row: dict[str, Any], reference: dict[str, Any], callbacks: tuple[TrainerCallback, ...]
) -> dict[str, Any]:
    """The row with the trial's results, or with the error that ended it."""
    folder = trial_folder(Path(args.output_dir), row["trial"])
    values = {**values_for(args.trial, args), **searched_settings(row), **reference, "output_dir": str(folder)}
    try:
        {"dpo": dpo, "sft": sft, "qlora-lwf": qlora_lwf}[args.stage](args.trial(**values), callbacks)
    except TrainingInterrupted as error:
        raise TrainingInterrupted(
            f"Stopped in trial {row['trial']}; the table and what the trial has done are saved in {args.output_dir}. "
            "The same command continues from there."
        ) from error
    except (RuntimeError, FloatingPointError) as error:  # such as too little memory; other settings may fit
        return {**row, "state": "failed", "error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    with args.main_process_first(desc="writing the trial's results"):
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    results = read_results(folder)
    results |= results.get("validation", {})  # what is tested on chooses nothing
    return {**row, "state": "finished", **args.figures(results)}


def merit(row: dict[str, Any]) -> tuple[float, ...]:
    """The more, the better: held-out accuracy, of equals the one nearest to its reference; or a small `objective`."""
    return (row["accuracy"], -row["kl"]) if "accuracy" in row else (-row["objective"],)


def best_trial(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The finished trial of the highest merit."""
    return max((row for row in rows if row["state"] == "finished"), key=merit, default=None)


def trial_line(row: dict[str, Any], trials: int) -> str:
    what = f"trial {row['trial']} of {trials}: {in_words(searched_settings(row))}"
    if row["state"] == "failed":
        return f"{what}: failed ({row['error']})"
    return f"{what}: {in_words({name: row[name] for name in SHOWN if name in row})}"


def in_words(values: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {short(value)}" for name, value in values.items())


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def verdict(rows: Sequence[dict[str, Any]], folder: Path) -> str:
    """All trials as a table, the best first; that one's settings, and a warning about what is said of it."""
    best = best_trial(rows)
    if best is None:
        return f"No trial was finished; {folder / TRIALS_FILE} says why."
    flags = " ".join(f"--{name} {short(value)}" for name, value in searched_settings(best).items())
    return (
        f"{experiment_table(rows)}\n\nBest of {len(rows)}: trial {best['trial']}. What was held out has chosen it: "
        f"expect a little less on other data. Its settings: newllm {read_settings(folder)['run']['sweep']} {flags}"
    )


def experiment_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each finished trial, the best first: what was searched, and what came of it."""
    finished = sorted((row for row in rows if row["state"] == "finished"), key=merit, reverse=True)
    names = ["trial", *searched_settings(finished[0]), *(name for name in SHOWN if name in finished[0])]
    lines = [names, *([short(row[name]) for name in names] for row in finished)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


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
