"""The command line: exit codes, one sentence per complaint, nothing written on bad input."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from newllm_lib.cli import main, parse_stage
from newllm_lib.errors import InputError
from newllm_lib.stages.pretrain import PRESETS, PretrainArguments

SMALL = shlex.split(
    "--tokenizer byte --max_length 32 --num_parameters 120000 --max_steps 4 --per_device_train_batch_size 4 "
    "--logging_steps 2 --eval_steps 2 --save_steps 2 --auto_precision False"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from sample_text import make_text

    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(make_text(240))
    assert main(["pretrain", "--data", str(folder / "text.txt"), "--output_dir", str(folder / "run"), *SMALL]) == 0
    return folder / "run"


def complaint_of(capsys, *argv: str) -> str:
    """The one sentence on standard error of a command that exits with 2."""
    assert main([str(word) for word in argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("newllm: ")
    assert "Traceback" not in captured.err
    return captured.err


def write(path, content: bytes):
    path.write_bytes(content)
    return path


BAD_DATA = {
    "missing": (None, "does not exist"),
    "empty.txt": (b"", "is empty"),
    "binary.txt": (b"\x7fELF\0\0\0", "is a binary file"),
    "latin.txt": ("Grüße\n".encode("latin-1"), "is not UTF-8 text (line 1, byte 3)"),
    "broken.jsonl": (b'{"text": "a"}\n{oops}\n', "line 2: not JSON: Expecting property name"),
    "column.jsonl": (b'{"body": "a"}\n', "line 1: there is no 'text' column"),
    "short.txt": (b"Too short.\n", "fewer than one row of max_length 32"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_refused_before_anything_is_written(capsys, tmp_path, name):
    content, expected = BAD_DATA[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    message = complaint_of(capsys, "pretrain", "--data", path, "--output_dir", tmp_path / "run", *SMALL)
    assert expected in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--max_length", "1"], "max_length has to be at least 2, got 1"),
        (["--tokenizer", "bpe", "--vocab_size", "90000"], "with a vocabulary of 90,000: the nearest size is"),
        (["--learning_rat", "1"], "unknown argument '--learning_rat' (did you mean '--learning_rate'?)"),
        (["--max_steps", "many"], "--max_steps"),
        (["--model_type", "gpt4"], "gpt4"),
        (["--preset", "huge"], "preset has to be one of smoke"),
        (["--data_source", "hub"], "contradicts data_source"),
        (["--lr_scheduler_type", "zigzag"], "zigzag"),
        (["--num_parameters", "10"], "num_parameters 10 cannot be met"),
    ],
)
def test_bad_flags(capsys, text_file, tmp_path, flags, expected):
    message = complaint_of(capsys, "pretrain", "--data", text_file, "--output_dir", tmp_path / "run", *SMALL, *flags)
    assert expected in message
    assert not (tmp_path / "run").exists()


BAD_CONVERSATIONS = {
    "missing.jsonl": (None, [], "does not exist"),
    "empty.jsonl": (b"", [], "is empty"),
    "talk.txt": (b"Hello.\n", [], "is running text; conversations come as .jsonl"),
    "binary.jsonl": (b"\x7fELF\0\0", [], "is a binary file"),
    "latin.jsonl": ('{"prompt": "Gr\u00fc\u00dfe"}\n'.encode("latin-1"), [], "is not UTF-8 text (line 1, byte 15)"),
    "broken.jsonl": (b"{oops}\n", [], "line 1: not JSON: Expecting property name"),
    "column.jsonl": (b'{"body": "a"}\n', [], "line 1: there is neither a 'messages' column nor"),
    "silent.jsonl": (b'{"messages": [{"role": "user", "content": "a"}]}\n', [], "line 1: there is no assistant turn"),
    "half.jsonl": (b'{"prompt": "\\ud83d", "completion": "b"}\n', [], "line 1: turn 1 (user) holds half a character"),
    "object.json": (b'{"prompt": "a"}', [], "line 1: there is no 'completion'"),
    "broken.json": (b"[{", [], "is not JSON"),
    "false.parquet": (b"PAR0", [], "cannot be read as Parquet after row 0"),
    "alpaca.jsonl": (
        b'{"instruction": "a", "input": "", "output": ""}\n', ["alpaca"], "line 1: 'output' is empty; --skip_bad_rows"
    ),
    "name.jsonl": (b'{"prompt": "a", "completion": "b"}\n', ["dolli"], "dataset has to be one of dailydialog"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CONVERSATIONS)
@pytest.mark.parametrize("command", ["sft", "data"])
def test_bad_conversations_are_refused_before_anything_is_written(capsys, tmp_path, monkeypatch, command, name):
    content, dataset, expected = BAD_CONVERSATIONS[name]
    path, run, cache = tmp_path / name, tmp_path / "run", tmp_path / "cache"
    monkeypatch.setenv("NEWLLM_CACHE", str(cache))
    if content is not None:
        path.write_bytes(content)
    if command == "sft":
        argv = [*(["--dataset", *dataset] if dataset else []), "--data", path, "--output_dir", run, *SMALL]
    else:
        argv = [*dataset, "--data", path]
    assert expected in complaint_of(capsys, command, *argv)
    assert not run.exists()
    assert not cache.exists() or not [file for file in cache.rglob("*") if file.is_file()]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "there is nothing to train on; name a --dataset, or a file with --data"),
        (["--dataset", "dolly-ja"], "could not be had from the hub (HF_HUB_OFFLINE is set)"),
        (["--dataset", "dolly-ja", "--data_source", "offline"], "has no offline stand-in"),
        (["--dataset", "owner/na/me"], "cannot be the id of a dataset"),
        (["--dataset", "dolly", "--model", "nowhere"], "num_parameters cannot be set with --model"),
        (["--dataset", "dolly", "--max_samples", "0"], "max_samples has to be at least 1, got 0"),
        (["--dataset", "dolly", "--held_out_share", "1.5"], "held_out_share has to lie between 0 and 1, got 1.5"),
        (["--dataset", "dolly", "--max_length", "8"], "conversations have no answer within 8 tokens"),
        (["--dataset", "dolly", "--too_long", "split"], "split"),
        (["--dataset", "dolly", "--grow_context", "2"], "grow_context needs a trained model"),
        (["--dataset", "dolly", "--datset", "x"], "unknown argument '--datset' (did you mean '--dataset'?)"),
    ],
)
def test_bad_flags_of_sft(capsys, tmp_path, flags, expected):
    message = complaint_of(capsys, "sft", "--output_dir", tmp_path / "run", *SMALL, *flags)
    assert expected in message
    assert not (tmp_path / "run").exists()


def test_a_row_that_is_left_out_is_told(capsys, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    capsys.readouterr()
    assert main(["data", "--data", str(path), "--skip_bad_rows"]) == 0
    shown = capsys.readouterr().out
    assert "Bad rows         1 (50.0%)\n                 line 2: there is no 'completion'" in shown


def test_data_lists_shows_and_gives_a_template(capsys, trained, tmp_path):
    capsys.readouterr()
    assert main(["data"]) == 0
    listed = capsys.readouterr().out
    assert all(
        part in listed for part in ("databricks/databricks-dolly-15k", "15,011", "Japanese", "good for: small talk")
    )
    assert main(["data", "--template", "instruction"]) == 0
    mine = write(tmp_path / "mine.jsonl", capsys.readouterr().out.encode())
    assert main(["data", "--data", str(mine), "--model", str(trained)]) == 0
    shown = capsys.readouterr().out
    for part in (
        "Data       file mine.jsonl",
        "Looked at  3 rows of the training split, all of them",
        f"the tokenizer of {trained}, 263 types",
        "<|user|> What is the capital of France?<|assistant|> Paris.<|end|>",
        "[␣] [P] [a] [r] [i] [s] [.] [<|end|>]",
        "Duplicates       0",
        "In both splits   0",
    ):
        assert part in shown
    assert "did you mean '--max_length'" in complaint_of(capsys, "data", "dolly", "--max_lenght", "5")
    assert "is running text" in complaint_of(capsys, "data", "wikitext")
    assert "--template" in complaint_of(capsys, "data", "--template", "poem")


def test_a_run_with_other_settings_is_named(capsys, trained):
    flags = ["--data", trained.parent / "text.txt", "--output_dir", trained, *SMALL, "--learning_rate", "0.1"]
    assert "learning_rate was 0.005, is 0.1" in complaint_of(capsys, "pretrain", *flags)


def test_compare_takes_the_runs_own_score_of_its_own_text(capsys, trained, text_file):
    """The final metrics of a run are those that scoring its text again would give; another text is scored."""
    (own,), again = json_of(capsys, "compare", trained), json_of(capsys, "evaluate", trained)
    assert own.keys() >= again.keys() and own["tokens"] == again["tokens"]
    numbers = {name: value for name, value in again.items() if name not in ("text", "split")}
    assert {name: own[name] for name in numbers} == pytest.approx(numbers, rel=1e-6)
    assert own["split"] == again["split"] == "validation"
    (other,) = json_of(capsys, "compare", trained, "--data", text_file)
    assert other["bytes"] == len(text_file.read_bytes()) != own["bytes"]


def json_of(capsys, *argv):
    capsys.readouterr()
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", ["evaluate", "compare", "generate", "chat"])
def test_a_folder_that_is_not_ours(capsys, tmp_path, command):
    extra = ["--prompt", "x"] if command == "generate" else []
    assert "does not exist" in complaint_of(capsys, command, tmp_path / "nowhere", *extra)
    write(tmp_path / "config.json", b"{}")
    assert "not a model folder of ours" in complaint_of(capsys, command, tmp_path, *extra)


def test_unknown_command_and_flags(capsys, trained):
    assert "did you mean 'pretrain'" in complaint_of(capsys, "pretrian")
    assert "unknown argument '--dat'" in complaint_of(capsys, "evaluate", trained, "--dat", "x")
    assert "--prompt" in complaint_of(capsys, "generate", trained)
    assert "max_new_tokens has to be at least 1" in complaint_of(
        capsys, "generate", trained, "--prompt", "x", "--max_new_tokens", "0"
    )
    assert "max_length has to be at least 1" in complaint_of(capsys, "evaluate", trained, "--max_length", "0")


def test_no_network_and_no_offline_data(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("newllm_lib.data.sources.find_spec", lambda name: None)
    assert "newllm[offline]" in complaint_of(capsys, "pretrain", "--output_dir", tmp_path / "run", *SMALL)


def test_evaluate_prints_one_json_object(capsys, trained, text_file):
    capsys.readouterr()
    assert main(["evaluate", str(trained), "--data", str(text_file), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics.keys() >= {"loss", "perplexity", "token_accuracy", "bits_per_byte", "word_perplexity", "unk_rate"}
    assert metrics["bytes"] == len(text_file.read_bytes())


def test_compare_prints_a_table_json_and_a_picture(capsys, trained, tmp_path):
    capsys.readouterr()
    picture = tmp_path / "comparison.png"
    assert main(["compare", str(trained), str(trained), "--json", "--picture", str(picture), "--prompt", "The "]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2
    assert rows[0]["ms_per_token"].keys() == rows[0]["state_bytes"].keys() == {"128", "1024", "8192"}
    assert len(set(rows[0]["state_bytes"].values())) == 1
    assert rows[1]["percent_to_first"]["perplexity"] == 0 and set(rows[0]["percent_to_first"].values()) == {0}
    assert rows[0]["ms_per_batch"]["milliseconds"] > 0 and rows[0]["goals"][0]["met"] is True
    assert list(rows[0]["samples"]) == ["The "]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert main(["compare", str(trained)]) == 0
    table = capsys.readouterr().out
    assert "bits per byte" in table
    assert "bytes of state after 8,192" in table and "inference" in table and "%)" not in table.split("\n\n")[1]
    assert "met      newllm: a memory of the text that does not grow" in table


def test_chat_until_an_empty_line(capsys, trained, monkeypatch):
    lines = iter(["Hello", "", "never read"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    capsys.readouterr()
    assert main(["chat", str(trained), "--max_new_tokens", "5", "--seed", "1"]) == 0
    assert capsys.readouterr().out.endswith("\n")
    assert next(lines) == "never read"


def test_generate_is_reproducible(capsys, trained):
    capsys.readouterr()
    texts = []
    for seed in ("1", "1", "2"):
        assert main(["generate", str(trained), "--prompt", "The river", "--max_new_tokens", "12", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("The river")


def test_doctor_names_the_machine(capsys):
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    for subject in ("Python", "GPU", "Precision", "Disk", "torch", "Hub"):
        assert subject in output


def test_help_and_version(capsys):
    assert main([]) == 0
    assert "pretrain" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("newllm ")
    with pytest.raises(SystemExit) as exit_of_help:
        main(["pretrain", "--help"])
    assert exit_of_help.value.code == 0
    assert "--per_device_train_batch_size" in capsys.readouterr().out


def test_flags_equal_keywords():
    """One dataclass: what the flags build is what the keywords build, for every kind of field."""
    argv = "--max_length 64 --tokenizer byte --no_carry_context --learning_rate 1e-3 --num_parameters 900000 --seed 3"
    parsed = parse_stage(PretrainArguments, "newllm pretrain", shlex.split(argv))
    built = PretrainArguments(
        max_length=64, tokenizer="byte", carry_context=False, learning_rate=1e-3, num_parameters=900_000, seed=3
    )
    for field in dataclasses.fields(PretrainArguments):
        if field.init and field.name not in ("logging_dir", "run_name"):
            assert getattr(parsed, field.name) == getattr(built, field.name), field.name


def test_parsing_leaves_the_dataclass_as_it_was():
    before = [field.type for field in dataclasses.fields(PretrainArguments)]
    parse_stage(PretrainArguments, "newllm pretrain", [])
    assert [field.type for field in dataclasses.fields(PretrainArguments)] == before


def test_a_flag_wins_over_its_preset():
    parsed = parse_stage(PretrainArguments, "newllm pretrain", ["--preset", "smoke", "--max_steps", "7"])
    assert (parsed.max_steps, parsed.vocab_size) == (7, PRESETS["smoke"]["vocab_size"])
    with pytest.raises(InputError, match="did you mean 'smoke'"):
        parse_stage(PretrainArguments, "newllm pretrain", ["--preset", "smok"])


def test_ctrl_c_saves_and_exits_with_130(text_file, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "newllm_lib", "pretrain", "--data", str(text_file), "--output_dir", str(folder)]
    endless = ["--max_steps", "100000", "--eval_steps", "100000", "--save_steps", "100000"]
    argv = [*command, *SMALL, *endless]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 90
    while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").read_text().count("\n") < 2:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "training did not begin"
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Stopped at update" in err
    assert "Traceback" not in err
    assert len(list(folder.glob("checkpoint-*/complete.json"))) == 1
