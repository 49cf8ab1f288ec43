"""How far long work is, in one line that is shown again and again: the bars of this library and of those below it.

A `Progress` is a tqdm that draws nothing. It hands its line to `Progress.place`, which a console or a notebook sets;
without a place nothing is shown, and neither is work of less than DELAY_SECONDS.
"""

import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakSet

from tqdm.std import tqdm
from tqdm.utils import disp_trim

DELAY_SECONDS = 2.0
INTERVAL_SECONDS = 1.0  # between two lines
SILENT_SECONDS = 10.0  # in a log file, at the beginning
TRAINING, WORKING = "training", "working"
# What the libraries call their work -> what it is to a user.
NAMES = {
    "Downloading data": "downloading", "Generating train split": "unpacking", "Loading weights": "reading the weights",
    "Converting and de-quantizing GGUF tensors...": "converting the weights",
}  # fmt: skip


class Line(NamedTuple):
    """What there is to say of the open bars."""

    names: list[str]  # of the work, and of the part of it that goes on
    share: float | None  # done of that part, where its whole is known
    facts: list[str]


def in_english(text: str, **values: str) -> str:
    return text.format(**values) if values else text


class Progress(tqdm):
    """As tqdm: around an iterable, or `with Progress(desc="scoring", total=9, unit="tokens") as bar: bar.update(3)`;
    `of` is the {name} in `desc`.

    The line is that of the newest open bar, downloads first, behind the name of the oldest. A thread shows it while no
    bar moves; time that passes is then all there is to see.
    """

    place: Any = None  # its `show` takes a Line; its `clear` takes the last one away, when all bars are closed
    words: Callable[..., str] = staticmethod(in_english)  # a text and the values in it -> the text in the language
    monitor_interval = 0  # tqdm's own thread shows too little
    _instances: WeakSet["Progress"] = WeakSet()  # the open ones; libraries leave closing to the garbage collector
    _thread: threading.Thread | None = None
    _shown_at = 0.0

    def __init__(self, *args: Any, of: str = "", **options: Any):
        self.of = of
        # Beside the bytes that it writes, the hub counts those that come over the line, without their total.
        is_double = "total_fmt" not in (options.get("bar_format") or "total_fmt")
        is_off = options.get("disable") is True or is_double or Progress.place is None
        super().__init__(*args, **options | {"disable": is_off, "gui": True, "leave": False, "miniters": 0})
        if not is_off:
            with self._lock:
                if Progress._thread is None:
                    Progress._thread = threading.Thread(target=_show_until_closed, name="progress", daemon=True)
                    Progress._thread.start()

    def refresh(self, *args: Any, **options: Any) -> None:
        """What tqdm calls when a bar has moved."""
        if not self.disable and time.monotonic() - Progress._shown_at >= INTERVAL_SECONDS:
            _show()

    def display(self, *args: Any, **options: Any) -> None:
        """Nothing; here tqdm would draw."""

    def clear(self, *args: Any, **options: Any) -> None:
        """Nothing is drawn that could be cleared."""

    def close(self) -> None:
        if not getattr(self, "disable", True):
            with self._lock:
                super().close()
                if self.place is not None and not any(True for _ in self._instances):
                    self.place.clear()

    @property
    def name(self) -> str:
        name = self.desc.removesuffix(": ").rsplit("/", 1)[-1]  # of a file on the hub the last part
        return self.words(NAMES.get(name, name), name=self.of) if self.of else self.words(NAMES.get(name, name))

    def facts(self) -> list[str]:
        """How much is done and how long the rest takes; where that is not known, how long it has been going on."""
        done, total, unit, seconds = self.n, self.total, self.unit.strip(), time.time() - self.start_t
        is_bytes = unit == "B"
        count = f"{self.format_sizeof(done)}B" if is_bytes else f"{int(done):,}"
        if total:
            count += f" / {self.format_sizeof(total)}B" if is_bytes else f" / {int(total):,}"
        if not is_bytes and unit not in ("it", "obj"):
            count = self.words(f"{{count}} {unit}", count=count)
        rate = self.format_dict["rate"] or (done - self.initial) / max(seconds, 1e-9)
        if total and rate > 0:
            time_told = self.words("{time} left", time=self.format_interval(max(total - done, 0) / rate))
        else:
            time_told = self.words("for {time}", time=self.format_interval(seconds))
        return [*([count] if done else []), *([self.postfix] if self.postfix and not is_bytes else []), time_told]


Progress.set_lock(threading.RLock())  # tqdm's own is shared with other processes, for nothing


def _show() -> None:
    """Show the line of those open bars that are old enough."""
    with Progress.get_lock():
        started = [bar for bar in list(Progress._instances) if hasattr(bar, "start_t")]
        bars = sorted(started, key=lambda bar: bar.start_t)
        bars = [bar for bar in bars if time.time() - bar.start_t >= DELAY_SECONDS]
        bars = [bar for bar in bars if bar.desc != WORKING] or bars
        if bars and Progress.place is not None:
            newest = next((bar for bar in reversed(bars) if bar.unit == "B"), bars[-1])
            names = list(dict.fromkeys((bars[0].name, newest.name)))
            Progress._shown_at = time.monotonic()
            Progress.place.show(Line(names, newest.n / newest.total if newest.total else None, newest.facts()))


def _show_until_closed() -> None:
    while True:
        time.sleep(INTERVAL_SECONDS)
        with Progress.get_lock():
            if not len(Progress._instances):
                Progress._thread = None
                return
            if time.monotonic() - Progress._shown_at >= INTERVAL_SECONDS:
                _show()


class ConsoleLine:
    """The line of `Progress` on standard error: on a terminal one that is replaced, below the log lines; in a file and
    in the log of a server a new one when nothing was said for a while, the longer the command takes the longer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock, self.started, self.said_at, self.is_shown = clock, clock(), clock(), False

    def show(self, line: Line) -> None:
        share = [] if line.share is None else [f"{line.share:.0%}"]
        text, now = f"{': '.join(line.names)}  {', '.join(share + line.facts)}", self.clock()
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r{disp_trim(text, width)}\x1b[K")
            self.is_shown = True
        elif now - self.said_at >= min(max(SILENT_SECONDS, (now - self.started) / 10), 6 * SILENT_SECONDS):
            self._write(f"{text}\n")
            self.said_at = now

    def clear(self) -> None:
        if self.is_shown:
            self._write("\r\x1b[K")
            self.is_shown = False

    def make_room(self, record: logging.LogRecord) -> bool:
        """A filter of a log handler: the record gets the line's place."""
        with Progress.get_lock():
            self.clear()
            self.said_at = self.clock()
        return True

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # the terminal is gone, or who reads it: the work goes on
            sys.stderr.write(text)
            sys.stderr.flush()


@contextmanager
def working() -> Iterator[None]:
    """A bar around all of a command or a cell, which tells the time of what has no bar of its own. It closes what a
    failure leaves open inside."""
    with Progress(desc=WORKING):
        try:
            yield
        finally:
            for bar in list(Progress._instances):
                bar.close()


def take_over_bars() -> None:
    """Make a Progress of every bar of huggingface_hub, datasets and transformers."""
    import datasets
    import huggingface_hub
    import transformers

    for bar in (huggingface_hub.utils.tqdm, datasets.utils.tqdm):
        bar.__bases__ = (Progress,)
        bar.set_lock(Progress.get_lock())
    transformers.utils.logging.tqdm_lib = SimpleNamespace(tqdm=Progress)
