"""Stage 5: teach a large pretrained model a new task on a small GPU - a 4-bit base, adapters on top of it - while its
own base holds it to what it knew, and text of other kinds is rehearsed."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, set_seed

from ..data.chat_template import ConversationFormat, learnable_template
from ..data.conversations import conversation_documents
from ..data.sources import Splits
from ..data.text import EvaluationDocuments, Text, evaluation_documents, load_text
from ..errors import InputError
from ..models.adjust import set_dropout
from ..models.frozen_head import adapters_off
from ..training.device import find_device
from ..training.disk import write_json
from ..training.run import PreparedRun, opened_run, prepare_once
from ..training.trained_model import check_same_tokens, check_tokens_fit
from .arguments import QloraLwfArguments
from .base_model import base_config, find_base_model, open_base, open_to_tune, open_tokenizer
from .forgetting import PROMPTS, layer_changes, replies_before_and_after
from .lora import RankSchedule, add_adapters, save_generation_settings
from .memory_budget import check_memory, model_sizes
from .mixture import ExampleMix, conversation_examples, in_paragraphs, text_examples
from .trainer import LwfTrainer, SaveEveryEpoch

FORGETTING_FILE = "forgetting.json"
ANSWER_TOKENS = 60


@dataclass(frozen=True)
class PreparedLwf(PreparedRun):
    """A prepared run with the text to rehearse, and the general text on which forgetting is measured."""

    rehearsal: Splits[Text] | None = None
    general: EvaluationDocuments | None = None


def prepare(args: QloraLwfArguments) -> PreparedLwf:
    """Load data and base, add the adapters; trains nothing. Raises InputError: anything about the input that would fail
    later."""
    prepared = prepare_data(args)
    check_memory(args, model_sizes(base_config(prepared.base)))
    device = find_device(args.use_cpu)
    model = open_to_tune(prepared.base, "qlora-lwf", args.load_in_4bit, device, args.compute_dtype, vars(args))
    set_seed(args.seed)  # of the adapters' first values
    model = add_adapters(model, args.lora_r, args.lora_alpha, args.lora_dropout, args.targets)
    check_tokens_fit(model, prepared.tokenizer, prepared.base.path)
    return dataclasses.replace(prepared, model=model)


def prepare_data(args: QloraLwfArguments) -> PreparedLwf:
    """Load the data alone, as the base's tokens; `model` is None. Raises InputError: anything about the data that would
    fail later."""
    splits = args.load_conversations()
    text_source = args.data_source if args.data is None and args.rehearsal_data is None else "auto"
    files, names = (args.rehearsal_data, args.rehearsal_eval_data), ("rehearsal_data", "rehearsal_eval_data")
    rehearsal = load_text(text_source, *files, args.skip_bad_rows, names)
    base = find_base_model(args.model, args.data_source == "offline", args.in_usual_4bit, args.use_cpu)
    tokenizer = open_tokenizer(base)
    template = "instruction" if args.dataset is None else splits.template
    tokenizer.chat_template, replaced = learnable_template(tokenizer, template)
    form = ConversationFormat(args.max_length, args.loss_on, args.too_long)
    new, counts = conversation_examples(splits.train, tokenizer, form)
    stretches = text_examples(rehearsal.train, tokenizer, args.max_length)[0] if args.rehearsal_ratio > 0 else None
    documents = conversation_documents(splits.validation, tokenizer, form)
    test = None if splits.test is None else conversation_documents(splits.test, tokenizer, form)
    general = evaluation_documents(in_paragraphs(rehearsal.validation), tokenizer)
    if not general.documents:
        raise InputError(f"{general.origin} holds no tokens; give another --rehearsal_eval_data.", "NL-403")
    mix, bits = ExampleMix(new, stretches), "4 bit" if args.load_in_4bit else "full precision"
    rehearsed = mix.rehearsed(args.rehearsal_ratio)
    examples = mix.num_new + rehearsed
    extent = (
        f"{base.name} in {bits}, adapters of rank {args.lora_r}: {examples:,} examples an epoch, {rehearsed:,} of them "
        f"rehearsed; {args.updates(examples)} updates, on {args.device}."
    )
    remarks = tuple(filter(None, [base.note, rehearsal.note, replaced, *counts.remarks(args.max_length)]))
    sampled = (these and these.sample(args.max_test_tokens) for these in (documents, general, test))
    held_out, general, test = sampled
    run = splits, tokenizer, mix, counts, held_out, None, remarks, extent, base, test
    return PreparedLwf(*run, rehearsal=rehearsal, general=general)


def qlora_lwf(args: QloraLwfArguments, callbacks: tuple[TrainerCallback, ...] = ()) -> Path:
    """Train adapters on a frozen model, or go on with the run that `args.output_dir` holds.

    Returns:
        The run folder: the best adapters with tokenizer and chat template, settings, metrics log, curves, model card,
        and forgetting.json: metrics and answers before and after, and how much each layer changed.

    Raises:
        InputError: bad input, before any long work.
        TrainingInterrupted: stopped by hand; the same call continues.
    """
    prepared = prepare_once(args, prepare)
    teacher, of_teacher = open_other_teacher(args, prepared)
    identity = {"stage": "qlora-lwf", "base": prepared.base.identity, **of_teacher}
    identity["rehearsal_text"] = prepared.rehearsal.train.identity if args.rehearsal_ratio > 0 else None
    identity["general_text"] = prepared.rehearsal.validation.identity
    with opened_run(args, prepared, identity) as run:
        if not run.is_finished:
            growing = [RankSchedule(prepared.model, args.ranks)] if len(args.ranks) > 1 else []
            parts = prepared.model, args, prepared.train_rows, prepared.held_out, prepared.tokenizer, prepared.general
            trainer = LwfTrainer(*parts, teacher, callbacks=run.callbacks([SaveEveryEpoch(), *growing, *callbacks]))
            run.train(trainer)
            if run.is_main:  # the figures are its alone
                metrics, more = before_and_after(prepared, trainer, run.folder)
                run.finish(metrics, more, advice(more, args.output_dir))
    return run.folder


def open_other_teacher(args: QloraLwfArguments, prepared: PreparedLwf) -> tuple[PreTrainedModel | None, dict[str, str]]:
    """(the model that --teacher names, or None for the base itself; what it adds to the identity of a run). Raises
    InputError: it cannot be had, or has another tokenizer."""
    if args.teacher is None or not args.distills:
        return None, {}
    found = find_base_model(args.teacher)
    tokenizer = open_tokenizer(found)
    check_same_tokens(args.teacher, tokenizer, prepared.base.name, prepared.tokenizer)
    device = find_device(args.use_cpu or args.teacher_on_cpu)
    teacher = open_base(found, args.load_in_4bit and device.kind == "cuda", device, args.compute_dtype, vars(args))
    set_dropout(teacher, 0.0)
    return teacher, {"teacher_weights": found.identity}


def before_and_after(prepared: PreparedLwf, trainer: LwfTrainer, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure base and tuned model on both kinds of text, let both answer, and write it into the run folder. Returns
    the tuned model's metrics on the new task, and what else belongs into the results."""
    model, args = trainer.accelerator.unwrap_model(trainer.model), trainer.args
    save_generation_settings(model, prepared.tokenizer, args.repetition_penalty, 4 * ANSWER_TOKENS, folder)
    measured, forgetting = {}, {}
    for name, documents in (("new_task", prepared.reported), ("general_text", prepared.general)):
        tuned, divergence = trainer.score_with_kl(documents)
        with adapters_off(model):
            before = trainer.score(documents)
        bits = {"bits_per_byte_before": before.bits_per_byte, "bits_per_byte_after": tuned.bits_per_byte}
        forgetting[name] = {**bits, "kl_to_base": divergence}
        after = {**dataclasses.asdict(tuned), "kl_to_base": divergence}
        measured[name] = {"text": documents.origin, "before": dataclasses.asdict(before), "after": after}
    replies = replies_before_and_after(model, prepared.tokenizer, PROMPTS, ANSWER_TOKENS)
    write_json(folder / FORGETTING_FILE, {**measured, **replies, "layers": layer_changes(model)})
    metrics = {name: value for name, value in measured["new_task"]["after"].items() if name != "kl_to_base"}
    return metrics, {"forgetting": forgetting, "answers_ended": replies["ended_by_themselves"]}


def advice(results: dict[str, Any], folder: str) -> str:
    """What was learned, what was forgotten, and what to do next."""
    new, general = (results["forgetting"][name] for name in ("new_task", "general_text"))
    lost = general["bits_per_byte_after"] / general["bits_per_byte_before"] - 1
    forgotten = f"{lost:.1%} was forgotten (more distill_weight or rehearsal: less)"
    verdict = forgotten if lost > 0 else "nothing was forgotten"
    return (
        f"New task: {new['bits_per_byte_before']:.3f} -> {new['bits_per_byte_after']:.3f} bits per byte; general text: "
        f"{general['bits_per_byte_before']:.3f} -> {general['bits_per_byte_after']:.3f}, {verdict}. Talk to it: newllm "
        f"chat {folder}"
    )
