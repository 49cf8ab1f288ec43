"""Kill, starve and damage small runs of every stage, and count what survives.

    bash scripts/faults.sh                 # 300 kills, 30 storage faults, 60 damaged and 40 hostile files
    bash scripts/faults.sh --minutes 5     # as many of each as fit

A run that is killed is started again until it ends, and has to end as the unbroken run did: weights equal to the bit,
the same lines in its log, the same files. A process that imports everything once and never trains forks every session,
so that one costs no start of Python. `--keep FOLDER` keeps what failed.
"""

import argparse
import collections
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import psutil  # noqa: E402  after the number of threads is set
import safetensors.torch  # noqa: E402  after the number of threads is set
import torch  # noqa: E402
from chats import untrained_chat, write_conversations  # noqa: E402
from preference_runs import make_pairs, tiny_chat_model, write_pairs  # noqa: E402
from sample_text import make_text  # noqa: E402
from tiny_gemma import tiny_gemma_folder  # noqa: E402

from newllm_lib import cli  # noqa: E402
from newllm_lib.preferences import sweep  # noqa: E402, F401  imported once, for all sessions
from newllm_lib.stages import pretrain, sft  # noqa: E402, F401

COUNTS = {"kills": 300, "two processes": 6, "storage": 30, "damaged": 60, "hostile": 40}
SECONDS = 120  # that a session may take
TIMES = ("seconds", "runtime", "per_second", "minutes", "time", "flos")  # what a line of a log says of the clock
COMMON = """--max_steps 12 --eval_steps 3 --save_steps 3 --logging_steps 2 --save_total_limit 2 --seed 1
    --per_device_train_batch_size 4 --auto_precision False --max_eval_tokens 200"""
# stage -> its flags; {data} is the folder with the inputs, made once
STAGES = {
    "pretrain": "--data {data}/text.txt --tokenizer byte --num_parameters 80000 --max_length 32",
    "sft": "--data {data}/talk.jsonl --tokenizer byte --num_parameters 80000 --max_length 64",
    "qlora-lwf": "--model {data}/gemma --data {data}/talk.jsonl --rehearsal_data {data}/text.txt --load_in_4bit False "
    "--max_length 64 --gradient_accumulation_steps 1 --max_test_tokens 200",
    "dpo": "--model {data}/chat --data {data}/pairs.jsonl --held_out_share 0.25 --max_length 96 --sft_epochs 0.5 "
    "--lora_r 4",
    "sweep": "--model {data}/chat --data {data}/pairs.jsonl --held_out_share 0.25 --max_length 96 --sft_epochs 0 "
    "--trials 2 --search_lora_r 4,8",
}
# Where a session writes; a kill or a fault comes at any call of one of these.
POINTS = (
    (os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (io, "open"),
    (safetensors.torch, "save_file"), (torch, "save"),
)  # fmt: skip
FAULTS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT)


@dataclasses.dataclass
class Verdict:
    """What came of one case: `kind`, `what` was done, and what is wrong with how it ended, "" if nothing is."""

    kind: str
    what: str
    wrong: str = ""
    told: bool = False  # it ended in one sentence


@dataclasses.dataclass
class Session:
    """How a session ended: exit code, or minus the signal that ended it; what it wrote; its seconds."""

    code: int
    output: str
    seconds: float

    @property
    def is_sentence(self) -> bool:
        """It refused, or could not go on, and said so without a traceback."""
        return self.code == 2 and "Traceback" not in self.output and "newllm: " in self.output


