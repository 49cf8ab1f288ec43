"""Whatever stands on a command line, a run is opened with it, or one InputError says what is wrong."""

import dataclasses
import importlib
import json
import os
from pathlib import Path

import pytest
from chats import untrained_chat, write_conversations
from hypothesis import strategies as st
from sample_text import make_text

from newllm_lib import cli
from newllm_lib.cli import parse_stage
from newllm_lib.errors import InputError
from newllm_lib.training.arguments import ModelArguments
from newllm_lib.training.checkpoint import check_place, open_run, read_settings
from newllm_lib.training.run import check_size

STAGES = {"stages.pretrain": "PretrainArguments", "stages.sft": "SftArguments"}
STAGES |= {"adapters.qlora_lwf": "QloraLwfArguments"}
STAGES |= {"preferences.dpo": "DpoArguments", "preferences.sweep": "SweepArguments"}
NUMBERS = ["0", "-1", "1", "2", "0.5", "-0.0", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 30, "9" * 5000, "1_000"]
WORDS = ["", " ", "true", "False", "yes", "on", "TRUE", "none", "None", "null", "all", "steps", "a,b", "1,2", "-", "--"]
WORDS += [
    "é\n日本",
    "\udc80",
    "x" * 100_000,
    "%s %(prog)s {0}",
    "[",
    "[]",
    "{}",
    '{"a": NaN}',
    '{"a": [1, null]}',
    "~",
]
WORDS += [
    '{"factor": 0.1}',
    '{"num_cycles": "x"}',
    "adamw_torch",
    "sgd",
    "cosine_with_restarts",
    "reduce_lr_on_plateau",
]
VALUES = st.sampled_from([*NUMBERS, *WORDS]) | st.text(max_size=9) | st.integers().map(str) | st.floats().map(str)
VALUES = VALUES.filter(lambda word: not word.startswith(("/", "..")) and "\0" not in word)
UNKNOWN = ["--learning-rate", "--lr", "--", "-x", "--=", "---seed", "word", "--seed=", "--SEED", "--model_type=gpt5"]


def values_of(field: dataclasses.Field) -> st.SearchStrategy[str]:
    """Now and then the field's own value, or one of those that its type lists."""
    own = [field.default, *getattr(field.type, "__args__", ())]
    typical = st.sampled_from([str(value) for value in own])
    return st.booleans().flatmap(lambda is_odd: VALUES if is_odd else typical)


@st.composite
def command_lines(draw, flags: dict[str, st.SearchStrategy[str]], most: int) -> list[str]:
    """Some of the flags, twice, without a value or with several among them, and now and then a word that is none."""
    words = []
    for name in draw(st.lists(st.sampled_from(list(flags)), max_size=most)):
        value = draw(flags[name])
        ways = [[f"--{name}", value]] * 5 + [[f"--{name}={value}"], [f"--{name}"], [f"--{name}", value, value]]
        words += draw(st.sampled_from(ways))
    at = draw(st.integers(0, len(words)))
    return words[:at] + draw(st.sampled_from([[]] * 20 + [[word] for word in UNKNOWN])) + words[at:]


def check_sentence(told: str) -> None:
    assert told.strip() and "\n" not in told and len(told) < 900, told[:2000]


