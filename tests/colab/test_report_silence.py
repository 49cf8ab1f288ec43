"""The report: useful to us, shown before it can be downloaded, and silent about its user: errors of all kinds that were
provoked by the user's own text, and none of it is in it."""

import base64
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from chats import untrained_chat
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment
from safetensors.torch import load_file
from tokenizers import Tokenizer

from newllm_lib.adapters.base_model import find_base_model
from newllm_lib.chat import Chat
from newllm_lib.cli import main, parse_stage
from newllm_lib.colab import problem_report as report
from newllm_lib.colab.page.notices import causes, in_one_sentence
from newllm_lib.colab.problem_report import kind_of, report_text, show_report
from newllm_lib.data.conversations import load_conversations
from newllm_lib.data.files import check_file
from newllm_lib.data.sources import find_dataset
from newllm_lib.data.text import load_text
from newllm_lib.doctor import Finding
from newllm_lib.errors import CODES, InputError
from newllm_lib.evaluation.memory_file import read_memory
from newllm_lib.models import NewLLMConfig
from newllm_lib.preferences.pairs import load_preferences
from newllm_lib.stages.pretrain import PretrainArguments
from newllm_lib.training.checkpoint import check_model_folder, open_run, read_settings

SECRET = "Zxqv"  # part of a word in every file, name and value below
WORDS = f'My dear {SECRET}, it\'s "over" - ring {SECRET}@example.org, \\( {SECRET} $1'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    finding = Finding("GPU", "none", "note", "Small presets run on the CPU.", "NL-101")
    monkeypatch.setattr(report, "doctor", lambda: [finding])
    monkeypatch.delattr(sys, "last_value", raising=False)
    monkeypatch.setenv("HF_TOKEN", f"hf_{SECRET}abcdefgh")


def named(folder: Path, content: str | bytes, suffix: str) -> Path:
    path = folder / f"{SECRET}'s letters {suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def text(path: Path) -> list:
    return list(load_text(data=str(path)).train.read())


def conversations(path: Path) -> list:
    return list(load_conversations(data=str(path)).train.read(0))


def preferences(path: Path) -> object:
    return load_preferences(data=str(path)).train


def run_code(source: str, filename: str) -> None:
    exec(compile(source, filename, "exec"), {})


def broken_state(folder: Path) -> None:
    torch.nn.Linear(2, 2).load_state_dict({f"{WORDS}.weight": torch.zeros(3)})


def other_settings(folder: Path) -> None:
    open_run(folder / SECRET, {"text": WORDS}, {})
    open_run(folder / SECRET, {"text": f"{WORDS}!"}, {})


def own_class(folder: Path) -> None:
    run_code(
        f"class {SECRET}(KeyError): pass\ndef about_{SECRET}(): raise {SECRET}('{SECRET}')\nabout_{SECRET}()", "<cell>"
    )


def chained(folder: Path) -> None:
    try:
        {}[WORDS]
    except KeyError as error:
        problem = RuntimeError(f"cannot read {WORDS}")
        problem.__notes__ = [WORDS]
        raise problem from error


