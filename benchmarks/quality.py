"""Which model is best at equal parameters, equal tokens and one tokenizer, each with the settings that suit it:
New-LLM, its published cell, torch's LSTM, the multiplicative LSTM and TinyGPT2.

Every model is trained at its centre, at twice and half its learning rate and weight decay, and with dropout 0.1; at its
best point three seeds count. Models that are trained already are not trained again: the command goes on where it was
interrupted.

    OMP_NUM_THREADS=1 python benchmarks/quality.py --text wikitext --data TRAIN.txt --eval_data VALID.txt --workers 2
    OMP_NUM_THREADS=1 python benchmarks/quality.py --text chitchat --workers 2
    OMP_NUM_THREADS=1 python benchmarks/quality.py --text dailydialog --data dailydialog.jsonl --workers 2

Rows are 32 x 64 tokens, the context carried from row to row (the published cell: as published, 32 x 128 from zero).
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from multiplicative_lstm import multiplicative_lstm_of_size

from newllm_lib.cli import set_up_output
from newllm_lib.colab.timed_update import TimedUpdate
from newllm_lib.data.text import load_text
from newllm_lib.models import build_config, build_model, count_parameters
from newllm_lib.stages.pretrain import PretrainArguments, prepare
from newllm_lib.training.checkpoint import read_results
from newllm_lib.training.device import autocast_dtype, find_device, freed_memory_kept
from newllm_lib.training.disk import write_json
from newllm_lib.training.run import opened_run
from newllm_lib.training.trainer import LanguageModelTrainer

MODELS = ("newllm", "lstm", "multiplicative-lstm", "tiny-gpt2", "newllm-reference")
SEEDS = (0, 1, 2)
AS_PUBLISHED = {
    "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "dropout": 0.1, "max_length": 128,
    "carry_context": False,
}  # fmt: skip
TOKENS = 4_096_000  # to train every model on: 4.4 passes of wikitext's and 4.1 of dailydialog's text, 1.1 of chitchat's
# text -> model -> (learning rate, weight decay); no dropout, but in the published cell, as published.
TEXTS = {
    "wikitext": {
        "newllm": (5e-3, 0.6), "lstm": (6e-3, 0.4), "multiplicative-lstm": (5e-3, 0.8), "tiny-gpt2": (3e-3, 0.4),
        "newllm-reference": (4e-3, 0.0),
    },
    "chitchat": {
        "newllm": (5e-3, 0.1), "lstm": (3e-3, 0.1), "multiplicative-lstm": (3e-3, 0.1), "tiny-gpt2": (3e-3, 0.1),
        "newllm-reference": (2e-3, 0.0),
    },
    "dailydialog": {
        "newllm": (5e-3, 0.6), "lstm": (3e-3, 0.4), "multiplicative-lstm": (3e-3, 0.8), "tiny-gpt2": (3e-3, 0.4),
        "newllm-reference": (2e-3, 0.0),
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Point:
    """One model to train."""

    model: str
    learning_rate: float
    weight_decay: float
    dropout: float
    seed: int

    @property
    def folder(self) -> str:
        return f"{self.model}-lr{self.learning_rate:g}-wd{self.weight_decay:g}-p{self.dropout:g}-seed{self.seed}"


def centre(text: str, model: str, seed: int = 0) -> Point:
    return Point(model, *TEXTS[text][model], 0.1 if model == "newllm-reference" else 0.0, seed)


def grid(text: str, model: str) -> list[Point]:
    """The centre, and one step each way from it in each setting."""
    point = centre(text, model)
    steps = [{"learning_rate": point.learning_rate * factor} for factor in (2, 0.5)]
    decays = (point.weight_decay * 2, point.weight_decay / 2) if point.weight_decay else (0.1, 0.4)
    steps += [{"weight_decay": decay} for decay in decays]
    steps += [{"dropout": 0.1 - point.dropout}]
    return [point, *(dataclasses.replace(point, **step) for step in steps)]


def text_files(options: argparse.Namespace) -> tuple[Path, Path]:
    """The texts to train on and to score, each one stream: conversations stand one after the other."""
    if options.text == "wikitext":
        return options.data, options.eval_data
    files = tuple(options.output_dir / f"{options.text}-{part}.txt" for part in ("train", "valid"))
    if not all(file.exists() for file in files):
        if options.text == "chitchat":
            splits = load_text("offline", None, None, False)
            parts = [list(part.strings()) for part in (splits.train, splits.validation)]
        else:
            rows = [json.loads(line)["dialog"] for line in options.data.read_text(encoding="utf-8").splitlines()]
            dialogues = ["\n".join(turn.strip() for turn in row) for row in rows]
            cut = int(0.95 * len(dialogues))
            parts = [dialogues[:cut], dialogues[cut:]]
        for file, part in zip(files, parts, strict=True):
            file.write_text("\n\n".join(part), encoding="utf-8")
    return files


def arguments(options: argparse.Namespace, point: Point) -> PretrainArguments:
    fields = dataclasses.asdict(point)
    model = fields.pop("model")
    recipe = AS_PUBLISHED if model == "newllm-reference" else {}
    data, eval_data = map(str, text_files(options))
    folder = options.output_dir / options.text / f"{options.num_parameters}" / point.folder
    sizes = {"vocab_size": options.vocab_size, "num_parameters": options.num_parameters}
    fields |= {"model_type": "lstm" if model == "multiplicative-lstm" else model, "output_dir": str(folder), **sizes}
    fields |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    args = PretrainArguments(**{**recipe, "data": data, "eval_data": eval_data, **fields})
    args.max_steps = options.tokens // (args.effective_batch_size * args.max_length)
    return args


def train(options: argparse.Namespace, point: Point) -> None:
    """Train one model through the stage's own parts; the multiplicative LSTM is a peer here and not in the library."""
    args = arguments(options, point)
    prepared = prepare(args)
    if point.model == "multiplicative-lstm":
        torch.manual_seed(args.seed)
        model = multiplicative_lstm_of_size(prepared.model.config, options.num_parameters)
        prepared = dataclasses.replace(prepared, model=model)
    with opened_run(args, prepared, {"stage": "quality", "model": point.model}) as run:
        if not run.is_finished:
            parts = prepared.model, args, prepared.train_rows, prepared.held_out, prepared.tokenizer
            trainer = LanguageModelTrainer(*parts, carry_context=args.carry_context, callbacks=run.callbacks())
            run.train(trainer)
            run.finish(trainer.scores(prepared.held_out))


