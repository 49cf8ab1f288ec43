"""Trains one small run in sessions that are killed, each on a machine of its own that shares nothing but Drive.

usage: killed_sessions.py FOLDER TEXT KILLS

Run as a process of its own, which imports everything once and never trains: it forks a session, kills it, takes its
disk away and forks the next, until one has finished. Prints what each session was told at its beginning.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from google_colab import install

from newllm_lib.colab import storage
from newllm_lib.colab.drive.drive_copy import callbacks_for
from newllm_lib.colab.drive.run_copy import progress_of_copy
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.training import curves

RUN = ("01_pretrain", "run-1", "newllm")


def train(folder: Path, text: str, callbacks: tuple = ()) -> None:
    arguments = PretrainArguments(
        data=text, output_dir=str(folder), tokenizer="byte", num_parameters=80_000, max_length=32, max_steps=60,
        per_device_train_batch_size=4, eval_steps=6, save_steps=6, save_minutes=1e-9, logging_steps=1,
        max_eval_tokens=300, auto_precision=False,
    )  # fmt: skip
    pretrain(arguments, callbacks)


def session(folder: Path, text: str) -> None:
    """From the storage cell to the end of the training cell, as far as it comes."""
    os.chdir(folder / "content")
    runs = storage.open_storage()
    copier = storage.drive_copier(runs)
    model = runs.joinpath(*RUN)
    for sentence, _ in storage.fetch_sentences(copier, [model]):
        say(sentence)
    train(model, text, callbacks_for(copier))
    assert copier.finish()


def say(sentence: str, *args) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


def main() -> int:
    folder, text, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    install(folder / "my-drive")
    storage.MOUNT_POINT = folder / "content" / "drive"
    storage.DRIVE_FOLDER = storage.MOUNT_POINT / "MyDrive" / "New-LLM"
    storage.say = say
    storage.display = lambda *args, **kwargs: SimpleNamespace(update=lambda content: None)
    curves.save_curves = lambda histories, path: path.write_bytes(b"png")
    chance = random.Random(0)
    for number in range(kills + 1):
        shutil.rmtree(folder / "content", ignore_errors=True)
        (folder / "content").mkdir(parents=True)
        if (child := os.fork()) == 0:
            session(folder, text)
            os._exit(0)
        if number < kills:
            kill_after(child, folder / "my-drive" / "New-LLM", chance)
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def kill_after(child: int, drive: Path, chance: random.Random) -> None:
    """Kill a session some saves later, at any moment of what it does then."""
    copy = drive.joinpath(*RUN)
    enough = progress_of_copy(copy) + chance.randint(1, 9)
    while progress_of_copy(copy) < enough:
        assert os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, "it has failed by itself"
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.2))
    os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
