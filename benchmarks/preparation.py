"""Preparing conversations for training: speed beside tokenizers' own `encode_batch` on the same text, and peak memory
against the number of conversations.

The conversations are made up, in UltraChat's shape ({"id", "data": [utterances]}), from sentences of Python's own
documentation. Every number of conversations is prepared in a process of its own.

    OMP_NUM_THREADS=2 python benchmarks/preparation.py --conversations 10000 100000 1500000
"""

import argparse
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from newllm_lib.data.chat_template import ConversationFormat, render, template_for
from newllm_lib.data.conversations import CONVERSATIONS_PER_CALL, conversation_rows, load_conversations
from newllm_lib.data.stand_ins import documentation_rows
from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.training.disk import MB, write_json

BASELINE_CONVERSATIONS = 20_000  # encode_batch's speed does not depend on how many there are


def write_conversations(path: Path, count: int, turns: int, sentences: int) -> None:
    """`count` conversations of `turns` utterances, each of 1 to 2 * `sentences` - 1 sentences."""
    source = [row["response"] for row in documentation_rows()]
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            data = [" ".join(draw.choices(source, k=draw.randint(1, 2 * sentences - 1))) for _ in range(turns)]
            stream.write(json.dumps({"id": str(number), "data": data}) + "\n")


def measure(path: Path, max_length: int) -> dict:
    """Seconds and peak bytes of one preparation, and the seconds that encode_batch takes for the same text."""
    conversations = load_conversations("ultrachat-full", data=str(path)).train
    sample = list(itertools.islice(conversations, BASELINE_CONVERSATIONS))
    tokenizer = build_tokenizer("bpe", (message["content"] for messages in sample[:2000] for message in messages), 4096)
    tokenizer.chat_template = template_for(tokenizer, "dialogue")

    texts, _ = render(sample, tokenizer)
    started = time.perf_counter()
    for begin in range(0, len(texts), CONVERSATIONS_PER_CALL):
        block = texts[begin : begin + CONVERSATIONS_PER_CALL]
        tokenizer.backend_tokenizer.encode_batch(block, add_special_tokens=False)
    baseline = sum(map(len, texts)) / (time.perf_counter() - started)
    sampled = sum(map(len, texts)) / len(texts)
    del texts, sample

    started = time.perf_counter()
    _, counts = conversation_rows(conversations, tokenizer, ConversationFormat(max_length))
    seconds = time.perf_counter() - started
    characters = sampled * counts.rows_read
    return {
        "conversations": counts.rows_read,
        "mb": characters / MB,
        "seconds": seconds,
        "mb_per_second": characters / seconds / MB,
        "encode_batch_mb_per_second": baseline / MB,
        "relative_speed": characters / seconds / baseline,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--sentences", type=int, default=8, help="of an utterance, on average")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/preparation"))
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(measure(options.only, options.max_length)))
        return
    options.output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    titles = ("conversations", "MB", "seconds", "MB/s", "encode_batch", "relative", "peak MB")
    print("{:>13} {:>8} {:>8} {:>6} {:>12} {:>8} {:>8}".format(*titles))
    for count in options.conversations:
        with tempfile.TemporaryDirectory(dir=options.output_dir) as folder:
            path = Path(folder) / "conversations.jsonl"
            write_conversations(path, count, options.turns, options.sentences)
            command = [sys.executable, __file__, "--only", str(path), "--max_length", str(options.max_length)]
            environment = {**os.environ, "NEWLLM_CACHE": folder}
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        print(
            f"{row['conversations']:>13,} {row['mb']:>8,.0f} {row['seconds']:>8.1f} {row['mb_per_second']:>6.1f} "
            f"{row['encode_batch_mb_per_second']:>12.1f} {row['relative_speed']:>8.2f} {row['peak_mb']:>8,.0f}",
            flush=True,
        )
    write_json(options.output_dir / "preparation.json", rows)


if __name__ == "__main__":
    main()
