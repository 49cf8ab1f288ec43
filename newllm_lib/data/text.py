"""Where a run's running text comes from: the hub, a package, or the user's file."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from ..errors import InputError
from .catalogue import DATASETS, Dataset, HubSource
from .files import check_file, content_hash, read_pieces
from .hub import code_of, first_answering, open_hub_split
from .pieces import DOCUMENT_MARK, TextPiece, piece_of_conversation, pieces_of_lines

DATA_SOURCES = ("auto", "hub", "offline", "file")
HELD_OUT_SHARE = 0.05
WIKITEXT = DATASETS["wikitext"]


@dataclass(frozen=True)
class Text:
    """Text that can be read any number of times, always the same.

    Attributes:
        origin: what it is and where it came from, for plots, model cards and saved settings.
        licence: its licence, or how the user can know.
        read: starts a new pass over its pieces.
        identity: changes when the text does.
    """

    origin: str
    licence: str
    identity: str
    read: Callable[[], Iterable[TextPiece]] = field(repr=False)

    def strings(self) -> Iterator[str]:
        return (piece.text for piece in self.read())


@dataclass(frozen=True)
class TextSplits:
    train: Text
    validation: Text
    source: str  # "hub", "offline" or "file": what "auto" came to
    note: str = ""  # what the user should know about how the source was chosen


def load_text(
    data_source: str = "auto",
    data: str | None = None,
    eval_data: str | None = None,
    skip_bad_rows: bool = False,
    names: tuple[str, str] = ("data", "eval_data"),
) -> TextSplits:
    """The text to train on and the text to evaluate on.

    Args:
        data_source: "hub" (WikiText-2), "offline" (ChitChat, from a package), "file" (`data`), or "auto": `data` if
            given, else the hub if it answers, else offline; the note then says which and why.
        eval_data: a file to evaluate on; without it, the last 5 % of `data` are held out.
        names: what the settings call the two files.

    Raises:
        InputError: bad file, unknown source, hub out of reach, or the offline package missing.
    """
    check_source(data_source, data)
    if data is not None:
        splits = _file_splits(data, eval_data, skip_bad_rows, names)
    elif data_source == "offline":
        splits = chitchat_splits()
    else:
        source, problem = first_answering(WIKITEXT)
        if source is not None:
            splits = hub_splits(WIKITEXT, source)
        elif data_source == "hub":
            raise InputError(
                f"data_source 'hub': {WIKITEXT.sources[0].hub_id} could not be reached ({problem}); check the network, "
                "or choose --data_source offline.",
                code_of(problem),
            )
        elif find_spec("chitchat_dataset") is None:
            raise InputError(
                f"data_source 'auto': the hub could not be reached ({problem}) and no offline data are installed; "
                "run pip install 'newllm[offline]', or give a file with --data.",
                code_of(problem),
            )
        else:
            splits = chitchat_splits(note=f"The hub could not be reached ({problem}): the offline text is used.")
    if eval_data is not None and data is None:
        splits = replace(splits, validation=_file_text(eval_data, names[1], skip_bad_rows)[0])
    return splits


def hub_splits(entry: Dataset, source: HubSource) -> TextSplits:
    """Plain text as the hub serves it."""

    def split_text(split: str) -> Text:
        rows = open_hub_split(entry, source, split)
        return Text(
            origin=rows.origin,
            licence=entry.licence,
            identity=rows.identity,
            read=lambda: pieces_of_lines(row["text"] for row in rows.read()),
        )

    return TextSplits(split_text("train"), split_text("validation"), "hub")


def check_source(data_source: str, data: str | None) -> None:
    """Raises InputError for a source that we do not know, or that does not go with the user's file."""
    if data_source not in DATA_SOURCES:
        raise InputError(f"data_source has to be one of {', '.join(DATA_SOURCES)}, got {data_source!r}.")
    if data is not None and data_source not in ("auto", "file"):
        raise InputError(f"data {data!r} contradicts data_source {data_source!r}; leave one of them out.")
    if data is None and data_source == "file":
        raise InputError("data_source 'file' needs the path of the file; add --data PATH.")


def chitchat_splits(note: str = "") -> TextSplits:
    """7,168 real conversations from the package `chitchat-dataset` (MIT), every twentieth held out.

    Raises:
        InputError: the package is not installed.
    """

    def read(held_out: bool) -> Iterator[TextPiece]:
        return (piece_of_conversation(turns) for turns in chitchat_conversations(held_out))

    def split_text(name: str, held_out: bool) -> Text:
        return Text(*chitchat_names(name), read=lambda: read(held_out))

    return TextSplits(split_text("train", False), split_text("validation", True), "offline", note)


