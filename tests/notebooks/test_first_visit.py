"""A first visit: the library is installed from a clone around the notebook or from an address."""

import http.server
import itertools
import os
import re
import shutil
import subprocess
import threading
import time
import zipfile
from pathlib import Path

import nbformat
import pytest
from visitor import Visitor, clone_into

from newllm_lib import __version__, install

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PATH = f"/archive/refs/tags/v{__version__}.zip"
NOWHERE = "http://127.0.0.1:9"  # where no address may be asked


def install_cell(path: Path, address: str = NOWHERE) -> nbformat.NotebookNode:
    """The notebook with nothing but this cell."""
    notebook = nbformat.read(path, as_version=4)
    (cell,) = notebook.cells = [cell for cell in notebook.cells if cell.id == "install"]
    cell.source = re.sub(r"https://github\.com/[\w.-]+/[\w.-]+(?=/archive)", address, cell.source)
    return notebook


def shown(notebook: nbformat.NotebookNode) -> str:
    """What its only cell has shown."""
    outputs = notebook.cells[0].outputs
    return "\n".join(output.get("text") or output.get("evalue") or str(output.get("data")) for output in outputs)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return clone_into(tmp_path_factory.mktemp("clone") / "new-llm")


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
    cells = [install_cell(path).cells[0].source for path in NOTEBOOKS]
    bodies = {re.sub(r"install\((.+)\)$", "", cell) for cell in cells}
    asked = [set(re.findall(r'"([\w-]+)"', cell.rsplit("install(", 1)[1])) for cell in cells]
    assert len(cells) == 7 and len(bodies) == 1, "one text in all notebooks"
    assert all("offline" in names and names <= install.MODULES.keys() for names in asked)
    assert asked[4:] == [{"offline", "offline-gemma", "qlora"}, {"offline", "dpo"}, {"offline", "dpo", "sweep"}]


def test_a_clone_around_the_notebook_is_installed(tmp_path, clone):
    visitor = Visitor(tmp_path)
    result, executed = visitor.run(install_cell(NOTEBOOKS[0]), clone / "notebooks")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"✓ New-LLM {__version__} is ready" in shown(executed) and "404" not in shown(executed)
    assert visitor.installed().startswith(str(clone))


def test_without_a_clone_the_address_is_installed(tmp_path, clone):
    archive, visitor = tmp_path / "archive", Visitor(tmp_path)
    shutil.make_archive(str(archive), "zip", clone.parent, clone.name)
    (tmp_path / "here").mkdir()
    with Server({PATH: archive.with_suffix(".zip").read_bytes()}) as server:
        result, executed = visitor.run(install_cell(NOTEBOOKS[5], server.address), tmp_path / "here")
    assert result.returncode == 0, result.stdout + result.stderr
    assert server.address in shown(executed) and f"✓ New-LLM {__version__} is ready" in shown(executed)
    assert visitor.installed().startswith(str(visitor.packages))


def test_an_address_that_answers_404_is_named_with_what_to_change(tmp_path):
    visitor = Visitor(tmp_path)
    with Server({}) as server:
        result, executed = visitor.run(install_cell(NOTEBOOKS[0], server.address), tmp_path)
    assert result.returncode == 1 and visitor.installed() == ""
    outputs = executed.cells[0].outputs
    (error,) = [output.evalue for output in outputs if output.output_type == "error"]
    assert f"If pip says 404, change the address {server.address}{PATH} in this cell" in error
    assert "404" in "".join(output.text for output in outputs if output.output_type == "stream"), "pip says it"


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
