"""What training adapters on a large model will cost: found out from the model's config alone, for its weights are not
opened to draw a panel."""

import copy
import functools
import math
from pathlib import Path

from transformers import Gemma3TextConfig, PreTrainedConfig

from ..errors import InputError
from ..stages.qlora_lwf import QloraLwfArguments, budget, check_memory
from ..training import offline_gemma
from ..training.base_model import BaseModel, base_config, find_base_model
from ..training.device import find_device
from ..training.memory_budget import CUDA_CONTEXT, GB, ModelSizes, is_target, model_sizes, total_bytes
from .adapter_disk import disk_phrase, tokenizer_bytes
from .data_size import BYTES_PER_TOKEN, data_size, taken_conversations
from .estimate import Reckoning, kept_checkpoints, saved_bytes
from .languages import text
from .notices import escape
from .step_cost import Cost, StepCost, measure_step, times
from .text_source import file_identity

# The package's model before it is converted for the first time; afterwards its own config is read.
OFFLINE_CONFIG = {
    "vocab_size": 262_144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
}

PROBE_VOCABULARY = 1024
TEMPLATE_TOKENS = 15  # of an example: who speaks
STEP_PASSES = 3  # of a measured training step: forwards, and backwards to inputs and to weights
# Held-out tokens are read under the model and, where the two are compared, under the base: of both kinds of text, the
# general one compared, at an evaluation; of both kinds, compared, and the base alone at the end.
EVALUATION_PASSES, TEST_PASSES = 3, 6
PREPARE_SECONDS = 20  # open the base, answer before and after
TOKENIZER_BYTES = 2_200  # of a token type: the tokenizer in memory, and the texts
# Of what a GPU would take beside the weights: a CPU's heap is coarser, and oneDNN keeps a program for every shape. In
# fp32 the weights take more and the rest less; measured on CPUs with and without bf16 (benchmarks/cost_line.py).
WORKING_SHARE = 1.9


def complete(args: QloraLwfArguments) -> dict[str, str]:
    """Name the base model that was found, so that all cells of a session take the same one; what a run is known by
    beside its task: the base's weights, and a text of the user's own to rehearse.

    Raises:
        InputError: no such model, or a file that cannot be read.
    """
    base = base_of(args)
    args.model = base.path
    found = {"base": base.identity}
    for name in ("rehearsal_data", "rehearsal_eval_data"):
        if (path := getattr(args, name)) is not None:
            if not Path(path).expanduser().is_file():
                raise InputError(f"{name} {path!r} does not exist.")
            found[name] = file_identity(path)
    return found


def base_of(args: QloraLwfArguments) -> BaseModel:
    """The base model these settings lead to, looked for once a session.

    Raises:
        InputError: there is none within reach.
    """
    return base_named(args.model, args.data_source == "offline")


def base_named(model: str | None, offline: bool = False) -> BaseModel:
    """`find_base_model`, but what has been found, or could not be, is not looked for again in the same session.

    Raises:
        InputError: there is none within reach.
    """
    folder = Path(model or "").expanduser()
    stamp = ()
    if model and folder.is_dir():  # it is found anew when its weights change
        weights = [path.stat() for path in sorted(folder.glob("*.safetensors"))]
        stamp = tuple((status.st_size, status.st_mtime_ns) for status in weights)
    base, problem = _find(model, offline, stamp)
    if base is None:
        raise InputError(problem)
    return base


@functools.lru_cache(maxsize=32)
def _find(model: str | None, offline: bool, stamp: tuple) -> tuple[BaseModel | None, str]:
    """(the model or None, why there is none): what has failed is not tried again with every move of a slider."""
    try:
        return find_base_model(model, offline), ""
    except InputError as error:
        return None, str(error)


def config_of(base: BaseModel) -> PreTrainedConfig:
    """The base model's sizes; nothing is converted or downloaded for them but a file of a few kB.

    Raises:
        InputError: it is of no kind that transformers knows.
    """
    if base.path == offline_gemma.NAME and not offline_gemma.converted_folder().exists():
        return Gemma3TextConfig(**OFFLINE_CONFIG)
    try:
        return base_config(base)
    except (OSError, ValueError) as error:
        sentence = " ".join(str(error).split())[:200]
        raise InputError(f"the config of model {base.path!r} cannot be read ({sentence}).") from error


@functools.lru_cache(maxsize=8)
def _sizes(base: BaseModel) -> ModelSizes:
    return model_sizes(config_of(base))


def check(args: QloraLwfArguments) -> None:
    """Refuse what does not fit into the GPU's memory; nothing is looked up where there is none.

    Raises:
        InputError: naming the nearest setting that fits.
    """
    if find_device(args.use_cpu).memory_gb is not None:
        check_memory(args, config_of(base_of(args)))


