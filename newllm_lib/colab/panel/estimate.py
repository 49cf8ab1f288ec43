"""What a run will cost, as the line below a panel says it: parameters, updates, the time that these take by one that is
measured here, a GPU's memory, and the least that the run writes on the disk."""

import functools
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ...data.sources import HELD_OUT_SHARE
from ...data.tokenizer import DEFAULT_VOCAB_SIZE
from ...errors import InputError
from ...models import build_config, build_model, count_parameters
from ...training.arguments import ModelArguments, StageArguments
from ...training.checkpoint import read_results
from ...training.device import GB, find_device, freed_memory_kept, size
from ...training.run import BYTES_PER_PARAMETER, FEWEST_TYPES
from ...training.trained_model import read_config
from ...training.trainer import count_training_tokens, timed_update
from ..page.languages import text

BYTES_PER_TOKEN = {"byte": 1.0, "bpe": 3.7, "word": 5.2, "gpt2": 4.2}  # of English text
PROBE_TOKENS, PROBE_SECONDS = 128, 0.4  # what takes less is measured again, on four times as many tokens


@dataclass(frozen=True)
class DataSize:
    """Bytes of a training split and, where examples are conversations, their number."""

    bytes: int
    conversations: int | None = None


# (dataset, source) -> its training split. Offline sizes are counted, the hub's bytes estimated.
DATA_SIZES = {
    ("wikitext", "hub"): DataSize(10_900_000),
    ("wikitext", "offline"): DataSize(12_110_594),
    ("dailydialog", "hub"): DataSize(5_800_000, 11_118),
    ("dailydialog", "offline"): DataSize(12_720_000, 3_800),
    ("dolly", "hub"): DataSize(11_500_000, 14_260),
    ("dolly", "offline"): DataSize(587_000, 3_252),
    ("ultrachat", "hub"): DataSize(1_300_000_000, 207_865),
    ("ultrachat", "offline"): DataSize(12_720_000, 3_800),
    ("alpaca", "hub"): DataSize(38_000_000, 49_172),
    ("alpaca", "offline"): DataSize(587_000, 3_252),
}


@dataclass(frozen=True)
class MeasuredUpdate:
    """One update on this machine: its seconds, the model's parameters, its tokens, and the peak of its memory on an
    NVIDIA GPU (None without one)."""

    seconds: float
    parameters: int
    tokens: int
    gpu_bytes: int | None = None

    def seconds_of(self, parameters: int, tokens: float) -> float:
        """Seconds to train a model of that size on so many tokens: both multiply the arithmetic."""
        return self.seconds * parameters / self.parameters * tokens / self.tokens

    def gpu_bytes_of(self, parameters: int, tokens: int) -> int | None:
        """The peak of an update of another size, of a model that is trained whole: what a parameter takes is known, and
        the rest grows with the tokens."""
        if self.gpu_bytes is None:
            return None
        rest = max(self.gpu_bytes - BYTES_PER_PARAMETER * self.parameters, 0)
        return round(BYTES_PER_PARAMETER * parameters + rest * tokens / self.tokens)


def measured_update(
    model: PreTrainedModel, args: StageArguments, rows: int, length: int, readings: int = 0
) -> MeasuredUpdate:
    """Measure an update of `model`, whose weights it changes, on `rows` rows of `length` random tokens; on fewer where
    these take long, or do not fit on the GPU. `readings`: as of `timed_update`."""
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
        seconds = min(timed_update(model, optimizer, input_ids, dtype, readings) for _ in range(2))
        peak = torch.cuda.max_memory_allocated() - before if kind == "cuda" else None
        return MeasuredUpdate(seconds, parameters, input_ids.numel(), peak)

    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    tokens, most = min(PROBE_TOKENS, rows * length), rows * length
    with freed_memory_kept():
        found = update(tokens)
        while found.seconds < PROBE_SECONDS and tokens < most:
            tokens = min(4 * tokens, most)
            try:
                found = update(tokens)
            except torch.OutOfMemoryError:
                break
    return found


