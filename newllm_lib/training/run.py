"""A run from its settings to its finished folder: a new model, what the stages of one model have in common, and the
card that says what was trained."""

import logging
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from transformers import (
    EarlyStoppingCallback,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)

from .. import __version__
from ..data.sources import Splits
from ..data.text import EvaluationDocuments, TextCounts
from ..data.tokenizer import DEFAULT_VOCAB_SIZE, SPECIAL_TOKENS, end_token_ids
from ..errors import InputError
from ..models import build_config, build_model, count_parameters
from ..models.sizing import ALL_SIZES
from ..progress import Progress
from .arguments import ModelArguments
from .callbacks import (
    EvaluateAtEnd,
    Heartbeat,
    RunLog,
    SaveByMinutes,
    SaveOnInterrupt,
    TrainingInterrupted,
    any_process,
)
from .checkpoint import (
    CURVES_FILE,
    FINAL_FOLDER,
    METRICS_FILE,
    RESULTS_FILE,
    SETTINGS_FILE,
    check_place,
    open_run,
    read_results,
    rotate,
)
from .device import find_device
from .disk import GB, in_use, saying, write_json, write_text
from .run_trainer import RunTrainerMixin
from .trained_model import BaseModel
from .trainer import count_training_tokens

BYTES_PER_PARAMETER = 16  # in fp32: weight, gradient, and two moments of AdamW
FEWEST_TYPES = {**dict.fromkeys(("byte", "bpe"), 256 + len(SPECIAL_TOKENS)), "word": 4, "gpt2": 50_257}
CARD_FILE = "README.md"

logger = logging.getLogger(__name__)


def model_config(args: ModelArguments, vocab_size: int, **token_ids: int | None) -> PreTrainedConfig:
    """The config that the settings describe. Raises InputError: there is no such model."""
    names = ("max_length", "num_layers", "num_parameters", "dropout", *ALL_SIZES)
    try:
        sizes = {name: getattr(args, name) for name in names}
        return build_config(args.model_type, vocab_size=vocab_size, **sizes, **token_ids)
    except ValueError as error:
        raise InputError(str(error)) from error


def check_size(args: ModelArguments) -> None:
    """Find out before the data are prepared whether there is such a model, and whether its training fits into memory.
    Raises InputError: it does not, whatever vocabulary it gets."""
    fewest = args.vocab_size or FEWEST_TYPES[args.tokenizer]
    try:
        config = model_config(args, fewest)
    except InputError:
        # How large a vocabulary becomes, only the text says.
        config = model_config(args, args.vocab_size or DEFAULT_VOCAB_SIZE.get(args.tokenizer, fewest))
    device = find_device(args.use_cpu)
    there = psutil.virtual_memory().total / GB if device.memory_gb is None else device.memory_gb
    try:
        parameters = count_parameters(config)
    except RuntimeError as error:
        raise InputError("hidden_size and other sizes give more than can be counted; choose smaller ones.") from error
    needed = BYTES_PER_PARAMETER * parameters / GB
    if needed > there:
        raise InputError(
            f"num_parameters: {parameters:,} need {needed:,.0f} GB to be trained, and the {device.name} has "
            f"{there:,.0f}; choose fewer, or smaller sizes.",
            "NL-103",
        )


