"""Running text: documents in pieces, so that memory stays flat; where a run takes them from; and as tokens: rows of one
length for training, whole documents for evaluation.

Dimensions: B rows, T = max_length tokens.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from ..errors import InputError
from ..models.chunked_loss import IGNORED
from ..progress import Progress
from .cache import cache_path, kept
from .files import RowError, check_file, checked_row, content_hash, read_lines, read_rows, refuser, text_of
from .sources import DATASETS, HELD_OUT_SHARE, Examples, Origin, Splits, find_data
from .tokenizer import text_backend

WIKITEXT_TITLE = re.compile(r" = [^=\s](.*[^=\s])? = \n?")
DOCUMENT_MARK = "<|endoftext|>"  # separates documents in GPT-2's corpora
PIECE_CHARACTERS = 1 << 16
PIECES_PER_CALL = 32  # of 65,536 characters: their tokens take some hundred times as many bytes
NO_ROW = -2  # number of a blank row: no row follows it, and it follows none
FORMAT_VERSION = 4  # part of the cache key: raise it when rows are laid out otherwise


class TextPiece(NamedTuple):
    """A stretch of a document; a long document comes as several."""

    text: str
    starts_document: bool


@dataclass(frozen=True)
class Text(Origin):
    """Text that can be read any number of times, always the same: `read` starts a new pass over its pieces."""

    read: Callable[[], Iterable[TextPiece]] = field(repr=False)
    characters: int | None = None  # about how many, where that is known

    def strings(self) -> Iterator[str]:
        return (piece.text for piece in self.counted())

    def counted(self) -> Iterator[TextPiece]:
        """As `read`; a Progress says how far it is."""
        with Progress(desc="reading the text", total=self.characters, unit="characters") as progress:
            for piece in self.read():
                yield piece
                progress.update(len(piece.text))


def pieces_of_lines(lines: Iterable[str]) -> Iterator[TextPiece]:
    """Lines of running text (ends kept), or parts of long ones, -> pieces. A WikiText article title starts a new
    document, and so does what follows a DOCUMENT_MARK; text without either is one document. Joined, the pieces are the
    lines without the marks."""
    held, starts_document = "", True
    for line in lines:
        begin = max(len(held) - len(DOCUMENT_MARK), 0)  # the end of a part may cut a mark
        is_title = WIKITEXT_TITLE.fullmatch(line) and DOCUMENT_MARK not in line
        held += DOCUMENT_MARK + line if is_title else line
        while (cut := held.find(DOCUMENT_MARK, begin)) >= 0:
            if cut:
                yield TextPiece(held[:cut], starts_document)
            held, starts_document, begin = held[cut + len(DOCUMENT_MARK) :], True, 0
        if len(held) >= PIECE_CHARACTERS:
            cut = held.rfind("\n") + 1 or len(held) - len(DOCUMENT_MARK)
            yield TextPiece(held[:cut], starts_document)
            held, starts_document = held[cut:], False
    if held:
        yield TextPiece(held, starts_document)


def read_pieces(path: Path, field: str, skip_bad_rows: bool = False) -> Iterator[TextPiece | RowError]:
    """A file's text in order, as pieces of documents; in row formats each row's `text` is a document, or several with a
    DOCUMENT_MARK between them. With `skip_bad_rows`, a row without a string `text` is its error. Raises InputError: no
    text, binary, or a bad row; names the line."""
    if path.suffix.lower() == ".txt":
        yield from pieces_of_lines(read_lines(path, field, PIECE_CHARACTERS))
        return
    refuse = refuser(path, field, skip_bad_rows)
    for place, row in read_rows(path, field):
        try:
            text = text_of(checked_row(row), "text")
        except RowError as error:
            refuse(place, error)
            yield error
            continue
        for document in filter(None, text.split(DOCUMENT_MARK)):
            for begin in range(0, len(document), PIECE_CHARACTERS):
                yield TextPiece(document[begin : begin + PIECE_CHARACTERS], begin == 0)


def load_text(
    data_source: str = "auto",
    data: str | None = None,
    eval_data: str | None = None,
    skip_bad_rows: bool = False,
    names: tuple[str, str] = ("data", "eval_data"),
    test_data: str | None = None,
) -> Splits[Text]:
    """The text to train on and the text to evaluate on. Raises InputError: bad file, unknown source, hub out of reach,
    or the offline package missing.

    Args:
        data_source: "hub" (WikiText-2), "offline" (ChitChat, from a package), "file" (`data`), "random" (sentences that
            chance has made), or "auto": `data` if given, else the hub if it answers, else offline; the note then says
            which and why.
        eval_data: a file to evaluate on; without it, the last 5 % of `data` are held out.
        names: what the settings call the two files.
        test_data: a file that the figures are of; without it, the test split of WikiText-2, or what is evaluated on.
    """
    found = find_data("wikitext", DATASETS["wikitext"], data_source, data)
    notes, validation, test = [found.note], None, None
    if found.source == "file":
        train, documents = _file_text(data, names[0], skip_bad_rows)
        if documents > 1 and (file := Path(data)).suffix.lower() == ".txt":
            notes.append(f"{file.name} is {documents:,} documents: {DOCUMENT_MARK} or a WikiText title begins one.")
    else:

        def side(rows: Examples) -> Text:
            """The lines of WikiText; or sentences or conversations, each one document, an utterance a line."""

            def read() -> Iterator[TextPiece]:
                if found.source == "hub":
                    return pieces_of_lines(row["text"] for _, row in rows.read(0))
                if found.source == "random":
                    return (TextPiece(row["text"], True) for _, row in rows.read(0))
                talks = (row["dialog"] for _, row in rows.read(0))
                return (TextPiece("".join(turn.strip() + "\n" for turn in turns), True) for turns in talks)

            return Text(rows.origin, rows.licence, rows.identity, read)

        train, validation = side(found.splits["train"]), side(found.splits["validation"])
        test = side(found.splits["test"]) if "test" in found.splits else None
    if test_data is not None:
        test, _ = _file_text(test_data, "test_data", skip_bad_rows)
        notes.append(same_file_note(train.identity, test.identity, (names[0], "test_data")))
    if eval_data is not None:
        validation, _ = _file_text(eval_data, names[1], skip_bad_rows)
        notes.append(same_file_note(train.identity, validation.identity, names))
    if validation is None:
        held_out = f"the last {HELD_OUT_SHARE:.0%} of {Path(data).name} are held out for evaluation."
        notes.append(f"No {names[1]} given: {held_out}")
        train, validation = _hold_out(train, int(train.characters * (1 - HELD_OUT_SHARE)))
    return Splits(train, validation, found.source, " ".join(filter(None, notes)), test=test)


def same_file_note(train: str, validation: str, names: tuple[str, str] = ("data", "eval_data")) -> str:
    """A sentence where the identities of training and evaluation are equal, else ""."""
    if train != validation:
        return ""
    return f"{names[1]} holds what {names[0]} holds: the figures tell what is remembered, not what is learned."


def _hold_out(whole: Text, boundary: int) -> tuple[Text, Text]:
    """The text before and after `boundary` characters; a piece that straddles it is cut at the next space, if there is
    one."""

    def pieces(after: bool) -> Iterator[TextPiece]:
        position = 0
        for piece in whole.read():
            cut = min(max(boundary - position, 0), len(piece.text))
            if 0 < cut < len(piece.text) and (space := piece.text.find(" ", cut)) >= 0:
                cut = space
            if after and cut < len(piece.text):
                yield TextPiece(piece.text[cut:], piece.starts_document or cut > 0)
            elif not after and cut > 0:
                yield TextPiece(piece.text[:cut], piece.starts_document)
            position += len(piece.text)

    train = whole.part("first part (train)", "train", lambda: pieces(after=False))
    return train, whole.part("last part (validation)", "validation", lambda: pieces(after=True))


def _file_text(path: str, name: str, skip_bad_rows: bool) -> tuple[Text, int]:
    """The text of a file, and how many documents it has."""
    file = check_file(path, name)
    characters, documents, bad_rows, is_text, digest = 0, 0, 0, False, hashlib.sha256()
    # One whole pass now, so that a bad row at the end is reported before any long work.
    with Progress(desc="reading {name}", of=file.name, total=file.stat().st_size, unit="B") as progress:
        for piece in read_pieces(file, name, skip_bad_rows):
            if isinstance(piece, RowError):
                bad_rows += 1
                continue
            characters += len(piece.text)
            documents += piece.starts_document
            is_text = is_text or not piece.text.isspace()
            content = piece.text.encode("utf-8")
            digest.update(content)
            progress.update(len(content))
    if not is_text:
        raise InputError(f"{name} {path!r} holds no text; name a file with text in it.", "NL-402")
    origin = f"file {file.name}" + (f" without {bad_rows} bad rows" if bad_rows else "")
    # The text that is read identifies running text: line ends and marks of every kind are read as one.
    identity = f"file/{digest.hexdigest() if file.suffix.lower() == '.txt' else content_hash(file)}"

    def read() -> Iterator[TextPiece]:
        return (piece for piece in read_pieces(file, name, skip_bad_rows) if isinstance(piece, TextPiece))

    return Text(origin, "as the file's owner says", identity, read, characters), documents


@dataclass
class TextCounts:
    """What was read: the denominators of every metric."""

    documents: int = 0
    tokens: int = 0  # of the text itself, without the end-of-text that opens each document
    bytes: int = 0  # UTF-8
    words: int = 0  # separated by white space
    unknown_tokens: int = 0

    def add(self, other: "TextCounts") -> None:
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)


@dataclass
class Document:
    """One document as tokens."""

    token_ids: np.ndarray  # int32, [tokens]
    counts: TextCounts
    supervised: np.ndarray | None = None  # bool, [tokens]; None is all


@dataclass
class EvaluationDocuments:
    """Whole documents, ready to be scored."""

    documents: list[Document]
    origin: str

    @property
    def counts(self) -> TextCounts:
        total = TextCounts()
        for document in self.documents:
            total.add(document.counts)
        return total

    def sample(self, max_tokens: int) -> "EvaluationDocuments":
        """Evenly spaced whole documents with about `max_tokens` tokens, at least one; always the same ones."""
        every = max(math.ceil(self.counts.tokens / max_tokens), 1)
        return EvaluationDocuments(self.documents[::every], self.origin)


def tokenized_pieces(
    pieces: Iterable[TextPiece], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[np.ndarray, bool, TextCounts]]:
    """(token ids, starts a document, counts) for every piece; encoded many at a time, in parallel."""
    pieces, backend = iter(pieces), text_backend(tokenizer)
    while block := list(itertools.islice(pieces, PIECES_PER_CALL)):
        encodings = backend.encode_batch_fast([piece.text for piece in block], add_special_tokens=False)
        for piece, encoding in zip(block, encodings, strict=True):
            token_ids = np.asarray(encoding.ids, dtype=np.int32)
            counts = count_text([piece.text], token_ids, tokenizer, documents=int(piece.starts_document))
            yield token_ids, piece.starts_document, counts


def count_text(
    texts: Sequence[str], token_ids: np.ndarray, tokenizer: PreTrainedTokenizerFast, documents: int = 1
) -> TextCounts:
    """The counts of texts, whose tokens are `token_ids`."""
    unknown = 0 if tokenizer.unk_token_id is None else int((token_ids == tokenizer.unk_token_id).sum())
    num_bytes, words = sum(len(text.encode()) for text in texts), sum(len(text.split()) for text in texts)
    return TextCounts(documents, len(token_ids), num_bytes, words, unknown)


def evaluation_documents(text: Text, tokenizer: PreTrainedTokenizerFast) -> EvaluationDocuments:
    """The text as whole documents in memory: evaluation sets are small, training sets are not."""
    parts: list[tuple[list[np.ndarray], TextCounts]] = []  # of a document each
    for token_ids, starts_document, counts in tokenized_pieces(text.counted(), tokenizer):
        if starts_document or not parts:
            parts.append(([], TextCounts()))
        parts[-1][0].append(token_ids)
        parts[-1][1].add(counts)
    documents = [Document(np.concatenate(arrays), counts) for arrays, counts in parts]
    return EvaluationDocuments([document for document in documents if len(document.token_ids)], text.origin)


class PackedRows(Dataset):
    """Training rows of T tokens, one after the other in files of `token_bytes` that are mapped into memory; every file
    ends with one token more, which is only a target. Columns, [T] each: `input_ids`; `labels`, already shifted
    (labels[t] follows input_ids[t]), IGNORED where they are not supervised; `position_ids`, the position in the
    document, 0 where one begins (in the row: one that began before goes on with 1); and `row`, the row's number. A row
    beyond the last is blank: nothing in it is supervised."""

    def __init__(
        self, paths: Iterable[Path], tokenizer: PreTrainedTokenizerFast, max_length: int, stride: int | None = None
    ):
        files, step = (np.memmap(path, token_type(tokenizer), "r") for path in paths), stride or max_length
        self.files = [sliding_window_view(file, max_length + 1)[::step] for file in files if len(file) > 1]
        self.ends = np.cumsum([len(rows) for rows in self.files])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: column[0] for name, column in self.__getitems__([range(len(self))[index]]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, np.ndarray]:
        """Columns [B, T], and `row` [B], at once: one by one takes longer than an update on a GPU."""
        is_blank = np.asarray(indices) == len(self)
        indices = np.where(is_blank, 0, indices)
        places = zip(np.searchsorted(self.ends, indices, side="right"), indices, strict=True)
        tokens = np.stack([self.files[file][index - self.ends[file]] for file, index in places])
        tokens["supervised"] &= ~is_blank[:, None]
        token_ids = tokens["token"].astype(np.int32)
        columns = np.arange(tokens.shape[1] - 1, dtype=np.int32)
        begins = np.maximum.accumulate(np.where(tokens["starts"][:, :-1], columns, -1), axis=1)
        labels = np.where(tokens["supervised"], token_ids, IGNORED)[:, 1:]
        named = {"input_ids": token_ids[:, :-1], "labels": labels, "position_ids": columns - begins}
        return named | {"row": np.where(is_blank, NO_ROW, indices)}


def token_type(tokenizer: PreTrainedTokenizerFast) -> np.dtype:
    """How a token is kept in a file."""
    return np.dtype([("token", np.min_scalar_type(len(tokenizer))), ("supervised", bool), ("starts", bool)])


def token_bytes(kind: np.dtype, token_ids: Sequence[int], supervised=True, starts_document: bool = False) -> bytes:
    """Tokens [N] as they are kept; `supervised`: which of them are, [N] or for all."""
    tokens = np.zeros(len(token_ids), kind)
    tokens["token"], tokens["supervised"] = token_ids, supervised
    tokens["starts"][:1] = starts_document
    return tokens.tobytes()


def packed_rows(
    text: Text, tokenizer: PreTrainedTokenizerFast, max_length: int, stride: int | None = None
) -> tuple[PackedRows, TextCounts]:
    """Training rows on disk, in the order of the text, every one full but for the last: the stream `<eot> document
    <eot> document ... <eot>`, a row each `stride` tokens (None: each `max_length`, so that none overlap). Written once
    per text, tokenizer and length under the cache folder, and found there again. Raises InputError: the text is shorter
    than one row."""
    key = (FORMAT_VERSION, text.identity, tokenizer.backend_tokenizer.to_str(), max_length)
    path = cache_path("rows", ".rows", *key)

    def write(target: Path) -> dict[str, int]:
        counts, kind, end_of_text = TextCounts(), token_type(tokenizer), [tokenizer.eos_token_id]
        with target.open("wb") as stream:
            for token_ids, starts_document, seen in tokenized_pieces(text.counted(), tokenizer):
                counts.add(seen)
                if starts_document:
                    stream.write(token_bytes(kind, end_of_text, starts_document=True))
                stream.write(token_bytes(kind, token_ids))
            stream.write(token_bytes(kind, end_of_text))
            missing = -(counts.documents + counts.tokens) % max_length
            stream.write(token_bytes(kind, [tokenizer.pad_token_id] * missing, supervised=False))
        return asdict(counts)

    counts = TextCounts(**kept(path, write))
    if counts.tokens < max_length:
        what = f"{text.origin} gives {counts.tokens} tokens, fewer than one row of max_length {max_length}"
        most = max(counts.tokens, 2)
        raise InputError(f"{what}; give more text or a max_length of at most {most}.", "NL-403")
    return PackedRows([path], tokenizer, max_length, stride), counts


def collate_rows(columns: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Columns of `PackedRows` -> [B, T] tensors, and `row` [B]. `shift_labels` tells transformers that the labels are
    shifted already."""
    batch = {name: torch.from_numpy(column.astype(np.int64)) for name, column in columns.items()}
    return batch | {"shift_labels": batch["labels"]}


def positions_within_row(position_ids: torch.Tensor) -> torch.Tensor:
    """[B, T] positions in the document -> positions for a model that sees one row at a time: a document that goes on
    from the row before starts again at 0."""
    columns = torch.arange(position_ids.shape[1], device=position_ids.device)
    last_start = torch.where(position_ids == 0, columns, 0).cummax(dim=1).values
    return columns - last_start
