"""The live plot: one display, updated in place, seldom enough, right after a resume and for finished runs."""

import json
import re
from types import SimpleNamespace

import psutil
import pytest
from matplotlib.figure import Figure
from training_cell import train_models

from newllm_lib.colab import live_plot
from newllm_lib.colab.live_plot import LivePlot
from newllm_lib.colab.page.notices import CellStopped
from newllm_lib.progress import Line, Progress
from newllm_lib.training.callbacks import TrainingInterrupted
from newllm_lib.training.checkpoint import read_history


class Page:
    """Stands in for the notebook: counts displays and updates, and tells the time by hand."""

    def __init__(self):
        self.displays, self.updates, self.now = [], [], 0.0

    def show(self, content):
        self.displays.append(content.data)
        return SimpleNamespace(update=lambda content: self.updates.append(content.data))

    def clock(self):
        return self.now

    @property
    def newest(self):
        return (self.displays + self.updates)[-1]


@pytest.fixture
def page():
    return Page()


@pytest.fixture
def plot(page):
    return LivePlot(["newllm", "tiny-gpt2"], clock=page.clock, show=page.show)


ARGS = SimpleNamespace(effective_batch_size=4, max_length=16)


STATE = SimpleNamespace()  # a trainer's state changes, and stays the same object


def state(step, history=(), max_steps=100):
    STATE.global_step, STATE.max_steps, STATE.log_history = step, max_steps, list(history)
    return STATE


def test_a_line_tells_the_learning_rate_and_the_memory(plot, page):
    callback = plot.models["newllm"]
    history = [{"step": 10, "loss": 3.0, "learning_rate": 2.5e-3}]
    callback.on_train_begin(ARGS, state(10, history), None)
    assert "learning rate 2.5e-03" in page.newest
    resident = psutil.Process().memory_info().rss / 2**20
    (memory,) = re.findall(r"([\d.,]+) (MB|GB) of memory", page.newest)
    assert float(memory[0].replace(",", "")) * {"MB": 1, "GB": 1024}[memory[1]] == pytest.approx(resident, rel=0.1)
    callback.on_train_end(ARGS, state(100, history), None)
    assert "learning rate" not in page.newest


def test_what_goes_on_inside_a_training_is_shown_below_it(plot, page):
    """And the training's own line only where no update has come for long: the plot tells the same."""
    scoring = Line(["training", "scoring held-out text"], 0.4, ["400 / 1,000 tokens", "00:07 left"])
    with plot.in_place():
        assert Progress.place is plot
        plot.show(scoring)
        assert "scoring" not in page.newest, "it is too soon"
        page.now += 2
        plot.show(scoring)
        shown = page.newest
        assert "waiting" in shown and "scoring held-out text · 40 % · 400 / 1,000 tokens · 00:07 left" in shown
        assert ">training" not in shown
        plot.set_state("newllm", "training")
        assert "scoring" not in page.newest
        page.now += 4
        plot.show(Line(["training"], 0.1, ["10 / 100 updates"]))
        assert "10 / 100 updates" not in page.newest
        page.now += 1
        plot.show(Line(["training"], 0.1, ["10 / 100 updates"]))
        assert "training · 10 % · 10 / 100 updates" in page.newest
    assert "10 / 100 updates" not in page.newest and len(page.displays) == 1 and Progress.place is not plot


def test_one_display_that_is_updated_once_an_interval(plot, page):
    callback = plot.models["newllm"]
    callback.on_train_begin(ARGS, state(0), None)
    before = len(page.updates)
    for step in range(1, 41):
        page.now += 0.25  # 40 updates in 10 seconds
        callback.on_step_end(ARGS, state(step), None)
    assert len(page.displays) == 1
    assert len(page.updates) - before == 5
    assert "update 40 of 100" in page.newest and "256 tokens/s" in page.newest and "0.2 minutes left" in page.newest


