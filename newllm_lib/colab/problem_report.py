"""If something went wrong: the codes and what to do about them, and a report that may be sent to strangers."""

import dataclasses
import datetime
import json
import platform
import sys
import traceback
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import ipywidgets as widgets
from IPython.display import HTML, display

from .. import __version__
from ..data.catalogue import DATASETS
from ..doctor import TESTED, doctor
from ..errors import CODES, InputError
from ..training import offline_gemma
from ..training.base_model import GEMMA_2B
from ..training.report import METRICS_FILE
from .download import download_html
from .failures import causes, code_and_sentence, first_line
from .notices import FAINT, GRID, CellStopped, escape, in_one_sentence, say, table_html
from .panel import SettingsPanel
from .redaction import LEFT_OUT, redact, short_path
from .storage import on_colab

REPORT_FILE = "newllm-report.txt"
METRICS_LINES = 12
MORE_PACKAGES = ("ipykernel", "jupyterlab", "huggingface_hub", "tokenizers", "safetensors", "pyarrow", "pip")
# Settings whose words are ours and no user's, beside those with a choice of values.
PLAIN_WORDS = {"lr_scheduler_type", "optim", "eval_strategy", "save_strategy"}
PLAIN_WORDS |= {"search_beta", "search_learning_rate", "search_lora_r", "search_loss_type"}
KNOWN_MODELS = {*GEMMA_2B, offline_gemma.NAME}
# What may quote a user's rows: its messages are left out, but for our own sentences.
READERS = ("newllm_lib/data/", "pyarrow/", "datasets/", "pandas/", "json/", "csv.py", "jinja2/", "tokenizers/")
LEAVES_OUT = (
    "The report has versions, the check-up, the settings, the last lines of the metrics log and the newest error. It "
    "has no tokens, addresses, names of files or folders, and nothing of your text. Read it: it is sent nowhere."
)


@in_one_sentence
def show_report(panel: SettingsPanel | None = None) -> widgets.Widget:
    """Display the codes, and a button that makes the report and shows it before it can be downloaded.

    Args:
        panel: of the notebook, if it got that far.
    """
    button = widgets.Button(description="Make a report", layout=widgets.Layout(width="140px"))
    shown = widgets.HTML(layout=widgets.Layout(width="auto"))

    def make(_) -> None:
        shown.value = '<div style="opacity:.75">Looking at this machine …</div>'
        shown.value = report_html(report_text(panel))

    button.on_click(make)
    box = widgets.VBox([button, shown], layout=widgets.Layout(width="100%"))
    display(HTML(codes_html()))
    display(box)
    say("If a cell ended with ✗, look its code up above; if that does not help, make a report. It stays with you.")
    return box


def codes_html() -> str:
    """All codes in a table that opens with a click."""
    rows = [["code", "what happened", "what to do"]]
    rows += [[f"<b>{code}</b>", escape(happened), escape(remedy)] for code, (happened, remedy) in CODES.items()]
    table = table_html(rows, header=True)
    return f'<details style="padding-left:8px"><summary>The codes and what to do</summary>{table}</details>'


def report_html(text: str) -> str:
    """The report as it will be downloaded, what it leaves out, and the link."""
    return (
        f'<div style="line-height:1.5;margin:6px 0">{LEAVES_OUT}</div>'
        f'<pre style="max-height:360px;overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere;background:{FAINT};'
        f'border:1px solid {GRID};border-radius:6px;padding:6px 10px;font-size:12px;line-height:1.4;color:inherit">'
        f"{escape(text)}</pre>{download_html(REPORT_FILE, text, 'Download this report')}"
    )


def report_text(panel: SettingsPanel | None = None) -> str:
    """The whole report; every part is made whatever the state of the others is."""
    now = datetime.datetime.now(datetime.timezone.utc)
    private = private_values(panel)
    parts = [
        f"New-LLM report, {now:%Y-%m-%d %H:%M} UTC",
        section("Versions", version_lines()),
        section("Check-up", (f"{f.status:<5} {f.subject}: {f.value} {f.advice} {f.code}".rstrip() for f in doctor())),
        section("Settings", settings_lines(panel)),
        section("Metrics", metrics_lines(panel)),
        section("Newest error of this session", error_lines(getattr(sys, "last_value", None), private)),
    ]
    return "\n".join(parts) + "\n"


