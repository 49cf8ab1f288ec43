"""LoRA on a frozen model, in 4 bit or not: which layers, in which precision, and a rank that grows while it trains.

PEFT keeps what is trained in fp32 whatever the base is in: under a loss scaler half precision cannot be trained.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback
from transformers.pytorch_utils import Conv1D

from ..data.tokenizer import end_token_ids
from ..errors import InputError
from ..training.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ..training.trained_model import check_finite, check_speaks, read_object, reading
from .memory_budget import is_target

TORCHAO_OF_PEFT = Version("0.16")  # older ones PEFT refuses to run beside, though it needs none
# What our own adapters differ in from PEFT's defaults. Others of its settings read files, take names for patterns or
# change what the weights mean.
ADAPTER_FIELDS = {"r", "lora_alpha", "lora_dropout", "target_modules", "fan_in_fan_out", "task_type"}
OF_NO_MEANING = {"base_model_name_or_path", "revision", "inference_mode", "peft_type", "auto_mapping", "runtime_config"}


def allow_old_torchao() -> None:
    """Colab ships torchao 0.10, and PEFT 0.19 and newer raise an error when they see it, even where no layer is of
    torchao. In PEFT's modules it then counts as missing. The one place that does this; call it before making
    adapters."""
    try:
        found = Version(version("torchao"))
    except PackageNotFoundError:
        return
    for name, module in list(sys.modules.items()) if found < TORCHAO_OF_PEFT else ():
        if name.startswith("peft.") and hasattr(module, "is_torchao_available"):
            module.is_torchao_available = lambda: False


def four_bit_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation (Dettmers et al. 2023), its products in `dtype`."""
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **nf4)


def set_compute_dtype(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let 4-bit layers multiply in `dtype`, and keep what is not quantised in it. A model that was saved in 4 bit
    brings a dtype of its own, which may be bf16 where the GPU has none."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype, module.compute_type_is_set = dtype, True
            # On a CPU with bf16 the first answer would rewrite the weights, coarser, and fail where a layer is narrow.
            module.support_avx512bf16_for_cpu = False
            if module.weight.quant_state is not None:
                module.weight.quant_state.dtype = dtype
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor.data = tensor.data.to(dtype)


def add_adapters(
    model: PreTrainedModel, rank: int, alpha: float, dropout: float, target_modules: str | list[str]
) -> PeftModel:
    """Freeze the model and add LoRA (Hu et al. 2021) to its linear layers, "all-linear" being every one but the head;
    what it computes does not change. Raises InputError: a name is of no linear layer below the head."""
    allow_old_torchao()
    check_targets(model, target_modules)
    return get_peft_model(model, lora_config(model, rank, alpha, dropout, target_modules))


def check_targets(model: PreTrainedModel, target_modules: str | list[str]) -> None:
    """Raises InputError for a name that is not of linear layers below the head: LwF and DPO read the head as it is."""
    if target_modules == "all-linear":
        return
    head, modules = model.get_output_embeddings(), dict(model.named_modules())
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D) and module is not head}
    for target in target_modules or [""]:
        named = {name for name in modules if is_target(name, [target])}
        if not named or not named <= linear:
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            problem = f"lora_target_modules names {target!r}, which is no linear layer below this model's head"
            raise InputError(f"{problem}; choose of {known}, or all-linear.")


def lora_config(
    model: PreTrainedModel, rank: int, alpha: float, dropout: float, target_modules: str | list[str]
) -> LoraConfig:
    """PEFT's settings of such adapters."""
    fields = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": target_modules}
    has_conv1d = any(isinstance(module, Conv1D) for module in model.modules())
    return LoraConfig(**fields, fan_in_fan_out=has_conv1d, task_type="CAUSAL_LM")


def read_adapters(base: PreTrainedModel, folder: Path) -> PeftModel:
    """`base` with the adapters in a folder on it, which are of the kind that our stages train. Raises InputError: they
    cannot be read, are of another kind, or were trained on another model."""
    config = _adapter_config(folder)
    with reading(folder, ADAPTER_WEIGHTS):
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as weights:
            names = set(weights.keys())
            ranks = {weights.get_slice(name).get_shape()[0] for name in names if ".lora_A." in name}
        if ranks != {config.r}:
            raise ValueError(f"they are of rank {sorted(ranks)}, where {ADAPTER_CONFIG} has {config.r}")
        adapted = PeftModel.from_pretrained(base, str(folder), config=config).eval()
        if wrong := names.symmetric_difference(get_peft_model_state_dict(adapted)):
            raise ValueError(f"they are not those of this base: {min(wrong)} is on one side alone")
        check_finite(adapted)
    check_speaks(adapted, folder)
    return adapted


def _adapter_config(folder: Path) -> LoraConfig:
    fields = read_object(folder / ADAPTER_CONFIG)
    with reading(folder, ADAPTER_CONFIG):
        if fields.get("peft_type") != "LORA":
            raise ValueError(f"peft_type is {fields.get('peft_type')!r}; newllm reads LORA alone")
        targets = fields.get("target_modules")
        if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
            raise ValueError(f"target_modules is {targets!r}, which is no list of names")
        config = LoraConfig(**{name: fields[name] for name in ADAPTER_FIELDS & fields.keys()})
        usual = config.to_dict()
        for name in sorted(fields.keys() & usual.keys() - ADAPTER_FIELDS - OF_NO_MEANING):
            if fields[name] != usual[name]:
                raise ValueError(f"{name} is {fields[name]!r}; newllm reads adapters of its own kind alone")
    return config


class RankSchedule(TrainerCallback):
    """Lets the rank grow while the run goes on, through the ranks of `schedule`, of which the last is the adapters'
    own. They have it from the start; beyond the rank in use, B stays zero and so what the model computes is that of a
    smaller adapter. To grow is to let go of the next columns of B: nothing jumps, and the optimizer's state, a
    checkpoint and a resume need no care. The run spends equally long at every rank."""

    def __init__(self, model: PeftModel, schedule: list[int]):
        self.schedule = schedule
        self.rank = schedule[0]
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ".lora_B." in name:
                parameter.register_hook(self._only_ranks_in_use)

    def _only_ranks_in_use(self, gradient: torch.Tensor) -> torch.Tensor:
        """Of B's gradient [out, rank]; A's is zero there by itself, for B is."""
        return gradient * (torch.arange(gradient.shape[1], device=gradient.device) < self.rank)

    def on_step_begin(self, args, state, control, **kwargs):
        part = state.global_step * len(self.schedule) // max(state.max_steps, 1)
        self.rank = self.schedule[min(part, len(self.schedule) - 1)]


def save_generation_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, penalty: float, max_new_tokens: int, folder: Path
) -> None:
    """Answer with this repetition penalty from now on, and leave beside the adapters what a chat needs to stop."""
    settings = model.generation_config
    settings.repetition_penalty, settings.max_new_tokens = penalty, max_new_tokens
    settings.eos_token_id, settings.pad_token_id = end_token_ids(tokenizer), tokenizer.pad_token_id
    settings.save_pretrained(folder)
