"""What a settings panel says a run will cost, beside what the run then takes: minutes and peak memory; and the share of
the time that the live plot takes.

Every preset runs in a Jupyter kernel of its own, as its notebook does: the panel measures one step of each model, then
the training cell trains them all under its live plot. On a CPU the memory is the kernel's, from the first import on.

    OMP_NUM_THREADS=2 python benchmarks/cost_line.py --presets smoke demo quick
"""

import argparse
import functools
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from newllm_lib.colab.experiments import run_experiments
from newllm_lib.colab.live_plot import LivePlot
from newllm_lib.colab.live_trials import LiveTrials
from newllm_lib.colab.panel import SettingsPanel
from newllm_lib.colab.preference_panel import PreferencePanel, SweepPanel
from newllm_lib.colab.stage import ADAPTER, DIALOGUE, EXPERIMENTS, PREFERENCES, PRETRAIN
from newllm_lib.colab.training import train_models
from newllm_lib.training.checkpoint import write_json
from newllm_lib.training.device import find_device, memory_in_use

PANELS = {
    "01": (SettingsPanel, PRETRAIN),
    "02": (SettingsPanel, DIALOGUE),
    "05": (SettingsPanel, ADAPTER),
    "06": (PreferencePanel, PREFERENCES),
    "07": (SweepPanel, EXPERIMENTS),
}
LEARNS_TOKENIZER = ("01", "02")
COST_FILE = "cost.json"
CELL = "import cost_line; cost_line.measure({notebook!r}, {folder!r})"


shown_seconds = 0.0  # that the live plot has taken, drawing included


def timed(method: Callable) -> Callable:
    """The method, its time counted."""

    @functools.wraps(method)
    def counted(*args, **kwargs):
        global shown_seconds
        started = time.perf_counter()
        method(*args, **kwargs)
        shown_seconds += time.perf_counter() - started

    return counted


def measure(notebook: str, folder: str) -> None:
    """Estimated and taken minutes and bytes of the notebook's run under the preset of the environment, and the share of
    its live plot, into the folder."""
    LivePlot.update = timed(LivePlot.update)
    LiveTrials.tell, LiveTrials.on_step_end = timed(LiveTrials.tell), timed(LiveTrials.on_step_end)
    make_panel, stage = PANELS[notebook]
    panel = make_panel(stage, folder)
    panel.show()
    expected = stage.reckoning.cost({model: panel.arguments(model) for model in panel.models}, panel.measured)
    started = time.perf_counter()
    (run_experiments if stage is EXPERIMENTS else train_models)(panel)
    minutes = (time.perf_counter() - started) / 60
    device = find_device()
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if device.kind == "cpu" else memory_in_use(device)
    cost = {"minutes": [expected.minutes, minutes], "bytes": [expected.memory_bytes, peak]}
    write_json(Path(folder) / COST_FILE, {**cost, "live_plot_share": shown_seconds / 60 / minutes})


def run_in_kernel(code: str) -> None:
    """Run a cell in a Jupyter kernel of its own, which finds the benchmarks."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    here = {"metadata": {"path": str(Path(__file__).parent)}}
    NotebookClient(notebook, timeout=None, resources=here, extra_arguments=["--log-level=ERROR"]).execute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--notebook", choices=PANELS, default="01", help="06 and 07 want a chat model's folder in NEWLLM_MODEL"
    )
    parser.add_argument("--presets", nargs="+", default=["smoke", "demo", "quick"])
    parser.add_argument("--data_source", default="offline", help="as in the panel")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/cost_line"))
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    os.environ["NEWLLM_DATA_SOURCE"] = options.data_source
    rows = []
    titles = ("preset", "minutes said", "taken", "ratio", "MB said", "taken", "ratio", "plot")
    print("{:10} {:>13} {:>7} {:>6} {:>9} {:>7} {:>6} {:>6}".format(*titles))
    for preset in options.presets:
        os.environ["NEWLLM_PRESET"] = preset  # the kernel's, too
        with tempfile.TemporaryDirectory(dir=options.output_dir) as folder:
            if options.notebook in LEARNS_TOKENIZER:
                os.environ["NEWLLM_CACHE"] = folder  # with nothing in it of an earlier run
            run_in_kernel(CELL.format(notebook=options.notebook, folder=str(Path(folder).absolute())))
            row = {"preset": preset, **json.loads((Path(folder) / COST_FILE).read_text(encoding="utf-8"))}
        rows.append(row)
        (said, took), memory = row["minutes"], [math.nan if count is None else count / 1e6 for count in row["bytes"]]
        print(
            f"{preset:10} {said:13.2f} {took:7.2f} {said / took:6.2f} {memory[0]:9,.0f} {memory[1]:7,.0f} "
            f"{memory[0] / memory[1]:6.2f} {row['live_plot_share']:6.2%}",
            flush=True,
        )
    write_json(options.output_dir / "cost_line.json", rows)


if __name__ == "__main__":
    main()
