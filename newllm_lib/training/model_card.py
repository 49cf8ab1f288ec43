"""The model card of a run: what was trained, on what, with which result, and how to do it again."""

import platform
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerState

from .. import __version__
from ..data.sources import Splits
from ..data.text import Text
from ..errors import InputError
from .arguments import StageArguments
from .callbacks import CURVES_FILE, METRICS_FILE
from .checkpoint import SETTINGS_FILE, read_results
from .disk import write_text
from .trained_model import BaseModel

CARD_FILE = "README.md"
CARD = """---
library_name: transformers
pipeline_tag: text-generation
license: other
---
# {model_type}, {parameters:,} parameters

A small language model trained {start} with New-LLM {version}. {purpose}, and what it says is not to be relied on.

| | |
|---|---|
| trained on | {train_origin} (licence: {train_licence}) |
| held out | {validation_origin} (licence: {validation_licence}) |
| updates | {updates:,}, {rows} |
| tokenizer | {tokenizer}, {vocab_size:,} types |

## Metrics on the held-out text

| metric | value |
|---|---|
{metrics}

![learning curves]({curves})

## Use

```python
import newllm_lib.models
from transformers import pipeline

generator = pipeline("text-generation", model="path/to/this/folder")
print(generator({prompt}, max_new_tokens=40)[0]["generated_text"])
```

All settings are in `{settings}`, the log of the run in `{log}`. Trained with Python {python}, torch {torch} and
transformers {transformers}.
"""


def write_model_card(
    folder: Path,
    args: StageArguments,
    splits: Splits[Text],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    metrics: dict[str, Any],
    state: TrainerState,
    base: BaseModel | None = None,
) -> None:
    """Write README.md into the run folder; a model whose tokenizer has a chat template is one to talk to. `base`: what
    adapters are trained on; its licence binds them, too."""
    unknown = "not stated: the tokenizer has unknown words"
    shown = {name: unknown if it is None else f"{it:,.4f}".rstrip("0").rstrip(".") for name, it in metrics.items()}
    talks = tokenizer.chat_template is not None
    start = getattr(args, "model", None)
    begun = "from scratch" if start is None else f"from another one (`{Path(start).name}`)"
    if base is not None:
        begun = f"as adapters on {base.name} (licence: {base.licence})"
    card = CARD.format(
        start=begun, version=__version__, model_type=args.model_type, parameters=model.num_parameters(),
        purpose="It answers as the conversations it has seen" if talks else "It continues text; it is no assistant",
        prompt='[{"role": "user", "content": "Hello"}]' if talks else '"The "',
        train_origin=splits.train.origin, train_licence=splits.train.licence,
        validation_origin=splits.validation.origin, validation_licence=splits.validation.licence,
        updates=state.global_step,
        rows=f"{args.effective_batch_size} rows of {'at most ' if base else ''}{args.max_length} tokens each",
        tokenizer=getattr(args, "tokenizer", "the base model's"), vocab_size=model.config.vocab_size,
        metrics="\n".join(f"| {name} | {value} |" for name, value in shown.items()),
        curves=CURVES_FILE, settings=SETTINGS_FILE, log=METRICS_FILE,
        python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__,
    )  # fmt: skip
    write_text(folder / CARD_FILE, card)


def read_card(folder: Path) -> dict[str, str]:
    """What the card of a finished run says: text -> where it is from and its licence, metric -> its value. Raises
    InputError: there is no card, or it leaves out a licence or the metrics of the run."""
    path = folder / CARD_FILE
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", card, re.MULTILINE))
    texts = {name: rows[name] for name in ("trained on", "held out") if "(licence: " in rows.get(name, "")}
    metrics = {name: rows[name] for name in read_results(folder) or () if name in rows}
    missing = [name for name in ("trained on", "held out") if name not in texts] + ["metrics"] * (not metrics)
    if missing:
        raise InputError(
            f"{str(path)!r} does not say everything that a user of the model has to know ({', '.join(missing)}); "
            "delete results.json beside it and run the training again, which then only scores the model.",
            "NL-404",
        )
    return texts | metrics