def chitchat_names(split: str) -> tuple[str, str, str]:
    """(origin, licence, identity) of a split.

    Raises:
        InputError: the package is not installed.
    """
    release = chitchat_release()
    origin = f"ChitChat conversations, {split} (package chitchat-dataset {release})"
    return origin, "MIT", f"chitchat-dataset/{release}/{split}"


def chitchat_release() -> str:
    """The installed release of the package `chitchat-dataset`.

    Raises:
        InputError: the package is not installed.
    """
    if find_spec("chitchat_dataset") is None:
        raise InputError(
            "data_source 'offline' needs the package chitchat-dataset; run pip install 'newllm[offline]'.", "NL-102"
        )
    return version("chitchat-dataset")


def chitchat_conversations(held_out: bool) -> Iterator[list[str]]:
    """Its conversations in an order of our own, every twentieth held out."""
    from chitchat_dataset import ConversationDataset

    conversations = [list(turns) for turns in ConversationDataset()]
    random.Random(0).shuffle(conversations)
    every = round(1 / HELD_OUT_SHARE)
    for index, turns in enumerate(conversations):
        if (index % every == 0) == held_out and any(turn.strip() for turn in turns):
            yield turns


def same_file_note(train: str, validation: str, names: tuple[str, str] = ("data", "eval_data")) -> str:
    """A sentence where the identities of training and evaluation are equal, else ""."""
    if train != validation:
        return ""
    return f"{names[1]} holds what {names[0]} holds: the figures tell what is remembered, not what is learned."


def _file_splits(data: str, eval_data: str | None, skip_bad_rows: bool, names: tuple[str, str]) -> TextSplits:
    train, characters, documents = _file_text(data, names[0], skip_bad_rows)
    notes = []
    if documents > 1 and Path(data).suffix.lower() == ".txt":
        notes.append(f"{Path(data).name} is {documents:,} documents: {DOCUMENT_MARK} or a WikiText title begins one.")
    if eval_data is not None:
        validation = _file_text(eval_data, names[1], skip_bad_rows)[0]
        notes.append(same_file_note(train.identity, validation.identity, names))
        return TextSplits(train, validation, "file", " ".join(filter(None, notes)))
    notes.append(
        f"No {names[1]} given: the last {HELD_OUT_SHARE:.0%} of {Path(data).name} are held out for evaluation."
    )
    held_out_from = int(characters * (1 - HELD_OUT_SHARE))

    def part(name: str, held_out: bool) -> Text:
        return Text(
            origin=f"{train.origin}, {'last' if held_out else 'first'} part ({name})",
            licence=train.licence,
            identity=f"{train.identity}/{name}",
            read=lambda: _part_of(train.read(), held_out_from, held_out),
        )

    return TextSplits(
        part("train", False),
        part("validation", True),
        "file",
        " ".join(notes),
    )


def _part_of(pieces: Iterable[TextPiece], boundary: int, after: bool) -> Iterator[TextPiece]:
    """The pieces before or after `boundary` characters; a piece that straddles it is cut at the next space, if
    there is one."""
    position = 0
    for piece in pieces:
        end = position + len(piece.text)
        if end <= boundary:
            cut = len(piece.text)
        elif position >= boundary:
            cut = 0
        else:
            cut = piece.text.find(" ", boundary - position)
            cut = boundary - position if cut < 0 else cut
        if after and cut < len(piece.text):
            yield TextPiece(piece.text[cut:], piece.starts_document or cut > 0)
        elif not after and cut > 0:
            yield TextPiece(piece.text[:cut], piece.starts_document)
        position = end


def _file_text(path: str, name: str, skip_bad_rows: bool) -> tuple[Text, int, int]:
    """The text of a file, and how many characters and documents it has."""
    file = check_file(path, name)
    complaints: list[str] = []
    characters, documents, is_text, said = 0, 0, False, hashlib.sha256()
    # One whole pass now, so that a bad row at the end is told before any long work.
    for piece in read_pieces(file, name, complaints.append if skip_bad_rows else None):
        characters += len(piece.text)
        documents += piece.starts_document
        is_text = is_text or not piece.text.isspace()
        said.update(piece.text.encode("utf-8"))
    if not is_text:
        raise InputError(f"{name} {path!r} holds no text; name a file with text in it.", "NL-402")
    text = Text(
        origin=f"file {file.name}" + (f" without {len(complaints)} bad rows" if complaints else ""),
        licence="as the file's owner says",
        # Of running text what is read of it: line ends and marks of every kind are read as one.
        identity=f"file/{said.hexdigest() if file.suffix.lower() == '.txt' else content_hash(file)}",
        read=lambda: read_pieces(file, name, (lambda complaint: None) if skip_bad_rows else None),
    )
    return text, characters, documents
