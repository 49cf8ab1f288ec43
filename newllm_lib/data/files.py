"""Read text from the user's own file: .txt, .jsonl, .json, .csv or .parquet, each line checked."""

import codecs
import csv
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import InputError
from .pieces import PIECE_CHARACTERS, TextPiece, pieces_of_lines, pieces_of_row
from .rows import BadRow, checked_row, text_of
from .turns import RowError, is_missing

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")
DELIMITERS = ",;\t|"
# Byte order marks; that of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def check_file(path: str | Path, field: str) -> Path:
    """The path, once it is known to be a readable file of a format we know.

    Raises:
        InputError: missing, a folder, empty, of another format, or out of reach.
    """
    try:
        path = Path(path).expanduser()
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{field} {str(path)!r} does not exist; check the path.", "NL-402") from error
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a zero byte, of nobody's home
        raise InputError(f"{field} {str(path)!r} cannot be read ({error}); check the path.", "NL-402") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{field} {str(path)!r} is a folder; name one file in it.", "NL-402")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{field} {str(path)!r} has to end in one of {', '.join(SUFFIXES)}.", "NL-402")
    if not stat.S_ISREG(status.st_mode) or not os.access(path, os.R_OK):
        raise InputError(f"{field} {str(path)!r} cannot be read; name a file that you may open.", "NL-402")
    if status.st_size == 0:
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
        InputError: no text, binary, or a bad row; names the line.
    """
    if path.suffix.lower() == ".txt":
        yield from pieces_of_lines(_lines(path, field, PIECE_CHARACTERS))
        return
    for place, row in read_rows(path, field):
        try:
            text = text_of(checked_row(row), "text")
        except RowError as error:
            if on_bad_row is None:
                raise bad_row(path, field, place, error) from error
            on_bad_row(f"{place}: {error}")
        else:
            yield from pieces_of_row(text)


def bad_row(path: Path, field: str, place: str, error: RowError) -> InputError:
    """The complaint about a row of the user's file."""
    return InputError(f"{field} {str(path)!r}, {place}: {error}; --skip_bad_rows leaves such rows out.", "NL-402")


def read_rows(path: Path, field: str) -> Iterator[tuple[str, object]]:
    """(place, row) for every row of a .jsonl, .json, .csv or .parquet file. A row that is not written as it should be
    is a BadRow; one of missing values alone is none.

    Raises:
        InputError: the file as a whole is not of its format.
    """
    read = {".csv": _csv_rows, ".parquet": _parquet_rows}.get(path.suffix.lower(), _json_rows)
    for place, row in read(path, field):
        if not (isinstance(row, dict) and row and all(map(is_missing, row.values()))):
            yield place, row


def _json_rows(path: Path, field: str) -> Iterator[tuple[str, object]]:
    """Rows of a list, or of a line each, whichever the name says: which it is shows."""
    numbered = enumerate(_lines(path, field), start=1)
    lines = list(itertools.islice(itertools.dropwhile(lambda item: not item[1].strip(), numbered), 1))
    if lines and (lines[0][1].lstrip().startswith("[") or path.suffix.lower() == ".json"):
        lines += numbered
        whole = _parse_json("".join(line for _, line in lines))
        if isinstance(whole, list):
            yield from ((f"row {number}", row) for number, row in enumerate(whole, start=1))
            return
        if path.suffix.lower() == ".json" and isinstance(_parse_json(lines[0][1]), BadRow):
            what = whole.complaint if isinstance(whole, BadRow) else "one JSON object"
            raise InputError(f"{field} {str(path)!r} is {what}; give a JSON list of rows, or a row a line.", "NL-402")
    for number, line in itertools.chain(lines, numbered):
        if line.strip():
            yield f"line {number}", _parse_json(line)


def _parse_json(text: str) -> object:
    try:
        return JSON.decode(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        return BadRow(f"not JSON: {error}")


def _json_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"{_first_double(key for key, _ in pairs)!r} stands there twice")
    return values


JSON = json.JSONDecoder(object_pairs_hook=_json_object)


def _first_double(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


def _csv_rows(path: Path, field: str) -> Iterator[tuple[str, object]]:
    """Rows under the header, whose commonest sign of DELIMITERS is the one between cells."""
    lines = _lines(path, field)
    first = next(lines, "")
    delimiter = max(DELIMITERS, key=first.count)
    csv.field_size_limit(2**31 - 1)  # a column may hold a whole document; the default is 128 KiB
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{field} {str(path)!r}: the row that begins in {place} is not CSV ({error}); close its quotes, and "
                "write a quote within quotes twice.",
                "NL-402",
            ) from error
        if cells is None:
            return
        if columns is None:
            columns = [name.strip() for name in cells]
            _check_columns(filter(None, columns), path, field)
        elif any(map(str.strip, cells[len(columns) :])):
            complaint = f"{len(cells)} cells under {len(columns)} names; write a text with {delimiter!r} between quotes"
            yield place, BadRow(complaint)
        elif any(map(str.strip, cells)):
            yield place, {name: cell for name, cell in itertools.zip_longest(columns, cells[: len(columns)]) if name}


def _check_columns(names: Iterable[str], path: Path, field: str) -> None:
    if (double := _first_double(names)) is not None:
        raise InputError(f"{field} {str(path)!r} has two columns {double!r}; rename one of them.", "NL-402")


def _parquet_rows(path: Path, field: str) -> Iterator[tuple[str, object]]:
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        _check_columns(file.schema_arrow.names, path, field)
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: text that is no UTF-8
        why = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(
            f"{field} {str(path)!r} cannot be read as Parquet after row {number}: {why}.", "NL-402"
        ) from error


def _lines(path: Path, field: str, most: int = -1) -> Iterator[str]:
    """The lines, each with its end as "\\n" whatever the file ends lines with; of a line of more than `most` characters
    its parts. Without the byte order mark that some spreadsheets begin a file with; UTF-16 only with it."""
    with path.open("rb") as stream:
        begin = stream.read(4)
    encoding = next((name for mark, name in MARKS.items() if begin.startswith(mark)), "utf-8")
    number = 1
    with path.open(encoding=encoding) as stream:
        try:
            while line := stream.readline(most):
                if "\0" in line:
                    raise _no_text(path, field, f"a binary file (a zero byte in line {number}); give plain text")
                yield line
                number += line.endswith("\n")
        except UnicodeError as error:
            where = _undecodable(path) if encoding.startswith("utf-8") else f"after line {number - 1}"
            raise _no_text(
                path, field, f"not {encoding.removesuffix('-sig').upper()} text ({where}); save it as UTF-8"
            ) from error


def _no_text(path: Path, field: str, what: str) -> InputError:
    return InputError(f"{field} {str(path)!r} is {what}.", "NL-402")


def _undecodable(path: Path) -> str:
    """Where the first byte is that is no UTF-8."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number}, byte {error.start + 1}"
    return "its last character is cut"
