"""The same run on one process and on two: the same rows, the same losses."""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from conversations import make_conversations, write_conversations
from lwf_runs import lwf_files
from preference_runs import dpo_fields
from safetensors.torch import load_file
from torch.utils.data import BatchSampler

from newllm_lib.data.text import NO_ROW, PackedRows, token_bytes, token_type
from newllm_lib.models import build_config, build_model
from newllm_lib.models.recurrent_model import loss_only
from newllm_lib.training.checkpoint import newest_checkpoint
from newllm_lib.training.samplers import EvenSampler, LaneSampler
from newllm_lib.training.trained_model import open_model
from newllm_lib.training.trainer import ContextCarrier

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 21, 24])
@pytest.mark.parametrize("processes", [2, 3])
def test_every_row_is_seen_once_and_all_processes_have_as_many(num_rows, processes):
    order = EvenSampler(range(num_rows), num_rows, 4 * processes)
    shards = [list(BatchSamplerShard(BatchSampler(order, 4, False), processes, rank)) for rank in range(processes)]
    assert len({len(shard) for shard in shards}) == 1
    assert all(len(batch) == 4 for shard in shards for batch in shard)
    seen = sorted(row for shard in shards for batch in shard for row in batch)
    assert seen[:num_rows] == list(range(num_rows))
    assert set(seen[num_rows:]) <= {num_rows}
    assert len(seen) == len(order)


def test_nothing_is_learned_from_a_blank_row(tmp_path, byte_tokenizer):
    path = tmp_path / "rows"
    path.write_bytes(token_bytes(token_type(byte_tokenizer), [1, 2, 3, 4]))
    batch = PackedRows([path], byte_tokenizer, 3).__getitems__([1, 0])
    assert batch["labels"].tolist() == [[-100] * 3, [2, 3, 4]]
    assert batch["row"].tolist() == [NO_ROW, 0]


@pytest.mark.parametrize("model_type", ["newllm", "newllm-reference", "tiny-gpt2", "lstm"])
def test_a_batch_of_blank_rows_adds_nothing(model_type):
    model = build_model(build_config(model_type, 258, 16, num_parameters=120_000)).train()
    labels = torch.full((2, 16), -100)
    input_ids = torch.randint(0, 258, (2, 16))
    scored = torch.tensor(5)
    loss = model(
        input_ids=input_ids, labels=labels, shift_labels=labels, num_items_in_batch=scored, **loss_only(model)
    ).loss
    loss.backward()
    assert float(loss.detach()) == 0.0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"the other processes wait for the gradient of {name}"
        assert not parameter.grad.any(), name


def contexts_after(world: int, rows: int, accumulation: int, updates: int, start: Path | None = None) -> ContextCarrier:
    """What is held after some updates more, the context of row r being [r]: every call gets the batches of all
    processes, which accelerate deals out in turn."""
    lanes = world * rows * accumulation
    carrier = ContextCarrier(lanes)
    if start is not None:
        carrier.load(start, torch.device("cpu"))
    batches = BatchSampler(LaneSampler(lanes * 5, lanes, seed=3), rows * world, False)
    done = 0 if start is None else 2 * accumulation
    for batch in itertools.islice(batches, done, done + updates * accumulation):
        carrier.keep(torch.tensor(batch), torch.tensor(batch)[:, None].float())
    return carrier


@pytest.mark.parametrize("target", [(1, 8, 1), (1, 2, 4), (2, 4, 1), (2, 2, 2), (4, 1, 2)])
@pytest.mark.parametrize("source", [(1, 8, 1), (2, 2, 2), (4, 2, 1)])
def test_the_context_goes_on_with_another_number_of_processes(tmp_path, source, target):
    contexts_after(*source, updates=2).save(tmp_path)
    found, unbroken = contexts_after(*target, updates=1, start=tmp_path), contexts_after(1, 8, 1, updates=3)
    assert torch.equal(found.rows, unbroken.rows) and torch.equal(found.contexts, unbroken.contexts)


