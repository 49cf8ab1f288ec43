"""Running text in pieces: documents, long ones in several parts, so that memory stays flat."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

WIKITEXT_TITLE = re.compile(r" = [^=\s](.*[^=\s])? = \n?")
DOCUMENT_MARK = "<|endoftext|>"  # what GPT-2's corpora put between documents
PIECE_CHARACTERS = 1 << 16
LONG_WORD = re.compile(r"\S{256}|\s{256}")


class TextPiece(NamedTuple):
    """A stretch of a document; a long document comes as several, so that memory stays flat."""

    text: str
    starts_document: bool


def pieces_of_lines(lines: Iterable[str]) -> Iterator[TextPiece]:
    """Lines of running text (ends kept), or parts of long ones, -> pieces. A WikiText article title starts a new
    document, and so does what follows a DOCUMENT_MARK; text without either is one document. Joined, the pieces are the
    lines without the marks."""
    held: list[str] = []
    held_characters = 0
    starts_document = True
    half_mark = ""  # the beginning of a mark at the end of a part
    for line in itertools.chain(lines, [""]):
        *ended, line = (half_mark + line).split(DOCUMENT_MARK)
        for text in ended:
            if text := "".join([*held, text]):
                yield TextPiece(text, starts_document)
            held, held_characters, starts_document = [], 0, True
        cut = line.rfind("<", -len(DOCUMENT_MARK))
        half_mark = line[cut:] if cut >= 0 and DOCUMENT_MARK.startswith(line[cut:]) else ""
        line = line.removesuffix(half_mark)
        is_title = WIKITEXT_TITLE.fullmatch(line) is not None
        if held and (is_title or held_characters >= PIECE_CHARACTERS):
            yield TextPiece("".join(held), starts_document)
            held, held_characters, starts_document = [], 0, False
        starts_document = starts_document or is_title
        if line:
            held.append(line)
        held_characters += len(line)
    if text := "".join([*held, half_mark]):
        yield TextPiece(text, starts_document)


def pieces_of_row(text: str) -> Iterator[TextPiece]:
    """The text of a row -> pieces: a document, or several with a DOCUMENT_MARK between them."""
    for document in filter(None, text.split(DOCUMENT_MARK)):
        for begin in range(0, len(document), PIECE_CHARACTERS):
            yield TextPiece(document[begin : begin + PIECE_CHARACTERS], begin == 0)


def short_words(texts: Iterable[str]) -> Iterator[str]:
    """The texts with words cut that are too long to be words: learning byte pairs takes time with a word's square."""
    for text in texts:
        begin = 0
        for word in LONG_WORD.finditer(text):
            yield text[begin : word.end()]
            begin = word.end()
        yield text[begin:]


def piece_of_conversation(turns: Iterable[str]) -> TextPiece:
    """Utterances of one conversation -> one document, an utterance a line."""
    return TextPiece("".join(turn.strip() + "\n" for turn in turns), True)
