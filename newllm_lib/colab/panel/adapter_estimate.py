"""The cost lines of notebooks 5 to 7, where adapters are trained on a pretrained model: from its config alone, for its
weights are not opened to draw a panel."""

import copy
import functools

from ...adapters.base_model import open_tokenizer
from ...adapters.lora import add_adapters
from ...adapters.qlora_lwf import QloraLwfArguments, gpu_bytes
from ...models import build_model, count_parameters
from ...preferences.arguments import DpoArguments
from ...preferences.pairs import GENERATED, GENERATED_SHARE, load_preferences
from ...preferences.reference import UPDATE_TOKENS, learn_tokens, reference_arguments
from ...preferences.sweep import SweepArguments
from ...training.device import find_device
from ...training.trained_model import BaseModel
from ..page.languages import text
from ..page.notices import escape
from .base_lookup import base_of, config_of, count_trainable, sizes_of
from .estimate import (
    BYTES_PER_TOKEN,
    MeasuredUpdate,
    data_size,
    disk_phrase,
    gpu_phrase,
    measured_update,
    minutes_phrase,
    saved_bytes,
    taken_conversations,
)

SAMPLED_PAIRS = 1000


def lwf_phrases(arguments: dict[str, QloraLwfArguments], measured: dict[str, MeasuredUpdate]) -> list[str]:
    """Notebook 5: what is trained on which base, for how long, and the GPU's memory it takes."""
    ((model, args),) = arguments.items()
    base, conversations, rows = base_of(args), taken_conversations(args), str(args.effective_batch_size)
    config, trained = config_of(base), count_trainable(args, base)
    bits = text("in 4 bit" if args.load_in_4bit else "in full precision")
    count = f"{trained:,}" if trained < 100_000 else f"{trained / 1e6:.2f} M"
    parts = [f"<b>{escape(base.name)}</b> {bits}", text("<b>{count}</b> trainable parameters", count=count)]
    if conversations is not None:
        stretches = round(args.rehearsal_ratio * conversations)
        updates = args.updates(conversations + stretches)
        phrase = (
            "<b>{updates}</b> updates of {rows} examples, out of up to <b>{conversations}</b> conversations and "
            "{stretches} stretches of text to rehearse"
        )
        counted = {"conversations": f"{conversations:,}", "stretches": f"{stretches:,}"}
        parts.append(text(phrase, updates=f"{updates:,}", rows=rows, **counted))
    elif args.max_steps > 0:
        updates = args.max_steps
        parts.append(text("<b>{updates}</b> updates of {rows} examples", updates=f"{updates:,}", rows=rows))
    else:
        updates = None
        phrase = "<b>{epochs}</b> epochs of your file, in updates of {rows} examples"
        parts.append(text(phrase, epochs=f"{args.num_train_epochs:g}", rows=rows))
    if updates is not None:
        parts.append(disk_phrase(args, saved_bytes(args, trained, updates)))
    if measured and conversations is not None:
        of_task = min(data_size(args).bytes / data_size(args).conversations / BYTES_PER_TOKEN["gpt2"], args.max_length)
        example = (of_task + args.rehearsal_ratio * args.max_length) / (1 + args.rehearsal_ratio)
        weights = sum(layer.weights for layer in sizes_of(base).linear) + config.vocab_size * config.hidden_size
        seconds = measured[model].seconds_of(weights, updates * args.effective_batch_size * example)
        parts.append(minutes_phrase(seconds))
    if find_device(args.use_cpu).memory_gb is not None:
        needed = gpu_bytes(args, sizes_of(base), args.per_device_train_batch_size, args.max_length)
        parts += gpu_phrase(args, [needed])
    return parts


def lwf_measure(arguments: dict[str, QloraLwfArguments]) -> dict[str, MeasuredUpdate]:
    """An update of one block of the base with its share of the vocabulary, its adapters and teacher: all of the base
    is too large."""
    ((model, args),) = arguments.items()
    config = copy.deepcopy(config_of(base_of(args)))
    config.vocab_size //= config.num_hidden_layers
    config.num_hidden_layers, config.pad_token_id = 1, None  # its padding may lie beyond this vocabulary
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    block = add_adapters(build_model(config), args.lora_r, args.lora_alpha, 0.0, args.targets)
    readings = args.distills + bool(args.activation_checkpointing)
    return {model: measured_update(block, args, args.per_device_train_batch_size, args.max_length, readings)}


def pair_phrases(arguments: dict[str, DpoArguments], measured: dict[str, MeasuredUpdate]) -> list[str]:
    """Notebook 6: what is tuned, by how many pairs, and what that takes."""
    (args,) = arguments.values()
    base = base_of(args)
    trained = count_trainable(args, base)
    parts = [f"<b>{escape(base.name)}</b>", text("<b>{count}</b> trainable parameters", count=f"{trained:,}")]
    return [*parts, *_pairs(args), *_costs(args, trained, measured)]


