"""What a run will cost, as the line below a panel says it: parameters, updates, minutes by one update that is measured
here, a GPU's memory, the disk. Nothing is loaded for it: data count by their size, a pretrained model by its config."""

import copy
import functools
import math
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ...adapters.base_model import open_tokenizer
from ...adapters.lora import add_adapters
from ...adapters.memory_budget import memory_budget
from ...adapters.qlora_lwf import QloraLwfArguments
from ...data.mix import parse_mix
from ...data.sources import DATASETS, HELD_OUT_SHARE
from ...data.tokenizer import DEFAULT_VOCAB_SIZE
from ...errors import InputError
from ...models import build_config, build_model, count_parameters
from ...preferences.arguments import DpoArguments
from ...preferences.pairs import GENERATED, GENERATED_SHARE, load_preferences
from ...preferences.reference import UPDATE_TOKENS, learn_tokens, reference_arguments
from ...preferences.sweep import SweepArguments
from ...training.arguments import ModelArguments, StageArguments
from ...training.checkpoint import read_results
from ...training.device import find_device, freed_memory_kept
from ...training.disk import GB, size
from ...training.run import BYTES_PER_PARAMETER, FEWEST_TYPES
from ...training.trained_model import BaseModel, read_config
from ...training.trainer import count_training_tokens
from ..page.languages import text
from ..page.pieces import escape
from ..timed_update import TimedUpdate
from .lookups import base_of, config_of, count_trainable, sizes_of

BYTES_PER_TOKEN = {"byte": 1.0, "bpe": 3.7, "word": 5.2, "gpt2": 4.2}  # of English text
PROBE_TOKENS, PROBE_SECONDS = 128, 0.4  # what takes less is measured again, on four times as many tokens
SAMPLED_PAIRS = 1000


class DataSize(NamedTuple):
    """Bytes of a training split and, where examples are conversations, their number."""

    bytes: int
    conversations: int | None = None


# A dataset's training split on the hub, its bytes estimated; and what stands in for it offline, which is counted.
DATA_SIZES = {
    "wikitext": DataSize(10_900_000), "dailydialog": DataSize(5_800_000, 11_118),
    "dolly": DataSize(11_500_000, 14_260), "dolly-ja": DataSize(15_000_000, 14_250),
    "ultrachat": DataSize(1_240_000_000, 197_472), "ultrachat-full": DataSize(8_800_000_000, 1_425_000),
    "hh-rlhf": DataSize(133_000_000, 152_760), "alpaca": DataSize(38_000_000, 49_172),
    "alpaca-ja": DataSize(20_000_000, 49_400), "codealpaca": DataSize(6_500_000, 19_021),
}  # fmt: skip
STAND_IN_SIZES = {"chitchat": DataSize(12_720_000, 3_800), "documentation": DataSize(587_000, 3_252)}
WIKITEXT_OFFLINE = DataSize(12_110_594)  # ChitChat as running text


class MeasuredUpdate(NamedTuple):
    """One update on this machine."""

    seconds: float
    parameters: int  # of the model
    tokens: int
    gpu_bytes: int | None = None  # at the peak, of an NVIDIA GPU

    def seconds_of(self, parameters: int, tokens: float) -> float:
        """Seconds to train a model of that size on so many tokens: both multiply the arithmetic."""
        return self.seconds * parameters / self.parameters * tokens / self.tokens

    def gpu_bytes_of(self, parameters: int, tokens: int) -> int | None:
        """The peak of another model that is trained whole: the rest beside its parameters grows with the tokens."""
        if self.gpu_bytes is None:
            return None
        rest = max(self.gpu_bytes - BYTES_PER_PARAMETER * self.parameters, 0)
        return round(BYTES_PER_PARAMETER * parameters + rest * tokens / self.tokens)


