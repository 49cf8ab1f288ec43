"""Train in the background: in a session of its own, which outlives the cell or the terminal that has started it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..stages.pretrain import PRESETS as PRETRAIN_PRESETS
from ..stages.sft import OF_THE_MODEL
from ..stages.sft import PRESETS as SFT_PRESETS
from ..training.checkpoint import SETTINGS_FILE, read_results, read_settings
from ..training.disk import TIME_FORMAT, own_note, write_json
from ..wings import wing
from .owner import find_owner, is_here, log_file, started_file

NEEDS_MODEL = ("sft", "dpo")  # the stages that start from a model of ours where none is named
CHAT_BASE = "tiny-gpt2"  # what preferences are taught to where there is no hub


def start(words: Sequence[str], args: Any) -> Iterator[str]:
    """Train what the command `words` says, with `args` its settings, after what it starts from. Yields what was started
    and where it can be watched. Raises InputError: one of the runs is being worked on."""
    folder = Path(args.output_dir).absolute()
    before, found = bases(words[0], args)
    commands = [*before, [*words, *found]]
    folders = [Path(command[command.index("--output_dir") + 1]).absolute() for command in before]
    for run in (*folders, folder):
        if (owner := find_owner(run)) and is_here(owner[1]):
            name, who = os.path.relpath(run), f"process {owner[1]['process']}, since {owner[1]['since']}"
            remedy = f"newllm status {name} shows how far it is, newllm stop {name} ends it, saved"
            raise InputError(f"output_dir {name!r} is in use by {who}; {remedy}.", "NL-404")
    log = log_file(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"--- {time.strftime(TIME_FORMAT)} newllm {' '.join(words)}\n")
        stream.flush()
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", __package__, json.dumps(commands)],
            stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    write_json(started_file(folder), {**own_note(), "process": process.pid})
    for command in before:
        yield f"First it trains what {words[0]} starts from: newllm {' '.join(command)}"
    newllm = "newllm" if shutil.which("newllm") else f"{sys.executable} -m newllm_lib"
    name = os.path.relpath(folder)
    yield f"Started in the background, as process {process.pid}."
    yield f"  its log     {os.path.relpath(log)}"
    yield f"  its state   {newllm} status {name} --follow"
    yield f"  end it      {newllm} stop {name}      (it is saved, and starting it again goes on)"


def bases(stage: str, args: Any) -> tuple[list[list[str]], list[str]]:
    """(the commands that train what the stage starts from, where nobody has; the flag that names it to the stage). None
    if the settings name a model or describe a new one, or the hub has what the stage takes by itself."""
    folder, stage = Path(args.output_dir), args.stage if stage == "sweep" else stage
    if stage not in NEEDS_MODEL or args.model is not None:
        return [], []
    if (folder / SETTINGS_FILE).exists():  # a run that goes on, from what it has started from
        settings = read_settings(folder)
        model = settings["session"].get("model") or settings["run"].get("model")
        return [], ["--model", model] if model else []
    if stage == "sft":
        if any(getattr(args, name) is not None for name in OF_THE_MODEL):
            return [], []
        return pretrained(args, args.model_type, args.tokenizer)
    if has_dialogpt(args):
        return [], []
    first, found = pretrained(args, CHAT_BASE)
    talk = ["sft", *shared(args, SFT_PRESETS), "--dataset", "dailydialog", *found]
    then, found = unless_trained(talk, folder.parent / f"{CHAT_BASE}-dialogue")
    return [*first, *then] if then else [], found


def pretrained(args: Any, model_type: str, tokenizer: str = "bpe") -> tuple[list[list[str]], list[str]]:
    flags = ["--model_type", model_type, "--tokenizer", tokenizer, *shared(args, PRETRAIN_PRESETS)]
    return unless_trained(["pretrain", *flags], Path(args.output_dir).parent / model_type)


def unless_trained(command: list[str], folder: Path) -> tuple[list[list[str]], list[str]]:
    """([the command, with its folder], or nothing where that holds a finished run; the flag that names its model)."""
    return [] if read_results(folder) else [[*command, "--output_dir", str(folder)]], ["--model", str(folder)]


def shared(args: Any, presets: Iterable[str]) -> list[str]:
    """The flags that a stage hands on to what it starts from: preset, device, and where data may come from."""
    flags = ["--preset", args.preset] if args.preset in presets else []
    flags += ["--data_source", args.data_source] if args.data_source in ("hub", "offline") else []
    return [*flags, "--use_cpu"] if args.use_cpu else flags


def has_dialogpt(args: Any) -> bool:
    """True if the hub gives the model that preferences are taught to where none is named."""
    try:
        return args.data_source != "offline" and bool(
            wing("adapters.base_model").find_base_model(wing("preferences.arguments").DIALOGPT)
        )
    except InputError:
        return False
