"""A trained model, opened from its folder; and the one place where a model's folder is read, ours or another's: its
config, tokenizer, weights and adapters.

No code that lies in a folder is run and nothing is unpickled. What a library says of a damaged file, in exceptions of
many kinds, comes out as one sentence. Sizes that a file states are compared with what the weights hold before anything
is built after them.
"""

import contextlib
import copy
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn.modules import module as torch_module
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from .. import models  # noqa: F401  registers our models with the Auto classes
from ..data.files import content_hash
from ..data.sources import hub_model
from ..errors import InputError
from ..models.recurrent_model import state_after
from ..models.sizing import name_loss
from ..progress import Progress
from ..wings import wing
from .arguments import ModelArguments
from .checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SETTINGS_FILE, check_model_folder, has_adapters, read_settings
from .device import find_device

# The settings that are read again when a run's model is opened.
SETTING_KINDS: dict[Any, set[str]] = {
    str: {"stage", "model_type", "tokenizer", "base", "text_source", "validation_text", "loss_on", "too_long",
          "bnb_4bit_quant_type"},
    str | None: {"data", "eval_data", "test_data", "test_text", "dataset", "held_out", "model"},
    int: {"max_length", "per_device_eval_batch_size"},
    float | int | None: {"held_out_share", "beta"},
    bool: {"load_in_4bit", "bnb_4bit_use_double_quant", "skip_bad_rows"},
}  # fmt: skip


class RunSettings(dict[str, Any]):
    """Part of the settings of a run, as its file has them. Raises InputError: one is of another kind than any run has
    written; later, one is asked for that the file lacks."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        for name, value in settings.items():
            kind = next((kind for kind, names in SETTING_KINDS.items() if name in names), object)
            if not isinstance(value, kind) or (kind is int and value < 1):
                raise InputError(f"{SETTINGS_FILE} of this run is damaged: {name} is {value!r}.", "NL-404")

    def __missing__(self, name: str):
        raise InputError(f"{SETTINGS_FILE} of this run lacks {name!r}: it cannot do that, or is damaged.", "NL-404")


@dataclass(frozen=True)
class BaseModel:
    """Where a model is that adapters are trained on."""

    name: str  # for tables and cards
    path: str  # folder, or id on the hub
    identity: str  # changes when the weights do
    licence: str  # or how the user can know it
    revision: str | None = None  # the hub's commit
    note: str = ""  # on how it was chosen


@dataclass
class TrainedModel:
    """A model as its folder holds it."""

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    run: RunSettings
    session: RunSettings

    @property
    def name(self) -> str:
        return self.run.get("model_type", self.folder.name)

    @property
    def reported_text(self) -> str:
        """The identity of the text that the run's figures are of."""
        return self.run.get("test_text") or self.run["validation_text"]

    def split(self, identity: str) -> str:
        """What the text with this identity is to the run, or was to one of an earlier version: `Splits.find`."""
        sides = {self.run.get("test_text"): "test", self.run["validation_text"]: "validation"}
        return sides.get(identity) or sides.get(identity.replace("/test@", "/validation@"), "another text")


def open_model(path: str | Path, base: str | None = None, unpack: bool = False) -> TrainedModel:
    """Load a finished run onto the device that is there. `base` is where the model is now that adapters were trained
    on, None: where it was; with `unpack` its 4-bit weights are the plain numbers they stand for. Raises InputError: the
    folder is not one of our trained models, or damaged."""
    folder = check_model_folder(path)
    settings = read_settings(folder)
    run, session = (RunSettings(settings[part]) for part in ("run", "session"))
    tokenizer = read_tokenizer(folder)
    if has_adapters(folder):
        model = wing("adapters.base_model").open_adapted(folder, run, session, base, unpack)
    else:
        model = read_weights(folder, dtype=torch.float32).to(find_device().kind)
    check_tokens_fit(model, tokenizer, folder)
    return TrainedModel(folder, model, tokenizer, run, session)


def is_chat(trained: TrainedModel) -> bool:
    """True for a model that was trained on conversations."""
    return trained.run["stage"] in ("sft", "qlora-lwf", "dpo")


def weights_hash(folder: str | Path) -> str:
    """A hash of the weights of a model, by which it is recognised wherever it lies."""
    folder = check_model_folder(folder)
    return content_hash(folder / (ADAPTER_WEIGHTS if has_adapters(folder) else "model.safetensors"))[:16]