# What goes wrong -> a real way of making it do so.
ERRORS = {
    "a row without its line's end": lambda f: text(named(f, f'{{"text": "{SECRET}', "a.jsonl")),
    "a list cut off": lambda f: text(named(f, f'["{WORDS[:30]}', "a.json")),
    "csv without a header": lambda f: conversations(named(f, f"{WORDS}\nmore,{SECRET}\n", "a.csv")),
    "an open quote": lambda f: conversations(named(f, f'prompt,response\n"{WORDS[:12]},b\nc,d\n', "a.csv")),
    "a role": lambda f: conversations(
        named(f, json.dumps({"messages": [{"role": WORDS, "content": WORDS}]}), "a.jsonl")
    ),
    "columns": lambda f: conversations(named(f, json.dumps({WORDS: 1, SECRET: WORDS}), "a.jsonl")),
    "pairs": lambda f: preferences(named(f, json.dumps({WORDS: 1, "chosen": WORDS}), "a.jsonl")),
    "parquet": lambda f: text(named(f, f"PAR1{WORDS}", "a.parquet")),
    "bytes": lambda f: text(named(f, b"\xff\xfe\x00" + WORDS.encode(), "a.jsonl")),
    "a name": lambda f: check_file(f / SECRET / "a.txt", "data"),
    "an ending": lambda f: text(named(f, WORDS, f".{SECRET}")),
    "a number": lambda f: text(named(f, json.dumps({"text": {SECRET: WORDS}}), "a.jsonl")),
    "a data set": lambda f: find_dataset(WORDS),
    "a base": lambda f: find_base_model(f"{SECRET} {SECRET}", offline=True),
    "a model's folder": lambda f: check_model_folder(f / SECRET),
    "a run's folder": lambda f: read_settings(f / SECRET),
    "other settings": other_settings,
    "a memory": lambda f: read_memory(named(f, WORDS, "a.safetensors")),
    "a flag's value": lambda f: parse_stage(PretrainArguments, "newllm", ["--seed", SECRET]),
    "a flag": lambda f: parse_stage(PretrainArguments, "newllm", [f"--{SECRET}", WORDS]),
    "a preset": lambda f: parse_stage(PretrainArguments, "newllm", ["--preset", WORDS]),
    "a config": lambda f: NewLLMConfig.from_dict({"hidden_size": WORDS, SECRET: WORDS}).to_json_file(f / SECRET / "a"),
    "a chat's memory": lambda f: Chat(untrained_chat(f / "chat")).load_memory(f / SECRET),
    "a template": lambda f: Environment().from_string("{% if " + WORDS),
    "json": lambda f: json.loads(WORDS),
    "an open file": lambda f: (f / SECRET / WORDS).open(),
    "a header": lambda f: load_file(named(f, WORDS, "b.safetensors")),
    "a tokenizer": lambda f: Tokenizer.from_str(json.dumps({SECRET: WORDS})),
    "a table": lambda f: pyarrow.parquet.ParquetFile(named(f, WORDS, "b.parquet")),
    "a pickle": lambda f: pickle.loads(f"c{SECRET}\n{SECRET}\n.".encode()),
    "names of weights": broken_state,
    "a hub's name": lambda f: validate_repo_id(f"{SECRET}/{SECRET}/{SECRET}"),
    "a command": lambda f: subprocess.run([sys.executable, "-c", f"raise SystemExit('{SECRET}')"], check=True),
    "a surrogate": lambda f: f"{SECRET}\ud800".encode(),
    "a class of the user's": own_class,
    "code that looks like ours": lambda f: run_code(f"def {SECRET}(): 1 / 0\n{SECRET}()", f"/x/newllm_lib/{SECRET}.py"),
    "one error for another": chained,
    "the user's own sentence": lambda f: (_ for _ in ()).throw(InputError(f"{SECRET} {WORDS}", "NL-402")),
}


@pytest.fixture(scope="module")
def provoked(tmp_path_factory):
    """name -> the error, of which most say the secret."""
    found = {}
    for name, provoke in ERRORS.items():
        try:
            provoke(tmp_path_factory.mktemp("attack"))
        except BaseException as error:
            found[name] = error
    return found


@pytest.mark.parametrize("name", ERRORS)
def test_no_error_tells_the_users_text(provoked, make_panel, name):
    panel = make_panel()
    panel.controls["data"].widget.value = f"/content/drive/{SECRET}/{WORDS}"

    def fail():
        raise provoked[name]

    with pytest.raises(BaseException) as stopped:
        in_one_sentence()(fail)()
    for error in (provoked[name], stopped.value):
        sys.last_value = error
        report = report_text(panel)
        assert SECRET.lower() not in report.lower() and "My dear" not in report, report
        assert "== Newest error" in report and " [NL-" in report


def test_most_errors_would_have_told_it(provoked):
    told = [name for name, error in provoked.items() if any(SECRET in str(link) for link in causes(error))]
    assert provoked.keys() == ERRORS.keys() and len(told) >= 30, ERRORS.keys() - set(told)


