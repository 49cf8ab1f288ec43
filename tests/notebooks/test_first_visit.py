"""A first visit: a Python that has the other packages and not the library, a kernel with Colab's stand-in, and the
first cells of the notebooks, installed from a clone around them or from an address. Nothing leaves this machine."""

import http.server
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import nbformat
import pytest

from newllm_lib import __version__, install

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PATH = f"/archive/refs/tags/v{__version__}.zip"
NOWHERE = "http://127.0.0.1:9"  # where no address may be asked
FIRST_CELLS = ("install", "check-up", "storage", "settings")
COLAB = """
import sys
from pathlib import Path
sys.path.append({folder!r})
import google_colab
google_colab.install(Path({drive!r}))
"""
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

    def run(self, notebook: nbformat.NotebookNode, cwd: Path) -> tuple[subprocess.CompletedProcess, list]:
        """(finished process, executed code cells)."""
        path = self.folder / "visit.ipynb"
        nbformat.write(notebook, path)
        command = [str(self.python), str(ROOT / "scripts" / "run_notebook.py"), str(path), "--output", str(path)]
        command += ["--cwd", str(cwd)]
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=480)
        return result, [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]

    def installed(self) -> str:
        """Where another process finds the library."""
        command = [str(self.python), "-c", "import newllm_lib; print(newllm_lib.__file__)"]
        return subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True).stdout


def first_cells(path: Path, ids: tuple[str, ...] = FIRST_CELLS, address: str = NOWHERE) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.id in ids]
    for cell in notebook.cells:
        cell.source = re.sub(r"https://github\.com/[\w.-]+/[\w.-]+(?=/archive)", address, cell.source)
    return notebook


