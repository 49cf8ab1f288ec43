"""A model in a folder of its own: others open it with transformers alone, as its card says."""

import os
import re
import subprocess
import sys

import pytest
from chats import train_chat, write_conversations
from lwf_runs import train_adapters

from newllm_lib.cli import main
from newllm_lib.errors import InputError
from newllm_lib.export.export import export


def snippet(folder) -> str:
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]


@pytest.mark.parametrize("kind", ["whole", "adapters"])
def test_the_cards_lines_open_it_somewhere_else(tmp_path, kind):
    run = (
        train_chat(write_conversations(tmp_path / "talk.jsonl"), tmp_path / "run")
        if kind == "whole"
        else train_adapters(tmp_path)
    )
    assert main(["export", str(run), "--format", "transformers", "--output", str(tmp_path / "away" / "model")]) == 0
    folder = tmp_path / "away" / "model"
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not {name for name in names if name.startswith(("checkpoint", "adapter"))}
    for name in ("run", "gemma"):  # where it was made
        if (tmp_path / name).exists():
            (tmp_path / name).rename(tmp_path / f"{name}-gone")
    code = snippet(folder)
    assert ("newllm_lib" in code) == (kind == "whole")  # a Gemma needs nothing of ours
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=folder.parent, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_what_is_there_is_not_written_over(tmp_path):
    run = train_chat(write_conversations(tmp_path / "talk.jsonl"), tmp_path / "run")
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="exists; choose another --output"):
        export(run, "transformers", tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())
