"""What a notebook trains: everything in which one notebook's cells differ from another's, in one place."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.catalogue import DATASETS, Dataset
from ..evaluation.forgetting import PROMPTS
from ..stages import dpo, pretrain, qlora_lwf, sft, sweep
from ..training.run import PreparedRun
from . import prompts
from .adapter_estimate import ADAPTERS
from .estimate import SMALL_MODELS, Reckoning
from .preference_estimate import PREFERENCE_PAIRS, TRIALS


@dataclass(frozen=True)
class NotebookStage:
    """One notebook's stage.

    Attributes:
        folder: where its runs are, in the storage.
        arguments: the dataclass of its settings.
        presets: name -> values of settings.
        prepare: loads data, tokenizer and model; trains nothing.
        run: trains.
        models: trained one after the other, on the same data.
        dataset: its name in the catalogue; "" where the panel offers several.
        continues: folders of the notebooks whose finished models it goes on with, the preferred one first.
        prompts: what the models are asked before and after.
        reckoning: how its panel finds out what the settings will cost.
        hidden: settings that the panel does not offer.
    """

    folder: str
    arguments: type
    presets: dict[str, dict[str, Any]]
    prepare: Callable[[Any], PreparedRun]
    run: Callable[..., Path]
    models: tuple[str, ...]
    dataset: str
    continues: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    reckoning: Reckoning = SMALL_MODELS
    hidden: tuple[str, ...] = ()

    @property
    def data(self) -> Dataset:
        return DATASETS[self.dataset]

    @property
    def fixed(self) -> dict[str, Any]:
        """Settings that the notebook decides, not the person before it."""
        names = {field.name for field in dataclasses.fields(self.arguments)}
        return {"dataset": self.dataset} if self.dataset and "dataset" in names else {}


PRETRAIN = NotebookStage(
    folder="01_pretrain",
    arguments=pretrain.PretrainArguments,
    presets=pretrain.PRESETS,
    prepare=pretrain.prepare,
    run=pretrain.pretrain,
    models=("newllm", "tiny-gpt2"),
    dataset="wikitext",
)
# A new model, where there is none to go on with, is as large as notebook 1 would make it.
CHAT_PRESETS = {
    name: {size: value for size, value in pretrain.PRESETS.get(name, {}).items() if size in sft.OF_THE_MODEL} | values
    for name, values in sft.PRESETS.items()
}
DIALOGUE = NotebookStage(
    folder="02_dailydialog",
    arguments=sft.SftArguments,
    presets=CHAT_PRESETS,
    prepare=sft.prepare,
    run=sft.sft,
    models=("newllm", "tiny-gpt2"),
    dataset="dailydialog",
    continues=("01_pretrain",),
    prompts=prompts.DIALOGUE,
)
INSTRUCTIONS = dataclasses.replace(
    DIALOGUE,
    folder="03_dolly",
    models=("newllm",),
    dataset="dolly",
    continues=("02_dailydialog", "01_pretrain"),
    prompts=prompts.INSTRUCTIONS,
)
# Its 208,000 conversations take minutes to turn into tokens: the shorter presets take the first ones.
CONVERSATION = dataclasses.replace(
    INSTRUCTIONS,
    folder="04_ultrachat",
    presets={
        **CHAT_PRESETS,
        "demo": {**CHAT_PRESETS["demo"], "max_samples": 5_000},
        "quick": {**CHAT_PRESETS["quick"], "max_samples": 20_000},
        "standard": {**CHAT_PRESETS["standard"], "num_train_epochs": 2.0, "max_samples": 100_000},
        "long": {**CHAT_PRESETS["long"], "num_train_epochs": 3.0, "dropout": 0.1},
    },
    dataset="ultrachat",
    continues=("03_dolly", "02_dailydialog", "01_pretrain"),
    prompts=prompts.CONVERSATION,
)
ADAPTER = NotebookStage(
    folder="05_qlora_lwf",
    arguments=qlora_lwf.QloraLwfArguments,
    presets=qlora_lwf.PRESETS,
    prepare=qlora_lwf.prepare_data,  # a look at the data needs no base in memory
    run=qlora_lwf.qlora_lwf,
    models=("tuned",),
    dataset="alpaca",
    prompts=PROMPTS,
    reckoning=ADAPTERS,
)
PREFERENCES = NotebookStage(
    folder="06_dpo",
    arguments=dpo.DpoArguments,
    presets=dpo.PRESETS,
    prepare=dpo.prepare,
    run=dpo.dpo,
    models=("tuned",),
    dataset="",
    reckoning=PREFERENCE_PAIRS,
)
EXPERIMENTS = dataclasses.replace(
    PREFERENCES,
    folder="07_dpo_experiments",
    arguments=sweep.SweepArguments,
    presets={
        "smoke": {**dpo.PRESETS["smoke"], "trials": 3, "max_steps": 6},
        "demo": {**dpo.PRESETS["demo"], "trials": 4, "max_steps": 30},
        "quick": {"trials": 8, "max_steps": 60},
        "standard": {"trials": 16, "num_train_epochs": 1.0},
        "long": {"trials": 40, "num_train_epochs": 3.0},
    },
    run=sweep.sweep,
    models=("trials",),
    reckoning=TRIALS,
    hidden=("beta", "learning_rate", "lora_r", "loss_type"),  # they are searched
)
