"""The byte tokenizer's ids, worked out without it: bytes that print come first, in order, then the others."""

PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
ID_OF_BYTE = {
    byte: number for number, byte in enumerate([*PRINTABLE, *(byte for byte in range(256) if byte not in PRINTABLE)])
}
END = 256
PAD = 257
END_OF_TEXT = "<|endoftext|>"


def byte_ids(text: str) -> list[int]:
    """UTF-8 bytes as ids; the end-of-text token, spelled out, is one id."""
    ids = []
    for number, part in enumerate(text.split(END_OF_TEXT)):
        ids += ([END] if number else []) + [ID_OF_BYTE[byte] for byte in part.encode()]
    return ids
