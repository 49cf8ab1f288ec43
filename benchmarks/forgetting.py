"""What distillation and rehearsal are worth: one base model tuned in four ways for equally many updates, and scored
with the base on the new task and on text of other kinds.

    python benchmarks/forgetting.py --data TASK.jsonl --rehearsal_data TEXT.txt --rehearsal_eval_data OTHER.txt

Intervals are by bootstrap over groups of held-out documents, the same groups for every arm. An arm that is finished is
kept in --output_dir and found there again. Further flags are those of newllm qlora-lwf.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from newllm_lib.adapters.qlora_lwf import QloraLwfArguments, prepare
from newllm_lib.adapters.trainer import LwfTrainer
from newllm_lib.cli import parse_stage, set_up_output
from newllm_lib.data.text import EvaluationDocuments
from newllm_lib.evaluation.perplexity import score_against_base
from newllm_lib.models.frozen_head import adapters_off
from newllm_lib.training.disk import write_json

ARMS = {"SFT": (False, False), "+ rehearsal": (False, True), "+ LwF": (True, False), "+ both": (True, True)}
GROUPS = 24
WINDOW = 256  # tokens that are read at a time when the text is scored, however short the examples are
DRAWS = 2_000
TEXTS = ("new task", "general text")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    own, rest = parser.parse_known_args()
    set_up_output()
    settings = parse_stage(QloraLwfArguments, "forgetting.py", rest)
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for arm in own.arms:
        path = folder / f"{arm.strip('+ ')}.json"
        if not path.exists():
            distills, rehearses = ARMS[arm]
            args = parse_stage(QloraLwfArguments, "forgetting.py", rest)
            args.distill_weight = settings.distill_weight if distills else 0.0
            args.rehearsal_ratio = settings.rehearsal_ratio if rehearses else 0.0
            write_json(path, run_arm(args, folder / "base.json"))
        found[arm] = json.loads(path.read_text())
    found = {"base": json.loads((folder / "base.json").read_text()), **found}
    print(table(found))
    print(verdict(found))


def run_arm(args: QloraLwfArguments, base_file: Path) -> dict:
    """Train one arm and score it by groups; the base is scored with the first."""
    args.save_strategy, args.eval_strategy, args.load_best_model_at_end = "no", "no", False
    args.eval_on_start = False
    prepared = prepare(args)
    trainer = LwfTrainer(
        prepared.model, args, prepared.train_rows, prepared.held_out, prepared.tokenizer, prepared.general
    )
    texts = dict(zip(TEXTS, (prepared.held_out, prepared.general), strict=True))
    if not base_file.exists():
        with adapters_off(prepared.model):
            write_json(base_file, {name: scores(trainer, text, compare=False) for name, text in texts.items()})
    print(prepared.extent, f"distill_weight {args.distill_weight}, rehearsal_ratio {args.rehearsal_ratio}", flush=True)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    log = [entry for entry in trainer.state.log_history if "task_loss" in entry]
    found = {name: scores(trainer, text) for name, text in texts.items()}
    return {**found, "updates": trainer.state.global_step, "seconds": seconds, "log": log}


def scores(trainer: LwfTrainer, text: EvaluationDocuments, compare: bool = True) -> dict:
    """Nats, bytes and KL from the base of every group of documents."""
    count = min(GROUPS, len(text.documents))
    groups = [EvaluationDocuments(text.documents[first::count], text.origin) for first in range(count)]
    found = {"nats": [], "bytes": [], "kl": [], "tokens": []}
    for group in groups:
        shape = WINDOW, trainer.args.per_device_eval_batch_size
        start = trainer.processing_class.bos_token_id
        metrics, divergence = score_against_base(trainer.model, group, start, *shape, compare)
        found["nats"].append(metrics.loss * metrics.tokens)
        found["bytes"].append(metrics.bytes)
        found["tokens"].append(metrics.tokens)
        found["kl"].append(divergence * metrics.tokens)
    return found


def bits_per_byte(of_text: dict) -> np.ndarray:
    """[DRAWS + 1]: of every group once, then of as many drawn with replacement; the same ones for every arm."""
    nats, sizes = np.array(of_text["nats"]), np.array(of_text["bytes"])
    random = np.random.default_rng(0).integers(len(nats), size=(DRAWS, len(nats)))
    draws = np.concatenate([np.arange(len(nats))[None], random])
    return nats[draws].sum(1) / np.log(2) / sizes[draws].sum(1)


def table(found: dict[str, dict]) -> str:
    titles = f"{'new task, bits per byte':>28} {'general text':>28} {'KL there':>9} {'updates':>8} {'minutes':>8}"
    lines = [f"{'':<12} {titles}"]
    for name, of_arm in found.items():
        cells = []
        for text in TEXTS:
            value, *rest = bits_per_byte(of_arm[text])
            low, high = np.percentile(rest, [2.5, 97.5])
            cells.append(f"{value:.4f} [{low:.4f}, {high:.4f}]")
        divergence = sum(of_arm["general text"]["kl"]) / sum(of_arm["general text"]["tokens"])
        lines.append(
            f"{name:<12} {cells[0]:>28} {cells[1]:>28} {divergence:9.4f} {of_arm.get('updates', 0):8} "
            f"{of_arm.get('seconds', 0) / 60:8.1f}"
        )
    return "\n".join(lines)


def verdict(found: dict[str, dict]) -> str:
    """For every arm: its part of SFT's gain on the new task, and of what SFT loses on general text."""
    if "SFT" not in found:
        return ""
    bits = {name: [bits_per_byte(of_arm[text]) for text in TEXTS] for name, of_arm in found.items()}
    loss = bits["SFT"][1][0] / bits["base"][1][0] - 1
    lines = [f"SFT is {loss:.1%} worse than the base on general text. Of SFT's gain kept, of SFT's loss suffered:"]
    for name in found.keys() - {"base", "SFT"}:
        shares = [(bits["base"][text] - bits[name][text]) / (bits["base"][text] - bits["SFT"][text]) for text in (0, 1)]
        ranges = [np.percentile(share, [2.5, 97.5]) for share in shares]
        cells = [f"{share[0]:.0%} [{low:.0%}, {high:.0%}]" for share, (low, high) in zip(shares, ranges, strict=True)]
        lines.append(f"  {name:<12} gain {cells[0]:<22} loss {cells[1]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
