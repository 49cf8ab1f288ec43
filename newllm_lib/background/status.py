"""How a run stands, read from its folder and from the process that works on it, while that goes on undisturbed."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ..errors import InputError
from ..training.checkpoint import (
    COLUMNS,
    COMPLETE_FILE,
    METRICS_FILE,
    SETTINGS_FILE,
    TRAINER_STATE_NAME,
    is_complete,
    numbered_checkpoints,
    read_history,
    read_results,
)
from ..training.disk import MB, read_json, size
from ..wings import wing
from .owner import find_owner, is_here, log_file, started_file

RUNNING = ("preparing", "training", "finishing")
LAST_LINES, LINE_BYTES = 5, 8192
FOLLOW_SECONDS, ASK_SECONDS = 5.0, 10.0
QUERY = "name,utilization.gpu,memory.used,memory.total"  # of nvidia-smi; memory in MiB


def run_folder(name: str) -> Path:
    """The folder of the run that a user has named. Raises InputError: there is none, nor one that was started."""
    folder = Path(os.path.abspath(os.path.expanduser(name)))
    if not ((folder / SETTINGS_FILE).exists() or started_file(folder).exists()):
        remedy = "newllm status FOLDER lists the runs below a folder"
        raise InputError(
            f"run {name!r} is not there: neither a run of ours nor one that was started; {remedy}.", "NL-404"
        )
    return folder


def runs_below(folder: Path) -> list[Path]:
    """The runs in a folder, down to those of the notebooks (notebook, run, model), without parts of them."""
    holders = (
        path.parent for depth in range(1, 4) for path in folder.glob("/".join("*" * depth) + f"/{SETTINGS_FILE}")
    )
    started = (path.with_name(path.name[1 : -len(".started.json")]) for path in folder.glob(".*.started.json"))
    runs: list[Path] = []
    for run in sorted({*holders, *started}):  # a folder comes before what is in it
        if not any(run.is_relative_to(other) for other in runs):
            runs.append(run)
    return runs


def run_status(folder: Path) -> dict[str, Any]:
    """What is known of a run; what is not, is left out. `state` is one of RUNNING, finished, stopped, or elsewhere: on
    another machine."""
    results, trials = read_results(folder), _trials(folder)
    place, note = find_owner(folder) or (folder if results else _last_part(folder), {})
    is_over = results is not None or (trials is not None and trials["done"] >= trials["asked"])
    status: dict[str, Any] = {"run": str(folder), "state": "finished" if is_over else "stopped"}
    if note:
        status |= {name: note.get(name) for name in ("process", "machine", "since")}
        if is_here(note):
            status["state"] = _state_of(note, is_over)
        elif not is_over:
            status["state"] = "elsewhere"
    if trials is not None:
        status["trials"] = trials
    if place != folder:
        status["part"] = place.name
    status |= _progress(place, note, results)
    if status["state"] in RUNNING:
        with suppress(psutil.Error):
            status["memory_bytes"] = psutil.Process(note["process"]).memory_info().rss
        status["gpus"] = gpus()
    if lines := last_lines(log_file(folder)):
        status |= {"log": str(log_file(folder)), "last_lines": lines}
    return status


def _last_part(folder: Path) -> Path:
    """Where the run was at work: in its folder, or in that of a part such as a trial."""
    logs = [path for path in (folder / METRICS_FILE, *folder.glob(f"*/{METRICS_FILE}")) if path.exists()]
    return max(logs, key=lambda path: path.stat().st_mtime).parent if logs else folder


def _state_of(note: dict[str, Any], is_over: bool) -> str:
    if "update" not in note:
        return "finishing" if is_over else "preparing"
    return "training" if note["update"] < note["updates"] else "finishing"


def _trials(folder: Path) -> dict[str, int] | None:
    """How many trials of a sweep are done, and how many were asked for; None for another run."""
    settings = read_json(folder / SETTINGS_FILE)
    if not isinstance(settings, dict) or "sweep" not in settings.get("run", {}):
        return None
    rows = wing("preferences.trials").read_trials(folder)
    return {"done": sum(row["state"] != "running" for row in rows), "asked": settings["session"]["trials"]}


def _progress(place: Path, note: dict[str, Any], results: dict[str, Any] | None) -> dict[str, Any]:
    """How far the training in `place` is, by the heartbeat of its owner, its log and its newest sealed checkpoint."""
    found: dict[str, Any] = {}
    saved = [(step, path) for step, path in numbered_checkpoints(place) if is_complete(path, sizes_only=True)]
    if saved:
        step, path = saved[-1]
        state = read_json(path / TRAINER_STATE_NAME)
        found |= {"update": step, "updates": state["max_steps"]} if isinstance(state, dict) else {}
        found |= {"saved_update": step, "saved_at": (path / COMPLETE_FILE).stat().st_mtime}
    if results is not None and "updates" in results:
        found |= {"update": results["updates"], "updates": results["updates"]}
    if "update" in note:
        # What was saved since is newer than what it has told last.
        newest = max(note["update"], found.get("saved_update", 0))
        found |= {"update": newest, "updates": note["updates"], "told_at": note["told"]}
        done, seconds = note["update"] - note["first_update"], note["told"] - note["begun"]
        if done > 0:
            left = seconds / done * (note["updates"] - note["update"])
            found["seconds_left"] = max(left - (time.time() - note["told"]), 0)
    for entry in read_history(place):
        if "loss" in entry:
            found |= {"loss": entry["loss"]}
        if evaluated := {name: entry[f"eval_{name}"] for name in COLUMNS if f"eval_{name}" in entry}:
            found |= {"held_out": evaluated}
    return found


def gpus() -> list[dict[str, Any]]:
    """What nvidia-smi says of the machine's GPUs, whoever uses them; empty without one."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):  # no driver, or one that does not answer
        return []
    found = []
    for line in asked.stdout.splitlines():
        with suppress(ValueError):  # [N/A] of a GPU that does not tell
            name, percent, used, total = (part.strip() for part in line.rsplit(",", 3))
            memory = {"memory_bytes": int(used) * MB, "memory_total_bytes": int(total) * MB}
            found.append({"name": name, "use_percent": int(percent), **memory})
    return found


