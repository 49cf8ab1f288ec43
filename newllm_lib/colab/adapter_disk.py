"""What runs of adapters take on disk, and so on Drive: told before they start."""

from pathlib import Path

from transformers import PreTrainedConfig

from ..training.base_model import BaseModel
from ..training.offline_gemma import NAME, converted_folder
from .languages import text
from .notices import size

BYTES_OF_A_TYPE = 127  # of a tokenizer's file: Gemma's; most have fewer


def tokenizer_bytes(base: BaseModel, config: PreTrainedConfig) -> int:
    """Of its file, where that is on this disk; else reckoned from the vocabulary."""
    folder = converted_folder() if base.path == NAME else Path(base.path)
    file = folder / "tokenizer.json"
    return file.stat().st_size if file.is_file() else BYTES_OF_A_TYPE * config.vocab_size


def disk_phrase(count: int) -> str:
    return text("<b>{disk}</b> on disk", disk=size(count))
