"""Read text from the user's own file: .txt, .jsonl, .json, .csv or .parquet, each line checked."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .rows import TextPiece, pieces_of_lines

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")


def check_file(path: str | Path, field: str) -> Path:
    """The path, once it is known to be a readable file of a format we know.

    Raises:
        InputError: missing, a folder, empty, or of another format.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{field} {str(path)!r} does not exist; check the path.", "NL-402")
    if path.is_dir():
        raise InputError(f"{field} {str(path)!r} is a folder; name one file in it.", "NL-402")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{field} {str(path)!r} has to end in one of {', '.join(SUFFIXES)}.", "NL-402")
    if path.stat().st_size == 0:
        raise InputError(f"{field} {str(path)!r} is empty; name a file with text in it.", "NL-402")
    return path


def content_hash(path: Path) -> str:
    """SHA-256 of the file's bytes, as hex: what caches and saved settings know a file by."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream) -> str:
    """hashlib.file_digest for Python 3.10."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def read_pieces(path: Path, field: str, on_bad_row: Callable[[str], None] | None = None) -> Iterator[TextPiece]:
    """The file's text in order, as pieces of documents; in row formats each row's `text` is a document.

    Args:
        on_bad_row: called with the complaint about a row without a string `text`, which is then left out; None
            raises the complaint instead.

    Raises:
        InputError: not UTF-8, binary, or a bad row; names the line.
    """
    if path.suffix.lower() == ".txt":
        yield from pieces_of_lines(line for _, line in _decoded_lines(path, field))
        return
    for place, row in read_rows(path, field):
        text = row.get("text") if isinstance(row, dict) else None
        if isinstance(text, str) and text:
            yield TextPiece(text, True)
        elif on_bad_row is not None:
            on_bad_row(f"{place}: {_complaint(row)}")
        else:
            raise InputError(
                f"{field} {str(path)!r}, {place}: {_complaint(row)}; --skip_bad_rows leaves such rows out.",
                "NL-402",
            )


def _complaint(row: object) -> str:
    if isinstance(row, NotJson):
        return row.complaint
    if not isinstance(row, dict):
        return f"expected an object with a 'text' column, got {type(row).__name__}"
    if "text" not in row:
        return f"there is no 'text' column (found: {', '.join(map(repr, row)) or 'none'})"
    if row["text"] == "":
        return "'text' is empty"
    return f"'text' has to be a string, got {type(row['text']).__name__}"


def read_rows(path: Path, field: str) -> Iterator[tuple[str, object]]:
    """(place, row) for every row of a .jsonl, .json, .csv or .parquet file; a line that is no JSON is a NotJson.

    Raises:
        InputError: the file as a whole is not of its format.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        for number, line in _row_lines(path, field):
            if line.strip():
                yield f"line {number}", _parse_json(line)
    elif suffix == ".json":
        rows = _parse_json("".join(line for _, line in _row_lines(path, field)))
        if isinstance(rows, NotJson):
            raise InputError(f"{field} {str(path)!r} is {rows.complaint}.", "NL-402")
        if not isinstance(rows, list):
            raise InputError(
                f"{field} {str(path)!r} has to hold a JSON list of rows; use .jsonl for a row per line.", "NL-402"
            )
        for number, row in enumerate(rows, start=1):
            yield f"row {number}", row
    elif suffix == ".csv":
        csv.field_size_limit(2**31 - 1)  # a column may hold a whole document; the default is 128 KiB
        reader = csv.DictReader(line for _, line in _row_lines(path, field))
        try:
            for row in reader:
                yield f"line {reader.line_num}", row
        except csv.Error as error:
            raise InputError(f"{field} {str(path)!r}, line {reader.line_num} is not CSV: {error}.", "NL-402") from error
    else:
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
        except pyarrow.lib.ArrowInvalid as error:
            raise InputError(f"{field} {str(path)!r} is not a Parquet file: {error}.", "NL-402") from error
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


@dataclass(frozen=True)
class NotJson:
    """What stands for a row that is no JSON, so that it can be left out as any other bad row."""

    complaint: str


def _parse_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        return NotJson(f"not JSON: {error}")


def _row_lines(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """The lines without the byte order mark that some spreadsheets begin a file with."""
    for number, line in _decoded_lines(path, field):
        yield number, line.removeprefix("\ufeff") if number == 1 else line


def _decoded_lines(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """(number, line with its end) for every line, decoded strictly."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if b"\0" in line:
                raise InputError(
                    f"{field} {str(path)!r} is a binary file (a zero byte in line {number}); give plain text.",
                    "NL-402",
                )
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{field} {str(path)!r} is not UTF-8 text (line {number}, byte {error.start + 1}); save it so.",
                    "NL-402",
                ) from error