def measured_update(
    model: PreTrainedModel, args: StageArguments, rows: int, length: int, readings: int = 0
) -> MeasuredUpdate:
    """Measure an update of `model`, whose weights change, on `rows` rows of `length` random tokens; on fewer where
    these take long, or do not fit on the GPU. `readings`: as of `TimedUpdate`."""
    kind = find_device(args.use_cpu).kind
    before = torch.cuda.memory_allocated() if kind == "cuda" else 0
    model = model.to(kind).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)
    frozen = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
    parameters = frozen or model.num_parameters()  # beside frozen ones, adapters do not count
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None

    def update(tokens: int) -> MeasuredUpdate:
        shape = max(tokens // length, 1), min(tokens, length)
        input_ids = torch.randint(0, model.config.vocab_size, shape, device=kind)
        # The first update of a size sets up what the second finds ready.
        timed = TimedUpdate(model, optimizer, input_ids, dtype, readings)
        seconds = min(timed() for _ in range(2))
        peak = torch.cuda.max_memory_allocated() - before if kind == "cuda" else None
        return MeasuredUpdate(seconds, parameters, input_ids.numel(), peak)

    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    tokens, most = min(PROBE_TOKENS, rows * length), rows * length
    with freed_memory_kept():
        found = update(tokens)
        with suppress(torch.OutOfMemoryError):
            while found.seconds < PROBE_SECONDS and tokens < most:
                tokens = min(4 * tokens, most)
                found = update(tokens)
    return found


def minutes_phrase(seconds: float, models: int = 1) -> str:
    spoken = text("a minute")
    if seconds >= 90 * 60:
        spoken = text("{hours} hours", hours=f"{seconds / 3600:.1f}")
    elif seconds >= 90:
        spoken = text("{minutes} minutes", minutes=f"{seconds / 60:.0f}")
    phrase = "about <b>{minutes}</b> here for all updates (one was measured), plus evaluations"
    if models > 2:
        phrase = "about <b>{minutes}</b> here for all updates of all models (one was measured), plus evaluations"
    elif models > 1:
        phrase = "about <b>{minutes}</b> here for all updates of both models (one was measured), plus evaluations"
    return text(phrase, minutes=spoken)


def gpu_phrase(args: StageArguments, peaks: Iterable[int | None]) -> list[str]:
    """The GPU's memory that the largest of these takes, and what to do where there is less; nothing without a GPU."""
    memory_gb, needed = find_device(args.use_cpu).memory_gb, max(filter(None, peaks), default=None)
    if needed is None or memory_gb is None:
        return []
    phrase = "about <b>{needed} of {there}</b> on this GPU (estimated)"
    if needed > memory_gb * GB:
        phrase = "<b>{needed} of {there}</b> on this GPU: halve the batch size and double the accumulation"
    return [text(phrase, needed=size(needed), there=size(memory_gb * GB))]


def kept_checkpoints(args: StageArguments, updates: int) -> int:
    if args.save_strategy == "no":
        return 0
    saves = math.ceil(1 / args.save_steps if args.save_steps < 1 else updates / args.save_steps)
    return min(saves, updates, args.save_total_limit or saves)


def saved_bytes(args: StageArguments, trained: int, updates: int) -> int:
    """The least that a run writes: weights, and in every checkpoint these and AdamW's two moments, 4 bytes each."""
    return 4 * trained * (1 + 3 * kept_checkpoints(args, updates))


def disk_phrase(args: StageArguments, needed: int) -> str:
    folder = next(path for path in Path(args.output_dir).absolute().parents if path.exists())
    phrase = "at least <b>{disk}</b> on disk"
    if (free := shutil.disk_usage(folder).free) < needed:
        phrase = "at least <b>{disk}</b> on disk, and <b>only {free}</b> are free"
    return text(phrase, disk=size(needed), free=size(free))


def phrases(arguments: dict[str, ModelArguments], measured: dict[str, MeasuredUpdate]) -> list[str]:
    """The live line of models that are trained whole on the same data; without `measured` no minutes and no memory."""
    parameters = {model: count_model(args) for model, args in arguments.items()}
    args = next(iter(arguments.values()))
    there = data_size(args)
    expected = there.bytes / bytes_per_token(args)
    if there.conversations is not None:
        expected = taken_conversations(args) * min(expected / there.conversations, args.max_length)
    updates, tokens = count_training_tokens(args, max(math.ceil(expected / args.max_length), 1))
    sizes = ", ".join(f"{model} {count / 1e6:.2f} M" for model, count in parameters.items())
    counted = f"{updates:,}" if args.max_steps > 0 else text("about {count}", count=f"{updates:,}")
    phrase = "<b>{updates}</b> updates of {rows} rows of {length} tokens = <b>{tokens} M</b> tokens"
    rows, length, millions = str(args.effective_batch_size), str(args.max_length), f"{tokens / 1e6:.2f}"
    parts = [
        text("<b>{sizes}</b> parameters", sizes=sizes),
        text(phrase, updates=counted, rows=rows, length=length, tokens=millions),
        text("<b>{checkpoints}</b> checkpoints kept of each model", checkpoints=str(kept_checkpoints(args, updates))),
        disk_phrase(args, sum(saved_bytes(args, count, updates) for count in parameters.values())),
    ]
    if measured.keys() >= arguments.keys():
        seconds = sum(measured[model].seconds_of(count, tokens) for model, count in parameters.items())
        micro_batch = args.per_device_train_batch_size * args.max_length
        peaks = [measured[model].gpu_bytes_of(count, micro_batch) for model, count in parameters.items()]
        parts += [minutes_phrase(seconds, len(arguments)), *gpu_phrase(args, peaks)]
    return parts


def measure(arguments: dict[str, ModelArguments]) -> dict[str, MeasuredUpdate]:
    """Model -> an update of it, from random weights."""
    models = ((model, args, build_model(model_config(args))) for model, args in arguments.items())
    return {n: measured_update(model, a, a.per_device_train_batch_size, a.max_length) for n, a, model in models}


def count_model(args: ModelArguments) -> int:
    """Parameters of the model these settings describe. Raises InputError: as `model_config`."""
    return count_parameters(model_config(args))


def resolve_size(args: ModelArguments) -> dict[str, Any]:
    count_model(args)  # it may raise InputError
    return {}


def model_config(args: ModelArguments) -> PreTrainedConfig:
    """The start model's, with positions for a whole row, or a new model's. Raises InputError: no width fits."""
    if getattr(args, "model", None) is not None:  # stages that begin from nothing have no such setting
        config = read_config(args.model)
        if hasattr(config, "n_positions"):
            config.n_positions = max(config.n_positions, args.max_length)
        return config
    vocab_size = args.vocab_size or DEFAULT_VOCAB_SIZE.get(args.tokenizer, FEWEST_TYPES[args.tokenizer])
    try:
        return _solved(args.model_type, vocab_size, args.max_length, args.num_layers, args.num_parameters)
    except ValueError as error:
        raise InputError(str(error)) from error


_solved = functools.lru_cache(maxsize=256)(build_config)  # a slider asks for it with every move


def data_size(args: StageArguments) -> DataSize:
    if args.data is not None:
        return DataSize(int(Path(os.path.expanduser(args.data)).stat().st_size * (1 - HELD_OUT_SHARE)))
    there = size_of_dataset(getattr(args, "dataset", "wikitext"), args.data_source)
    if getattr(args, "mix", None) is None:
        return there
    name, percent = parse_mix(args.mix)
    other, count = size_of_dataset(name, args.data_source), round(there.conversations * percent / (100 - percent))
    return DataSize(there.bytes + count * other.bytes // other.conversations, there.conversations + count)


def size_of_dataset(dataset: str, source: str) -> DataSize:
    if source == "hub":
        return DATA_SIZES[dataset]
    return WIKITEXT_OFFLINE if dataset == "wikitext" else STAND_IN_SIZES[DATASETS[dataset].offline]


def taken_conversations(args: StageArguments) -> int | None:
    """Conversations of the training split, as far as they are taken; None where their number is not known."""
    there = data_size(args).conversations
    return None if there is None else min(there, getattr(args, "max_samples", None) or there)


def bytes_per_token(args: ModelArguments) -> float:
    """The start model's results say it; without one it is the usual figure of the tokenizer for English text."""
    start = getattr(args, "model", None)
    results = read_results(Path(start)) if start is not None else None
    if results and results.get("bits_per_byte"):
        return results["loss"] / math.log(2) / results["bits_per_byte"]
    return BYTES_PER_TOKEN[args.tokenizer]


def lwf_phrases(arguments: dict[str, QloraLwfArguments], measured: dict[str, MeasuredUpdate]) -> list[str]:
    """Notebook 5: what is trained on which base, for how long, and the GPU's memory it takes."""
    ((model, args),) = arguments.items()
    base, conversations = base_of(args), taken_conversations(args)
    config, trained = config_of(base), count_trainable(args, base)
    bits = text("in 4 bit" if args.load_in_4bit else "in full precision")
    count = f"{trained:,}" if trained < 100_000 else f"{trained / 1e6:.2f} M"
    parts = [f"<b>{escape(base.name)}</b> {bits}", text("<b>{count}</b> trainable parameters", count=count)]
    stretches = round(args.rehearsal_ratio * (conversations or 0))
    updates = args.updates((conversations or 0) + stretches)  # 0: the examples are not counted yet
    phrase = "<b>{updates}</b> updates of {rows} examples"
    if conversations is not None:
        phrase = (
            "<b>{updates}</b> updates of {rows} examples, out of up to <b>{conversations}</b> conversations and "
            "{stretches} stretches of text to rehearse"
        )
    elif not updates:
        phrase = "<b>{epochs}</b> epochs of your file, in updates of {rows} examples"
    counts = {"updates": updates, "conversations": conversations or 0, "stretches": stretches}
    counted = {name: f"{count:,}" for name, count in counts.items()}
    rows, epochs = str(args.effective_batch_size), f"{args.num_train_epochs:g}"
    parts.append(text(phrase, **counted, rows=rows, epochs=epochs))
    if updates:
        parts.append(disk_phrase(args, saved_bytes(args, trained, updates)))
    if measured and conversations is not None:
        of_task = min(data_size(args).bytes / data_size(args).conversations / BYTES_PER_TOKEN["gpt2"], args.max_length)
        example = (of_task + args.rehearsal_ratio * args.max_length) / (1 + args.rehearsal_ratio)
        weights = sum(layer.weights for layer in sizes_of(base).linear) + config.vocab_size * config.hidden_size
        seconds = measured[model].seconds_of(weights, updates * args.effective_batch_size * example)
        parts.append(minutes_phrase(seconds))
    if find_device(args.use_cpu).memory_gb is None:
        return parts
    needed = memory_budget(args, sizes_of(base), args.per_device_train_batch_size, args.max_length)
    return [*parts, *gpu_phrase(args, [sum(needed.values())])]


def lwf_measure(arguments: dict[str, QloraLwfArguments]) -> dict[str, MeasuredUpdate]:
    """An update of one block of the base, which is too large as a whole, with adapters and teacher."""
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
    """Notebooks 6 and 7. The reference of all trials is made once, and a trial keeps no checkpoints."""
    (args,) = arguments.values()
    base, trials, pairs = base_of(args), getattr(args, "trials", 1), generated_for_training(args)
    trained, whole = count_trainable(args, base), count_parameters(config_of(base))
    updates, makes_reference = args.updates(pairs), args.sft_epochs > 0  # no updates: the pairs are not counted yet
    phrase = "<b>{epochs}</b> epochs in updates of {rows} pairs"
    if pairs:
        phrase = "<b>{updates}</b> updates of {rows} pairs, out of <b>{pairs}</b> generated ones"
    elif updates:
        phrase = "<b>{updates}</b> updates of {rows} pairs"
    rows, epochs = str(args.effective_batch_size), f"{args.num_train_epochs:g}"
    extent = [text(phrase, updates=f"{updates:,}", pairs=f"{pairs:,}", rows=rows, epochs=epochs)]
    if makes_reference:
        extent.append(text("after {epochs} passes over all answers", epochs=f"{args.sft_epochs:g}"))
    if isinstance(args, SweepArguments):
        ranks = args.choices()["lora_r"]
        trained = trained // args.lora_r * sum(ranks) // len(ranks)
        disk = trials * 4 * trained
        parts = [text("<b>{trials}</b> trials of <b>{model}</b>", trials=str(trials), model=escape(base.name))]
        parts.append(text("each {extent}", extent=", ".join(extent)))
    else:
        disk = saved_bytes(args, trained, updates)
        parts = [f"<b>{escape(base.name)}</b>", text("<b>{count}</b> trainable parameters", count=f"{trained:,}")]
        parts += extent
    if updates:
        disk += trials * 4 * whole * args.save_merged
        if makes_reference:
            disk += saved_bytes(reference_arguments(args, whole, args.max_length), whole, updates)
        parts.append(disk_phrase(args, disk))
    if measured and pairs:
        tokens = 2 * sequence_tokens(args)
        seconds = trials * measured["pairs"].seconds_of(whole, updates * args.effective_batch_size * tokens)
        seconds += measured["answers"].seconds_of(whole, args.sft_epochs * pairs * tokens)
        parts.append(minutes_phrase(seconds))
    peaks = [update.gpu_bytes for name, update in measured.items() if makes_reference or name == "pairs"]
    return [*parts, *gpu_phrase(args, peaks)]


def pair_measure(arguments: dict[str, DpoArguments]) -> dict[str, MeasuredUpdate]:
    """An update on the answers as such, which trains the whole model, and one on pairs, which trains its adapters."""
    (args,) = arguments.values()
    length = round(sequence_tokens(args)) if generated_for_training(args) else args.max_length
    model = build_model(config_of(base_of(args)))
    reference = reference_arguments(args, model.num_parameters(), args.max_length)
    answers = measured_update(model, reference, max(UPDATE_TOKENS // length, 1), length)
    adapted = add_adapters(model, args.lora_r, args.lora_alpha, 0.0, args.targets)
    pairs = measured_update(adapted, args, 2 * args.per_device_train_batch_size, length, readings=1)
    return {"answers": answers, "pairs": pairs}


def generated_for_training(args: DpoArguments) -> int:
    """How many of the generated pairs are not held out, without making them; 0 where they are a file's or the hub's."""
    if args.data is not None or args.dataset not in (None, GENERATED):
        return 0
    share = GENERATED_SHARE if args.held_out_share is None else args.held_out_share
    return args.pairs - round(args.pairs * share)


def sequence_tokens(args: DpoArguments) -> float:
    """Tokens of a generated prompt with one of its answers, on average."""
    new_tokens = args.new_tokens if args.sft_epochs > 0 else 0  # they are learned from the pairs
    mean = _mean_tokens(base_of(args), new_tokens, min(args.pairs, SAMPLED_PAIRS), args.pairs_seed)
    return min(mean, args.max_length)


@functools.lru_cache(maxsize=8)
def _mean_tokens(base: BaseModel, new_tokens: int, pairs: int, pairs_seed: int) -> float:
    tokenizer, train = open_tokenizer(base), load_preferences(pairs=pairs, pairs_seed=pairs_seed).train
    learn_tokens(tokenizer, train, new_tokens, base.name)
    texts = [pair.prompt[0]["content"] + side for pair in train.pairs for side in (pair.chosen, pair.rejected)]
    return sum(map(len, tokenizer(texts)["input_ids"])) / len(texts)
