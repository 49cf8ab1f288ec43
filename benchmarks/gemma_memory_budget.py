"""What fine-tuning Gemma-2B in NF4 with adapters needs on a T4, item by item, from the sizes of its tensors (no
weights, no GPU): rank 8 on all linear layers, a teacher, checkpointed layers, fp16.

    python benchmarks/gemma_memory_budget.py
"""

import argparse

from transformers import GemmaConfig

from newllm_lib.adapters.arguments import QloraLwfArguments
from newllm_lib.adapters.memory_budget import GB, USABLE_SHARE, memory_budget, model_sizes

T4_GB = 14.56  # what torch reports as total_memory of a T4 on Colab: 15,360 MiB less the driver's own
GEMMA_2B = {  # google/gemma-2b, config.json
    "vocab_size": 256_000, "hidden_size": 2048, "intermediate_size": 16_384, "num_hidden_layers": 18,
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
}  # fmt: skip


def budget(config: GemmaConfig, micro_batch: int, max_length: int, rank: int = 8) -> dict[str, int]:
    """Bytes by what they are for. bf16 takes as many as a T4's fp16, which no other machine has."""
    return memory_budget(QloraLwfArguments(lora_r=rank, bf16=True), model_sizes(config), micro_batch, max_length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_length", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--micro_batch", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rank", type=int, default=8)
    options = parser.parse_args()
    config = GemmaConfig(**GEMMA_2B)
    for max_length in options.max_length:
        micro_batch = max(options.micro_batch)
        print(f"Gemma-2B, {micro_batch} rows of {max_length:,} tokens, rank {options.rank}")
        for name, size in budget(config, micro_batch, max_length, options.rank).items():
            print(f"{name:<26}  {size / GB:7.3f} GB")
        print()
    print(f"Totals in GB; a T4 has {T4_GB}, of which {USABLE_SHARE * T4_GB:.1f} may be used\n")
    print("tokens  " + "".join(f"{rows:>5} row{'s' if rows > 1 else ' '}" for rows in options.micro_batch))
    for max_length in options.max_length:
        totals = (sum(budget(config, rows, max_length, options.rank).values()) / GB for rows in options.micro_batch)
        print(f"{max_length:>6,}  " + "".join(f"{total:10.2f}" for total in totals))


if __name__ == "__main__":
    main()
