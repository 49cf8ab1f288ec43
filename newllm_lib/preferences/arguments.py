"""The settings of stage 6, what they may be, and named sets of them."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from transformers import TrainingArguments

from ..adapters.arguments import AdapterArguments
from ..data.sources import Splits
from ..errors import InputError
from ..training.arguments import NO_EFFECT, setting
from ..training.device import Device
from .pairs import Preferences, load_preferences

DIALOGPT = "microsoft/DialoGPT-small"
METRICS = {  # of an evaluation: name -> True if more of it is better
    "loss": False, "accuracy": True, "margin": True, "chosen_logp": True, "rejected_logp": False, "kl": False
}  # fmt: skip
Loss = Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero"]
LOSS_TYPES: tuple[str, ...] = get_args(Loss)
# Named sets of values. `published` is the usual recipe; `standard` and `long` suit a model as large as DialoGPT-small,
# on a GPU.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"max_steps": 12, "sft_epochs": 0.5, "pairs": 120, "max_eval_tokens": 1_000, "eval_steps": 0.5,
              "save_steps": 0.5, "logging_steps": 2},
    "demo": {"max_steps": 100, "sft_epochs": 1.0, "max_eval_tokens": 2_000, "eval_steps": 0.25, "save_steps": 0.25,
             "logging_steps": 2},
    "quick": {"num_train_epochs": 1.5, "max_eval_tokens": 4_000, "eval_steps": 0.5, "save_steps": 0.5},
    "standard": {"learning_rate": 1e-4},
    "long": {"learning_rate": 1e-4, "num_train_epochs": 8.0},
    "published": {"num_train_epochs": 1.0, "sft_epochs": 0.0, "per_device_train_batch_size": 1,
                  "gradient_accumulation_steps": 4, "learning_rate": 5e-6, "max_length": 128, "beta": 0.1,
                  "sft_weight": 0.0, "lora_r": 8, "lora_alpha": 16.0, "lora_target_modules": "c_attn,c_proj"},
}  # fmt: skip


@dataclass
class DpoArguments(AdapterArguments):
    """Settings of stage 6."""

    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    metrics: ClassVar[dict[str, bool]] = METRICS | {f"train_{name}": more for name, more in METRICS.items()}
    refused: ClassVar[dict[str, str]] = AdapterArguments.refused | {
        "label_smoothing_factor": "of pairs it is --label_smoothing, with --loss_type robust"
    }

    model: str | None = setting(None, "Folder of a chat model, or id on the hub; none: DialoGPT-small.", "Model")
    data_source: Literal["auto", "hub", "offline", "file"] = setting(
        "auto", "Where model and pairs may come from; auto asks the hub for what is not given.", "Data"
    )
    data: str | None = setting(None, "Your own pairs: rows of prompt, chosen and rejected.", "Data")
    eval_data: str | None = setting(None, "Pairs to evaluate on; none: some of --data are held out.", "Data")
    test_data: str | None = setting(None, "Pairs that the figures are of; none: those to evaluate on.", "Data")
    dataset: str | None = setting(
        None, "generated-ja, hh-rlhf, or an id on the hub with prompt, chosen and rejected.", "Data"
    )
    pairs: int = setting(1000, "Pairs to generate, where none are given.", "Data", low=100, high=5400)
    pairs_seed: int = setting(0, "What the generated pairs are drawn from.")
    max_samples: int | None = setting(
        None, "Rows of the data to take, the first ones.", "Data", low=100, high=200_000, log=True
    )
    held_out_share: float | None = setting(None, "Held out; none: 15 %% of generated topics, 5 %% of other prompts.")

    beta: float = setting(
        0.3, "How strongly the reference holds the model.", "Preference", low=0.01, high=1.0, log=True
    )
    loss_type: Loss = setting(  # noqa: RUF009  a field
        "sigmoid", "DPO's own loss (sigmoid), or one of TRL's others.", "Preference"
    )
    sft_epochs: float = setting(
        2.5, "First passes over all answers, which make the reference. 0: none.", "Preference", low=0.0, high=10.0
    )
    new_tokens: int = setting(1200, "With sft_epochs: new tokens at most for what the tokenizer takes apart; 0: none.")
    sft_learning_rate: float | None = setting(None, "Its peak learning rate; none: 3e-3, above 10 M parameters 1e-4.")
    sft_weight: float = setting(
        1.0, "Weight of learning the chosen answers, to keep them likely.", "Preference", low=0.0, high=10.0
    )
    label_smoothing: float = setting(0.0, "With loss_type robust: share of pairs that are labelled wrongly.")

    save_merged: bool = setting(True, "Write the model with its adapters merged into it, too.", session=True)
    max_length: int = setting(256, "Tokens of prompt and answer at most.", "Data", low=64, high=1024, log=True)
    output_dir: str = setting("runs/dpo", "Folder of the run: settings, adapters, checkpoints, curves.")
    lora_r: int = setting(16, "Rank of the adapters: how much they can learn.", "Model", low=2, high=64, log=True)
    lora_alpha: float = setting(64.0, "Adapters are scaled by alpha / rank.", "Model", low=4, high=128, log=True)
    learning_rate: float = setting(2e-3, "Peak learning rate.", "Training", low=1e-6, high=1e-2, log=True)
    num_train_epochs: float = setting(3.0, "Passes over the pairs.", "Training", low=1, high=20)
    per_device_train_batch_size: int = setting(4, "Pairs per forward pass.", "Training", low=1, high=64, log=True)
    per_device_eval_batch_size: int = setting(16, "Pairs per forward pass in evaluation.")
    weight_decay: float = setting(0.0, "AdamW's weight decay.", "Training", low=0, high=1.0)
    max_eval_tokens: int = setting(10_000, "Tokens of held-out answers scored at an evaluation, and of training pairs.")
    max_test_tokens: int = setting(200_000, "Tokens of held-out answers scored at the end.")
    eval_on_start: bool = setting(True, "Evaluate the reference before the first update.")

    def __post_init__(self):
        super().__post_init__()
        if self.loss_type not in LOSS_TYPES:
            raise InputError(f"loss_type has to be one of {', '.join(LOSS_TYPES)}, got {self.loss_type!r}.")
        if self.label_smoothing > 0 and self.loss_type != "robust":
            raise InputError(
                f"label_smoothing {self.label_smoothing} is for loss_type robust, got {self.loss_type!r}; leave it out."
            )

    def precision_on(self, device: Device) -> str:
        """On a CPU always fp32: batches of pairs have ever new shapes, for each of which torch's bf16 products make and
        keep code of their own. That took twice the memory and was no faster."""
        return "fp32" if device.kind == "cpu" else super().precision_on(device)

    def load_preferences(self) -> Splits[Preferences]:
        """The pairs these settings name. Raises InputError: bad file or row, unknown dataset or source, or data out of
        reach."""
        names = ("dataset", "data_source", "data", "eval_data", "test_data", "skip_bad_rows", "pairs", "pairs_seed",
                 "held_out_share", "max_samples")  # fmt: skip
        return load_preferences(**{name: getattr(self, name) for name in names})


def values_for(kind: type, args: TrainingArguments) -> dict[str, Any]:
    """The fields of the dataclass `kind` as `args` has them, but for those that cannot be set."""
    names = [it.name for it in fields(kind) if it.init and it.name not in {*args.refused, *NO_EFFECT}]
    return {name: getattr(args, name) for name in names}
