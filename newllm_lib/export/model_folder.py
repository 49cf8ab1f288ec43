"""A model as others open it: all files that it needs and none of training's, with a card that says how."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from ..adapters.base_model import HUB_ID
from ..adapters.merge import merge
from ..adapters.qlora_lwf import FORGETTING_FILE
from ..errors import InputError
from ..preferences.dpo import MERGED_FOLDER, PREFERENCES_FILE
from ..training import checkpoint
from ..training.checkpoint import CURVES_FILE, METRICS_FILE
from ..training.disk import read_json, unwritten_folder
from ..training.run import CARD_FILE, how_to_use
from ..training.trained_model import read_config

# Of a run beside its card, and of the folder of its model.
OF_RUN = (
    checkpoint.SETTINGS_FILE,
    checkpoint.RESULTS_FILE,
    METRICS_FILE,
    CURVES_FILE,
    FORGETTING_FILE,
    PREFERENCES_FILE,
)
OF_MODEL = (
    checkpoint.ADAPTER_CONFIG, checkpoint.ADAPTER_WEIGHTS, "config.json", "generation_config.json",
    "model*.safetensors", "model.safetensors.index.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


def export_folder(path: Path, output: str | Path | None = None, int8: bool = False, base: str | None = None) -> Path:
    """Write what `model_files` names into the folder `output`, by default NAME-transformers beside `path`. Raises
    InputError: it is there, or cannot be written to; the run is not finished, or the base of its adapters is gone."""
    read_card(path)  # it has to be a finished run's
    output = output or path.with_name(f"{path.name}-transformers")
    with unwritten_folder(output) as (partial, target), model_files(path, target.name, base) as files:
        for name, content in files.items():
            if isinstance(content, bytes):
                (partial / name).write_bytes(content)
            else:
                shutil.copy2(content, partial / name)
    return target


@contextmanager
def model_files(folder: Path, place: str, base: str | None = None) -> Iterator[dict[str, Path | bytes]]:
    """Name -> file of all that `AutoModelForCausalLM` needs to open the model; its card opens it from `place`, where
    it will lie. Raises InputError: the base of adapters is not there."""
    with _whole_model(folder, base) as model:
        files: dict[str, Path | bytes] = {path.name: path for path in _like(OF_RUN, folder) + _like(OF_MODEL, model)}
        files[CARD_FILE] = _card(folder, model, place).encode()
        yield files


def _like(patterns: Sequence[str], folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and any(fnmatch(path.name, it) for it in patterns)]


@contextmanager
def _whole_model(folder: Path, where: str | None) -> Iterator[Path]:
    """The folder of a model that needs no other which is not on the hub: of adapters on such a base the model that they
    were merged into, or else are now."""
    base = (read_json(folder / checkpoint.ADAPTER_CONFIG) or {}).get("base_model_name_or_path")
    merged = folder / MERGED_FOLDER
    if checkpoint.has_adapters(folder) and merged.is_dir():
        yield merged
    elif not checkpoint.has_adapters(folder) or (HUB_ID.fullmatch(str(base)) and not Path(base).is_dir()):
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix=".newllm-", dir=folder.parent) as place:
            yield merge(folder, Path(place) / MERGED_FOLDER, where)


def _card(folder: Path, model: Path, place: str) -> str:
    """The card of a run, with Python that opens the model from `place`."""
    is_whole = not checkpoint.has_adapters(model)
    talks = (model / "chat_template.jinja").is_file()
    lines = how_to_use(place, read_config(model) if is_whole else None, talks)
    card = (folder / CARD_FILE).read_text(encoding="utf-8")
    return re.sub(r"```python\n.*?```", lambda _: lines, card, count=1, flags=re.DOTALL)


def read_card(folder: Path) -> dict[str, str]:
    """What the card of a finished run says: text -> where it is from and its licence, metric -> its value. Raises
    InputError: there is no card, or it leaves out a licence or the metrics of the run."""
    path = folder / CARD_FILE
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    rows, texts = dict(re.findall(r"^\| (.+?) \| (.+) \|$", card, re.MULTILINE)), ("trained on", "held out")
    metrics = {name: rows[name] for name in checkpoint.read_results(folder) or () if name in rows}
    missing = [name for name in texts if "(licence: " not in rows.get(name, "")] + ["metrics"] * (not metrics)
    if missing:
        problem = f"does not say everything that a user of the model has to know ({', '.join(missing)})"
        remedy = "delete results.json beside it and run the training again, which then only scores the model"
        raise InputError(f"{str(path)!r} {problem}; {remedy}.", "NL-404")
    return {name: rows[name] for name in (*texts, "tested on") if name in rows} | metrics