def new_model(args: ModelArguments, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The model that the settings describe, initialised from the seed. Raises InputError: there is no such model."""
    set_seed(args.seed)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    model = build_model(model_config(args, len(tokenizer), **{name: getattr(tokenizer, name) for name in names}))
    model.generation_config.eos_token_id = end_token_ids(tokenizer)
    return model


@dataclass(frozen=True)
class PreparedRun:
    """All that is known before training starts."""

    splits: Splits[Any]
    tokenizer: PreTrainedTokenizerFast
    train_rows: Any  # what the stage's trainer takes: rows of tokens, a mix of examples, or pairs
    train_counts: TextCounts
    held_out: Any  # documents to choose by, or pairs; both say in `origin` where they are from
    model: PreTrainedModel
    remarks: tuple[str, ...] = ()  # what the user should know about the data
    extent: str = ""  # on the model and its training, where a stage has a sentence of its own
    base: BaseModel | None = None  # what adapters are trained on
    test: Any = None  # as `held_out`, where the data have a test split

    @property
    def reported(self) -> Any:
        """What figures are of."""
        return self.held_out if self.test is None else self.test

    @property
    def split(self) -> str:
        return "validation" if self.test is None else "test"


def prepare_once(args: ModelArguments, prepare: Callable[[ModelArguments], PreparedRun]) -> PreparedRun:
    """`prepare(args)`; of several processes the first prepares, and the others find its work in the cache. Raises
    InputError: the run cannot be written to its folder, or what `prepare` raises."""
    with args.main_process_first(desc="preparing the data"), Progress(desc="preparing the data"):
        check_place(Path(args.output_dir))
        prepared = prepare(args)
    if args.gradient_checkpointing and not prepared.model.supports_gradient_checkpointing:
        raise InputError(
            f"gradient_checkpointing is nothing that {type(prepared.model).__name__} can do; give "
            "--gradient_checkpointing false."
        )
    return prepared


def check_metric_of(args: ModelArguments, documents: EvaluationDocuments) -> None:
    """Raise InputError if this held-out text has no figure for the metric that decides."""
    name = args.metric_for_best_model
    if documents.counts.unknown_tokens and name in ("bits_per_byte", "word_perplexity"):
        raise InputError(
            f"metric_for_best_model {name} is no figure of {documents.origin}, of which the tokenizer does not know "
            "every word; choose loss or perplexity."
        )


class Run:
    """A run in its folder, which no other process works on until `opened_run` ends."""

    def __init__(self, args: ModelArguments, prepared: PreparedRun):
        self.args, self.prepared, self.folder = args, prepared, Path(args.output_dir)
        self.is_main = args.process_index == 0
        results = read_results(self.folder)
        self.is_finished = results is not None  # there is nothing left to do
        self.trainer: RunTrainerMixin | None = None  # once it has trained
        if self.is_finished:
            self._say(f"This run is finished: loss {results['loss']:.4f}. Choose another --output_dir for a new one.")
            return
        if (self.folder / RESULTS_FILE).exists() and self.is_main:
            logger.warning("The results of this run are damaged, or its weights are gone: they are made again.")
        counts, extent = prepared.train_counts, prepared.extent
        if not extent:
            updates, tokens = count_training_tokens(args, len(prepared.train_rows))
            extent = (
                f"{args.model_type}: {prepared.model.num_parameters():,} parameters, {counts.tokens:,} tokens of text, "
                f"{updates} updates over {tokens:,} tokens, on {args.device}."
            )
        if args.scale_learning_rate:
            extent += f" The learning rate is scaled to {args.peak_learning_rate:.3g}."
        origins = f"Text: {prepared.splits.train.origin}; held out: {prepared.held_out.origin}."
        if prepared.test is not None:
            origins += f" Figures will be of {prepared.test.origin}."
        for line in (prepared.splits.note, origins, *prepared.remarks, extent):
            self._say(line)
        if counts.unknown_tokens:
            share = f"{100 * counts.unknown_tokens / counts.tokens:.1f} %"
            self._say(f"{share} of the training tokens are <unk>: perplexity is flattered by as much.")

    def callbacks(self, callbacks: Sequence[TrainerCallback] = ()) -> list[TrainerCallback]:
        """What a trainer of this run calls back, `callbacks` last."""
        args = self.args
        self._log, self.interrupt = RunLog(self.folder, args.model_type, args.metrics), SaveOnInterrupt()
        stop_early = [EarlyStoppingCallback(args.early_stopping_patience)] if args.early_stopping_patience else []
        by_minutes = [SaveByMinutes(args.save_minutes)] if args.save_minutes and args.save_strategy != "no" else []
        log = [self._log, Heartbeat(self.folder)] if self.is_main else []
        # Whoever reads that it trains may stop it: the signals come before the heartbeat.
        return [*stop_early, EvaluateAtEnd(), self.interrupt, *log, *by_minutes, *callbacks]

    def train(self, trainer: RunTrainerMixin) -> None:
        """Train, or go on from the newest checkpoint, and save the model that is the result; `trainer` is made with
        `self.callbacks(...)`. Raises InputError: the disk does not take the result; TrainingInterrupted: stopped by
        hand, and the same command continues."""
        trainer.remove_callback(PrinterCallback)
        trainer.keeps_final = self.args.save_final
        try:
            trainer.resume_or_start()
            if self.is_main:
                self._log.write_all(trainer.state)
        finally:
            self.interrupt.restore()
            self._log.progress.close()
        state, saved = trainer.state, trainer.saved_step
        if self.interrupt.interrupted and state.global_step < state.max_steps:
            then = f"; everything is saved in {self.folder}. The same command continues from there."
            if saved != state.global_step:
                then = f", which could not be saved. The same command continues from update {saved}."
            raise TrainingInterrupted(f"Stopped at update {state.global_step} of {state.max_steps}{then}")
        trainer.check_weights()
        self.trainer = trainer
        if self.is_main:  # no results beside weights that are not all there
            (self.folder / RESULTS_FILE).unlink(missing_ok=True)
        trainer.save_model(str(self.folder))

    def finish(self, metrics: dict[str, Any], more: dict[str, Any] | None = None, advice: str = "") -> None:
        """Write the model card and the results, which say that the run is finished: the `metrics` of the trained model,
        and what `more` belongs there. `advice` is the last but one line of the log."""
        if not self.is_main:
            return
        prepared, state = self.prepared, self.trainer.state
        write_text(self.folder / CARD_FILE, model_card(self.args, prepared, metrics, state.global_step))
        size = {"parameters": prepared.model.num_parameters(), "updates": state.global_step}
        size |= {"best_update": self.trainer.best_update or state.global_step}
        final = self.folder / FINAL_FOLDER
        if final.is_dir() and not (final / SETTINGS_FILE).exists():  # adapters come without it
            shutil.copyfile(self.folder / "generation_config.json", final / "generation_config.json")
        more = {**self._chosen_by(size["best_update"]), **(more or {}), "split": prepared.split}
        write_json(self.folder / RESULTS_FILE, {**metrics, **more, **size})
        # A process that was killed while it did so has left some.
        limit, best = self.args.save_total_limit, state.best_model_checkpoint
        rotate(self.folder, self.trainer.saved_step, limit, best, is_over=True)
        self._say(advice)
        self._say(f"Finished: everything is in {self.folder}.")

    def _chosen_by(self, update: int) -> dict[str, Any]:
        """The evaluation for which the weights of this update were kept, where the results are of another split."""
        evaluations = [entry for entry in self.trainer.state.log_history if "eval_loss" in entry]
        found = [entry for entry in evaluations if entry["step"] == update and self.prepared.split == "test"]
        figures = {
            name.removeprefix("eval_"): value for entry in found for name, value in entry.items() if "eval_" in name
        }
        return {"validation": figures} if found else {}

    def _say(self, sentence: str) -> None:
        if sentence and self.is_main:
            logger.info("%s", sentence)


@contextmanager
def opened_run(args: ModelArguments, prepared: PreparedRun, identity: dict[str, Any]) -> Iterator[Run]:
    """The run that `args.output_dir` holds, or a new one there; beside its settings and its data, `identity` makes it
    this run. Raises InputError: the folder holds something else, another process works on it, or the disk does not take
    the result; TrainingInterrupted, at its end: a stop came when there was nothing left to train."""
    claim_folder(args, prepared, identity)
    with in_use(Path(args.output_dir)) if args.process_index == 0 else nullcontext():
        run = Run(args, prepared)
        try:
            yield run
        except Exception:
            if run.trainer is None:
                raise
            with saying(
                f"the result of the run could not be written to {str(run.folder)!r}",
                f"the same command writes it when the disk can take it (saved up to update {run.trainer.saved_step})",
            ):
                raise
        if run.trainer is not None and any_process(run.interrupt.asked, args):  # a sweep would go on with its next run
            raise TrainingInterrupted(f"Stopped after the last update: the run in {run.folder} is finished.")


def claim_folder(args: ModelArguments, prepared: PreparedRun, identity: dict[str, Any]) -> None:
    """Open `args.output_dir` for the run; `identity` as in `opened_run`. Raises InputError: it holds something else."""
    splits = prepared.splits
    texts = {"train_text": splits.train.identity, "validation_text": splits.validation.identity}
    texts["test_text"] = None if splits.test is None else splits.test.identity
    run = {**identity, "text_source": splits.source, **texts, **args.run_settings()}
    with args.main_process_first(desc="opening the run"):
        open_run(Path(args.output_dir), run, args.session_settings())


def model_card(args: ModelArguments, prepared: PreparedRun, metrics: dict[str, Any], updates: int) -> str:
    """What was trained, on what, with which result, and how to do it again. A model whose tokenizer has a chat template
    is one to talk to; the licence of a base binds its adapters, too."""
    train, held_out, test = prepared.splits.train, prepared.splits.validation, prepared.splits.test
    model, base, start = prepared.model, prepared.base, getattr(args, "model", None)
    unknown = "not stated: the tokenizer has unknown words"
    shown = {name: unknown if it is None else f"{it:,.4f}".rstrip("0").rstrip(".") for name, it in metrics.items()}
    table = "\n".join(f"| {name} | {value} |" for name, value in shown.items())
    tested = "" if test is None else f"\n| tested on | {test.origin} (licence: {test.licence}) |"
    talks = prepared.tokenizer.chat_template is not None
    purpose = "It answers as the conversations it has seen" if talks else "It continues text; it is no assistant"
    begun = "from scratch" if start is None else f"from another one (`{Path(start).name}`)"
    if base is not None:
        begun = f"as adapters on {base.name} (licence: {base.licence})"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
license: other
---
# {args.model_type}, {model.num_parameters():,} parameters

A small language model trained {begun} with New-LLM {__version__}. {purpose}, and what it says is not to be relied on.

| | |
|---|---|
| trained on | {train.origin} (licence: {train.licence}) |
| held out | {held_out.origin} (licence: {held_out.licence}) |{tested}
| updates | {updates:,}, {args.effective_batch_size} rows of {"at most " if base else ""}{args.max_length} tokens each |
| tokenizer | {getattr(args, "tokenizer", "the base model's")}, {model.config.vocab_size:,} types |

## Metrics on held-out text, the {prepared.split} split

The best checkpoint was chosen on the validation split.

| metric | value |
|---|---|
{table}

![learning curves]({CURVES_FILE})

## Use

{how_to_use("path/to/this/folder", model.config, talks, base is not None)}

All settings are in `{SETTINGS_FILE}`, the log of the run in `{METRICS_FILE}`. Trained with Python
{platform.python_version()}, torch {torch.__version__} and transformers {transformers.__version__}.
"""


def how_to_use(place: str, config: PreTrainedConfig | None, talks: bool, has_base: bool = False) -> str:
    """Python for the card of a model, in its block: what prints some of its text. `config` is None for adapters whose
    base is on the hub; with `has_base` they are such whose base lies beside them, or where it lay: only we find it."""
    if has_base:
        return f"""```python
from newllm_lib.chat import Chat
from newllm_lib.training.trained_model import open_model

print(*Chat(open_model("{place}")).reply("Hello"), sep="")
```"""
    registered = "import newllm_lib.models\n" if type(config).__module__.startswith("newllm_lib.") else ""
    prompt = '[{"role": "user", "content": "Hello"}]' if talks else '"The "'
    return f"""```python
{registered}from transformers import pipeline

generator = pipeline("text-generation", model="{place}", tokenizer="{place}")
print(generator({prompt}, max_new_tokens=40)[0]["generated_text"])
```"""
