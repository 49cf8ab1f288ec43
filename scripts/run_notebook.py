"""Run a notebook from top to bottom without a browser, one line per finished cell.

usage: run_notebook.py NOTEBOOK --output FILE --cwd DIR

The executed notebook is written to FILE in any case, also when a cell fails or the run is interrupted. The metadata of
each cell say for how many seconds at most it has shown nothing new (`longest_silence`).
Exit codes: 0 every cell ran, 1 a cell failed, 2 bad input, 130 interrupted.
"""

import argparse
import os
import sys
import time
from pathlib import Path

# The kernel must be the one of this environment, not one that the user registered under the same name.
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError


class WatchedNotebook(NotebookClient):
    """Notes in a cell's metadata for how long at most it has shown nothing new."""

    shown_at = 0.0

    def process_message(self, message, cell, cell_index):
        if message["msg_type"] == "execute_input":
            self.shown_at, cell.metadata["longest_silence"] = time.monotonic(), 0.0
        elif message["msg_type"] not in ("status", "comm_open", "comm_msg", "comm_close"):
            self.end_silence(cell)
        return super().process_message(message, cell, cell_index)

    def end_silence(self, cell: nbformat.NotebookNode) -> None:
        """Called when something is shown, or the cell ends."""
        silence, self.shown_at = time.monotonic() - self.shown_at, time.monotonic()
        cell.metadata["longest_silence"] = max(cell.metadata.get("longest_silence", 0.0), round(silence, 1))


def main() -> int:
    """Parse the arguments, run the notebook and return the exit code."""
    parser = argparse.ArgumentParser(description="Run a notebook from top to bottom without a browser.")
    parser.add_argument("notebook", type=Path, help="notebook to run; it is not changed")
    parser.add_argument("--output", type=Path, required=True, help="file to write the executed notebook to")
    parser.add_argument("--cwd", type=Path, required=True, help="working folder, created if missing")
    args = parser.parse_args()
    if not args.notebook.is_file():
        parser.error(f"notebook: {args.notebook} is not a file")

    notebook = nbformat.read(args.notebook, as_version=4)
    args.cwd.mkdir(parents=True, exist_ok=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        run_cells(notebook, args.cwd)
    except CellExecutionError as error:
        print(error, file=sys.stderr)
        return 1
    except DeadKernelError:
        print("The notebook's Python process died: the machine may have run out of memory.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    finally:
        nbformat.write(notebook, args.output)
        print(f"executed notebook: {args.output}", flush=True)
    return 0


def run_cells(notebook: nbformat.NotebookNode, cwd: Path) -> None:
    """Execute the code cells in place, printing the seconds each took; raises at the first that fails."""
    client = WatchedNotebook(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(cwd)}},
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],  # else each start warns of the ports it opens on this machine
    )
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()]
    with client.setup_kernel():
        for number, index in enumerate(code, start=1):
            cell = notebook.cells[index]
            started = time.perf_counter()
            verdict = "DID NOT FINISH"
            try:
                client.execute_cell(cell, index)
                verdict = ""
            finally:
                client.end_silence(cell)
                seconds = time.perf_counter() - started
                what = verdict or cell.source.strip().splitlines()[0][:80]
                print(f"cell {number:>2}/{len(code)} {seconds:8.1f} s  {what}", flush=True)
        client.set_widgets_metadata()


if __name__ == "__main__":
    sys.exit(main())