def open_teacher(
    args: ModelArguments, tokenizer: PreTrainedTokenizerFast
) -> tuple[PreTrainedModel | None, dict[str, str]]:
    """(the model to learn from that the settings name, or None; what it adds to the identity of a run): a run of ours,
    or any causal language model in a folder or on the hub. Raises InputError: it cannot be had, its tokens are not
    those of `tokenizer`, or its window is shorter than a row."""
    if args.teacher is None:
        return None, {}
    folder = Path(os.path.expanduser(args.teacher))
    if (folder / SETTINGS_FILE).exists():
        teacher = open_model(folder)
        check_same_tokens(args.teacher, teacher.tokenizer, "the model", tokenizer)
        model, identity = teacher.model, weights_hash(folder)
    else:
        path, revision = folder, None
        if not folder.is_dir():
            info, problem = hub_model(args.teacher)
            if problem is not None:
                what = f"teacher {args.teacher!r} is no folder here, and could not be had from the hub ({problem})"
                raise InputError(f"{what}; check the name and the network.", problem.code)
            path, revision = args.teacher, info.sha
        check_same_tokens(args.teacher, read_tokenizer(path, revision), "the model", tokenizer)
        model = read_weights(path, revision, dtype=torch.float32)
        check_tokens_fit(model, tokenizer, args.teacher)
        # On the hub a commit, here the weights.
        identity = revision or " ".join(content_hash(file)[:16] for file in weight_files(folder))
    window = getattr(model.config, "max_position_embeddings", args.max_length)
    if window < args.max_length:
        raise InputError(f"teacher {args.teacher!r} reads {window} tokens; choose --max_length {window} or less.")
    return model, {"teacher_weights": identity}


