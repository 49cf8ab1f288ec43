"""What a panel's settings lead to: data, earlier models, a pretrained model; looked up once a session."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from transformers import Gemma3TextConfig, PreTrainedConfig

from ...adapters import offline_gemma
from ...adapters.arguments import AdapterArguments
from ...adapters.base_model import base_config, find_base_model
from ...adapters.memory_budget import ModelSizes, check_memory, is_target, model_sizes
from ...adapters.qlora_lwf import QloraLwfArguments
from ...data.files import check_file, content_hash, read_rows
from ...data.mix import parse_mix, same_data
from ...data.sources import DATASETS, HubProblem, HubSource, find_data, find_dataset, first_answering
from ...data.stand_ins import identity_of
from ...errors import InputError
from ...preferences.arguments import DIALOGPT, DpoArguments
from ...preferences.dpo import check_window
from ...preferences.generator import generator_identity
from ...preferences.pairs import GENERATED
from ...training.checkpoint import RESULTS_FILE, is_of_earlier_version, read_results
from ...training.trained_model import BaseModel
from ..page.languages import text
from ..storage import name_of

STAND_INS = {"chitchat": "the ChitChat conversations", "documentation": "Python's own documentation"}
# The package's model before it is converted for the first time; afterwards its own config is read.
OFFLINE_CONFIG = {
    "vocab_size": 262_144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256,
}  # fmt: skip
SMALL_FOLDER = "06_chat_model"


def resolve_source(
    dataset: str, data_source: str, data: str | None, eval_data: str | None = None, test_data: str | None = None
) -> tuple[str, str]:
    """("hub" | "offline" | "file", what the user should know about it). `auto` is settled here, so that a later session
    takes the same as the run's settings say. Raises InputError: a bad file, or no data within reach."""
    if data_source in ("hub", "random"):
        return data_source, ""
    if data_source == "file":
        if not data:
            raise InputError("data is set to 'my file': enter the path of the file.")
        check_file(data, "data")
        for name, path in (("eval_data", eval_data), ("test_data", test_data)):
            if path:
                check_file(path, name)
        return "file", ""
    found = find_data(dataset, DATASETS[dataset], data_source, data, lambda entry: _answering(dataset))
    if found.source == "hub":
        return "hub", f"Data: auto takes {dataset} from the hub."
    stand_in = STAND_INS[DATASETS[dataset].offline]
    if data_source == "auto":
        return "offline", f"Data: auto takes {stand_in} offline, for the hub was not reached ({found.problem})."
    return "offline", f"Data: {stand_in} stand in for {dataset}."


def check_mix(mix: str, dataset: str, source: str) -> None:
    """Raise InputError if what is mixed in is out of reach, or is what it is mixed into."""
    name, _ = parse_mix(mix)
    resolve_source(name, source, None)
    stand_in = DATASETS[name].offline
    if name == dataset or (source == "offline" and stand_in == DATASETS[dataset].offline):
        raise same_data(mix, STAND_INS[stand_in] if source == "offline" else dataset)


def dataset_of_file(dataset: str, path: str) -> str | None:
    """`dataset` if the file's first row has its columns, else None. Raises InputError: it cannot be read."""
    file = check_file(path, "data", rows_of="conversations")
    _, row = next(iter(read_rows(file, "data")), ("", None))
    return dataset if isinstance(row, dict) and DATASETS[dataset].columns[0] in row else None


@functools.lru_cache(maxsize=32)
def _answering(dataset: str) -> tuple[HubSource | None, HubProblem | None]:
    return first_answering(DATASETS[dataset])


def data_identity(args) -> str:
    """Changes when the data do: the files' content, what pairs are made from, the pinned revision, or the package's
    release."""
    if args.data is not None:
        return " ".join(file_identity(path) for path in (args.data, args.eval_data, args.test_data) if path is not None)
    dataset = getattr(args, "dataset", "wikitext")  # notebook 1's, which has no such setting
    if dataset in (None, GENERATED):
        return generator_identity(args.pairs, args.pairs_seed, args.held_out_share)
    names = [dataset, *([parse_mix(args.mix)[0]] if getattr(args, "mix", None) else [])]
    if args.data_source == "hub":
        sources = [(DATASETS.get(name) or find_dataset(name)).sources[0] for name in names]
        is_tested = any("test" in it.splits and "validation" not in it.splits for it in sources)
        # What is held out is another text then.
        return " ".join([*(it.revision for it in sources), *(["and its test split"] if is_tested else [])])
    if args.data_source == "random":
        return identity_of("random")
    return " ".join(identity_of(DATASETS[name].offline) for name in names)