def shown(cell) -> str:
    return "\n".join(output.get("text") or output.get("evalue") or str(output.get("data")) for output in cell.outputs)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone") / "new-llm"
    for name in ("newllm_lib", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", folder)
    return folder


@pytest.fixture(scope="module")
def visitor_with_clone(tmp_path_factory):
    return Visitor(tmp_path_factory.mktemp("visitor"))


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, path -> bytes, in pieces; says 404 to everything else."""

    def __init__(self, files: dict[str, bytes], pause: float = 0.0):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                content = files.get(self.path)
                if content is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/zip")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                for start in range(0, len(content), 2**18):
                    self.wfile.write(content[start : start + 2**18])
                    time.sleep(pause)

            def log_message(self, *args):
                """Keep quiet."""

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return super().__enter__()

    def __exit__(self, *args):
        self.shutdown()
        super().__exit__(*args)


def test_the_extras_of_the_install_cells_are_those_of_the_package():
    extras = re.search(r"EXTRAS = \{(.+?)\n\}", (ROOT / "setup.py").read_text(encoding="utf-8"), re.DOTALL)[1]
    of_package = set(re.findall(r'^    "([\w-]+)":', extras, re.MULTILINE)) - {"eval", "formats", "test"}
    assert install.MODULES.keys() - {""} == of_package
    cells = [first_cells(path, ("install",)).cells[0].source for path in NOTEBOOKS]
    bodies = {re.sub(r"install\((.+)\)$", "", cell) for cell in cells}
    asked = [set(re.findall(r'"([\w-]+)"', cell.rsplit("install(", 1)[1])) for cell in cells]
    assert len(cells) == 7 and len(bodies) == 1, "one text in all notebooks"
    assert all("offline" in names and names <= install.MODULES.keys() for names in asked)
    assert asked[4:] == [{"offline", "offline-gemma", "qlora"}, {"offline", "dpo"}, {"offline", "dpo", "sweep"}]


def test_a_clone_around_the_notebook_is_installed(visitor_with_clone, clone):
    visitor = visitor_with_clone
    result, (cell,) = visitor.run(first_cells(NOTEBOOKS[0], ("install",)), clone / "notebooks")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"✓ New-LLM {__version__} is ready" in shown(cell) and "404" not in shown(cell)
    assert visitor.installed().startswith(str(clone))


def test_without_a_clone_the_address_is_installed(tmp_path, clone):
    archive, visitor = tmp_path / "archive", Visitor(tmp_path)
    shutil.make_archive(str(archive), "zip", clone.parent, clone.name)
    (tmp_path / "here").mkdir()
    with Server({PATH: archive.with_suffix(".zip").read_bytes()}) as server:
        result, (cell,) = visitor.run(first_cells(NOTEBOOKS[5], ("install",), server.address), tmp_path / "here")
    assert result.returncode == 0, result.stdout + result.stderr
    assert server.address in shown(cell) and f"✓ New-LLM {__version__} is ready" in shown(cell)
    assert visitor.installed().startswith(str(visitor.packages))


def test_an_address_that_answers_404_is_named_with_what_to_change(tmp_path):
    visitor = Visitor(tmp_path)
    with Server({}) as server:
        result, (cell,) = visitor.run(first_cells(NOTEBOOKS[0], ("install",), server.address), tmp_path)
    assert result.returncode == 1 and visitor.installed() == ""
    (error,) = [output.evalue for output in cell.outputs if output.output_type == "error"]
    assert f"If pip says 404, change the address {server.address}{PATH} in this cell" in error
    assert "404" in "".join(output.text for output in cell.outputs if output.output_type == "stream"), "pip says it"


def make_wheel(folder: Path, package: str, size: int) -> Path:
    name, info = f"{package}-9.0-py3-none-any.whl", f"{package}-9.0.dist-info"
    files = {f"{package}/__init__.py": b"", f"{package}/filling": os.urandom(size)}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.0\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]).encode()
    with zipfile.ZipFile(folder / name, "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
    return folder / name


def test_a_slow_download_says_how_far_it_is(tmp_path, clone):
    visitor = Visitor(tmp_path, without=("chitchat",))
    wheel = make_wheel(tmp_path, "chitchat_dataset", 3 * 2**20)
    page = f'<a href="/{wheel.name}">{wheel.name}</a>'.encode()
    with Server({"/": page, f"/{wheel.name}": wheel.read_bytes()}, pause=0.3) as server:
        environment = {**visitor.environment, "PIP_FIND_LINKS": f"{server.address}/", "PYTHONPATH": str(clone)}
        command = [str(visitor.python), "-c", "from newllm_lib.install import install; install('offline')"]
        run = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        times, output = [time.monotonic()], ""
        while piece := os.read(run.stdout.fileno(), 2**16):
            times.append(time.monotonic())
            output += piece.decode()
    assert run.wait() == 0, output
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 5
    shares = [int(share) for share in re.findall(r"s  Downloading \S*chitchat_dataset.*?: (\d+)% of 3\.1 MB", output)]
    assert len(set(shares)) > 3 and shares == sorted(shares), output
    assert output.rstrip().endswith("is ready.") and (visitor.packages / "chitchat_dataset" / "filling").is_file()


@pytest.mark.parametrize(("without", "extras"), [("chitchat", "'offline'"), ("trl", "'offline', 'dpo'")])
def test_what_cannot_be_had_is_named(tmp_path, clone, without, extras):
    """Only the offline data may be missing, and that is said, too."""
    visitor = Visitor(tmp_path, without=(without,))
    environment = {**visitor.environment, "PYTHONPATH": str(clone)}
    command = [str(visitor.python), "-c", f"from newllm_lib.install import install; install({extras})"]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    if without == "trl":
        assert result.returncode == 1 and "✗ Not installed: trl;" in result.stderr and "[NL-102]" in result.stderr
        assert "No matching distribution found" in result.stderr, "pip's last lines"
    else:
        assert result.returncode == 0 and "! Not installed: chitchat_dataset." in result.stdout
        assert result.stdout.endswith("is ready.\n")


@pytest.mark.parametrize(("says", "brought"), [("GPU 0: Tesla T4", False), ("No devices were found", True)])
def test_the_small_gemma_is_for_machines_without_a_gpu(tmp_path, monkeypatch, says, brought):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{says}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    wanted = []
    monkeypatch.setattr(install, "is_installed", lambda: True)
    monkeypatch.setattr(install, "missing", lambda extras: wanted.extend(extras) or [])
    install.install("offline", "offline-gemma", "qlora")
    assert ("offline-gemma" in wanted) is brought and {"offline", "qlora"} <= set(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cells_run_on_a_first_visit(visitor_with_clone, clone, path):
    notebook = first_cells(path)
    # Colab mounts below /content, which this machine need not have.
    notebook.cells.insert(2, nbformat.v4.new_code_cell(ELSEWHERE.format(place=str(visitor_with_clone.folder / "mnt"))))
    result, cells = visitor_with_clone.run(notebook, clone / "notebooks")
    assert result.returncode == 0, result.stdout + result.stderr
    del cells[2]
    assert [cell.id for cell in cells] == list(FIRST_CELLS)
    for cell in cells:
        assert "✓" in shown(cell), cell.source
        assert not [output for output in cell.outputs if output.get("name") == "stderr"], cell.outputs
    assert "copied to your Drive, folder New-LLM" in shown(cells[2]) and "NL-201" not in shown(cells[2])
