"""A trained model, opened from its folder."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..data.files import content_hash
from ..errors import InputError
from ..wings import wing
from .arguments import ModelArguments
from .checkpoint import ADAPTER_WEIGHTS, CHECKPOINT_NAME, SETTINGS_FILE, check_model_folder, has_adapters, read_settings
from .device import find_device
from .model_folder import RunSettings, check_tokens_fit, read_tokenizer, read_weights


@dataclasses.dataclass
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


def open_model(path: str | Path, base: str | None = None, unpack: bool = False) -> TrainedModel:
    """Load a finished run onto the device that is there.

    Args:
        base: where the model is now that adapters were trained on; None: where it was.
        unpack: its 4-bit weights as the plain numbers they stand for.

    Raises:
        InputError: the folder is not one of our trained models, or damaged.
    """
    folder = run_folder(path)
    settings = read_settings(folder)
    run, session = (RunSettings(settings[part]) for part in ("run", "session"))
    tokenizer = read_tokenizer(folder)
    if has_adapters(folder):
        model = wing("adapters.base_model").open_adapted(folder, run, session, base, unpack)
    else:
        model = read_weights(folder, dtype=torch.float32).to(find_device().kind)
    check_tokens_fit(model, tokenizer, folder)
    return TrainedModel(folder, model, tokenizer, run, session)


def run_folder(path: str | Path) -> Path:
    """The folder of one of our trained models. Raises InputError: it is none; if it is a checkpoint, the sentence names
    its run."""
    folder = Path(path).expanduser()
    if CHECKPOINT_NAME.fullmatch(folder.name) and (folder.parent / SETTINGS_FILE).exists():
        raise InputError(
            f"{str(path)!r} is a checkpoint, which its run goes on from; name the run, {str(folder.parent)!r}, after "
            "it has come to its end.",
            "NL-404",
        )
    return check_model_folder(folder)


@contextlib.contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """The base of a tuned model, for as long as the context lasts. PEFT's own `disable_adapter` takes stock of all
    layers before and after: 60 ms for Gemma-2B's, more than a GPU needs for the base."""
    layers = [module for module in model.modules() if isinstance(vars(module).get("_disable_adapters"), bool)]
    assert layers or not hasattr(model, "disable_adapter"), "PEFT switches its adapters off in another way"
    were_off = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was_off in zip(layers, were_off, strict=True):
            layer._disable_adapters = was_off


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
    """(the model to learn from that the settings name, or None; what it adds to the identity of a run). Raises
    InputError: its tokenizer is not `tokenizer`, or its window is shorter than a row."""
    if args.teacher is None:
        return None, {}
    teacher = open_model(args.teacher)
    if teacher.tokenizer.backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str():
        raise InputError(f"teacher {args.teacher!r} has another tokenizer than the model; both need the same.")
    window = getattr(teacher.model.config, "n_positions", args.max_length)
    if window < args.max_length:
        raise InputError(f"teacher {args.teacher!r} reads {window} tokens; choose --max_length {window} or less.")
    return teacher.model, {"teacher_weights": weights_hash(args.teacher)}
