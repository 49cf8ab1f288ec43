"""Runs live on the fast disk of the machine and are copied to Google Drive in the background: training never waits for
Drive, and a Drive that is full or gone costs a remark in the panel, never the run."""

import errno
import functools
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from transformers import TrainerCallback

from ...errors import FULL
from ...preferences.dpo import MERGED_FOLDER
from ...preferences.trials import TRIALS_FILE
from ...training.checkpoint import (
    CHECKPOINT_NAME,
    REFERENCE_FOLDER,
    RESULTS_FILE,
    SETTINGS_FILE,
    has_adapters,
    numbered_checkpoints,
    read_results,
)
from ..page.notices import GONE
from . import run_copy


def problem_of(error: Exception) -> str:
    if isinstance(error, run_copy.DamagedCopy):
        return f"Drive did not keep what was written ({error})"
    number = getattr(error, "errno", None)
    if number in FULL:
        return "Drive is full"
    if number in GONE:
        return "Drive does not answer"
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"Drive cannot be written to ({words})"


def span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


STAGING = ".to-drive"  # in the local folder: checkpoints that wait, as links, so that they outlive their deletion
PAUSE_SECONDS = 15.0  # between two looks at what has changed
RETRY_SECONDS = 5.0  # after the first failure; twice as long after each further one
LONGEST_RETRY_SECONDS = 300.0


