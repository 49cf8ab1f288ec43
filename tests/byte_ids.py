"""The byte tokenizer's ids, worked out without it: bytes that print come first, in order, then the others."""

import re

PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
ID_OF_BYTE = {
    byte: number for number, byte in enumerate([*PRINTABLE, *(byte for byte in range(256) if byte not in PRINTABLE)])
}
END = 256
PAD = 257
SYSTEM, USER, CONTEXT, ASSISTANT, END_OF_TURN = range(258, 263)
END_OF_TEXT = "<|endoftext|>"
SPECIAL = {
    END_OF_TEXT: END,
    "<|system|>": SYSTEM,
    "<|user|>": USER,
    "<|context|>": CONTEXT,
    "<|assistant|>": ASSISTANT,
    "<|end|>": END_OF_TURN,
}


def byte_ids(text: str) -> list[int]:
    """UTF-8 bytes as ids; the end-of-text token, spelled out, is one id."""
    return _ids(text, [END_OF_TEXT])


def ids_with_roles(text: str) -> list[int]:
    """As `byte_ids`; every token of a role and the end of a turn, spelled out, is one id, too."""
    return _ids(text, list(SPECIAL))


def text_ids(text: str) -> list[int]:
    """UTF-8 bytes as ids, whatever they spell."""
    return [ID_OF_BYTE[byte] for byte in text.encode()]


def _ids(text: str, special: list[str]) -> list[int]:
    parts = re.split(f"({'|'.join(map(re.escape, special))})", text)
    return [token for part in parts for token in ([SPECIAL[part]] if part in special else text_ids(part))]