def session(
    argv: list[str], stdin: str = "", before: Callable = lambda: None, kill: tuple[float, int] | None = None
) -> Session:
    """Run `newllm ARGV` in a process of its own.

    Args:
        before: called in it first.
        kill: (seconds, signal) that it is sent then.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        if (child := os.fork()) == 0:
            _child(argv, stdin, output.fileno(), before)
        deadline = started + SECONDS
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            now = time.monotonic()
            if kill is not None and now >= started + kill[0]:
                os.kill(child, kill[1])
                kill = None
            if now >= deadline:
                os.kill(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
                break
            time.sleep(0.01)
        output.seek(0)
        return Session(os.waitstatus_to_exitcode(ended[1]), output.read(), time.monotonic() - started)


def _child(argv: list[str], stdin: str, output: int, before: Callable) -> None:
    code = 1
    try:
        read, write = os.pipe()
        os.write(write, stdin.encode())
        os.close(write)
        os.dup2(read, 0)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  the process ends with it
        sys.stdout = sys.stderr = open(1, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        before()
        code = cli.main(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class Watch:
    """Counts the calls of POINTS in this process, and does something at one of them."""

    def __init__(self, at: int = -1, action: Callable = lambda: None, times: int = 1, after: bool = False):
        self.count, self.at, self.action, self.times, self.after = 0, at, action, times, after

    def install(self) -> None:
        for module, name in POINTS:
            setattr(module, name, self._watched(getattr(module, name)))

    def _watched(self, function: Callable) -> Callable:
        def watched(*args, **kwargs):
            if function is WATCHED_OPEN and not set("wax+") & set(str((*args, "r")[1])):
                return function(*args, **kwargs)
            is_now = self.at <= self.count < self.at + self.times
            self.count += 1
            if is_now and not self.after:
                self.action()
            result = function(*args, **kwargs)
            if is_now and self.after:
                self.action()
            return result

        return watched


WATCHED_OPEN = io.open


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclasses.dataclass
class Unbroken:
    """A run as it ends when nothing happens: its command, without `--output_dir`, and what it leaves."""

    stage: str
    argv: list[str]
    weights: dict[str, str]
    lines: list
    files: set[str]
    seconds: float
    calls: int  # of POINTS


def commands(data: Path) -> dict[str, list[str]]:
    return {stage: [stage, *f"{flags} {COMMON}".format(data=data).split()] for stage, flags in STAGES.items()}


def make_inputs(data: Path) -> None:
    data.mkdir()
    (data / "text.txt").write_text(make_text(240), encoding="utf-8")
    write_conversations(data / "talk.jsonl", 60)
    write_pairs(data / "pairs.jsonl", make_pairs(48))
    tiny_gemma_folder(data / "gemma")
    tiny_chat_model(data / "chat")
    untrained_chat(data / "talker")


def unbroken(stage: str, argv: list[str], folder: Path) -> Unbroken:
    calls = folder.with_suffix(".calls")

    def count() -> None:
        watch = Watch()
        watch.install()
        real = os._exit

        def leave(code: int) -> None:
            calls.write_text(str(watch.count))
            real(code)

        os._exit = leave

    ended = session([*argv, "--output_dir", str(folder)], before=count)
    if ended.code != 0:
        raise SystemExit(f"{stage} fails by itself:\n{ended.output}")
    return Unbroken(
        stage, argv, weights(folder), log_lines(folder), files(folder), ended.seconds, int(calls.read_text())
    )


def weights(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
        if "checkpoint-" not in str(path)
    }


def log_lines(folder: Path) -> list:
    """Every line of every log, without what the clock says."""
    found = []
    for path in sorted([*folder.rglob("metrics.jsonl"), *folder.rglob("trials.jsonl")]):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                return [("unreadable", str(path.relative_to(folder)))]
            row = {key: value for key, value in row.items() if not any(t in key for t in TIMES)}
            found.append((str(path.relative_to(folder)), row))
    return found


def files(folder: Path) -> set[str]:
    """Every file. A checkpoint has no number: a run that was asked to stop has saved at another update."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {re.sub(r"checkpoint-\d+", "checkpoint", name) for name in names}


