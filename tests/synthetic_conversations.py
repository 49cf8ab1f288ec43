"""Conversations of any number for tests of their preparation; as a script, prepares them in a process of its own:
synthetic_conversations.py ROWS_PER_SHARD STOP_AT COUNT ... prints the peak memory so far in KiB after each COUNT, and
waits at row STOP_AT to be killed.
"""

import resource
import sys
import time

from newllm_lib.data import conversations as module
from newllm_lib.data.chat_template import TEMPLATES, ConversationFormat
from newllm_lib.data.conversations import Conversations
from newllm_lib.data.tokenizer import build_tokenizer

FORM = ConversationFormat(64)


def conversation(number: int) -> list[dict] | None:
    """Row `number`: two to six turns of differing length, each told by its number; every 97th row is a bad one."""
    if number % 97 == 5:
        return None
    return [
        {"role": "assistant" if turn % 2 else "user", "content": f"{number}.{turn}" + " x" * (number * 7 % 11)}
        for turn in range(2 + 2 * (number % 3))
    ]


def synthetic(count: int, rows_read: list[int] | None = None, stop_at: int | None = None) -> Conversations:
    """`count` rows; `rows_read` is told which were read, and reading row `stop_at` never ends."""

    def read(first_row: int):
        for number in range(first_row, count):
            while number == stop_at:
                time.sleep(0.1)
            if rows_read is not None:
                rows_read.append(number)
            messages = conversation(number)
            yield number, messages, "" if messages else f"row {number + 1}: bad"

    return Conversations(f"{count} synthetic conversations", "none", f"synthetic/{count}", read)


def dialogue_tokenizer():
    tokenizer = build_tokenizer("byte", [])
    tokenizer.chat_template = TEMPLATES["dialogue"]
    return tokenizer


if __name__ == "__main__":
    module.ROWS_PER_SHARD, stop_at, *counts = map(int, sys.argv[1:])
    for count in counts:
        rows, _ = module.conversation_rows(synthetic(count, None, stop_at), dialogue_tokenizer(), FORM)
        rows[len(rows) - 1]
        sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}\n")
