"""What the stages that train adapters have in common."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .arguments import StageArguments, check_intervals, setting


@dataclass
class AdapterArguments(StageArguments):
    """Settings of LoRA adapters on a pretrained model."""

    refused: ClassVar[dict[str, str]] = StageArguments.refused | {
        "neftune_noise_alpha": "what the model is held to is the model itself, which would hear the noise, too"
    }

    model: str | None = None  # what it is, the stages say
    lora_r: int = setting(8, "Rank of the adapters: how much they can learn.", group="Model", low=2, high=64, log=True)
    lora_alpha: float = setting(
        16.0, "The adapters' part is scaled by alpha / rank.", group="Model", low=4, high=128, log=True
    )
    lora_target_modules: str = setting(
        "all-linear", "Layers with adapters: all-linear, or names such as q_proj,v_proj."
    )
    repetition_penalty: float = setting(
        1.1, "Of the answers this model gives; above 1: fewer repetitions.", group="Answers", low=1.0, high=1.5
    )

    def __post_init__(self):
        super().__post_init__()
        check_intervals(self, ADAPTER_INTERVALS)
        if self.model is not None and Path(self.model).expanduser().is_dir():
            self.model = str(Path(self.model).expanduser().absolute())  # the finished run is opened from elsewhere

    @property
    def model_type(self) -> str:
        """What the run's curves and tables call the model."""
        return "tuned"

    def updates(self, examples: int) -> int:
        """How many the run makes over this many examples an epoch; the last one of an epoch may be smaller, none is
        dropped."""
        per_epoch = -(-examples // self.effective_batch_size)
        return self.max_steps if self.max_steps > 0 else math.ceil(self.num_train_epochs * per_epoch)

    @property
    def targets(self) -> str | list[str]:
        """`lora_target_modules` as PEFT takes it."""
        names = [name.strip() for name in self.lora_target_modules.split(",") if name.strip()]
        return names[0] if names == ["all-linear"] else names


ADAPTER_INTERVALS = (("lora_r", 1, 1024), ("lora_alpha", 0, 4096), ("repetition_penalty", 0.5, 10.0))
