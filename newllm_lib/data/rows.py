"""Pure functions from the rows of a dataset to pieces of text, one function per dataset."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

WIKITEXT_TITLE = re.compile(r" = [^=\s](.*[^=\s])? = \n?")
PIECE_CHARACTERS = 1 << 16


class TextPiece(NamedTuple):
    """A stretch of a document; a long document comes as several, so that memory stays flat."""

    text: str
    starts_document: bool


def pieces_of_lines(lines: Iterable[str]) -> Iterator[TextPiece]:
    """Lines of running text (ends kept) -> pieces. A WikiText article title starts a new document; text without such
    titles is one document. Joined, the pieces are the lines exactly."""
    held: list[str] = []
    held_characters = 0
    starts_document = True
    for line in lines:
        is_title = WIKITEXT_TITLE.fullmatch(line) is not None
        if held and (is_title or held_characters >= PIECE_CHARACTERS):
            yield TextPiece("".join(held), starts_document)
            held, held_characters, starts_document = [], 0, False
        if is_title:
            starts_document = True
        held.append(line)
        held_characters += len(line)
    if held:
        yield TextPiece("".join(held), starts_document)


def piece_of_conversation(turns: Iterable[str]) -> TextPiece:
    """Utterances of one conversation -> one document, an utterance a line."""
    return TextPiece("".join(turn.strip() + "\n" for turn in turns), True)
