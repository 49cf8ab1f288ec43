"""Long work shows how far it is: in a notebook, on a terminal and in a log file, and nothing gets into a pipe."""

import ast
import io
import json
import logging
import re
import sys
import time
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import transformers
from transformers import TrainerCallback

from newllm_lib import cli, progress
from newllm_lib.colab.page.languages import japanese
from newllm_lib.progress import ConsoleLine, Line, Progress, take_over_bars, working
from newllm_lib.stages.pretrain import PretrainArguments, pretrain

PACKAGE = Path(progress.__file__).parent


class Recorder:
    """A place that keeps what it is to show; None for a line that is taken away."""

    def __init__(self):
        self.lines: list[Line | None] = []

    def show(self, line: Line) -> None:
        self.lines.append(line)

    def clear(self) -> None:
        self.lines.append(None)


@pytest.fixture
def shown(monkeypatch) -> list[Line | None]:
    """What is shown, at once and not only after seconds."""
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.0)
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.02)
    place = Recorder()
    monkeypatch.setattr(Progress, "place", place)
    return place.lines


def told(lines: list[Line | None]) -> list[Line]:
    return [line for line in lines if line is not None]


def move(bar: Progress, times: int = 5, count: int = 10) -> None:
    for _ in range(times):
        bar.update(count)
        time.sleep(0.12)  # tqdm lets a bar move every tenth of a second


def test_a_line_says_what_how_far_and_how_long_still(shown):
    with Progress(desc="scoring {name}", of="a text", total=100, unit="tokens") as bar:
        move(bar)
    line = told(shown)[-1]
    assert line.names == ["scoring a text"] and line.share == 0.5
    assert line.facts[0] == "50 / 100 tokens" and re.fullmatch(r"00:0\d left", line.facts[-1])
    assert shown[-1] is None, "the line is taken away"


def test_where_the_whole_is_not_known_it_says_for_how_long(shown):
    with Progress(desc="reading", unit="conversations") as bar:
        move(bar)
    line = told(shown)[-1]
    assert line.share is None and line.facts[0] == "50 conversations" and line.facts[-1].startswith("for ")


def test_a_bar_that_does_not_move_is_shown_all_the_same(shown):
    with Progress(desc="opening"):
        time.sleep(0.3)
    assert len(told(shown)) > 3


def test_short_work_shows_nothing(shown, monkeypatch):
    monkeypatch.setattr(progress, "DELAY_SECONDS", 2.0)
    with working(), Progress(desc="scoring", total=100) as bar:
        move(bar, times=2)
    assert told(shown) == []


def test_the_newest_bar_is_shown_behind_the_oldest_and_a_download_before_all(shown):
    with working(), Progress(desc="preparing the data"):
        time.sleep(0.05)
        with Progress(desc="file", total=1000, unit="B") as download, Progress(desc="reading", total=4):
            move(download, count=100)
    assert ["preparing the data"] in [line.names for line in told(shown)]
    assert told(shown)[-1].names == ["preparing the data", "file"] and told(shown)[-1].facts[0] == "500B / 1.00kB"


def test_the_bars_of_the_libraries_are_ours(shown, capsys):
    take_over_bars()
    for bars, name in (
        (huggingface_hub.utils.tqdm, "model.safetensors"),
        (datasets.utils.tqdm, "Generating train split"),
        (transformers.utils.logging.tqdm, "Loading weights"),
    ):
        with bars(total=100, desc=name) as bar:
            move(bar)
    names = {name for line in told(shown) for name in line.names}
    assert names == {"model.safetensors", "unpacking", "reading the weights"}
    assert capsys.readouterr() == ("", "")


def test_of_two_bars_of_a_download_the_one_with_a_total_is_shown(shown):
    """As huggingface_hub makes them for files that hf_xet fetches."""
    take_over_bars()
    both = {"unit": "B", "total": 100, "disable": None}
    written = huggingface_hub.utils.tqdm(desc="file", bar_format="{l_bar}{bar}| {n_fmt:>5}B / {total_fmt:>5}B", **both)
    over_the_line = huggingface_hub.utils.tqdm(
        desc="Downloading bytes", bar_format="{desc}: {bar}| {n_fmt:>5}B", **both
    )
    over_the_line.update(60)
    move(written)
    written.close()
    assert {tuple(line.names) for line in told(shown)} == {("file",)} and over_the_line.n == 0


def test_a_terminal_that_is_gone_ends_nothing(console):
    line, written, _ = console(is_terminal=True)
    written.close()
    written.isatty = lambda: True
    line.show(LINE)
    line.clear()


