"""What a notebook trains: everything in which one notebook's cells differ from another's, in one place."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...adapters import qlora_lwf
from ...adapters.forgetting import PROMPTS
from ...preferences import dpo, sweep
from ...stages import pretrain, sft
from ...training.run import PreparedRun
from . import estimate, lookups


@dataclass(frozen=True)
class NotebookStage:
    """One notebook's stage; the dictionaries of `measure` and `phrases` go by the models' names."""

    folder: str  # where its runs are, in the storage
    arguments: type  # the dataclass of its settings
    presets: dict[str, dict[str, Any]]  # name -> values of settings
    prepare: Callable[[Any], PreparedRun]  # loads data, tokenizer and model; trains nothing
    models: tuple[str, ...]  # trained one after the other, on the same data
    dataset: str  # the one of the catalogue that the panel begins with; "" where there are pairs
    continues: tuple[str, ...] = ()  # notebooks whose finished models it goes on with, the preferred one first
    prompts: tuple[str, ...] = ()  # what the models are asked before and after
    # Raises InputError for settings that cannot be run; returns what a look outside adds to the run's identity.
    resolve: Callable[[Any], dict[str, Any]] = estimate.resolve_size
    measure: Callable[[dict[str, Any]], dict[str, Any]] = estimate.measure  # takes the models' settings
    # The cost line, as HTML phrases in English, of the models' settings and of what `measure` returned, or {}.
    phrases: Callable[[dict[str, Any], dict[str, Any]], list[str]] = estimate.phrases
    hidden: tuple[str, ...] = ()  # settings that the panel does not offer


# The published recipes are those of the published cell.
TEXT_PRESETS = {
    name: {"model_type": "newllm-reference", **values} if name.startswith("published") else values
    for name, values in pretrain.PRESETS.items()
}
PRETRAIN = NotebookStage(
    "01_pretrain", pretrain.PretrainArguments, TEXT_PRESETS, pretrain.prepare,
    models=("newllm", "tiny-gpt2"), dataset="wikitext",
)  # fmt: skip
# A new model, where there is none to go on with, is as large as notebook 1 would make it; a published one as published.
CHAT_PRESETS = {
    name: values
    if name.startswith("published")
    else {size: value for size, value in pretrain.PRESETS.get(name, {}).items() if size in sft.OF_THE_MODEL} | values
    for name, values in sft.PRESETS.items()
}
DIALOGUE = NotebookStage(
    "02_dailydialog", sft.SftArguments, CHAT_PRESETS, sft.prepare,
    models=("newllm", "tiny-gpt2"), dataset="dailydialog", continues=("01_pretrain",), prompts=(
        "Hello! How are you?", "What did you do today?", "What is your name?", "Do you like music?",
        "What are you going to do at the weekend?", "I am so tired.", "Can you help me, please?",
        "What would you like to eat?", "It is raining again.", "Goodbye, see you tomorrow!",
    ),
)  # fmt: skip
INSTRUCTIONS = dataclasses.replace(
    DIALOGUE, folder="03_dolly", models=("newllm",), dataset="dolly",
    continues=("02_dailydialog", "01_pretrain"), prompts=(
        "What is the Python module json for?", "What does os.path.join do in Python?",
        "Explain the Python class collections.Counter.", "Describe the Python module random.",
        "Name three animals that live in the sea.", "What is the capital of France?", "Why is the sky blue?",
        "Give me one tip for learning a language.", "Write a sentence about a cat.", "What is a computer?",
    ),
)  # fmt: skip
# Its 208,000 conversations take minutes to turn into tokens: the shorter presets take the first ones.
CONVERSATION = dataclasses.replace(
    INSTRUCTIONS, folder="04_ultrachat", dataset="ultrachat",
    continues=("03_dolly", "02_dailydialog", "01_pretrain"),
    prompts=(*DIALOGUE.prompts[:5], *INSTRUCTIONS.prompts[5:]),  # it has learned both
    presets={
        **CHAT_PRESETS,
        "demo": {**CHAT_PRESETS["demo"], "max_samples": 5_000},
        "quick": {**CHAT_PRESETS["quick"], "max_samples": 20_000},
        "standard": {**CHAT_PRESETS["standard"], "num_train_epochs": 2.0, "max_samples": 100_000},
        "long": {**CHAT_PRESETS["long"], "num_train_epochs": 3.0, "dropout": 0.1},
    },
)  # fmt: skip
ADAPTER = NotebookStage(
    "05_qlora_lwf", qlora_lwf.QloraLwfArguments, qlora_lwf.QloraLwfArguments.presets,
    qlora_lwf.prepare_data,  # a look at the data needs no base in memory
    models=("tuned",), dataset="alpaca", prompts=PROMPTS,
    resolve=lookups.resolve_lwf, measure=estimate.lwf_measure, phrases=estimate.lwf_phrases,
)  # fmt: skip
PREFERENCES = NotebookStage(
    "06_dpo", dpo.DpoArguments, dpo.DpoArguments.presets, dpo.prepare, models=("tuned",), dataset="",
    resolve=lookups.resolve_pairs, measure=estimate.pair_measure, phrases=estimate.pair_phrases,
)  # fmt: skip
EXPERIMENTS = dataclasses.replace(
    PREFERENCES, folder="07_dpo_experiments", arguments=sweep.SweepArguments, models=("trials",),
    hidden=("beta", "learning_rate", "scale_learning_rate", "lora_r", "loss_type"),  # they are searched
    presets={
        "smoke": {**dpo.DpoArguments.presets["smoke"], "trials": 3, "max_steps": 6},
        "demo": {**dpo.DpoArguments.presets["demo"], "trials": 4, "max_steps": 30},
        "quick": {"trials": 8, "max_steps": 60},
        "standard": {"trials": 16, "num_train_epochs": 1.0},
        "long": {"trials": 40, "num_train_epochs": 3.0},
    },
)  # fmt: skip
