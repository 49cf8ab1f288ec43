"""Stage 6: teach a chat model which of two answers is wanted (DPO), with adapters on it; its reference is the model
without them."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback

from .. import models  # noqa: F401  registers our models with the Auto classes
from ..adapters.base_model import find_base_model, open_to_tune, open_tokenizer
from ..adapters.forgetting import replies_before_and_after
from ..adapters.lora import check_targets, save_generation_settings
from ..adapters.merge import merge
from ..data.chat_template import learnable_template, template_for
from ..data.text import TextCounts
from ..errors import InputError
from ..training.device import find_device
from ..training.disk import write_json
from ..training.run import PreparedRun, claim_folder, opened_run, prepare_once
from ..training.trained_model import BaseModel, check_tokens_fit
from .arguments import DIALOGPT, DpoArguments
from .pairs import drop_too_long, sample_pairs
from .reference import grow, learn_answers, learn_tokens
from .scores import accuracy_by_kind, preference_metrics

if TYPE_CHECKING:  # it needs TRL
    from .trainer import PreferenceTrainer

PREFERENCES_FILE = "preferences.json"
MERGED_FOLDER = "merged"
ANSWER_TOKENS = 80
PROMPTS_ASKED = 5


def prepare(args: DpoArguments) -> PreparedRun:
    """Load the pairs and the model; trains nothing. Raises InputError: anything about the input that would fail
    later."""
    check_trl()
    splits = args.load_preferences()
    if args.model is None and args.data_source == "offline":
        raise InputError(
            f"model: {DIALOGPT} is on the hub only; name the folder of a chat model with --model, such as the TinyGPT2 "
            "of newllm sft --model_type tiny-gpt2."
        )
    base = find_base_model(args.model or DIALOGPT)
    tokenizer = open_tokenizer(base)
    remarks = [base.note]
    of_dialogpt = "dialogpt" in base.name.lower()
    form = "turns" if of_dialogpt else "dialogue"
    if tokenizer.chat_template is None:
        tokenizer.chat_template = template_for(tokenizer, form)
        remarks.append(f"{base.name} has no chat template: it gets {'its own turn format' if of_dialogpt else 'ours'}.")
    if args.sft_epochs > 0:
        tokenizer.chat_template, replaced = learnable_template(tokenizer, form)
        remarks += [replaced, learn_tokens(tokenizer, splits.train, args.new_tokens, base.name)]
    limits = args.max_length, args.skip_bad_rows or splits.source != "file"
    train, held_out = (drop_too_long(side, tokenizer, *limits) for side in (splits.train, splits.validation))
    test = None if splits.test is None else drop_too_long(splits.test, tokenizer, *limits)
    model = open_start(args, base)
    if args.sft_epochs > 0:
        grow(model, len(tokenizer), args.seed)
    check_tokens_fit(model, tokenizer, base.path)
    pairs = len(train.pairs)
    counts = TextCounts(documents=2 * pairs)
    extent = (
        f"{base.name}, adapters of rank {args.lora_r}: {pairs:,} pairs, {args.updates(pairs)} updates of "
        f"{args.effective_batch_size} pairs, beta {args.beta:g}, on {args.device}."
    )
    remarks = tuple(filter(None, [*remarks, *train.remarks, *held_out.remarks]))
    return PreparedRun(splits, tokenizer, train, counts, held_out, model, remarks, extent, base, test)


def check_trl() -> None:
    """Raises InputError if there is no TRL, whose trainer this stage uses."""
    if find_spec("trl") is None or find_spec("peft") is None:
        raise InputError("dpo needs the packages trl and peft; run pip install 'newllm[dpo]'.")


def open_start(args: DpoArguments, base: BaseModel) -> PreTrainedModel:
    """The model in fp32, whatever its file holds: steps of DPO are smaller than half precision can tell. Raises
    InputError: it cannot be tuned so, or reads fewer than `args.max_length` tokens."""
    model = open_to_tune(base, "dpo", False, find_device(args.use_cpu), torch.float32)
    check_window(args, base, model.config)
    check_targets(model, args.targets)
    return model


def check_window(args: DpoArguments, base: BaseModel, config: PreTrainedConfig) -> None:
    """Raises InputError if the model reads fewer than `args.max_length` tokens."""
    window = getattr(config, "max_position_embeddings", args.max_length)
    if window < args.max_length:
        problem = f"max_length {args.max_length} is more than the {window} tokens that {base.name} reads"
        raise InputError(f"{problem}; choose --max_length {window} or less.")


def dpo(args: DpoArguments, callbacks: tuple[TrainerCallback, ...] = ()) -> Path:
    """Tune adapters on a chat model by preferences, after it has learned the answers as such (`args.sft_epochs`), or
    go on with the run that `args.output_dir` holds.

    Returns:
        The run folder: the best adapters with tokenizer and chat template, the model that they are on if the run has
        made it (in `reference`), both as one model (in `merged`), settings, metrics log, curves, model card, and
        preferences.json: metrics by kind of flaw, and answers before and after.

    Raises:
        InputError: bad input, before any long work.
        TrainingInterrupted: stopped by hand; the same call continues.
    """
    prepared = prepare_once(args, prepare)
    identity = {"stage": "dpo", "base": prepared.base.identity, "load_in_4bit": False}
    if args.sft_epochs > 0:
        claim_folder(args, prepared, identity)
        folder = learn_answers(args, prepared, callbacks)
        name, licence = f"{prepared.base.name}, tuned on the answers", prepared.base.licence
        base = replace(find_base_model(str(folder)), name=name, licence=licence)
        prepared = replace(prepared, model=open_start(args, base), base=base)
    from .trainer import PreferenceTrainer

    with opened_run(args, prepared, identity) as run:
        if not run.is_finished:
            parts = prepared.model, args, prepared.train_rows, prepared.held_out, prepared.tokenizer
            trainer = PreferenceTrainer(*parts, run.callbacks(callbacks))
            run.train(trainer)
            if run.is_main:  # the figures are its alone
                metrics, more = preferred(args, prepared, trainer, run.folder)
                run.finish(metrics, more, advice(args, {**metrics, **more}))
    if run.is_main and args.save_merged and not (run.folder / MERGED_FOLDER).exists():
        merge(run.folder, run.folder / MERGED_FOLDER)
    return run.folder


def preferred(
    args: DpoArguments, prepared: PreparedRun, trainer: "PreferenceTrainer", folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure the tuned model on all held-out pairs and on as many training pairs, by kind of flaw, and let it and its
    reference answer held-out prompts. Returns the metrics on held-out pairs (those to test on, where there are some),
    and more for the results."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    held_out = sample_pairs(prepared.reported.encoded, args.max_test_tokens)
    scores = trainer.score_pairs(held_out)
    metrics, kinds = preference_metrics(scores, args.beta), accuracy_by_kind(scores, held_out, args.beta)
    on_train = preference_metrics(trainer.score_pairs(trainer.train_sample), args.beta)
    save_generation_settings(model, prepared.tokenizer, args.repetition_penalty, 2 * ANSWER_TOKENS, folder)
    pairs = prepared.reported.pairs
    prompts = list(dict.fromkeys(pair.prompt[0]["content"] for pair in pairs if len(pair.prompt) == 1))
    asked = prompts[:: max(len(pairs) // PROMPTS_ASKED, 1)][:PROMPTS_ASKED]
    replies = replies_before_and_after(model, prepared.tokenizer, asked, ANSWER_TOKENS)
    more = {"accuracy_by_kind": kinds, "train": on_train}
    if prepared.test is not None:  # by which a sweep chooses
        to_choose = sample_pairs(prepared.held_out.encoded, args.max_test_tokens)
        more["validation"] = preference_metrics(trainer.score_pairs(to_choose), args.beta)
    chosen, rejected = scores.reference_chosen.mean(), scores.reference_rejected.mean()
    reference = {"chosen_logp": float(chosen), "rejected_logp": float(rejected)}
    write_json(folder / PREFERENCES_FILE, {"held_out": metrics, "reference": reference, **more, **replies})
    return metrics, more


def advice(args: DpoArguments, results: dict[str, Any]) -> str:
    """How often the model prefers the chosen answer, and what to do next."""
    weakest = min(results["accuracy_by_kind"].items(), key=lambda item: item[1], default=None)
    of_kind = "" if weakest is None else f"; weakest on {weakest[0]}: {weakest[1]:.0%}"
    return (
        f"Of {results['pairs']} held-out pairs the chosen answer is preferred in {results['accuracy']:.1%}{of_kind}; "
        f"loss {results['loss']:.3f} (0.693 at the start), {results['kl']:.3f} nats per token from the reference. Talk "
        f"to it: newllm chat {args.output_dir}"
    )