def file_identity(path: str) -> str:
    status = Path(os.path.expanduser(path)).stat()
    return _file_hash(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _file_hash(path: str, size: int, modified: int) -> str:
    """The hash of the file's content, taken anew when its size or time has changed."""
    return content_hash(Path(os.path.expanduser(path)))


def finished_runs(runs: str | Path, folders: Sequence[str], models: Sequence[str]) -> list[Path]:
    """Run folders in which all `models` are finished and can be opened, by notebook in that order, the newest first."""

    def is_usable(model: Path) -> bool:
        return read_results(model) is not None and not is_of_earlier_version(model)

    def finished_at(run: Path) -> float:
        return max((run / model / RESULTS_FILE).stat().st_mtime for model in models)

    found = []
    for folder in folders:
        usable = [run for run in (Path(runs) / folder).glob("*") if all(is_usable(run / model) for model in models)]
        found += sorted(usable, key=finished_at, reverse=True)
    return found


def start_sentence(start: Path | None, folders: Sequence[str], models: Sequence[str]) -> str:
    several = "All models" if len(models) > 2 else "Both models"
    if start is not None:
        they_go_on = f"{several} go on" if len(models) > 1 else f"{models[0]} goes on"
        return f"{they_go_on} from {start.parent.name}/{start.name}."
    numbers = text(" or ").join(str(int(folder.split("_")[0])) for folder in folders)
    they_are = f"{several.lower()} are" if len(models) > 1 else f"{models[0]} is"
    return f"No finished model of notebook {numbers} is used: {they_are} trained from scratch."


def chat_models(runs: str | Path) -> list[Path]:
    """The folders of the finished chat models in the storage, the preferred one first."""
    # Only notebook 2 makes a TinyGPT2, which DialoGPT resembles most.
    order = ["02_dailydialog/tiny-gpt2", "04_ultrachat/newllm", "03_dolly/newllm", "02_dailydialog/newllm"]
    places = [place.split("/") for place in (*order, f"{SMALL_FOLDER}/tiny-gpt2")]
    return [run / model for folder, model in places for run in finished_runs(runs, [folder], [model])]


def choose_model(model: str | None, data_source: str, runs: str | Path) -> tuple[str | None, str]:
    """(what is tuned: a folder, an id on the hub, or None where there is no chat model yet; how it was chosen): the
    named one; else with "offline" the newest here, with "hub" the hub's, otherwise the hub's where it is reached.
    Raises InputError: it has to come from the hub, and cannot."""
    if model is not None:
        return model, ""
    why = ""
    if data_source != "offline":
        try:
            return base_named(DIALOGPT).path, ""
        except InputError as error:
            if data_source == "hub":
                raise
            why = f" ({str(error).split(';')[0]})"
    here = chat_models(runs)
    if not here:
        return None, f"No chat model is there yet{why}."
    return str(here[0]), f"The newest chat model here is tuned: {name_of(here[0])}{why}."


def base_of(args: AdapterArguments) -> BaseModel:
    """The base model that these settings lead to. Raises InputError: there is none within reach."""
    is_offline = args.data_source == "offline"
    if args.model is not None:
        return base_named(args.model, is_offline)
    in_4_bit = isinstance(args, QloraLwfArguments) and args.in_usual_4bit
    return base_named(None, is_offline, in_4_bit, args.use_cpu)


def base_named(model: str | None, is_offline: bool = False, *how: bool) -> BaseModel:
    """`find_base_model`, asked once a session. Raises InputError: there is none within reach."""
    folder = Path(os.path.expanduser(model or ""))
    weights = [path.stat() for path in sorted(folder.glob("*.safetensors"))] if model else []
    # It is found anew when its weights change.
    found = _find(model, (is_offline, *how), tuple((status.st_size, status.st_mtime_ns) for status in weights))
    if isinstance(found, InputError):
        raise found.with_traceback(None)
    return found


@functools.lru_cache(maxsize=32)
def _find(model: str | None, how: tuple[bool, ...], stamp: tuple) -> BaseModel | InputError:
    """The model, or why there is none: what has failed is not tried again with every move of a slider."""
    try:
        return find_base_model(model, *how)
    except InputError as error:
        return error


def config_of(base: BaseModel) -> PreTrainedConfig:
    """The base's sizes; its weights are not downloaded for them. Raises InputError: they cannot be read."""
    if base.path == offline_gemma.NAME and not offline_gemma.converted_folder().exists():
        return Gemma3TextConfig(**OFFLINE_CONFIG)
    return base_config(base)


@functools.lru_cache(maxsize=8)
def sizes_of(base: BaseModel) -> ModelSizes:
    return model_sizes(config_of(base))


def count_trainable(args: AdapterArguments, base: BaseModel) -> int:
    """Parameters of the adapters: rank times inputs and outputs of every layer that gets one."""
    layers = [layer for layer in sizes_of(base).linear if is_target(layer.name, args.targets)]
    return args.lora_r * sum(layer.inputs + layer.outputs for layer in layers)


def resolve_lwf(args: QloraLwfArguments) -> dict[str, str]:
    """Settle which base is found, for all cells of a session. Returns what the run's identity gets: the base's weights
    and the user's own text to rehearse. Raises InputError: no such model or file, or it does not fit the GPU."""
    base = base_of(args)
    args.model, found = base.path, {"base": base.identity}
    for name in ("rehearsal_data", "rehearsal_eval_data"):
        if (path := getattr(args, name)) is not None:
            found[name] = file_identity(str(check_file(path, name)))
    check_memory(args, sizes_of(base))
    return found


def resolve_pairs(args: DpoArguments) -> dict[str, str]:
    """For the run's identity: the tuned model's weights. Raises InputError: there is none, or none of that kind."""
    base = base_of(args)
    check_window(args, base, config_of(base))
    if count_trainable(args, base) == 0:
        layers = args.lora_target_modules
        raise InputError(f"{base.name} has no layers called {layers}, as this preset wants; choose another preset.")
    return {"base": base.identity}
