"""What the README files say: every command parses, every link to a file of ours leads somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from newllm_lib.cli import main

ROOT = Path(__file__).parents[1]
READMES = [path for name in ("README.md", "README_COLAB.md") if (path := ROOT / name).exists()]


def commands() -> list[str]:
    lines = []
    for path in READMES:
        for block in re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            lines += [line for line in block.splitlines() if line.startswith("newllm ")]
    return sorted(set(lines))


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line, monkeypatch):
    """The command line is read in full; only the work itself is left out."""
    calls = []

    def record(*args, **kwargs):
        calls.append(args)
        return {"loss": 1.0} if "evaluate" in line else []

    for stage in ("pretrain", "sft", "qlora_lwf", "dpo", "sweep", "merge", "evaluate", "compare", "generate"):
        monkeypatch.setattr(f"newllm_lib.stages.{stage}.{stage}", record)
    monkeypatch.setattr("newllm_lib.stages.compare.comparison_table", lambda rows: "")
    monkeypatch.setattr("newllm_lib.stages.data.inspect_dataset", record)
    monkeypatch.setattr("newllm_lib.stages.data.report_text", lambda report: "")
    monkeypatch.setattr("newllm_lib.stages.data.catalogue_text", lambda: calls.append("catalogue"))
    monkeypatch.setattr("newllm_lib.doctor.doctor", record)
    monkeypatch.setattr("newllm_lib.chat.Chat", record)
    monkeypatch.setattr("builtins.input", lambda prompt: "")

    class NoFigure:
        def savefig(self, *args, **kwargs):
            calls.append(args)

    monkeypatch.setattr("newllm_lib.stages.compare.comparison_figure", lambda rows: NoFigure())
    assert main(shlex.split(line, comments=True)[1:]) == 0
    assert calls


def test_there_are_commands_for_every_stage():
    words = {line.split()[1] for line in commands()}
    stages = {"pretrain", "sft", "qlora-lwf", "dpo", "sweep", "merge", "data", "evaluate", "compare", "generate"}
    assert words >= stages | {"chat", "doctor"}


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_local_links_resolve(path):
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://|#)([^)\s]+)\)", text) + re.findall(r'src="(?!https?://)([^"]+)"', text)
    assert not [target for target in targets if not (ROOT / target.split("#")[0]).exists()]
