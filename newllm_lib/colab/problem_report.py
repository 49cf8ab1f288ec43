"""If something went wrong: the codes and what to do, and a report that may be sent to strangers: it holds numbers,
versions, and words of vocabularies that are known beforehand, ours or public packages'. No message of an error is in
it, ours included: messages quote rows, names and addresses."""

import dataclasses
import datetime
import errno
import json
import platform
import re
import sys
import traceback
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import ipywidgets as widgets
from IPython.display import HTML, display

from .. import REPOSITORY, __version__
from ..adapters import offline_gemma
from ..adapters.base_model import GEMMA_2B, GEMMA_270M
from ..data.sources import DATASETS
from ..doctor import PACKAGES, doctor
from ..errors import CODES, InputError
from ..preferences.arguments import LOSS_TYPES
from ..training.checkpoint import read_history
from .live_plot import FACTS
from .page.languages import text
from .page.notices import CellStopped, causes, code_and_sentence, in_one_sentence, say
from .page.pieces import AS_WRITTEN, FAINT, GRID, button_box, download_html, escape, table_html
from .panel import stage
from .panel.settings_panel import SettingsPanel
from .storage import on_colab

METRICS_LINES = 12
MORE_PACKAGES = ("ipykernel", "jupyterlab", "huggingface_hub", "tokenizers", "safetensors", "pyarrow", "pip")
KNOWN_MODELS = {*GEMMA_2B, *GEMMA_270M, offline_gemma.NAME}
METRICS = {"step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss", *(key for key, _ in FACTS)}
STAGES = [value for value in vars(stage).values() if isinstance(value, stage.NotebookStage)]
FIELDS = {field.name for known in STAGES for field in dataclasses.fields(known.arguments)}
# Modules whose names, and those of what is in them, are public.
PUBLIC = {"newllm_lib", "IPython", "PIL", "fsspec", "httpx", "jinja2", "numpy", "pandas", "psutil", "requests"}
PUBLIC |= {*PACKAGES, *MORE_PACKAGES, *sys.stdlib_module_names}
LEAVES_OUT = (
    "The report has versions, the check-up, the settings, the last lines of the metrics log, and the code and place of "
    "the newest error. It has no tokens, addresses, names of files or folders, and nothing of your text. Read it: it "
    f"is sent nowhere, unless you put it into a new issue at https://github.com/{REPOSITORY}/issues."
)


@in_one_sentence()
def show_report(panel: SettingsPanel | None = None) -> widgets.Widget:
    """Display the codes, and a button that makes the report and shows it before it can be downloaded."""
    rows = [["code", "what happened", "what to do"]]
    rows += [[f"<b>{code}</b>", escape(happened), escape(remedy)] for code, (happened, remedy) in CODES.items()]
    codes = f"<summary>{text('The codes and what to do')}</summary>{table_html(rows, header=True)}"
    display(HTML(f'<details style="padding-left:8px">{codes}</details>'))

    def make() -> str:
        report = report_text(panel)
        style = f"max-height:360px;overflow:auto;{AS_WRITTEN};background:{FAINT};border:1px solid {GRID};color:inherit;"
        style += "border-radius:6px;padding:6px 10px;font-size:12px;line-height:1.4"
        link = download_html("newllm-report.txt", report, "Download this report")
        leaves_out = f'<div style="line-height:1.5;margin:6px 0">{text(LEAVES_OUT)}</div>'
        return f'{leaves_out}<pre style="{style}">{escape(report)}</pre>{link}'

    box = button_box("Make a report", make, wait=f'<div style="opacity:.75">{text("Looking at this machine …")}</div>')
    display(box)
    say("If a cell ended with ✗, look its code up above; if that does not help, make a report. It stays with you.")
    return box


def report_text(panel: SettingsPanel | None = None) -> str:
    """The whole report; every part is made whatever the state of the others is."""
    parts = {
        "Versions": version_lines(),
        "Check-up": [f"{f.status:<5} {f.subject}: {f.value} {f.advice} {f.code}".rstrip() for f in doctor()],
        "Settings": settings_lines(panel),
        "Metrics": metrics_lines(panel),
        "Newest error of this session": error_lines(getattr(sys, "last_value", None)),
    }
    now = datetime.datetime.now(datetime.timezone.utc)
    sections = "\n\n".join("\n".join([f"== {title}", *lines]) for title, lines in parts.items())
    return f"New-LLM report, {now:%Y-%m-%d %H:%M} UTC\n\n{sections}\n"