def complaint(run: Unbroken, folder: Path) -> str:
    """What is otherwise than in the unbroken run, or nothing."""
    if weights(folder) != run.weights:
        return "other weights"
    found, lines = log_lines(folder), run.lines
    if found != lines:
        there, expected = (collections.Counter(json.dumps(line, sort_keys=True) for line in x) for x in (found, lines))
        return f"lines too many {list(there - expected)[:2]}, missing {list(expected - there)[:2]}"
    if files(folder) != run.files:
        return f"files {sorted(files(folder) ^ run.files)[:4]}"
    if len(list(folder.glob("checkpoint-*"))) > 2:
        return "more checkpoints than --save_total_limit"
    return ""


def finish(run: Unbroken, folder: Path) -> str:
    """Start the run again, with nothing in its way; what is wrong in the end."""
    ended = session([*run.argv, "--output_dir", str(folder)])
    return complaint(run, folder) if ended.code == 0 else f"exit code {ended.code}: {ended.output[-600:]}"


def kill_chain(run: Unbroken, folder: Path, seed: int, kills: int) -> list[Verdict]:
    """A run killed `kills` times or until it ends: at any time, or at any call that writes."""
    chance, done = random.Random(seed), []
    for _ in range(kills):
        if chance.random() < 0.5:
            signal_number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            seconds = chance.uniform(0, 1.2 * run.seconds)
            what = f"{run.stage}: {signal_number.name} after {seconds:.2f} s"
            ended = session([*run.argv, "--output_dir", str(folder)], kill=(seconds, signal_number))
        else:
            at, after = chance.randrange(run.calls), chance.random() < 0.5
            what = f"{run.stage}: SIGKILL {'after' if after else 'before'} write {at}"
            watch = Watch(at, kill_self, after=after)
            ended = session([*run.argv, "--output_dir", str(folder)], before=watch.install)
        asked = ended.code in (130, 143, -signal.SIGINT, -signal.SIGTERM) and "Traceback" not in ended.output
        done.append(Verdict("kills", what))
        if ended.code not in (0, -signal.SIGKILL) and not asked:
            done[-1].wrong = f"exit code {ended.code}: {ended.output[-600:]}"
            return done
    done[-1].wrong = finish(run, folder)
    return done


