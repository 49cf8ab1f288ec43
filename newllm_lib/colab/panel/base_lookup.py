"""Which pretrained model a panel's settings lead to, and its sizes: looked up once a session, and without opening or
downloading its weights."""

import functools
from pathlib import Path

from transformers import Gemma3TextConfig, PreTrainedConfig

from ...adapters import offline_gemma
from ...adapters.arguments import AdapterArguments
from ...adapters.base_model import base_config, find_base_model
from ...adapters.memory_budget import ModelSizes, is_target, model_sizes
from ...adapters.qlora_lwf import QloraLwfArguments, check_memory
from ...errors import InputError
from ...preferences.arguments import DpoArguments
from ...preferences.dpo import check_window
from ...training.device import find_device
from ...training.trained_model import BaseModel
from .text_source import file_identity

# The package's model before it is converted for the first time; afterwards its own config is read.
OFFLINE_CONFIG = {
    "vocab_size": 262_144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256,
}  # fmt: skip


def base_of(args: AdapterArguments) -> BaseModel:
    """The base model that these settings lead to. Raises InputError: there is none within reach."""
    return base_named(args.model, args.data_source == "offline")


def base_named(model: str | None, offline: bool = False) -> BaseModel:
    """`find_base_model`, but what was found, or could not be, is not looked for again in the same session. Raises
    InputError: there is none within reach."""
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
    """The base model's sizes; nothing is converted or downloaded for them but a file of a few kB. Raises InputError:
    transformers does not know this kind of model."""
    if base.path == offline_gemma.NAME and not offline_gemma.converted_folder().exists():
        return Gemma3TextConfig(**OFFLINE_CONFIG)
    try:
        return base_config(base)
    except (OSError, ValueError) as error:
        sentence = " ".join(str(error).split())[:200]
        raise InputError(f"the config of model {base.path!r} cannot be read ({sentence}).") from error


@functools.lru_cache(maxsize=8)
def sizes_of(base: BaseModel) -> ModelSizes:
    """The sizes of the base model's layers."""
    return model_sizes(config_of(base))


def count_trainable(args: AdapterArguments, base: BaseModel) -> int:
    """Parameters of the adapters: rank times inputs and outputs of every layer that gets one."""
    layers = [layer for layer in sizes_of(base).linear if is_target(layer.name, args.targets)]
    return args.lora_r * sum(layer.inputs + layer.outputs for layer in layers)


def resolve_lwf(args: QloraLwfArguments) -> dict[str, str]:
    """Name the base model that was found, so that all cells of a session take the same one.

    Returns:
        Extra entries for the run's identity: the base's weights, and the user's own text to rehearse.

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


def check_lwf(args: QloraLwfArguments) -> None:
    """Refuse what does not fit into the GPU's memory; nothing is looked up where there is none. Raises InputError:
    naming the nearest setting that fits."""
    if find_device(args.use_cpu).memory_gb is not None:
        check_memory(args, sizes_of(base_of(args)))


def resolve_pairs(args: DpoArguments) -> dict[str, str]:
    """The extra entry for the run's identity: the weights of the model that is tuned. Raises InputError
    where there is no such model."""
    return {"base": base_of(args).identity}


def check_pairs(args: DpoArguments) -> None:
    """Raises InputError if the model reads too few tokens, or has none of the layers that are to get adapters."""
    base = base_of(args)
    check_window(args, base, config_of(base))
    if count_trainable(args, base) == 0:
        raise InputError(
            f"{base.name} has no layers called {args.lora_target_modules}, as this preset wants; choose another preset."
        )