def version_lines() -> list[str]:
    where = "Colab" if on_colab() else "Jupyter"
    lines = [f"newllm {__version__}", f"Python {platform.python_version()}, {platform.system()}, {where}"]
    for package in (*PACKAGES, *MORE_PACKAGES):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} is missing")
    return lines


def settings_lines(panel: SettingsPanel | None) -> list[str]:
    """What the panel shows: numbers, choices, and no words of the user's own."""
    if panel is None:
        return ["There is no settings panel in this session."]
    lines = [f"stage {panel.stage.folder}, models {', '.join(panel.models)}, preset {panel.preset.value}"]
    if panel.stage.continues:
        lines.append(f"goes on from an earlier notebook: {panel.start_run is not None}")
    choices = {field.name: get_args(field.type) for field in dataclasses.fields(panel.stage.arguments)}
    for name, value in panel.values().items():
        ours = {*choices.get(name, ()), *(preset.get(name) for preset in panel.stage.presets.values())}
        lines.append(f"{name} = {value if is_plain(name, value, ours) else '[left out]'}")
    return lines


def is_plain(name: str, value: Any, ours: Collection[Any]) -> bool:
    """True for a value that says nothing of its user; `ours`: values that the library itself has for this setting."""
    if not isinstance(value, str):
        return value is None or isinstance(value, int | float)
    if name.startswith("search_"):  # from and to, or choices
        return all(part in LOSS_TYPES or re.fullmatch(r"[\d.e-]+", part) for part in value.split(","))
    return value in ours or value in (KNOWN_MODELS if name == "model" else DATASETS)


def metrics_lines(panel: SettingsPanel | None) -> list[str]:
    """The end of every model's metrics log, its numbers alone."""
    lines = []
    for model in panel.models if panel is not None else ():
        try:
            log = read_history(Path(panel.arguments(model).output_dir))
        except (ValueError, OSError) as error:
            lines.append(f"{model}: there is no log ({kind_of(error)})")
            continue
        lines.append(f"{model}:" if log else f"{model}: there is no log")
        for entry in log[-METRICS_LINES:]:
            known = sorted(METRICS & entry.keys())
            lines.append(json.dumps({name: entry[name] for name in known if isinstance(entry[name], int | float)}))
    return lines or ["There is no run in this session."]


def error_lines(error: BaseException | None) -> list[str]:
    """IPython's newest error and what it came from: kinds, codes, the setting, and places in the code."""
    if error is None:
        return ["None."]
    if isinstance(error, CellStopped) and error.__context__ is not None:
        error = error.__context__
    lines = []
    for link in causes(error):
        code = code_and_sentence(link)[0]
        line = f"{kind_of(link)} [{code}] {CODES[code][0]}"
        if isinstance(link, InputError) and link.field in FIELDS:
            line += f" Setting: {link.field}."
        if isinstance(link, OSError) and link.errno in errno.errorcode:
            line += f" System error: {errno.errorcode[link.errno]}."
        lines += [line, *(f"  {place(*frame)}" for frame in traceback.walk_tb(link.__traceback__))]
    return lines


def kind_of(error: BaseException) -> str:
    """The name of its class, or of the nearest class below that which a public module has under its name."""
    kinds = (kind for kind in type(error).__mro__ if vars_of(kind.__module__).get(kind.__name__) is kind)
    return next(kinds).__name__


def place(frame: FrameType, line: int) -> str:
    """Where in which public module a line of code stands; of any other code nothing."""
    module = frame.f_globals.get("__name__")
    is_public = vars_of(module) is frame.f_globals
    return f"{module}:{line} in {frame.f_code.co_name}" if is_public else "[a cell or file of yours]"


def vars_of(module: str | None) -> dict[str, Any]:
    """What is in a public module that is loaded; of any other nothing. What an object says of its module may be
    anything."""
    is_public = isinstance(module, str) and module.split(".")[0] in PUBLIC
    return getattr(sys.modules.get(module), "__dict__", {}) if is_public else {}
