"""Somebody who visits for the first time: a Python that has the other packages and not the library, and a kernel with
Colab's stand-in. Nothing leaves this machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
COLAB = """
import sys
from pathlib import Path
sys.path.append({folder!r})
import google_colab
google_colab.install(Path({drive!r}))
"""
# Colab mounts below /content, which this machine need not have.
ELSEWHERE = """
from newllm_lib.colab import storage
storage.MOUNT_POINT = storage.Path({place!r})
storage.DRIVE_FOLDER = storage.MOUNT_POINT / "MyDrive" / "New-LLM"
"""


class Visitor:
    """A Python of its own and a folder for what it works on."""

    def __init__(self, folder: Path, without: tuple[str, ...] = ()):
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        self.python = folder / "venv" / "bin" / "python"
        (self.packages,) = (folder / "venv").glob("lib/*/site-packages")
        for path in sorted(Path(pytest.__file__).parents[1].iterdir()):
            if not path.name.lower().replace("__editable__", "").strip("_.").startswith(("newllm", *without)):
                (self.packages / path.name).symlink_to(path)
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        # No index, and no copy of setuptools from it for every build.
        self.environment |= {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "HF_HUB_OFFLINE": "1"}
        self.environment |= {"IPYTHONDIR": str(folder / "ipython"), "NEWLLM_PRESET": "smoke"}
        startup = folder / "ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True)
        drive = str(folder / "drive")
        (startup / "00-colab.py").write_text(COLAB.format(folder=str(ROOT / "tests" / "colab"), drive=drive))

    def run(
        self, notebook: nbformat.NotebookNode, cwd: Path, seconds: float = 480, **environment: str
    ) -> tuple[subprocess.CompletedProcess, nbformat.NotebookNode]:
        """(finished process, executed notebook)."""
        path = self.folder / "visit.ipynb"
        nbformat.write(notebook, path)
        command = [str(self.python), str(ROOT / "scripts" / "run_notebook.py"), str(path), "--output", str(path)]
        command += ["--cwd", str(cwd)]
        everything = {**self.environment, **environment}
        result = subprocess.run(command, env=everything, capture_output=True, text=True, timeout=seconds)
        return result, nbformat.read(path, as_version=4)

    def with_drive(self, notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
        """The notebook with a cell after the first one for Drive to be mounted below this visitor's folder."""
        after = next(place for place, cell in enumerate(notebook.cells, start=1) if cell.id == "install")
        cell = nbformat.v4.new_code_cell(ELSEWHERE.format(place=str(self.folder / "mnt")), id="elsewhere")
        notebook.cells.insert(after, cell)
        return notebook

    def installed(self) -> str:
        """Where another process finds the library."""
        command = [str(self.python), "-c", "import newllm_lib; print(newllm_lib.__file__)"]
        return subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True).stdout


def clone_into(folder: Path) -> Path:
    """What somebody has who clones the repository."""
    for name in ("newllm_lib", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", folder)
    return folder
