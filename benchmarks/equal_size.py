"""New-LLM, its cell as published, TinyGPT2 and an LSTM at equal parameters, equal tokens and one tokenizer.

Every model is trained at two learning rates and shown at its better one. Interrupted, the same command continues.

    python benchmarks/equal_size.py --data TRAIN.txt --eval_data VALID.txt --output_dir runs/equal_size
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

from newllm_lib.cli import set_up_output
from newllm_lib.models import build_config, build_model, count_parameters
from newllm_lib.stages.compare import compare, comparison_figure, comparison_table
from newllm_lib.stages.pretrain import PRESETS, PretrainArguments, pretrain
from newllm_lib.training.checkpoint import read_results, write_json
from newllm_lib.training.device import autocast_dtype, choose_precision, find_device, freed_memory_kept
from newllm_lib.training.update import timed_update

# model type -> (its learning rates, other settings). The reference is trained as published: Adam at a constant rate,
# rows of 128 tokens, every row from a zero context. Dropout is 0.1 in every model.
RUNS = {
    "newllm": ((2e-3, 3e-3), {}),
    "newllm-reference": ((8e-4, 2e-3), PRESETS["published"]),
    "tiny-gpt2": ((2e-3, 3e-3), {}),
    "lstm": ((2e-3, 3e-3), {}),
}


def training_speed(model_type: str, vocab_size: int, num_parameters: int, rows: int, tokens: int) -> float:
    """Median training tokens per second of seven updates after two to warm up, in the precision that training takes, on
    this machine as it is now."""
    device = find_device()
    model = build_model(build_config(model_type, vocab_size, tokens, num_parameters=num_parameters)).to(device.kind)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    input_ids = torch.randint(0, vocab_size, (rows, tokens), device=device.kind)
    seconds = [timed_update(model, optimizer, input_ids, autocast_dtype(device)) for _ in range(9)]
    return rows * tokens / statistics.median(seconds[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval_data", required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/equal_size"))
    parser.add_argument("--vocab_size", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=4_096_000, help="to train every model on")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--only", help="name of one run's folder: train it alone, without the table")
    options = parser.parse_args()
    set_up_output()

    num_parameters = count_parameters(build_config("newllm", options.vocab_size, 128))
    best: dict[str, tuple[float, Path, float]] = {}
    for model_type, (rates, recipe) in RUNS.items():
        for rate in rates:
            folder = options.output_dir / f"{model_type}-{rate:g}"
            if options.only and options.only != folder.name:
                continue
            arguments = PretrainArguments(
                **{
                    **recipe,
                    "model_type": model_type,
                    "data": options.data,
                    "eval_data": options.eval_data,
                    "vocab_size": options.vocab_size,
                    "num_parameters": num_parameters,
                    "learning_rate": rate,
                    "output_dir": str(folder),
                    "seed": options.seed,
                }
            )
            arguments.max_steps = options.tokens // (arguments.effective_batch_size * arguments.max_length)
            pretrain(arguments)
            loss = read_results(folder)["loss"]
            bits_per_byte = read_results(folder)["bits_per_byte"]
            print(f"{model_type}, learning rate {rate:g}: {bits_per_byte:.4f} bits per byte", flush=True)
            if model_type not in best or loss < best[model_type][0]:
                best[model_type] = (loss, folder, rate)
    if options.only:
        return
    rows = compare([folder for _, folder, _ in best.values()], options.eval_data)
    for row, (model_type, (_, _, rate)) in zip(rows, best.items(), strict=True):
        row["learning_rate"] = rate
        with freed_memory_kept():
            row["training_tokens_per_second"] = training_speed(model_type, options.vocab_size, num_parameters, 32, 64)
    precision = choose_precision(find_device())[0]
    settings = {
        "threads": torch.get_num_threads(),
        "precision": precision,
        **{k: str(v) for k, v in vars(options).items()},
    }
    write_json(options.output_dir / "equal_size.json", {"settings": settings, "rows": rows})
    comparison_figure(rows).savefig(options.output_dir / "equal_size.png", dpi=120)
    print(comparison_table(rows))
    for row in rows:
        print(
            f"{row['name']}: learning rate {row['learning_rate']:g}, "
            f"{row['training_tokens_per_second']:,.0f} training tokens/s on {settings['threads']} thread(s)"
        )
    print(json.dumps(settings))


if __name__ == "__main__":
    sys.exit(main())