class DriveCopier(TrainerCallback):
    """Keeps a copy of the runs in `local` on `drive`, in one daemon thread. A run that trains is copied when it saves,
    a checkpoint at a time; of several that wait only the newest is. Everything else is copied when it has changed. Once
    the results of a run are there, its checkpoints are of no use there and go."""

    def __init__(self, local: Path, drive: Path, clock: Callable[[], float] = time.monotonic):
        self.local, self.drive, self.clock = local, drive, clock
        self.condition = threading.Condition()
        self.jobs: dict[Path, Path] = {}  # run -> its newest checkpoint that waits, in STAGING
        self.current: tuple[Path, Path] | None = None  # the one that is copied now
        self.copied_bytes = self.total_bytes = 0  # of that
        self.saved_at: dict[Path, float] = {}  # run -> when its newest copy of this session was verified
        self.seen: dict[Path, dict[str, tuple[int, int]]] = {}  # folder -> size and time of its files when copied
        self.problem, self.pause, self.retry_at = "", 0.0, 0.0
        self.asked = self.answered = 0  # requests for a round of work
        self.numbers = itertools.count(1)
        self.left: set[Path] = set()  # runs that are further on Drive than here and were not brought back yet
        self.missed: set[Path] = set()  # runs whose newest checkpoint could not be set aside
        self.thread = threading.Thread(target=self._run, name="copy-to-drive", daemon=True)
        shutil.rmtree(local / STAGING, ignore_errors=True)

    def start(self) -> None:
        """Begin to copy; if that has begun already, what failed is tried again."""
        (self.thread.start if self.thread.ident is None else self.try_again)()

    def copy_of(self, folder: Path) -> Path:
        return self.drive / folder.relative_to(self.local)

    def on_save(self, args, state, control, **kwargs):  # by now the checkpoint is sealed
        if state.is_world_process_zero:
            self.copy_later(Path(args.output_dir), Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def copy_later(self, run: Path, checkpoint: Path) -> None:
        """Copy a complete checkpoint as soon as Drive is free, in place of an older one of the run that still waits."""
        staged = self.local / STAGING / str(next(self.numbers)) / checkpoint.name
        try:
            for path in run_copy.with_best(checkpoint):
                shutil.copytree(path, staged.with_name(path.name), copy_function=link)
        except OSError:  # the disk of this machine is full: the training goes on, and the next save is the next try
            shutil.rmtree(staged.parent, ignore_errors=True)
            self.missed.add(run)
            return
        self.missed.discard(run)
        with self.condition:
            replaced, self.jobs[run] = self.jobs.get(run), staged
            self.condition.notify_all()
        if replaced is not None:
            shutil.rmtree(replaced.parent, ignore_errors=True)

    def status(self, run: Path) -> tuple[str, bool]:
        """(how the copy of a run stands, such as "saved to Drive 38 s ago ✓"; True if that is the newest checkpoint)"""
        now = self.clock()
        if self.problem:
            return f"{self.problem}, next try in {span(max(self.retry_at - now, 0.0))}", False
        if self.current is not None and self.current[0] == run:
            return f"copying to Drive, {min(self.copied_bytes / max(self.total_bytes, 1), 1.0):.0%}", False
        if run in self.jobs or run in self.missed or run not in self.saved_at:
            return "not on Drive yet", False
        return f"saved to Drive {span(now - self.saved_at[run])} ago ✓", True

    def finish(self, tell: Callable[[], None] = lambda: None) -> bool:
        """Try again now, and wait for Drive, calling `tell` twice a second; False if it does not take everything."""
        self.try_again()
        wanted = self.asked
        while True:
            with self.condition:
                if self.answered >= wanted:
                    return not (self.problem or self.missed)
                self.condition.wait(0.5)
            tell()

    def try_again(self) -> None:
        with self.condition:
            self.asked += 1
            self.condition.notify_all()

    def fetch(self, run: Path) -> run_copy.BroughtBack:
        """Bring a run back, if its copy is further. Raises OSError: nothing here has changed."""
        here = run_copy.progress_here(run)
        if run_copy.progress_of_copy(self.copy_of(run)) <= here:
            return run_copy.BroughtBack()
        brought = run_copy.bring_back(self.copy_of(run), run, beyond=here)
        reference = run / REFERENCE_FOLDER  # the model that adapters are on, a run of its own inside theirs
        if brought.progress > here and self.copy_of(reference).is_dir():
            brought.damaged += run_copy.bring_back(self.copy_of(reference), reference).damaged
        self.left.discard(run)
        return brought

    def _run(self) -> None:
        while True:
            with self.condition:
                pause = max(self.retry_at - self.clock(), 0.0) if self.problem else PAUSE_SECONDS
                self.condition.wait_for(lambda: self.asked > self.answered or (self.jobs and not self.problem), pause)
            self.work()

    def work(self) -> None:
        """Copy the checkpoints that wait, then whatever else has changed, each folder on its own."""
        answering, problem = self.asked, ""
        folders = (functools.partial(self._copy_changed_files, *found) for found in self._settled_folders())
        for task in itertools.chain([self._copy_jobs], folders):
            try:
                if not self.drive.parent.is_dir():  # else its folders would be made on this machine, to no use
                    raise OSError(errno.ENOTCONN, "Drive is not mounted")
                task()
            except Exception as error:  # no other code would see an error of this thread
                with self.condition:  # a checkpoint that failed waits again, unless a newer one does
                    failed, self.current = self.current, None
                    if failed is not None and self.jobs.setdefault(*failed) != failed[1]:
                        shutil.rmtree(failed[1].parent, ignore_errors=True)
                problem = problem or problem_of(error)
                if isinstance(error, OSError) and error.errno in FULL | GONE:
                    break  # so would all that follows
        self.pause = min(2 * self.pause, LONGEST_RETRY_SECONDS) if self.problem else RETRY_SECONDS
        self.problem, self.retry_at = problem, self.clock() + self.pause
        with self.condition:
            self.answered = answering
            self.condition.notify_all()

    def _copy_jobs(self) -> None:
        while self.jobs:
            self.copied_bytes = 0
            with self.condition:
                self.current = run, staged = self.jobs.popitem()
            self.total_bytes = run_copy.bytes_in(staged.parent)
            run_copy.copy_checkpoint(run, self.copy_of(run), staged, self._count)
            self.saved_at[run], self.current = self.clock(), None
            self.seen.pop(run, None)  # if it is finished, this checkpoint goes again
            shutil.rmtree(staged.parent, ignore_errors=True)

    def _count(self, size: int) -> None:
        self.copied_bytes += size

    def _copy_changed_files(self, folder: Path, names: list[str]) -> None:
        statuses = {name: (folder / name).stat() for name in names}
        now = {name: (status.st_size, status.st_mtime_ns) for name, status in statuses.items()}
        if now != self.seen.get(folder, {}):
            run_copy.update_files(folder, self.copy_of(folder), names)
            self.seen[folder] = now
            self.saved_at[folder] = self.clock()
            self.missed.discard(folder)
            copy = self.copy_of(folder)
            for _, checkpoint in numbered_checkpoints(copy) if read_results(copy) is not None else ():
                run_copy.discard(checkpoint)

    def _settled_folders(self) -> Iterator[tuple[Path, list[str]]]:
        """(folder, names of its files, the results last), but for runs under way, whose files belong to their
        checkpoints. A sweep is none, its trials are. A link that leads nowhere is no file. What adapters were merged
        into is left out: their stage, called again, makes it anew."""
        for path, folders, names in os.walk(self.local):
            made_anew = {MERGED_FOLDER} if has_adapters(Path(path)) else ()
            folders[:] = [f for f in sorted(folders) if f[0] != "." and not CHECKPOINT_NAME.fullmatch(f)]
            folders[:] = [f for f in folders if f not in made_anew]
            if SETTINGS_FILE not in names or {RESULTS_FILE, TRIALS_FILE} & set(names):
                files = [n for n in names if n[0] != "." and n != run_copy.MANIFEST_FILE and (Path(path) / n).is_file()]
                yield Path(path), sorted(files, key=lambda name: (name == RESULTS_FILE, name))


def callbacks_for(copier: DriveCopier | None) -> tuple[TrainerCallback, ...]:
    return () if copier is None else (copier,)


def link(source: str, target: str) -> None:
    """A second name for the same content, or a copy where the disk knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def wait_for_drive(copier: DriveCopier | None, tell: Callable[[], None]) -> str:
    """Wait for the last copy, or until ■ is pressed; returns a sentence after a blank, "" without Drive."""
    if copier is None:
        return ""
    try:
        if copier.finish(tell):
            return " It is on your Drive, too."
    except KeyboardInterrupt:
        return " The last copy to Drive was not waited for; it goes on while this session lasts."
    problem = copier.problem or "The disk of this machine is full"
    return f" {problem}: the last copy is not on Drive yet and is tried again while this session lasts."
