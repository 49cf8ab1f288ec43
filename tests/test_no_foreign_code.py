"""A model folder from a stranger can be opened without running code."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from chats import untrained_chat

LIBRARY = Path(__file__).parents[1] / "newllm_lib"
WITHOUT_CODE = {"PeftModel", "GenerationConfig"}  # these read numbers, and know no code of a folder
LOADERS = {"from_pretrained", "from_config"}


def loading_calls() -> list[tuple[str, ast.Call]]:
    """(place, call) of everything in the library that loads what a folder or the hub holds."""
    found = []
    for path in sorted(LIBRARY.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if node.func.attr in LOADERS and owner not in WITHOUT_CODE:
                    found.append((f"{path.relative_to(LIBRARY)}:{node.lineno}", node))
    return found


def test_nothing_is_loaded_that_could_bring_code():
    calls = loading_calls()
    trusting = [
        place
        for place, call in calls
        if not any(word.arg == "trust_remote_code" and ast.unparse(word.value) == "False" for word in call.keywords)
        and not (call.func.attr == "from_config" and place.startswith("models/"))  # configs made here
    ]
    assert len(calls) >= 5 and trusting == []


def test_nothing_is_unpickled():
    for path in sorted(LIBRARY.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "cloudpickle", "dill", "joblib"}, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "numpy.load", "np.load"):
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert words.get("weights_only") == "True" or words.get("allow_pickle") == "False", path


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_the_code_of_a_folder_is_not_run_even_by_somebody_who_says_y(tmp_path, file):
    """transformers would ask on stdin whether to run it, and takes the third line of a chat for the answer."""
    folder = untrained_chat(tmp_path / "chat")
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import PreTrainedConfig, PreTrainedTokenizerFast\n"
        "class Config(PreTrainedConfig):\n    model_type = 'strange'\n"
        "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    fields = json.loads((folder / file).read_text())
    if file == "config.json":
        fields |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Config"}}
    else:
        fields |= {"tokenizer_class": "Strange", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}}
    (folder / file).write_text(json.dumps(fields))
    done = subprocess.run(
        [sys.executable, "-m", "newllm_lib", "chat", str(folder)],
        input="hello\nhow are you\ny\n",
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(LIBRARY.parent)},
        cwd=tmp_path,
    )
    assert not ran.exists()
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Python code of its own, which newllm never runs" in done.stderr