def two_processes(run: Unbroken, folder: Path, seed: int) -> list[Verdict]:
    """Two processes are asked to stop, and the run goes on by one."""
    chance = random.Random(seed)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    fields = ["-m", "newllm_lib", *run.argv, "--output_dir", str(folder)]
    fields += ["--per_device_train_batch_size", "2", "--max_steps", "100000"]
    signal_number = chance.choice((signal.SIGINT, signal.SIGTERM, signal.SIGKILL))
    verdict = Verdict("two processes", f"{run.stage}: {signal_number.name}")
    with (folder.parent / f"{folder.name}.log").open("w+") as log:
        running = subprocess.Popen([*launch, *fields], stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        deadline = time.monotonic() + SECONDS
        while not list(folder.glob("checkpoint-*/complete.json")) and running.poll() is None:
            time.sleep(0.1)
            if time.monotonic() > deadline:
                break
        time.sleep(chance.uniform(0, 1))
        if signal_number == signal.SIGKILL:
            os.killpg(running.pid, signal_number)
        else:
            running.send_signal(signal_number)
        try:
            running.wait(timeout=40)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            verdict.wrong = "the request to stop was not heard"
        for process in psutil.process_iter(["cmdline"]):  # the launcher's children are no part of its group
            if str(folder) in (process.info["cmdline"] or []):
                process.kill()
        log.seek(0)
        if "Finished" in log.read():
            verdict.wrong = "it ran to its end"
    reached = [int(path.parent.name.split("-")[1]) for path in folder.glob("checkpoint-*/complete.json")]
    if not verdict.wrong and not reached:
        verdict.wrong = "no checkpoint was left"
    return [verdict]


def storage_fault(run: Unbroken, folder: Path, seed: int) -> list[Verdict]:
    """Some writes in a row fail; then the run is started again."""
    chance = random.Random(seed)
    number, at, times = chance.choice(FAULTS), chance.randrange(run.calls), chance.choice((1, 3, 1000))

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    verdict = Verdict("storage", f"{run.stage}: {errno.errorcode[number]} from write {at} on, {times} times")
    ended = session([*run.argv, "--output_dir", str(folder)], before=Watch(at, fail, times).install)
    verdict.told = ended.is_sentence
    if ended.code != 0 and not verdict.told:
        verdict.wrong = f"exit code {ended.code}: {ended.output[-600:]}"
    else:
        verdict.wrong = finish(run, folder)
    if verdict.wrong == "other weights" and "could not be saved" in ended.output:
        verdict.told, verdict.wrong = True, ""  # the best weights were among what the disk has refused
    return [verdict]


def damage(path: Path, chance: random.Random) -> str:
    """Harm a file in one of the ways that machines do."""
    content = path.read_bytes()
    middle = len(content) // 2
    ways = {
        "cut": content[:middle],
        "emptied": b"",
        "zeros": bytes(len(content)),
        "a byte flipped": content[:middle] + bytes([content[middle] ^ 255 if content else 0]) + content[middle + 1 :],
        "zeros at its end": content[:middle] + bytes(len(content) - middle),
        "noise": chance.randbytes(len(content)),
        "removed": None,
    }
    way = chance.choice(sorted(ways))
    path.unlink()
    if ways[way] is not None:
        path.write_bytes(ways[way])
    return way


def damaged_run(run: Unbroken, folder: Path, seed: int) -> list[Verdict]:
    """A run that was killed finds a file of its newest checkpoint, or of its folder, damaged."""
    chance = random.Random(seed)
    argv = [*run.argv, "--output_dir", str(folder)]
    for share in (chance.uniform(0.3, 0.9) for _ in range(6)):  # a finished trial of a sweep keeps no checkpoint
        shutil.rmtree(folder, ignore_errors=True)
        session(argv, before=Watch(int(share * run.calls), kill_self).install)
        checkpoints = sorted(folder.rglob("checkpoint-*/complete.json"), key=lambda path: path.stat().st_mtime_ns)
        if checkpoints:
            break
    else:
        return []
    choice = [path for path in checkpoints[-1].parent.rglob("*") if path.is_file()]
    choice = choice if chance.random() < 0.8 else [path for path in folder.glob("*") if path.is_file()]
    path = chance.choice(sorted(choice))
    verdict = Verdict("damaged", f"{run.stage}: {path.relative_to(folder)} {damage(path, chance)}")
    ended = session(argv)
    verdict.told = ended.is_sentence
    if ended.code != 0 and not verdict.told:
        verdict.wrong = f"exit code {ended.code}: {ended.output[-600:]}"
    elif ended.code == 0:
        verdict.wrong = complaint(run, folder)
    elif "checkpoint-" in str(path.relative_to(folder)):
        verdict.wrong = f"refused for a checkpoint's file: {ended.output[-300:]}"
    return [verdict]


class Pickled:
    """Writes a file where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def hostile_folder(talker: Path, folder: Path, seed: int) -> list[Verdict]:
    """Somebody talks to a model folder that somebody else has made."""
    chance = random.Random(seed)
    shutil.copytree(talker, folder)
    path = chance.choice(sorted(p for p in folder.iterdir() if p.is_file()))
    mark = folder.parent / "a pickle ran"
    if chance.random() < 0.6:
        way = damage(path, chance)
    else:
        torch.save(Pickled(mark), buffer := io.BytesIO())
        deep = b"[" * 100_000 + b"]" * 100_000
        content = {"a pickle": buffer.getvalue(), "deep JSON": deep, "a list": b"[]", "null": b"null"}
        way = chance.choice(sorted(content))
        path.write_bytes(content[way])
    verdict = Verdict("hostile", f"{path.name} {way}")
    ended = session(["chat", str(folder), "--max_new_tokens", "5"], stdin="hello\n")
    verdict.told = ended.is_sentence
    if ended.code != 0 and not verdict.told:
        verdict.wrong = f"exit code {ended.code} after {ended.seconds:.0f} s: {ended.output[-600:]}"
    if mark.exists():
        verdict.wrong = "a pickle ran"
    return [verdict]


def cases(runs: dict[str, Unbroken], talker: Path, work: Path, seed: int) -> Iterator[tuple]:
    """(function, arguments) of all cases, a kind after the other in turn, without end."""
    for number in itertools.count(seed):
        run = list(runs.values())[number % len(runs)]
        folder = work / f"{number}"
        yield "kills", kill_chain, (run, folder / "kills", number, 4 + number % 5)
        yield "damaged", damaged_run, (run, folder / "damaged", number)
        yield "storage", storage_fault, (run, folder / "storage", number)
        yield "hostile", hostile_folder, (talker, folder / "hostile", number)
        if number % 10 == 0:
            yield "two processes", two_processes, (runs["pretrain"], folder / "two", number)


def attempt(function: Callable, arguments: tuple, folder: Path, keep: Path | None) -> list[Verdict]:
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["NEWLLM_CACHE"] = str(folder / "cache")
    found = function(*arguments)
    if keep is not None and any(verdict.wrong for verdict in found):
        shutil.copytree(folder, keep / f"{function.__name__}-{folder.name}", dirs_exist_ok=True)
    shutil.rmtree(arguments[1], ignore_errors=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="begin no case after these")
    parser.add_argument("--seed", type=int, default=0, help="of what happens to whom")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--kinds", nargs="+", choices=COUNTS, default=list(COUNTS))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--keep", type=Path, help="a folder for what failed")
    options = parser.parse_args()
    started = time.monotonic()
    deadline = started + 60 * options.minutes if options.minutes else float("inf")
    missing = {kind: COUNTS[kind] for kind in options.kinds}
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="newllm-faults-", ignore_cleanup_errors=True) as work:
        work = Path(work)
        os.environ["NEWLLM_CACHE"] = str(work / "cache")
        make_inputs(work / "data")
        chosen = {stage: argv for stage, argv in commands(work / "data").items() if stage in options.stages}
        runs = {stage: unbroken(stage, argv, work / f"unbroken-{stage}") for stage, argv in chosen.items()}
        for run in runs.values():
            print(f"{run.stage}: {run.seconds:.1f} s unbroken, {run.calls} writes", flush=True)
        with ProcessPoolExecutor(options.workers, mp_context=get_context("fork")) as pool:
            waiting = []
            for kind, function, arguments in cases(runs, work / "data" / "talker", work, options.seed):
                if time.monotonic() > deadline or not any(count > 0 for count in missing.values()):
                    break
                if missing.get(kind, 0) <= 0:
                    continue
                missing[kind] -= arguments[3] if kind == "kills" else 1
                waiting.append(pool.submit(attempt, function, arguments, arguments[1].parent, options.keep))
                while len(waiting) > 2 * options.workers:
                    verdicts += tell(waiting.pop(0).result())
            verdicts += [verdict for future in waiting for verdict in tell(future.result())]
    print(f"\n{time.monotonic() - started:.0f} s\n{'kind':<14} {'tried':>6} {'told':>6} {'failed':>7}")
    for kind in options.kinds:
        found = [verdict for verdict in verdicts if verdict.kind == kind]
        counts = len(found), sum(v.told for v in found), sum(bool(v.wrong) for v in found)
        print(f"{kind:<14} {counts[0]:>6} {counts[1]:>6} {counts[2]:>7}")
    return int(any(verdict.wrong for verdict in verdicts))


def tell(found: list[Verdict]) -> list[Verdict]:
    for verdict in found:
        if verdict.wrong:
            print(f"FAILED {verdict.kind}: {verdict.what}: {verdict.wrong}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
