"""What this machine is, what will run on it, and what to do about what will not."""

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import psutil

from .data.hub import hub_problem
from .data.text import WIKITEXT
from .training.device import choose_precision, find_device

# package -> what it is for; the versions that the tests run with are in constraints.txt and the Colab images.
PACKAGES = {
    "torch": "all stages",
    "transformers": "all stages",
    "datasets": "all stages",
    "accelerate": "all stages",
    "matplotlib": "curves",
    "ipywidgets": "notebooks",
}
# What only stage 5 needs; without it a remark is all that the other stages are due.
OF_ADAPTERS = {"peft": "adapters", "bitsandbytes": "models in 4 bit"}
FREE_DISK_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """One line of the check-up. `status`: ok, note (will run, with a remark) or fail (will not)."""

    subject: str
    value: str
    status: str
    advice: str = ""


def doctor(folder: str | Path = ".", adapters: bool = False) -> list[Finding]:
    """Examine the machine.

    Args:
        folder: where runs would be saved.
        adapters: stage 5 is to run, and what only it needs has to be there.
    """
    device = find_device()
    precision, why = choose_precision(device)
    findings = [Finding("Python", platform.python_version(), "ok")]
    if device.kind == "cuda":
        findings.append(Finding("GPU", f"{device.name}, {device.memory_gb:.1f} GB", "ok"))
    else:
        findings.append(
            Finding(
                "GPU",
                "none",
                "note",
                "Small presets run on the CPU. On Colab: Runtime > Change runtime type > T4.",
            )
        )
    cores = os.cpu_count()
    findings.append(Finding("CPU", f"{cores} cores, {device.threads} threads for torch", "ok"))
    findings.append(Finding("Precision", precision, "ok", why))
    memory = psutil.virtual_memory()
    findings.append(Finding("Memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GB free", "ok"))
    existing = next(path for path in [Path(folder).absolute(), *Path(folder).absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    enough = free >= FREE_DISK_GB
    findings.append(
        Finding(
            "Disk",
            f"{free:.1f} GB free",
            "ok" if enough else "note",
            "" if enough else f"Keep {FREE_DISK_GB:.0f} GB free for checkpoints.",
        )
    )
    for package, purpose in PACKAGES.items():
        try:
            findings.append(Finding(package, version(package), "ok"))
        except PackageNotFoundError:
            findings.append(Finding(package, "missing", "fail", f"Needed for {purpose}: pip install {package}"))
    for package, purpose in OF_ADAPTERS.items():
        try:
            findings.append(Finding(package, version(package), "ok"))
        except PackageNotFoundError:
            advice = f"Stage 5 needs it for {purpose}: pip install 'newllm[qlora]'"
            findings.append(Finding(package, "missing", "fail" if adapters else "note", advice))
    problem = hub_problem(WIKITEXT.sources[0])
    offline = find_spec("chitchat_dataset") is not None
    if problem is None:
        findings.append(Finding("Hub", "reached", "ok"))
    elif offline:
        findings.append(Finding("Hub", f"not reached: {problem}", "note", "The offline data will be used."))
    else:
        findings.append(
            Finding(
                "Hub",
                f"not reached: {problem}",
                "fail",
                "Run pip install 'newllm[offline]', or give your own file.",
            )
        )
    findings.append(
        Finding(
            "Offline data",
            "installed" if offline else "not installed",
            "ok" if offline or problem is None else "fail",
        )
    )
    return findings
