"""Adapters and the base they were trained on, written as one plain model that needs neither PEFT nor bitsandbytes."""

import logging
import shutil
from pathlib import Path

import torch

from ..errors import InputError
from ..progress import Progress
from ..training.checkpoint import RESULTS_FILE, SETTINGS_FILE, check_model_folder, has_adapters
from ..training.disk import unwritten_folder, write_json
from ..training.trained_model import open_model

KEPT_FILES = (RESULTS_FILE, "README.md", "generation_config.json")

logger = logging.getLogger(__name__)


def merge(path: str | Path, output: str | Path, base: str | None = None) -> Path:
    """Write the tuned model in `path` into `output` as a whole model with its tokenizer, in 16 bit, in fp32 where
    it was tuned by DPO, whose steps are smaller than 16 bit can tell. 4-bit weights are what the adapters were trained
    on: they are unpacked, and the adapters are added to them. `base` is where they are now, None where they were.

    Raises:
        InputError: `path` holds no adapters, or `output` is in use or cannot be written to.
    """
    folder = check_model_folder(path)
    if not has_adapters(folder):
        raise InputError(f"{str(path)!r} holds a whole model, no adapters: there is nothing to merge.")
    with unwritten_folder(output) as (partial, target):
        trained = open_model(folder, base, unpack=True)
        with Progress(desc="merging"):
            plain = trained.model.float().merge_and_unload()
            dtype = torch.float32 if trained.run["stage"] == "dpo" else torch.bfloat16
            plain.to(dtype).save_pretrained(partial)
            trained.tokenizer.save_pretrained(partial)
            write_json(partial / SETTINGS_FILE, {"run": trained.run, "session": trained.session})
            for name in KEPT_FILES:
                if (folder / name).exists():
                    shutil.copy2(folder / name, partial / name)
    logger.info("Merged: a plain model of %s parameters is in %s.", f"{plain.num_parameters():,}", target)
    return target
