"""A conversation with models as a text file."""

import datetime
from collections.abc import Mapping

from ..chat import Chat

TRANSCRIPT_FILE = "newllm-conversation.txt"
REMARK = "Written by small language models; not to be relied on."


def transcript_text(chats: Mapping[str, Chat], drawn: str) -> str:
    """Every model's conversation, one after the other.

    Args:
        drawn: how replies are drawn, in words.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    blocks = [f"A conversation of {now:%Y-%m-%d %H:%M} UTC ({drawn}). {REMARK}"]
    for name, chat in chats.items():
        lines = [f"== {name}"]
        if chat.memory is not None:
            lines.append(f"[goes on from a memory of {chat.memory.tokens:,} tokens]")
        for message in chat.messages:
            speaker = "You" if message["role"] == "user" else name
            lines.append(f"{speaker}: {message['content']}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"
