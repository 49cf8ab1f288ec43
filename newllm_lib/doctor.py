"""What this machine is, what will run on it, and what to do about what will not."""

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from packaging.version import Version

from .data.sources import DATASETS, has_chitchat, hub_problem
from .training.device import Device, choose_precision, find_device
from .training.disk import GB, size

PYTHON = "3.10", "3.13"  # the least that setup.py asks for, and the newest this release was tested with
# package -> (likewise, "" for any, and of constraints.txt; what it is for; the stages that alone need it, () for all;
# what pip installs)
PACKAGES = {
    "torch": ("2.6", "2.13.0", "all stages", (), "torch"),
    "transformers": ("5.0", "5.23.0", "all stages", (), "transformers"),
    "datasets": ("4.0", "5.2.0", "all stages", (), "datasets"),
    "accelerate": ("1.4", "1.15.0", "all stages", (), "accelerate"),
    "matplotlib": ("", "3.11.2", "curves", (), "matplotlib"),
    "ipywidgets": ("7.7.1", "8.1.9", "notebooks", (), "ipywidgets"),
    "peft": ("", "0.21.2", "adapters, in stage 5 and stage 6", (5, 6), "'newllm[qlora]'"),
    "bitsandbytes": ("", "0.50.2", "models in 4 bit, in stage 5", (5,), "'newllm[qlora]'"),
    "trl": ("0.29.1", "1.16.0", "preferences, in stage 6", (6,), "'newllm[dpo]'"),
}
FREE_GB = 2.0  # of memory, and of the disk


@dataclass(frozen=True)
class Finding:
    """One line of the check-up."""

    subject: str
    value: str
    status: str  # ok, note (will run, with a remark) or fail (will not)
    advice: str = ""
    code: str = ""  # one of CODES, "" where there is nothing to explain


def doctor(folder: str | Path = ".", adapters: bool = False, preferences: bool = False) -> list[Finding]:
    """Examine the machine, and the disk of the folder where runs would be saved. `adapters`: stage 5 is to run, and
    what only it needs has to be there; `preferences`: likewise for stage 6."""
    packages = of_packages({5: adapters, 6: preferences})
    python = of_version("Python", platform.python_version(), *PYTHON)
    return [*of_the_device(find_device()), *of_space(Path(folder).absolute()), python, *packages, *of_data()]


def of_the_device(device: Device) -> list[Finding]:
    """GPU or CPU, and the precision that follows from it."""
    advice = "Small presets run on the CPU. On Colab: Runtime > Change runtime type > T4."
    findings = [Finding("GPU", "none", "note", advice, "NL-101")]
    if device.kind == "cuda":
        findings = [Finding("GPU", device.name, "ok"), Finding("GPU memory", f"{device.memory_gb:.1f} GB", "ok")]
        capability = ".".join(map(str, device.capability))
        findings.append(Finding("Compute capability", capability, "ok", "bf16 arithmetic needs 8.0 or more."))
    cpu = Finding("CPU", f"{os.cpu_count()} cores, {device.threads} threads for torch", "ok")
    precision, why = choose_precision(device)
    return [*findings, cpu, Finding("Precision", precision, "ok", why)]


def of_space(folder: Path) -> list[Finding]:
    """The machine's memory, and the disk that `folder` is on, or would be."""
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(next(path for path in [folder, *folder.parents] if path.exists()))
    shown = f"{size(memory.available)} of {size(memory.total)} free"
    findings = []
    for free, subject, value, advice, code in (
        (memory.available, "Memory", shown, "Close what else runs, or take a smaller preset.", "NL-103"),
        (disk.free, "Disk", f"{size(disk.free)} free", f"Keep {FREE_GB:.0f} GB for checkpoints.", "NL-104"),
    ):
        remark = ("note", advice, code) if free < FREE_GB * GB else ("ok",)
        findings.append(Finding(subject, value, *remark))
    return findings


def of_packages(runs: dict[int, bool]) -> list[Finding]:
    """What is installed, against what this release was tested with. `runs`: stage -> whether what only it needs has to
    be there."""
    findings = []
    for package, (least, newest, purpose, stages, install) in PACKAGES.items():
        try:
            findings.append(of_version(package, version(package), least, newest))
        except PackageNotFoundError:
            status = "fail" if not stages or any(runs[stage] for stage in stages) else "note"
            advice = f"Needed for {purpose}: pip install {install}"
            findings.append(Finding(package, "missing", status, advice, "NL-102"))
    return findings


def of_version(name: str, found: str, least: str, newest: str) -> Finding:
    """A version against the least that is needed and the newest that was tested."""
    # "2.11.0+cu128" is a build of 2.11.0; of a Python that is newer by its last number nothing is to be feared.
    release = Version(Version(found).public)
    if least and release < Version(least):
        return Finding(name, found, "fail", f"Needs {least} or newer: run the install cell again.", "NL-102")
    if release > Version(newest) and not found.startswith(f"{newest}."):
        return Finding(name, found, "note", f"Newer than {newest}, the newest that was tested.", "NL-102")
    return Finding(name, found, "ok", f"Tested up to {newest}.")


def of_data() -> list[Finding]:
    """Where data can come from."""
    problem, offline = hub_problem(DATASETS["wikitext"].sources[0]), has_chitchat()
    hub = Finding("Hub", "reached", "ok")
    if problem is not None:
        advice = "The offline data will be used." if offline else "pip install 'newllm[offline]', or your own file."
        hub = Finding("Hub", f"not reached: {problem}", "note" if offline else "fail", advice, problem.code)
    status = "ok" if offline or problem is None else "fail"
    return [hub, Finding("Offline data", "installed" if offline else "not installed", status)]
