"""What fine-tuning Gemma-2B in NF4 with adapters needs on a T4, item by item, from the sizes of its tensors (no
weights, no GPU): rank 8 on all linear layers, a teacher, checkpointed layers, fp16.

    python benchmarks/gemma_memory_budget.py
"""

import argparse

from transformers import GemmaConfig

from newllm_lib.adapters.memory_budget import (
    GB,
    GEMMA_2B_CONFIG,
    USABLE_SHARE,
    BudgetItem,
    budget_table,
    memory_budget,
    total_bytes,
)

T4_GB = 14.56  # what torch reports as total_memory of a T4 on Colab: 15,360 MiB less the driver's own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_length", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--micro_batch", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rank", type=int, default=8)
    options = parser.parse_args()
    config = GemmaConfig(**GEMMA_2B_CONFIG)

    def budget(micro_batch: int, max_length: int) -> list[BudgetItem]:
        return memory_budget(
            config,
            rank=options.rank,
            target_modules="all-linear",
            micro_batch=micro_batch,
            max_length=max_length,
            quantized=True,
            distills=True,
            gradient_checkpointing=True,
        )

    for max_length in options.max_length:
        micro_batch = max(options.micro_batch)
        print(f"Gemma-2B, {micro_batch} rows of {max_length:,} tokens, rank {options.rank}\n")
        print(budget_table(budget(micro_batch, max_length)), end="\n\n")
    print(f"Totals in GB; a T4 has {T4_GB}, of which {USABLE_SHARE * T4_GB:.1f} may be used\n")
    print("tokens  " + "".join(f"{rows:>5} row{'s' if rows > 1 else ' '}" for rows in options.micro_batch))
    for max_length in options.max_length:
        totals = (total_bytes(budget(rows, max_length)) / GB for rows in options.micro_batch)
        print(f"{max_length:>6,}  " + "".join(f"{total:10.2f}" for total in totals))


if __name__ == "__main__":
    main()
