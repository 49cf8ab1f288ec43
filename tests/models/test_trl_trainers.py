"""Every trainer of the installed TRL takes a step with our recurrent models, given by their path."""

import importlib
import inspect

import pytest
from chats import untrained_chat
from datasets import Dataset
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer

trl = pytest.importorskip("trl")
# Before 1.0 TRL looks for the class of a folder's model in transformers alone; ORPO and CPO take no path.
TAKE_PATHS = (
    set() if Version(trl.__version__) < Version("1.0") else {"SFT", "DPO", "KTO", "GRPO", "RLOO", "GKD", "OnlineDPO"}
)
pytestmark = pytest.mark.slow
MESSAGES = [[{"role": "user", "content": said}, {"role": "assistant", "content": said[::-1]}] for said in ("ab", "cde")]
PROMPTS = {"prompt": ["hello", "good day"]}
PAIRS = {**PROMPTS, "chosen": [" to you", " as well"], "rejected": [" no", " never"]}
SHORT = {"max_length": 48}
GENERATES = {"num_generations": 2, "max_completion_length": 4}
REWARD = {"reward_funcs": lambda completions, **_: [float(number) for number in range(len(completions))]}
LABELLED = {**PROMPTS, "completion": [" to you", " no"], "label": [True, False]}
# name: (rows, settings of its config, arguments of the trainer)
TRAINERS = {
    "SFT": ({"messages": MESSAGES}, SHORT, {}),
    "DPO": (PAIRS, SHORT, {}),
    "KTO": (LABELLED, SHORT, {}),
    "ORPO": (PAIRS, SHORT, {}),
    "CPO": (PAIRS, SHORT, {}),
    "GRPO": (PROMPTS, GENERATES, REWARD),
    "RLOO": (PROMPTS, GENERATES, REWARD),
    "GKD": ({"messages": MESSAGES}, {**SHORT, "max_new_tokens": 4}, {"teacher_model": None}),
    "OnlineDPO": (PROMPTS, {"max_new_tokens": 4}, REWARD),
}


def trainer_of(name: str):
    """The trainer and its config, where this TRL keeps them; or skips."""
    for place in ("trl", f"trl.experimental.{name.lower().replace('onlinedpo', 'online_dpo')}"):
        try:
            module = importlib.import_module(place)
            return getattr(module, f"{name}Trainer"), getattr(module, f"{name}Config")
        except (ImportError, AttributeError, RuntimeError):  # RuntimeError: a part of TRL that cannot be imported
            continue
    pytest.skip(f"the installed TRL has no {name}Trainer that can be imported")


@pytest.mark.parametrize("model_type", ["newllm", "lstm"])
@pytest.mark.parametrize("name", TRAINERS)
def test_a_step_moves_the_weights(name, model_type, tmp_path):
    trainer_class, config_class = trainer_of(name)
    folder = str(untrained_chat(tmp_path / "model", model_type))
    rows, settings, arguments = TRAINERS[name]
    known = inspect.signature(config_class).parameters
    common = {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": "none"}
    common |= {
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": True,
        "bf16": False,
    }
    settings = {option: value for option, value in settings.items() if option in known}
    config = config_class(output_dir=str(tmp_path / "run"), **common, **settings)
    if "teacher_model" in arguments:
        arguments = {"teacher_model": AutoModelForCausalLM.from_pretrained(folder)}
    if name == "RLOO" and not TAKE_PATHS:
        pytest.skip("this TRL makes the reference model of RLOO from a path, whatever it is given")
    if name == "DPO" and not TAKE_PATHS:
        arguments = {"ref_model": AutoModelForCausalLM.from_pretrained(folder)}
    trainer = trainer_class(
        model=folder if name in TAKE_PATHS else AutoModelForCausalLM.from_pretrained(folder),
        args=config,
        train_dataset=Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        **arguments,
    )
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 1
    moved = [name for name, parameter in trainer.model.named_parameters() if (parameter != before[name]).any()]
    assert len(moved) == len(before)