@pytest.mark.parametrize("stage", STAGES)
def test_settings_open_a_run_or_are_refused(fuzz, tmp_path, monkeypatch, stage):
    module = importlib.import_module(f"newllm_lib.{stage}")
    kind = getattr(module, STAGES[stage])
    flags = {field.name: values_of(field) for field in dataclasses.fields(kind) if field.init}
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    number = 0

    def start(argv: list[str]) -> str:
        nonlocal number
        number += 1
        try:
            args = parse_stage(kind, f"newllm {stage}", ["--output_dir", f"run-{number}", *argv])
            folder = Path(args.output_dir)
            check_place(folder)
            if isinstance(args, ModelArguments):
                check_size(args)
            open_run(folder, args.run_settings(), args.session_settings())
            assert read_settings(folder)["run"] == json.loads(json.dumps(args.run_settings()))
        except InputError as error:
            check_sentence(str(error))
            return "refused"
        except SystemExit as error:  # of --help
            assert error.code == 0
            return "helped"
        finally:
            os.environ.clear()
            os.environ.update(before)
        return "opened"

    found = [{"argv": ["--seed", "x" * 100_000]}, {"argv": ["--hub_model_id", "a\nb"]}]
    found += [{"argv": ["--output_dir", "\udc80"]}, {"argv": ["--data", "\udc80.txt"]}]
    found += [{"argv": ["--preset=--"]}, {"argv": ["--seed=--"]}]
    found += [{"argv": [f"--{name}", "9" * 30]} for name in ("context_size", "max_eval_tokens") if name in flags]
    assert {"opened", "refused"} <= set(fuzz(start, 40, found, argv=command_lines(flags, 4)))


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    folder = untrained_chat(tmp_path_factory.mktemp("talker") / "chat", "tiny-gpt2")
    run = {
        "stage": "pretrain",
        "model_type": "tiny-gpt2",
        "max_length": 32,
        "text_source": "file",
        "validation_text": "",
    }
    settings = {"run": run, "session": {"per_device_eval_batch_size": 4}}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


COMMANDS = {  # command -> what stands before the flags, and these
    "generate": (["{model}"], ["prompt", "max_new_tokens", "temperature", "top_p", "seed", "base"]),
    "chat": (["{model}"], ["max_new_tokens", "temperature", "top_p", "seed", "repetition_penalty", "base"]),
    "evaluate": (["{model}", "--data", "text.txt"], ["data", "max_length", "batch_size", "json", "limit", "base"]),
    "compare": (["{model}", "--data", "text.txt"], ["data", "prompt", "json", "picture"]),
    "data": ([], ["data", "data_source", "max_length", "max_samples", "skip_bad_rows", "template", "model"]),
    "export": (["{model}"], ["format", "output", "int8", "base"]),
    "doctor": ([], ["folder"]),
    "": ([], ["help", "version", "seed"]),
}
FOUND = {
    "generate": [
        ["--prompt", "a", "--seed", "-1"],
        ["--prompt", "a", "--temperature", "nan"],
        ["--prompt", "a", "--temperature", "2e-111"],
    ],
    "chat": [["--seed", "9" * 30], ["--repetition_penalty", "inf"], ["--repetition_penalty", "1e-320"]],
    "compare": [["--picture", "text.txt"], ["--picture", "no-folder/a.png"]],
    "export": [
        ["--format", "merged", "--output", "a", "9" * 5000],
        *(["--format", form, "--output", "~no such user/a"] for form in ("merged", "html", "gguf")),
    ],
    "doctor": [["--folder", "9" * 5000], ["--folder=--"]],
    "data": [["--data", "", "--max_samples=--"]],
}
FILES = st.sampled_from(["text.txt", "talk.jsonl", "{model}"])
FEW_TOKENS = st.sampled_from(["1", "2", "0", "-1", "nan", "", "1.5", "x", "true"])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works_or_is_refused(fuzz, tmp_path, monkeypatch, capsys, talker, command):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(make_text(3), encoding="utf-8")
    write_conversations(Path("talk.jsonl"), 4)
    first, names = COMMANDS[command]
    flags = {name: FEW_TOKENS if name == "max_new_tokens" else VALUES | FILES for name in names}

    def run(argv: list[str]) -> str:
        lines = iter(["Hello", ""])
        monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
        words = [command, *first, *argv] if command else argv
        try:
            code = cli.main([word.replace("{model}", str(talker)) for word in words])
        except SystemExit as error:
            code = error.code
        told = capsys.readouterr().err
        assert code in (0, 2)
        if code == 2:
            assert told.startswith("newllm: ") and told.endswith("\n")
            check_sentence(told[:-1])
        return ("done", "", "refused")[code]

    found = [{"argv": argv} for argv in FOUND.get(command, ())]
    assert "refused" in fuzz(run, 10, found, argv=command_lines(flags, 3))
