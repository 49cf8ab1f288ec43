"""What the live plot of a training cell costs: the same run with it and without it, in turn, in one Jupyter kernel.

OMP_NUM_THREADS=2 python benchmarks/live_plot.py --preset demo --pairs 5
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from newllm_lib.colab.live_plot import LivePlot
from newllm_lib.colab.panel.settings_panel import SettingsPanel
from newllm_lib.colab.panel.stage import PRETRAIN
from newllm_lib.stages.pretrain import pretrain
from newllm_lib.training.disk import write_json

TIMES_FILE = "live_plot.json"
CELL = "import live_plot; live_plot.measure({folder!r}, {pairs})"


def measure(folder: str, pairs: int) -> None:
    """[seconds with the plot, seconds without it] of every pair of New-LLM's runs, into the folder."""
    panel = SettingsPanel(PRETRAIN, folder)
    times = []
    for number in range(-1, pairs):
        seconds = {}
        for shown in (True, False) if number % 2 else (False, True):
            args = panel.arguments("newllm")
            args.output_dir = str(Path(folder) / f"{number}-{shown}")
            started = time.perf_counter()
            pretrain(args, (LivePlot(["newllm"]).models["newllm"],) if shown else ())
            seconds[shown] = time.perf_counter() - started
        if number >= 0:  # the first pair finds no tokenizer yet
            times.append([seconds[True], seconds[False]])
    write_json(Path(folder) / TIMES_FILE, times)


def run_in_kernel(code: str) -> None:
    """Run a cell in a Jupyter kernel of its own, which finds the benchmarks."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    here = {"metadata": {"path": str(Path(__file__).parent)}}
    NotebookClient(notebook, timeout=None, resources=here, extra_arguments=["--log-level=ERROR"]).execute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    os.environ.update(NEWLLM_PRESET=options.preset, NEWLLM_DATA_SOURCE="offline")  # the kernel's, too
    with tempfile.TemporaryDirectory() as folder:
        run_in_kernel(CELL.format(folder=folder, pairs=options.pairs))
        times = json.loads((Path(folder) / TIMES_FILE).read_text(encoding="utf-8"))
    for with_plot, without in times:
        print(f"with {with_plot:6.2f} s, without {without:6.2f} s, ratio {with_plot / without:.3f}")
    print(f"median of the ratios {statistics.median(a / b for a, b in times):.3f}")


if __name__ == "__main__":
    main()
