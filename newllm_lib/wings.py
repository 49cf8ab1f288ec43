"""Parts of the library that the core can do without: `adapters` (LoRA on a pretrained model, learning without
forgetting), `preferences` (DPO), `background` (start, status, stop), and `kernels`, for which models/gpu.py looks. The
core imports the modules of the first three only here, when they are asked for."""

from importlib import import_module
from types import ModuleType

from .errors import InputError


def wing(name: str) -> ModuleType:
    """The module `name` of a wing, such as "preferences.dpo". Raises InputError: this copy of the library lacks the
    wing."""
    package = f"{__package__}.{name.split('.')[0]}"
    try:
        return import_module(f"{__package__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise InputError(f"this copy of newllm has no {package}; install the whole library for it.") from error
