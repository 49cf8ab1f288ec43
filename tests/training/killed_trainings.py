"""Trains one small run in sessions that kill themselves at a given moment, and then to its end.

usage: killed_trainings.py FOLDER TEXT LIMIT MOMENT[:NUMBER]...

MOMENT: `saving` (a file of the checkpoint is half written), `sealed` (nothing older is removed yet), `rotating` (an
older one is half removed); NUMBER: at which of them. Before every session the checkpoints get later times than any that
will follow: the clock was set back. Imports once and forks each session. Writes, as JSON, what is complete after each.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.training import curves, run_trainer
from newllm_lib.training.checkpoint import is_complete, numbered_checkpoints

torch.set_num_threads(1)
if torch.cuda.is_available():
    torch.use_deterministic_algorithms(True, warn_only=True)  # as in conftest.py


def train(folder: Path, text: str, limit: int) -> None:
    pretrain(
        PretrainArguments(
            data=text, output_dir=str(folder), tokenizer="byte", model_type="tiny-gpt2", num_parameters=60_000,
            max_length=32, max_steps=12, per_device_train_batch_size=4, eval_steps=2, save_steps=2, save_minutes=0,
            logging_steps=1, max_eval_tokens=200, save_total_limit=limit, auto_precision=False,
        )
    )  # fmt: skip


def die_at(moment: str, number: int) -> None:
    """Let the process kill itself at the `number`th `moment`."""
    holder, name = {"saving": (torch, "save"), "sealed": (run_trainer, "rotate"), "rotating": (shutil, "rmtree")}[
        moment
    ]
    real, times = getattr(holder, name), 0

    def call(*args, **kwargs):
        nonlocal times
        times += moment != "rotating" or "checkpoint-" in str(args[0])  # the cache is tidied, too
        if times == number:
            if moment == "saving":
                real(*args, **kwargs)
                os.truncate(args[1], 100)
            if moment == "rotating":
                next(path for path in Path(args[0]).iterdir() if path.name != "complete.json").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(holder, name, call)


def main() -> None:
    folder, text, limit, moments = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    curves.save_curves = lambda histories, path: path.write_bytes(b"png")
    sessions = []
    for number, moment in enumerate([*moments, ""]):
        for _, checkpoint in numbered_checkpoints(folder):
            later = time.time() + 10_000 * (len(moments) - number)
            os.utime(checkpoint, (later, later))
        sys.stdout.flush()
        if (child := os.fork()) == 0:
            if moment:
                word, _, times = moment.partition(":")
                die_at(word, int(times or 1))
            train(folder, text, limit)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        complete = [step for step, path in numbered_checkpoints(folder) if is_complete(path)]
        sessions.append({"moment": moment, "exit": os.waitstatus_to_exitcode(status), "complete": complete})
    sys.stdout.write(json.dumps(sessions))


if __name__ == "__main__":
    main()