def section(title: str, lines: Iterable[str]) -> str:
    return "\n".join(["", f"== {title}", *lines])


def version_lines() -> list[str]:
    """Ours, Python's, and those of the packages that matter."""
    where = "Colab" if on_colab() else "Jupyter"
    lines = [f"newllm {__version__}", f"Python {platform.python_version()}, {platform.system()}, {where}"]
    for package in (*(name for name in TESTED if name != "Python"), *MORE_PACKAGES):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} is missing")
    return lines


def settings_lines(panel: SettingsPanel | None) -> list[str]:
    """What the panel shows: numbers, choices, and no words of the user's own."""
    if panel is None:
        return ["There is no settings panel in this session."]
    choices = {field.name: get_args(field.type) for field in dataclasses.fields(panel.stage.arguments)}
    lines = [f"stage {panel.stage.folder}, models {', '.join(panel.models)}, preset {panel.preset.value}"]
    if panel.stage.continues:
        lines.append(f"goes on from an earlier notebook: {panel.start_run is not None}")
    for name, value in panel.values().items():
        lines.append(f"{name} = {value if is_plain(name, value, choices.get(name, ())) else LEFT_OUT}")
    return lines


def is_plain(name: str, value: Any, choices: Iterable[Any]) -> bool:
    """True for a value that says nothing of its user."""
    if not isinstance(value, str):
        return True
    known = value in KNOWN_MODELS if name == "model" else value in DATASETS
    return known or value in choices or name in PLAIN_WORDS


def metrics_lines(panel: SettingsPanel | None) -> list[str]:
    """The end of every model's metrics log, its numbers alone."""
    lines = []
    for model in panel.models if panel is not None else ():
        try:
            path = Path(panel.arguments(model).output_dir) / METRICS_FILE
            newest = path.read_text(encoding="utf-8").splitlines()[-METRICS_LINES:]
        except (InputError, OSError) as error:
            lines.append(f"{model}: there is no log ({type(error).__name__})")
            continue
        lines.append(f"{model}:")
        lines += [json.dumps(_numbers(line)) for line in newest]
    return lines or ["There is no run in this session."]


def _numbers(line: str) -> dict[str, float]:
    """A line of the log; of one that was cut off while it was written, nothing."""
    try:
        return {name: value for name, value in json.loads(line).items() if isinstance(value, int | float)}
    except ValueError:
        return {}


def error_lines(error: BaseException | None, private: Iterable[str] = ()) -> list[str]:
    """The error that IPython showed last and what it came from: types, codes, places in the code, and messages that
    cannot quote anybody."""
    if error is None:
        return ["None."]
    if isinstance(error, CellStopped) and error.__context__ is not None:
        error = error.__context__
    chain = list(causes(error))
    places = [[f"{short_path(f.filename)}:{f.lineno} in {f.name}" for f in _frames(link)] for link in chain]
    may_quote = any(frame.startswith(READERS) for frames in places for frame in frames)
    lines = []
    for link, frames in zip(chain, places, strict=True):
        # Our own sentences quote between quotation marks, which are found; a library's may quote anyhow.
        is_told = isinstance(link, InputError) or not may_quote
        message = redact(first_line(link, 300), private) if is_told else LEFT_OUT
        lines += [f"{type(link).__name__} [{code_and_sentence(link)[0]}] {message}".rstrip()]
        lines += [f"  {frame}" for frame in frames]
    return lines


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(error.__traceback__))


def private_values(panel: SettingsPanel | None) -> list[str]:
    """Words of the user's own among the settings, and the names of their files."""
    if panel is None:
        return []
    words = [value for value in panel.values().values() if isinstance(value, str) and ("/" in value or "." in value)]
    return [*words, *(Path(word).name for word in words), *(Path(word).stem for word in words)]