def phrases(arguments: dict[str, QloraLwfArguments]) -> list[str]:
    """What the live line says: what is trained on which base, for how long, and the GPU's memory it takes."""
    (args,) = arguments.values()
    base = base_of(args)
    bits = text("in 4 bit" if args.load_in_4bit else "in full precision")
    trained = count_trainable(args, base)
    count = f"{trained / 1e6:.2f} M" if trained >= 100_000 else f"{trained:,}"
    parts = [
        f"<b>{escape(base.name)}</b> {bits}",
        text("<b>{count}</b> trainable parameters", count=count),
        _extent(args),
    ]
    if (updates := _updates(args)) is not None:
        disk = saved_bytes(trained, kept_checkpoints(args, updates), tokenizer_bytes(base, config_of(base)))
        parts.append(disk_phrase(disk))
    device = find_device(args.use_cpu)
    if device.memory_gb is not None:
        needed = total_bytes(budget(args, config_of(base), args.per_device_train_batch_size, args.max_length)) / GB
        phrase = "about <b>{needed} of {there} GB</b> on this GPU (estimated)"
        parts.append(text(phrase, needed=f"{needed:.1f}", there=f"{device.memory_gb:.1f}"))
    return parts


def measure(args: QloraLwfArguments) -> StepCost:
    """What a training step of one block of the base takes here: the base itself is not opened for a panel."""
    config = copy.deepcopy(config_of(base_of(args)))
    config.num_hidden_layers, config.vocab_size = 1, PROBE_VOCABULARY
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    return measure_step(config, args, args.per_device_train_batch_size, args.max_length)


def cost(arguments: dict[str, QloraLwfArguments], measured: dict[str, StepCost]) -> Cost:
    """What the run will take: no minutes of a file of the user's own, no memory of a GPU, which `phrases` tell."""
    ((model, args),) = arguments.items()
    step, base, updates = measured[model], base_of(args), _updates(args)
    config = config_of(base)
    memory = _memory(args, config, step)
    if taken_conversations(args) is None:
        return Cost(memory_bytes=memory)
    size = data_size(args)
    tokens = min(size.bytes / size.conversations / BYTES_PER_TOKEN["gpt2"] + TEMPLATE_TOKENS, args.max_length)
    example = (tokens + args.rehearsal_ratio * args.max_length) / (1 + args.rehearsal_ratio)
    evaluations = 1 + times(args.eval_steps, updates)
    passes = 2 + args.distills + bool(args.activation_checkpointing)  # frozen weights need no gradients
    work = passes * updates * args.effective_batch_size * example
    work += EVALUATION_PASSES * evaluations * args.max_eval_tokens + TEST_PASSES * args.max_test_tokens
    weights = sum(layer.weights for layer in _sizes(base).linear) + config.vocab_size * config.hidden_size
    return Cost((step.seconds(weights, work / STEP_PASSES) + PREPARE_SECONDS) / 60, memory)


def _memory(args: QloraLwfArguments, config: PreTrainedConfig, step: StepCost) -> int | None:
    """Bytes that the process takes at its peak, of a CPU: what it has now, the tokenizer, the base, and what training
    takes beside it. None on a GPU, which has a phrase of its own, and where the probe could not tell."""
    if find_device(args.use_cpu).kind != "cpu" or (before := step.memory(0, 0)) is None:
        return None
    items = budget(args, config, args.per_device_train_batch_size, args.max_length)
    weights = total_bytes(items[:2])  # linear layers, all others
    working = total_bytes(items[2:]) - CUDA_CONTEXT
    return int(before + TOKENIZER_BYTES * config.vocab_size + weights + WORKING_SHARE * working)


def count_trainable(args: QloraLwfArguments, base: BaseModel) -> int:
    """Parameters of the adapters: rank times inputs and outputs of every layer that gets one."""
    layers = [layer for layer in _sizes(base).linear if is_target(layer.name, args.targets)]
    return sum(args.lora_r * (layer.inputs + layer.outputs) for layer in layers)


def _updates(args: QloraLwfArguments) -> int | None:
    """Updates of a run; None of a file of the user's own, whose examples nobody has counted yet."""
    if args.max_steps > 0:
        return args.max_steps
    if (examples := _examples(args)) is None:
        return None
    return math.ceil(args.num_train_epochs * math.ceil(examples / args.effective_batch_size))


def _examples(args: QloraLwfArguments) -> int | None:
    """Of an epoch: conversations, and stretches to rehearse."""
    conversations = taken_conversations(args)
    return None if conversations is None else conversations + round(args.rehearsal_ratio * conversations)


def _extent(args: QloraLwfArguments) -> str:
    """Updates and examples."""
    conversations, updates = taken_conversations(args), _updates(args)
    rows = str(args.effective_batch_size)
    if updates is None:
        phrase = "<b>{epochs}</b> epochs of your file, in updates of {rows} examples"
        return text(phrase, epochs=f"{args.num_train_epochs:g}", rows=rows)
    if conversations is None:
        return text("<b>{updates}</b> updates of {rows} examples", updates=f"{updates:,}", rows=rows)
    return text(
        "<b>{updates}</b> updates of {rows} examples, out of up to <b>{conversations}</b> conversations and "
        "{stretches} stretches of text to rehearse",
        updates=f"{updates:,}",
        rows=rows,
        conversations=f"{conversations:,}",
        stretches=f"{_examples(args) - conversations:,}",
    )


ADAPTERS = Reckoning(check, phrases, measure, cost, complete)