def check_same_tokens(
    teacher: str, its: PreTrainedTokenizerFast, name: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Raises InputError if a token is not the same piece of text to both. How the tokenizers are written down may
    differ: ours of GPT-2 and the hub's do."""

    def pieces(tokenizer: PreTrainedTokenizerFast) -> tuple[dict[str, int], Any]:
        return tokenizer.get_vocab(), json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("merges")

    if pieces(its) != pieces(tokenizer):
        raise InputError(f"teacher {teacher!r} has another tokenizer than {name}; both need the same.")


LARGEST_JSON = 2**24  # bytes; configs have some thousand
COUNTED = re.compile("layer|label|head|expert")  # in a config, fields of as many modules or names
MOST_COUNTED = 10_000


@contextlib.contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Turn whatever goes wrong while `what` of a model is read into a sentence. Raises InputError: something did; the
    cause is kept."""
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the tokenizers' library raises plain Exception, others a dozen kinds
        sentence = " ".join(str(error).split())[:200]
        is_local = Path(path).is_dir()
        remedy = "copy or train it again, or name another model" if is_local else "try again, or name another model"
        problem = f"{type(error).__name__}: {sentence}; the file is damaged, or of another kind: {remedy}"
        if "trust_remote_code" in str(error):
            problem = "it is made by Python code of its own, which newllm never runs; name a model that needs none"
        raise InputError(
            f"model {str(path)!r}: its {what} cannot be used ({problem}).", "NL-404" if is_local else "NL-303"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a small JSON file of a model folder. Raises InputError: it is none, damaged, or far too large."""
    with reading(path.parent, path.name):
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    return content


def read_config(path: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """The sizes of the model in a folder, or of `revision` of one on the hub. Raises InputError: they cannot be read,
    or are absurd."""
    with reading(path, "config.json"):
        if Path(path).is_dir():
            _check_counts(read_object(Path(path) / "config.json"))
        # Attention by a name of the hub would be fetched from there and run.
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False, attn_implementation=None)


def _check_counts(fields: dict[str, Any]) -> None:
    """Raises ValueError for counts that make a config itself endless, before there is a model to compare with."""
    for name, value in fields.items():
        if isinstance(value, dict):
            _check_counts(value)
        elif isinstance(value, int) and COUNTED.search(name) and value > MOST_COUNTED:
            raise ValueError(f"{name} is {value}, more than {MOST_COUNTED:,}")


def read_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a model, which cuts and pads nothing by itself. Where it has no token to begin or to pad with,
    its end-of-text is that token: padding is never read or supervised, and no embedding has to grow. Raises InputError:
    it cannot be read, or is not one that our stages can use."""
    # transformers looks into the config, too, and an absurd one has to be refused before.
    config = None if has_adapters(Path(path)) else read_config(path, revision)
    with reading(path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, config=config, revision=revision, trust_remote_code=False)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ValueError(f"{type(tokenizer).__name__} is none of the fast tokenizers")
        if tokenizer.eos_token_id is None:
            raise ValueError("it has no end-of-text token (eos_token)")
        if not isinstance(tokenizer.chat_template, str | None):
            raise ValueError("it has several chat templates; keep one")
        for name in ("pad_token", "bos_token"):
            if getattr(tokenizer, f"{name}_id") is None:
                setattr(tokenizer, name, tokenizer.eos_token)
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def read_weights(path: str | Path, revision: str | None = None, **options: Any) -> PreTrainedModel:
    """The causal language model in a folder, or of `revision` of one on the hub; `options` are transformers' `dtype`,
    `device_map` and `quantization_config`. Raises InputError: the weights cannot be read, or are not those of the model
    that the config describes."""
    config, folder = read_config(path, revision), Path(path)
    if folder.is_dir():
        if has_adapters(folder):  # transformers would go on to the model that it names
            raise InputError(
                f"model {str(path)!r} holds adapters; newllm export --format merged makes a whole model of them.",
                "NL-404",
            )
        _check_size(folder, config)
        if (folder / "generation_config.json").exists():  # a damaged one is passed over without a word
            read_generation(folder)
    with reading(path, "weights"), Progress(desc="opening {name}", of=str(path) if revision else folder.name):
        # On the hub some models have no safetensors: torch then reads numbers alone.
        options |= {"config": config, "revision": revision, "use_safetensors": True if folder.is_dir() else None}
        model, loaded = AutoModelForCausalLM.from_pretrained(
            path, trust_remote_code=False, output_loading_info=True, **options
        )
        if missing := sorted(loaded["missing_keys"]):
            raise ValueError(f"{len(missing)} tensors are missing, {missing[0]} among them")
        check_finite(model)
    check_speaks(model, path)
    return name_loss(model)


def check_finite(model: torch.nn.Module) -> None:
    """Raises ValueError for weights that are not all numbers."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.sum(dtype=torch.float32).isfinite():
            raise ValueError(f"{name} holds what is no number")


@torch.no_grad()
def check_speaks(model: torch.nn.Module, path: str | Path) -> None:
    """Let a model read two tokens, one after the other: much of a config is felt only then. Raises InputError: it
    cannot, or what it says are no numbers."""
    if getattr(model, "is_loaded_in_4bit", False):  # a single token is another path there, which small layers lack
        return
    with reading(path, ADAPTER_CONFIG if has_adapters(Path(path)) else "config.json"):
        token, cache = torch.zeros(1, 1, dtype=torch.long, device=model.device), None
        for _ in range(2):
            said = model(token, past_key_values=cache, use_cache=True)
            if said.logits.isnan().any():
                raise ValueError("what the model says are no numbers")
            cache = state_after(said)


def _check_size(folder: Path, config: PreTrainedConfig) -> None:
    """Refuse weights that lie outside of the folder or are no safetensors, and a config of a model much larger than its
    weights: to build it may take all memory, or never end. Raises InputError for these."""
    with reading(folder, "weights"):
        tensors = numbers = 0
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118  not a dictionary
                    part = weights.get_slice(name)
                    tensors += 1
                    numbers += math.prod(part.get_shape()) * (2 if part.get_dtype() == "U8" else 1)  # 4 bit: in pairs
    # Tied weights are one tensor of the file and two of the model; new and old names of a layer may differ in number.
    seen, held, most = set(), 0, 2 * numbers + 2**26  # beside the weights: masks, positions

    def count(module: torch.nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        nonlocal held
        if tensor is None or tensor in seen:  # weights are tied by registering them again
            return
        seen.add(tensor)
        held += tensor.numel()
        if held > most or len(seen) > 4 * tensors + 64:
            weights = f"the weights, which are {tensors:,} tensors of {numbers:,} numbers"
            raise ValueError(f"it describes a model much larger than {weights}")

    with contextlib.ExitStack() as hooks, reading(folder, "config.json"), torch.device("meta"):
        hooks.callback(torch_module.register_module_parameter_registration_hook(count).remove)
        hooks.callback(torch_module.register_module_buffer_registration_hook(count).remove)
        AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of the model in a folder. Raises ValueError: there are none, or they are not
    safetensors of this folder."""
    names, index = {"model.safetensors"}, folder / "model.safetensors.index.json"
    if not (folder / "model.safetensors").exists() and index.exists():
        names = set(read_object(index)["weight_map"].values())
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise ValueError(f"{name} is not there as a file of safetensors")
    return sorted(folder / name for name in names)


def read_generation(path: str | Path) -> GenerationConfig:
    """How answers are made, as a folder has it. Raises InputError: it cannot be read."""
    read_object(Path(path) / "generation_config.json")
    with reading(path, "generation_config.json"):
        settings = GenerationConfig.from_pretrained(path)
        penalty = settings.repetition_penalty
        if penalty is not None and not 0 < penalty < math.inf:
            raise ValueError(f"repetition_penalty is {penalty}")
    return settings


def check_tokens_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, path: str | Path) -> None:
    """Raises InputError for a tokenizer that has tokens which the model lacks."""
    largest, rows = max(tokenizer.get_vocab().values()), model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise InputError(
            f"model {str(path)!r}: its tokenizer is of another model: it has token {largest}, the model {rows} tokens; "
            "copy the folder again, or name another model.",
            "NL-404",
        )
