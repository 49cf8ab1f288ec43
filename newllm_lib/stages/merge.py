"""Adapters and the base they were trained on, written as one plain model that needs neither PEFT nor bitsandbytes."""

import logging
import os
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer

from ..errors import InputError
from ..training.checkpoint import RESULTS_FILE, SETTINGS_FILE, check_model_folder, has_adapters, read_settings
from .evaluate import open_adapted

KEPT_FILES = (SETTINGS_FILE, RESULTS_FILE, "README.md", "generation_config.json")

logger = logging.getLogger(__name__)


def merge(path: str | Path, output_dir: str | Path) -> Path:
    """Write the tuned model in `path` into `output_dir` as a whole model with its tokenizer, in 16 bit, in fp32 where
    it was tuned by DPO, whose steps are smaller than 16 bit can tell. 4-bit weights are what the adapters were trained
    on: they are unpacked, and the adapters are added to them.

    Raises:
        InputError: `path` holds no adapters, or `output_dir` is in use.
    """
    folder, target = check_model_folder(path), Path(output_dir).expanduser()
    if not has_adapters(folder):
        raise InputError(f"{str(path)!r} holds a whole model, no adapters: there is nothing to merge.")
    if target.exists():
        raise InputError(f"output_dir {str(output_dir)!r} exists; choose another --output_dir.")
    settings = read_settings(folder)
    plain = open_adapted(folder, settings["run"], settings["session"], unpack=True).float().merge_and_unload()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        dtype = torch.float32 if settings["run"]["stage"] == "dpo" else torch.bfloat16
        plain.to(dtype).save_pretrained(temporary)
        AutoTokenizer.from_pretrained(folder).save_pretrained(temporary)
        for name in KEPT_FILES:
            if (folder / name).exists():
                shutil.copy2(folder / name, temporary / name)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("Merged: a plain model of %s parameters is in %s.", f"{plain.num_parameters():,}", target)
    return target