def test_an_evaluation_is_told_at_once_and_drawn_when_its_share_of_the_time_is_there(plot, page, monkeypatch):
    callback = plot.models["newllm"]
    callback.on_train_begin(ARGS, state(0), None)
    pictures = []
    monkeypatch.setattr(live_plot, "curves_figure", lambda histories: pictures.append(histories) or Figure())
    history = [{"step": 10, "loss": 5.0}, {"step": 10, "eval_bits_per_byte": 2.5}]
    callback.on_evaluate(ARGS, state(10, history), None, {"eval_runtime": 1.0})
    assert pictures == [{"newllm": history, "tiny-gpt2": []}], "the first one in any case"
    plot.drawing_seconds = 0.1
    history = [*history, {"step": 20, "eval_bits_per_byte": 2.25}]
    callback.on_evaluate(ARGS, state(20, history), None, {"eval_runtime": 1.0})
    assert "loss 5.000" in page.newest and "2.250 bits per byte" in page.newest and len(pictures) == 1
    page.now += 20
    callback.on_evaluate(ARGS, state(20, history), None, {"eval_runtime": 1.0})
    assert pictures[1:] == [{"newllm": history, "tiny-gpt2": []}]


def test_drawing_takes_a_small_share_of_the_time(plot, page, monkeypatch):
    drawn = []

    def slow_figure(histories):
        page.now += 0.5
        drawn.append(page.now)
        return Figure()

    monkeypatch.setattr(live_plot, "curves_figure", slow_figure)
    callback, running = plot.models["newllm"], state(0, max_steps=1000)
    callback.on_train_begin(ARGS, running, None)
    for step in range(1, 1001):
        page.now += 0.1
        running.global_step = step
        running.log_history.append({"step": step, "loss": 4.0})
        callback.on_step_end(ARGS, running, None)
        if step % 100 == 0:
            callback.on_evaluate(ARGS, running, None, {"eval_runtime": 1.0})
    assert 0 < 0.5 * len(drawn) <= 0.01 * page.now
    assert len(page.updates) > 30, "the line of text goes on all the same"


def test_nothing_is_drawn_twice(plot, page, monkeypatch):
    """Of a short run every picture counts: the last evaluation and the end of training share one, and the way to the
    reference, which has no curves among those of preferences, needs none."""
    drawn = []
    figure = live_plot.curves_figure
    monkeypatch.setattr(live_plot, "curves_figure", lambda histories: drawn.append(page.now) or figure(histories))
    callback = plot.models["newllm"]
    callback.on_train_begin(ARGS, state(0), None)
    assert "<img" not in page.newest, "no empty axes, either"
    history = [{"step": 100, "loss": 3.0}]
    page.now = 900.0
    callback.on_evaluate(ARGS, state(100, history), None)
    callback.on_train_end(ARGS, state(100, history), None)
    page.now = 1800.0
    plot.set_state("newllm", "finished")
    callback.on_train_end(ARGS, state(100, history), None)
    assert drawn == [900.0]
    plot.models["newllm"].state = live_plot.LEARNS_ANSWERS
    callback.on_train_end(ARGS, state(100, [*history, {"step": 100, "loss": 2.0}]), None)
    assert drawn == [900.0]


def test_a_resumed_run_shows_its_history(plot, page):
    callback = plot.models["tiny-gpt2"]
    history = [{"step": 60, "loss": 4.0}, {"step": 60, "eval_bits_per_byte": 2.25}]
    callback.on_train_begin(ARGS, state(60, history), None)
    assert "update 60 of 100" in page.newest and "2.250 bits" in page.newest
    page.now += 4
    callback.on_step_end(ARGS, state(62, history), None)
    assert "32 tokens/s" in page.newest, "speed is that of this session"