def minutes_phrase(seconds: float, models: int = 1) -> str:
    """How long all updates of a run take, of all its models. Evaluations are not counted: they are a few per cent of a
    long run."""
    spoken = text("a minute")
    if seconds >= 90 * 60:
        spoken = text("{hours} hours", hours=f"{seconds / 3600:.1f}")
    elif seconds >= 90:
        spoken = text("{minutes} minutes", minutes=f"{seconds / 60:.0f}")
    phrase = "about <b>{minutes}</b> here for all updates (one was measured), plus evaluations"
    if models > 1:
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
    """How many checkpoints are there at the end of a run."""
    if args.save_strategy == "no":
        return 0
    saves = math.ceil(1 / args.save_steps if args.save_steps < 1 else updates / args.save_steps)
    return min(saves, updates, args.save_total_limit or saves)


def saved_bytes(args: StageArguments, trained: int, updates: int) -> int:
    """The least that a run of so many trained parameters leaves on the disk: the weights, and in every checkpoint these
    and AdamW's two moments, 4 bytes each."""
    return 4 * trained * (1 + 3 * kept_checkpoints(args, updates))


def disk_phrase(args: StageArguments, needed: int) -> str:
    """The least that is written, and how much is free where that is less."""
    folder = next(path for path in Path(args.output_dir).absolute().parents if path.exists())
    if (free := shutil.disk_usage(folder).free) < needed:
        phrase = "at least <b>{disk}</b> on disk, and <b>only {free}</b> are free"
        return text(phrase, disk=size(needed), free=size(free))
    return text("at least <b>{disk}</b> on disk", disk=size(needed))


def phrases(arguments: dict[str, ModelArguments], measured: dict[str, MeasuredUpdate]) -> list[str]:
    """What the live line says of models (name -> settings) that are trained whole, one after the other, on the same
    data; without what `measure` returned no minutes and no memory."""
    parameters = {model: count_model(args) for model, args in arguments.items()}
    args = next(iter(arguments.values()))
    updates, tokens = count_training_tokens(args, max(math.ceil(expected_tokens(args) / args.max_length), 1))
    sizes = ", ".join(f"{model} {count / 1e6:.2f} M" for model, count in parameters.items())
    parts = [
        text("<b>{sizes}</b> parameters", sizes=sizes),
        text(
            "<b>{updates}</b> updates of {rows} rows of {length} tokens = <b>{tokens} M</b> tokens",
            updates=f"{updates:,}" if args.max_steps > 0 else text("about {count}", count=f"{updates:,}"),
            rows=str(args.effective_batch_size),
            length=str(args.max_length),
            tokens=f"{tokens / 1e6:.2f}",
        ),
        text("<b>{checkpoints}</b> checkpoints kept of each model", checkpoints=str(kept_checkpoints(args, updates))),
        disk_phrase(args, sum(saved_bytes(args, count, updates) for count in parameters.values())),
    ]
    if measured:
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
    """Parameters of the model these settings describe. Raises InputError: no width meets the wanted number of
    parameters."""
    return count_parameters(model_config(args))


def model_config(args: ModelArguments) -> PreTrainedConfig:
    """The config of the model that will be trained: the start model's, with positions for a whole row, or a new one.
    Raises InputError: no width meets the wanted number of parameters."""
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
    """The size of the training split that the settings name."""
    if args.data is not None:
        return DataSize(int(Path(args.data).expanduser().stat().st_size * (1 - HELD_OUT_SHARE)))
    name = getattr(args, "dataset", None) or "wikitext"
    return DATA_SIZES[name, "hub" if args.data_source == "auto" else args.data_source]


def taken_conversations(args: StageArguments) -> int | None:
    """Conversations of the training split, as far as they are taken; None where their number is not known."""
    there = data_size(args).conversations
    return None if there is None else min(there, getattr(args, "max_samples", None) or there)


def expected_tokens(args: ModelArguments) -> float:
    """About how many tokens the training split has: by its size alone, for nothing is loaded to draw a panel."""
    there = data_size(args)
    tokens = there.bytes / bytes_per_token(args)
    if there.conversations is None:
        return tokens
    return taken_conversations(args) * min(tokens / there.conversations, args.max_length)


def bytes_per_token(args: ModelArguments) -> float:
    """As the results of the start model have it; else about what its kind of tokenizer makes of English text."""
    start = getattr(args, "model", None)
    results = read_results(Path(start)) if start is not None else None
    if results and results.get("bits_per_byte"):
        return results["loss"] / math.log(2) / results["bits_per_byte"]
    return BYTES_PER_TOKEN[args.tokenizer]