def last_lines(path: Path) -> list[str]:
    """The end of a log; of a line that was written over, what it says last."""
    if not path.is_file():
        return []
    with path.open("rb") as stream:
        stream.seek(max(path.stat().st_size - LINE_BYTES, 0))
        lines = stream.read().decode(errors="replace").split("\n")
    return [said for line in lines if (said := line.rstrip("\r").rpartition("\r")[2].rstrip())][-LAST_LINES:]


def facts(status: dict[str, Any]) -> list[str]:
    """What a line says of a run, the most important first."""
    state, now = status["state"], time.time()
    said = [state + (f" on {status['machine']}" if state == "elsewhere" else "")]
    if trials := status.get("trials"):
        said.append(f"{trials['done']} of {trials['asked']} trials done")
    if "part" in status:
        said.append(status["part"])
    if "update" in status:
        said.append(f"update {status['update']:,} of {status['updates']:,}")
    if "loss" in status:
        said.append(f"loss {status['loss']:.4f}")
    if state == "training" and "seconds_left" in status:
        said.append(f"{status['seconds_left'] / 60:.1f} minutes left")
    if state == "elsewhere" and "told_at" in status:
        said.append(f"last heard of {ago(now - status['told_at'])}")
    if state != "finished":
        saved = "nothing saved yet"
        if "saved_at" in status:
            saved = f"saved at update {status['saved_update']:,}, {ago(now - status['saved_at'])}"
        said.append(saved)
    if state == "preparing" and "last_lines" in status:
        said.append(status["last_lines"][-1])
    for gpu in status.get("gpus", ()):
        said.append(f"GPU {gpu['use_percent']} %, {size(gpu['memory_bytes'])}")
    return said


def ago(seconds: float) -> str:
    """A span of the past as people say it."""
    for unit, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name} ago"
    return f"{seconds:.0f} seconds ago" if seconds >= 2 else "just now"


def one_line(status: dict[str, Any]) -> str:
    return f"{os.path.relpath(status['run'])}: {' · '.join(facts(status))}"


def details(status: dict[str, Any]) -> str:
    """All that is known, a line for each; what is said on one line begins."""
    lines = [one_line(status)]
    if "held_out" in status:
        shown = (f"{COLUMNS[name][0]} {value:{COLUMNS[name][2]}}" for name, value in status["held_out"].items())
        lines.append(f"  held out   {', '.join(shown)}")
    if "process" in status:
        memory = f", {size(status['memory_bytes'])} of memory" if "memory_bytes" in status else ""
        lines.append(f"  process    {status['process']} of {status['machine']}, since {status['since']}{memory}")
    for gpu in status.get("gpus", ()):
        of = f"{size(gpu['memory_bytes'])} of {size(gpu['memory_total_bytes'])}"
        lines.append(f"  GPU        {gpu['name']}: {of} taken, in use {gpu['use_percent']} % of the time")
    if "last_lines" in status:
        lines.append(f"  log        {os.path.relpath(status['log'])}, which ends in")
        lines += [f"    {line}" for line in status["last_lines"]]
    return "\n".join(lines)


def report(name: str, follow: bool = False, as_json: bool = False, on_terminal: bool = False) -> Iterator[str]:
    """The text of `newllm status NAME`, a run or a folder with runs; with `follow` again and again until none of them
    runs any more. Raises InputError: there is no run."""
    folder = Path(os.path.abspath(os.path.expanduser(name)))
    runs = [] if (folder / SETTINGS_FILE).exists() else runs_below(folder)
    is_list = bool(runs)
    runs = runs or [run_folder(name)]
    try:
        if follow:
            yield from _ticks(runs, as_json, on_terminal)
    except KeyboardInterrupt:
        yield "\nThe run goes on; newllm stop RUN saves it and ends it.\n"
    statuses = [run_status(run) for run in runs]
    if as_json:
        yield json.dumps(statuses if is_list else statuses[0]) + "\n"
    else:
        yield "\n".join(map(one_line if is_list else details, statuses)) + "\n"


def _ticks(runs: Sequence[Path], as_json: bool, on_terminal: bool) -> Iterator[str]:
    """What runs, every few seconds, as long as something does; on a terminal a single line is written over."""
    width = 0
    while going := [it for it in map(run_status, runs) if it["state"] in RUNNING]:
        lines = [json.dumps(it) if as_json else f"{time.strftime('%H:%M:%S')} {one_line(it)}" for it in going]
        if on_terminal and not as_json and len(lines) == 1:
            yield f"\r{lines[0].ljust(width)}"
            width = len(lines[0])
        else:
            yield "\n".join(lines) + "\n"
        time.sleep(FOLLOW_SECONDS)
    if width:
        yield "\n"
