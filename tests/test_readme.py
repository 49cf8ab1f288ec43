"""What the README files say: every command parses, every link to a file of ours leads somewhere, and an edition in
another language says the same."""

import importlib.util
import re
import shlex
from functools import partial, wraps
from importlib import import_module
from pathlib import Path

import pytest
from conversations import make_conversations, write_conversations
from matplotlib.figure import Figure
from sample_text import make_text

from newllm_lib.cli import main
from newllm_lib.colab.page.languages import use_language
from newllm_lib.colab.panel.controls import LABELS

ROOT = Path(__file__).parents[1]
EDITIONS = [ROOT / "README_COLAB.md", ROOT / "README_COLAB.ja.md"]
READMES = [ROOT / "README.md", *EDITIONS]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SCRIPT = "'!bash' new-llm/scripts/colab_train.sh "
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(path: Path) -> list[tuple[str, list[str]]]:
    """(language, lines) of every block of code, those of a shell without their comments."""
    found = []
    for language, code in BLOCK.findall(path.read_text(encoding="utf-8")):
        lines = code.splitlines()
        if language == "bash":
            lines = [shlex.join(shlex.split(line, comments=True)) for line in lines]
        found.append((language, lines))
    return found


def commands(*paths: Path) -> list[str]:
    """The lines with `newllm`, also those of a cell, and those of the script that calls `newllm start`."""
    lines = {line for path in paths for language, lines in blocks(path) if language == "bash" for line in lines}
    lines = {line.replace("'!newllm'", "newllm").replace(SCRIPT, "newllm start ") for line in lines}
    return sorted(line for line in lines if line.startswith("newllm "))


def figures(text: str) -> list[list[str]]:
    """The numbers in the GPU, minutes and memory of each notebook, sorted: another language has another order."""
    text = text.replace("CPU 1 コア", "one CPU core")
    rows = [line.split("|")[3:] for line in text.splitlines() if line.startswith("| [![")]
    return [sorted(re.findall(r"\d+(?:\.\d+)?", cell)) for row in rows for cell in row]


@pytest.mark.parametrize("line", commands(*READMES))
def test_every_command_parses(line, tmp_path, monkeypatch):
    """The command line is read in full; only the work itself is left out."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    calls = []

    def record(*args, **kwargs):
        calls.append(args)
        return {"loss": 1.0} if "evaluate" in line else []

    stages = [f"stages.{stage}" for stage in ("pretrain", "sft", "evaluate", "compare", "generate")]
    stages += ["adapters.qlora_lwf", "export.export", "preferences.dpo", "preferences.sweep"]
    for stage in stages:
        module, name = import_module(f"newllm_lib.{stage}"), stage.split(".")[1]
        monkeypatch.setattr(module, name, wraps(getattr(module, name))(partial(record)))
    monkeypatch.setattr("newllm_lib.stages.compare.comparison_table", lambda rows: "")
    monkeypatch.setattr("newllm_lib.stages.data.inspect_dataset", record)
    monkeypatch.setattr("newllm_lib.stages.data.catalogue_text", lambda: calls.append("catalogue"))
    monkeypatch.setattr("newllm_lib.adapters.modules.modules_table", record)
    monkeypatch.setattr("newllm_lib.doctor.doctor", record)
    for name in ("start.start", "status.report", "stop.stop"):
        monkeypatch.setattr(f"newllm_lib.background.{name}", record)
    monkeypatch.setattr("newllm_lib.training.trained_model.open_model", record)
    monkeypatch.setattr("newllm_lib.chat.Chat", record)
    monkeypatch.setattr("builtins.input", lambda prompt: "")

    monkeypatch.setattr("newllm_lib.stages.compare.comparison_figure", lambda rows: Figure())
    assert main(shlex.split(line)[1:]) == 0
    assert calls


@pytest.mark.parametrize("path", EDITIONS, ids=lambda path: path.name)
def test_there_are_commands_for_every_stage(path):
    words = {line.split()[1] for line in commands(path)}
    stages = {"pretrain", "sft", "qlora-lwf", "dpo", "sweep", "export", "data", "evaluate", "compare", "generate"}
    assert words >= stages | {"chat", "doctor", "start", "status", "stop"}
    started = {line.split()[2] for line in commands(path) if line.startswith("newllm start ")}
    assert started == {"pretrain", "sft", "qlora-lwf", "dpo", "sweep"}


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_local_links_resolve(path):
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://|#)([^)\s]+)\)", text) + re.findall(r'src="(?!https?://)([^"]+)"', text)
    assert not [target for target in targets if not (ROOT / target.split("#")[0]).exists()]


def contents(path: Path) -> dict:
    """What two editions of one text have in common."""
    text = path.read_text(encoding="utf-8")
    prose = BLOCK.sub("", text)
    return {
        "code": blocks(path),
        "words as code": set(re.findall(r"`([^`\n]+)`", prose)),
        "links": set(LINK.findall(text.replace("/ja/", "/"))) - {edition.name for edition in EDITIONS},
        "error codes": re.findall(r"^\| (NL-\d{3}) \|", text, re.MULTILINE),
        "all error codes": set(re.findall(r"NL-\d{3}", text)),
        "headings": [len(signs) for signs in re.findall(r"^(#+) ", prose, re.MULTILINE)],
        "rows of tables": len(re.findall(r"^\|", text, re.MULTILINE)),
        "figures": figures(text),
    }


def test_both_editions_say_the_same():
    english, japanese = map(contents, EDITIONS)
    assert len(english["code"]) == 2 and len(english["figures"]) >= 7 and english["error codes"]
    assert japanese == english


def test_both_editions_say_which_slider_is_which_flag():
    specification = importlib.util.spec_from_file_location("sliders", ROOT / "scripts" / "sliders.py")
    sliders = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(sliders)
    try:
        for name, language in sliders.EDITIONS.items():
            text = (ROOT / name).read_text(encoding="utf-8")
            assert sliders.with_table(text, language) == text, "run python scripts/sliders.py"
            for field in LABELS:
                text = re.sub(rf"\*[^*]+\* `--{field}`(, )?", "", text)
            assert sliders.with_table(text, language) != text, "a row that is missing is found"
    finally:
        use_language("en")


@pytest.mark.parametrize("path", EDITIONS, ids=lambda path: path.name)
def test_an_edition_begins_with_a_link_to_the_other(path):
    (other,) = set(EDITIONS) - {path}
    assert LINK.search(path.read_text(encoding="utf-8"))[1] == other.name


def test_the_ten_lines_of_python_train_and_chat(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(make_text(240), encoding="utf-8")
    write_conversations(Path("conversations.jsonl"), make_conversations(20))
    ((_, lines),) = [block for block in blocks(ROOT / "README.md") if block[0] == "python"]
    assert sum(bool(line) for line in lines) <= 10
    code = "\n".join(lines).replace("max_steps=500", "max_steps=2, num_parameters=30_000")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out and Path("runs/talk/results.json").exists()
