"""The settings of stages that train adapters, and of stage 5; what they may be, and named sets of them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from ..errors import InputError
from ..stages.sft import ConversationArguments
from ..training.arguments import StageArguments, setting


@dataclass
class AdapterArguments(StageArguments):
    """Settings of LoRA adapters on a pretrained model."""

    model_type: ClassVar[str] = "tuned"  # what the run's curves and tables call the model
    refused: ClassVar[dict[str, str]] = StageArguments.refused | {
        "neftune_noise_alpha": "what the model is held to is the model itself, which would hear the noise, too",
        **dict.fromkeys(("fsdp", "fsdp_config"), "of several GPUs each has the whole base; only adapters are trained"),
    }

    model: str | None = setting(None, "What the adapters are trained on.", session=True)
    lora_r: int = setting(8, "Rank of the adapters: how much they can learn.", "Model", low=2, high=64, log=True)
    lora_alpha: float = setting(16.0, "Adapters are scaled by alpha / rank.", "Model", low=4, high=128, log=True)
    lora_target_modules: str = setting(
        "all-linear", "Layers with adapters: all-linear, or names that newllm modules lists."
    )
    repetition_penalty: float = setting(
        1.1, "Of the answers this model gives; above 1: fewer repetitions.", "Answers", low=1.0, high=1.5
    )

    def __post_init__(self):
        super().__post_init__()
        if self.model is not None and Path(os.path.expanduser(self.model)).is_dir():
            self.model = os.path.abspath(os.path.expanduser(self.model))  # the finished run is opened from elsewhere

    @property
    def targets(self) -> str | list[str]:
        """`lora_target_modules` as PEFT takes it."""
        names = [name.strip() for name in self.lora_target_modules.split(",") if name.strip()]
        return names[0] if names == ["all-linear"] else names


@dataclass
class QloraLwfArguments(ConversationArguments, AdapterArguments):
    """Settings of stage 5."""

    metrics: ClassVar[dict[str, bool]] = AdapterArguments.metrics | {
        "general_bits_per_byte": False,
        "general_kl_to_base": False,
    }
    refused: ClassVar[dict[str, str]] = {
        name: why for name, why in AdapterArguments.refused.items() if name != "label_smoothing_factor"
    }

    model: str | None = setting(
        None, "Id on the hub, a folder, or gemma-3-270m; none: Gemma-2B, without GPU or hub Gemma 3 270M.", "Model"
    )
    load_in_4bit: bool = setting(True, "Hold the base in 4 bit: a quarter of the memory.", "Model")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = setting(
        "nf4", "Spacing of the values in 4 bit; a base that is saved in 4 bit stays as it is.", "Model"
    )
    bnb_4bit_use_double_quant: bool = setting(True, "In 4 bit: hold the scales in 8 bit, too.", "Model")
    lora_dropout: float = setting(0.05, "Share of the adapters' inputs dropped.", "Model", low=0.0, high=0.5)
    rank_schedule: str | None = setting(None, "A growing rank: 4,8,16 is a third of the run each, in place of lora_r.")
    distill_weight: float = setting(
        0.5, "How strongly the base holds the model to what it knew; 0: not.", "Forgetting", low=0.0, high=4.0
    )
    distill_weight_end: float | None = setting(None, "The weight at the end of the run, reached in a straight line.")
    temperature: float = setting(
        1.0, "Softens both predictions before they are compared.", "Forgetting", low=0.5, high=4.0
    )
    temperature_end: float | None = setting(None, "The temperature at the end of the run.")
    rehearsal_ratio: float = setting(
        0.2, "Stretches of other text per example of the new task, every epoch.", "Forgetting", low=0.0, high=1.0
    )
    rehearsal_data: str | None = setting(
        None, "Text to rehearse; none: WikiText-2, offline ChitChat.", "Forgetting", session=True
    )
    rehearsal_eval_data: str | None = setting(
        None, "Text on which forgetting is measured; none: 5 %% of that to rehearse.", "Forgetting", session=True
    )
    teacher: str | None = setting(None, "Another model (same tokenizer) to be held to, not the base.", session=True)
    teacher_on_cpu: bool = setting(False, "With --teacher: keep it in the CPU's memory.", session=True)
    max_length: int = setting(512, "Tokens per example at most.", "Data", low=64, high=2048, log=True)
    output_dir: str = setting("runs/qlora-lwf", "Folder of the run: settings, adapters, checkpoints, curves.")
    learning_rate: float = setting(2e-4, "Peak learning rate.", "Training", low=1e-5, high=1e-2, log=True)
    per_device_train_batch_size: int = setting(4, "Examples per forward pass.", "Training", low=1, high=64, log=True)
    gradient_accumulation_steps: int = setting(8, "Forward passes per update.", "Training", low=1, high=64)
    per_device_eval_batch_size: int = setting(4, "Rows per forward pass in evaluation.")
    activation_checkpointing: bool = setting(True, "Compute a layer twice to hold less of it.", "Training")
    gradient_checkpointing: bool | None = setting(None, "The same by its older name, which wins if given.")
    lr_scheduler_type: str = setting("linear", "How the learning rate changes over the run.", "Training")
    warmup_steps: float = setting(0.03, "Updates (or, below 1, share of them) of warm-up.", "Training")
    weight_decay: float = setting(0.0, "AdamW's weight decay.", "Training", low=0, high=1.0)
    max_eval_tokens: int = setting(20_000, "Held-out tokens of either kind scored at each evaluation.")
    max_test_tokens: int = setting(100_000, "Held-out tokens of either kind that both are scored on at the end.")
    eval_on_start: bool = setting(True, "Evaluate the base before the first update.")

    def __post_init__(self):
        if self.dataset is None and self.data is None:
            self.dataset = "alpaca"
        # transformers 5.23 has new names for these; under both it finds them.
        if self.gradient_checkpointing is not None:
            self.activation_checkpointing = self.gradient_checkpointing
        self.gradient_checkpointing = self.activation_checkpointing
        self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs = {"use_reentrant": False}
        super().__post_init__()
        if self.rank_schedule is not None:
            self.lora_r = self.ranks[-1]
        if self.bnb_4bit_quant_type not in ("nf4", "fp4"):
            raise InputError(f"bnb_4bit_quant_type has to be nf4 or fp4, got {self.bnb_4bit_quant_type!r}.")
        if self.teacher_on_cpu and self.teacher is None:
            raise InputError("teacher_on_cpu is for another model than the base; add --teacher.")

    @property
    def in_usual_4bit(self) -> bool:
        """Whether the base may be one that was saved in 4 bit, which are in NF4 with double quantisation."""
        return self.load_in_4bit and self.bnb_4bit_quant_type == "nf4" and self.bnb_4bit_use_double_quant

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the frozen base is kept in, and its 4-bit layers multiply in."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32

    @property
    def ranks(self) -> list[int]:
        """The ranks of the run in turn; the last is the adapters' own. Raises InputError: the schedule is not a rising
        list of ranks."""
        parts = (self.rank_schedule or str(self.lora_r)).replace(" ", "").split(",")
        ranks = [int(part) for part in parts if part.isdecimal()]
        if len(ranks) < len(parts) or ranks != sorted(set(ranks)) or ranks[0] < 1:
            raise InputError(f"rank_schedule has to be rising ranks such as 4,8,16, got {self.rank_schedule!r}.")
        return ranks

    @property
    def distills(self) -> bool:
        """True if a teacher is asked at any time of the run."""
        return self.distill_weight > 0 or (self.distill_weight_end or 0) > 0


# Named sets of values. `published` is the usual recipe.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "max_steps": 12, "max_samples": 200, "max_length": 128, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "max_eval_tokens": 500, "max_test_tokens": 1_000, "held_out_share": 0.02,
        "eval_steps": 0.5, "save_steps": 0.5, "logging_steps": 2,
    },
    "demo": {
        "max_steps": 16, "max_samples": 800, "max_length": 96, "gradient_accumulation_steps": 1,
        "activation_checkpointing": False, "max_eval_tokens": 300, "max_test_tokens": 600, "eval_steps": 0.5,
        "save_steps": 0.5, "learning_rate": 1e-3, "logging_steps": 1,
    },
    "quick": {
        "max_steps": 60, "max_samples": 2_000, "max_length": 96, "gradient_accumulation_steps": 2,
        "activation_checkpointing": False, "max_eval_tokens": 600, "max_test_tokens": 2_000, "learning_rate": 5e-4,
        "logging_steps": 2,
    },
    "standard": {"max_steps": 300, "max_samples": 20_000, "logging_steps": 5},
    "long": {"num_train_epochs": 1.0},
    "published": {
        "distill_weight": 0.5, "temperature": 1.0, "rehearsal_ratio": 0.2, "lora_r": 8, "lora_alpha": 16.0,
        "lora_dropout": 0.05, "learning_rate": 2e-4, "max_length": 512, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8, "num_train_epochs": 3.0, "eval_strategy": "epoch", "save_strategy": "epoch",
    },
}  # fmt: skip
QloraLwfArguments.presets = PRESETS