def test_a_finished_run_is_read_from_its_log(plot, page, tmp_path):
    lines = [{"step": 10, "loss": 4.0}, {"step": 20, "eval_bits_per_byte": 2.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot.add_finished("newllm", tmp_path)
    assert plot.models["newllm"].at.log_history == lines == read_history(tmp_path)
    assert "finished" in page.newest and "update 20 of 20" in page.newest and "✓" in page.newest
    assert read_history(tmp_path / "gone") == []


def test_the_last_save_is_told(plot, page):
    callback = plot.models["newllm"]
    callback.on_train_begin(ARGS, state(0), None)
    callback.on_save(ARGS, state(1), None)
    page.now += 38
    callback.on_step_end(ARGS, state(1), None)
    assert "saved 38 s ago ✓" in page.newest
    callback.on_train_end(ARGS, state(1), None)
    assert "saved" not in page.newest and "■" not in page.newest


@pytest.mark.parametrize("is_newest", [True, False])
def test_the_copy_on_drive_is_told(plot, page, is_newest):
    plot.models["newllm"].on_drive = lambda: ("how it stands on Drive", is_newest)
    callback = plot.models["newllm"]
    callback.on_train_begin(ARGS, state(0), None)
    page.now += 4
    callback.on_step_end(ARGS, state(1), None)
    assert "Drive" not in page.newest, "nothing has been saved yet"
    callback.on_save(ARGS, state(1), None)
    page.now += 38
    callback.on_step_end(ARGS, state(2), None)
    assert "how it stands on Drive" in page.newest
    assert ("saved 38 s ago ✓" in page.newest) != is_newest


@pytest.fixture
def cell(make_panel, page, monkeypatch):
    """The training cell with a `pretrain` that is replaced and a page that is not there."""
    sentences = []
    monkeypatch.setattr(live_plot, "LivePlot", lambda names: LivePlot(names, clock=page.clock, show=page.show))
    monkeypatch.setattr(live_plot, "say", sentences.append)
    return SimpleNamespace(panel=make_panel(), sentences=sentences, monkeypatch=monkeypatch)


def test_the_models_train_in_turn_and_finished_ones_are_left_alone(cell, page):
    trained = []

    def pretrain(args, callbacks):
        trained.append(args.model_type)
        folder = live_plot.Path(args.output_dir)
        folder.mkdir(parents=True)
        (folder / "results.json").write_text('{"loss": 1.0}')
        (folder / "model.safetensors").write_text("weights")

    folders = train_models(cell.panel, pretrain)
    assert trained == ["newllm", "tiny-gpt2"] == [folder.name for folder in folders]
    assert train_models(cell.panel, pretrain) == folders and len(trained) == 2
    assert cell.sentences[0].startswith("Trained") and "finished before" in cell.sentences[1]


def test_a_wait_for_drive_is_told_and_leaves_no_trace(cell, page):
    copier = SimpleNamespace(status=lambda run: (f"copying {run.name} to Drive, 40%", False), problem="")
    copier.finish = lambda tell: tell() or True
    cell.monkeypatch.setattr(live_plot, "drive_copier", lambda folder: copier)
    cell.monkeypatch.setattr(live_plot, "fetch_sentences", lambda copier, models: [])
    train_models(cell.panel, lambda args, callbacks: None)
    assert "finished, copying tiny-gpt2 to Drive, 40%" in page.updates[-2] and "Drive" not in page.newest
    assert cell.sentences[-1].endswith("It is on your Drive, too.")


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (TrainingInterrupted("Stopped at update 7 of 20; all is saved. The same command continues."), "update 7 of 20"),
        (KeyboardInterrupt(), "nothing was saved yet"),
    ],
)
def test_an_interrupt_ends_the_cell_and_says_how_to_go_on(cell, page, stop, words):
    def pretrain(args, callbacks):
        raise stop

    with pytest.raises(CellStopped, match="Run this cell again") as error:
        train_models(cell.panel, pretrain)
    assert words in str(error.value) and "same command" not in str(error.value)
    assert "stopped" in page.newest


def test_a_log_that_a_disk_has_damaged_is_read_as_far_as_it_goes(tmp_path):
    lines = [
        '{"step": 1, "loss": 3.0}',
        "",
        "[1]",
        "\x00\x00",
        '{"loss": 2.0}',
        '{"step": 2, "loss": 2.0}',
        '{"step": 3, "l',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_history(tmp_path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe" + b"[" * 100_000)
    assert read_history(tmp_path) == []