def trial_phrases(arguments: dict[str, SweepArguments], measured: dict[str, MeasuredUpdate]) -> list[str]:
    """Notebook 7: as notebook 6, for all trials."""
    (args,) = arguments.values()
    base, ranks = base_of(args), args.choices()["lora_r"]
    trials = text("<b>{trials}</b> trials of <b>{model}</b>", trials=str(args.trials), model=escape(base.name))
    trained = count_trainable(args, base) // args.lora_r * sum(ranks) // len(ranks)
    return [trials, text("each {extent}", extent=", ".join(_pairs(args))), *_costs(args, trained, measured)]


def _pairs(args: DpoArguments) -> list[str]:
    """Updates and pairs or, where the data are not counted yet, epochs; and what comes before them."""
    updates, rows = _updates(args), str(args.effective_batch_size)
    if updates is None:
        phrase = "<b>{epochs}</b> epochs in updates of {rows} pairs"
        parts = [text(phrase, epochs=f"{args.num_train_epochs:g}", rows=rows)]
    elif is_generated(args):
        phrase = "<b>{updates}</b> updates of {rows} pairs, out of <b>{pairs}</b> generated ones"
        parts = [text(phrase, updates=f"{updates:,}", rows=rows, pairs=f"{generated_for_training(args):,}")]
    else:
        parts = [text("<b>{updates}</b> updates of {rows} pairs", updates=f"{updates:,}", rows=rows)]
    if args.sft_epochs > 0:
        parts.append(text("after {epochs} passes over all answers", epochs=f"{args.sft_epochs:g}"))
    return parts


def _costs(args: DpoArguments, trained: int, measured: dict[str, MeasuredUpdate]) -> list[str]:
    """Disk and minutes of the run or of all trials of a sweep, as far as the pairs are counted, and a GPU's memory. The
    reference is made once, and a trial keeps no checkpoints."""
    updates, trials, parts = _updates(args), getattr(args, "trials", None), []
    whole, makes_reference = count_parameters(config_of(base_of(args))), args.sft_epochs > 0
    if updates is not None:
        disk = saved_bytes(args, trained, updates) if trials is None else trials * 4 * trained
        disk += (trials or 1) * 4 * whole * args.save_merged
        if makes_reference:
            disk += saved_bytes(reference_arguments(args, whole, args.max_length), whole, updates)
        parts.append(disk_phrase(args, disk))
    if measured and is_generated(args):
        tokens = 2 * sequence_tokens(args)
        seconds = (trials or 1) * measured["pairs"].seconds_of(whole, updates * args.effective_batch_size * tokens)
        seconds += measured["answers"].seconds_of(whole, args.sft_epochs * generated_for_training(args) * tokens)
        parts.append(minutes_phrase(seconds))
    peaks = [update.gpu_bytes for name, update in measured.items() if makes_reference or name == "pairs"]
    return [*parts, *gpu_phrase(args, peaks)]


def pair_measure(arguments: dict[str, DpoArguments]) -> dict[str, MeasuredUpdate]:
    """An update on the answers as such, which trains the whole model, and one on pairs, which trains its adapters."""
    (args,) = arguments.values()
    length = round(sequence_tokens(args)) if is_generated(args) else args.max_length
    model = build_model(config_of(base_of(args)))
    reference = reference_arguments(args, model.num_parameters(), args.max_length)
    answers = measured_update(model, reference, max(UPDATE_TOKENS // length, 1), length)
    adapted = add_adapters(model, args.lora_r, args.lora_alpha, 0.0, args.targets)
    pairs = measured_update(adapted, args, 2 * args.per_device_train_batch_size, length, readings=1)
    return {"answers": answers, "pairs": pairs}


def is_generated(args: DpoArguments) -> bool:
    """True if the pairs are neither a file's nor a dataset's of the hub."""
    return args.data is None and args.dataset in (None, GENERATED)


def generated_for_training(args: DpoArguments) -> int:
    """How many of the generated pairs are not held out, without making them."""
    share = GENERATED_SHARE if args.held_out_share is None else args.held_out_share
    return args.pairs - round(args.pairs * share)


def _updates(args: DpoArguments) -> int | None:
    """None for pairs that are not counted yet."""
    if is_generated(args):
        return args.updates(generated_for_training(args))
    return args.max_steps if args.max_steps > 0 else None


def sequence_tokens(args: DpoArguments) -> float:
    """Tokens of a generated prompt with one of its answers, on average."""
    new_tokens = args.new_tokens if args.sft_epochs > 0 else 0
    mean = _mean_tokens(base_of(args), new_tokens, min(args.pairs, SAMPLED_PAIRS), args.pairs_seed)
    return min(mean, args.max_length)


@functools.lru_cache(maxsize=8)
def _mean_tokens(base: BaseModel, new_tokens: int, pairs: int, pairs_seed: int) -> float:
    """With the new tokens that the tokenizer learns from the pairs."""
    tokenizer, train = open_tokenizer(base), load_preferences(pairs=pairs, pairs_seed=pairs_seed).train
    learn_tokens(tokenizer, train, new_tokens, base.name)
    texts = [pair.prompt[0]["content"] + side for pair in train.pairs for side in (pair.chosen, pair.rejected)]
    return sum(map(len, tokenizer(texts)["input_ids"])) / len(texts)