def command(words: tuple[str, ...], processes: int, program: tuple[str, ...] = ("-m", "newllm_lib")) -> dict:
    """What subprocess needs to run newllm on so many processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return {
        "args": [sys.executable, *(launch if processes > 1 else []), *program, *words],
        "env": {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        "text": True,
    }


def newllm(*words: str, processes: int = 1, **program: tuple[str, ...]) -> None:
    done = subprocess.run(**command(words, processes, **program), capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"Finished: everything is in {words[-1]}.") == 1


def curve(folder: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], name, line[name]) for line in lines for name in ("loss", "eval_loss") if name in line]


def assert_same_curve(first: Path, second: Path) -> None:
    expected, found = curve(first), curve(second)
    assert len(expected) > 5
    assert [point[:2] for point in expected] == [point[:2] for point in found]
    for point, other in zip(expected, found, strict=True):
        assert point[2] == pytest.approx(other[2], abs=1e-4), point[:2]


SMALL = ("--tokenizer", "byte", "--num_parameters", "120000", "--dropout", "0", "--auto_precision", "False")
SMALL += ("--eval_steps", "3", "--save_steps", "3", "--logging_steps", "1")


@pytest.mark.slow
def test_sft_on_two_processes_is_sft_on_one(tmp_path):
    """Two epochs whose last update is not whole: the rows of the first are not seen again in its place."""
    data = tmp_path / "talk.jsonl"
    talks = [[f"Question {n}?", f"{'Because ' * (n % 4)}answer {n * n}."] for n in range(50)]
    data.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in talks))
    fields = ("sft", "--data", str(data), "--max_length", "64", "--num_train_epochs", "2", "--held_out_share", "0.2")
    fields += SMALL
    newllm(*fields, "--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "one"))
    newllm(*fields, "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "two"), processes=2)
    assert_same_curve(tmp_path / "one", tmp_path / "two")
    first, second = (json.loads((tmp_path / name / "settings.json").read_text())["run"] for name in ("one", "two"))
    assert first == second
    assert not list((tmp_path / "two").rglob("*.tmp"))


@pytest.mark.slow
def test_pretraining_goes_on_with_two_processes(tmp_path, text_file):
    """A run begun on one process is continued by two, from between two lines of the log: each has the contexts of its
    own rows, and the teacher's loss is shared out as the data's."""
    fields = ("pretrain", "--data", str(text_file), "--max_length", "32", "--max_steps", "9", *SMALL[:-1], "2")
    one = ("--per_device_train_batch_size", "8")
    newllm(*fields, *one, "--output_dir", str(tmp_path / "teacher"))
    fields += ("--teacher", str(tmp_path / "teacher"), "--save_total_limit", "9", "--seed", "7")
    newllm(*fields, *one, "--output_dir", str(tmp_path / "one"))
    second = tmp_path / "two"
    subprocess.run(["cp", "-r", str(tmp_path / "one"), str(second)], check=True)
    (second / "results.json").unlink()
    for step in (6, 9):
        (second / f"checkpoint-{step}" / "complete.json").unlink()
    halves = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2")
    newllm(*fields, *halves, "--output_dir", str(second), processes=2)
    assert_same_curve(tmp_path / "one", second)
    expected, found = (
        load_file(tmp_path / name / "checkpoint-9" / "carried_context.safetensors") for name in ("one", "two")
    )
    assert torch.equal(expected["rows"], found["rows"])
    torch.testing.assert_close(expected["contexts"], found["contexts"], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_two_processes_stop_together_and_save(tmp_path, text_file):
    """The launcher, asked to stop, asks its processes one after the other: both end after the same update."""
    folder = tmp_path / "run"
    fields = ("pretrain", "--data", str(text_file), "--max_length", "32", *SMALL, "--max_eval_tokens", "500")
    fields += ("--max_steps", "100000", "--eval_steps", "50000", "--save_steps", "50000", "--output_dir", str(folder))
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(**command(fields, 2), stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 120
            while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").stat().st_size:
                assert running.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
            running.send_signal(signal.SIGINT)
            running.wait(timeout=60)
        finally:
            running.kill()
            running.wait()
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None, (tmp_path / "log").read_text()
    contexts = load_file(checkpoint / "carried_context.safetensors")
    assert len(contexts["rows"]) == 2 * 32
    assert len(set(contexts["rows"].tolist())) == 2 * 32
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == int(checkpoint.name.removeprefix("checkpoint-"))


@pytest.mark.slow
def test_two_processes_go_on_together_when_nothing_can_be_saved(tmp_path, text_file):
    """Only the first writes most of a checkpoint: the other must not wait for it where it does not come."""
    folder = tmp_path / "run"
    fields = ("pretrain", "--data", str(text_file), "--max_length", "32", "--max_steps", "9", *SMALL)
    words = (*fields, "--per_device_train_batch_size", "4", "--output_dir", str(folder))
    two = command(words, 2)
    two["args"] = ["bash", "-c", f"trap '' XFSZ; ulimit -f 300; exec {shlex.join(two['args'])}"]  # KiB of a file
    done = subprocess.run(**two, capture_output=True, timeout=200)
    assert done.returncode != 0
    assert done.stdout.count("could not be saved (") == 3, done.stdout + done.stderr
    assert "the result of the run could not be written to" in done.stderr
    assert newest_checkpoint(folder) is None and len((folder / "metrics.jsonl").read_text().splitlines()) >= 12
    newllm(*fields, "--per_device_train_batch_size", "8", "--output_dir", str(folder))


def of_adapters(stage: str, folder: Path) -> tuple[str, ...]:
    """A small run of a stage that trains adapters: two epochs whose last update is not whole, and where that update's
    last micro-batches are of blank rows alone."""
    names = {"qlora-lwf": ("model", "data", "rehearsal_data"), "dpo": ("model", "data", "sft_epochs", "sft_weight")}
    fields = lwf_files(folder) if stage == "qlora-lwf" else dpo_fields(folder, sft_epochs=0.5, sft_weight=1.0)
    flags = [part for name in names[stage] for part in (f"--{name}", str(fields[name]))]
    more = {"qlora-lwf": ("--load_in_4bit", "False", "--lora_dropout", "0"), "dpo": ("--beta", "0.1")}[stage]
    more += ("--num_train_epochs", "2", "--max_length", "96", "--held_out_share", "0.25", "--learning_rate", "5e-3")
    more += ("--auto_precision", "False", "--logging_steps", "2", "--save_total_limit", "99", "--eval_steps", "3")
    more += ("--gradient_accumulation_steps", "1")
    return (stage, *flags, *more, "--save_steps", "3", "--max_eval_tokens", "200")


def cut_off(finished: Path, folder: Path) -> None:
    """A copy of a run as if it had been killed after update 3."""
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    (folder / "results.json").unlink()
    for checkpoint in folder.glob("checkpoint-*"):
        if checkpoint.name != "checkpoint-3":
            (checkpoint / "complete.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["qlora-lwf", "dpo"])
def test_adapters_on_two_processes_are_those_of_one(tmp_path, stage):
    """From the start, and where two go on with what one has begun, from between two lines of the log."""
    fields = of_adapters(stage, tmp_path)
    one, two, taken_up = (tmp_path / name for name in ("one", "two", "taken up"))
    newllm(*fields, "--per_device_train_batch_size", "8", "--output_dir", str(one))
    cut_off(one, taken_up)
    shares = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2")
    for folder in (two, taken_up):
        newllm(*fields, *shares, "--output_dir", str(folder), processes=2)
        assert_same_curve(one, folder)
        assert json.loads((folder / "results.json").read_text())["loss"] == pytest.approx(
            json.loads((one / "results.json").read_text())["loss"], abs=1e-4
        )


@pytest.mark.slow
def test_a_sweep_on_two_processes_is_that_of_one(tmp_path):
    """Each tries what the other tries, for the table alone decides it."""
    fields = ("sweep", *of_adapters("dpo", tmp_path)[1:], "--sft_epochs", "0", "--trials", "2", "--max_steps", "3")
    for rows, processes in ((8, 1), (4, 2)):
        shares = ("--per_device_train_batch_size", str(rows), "--output_dir", str(tmp_path / str(processes)))
        done = subprocess.run(**command((*fields, *shares), processes), capture_output=True, timeout=300)
        assert done.returncode == 0 and done.stdout.count("Best of 2:") == 1, done.stdout + done.stderr
    tables = [(tmp_path / name / "trials.jsonl").read_text().splitlines() for name in ("1", "2")]
    for row, other in zip(*(map(json.loads, table) for table in tables), strict=True):
        assert row["state"] == "finished" and row.keys() == other.keys()
        assert other == {
            name: pytest.approx(value, abs=1e-4) if isinstance(value, float) else value for name, value in row.items()
        }


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_two_processes_with_half_of_the_model_each_train_what_one_trains(tmp_path, text_file, stage):
    """FSDP, from the start, going on from a checkpoint, and from the last one, where only the end is missing."""
    data = text_file if stage == "pretrain" else write_conversations(tmp_path / "talk.jsonl", make_conversations(60))
    fields = (stage, "--data", str(data), "--max_length", "64", "--max_steps", "6", *SMALL, "--max_eval_tokens", "500")
    one, two, taken_up = (tmp_path / name for name in ("one", "two", "taken up"))
    newllm(*fields, "--per_device_train_batch_size", "8", "--output_dir", str(one))
    sharded = {"processes": 2, "program": (str(Path(__file__).with_name("sharded_on_cpu.py")),)}
    half = ("--per_device_train_batch_size", "4", "--fsdp", "full_shard", "--output_dir")
    newllm(*fields, *half, str(two), **sharded)
    assert_same_curve(one, two)
    for weight, other in zip(*(open_model(folder).model.parameters() for folder in (one, two)), strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=1e-3)
    cut_off(two, taken_up)
    for _ in range(2):
        newllm(*fields, *half, str(taken_up), **sharded)
        assert_same_curve(one, taken_up)
        assert json.loads((taken_up / "results.json").read_text())["loss"] == pytest.approx(
            json.loads((one / "results.json").read_text())["loss"], abs=1e-4
        )
        (taken_up / "results.json").unlink()
