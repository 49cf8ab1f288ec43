"""Running text: documents in pieces, so that memory stays flat, and where a run takes them from."""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .catalogue import DATASETS, HELD_OUT_SHARE
from .files import RowError, check_file, checked_row, content_hash, read_lines, read_rows, refuser, text_of
from .sources import Splits, chitchat_conversations, chitchat_names, find_data

WIKITEXT_TITLE = re.compile(r" = [^=\s](.*[^=\s])? = \n?")
DOCUMENT_MARK = "<|endoftext|>"  # separates documents in GPT-2's corpora
PIECE_CHARACTERS = 1 << 16


class TextPiece(NamedTuple):
    """A stretch of a document; a long document comes as several."""

    text: str
    starts_document: bool


@dataclass(frozen=True)
class Text:
    """Text that can be read any number of times, always the same.

    Attributes:
        origin: what it is and where it came from, for plots, model cards and saved settings.
        licence: its licence, or how the user can know.
        identity: changes when the text does.
        read: starts a new pass over its pieces.
    """

    origin: str
    licence: str
    identity: str
    read: Callable[[], Iterable[TextPiece]] = field(repr=False)

    def strings(self) -> Iterator[str]:
        return (piece.text for piece in self.read())


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


def piece_of_conversation(turns: Iterable[str]) -> TextPiece:
    """Utterances of one conversation -> one document, an utterance a line."""
    return TextPiece("".join(turn.strip() + "\n" for turn in turns), True)


def read_pieces(path: Path, field: str, refuse: Callable[[str, RowError], None] | None = None) -> Iterator[TextPiece]:
    """A file's text in order, as pieces of documents; in row formats each row's `text` is a document.

    Args:
        refuse: called with the place of a row without a string `text`, and the error; the row is then left out. None:
            raise the error.

    Raises:
        InputError: no text, binary, or a bad row; names the line.
    """
    refuse = refuse or refuser(path, field, False)
    if path.suffix.lower() == ".txt":
        yield from pieces_of_lines(read_lines(path, field, PIECE_CHARACTERS))
        return
    for place, row in read_rows(path, field):
        try:
            text = text_of(checked_row(row), "text")
        except RowError as error:
            refuse(place, error)
        else:
            yield from pieces_of_row(text)


def load_text(
    data_source: str = "auto",
    data: str | None = None,
    eval_data: str | None = None,
    skip_bad_rows: bool = False,
    names: tuple[str, str] = ("data", "eval_data"),
) -> Splits[Text]:
    """The text to train on and the text to evaluate on.

    Args:
        data_source: "hub" (WikiText-2), "offline" (ChitChat, from a package), "file" (`data`), or "auto": `data` if
            given, else the hub if it answers, else offline; the note then says which and why.
        eval_data: a file to evaluate on; without it, the last 5 % of `data` are held out.
        names: what the settings call the two files.

    Raises:
        InputError: bad file, unknown source, hub out of reach, or the offline package missing.
    """
    found = find_data("wikitext", DATASETS["wikitext"], data_source, data)
    if found.source == "file":
        return _file_splits(data, eval_data, skip_bad_rows, names)

    def side(name: str) -> Text:
        if found.source == "hub":
            rows, licence = found.on_hub[name], DATASETS["wikitext"].licence
            return Text(
                rows.origin, licence, rows.identity, lambda: pieces_of_lines(row["text"] for row in rows.read())
            )
        held_out = name == "validation"
        return Text(*chitchat_names(name), lambda: map(piece_of_conversation, chitchat_conversations(held_out)))

    train, validation = side("train"), side("validation")
    if eval_data is not None:
        validation = _file_text(eval_data, names[1], skip_bad_rows)[0]
    return Splits(train, validation, found.source, found.note)


def same_file_note(train: str, validation: str, names: tuple[str, str] = ("data", "eval_data")) -> str:
    """A sentence where the identities of training and evaluation are equal, else ""."""
    if train != validation:
        return ""
    return f"{names[1]} holds what {names[0]} holds: the figures tell what is remembered, not what is learned."


def _file_splits(data: str, eval_data: str | None, skip_bad_rows: bool, names: tuple[str, str]) -> Splits[Text]:
    train, characters, documents = _file_text(data, names[0], skip_bad_rows)
    file = Path(data)
    notes = []
    if documents > 1 and file.suffix.lower() == ".txt":
        notes.append(f"{file.name} is {documents:,} documents: {DOCUMENT_MARK} or a WikiText title begins one.")
    if eval_data is not None:
        validation = _file_text(eval_data, names[1], skip_bad_rows)[0]
        notes.append(same_file_note(train.identity, validation.identity, names))
        return Splits(train, validation, "file", " ".join(filter(None, notes)))
    notes.append(f"No {names[1]} given: the last {HELD_OUT_SHARE:.0%} of {file.name} are held out for evaluation.")
    held_out_from = int(characters * (1 - HELD_OUT_SHARE))

    def part(name: str, held_out: bool) -> Text:
        return replace(
            train,
            origin=f"{train.origin}, {'last' if held_out else 'first'} part ({name})",
            identity=f"{train.identity}/{name}",
            read=lambda: _part_of(train.read(), held_out_from, held_out),
        )

    return Splits(part("train", False), part("validation", True), "file", " ".join(notes))


def _part_of(pieces: Iterable[TextPiece], boundary: int, after: bool) -> Iterator[TextPiece]:
    """The pieces before or after `boundary` characters; a piece that straddles it is cut at the next space, if
    there is one."""
    position = 0
    for piece in pieces:
        cut = min(max(boundary - position, 0), len(piece.text))
        if 0 < cut < len(piece.text) and (space := piece.text.find(" ", cut)) >= 0:
            cut = space
        if after and cut < len(piece.text):
            yield TextPiece(piece.text[cut:], piece.starts_document or cut > 0)
        elif not after and cut > 0:
            yield TextPiece(piece.text[:cut], piece.starts_document)
        position += len(piece.text)


def _file_text(path: str, name: str, skip_bad_rows: bool) -> tuple[Text, int, int]:
    """The text of a file, and how many characters and documents it has."""
    file = check_file(path, name)
    refuse, bad_rows = refuser(file, name, skip_bad_rows), []

    def count(place: str, error: RowError) -> None:
        refuse(place, error)
        bad_rows.append(place)

    characters, documents, is_text, digest = 0, 0, False, hashlib.sha256()
    # One whole pass now, so that a bad row at the end is reported before any long work.
    for piece in read_pieces(file, name, count):
        characters += len(piece.text)
        documents += piece.starts_document
        is_text = is_text or not piece.text.isspace()
        digest.update(piece.text.encode("utf-8"))
    if not is_text:
        raise InputError(f"{name} {path!r} holds no text; name a file with text in it.", "NL-402")
    text = Text(
        origin=f"file {file.name}" + (f" without {len(bad_rows)} bad rows" if bad_rows else ""),
        licence="as the file's owner says",
        # The text that is read identifies running text: line ends and marks of every kind are read as one.
        identity=f"file/{digest.hexdigest() if file.suffix.lower() == '.txt' else content_hash(file)}",
        read=lambda: read_pieces(file, name, refuse),
    )
    return text, characters, documents