def test_a_training_tells_its_updates_between_two_lines_of_its_log(tmp_path, text_file, shown):
    small = {
        "tokenizer": "byte",
        "max_length": 32,
        "num_parameters": 20_000,
        "logging_steps": 1,
        "eval_steps": 6,
        "save_steps": 6,
    }
    args = PretrainArguments(data=str(text_file), output_dir=str(tmp_path / "run"), max_steps=12, **small)
    pretrain(args, callbacks=(Slow(),))
    training = [line for line in told(shown) if line.names[-1] == "training"]
    late = [line for line in training if re.match("([6-9]|1[01]) / 12 updates", line.facts[0])]
    assert late and all(re.fullmatch(r"loss \d+\.\d{3}", line.facts[1]) for line in late)
    names = {name for line in told(shown) for name in line.names}
    assert {"preparing the data", "scoring held-out text"} <= names
    assert not list(Progress._instances)


class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.15)


def test_without_a_place_nothing_is_shown(monkeypatch, capsys):
    monkeypatch.setattr(Progress, "place", None)
    take_over_bars()
    for bars in (Progress, huggingface_hub.utils.tqdm, datasets.utils.tqdm, transformers.utils.logging.tqdm):
        assert list(bars(range(3), desc="work")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_failure_closes_what_it_leaves_open(shown):
    def rows():
        with Progress(desc="reading") as bar:
            for row in range(5):
                bar.update()
                yield row

    source = rows()  # kept by the traceback of the failure, too
    with pytest.raises(ValueError, match="row 3"), working():
        for row in source:
            if row == 3:
                raise ValueError("row 3")
    assert not list(Progress._instances) and shown[-1] is None


@pytest.fixture
def console(monkeypatch):
    """(ConsoleLine with a clock that is set, what it has written); `is_terminal` makes its standard error one."""

    def made(is_terminal: bool):
        written, now = io.StringIO(), [0.0]
        written.isatty = lambda: is_terminal
        monkeypatch.setattr(sys, "stderr", written)
        return ConsoleLine(clock=lambda: now[0]), written, now

    return made


LINE = Line(["training"], 0.25, ["250 / 1,000 updates", "loss 2.500", "03:10 left"])
SPELLED = "training  25%, 250 / 1,000 updates, loss 2.500, 03:10 left"


def test_on_a_terminal_one_line_is_replaced_and_gives_way(console):
    line, written, _ = console(is_terminal=True)
    line.show(LINE)
    line.show(LINE)
    assert written.getvalue() == f"\r{SPELLED}\x1b[K" * 2
    assert line.make_room(logging.makeLogRecord({})) and written.getvalue().endswith("\r\x1b[K")
    line.clear()
    assert written.getvalue().count("\x1b[K") == 3, "what is cleared is not cleared again"


def test_a_narrow_terminal_gets_one_line(console, monkeypatch):
    line, written, _ = console(is_terminal=True)
    monkeypatch.setenv("COLUMNS", "20")
    line.show(LINE)
    assert written.getvalue() == f"\r{SPELLED[:19]}\x1b[K"


def test_in_a_log_file_a_line_comes_after_silence_and_ever_more_seldom(console):
    line, written, now = console(is_terminal=False)
    times = []
    for now[0] in range(3600):
        before = written.tell()
        line.show(LINE)
        if written.tell() > before:
            times.append(now[0])
    gaps = [after - before for before, after in zip([0, *times], times, strict=False)]
    assert gaps[:3] == [10, 10, 10] and max(gaps) == 60 and gaps == sorted(gaps) and len(times) < 90
    assert set(written.getvalue().splitlines()) == {SPELLED}
    line.make_room(logging.makeLogRecord({}))
    now[0] += 59
    line.show(LINE)
    assert len(written.getvalue().splitlines()) == len(times), "a line of the log is news, too"


def test_json_stays_clean(tmp_path, text_file, shown, monkeypatch, capsys):
    """The line goes to standard error: standard output is one JSON object."""
    folder = tmp_path / "run"
    small = ["--tokenizer", "byte", "--max_length", "32", "--num_parameters", "20000", "--max_steps", "2"]
    assert cli.main(["pretrain", "--data", str(text_file), "--output_dir", str(folder), *small]) == 0
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.0)
    capsys.readouterr()
    assert cli.main(["evaluate", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["tokens"] > 0
    assert err and "\r" not in err and "scoring held-out text" in err


def test_every_text_has_its_japanese():
    spoken = {*progress.NAMES.values(), progress.TRAINING, progress.WORKING}
    spoken |= {"{time} left", "for {time}"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Progress":
                given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
                spoken |= {given["desc"]} if "desc" in given else set()
                spoken |= {f"{{count}} {given['unit']}"} if given.get("unit", "B") != "B" else set()
    assert len(spoken) > 20 and spoken - japanese().keys() == set()