def result(options: argparse.Namespace, point: Point) -> dict | None:
    return read_results(Path(arguments(options, point).output_dir))


def train_all(options: argparse.Namespace, points: list[Point]) -> None:
    """Those that are not trained yet, `options.workers` at a time, each in a process of its own."""
    waiting = [point for point in dict.fromkeys(points) if result(options, point) is None]
    running: list[tuple[Point, subprocess.Popen]] = []
    while waiting or running:
        while waiting and len(running) < options.workers:
            point = waiting.pop(0)
            command = [sys.executable, *sys.argv, "--only", json.dumps(dataclasses.asdict(point))]
            log = open(options.output_dir / f"{options.text}-{point.folder}.log", "w")  # noqa: SIM115  the child's
            running.append((point, subprocess.Popen(command, stdout=log, stderr=log)))
        point, process = running.pop(0)
        try:
            process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            running.append((point, process))
            continue
        found = result(options, point)
        print(
            f"{options.text} {point.folder}: {found['bits_per_byte']:.4f}" if found else f"{point} failed", flush=True
        )


def best_point(options: argparse.Namespace, model: str) -> Point | None:
    """Of the points with the first seed that are trained, the one with the fewest bits per byte."""
    scores = {point: result(options, point) for point in grid(options.text, model)}
    trained = {point: found["bits_per_byte"] for point, found in scores.items() if found}
    return min(trained, key=trained.get, default=None)


def speed(options: argparse.Namespace, model: str) -> float:
    """Median training tokens per second of nine updates of 32 x 64 tokens, on this machine as it is now."""
    device = find_device()
    kind = "lstm" if model == "multiplicative-lstm" else model
    config = build_config(kind, options.vocab_size, 64, num_parameters=options.num_parameters)
    network = build_model(config) if kind == model else multiplicative_lstm_of_size(config, options.num_parameters)
    network = network.to(device.kind).train()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    input_ids = torch.randint(0, options.vocab_size, (32, 64), device=device.kind)
    with freed_memory_kept():
        update = TimedUpdate(network, optimizer, input_ids, autocast_dtype(device))
        seconds = [update() for _ in range(11)]
    return input_ids.numel() / statistics.median(seconds[2:])


def table(options: argparse.Namespace) -> list[dict]:
    rows = []
    for model in MODELS:
        point = best_point(options, model)
        if point is None:
            continue
        found = [result(options, dataclasses.replace(point, seed=seed)) for seed in SEEDS]
        scores = [entry["bits_per_byte"] for entry in found if entry]
        rows.append(
            {
                **dataclasses.asdict(point),
                "parameters": found[0]["parameters"],
                "bits_per_byte": statistics.mean(scores),
                "lowest": min(scores),
                "highest": max(scores),
                "seeds": len(scores),
                "points": sum(result(options, other) is not None for other in grid(options.text, model)),
                "tokens_per_second": speed(options, model),
            }
        )
    return sorted(rows, key=lambda row: row["bits_per_byte"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", choices=TEXTS, required=True)
    parser.add_argument("--data", type=Path, help="wikitext's training text, or dailydialog.jsonl")
    parser.add_argument("--eval_data", type=Path, help="wikitext's text to score")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quality"))
    parser.add_argument("--vocab_size", type=int, default=2048)
    parser.add_argument("--num_parameters", type=int)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="to train every model on")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--workers", type=int, default=1, help="models trained at a time")
    parser.add_argument("--skip_grid", action="store_true", help="the seeds of the centre alone")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.num_parameters is None:
        options.num_parameters = count_parameters(build_config("newllm", options.vocab_size, 64))
    if options.only:
        set_up_output()
        train(options, Point(**json.loads(options.only)))
        return
    options.output_dir.mkdir(parents=True, exist_ok=True)
    text_files(options)
    if options.skip_grid:
        points = [centre(options.text, model, seed) for seed in SEEDS for model in options.models]
    else:
        first = [grid(options.text, model) for model in options.models]
        train_all(options, [point for step in zip(*first, strict=True) for point in step])
        best = [best_point(options, model) for model in options.models]
        points = [dataclasses.replace(point, seed=seed) for seed, point in itertools.product(SEEDS, best)]
    train_all(options, points)
    rows = table(options)
    write_json(options.output_dir / f"{options.text}-{options.num_parameters}.json", rows)
    print(f"\n{options.text}, {options.num_parameters:,} parameters")
    for row in rows:
        print(
            f"{row['model']:<20} {row['parameters']:>10,}  {row['bits_per_byte']:.4f} [{row['lowest']:.4f}, "
            f"{row['highest']:.4f}]  {row['seeds']} seeds, {row['points']} points; rate {row['learning_rate']:g}, "
            f"decay {row['weight_decay']:g}, dropout {row['dropout']:g}; {row['tokens_per_second']:,.0f} tokens/s"
        )


if __name__ == "__main__":
    sys.exit(main())
