"""The shipped notebooks: clean files with agreeing links, and every one from top to bottom in a fresh kernel."""

import hashlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from run_files import ADAPTER_FILES, PREFERENCE_FILES, RUN_FILES, SWEEP_FILES
from tiny_gemma import tiny_gemma_folder
from visitor import Visitor, clone_into

from newllm_lib import __version__

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_LINES = 10  # of code in a cell; blank lines and the title are none
SECONDS_BY_HAND = 5  # for a cell of the section By hand
SILENT_SECONDS = 10  # at most, in any cell
STARTED_AND_ENDED = "iopub.execute_input", "shell.execute_reply"  # as nbclient notes them
MAX_SECONDS = 480  # two minutes on a free core of a fast hour; the tests share theirs, and hours differ by half

# stage -> what only it needs, and (files of a run, files of each of its models)
PACKAGES_OF = {"05_qlora_lwf": ("bitsandbytes",), "06_dpo": ("trl",), "07_dpo_experiments": ("trl", "optuna")}
MADE_BY = {
    "05_qlora_lwf": ({"forgetting.png"}, ADAPTER_FILES),
    "06_dpo": ({"preferences.png"}, PREFERENCE_FILES),
    "07_dpo_experiments": (SWEEP_FILES, set()),
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
JAPANESE = sorted((ROOT / "notebooks" / "ja").glob("*.ipynb"))
each_edition = pytest.mark.parametrize(
    "path", [*NOTEBOOKS, *JAPANESE], ids=lambda path: "/".join(path.relative_to(ROOT / "notebooks").parts)
)


def cells(path: Path, kind: str) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def cells_by_hand(cells: list) -> list:
    """The code of the section By hand: all cells from its heading to the next one."""
    begin = next(place for place, cell in enumerate(cells) if cell.id == "about-by-hand")
    return list(itertools.takewhile(lambda cell: cell.cell_type == "code", cells[begin + 1 :]))


def badges_script():
    specification = importlib.util.spec_from_file_location("badges", ROOT / "scripts" / "badges.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_there_is_a_notebook():
    assert ROOT / "notebooks" / "01_pretrain_wikitext.ipynb" in NOTEBOOKS


@each_edition
def test_the_file_is_valid_and_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in cells(path, "code"):
        assert cell.outputs == [] and cell.execution_count is None


@each_edition
def test_nbconvert_renders_it(path):
    page, _ = HTMLExporter().from_filename(str(path))
    assert page.count("jp-CodeCell") >= len(cells(path, "code")) > 0
    assert "Open in Colab" in page and re.search("#@title 1 · .*New-LLM", page)


@each_edition
def test_code_is_short_and_folded_behind_its_title(path):
    by_hand = cells_by_hand(nbformat.read(path, as_version=4).cells)
    for number, cell in enumerate((cell for cell in cells(path, "code") if cell not in by_hand), start=1):
        title, *lines = cell.source.splitlines()
        assert re.match(rf"#@title {number} · \w", title), title
        assert cell.metadata.get("cellView") == "form"
        assert len([line for line in lines if line.strip()]) <= MAX_LINES, title


@each_edition
def test_a_section_by_hand_computes_in_few_open_lines(path):
    by_hand = cells_by_hand(nbformat.read(path, as_version=4).cells)
    assert 3 <= len(by_hand) <= 5
    for cell in by_hand:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert lines[0].startswith("# ") and len(lines) <= MAX_LINES, lines[0]
        assert "cellView" not in cell.metadata, "this code is there to be read"
    assert any(re.search(r"^ *(assert|torch\.testing\.assert_close)\b", cell.source, re.MULTILINE) for cell in by_hand)


@each_edition
def test_every_name_taken_from_the_library_exists(path):
    for cell in cells(path, "code"):
        for module, names in re.findall(r"^from (newllm_lib[\w.]*) import (.+)$", cell.source, re.MULTILINE):
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_a_cell_run_alone_shows_nothing_of_what_it_imports():
    """The chat's, which imports bitsandbytes: on a CPU with bf16 it misses a package then."""
    result = subprocess.run(
        [sys.executable, "-c", "from newllm_lib.colab.chat_box import show_chat"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@each_edition
def test_badge_install_cell_and_version_agree(path):
    text = path.read_text(encoding="utf-8")
    badges = re.findall(r"colab\.research\.google\.com/github/([^/]+/[^/]+)/blob/([^/]+)/notebooks/([\w./]+)", text)
    sources = re.findall(r"//github\.com/([^/]+/[^/]+)/archive/refs/tags/([^\"\\]+)\.zip", text)
    other = f"ja/{path.name}" if path in NOTEBOOKS else path.name
    assert badges[0][2] == str(path.relative_to(ROOT / "notebooks")) and badges[1][2] == other
    assert {"ja/" in name for *_, name in badges[2:]} <= {path in JAPANESE}, "on to a notebook in the same language"
    assert len(sources) == 1
    assert len({repository for repository, *_ in [*badges, *sources]}) == 1
    assert {tag for _, tag, *_ in [*badges, *sources]} == {f"v{__version__}"}


@each_edition
def test_links_lead_somewhere(path):
    for cell in cells(path, "markdown"):
        for target in re.findall(r"\]\(([^)]+)\)", cell.source):
            name = target.rsplit("/", 1)[-1]
            if not target.startswith("http") or "/notebooks/" in target:
                assert (path.parent / name).is_file(), target


def test_badges_are_rewritten_together(tmp_path):
    for path in [*NOTEBOOKS, *JAPANESE]:
        before = path.read_text(encoding="utf-8")
        after, count = badges_script().rewrite_links(before, "someone/else", "v9.9.9")
        json.loads(after)
        assert count >= 2 and after.count("someone/else") == after.count("v9.9.9") == count
        assert "new-llm/new-llm" not in after
        assert badges_script().rewrite_links(after, "new-llm/new-llm", f"v{__version__}")[0] == before


@pytest.fixture
def copied(tmp_path):
    """What scripts/badges.py reads and writes, as a repository of its own."""
    for name in ("scripts/badges.py", "newllm_lib/__init__.py", *(f"notebooks/{path.name}" for path in NOTEBOOKS)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for path in ROOT.glob("README*.md"):
        shutil.copy(path, tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def run_badges(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(root / "scripts" / "badges.py"), *arguments], capture_output=True, text=True
    )


def test_every_address_of_ours_agrees():
    """Wherever this checkout came from: its remote is the business of .ci/run, which may be somebody's fork."""
    assert [line for line in badges_script().check(f"v{__version__}") if not line.startswith("git's origin")] == []


def test_one_command_changes_every_address(copied):
    assert run_badges(copied, "--check").returncode == 0
    assert run_badges(copied, "--repo", "someone/else").returncode == 0
    assert 'REPOSITORY = "someone/else"' in (copied / "newllm_lib/__init__.py").read_text(encoding="utf-8")
    assert "github.com/someone/else/issues" in (copied / "README_COLAB.ja.md").read_text(encoding="utf-8")
    files = [path for path in copied.rglob("*") if path.suffix in (".md", ".ipynb", ".py")]
    assert not [path for path in files if "new-llm/new-llm" in path.read_text(encoding="utf-8")]
    assert run_badges(copied, "--check").returncode == 0


@pytest.mark.parametrize("name", ["README.md", "README_COLAB.ja.md", "notebooks/05_qlora_lwf_gemma.ipynb"])
def test_a_place_that_was_forgotten_is_named_with_the_command(copied, name):
    path = copied / name
    path.write_text(path.read_text(encoding="utf-8").replace("new-llm/new-llm", "old/address", 1), encoding="utf-8")
    result = run_badges(copied, "--check")
    assert result.returncode == 1 and result.stdout.startswith(f"{name} names old/address at v{__version__}")
    assert f"scripts/badges.py --repo new-llm/new-llm --tag v{__version__}" in result.stdout


@pytest.mark.parametrize(
    ("remote", "told"),
    [
        ("https://github.com/new-llm/new-llm.git", None),
        ("git@github.com:new-llm/new-llm", None),
        ("/srv/git/new-llm.git", None),
        ("git@github.com:someone/their.fork.git", "someone/their.fork"),
        ("https://github.com/someone/fork/", "someone/fork"),
    ],
)
def test_a_fork_is_told_how_its_badges_lead_to_it(copied, remote, told):
    subprocess.run(["git", "-C", str(copied), "remote", "add", "origin", remote], check=True)
    result = run_badges(copied, "--check")
    assert result.returncode == (told is not None)
    if told is not None:
        assert f"origin is {told}," in result.stdout and f"scripts/badges.py --repo {told}" in result.stdout
        assert run_badges(copied, "--repo", told).returncode == 0 == run_badges(copied, "--check").returncode


@pytest.mark.parametrize("arguments", [["--repo", "no-slash"], ["--repo", "a/b", "--tag", "a/b"], []])
def test_bad_arguments_change_nothing(arguments):
    script = [sys.executable, str(ROOT / "scripts" / "badges.py"), *arguments]
    before = [path.read_bytes() for path in NOTEBOOKS]
    assert subprocess.run(script, capture_output=True).returncode == 2
    assert [path.read_bytes() for path in NOTEBOOKS] == before


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """(runs a notebook as somebody would in Colab who works through all of them, the folder of runs there, his Drive).
    The library is installed by the first one, from the clone around it."""
    folder = tmp_path_factory.mktemp("session")
    visitor, clone = Visitor(folder), clone_into(folder / "new-llm")
    gemma = {"NEWLLM_MODEL": str(tiny_gemma_folder(folder / "tiny-gemma"))}  # the base model of notebook 5

    def run(path: Path):
        notebook = visitor.with_drive(nbformat.read(path, as_version=4))
        chosen = {"NEWLLM_DATA_SOURCE": "offline"} | (gemma if path.stem.startswith("05") else {})
        result, executed = visitor.run(notebook, clone / "notebooks", 2 * MAX_SECONDS, **chosen)
        executed.cells = [cell for cell in executed.cells if cell.id != "elsewhere"]
        return result, executed

    return run, clone / "notebooks" / "runs", folder / "drive" / "New-LLM"


@pytest.mark.slow
@each_notebook
def test_it_runs_from_top_to_bottom(path, session):
    pytest.importorskip("chitchat_dataset")
    for package in PACKAGES_OF.get(stage_of(path).folder, ()):
        pytest.importorskip(package)
    run, runs, _ = session
    earlier = {folder.parent.parent.name for folder in runs.glob("*/*/newllm")}
    started = time.perf_counter()
    result, executed = run(path)
    seconds = time.perf_counter() - started
    assert result.returncode == 0, result.stdout + result.stderr
    assert seconds < MAX_SECONDS

    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    for cell in code:
        assert not [output for output in cell.outputs if output.get("name") == "stderr"], cell.outputs
        assert "✓" in json.dumps(cell.outputs[-1], ensure_ascii=False), cell.source
        assert cell.metadata["longest_silence"] < SILENT_SECONDS, cell.source
    for cell in cells_by_hand(executed.cells):
        begin, end = (datetime.fromisoformat(cell.metadata.execution[at].rstrip("Z")) for at in STARTED_AND_ENDED)
        assert (end - begin).total_seconds() < SECONDS_BY_HAND, cell.source
    training = next(cell for cell in code if re.search("live_training|live_experiments", cell.source))
    assert len([output for output in training.outputs if "image/png" in json.dumps(output)]) == 1, "one live plot"

    said = {cell.id: json.dumps(cell.outputs, ensure_ascii=False) for cell in code}
    assert "copied to your Drive, folder New-LLM" in said["storage"] and "NL-201" not in said["storage"]

    stage = stage_of(path)
    (folder,) = [folder for folder in (runs / stage.folder).iterdir() if folder.is_dir()]
    assert (runs / stage.folder / "settings-panel.json").is_file()
    made, files = MADE_BY.get(stage.folder, ({"comparison.json", "comparison.png"}, RUN_FILES))
    assert {path.name for path in folder.iterdir()} >= made
    for model in stage.models if files else ():
        assert {path.name for path in (folder / model).iterdir()} >= files
    if stage.continues:
        start = json.loads((folder / "newllm" / "settings.json").read_text())["session"]["model"]
        newest = next((name for name in stage.continues if name in earlier), None)
        assert (start is None) == (newest is None) and (newest or "") in (start or "")


def stage_of(path: Path):
    """What a notebook says it trains."""
    name = re.search(r"Panel\((\w+), runs\)", path.read_text(encoding="utf-8"))[1]
    return getattr(importlib.import_module("newllm_lib.colab.panel.stage"), name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"), [("01_pretrain_wikitext", "finished before"), ("07_dpo_experiments", "were finished before")]
)
def test_what_was_trained_comes_back_from_drive_on_a_new_machine(session, name, said):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    stage = stage_of(path).folder
    for package in ("chitchat_dataset", *PACKAGES_OF.get(stage, ())):
        pytest.importorskip(package)
    run, runs, drive = session
    if not list(runs.glob(f"{stage}/*/*/results.json")):
        assert run(path)[0].returncode == 0
    before = digests(runs / stage)
    assert digests(drive / stage).items() >= before.items() and before
    shutil.rmtree(runs)
    result, executed = run(path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert digests(runs / stage) == before
    # What was trained again would have the same bits: nothing was written once the cell of the storage had ended.
    storage = next(cell for cell in executed.cells if cell.id == "storage")
    ended = datetime.fromisoformat(storage.metadata.execution[STARTED_AND_ENDED[1]].replace("Z", "+00:00")).timestamp()
    weights = [path for path in (runs / stage).rglob("*.safetensors") if "merged" not in path.parts]
    assert weights and all(path.stat().st_mtime < ended for path in weights)
    shown = json.dumps(executed.cells, ensure_ascii=False)
    assert said in shown and "brought back from your Drive and verified" in shown


def digests(folder: Path) -> dict[str, str]:
    """The weights of all finished models in it."""
    weights = (path for path in folder.rglob("*.safetensors") if "checkpoint-" not in str(path))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in weights}


@pytest.mark.slow
def test_notebook_01_trains_equal_sizes(session):
    pytest.importorskip("chitchat_dataset")
    run, runs, _ = session
    if not list(runs.glob("01_pretrain/*/newllm")):
        assert run(ROOT / "notebooks" / "01_pretrain_wikitext.ipynb")[0].returncode == 0
    (folder,) = [folder for folder in (runs / "01_pretrain").iterdir() if folder.is_dir()]
    sizes = [row["parameters"] for row in json.loads((folder / "comparison.json").read_text())]
    assert abs(sizes[0] - sizes[1]) <= 0.02 * sizes[0]


def test_the_demo_runs_every_notebook():
    script = (ROOT / "scripts" / "demo.sh").read_text(encoding="utf-8")
    assert re.findall(r"notebooks/(\w+\.ipynb)", script) == [path.name for path in NOTEBOOKS]