def test_what_helps_is_told(provoked, tmp_path):
    def report_on(error):
        sys.last_value = error
        return report_text()

    told = report_on(provoked["a name"])
    assert "InputError [NL-402] A file cannot be read as what it should be. Setting: data.\n" in told
    assert "  newllm_lib.data.files:" in told and " in check_file\n" in told
    assert "FileNotFoundError [NL-901] A fault of ours. System error: ENOENT.\n" in report_on(provoked["an open file"])
    assert "  json.decoder:" in report_on(provoked["json"])
    assert "  torch.nn.modules.module:" in report_on(provoked["names of weights"])
    assert kind_of(provoked["a class of the user's"]) == "KeyError"
    assert "RuntimeError [NL-901]" in report_on(provoked["one error for another"])
    assert "KeyError [NL-901]" in report_text()


def test_a_log_and_settings_tell_no_words(make_panel):
    panel = make_panel()
    folder = Path(panel.arguments("newllm").output_dir)
    folder.mkdir(parents=True)
    lines = [{"step": 7, SECRET: 1, "loss": SECRET}, [SECRET], {"loss": {SECRET: 2}}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n" + "[" * 100_000)
    (folder.parent / "tiny-gpt2").mkdir()
    (folder.parent / "tiny-gpt2" / "metrics.jsonl").write_bytes(b"\xff")
    told = report_text(panel)
    assert '{"step": 7}' in told and "tiny-gpt2: there is no log\n" in told and SECRET not in told


def test_the_command_line_still_says_the_whole_sentence(capsys):
    assert main(["chat", f"/{SECRET}"]) == 2
    assert SECRET in capsys.readouterr().err


def error_of(function):
    """What IPython would have as the newest error."""
    with pytest.raises(BaseException) as caught:
        function()
    return caught.value


def test_it_says_what_is_needed(make_panel):
    panel = make_panel()
    folder = Path(panel.arguments("newllm").output_dir)
    folder.mkdir(parents=True)
    log = [{"step": 10 * n, "loss": 5.0 - n, "note": "words"} for n in range(20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"step": 2')
    sys.last_value = error_of(in_one_sentence()(lambda: 1 / 0))
    text = report_text(panel)
    for part in ("newllm 0.", "Python 3.", "torch ", "note  GPU: none", "NL-101", "preset smoke", "max_length = "):
        assert part in text
    assert "data = [left out]" in text and "data_source = file" in text
    assert '"step": 190' in text and '"step": 10,' not in text and "words" not in text
    assert "tiny-gpt2: there is no log" in text
    assert "ZeroDivisionError [NL-901] A fault of ours.\n" in text and "  [a cell or file of yours]\n" in text


def test_it_is_made_whatever_is_missing(make_panel):
    assert "There is no settings panel" in report_text(None) and "None." in report_text(None)
    panel = make_panel()
    panel.controls["data"].widget.value = "/gone/far/away.txt"
    text = report_text(panel)
    assert "there is no log (InputError)" in text and "away" not in text and "gone" not in text


def test_it_is_shown_before_it_can_be_downloaded(make_panel, monkeypatch):
    shown, said = [], []
    for name in ("display", "show"):
        monkeypatch.setattr(report, name, shown.append)
    monkeypatch.setattr(report, "say", said.append)
    box = show_report(make_panel())
    button, output = box.children
    assert shown[1] is box and output.value == "" and "make a report" in said[0]
    states = []
    output.observe(lambda change: states.append(change["new"]), names="value")
    button.click()
    assert "Looking at this machine" in states[0]
    link = re.search(r'download="newllm-report.txt" href="data:text/plain;base64,([^"]+)"', states[1])
    text = base64.b64decode(link[1]).decode()
    assert text.startswith("New-LLM report") and states[1].index("== Versions") < link.start()
    assert "sent nowhere" in states[1]


def test_all_codes_are_in_the_cell(monkeypatch):
    shown = []
    monkeypatch.setattr(report, "display", lambda box: None)
    monkeypatch.setattr(report, "show", shown.append)
    show_report()
    html = shown[0]
    assert html.startswith("<details ") and all(f"<b>{code}</b>" in html for code in CODES)
