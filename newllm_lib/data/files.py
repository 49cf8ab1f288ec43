"""The user's own file: .txt, .jsonl, .json, .csv or .parquet, read as lines or as rows, each checked."""

import codecs
import csv
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import InputError

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")
DELIMITERS = ",;\t|"
MARKS = {  # byte order marks; that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
# As it is read: (its place in the file, the row or a RowError that stands for one not written as it should be).
PlacedRow = tuple[str, object]


class RowError(ValueError):
    """A row that is not as it should be; the message says why, without naming the place."""


def is_missing(value: object) -> bool:
    """True for null, and for NaN, which tables write in its place."""
    return value is None or (isinstance(value, float) and value != value)


def is_unicode(text: str) -> bool:
    """False for text with half of a surrogate pair, which JSON can spell and no tokenizer reads."""
    return text.encode("utf-8", "ignore").decode("utf-8") == text


def checked_row(row: object) -> dict:
    """The row, if it has columns. Raises RowError: it has none, or its file spells it wrongly."""
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError(f"expected an object, got {type(row).__name__}")
    return row


def no_column(row: dict, what: str) -> RowError:
    """The error that there is no `what`. It cuts the names that are there: a file without a header has text there."""
    names = [repr(name if len(name) <= 40 else f"{name[:40]}...") for name in map(str, row)]
    found = ", ".join([*names[:12], *(["..."] if len(names) > 12 else [])]) or "none"
    return RowError(f"there is {what} (found: {found})")


def text_of(row: dict, column: str) -> str:
    """The text in a column. Raises RowError: it is not there, empty, no string, or no Unicode."""
    if column not in row:
        raise no_column(row, f"no {column!r} column")
    return checked_text(row[column], repr(column))


def checked_text(value: object, name: str) -> str:
    """The value, if it is a text. Raises RowError: it is empty, no string, or no Unicode."""
    if is_missing(value) or value == "":
        raise RowError(f"{name} is empty")
    if not isinstance(value, str):
        raise RowError(f"{name} has to be a string, got {type(value).__name__}")
    if not is_unicode(value):
        raise RowError(f"{name} holds half a character (a lone surrogate)")
    return value


def _refusal(path: str | Path, field: str, what: str) -> InputError:
    return InputError(f"{field} {str(path)!r} {what}.", "NL-402")


def check_file(path: str | Path, field: str, rows_of: str | None = None) -> Path:
    """The path, once it is known to be a readable file of a format we know. `rows_of` is what its rows are to be, such
    as "conversations": running text has none. Raises InputError: it is no such file."""
    try:
        path = Path(path).expanduser()
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _refusal(path, field, "does not exist; check the path") from error
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a zero byte, of an unknown user's home
        raise _refusal(path, field, f"cannot be read ({error}); check the path") from error
    kind = path.suffix.lower()
    for is_wrong, what in (
        (path.is_dir(), "is a folder; name one file in it"),
        (kind not in SUFFIXES, f"has to end in one of {', '.join(SUFFIXES)}"),
        (not path.is_file() or not os.access(path, os.R_OK), "cannot be read; name a file that you may open"),
        (size == 0, "is empty; name a file with text in it"),
        (rows_of and kind == ".txt", f"is running text; {rows_of} come as .jsonl, .json, .csv or .parquet"),
    ):
        if is_wrong:
            raise _refusal(path, field, what)
    return path


def content_hash(path: Path) -> str:
    """SHA-256 of the file's bytes, as hex: caches and saved settings identify a file by it."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuser(path: Path, field: str, skips: bool) -> Callable[[str, RowError], None]:
    """A function of (place, error) that refuses a row of the user's file, or with `skips` lets it be left out."""

    def refuse(place: str, error: RowError) -> None:
        if not skips:
            what = f"{field} {str(path)!r}, {place}: {error}; --skip_bad_rows leaves such rows out."
            raise InputError(what, "NL-402") from error

    return refuse


def read_rows(path: Path, field: str) -> Iterator[PlacedRow]:
    """The rows of a .jsonl, .json, .csv or .parquet file, without those of missing values alone. Raises InputError: the
    file as a whole is not of its format."""
    read = {".csv": _csv_rows, ".parquet": _parquet_rows}.get(path.suffix.lower(), _json_rows)
    for place, row in read(path, field):
        if not (isinstance(row, dict) and row and all(map(is_missing, row.values()))):
            yield place, row


def _json_rows(path: Path, field: str) -> Iterator[PlacedRow]:
    """Rows of a list, or of a line each: the content decides, not the name."""
    is_json = path.suffix.lower() == ".json"
    first = next(filter(str.strip, read_lines(path, field)), "")
    if is_json or first.lstrip().startswith("["):
        whole = _parse_json("".join(read_lines(path, field)))
        if isinstance(whole, list):
            yield from ((f"row {number}", row) for number, row in enumerate(whole, start=1))
            return
        if is_json and isinstance(_parse_json(first), RowError):
            what = whole if isinstance(whole, RowError) else "one JSON object"
            raise _refusal(path, field, f"is {what}; give a JSON list of rows, or a row a line")
    for number, line in enumerate(read_lines(path, field), start=1):
        if line.strip():
            yield f"line {number}", _parse_json(line)


def _json_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"{_first_double(key for key, _ in pairs)!r} stands there twice")
    return values


JSON = json.JSONDecoder(object_pairs_hook=_json_object)


def _parse_json(text: str) -> object:
    try:
        return JSON.decode(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        return RowError(f"not JSON: {error}")


def _first_double(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _check_columns(names: Iterable[str], path: Path, field: str) -> None:
    if (double := _first_double(names)) is not None:
        raise _refusal(path, field, f"has two columns {double!r}; rename one of them")


def _csv_rows(path: Path, field: str) -> Iterator[PlacedRow]:
    """Rows under the header; the commonest sign of DELIMITERS in the header separates cells."""
    lines = read_lines(path, field)
    first = next(lines, "")
    delimiter = max(DELIMITERS, key=first.count)
    csv.field_size_limit(2**31 - 1)  # a column may hold a whole document; the default is 128 KiB
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    place = "line 1"
    try:
        for cells in reader:
            if columns is None:
                columns = [name.strip() for name in cells]
                _check_columns(filter(None, columns), path, field)
            elif any(map(str.strip, cells[len(columns) :])):
                remedy = f"write a text with {delimiter!r} between quotes"
                yield place, RowError(f"{len(cells)} cells under {len(columns)} names; {remedy}")
            elif any(map(str.strip, cells)):
                row = itertools.zip_longest(columns, cells[: len(columns)])
                yield place, {name: cell for name, cell in row if name}
            place = f"line {reader.line_num + 1}"
    except csv.Error as error:
        remedy = "close its quotes, and write a quote within quotes twice"
        what = f"{field} {str(path)!r}: the row that begins in {place} is not CSV ({error}); {remedy}."
        raise InputError(what, "NL-402") from error


def _parquet_rows(path: Path, field: str) -> Iterator[PlacedRow]:
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        _check_columns(file.schema_arrow.names, path, field)
        rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"row {number}", row
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: text that is no UTF-8
        why = " ".join(str(error).split())[:200].rstrip(".")
        raise _refusal(path, field, f"cannot be read as Parquet after row {number}: {why}") from error


def read_lines(path: Path, field: str, most: int = -1) -> Iterator[str]:
    """The lines, each ending in "\\n" whatever the file ends lines with; a line of more than `most` characters comes in
    parts. A byte order mark, which some spreadsheets write, is left out; UTF-16 is read only with it. Raises
    InputError: binary, or not Unicode."""
    with path.open("rb") as stream:
        begin = stream.read(4)
    encoding = next((name for mark, name in MARKS.items() if begin.startswith(mark)), "utf-8")
    number = 1
    with path.open(encoding=encoding) as stream:
        try:
            while line := stream.readline(most):
                if "\0" in line:
                    raise _refusal(path, field, f"is a binary file (a zero byte in line {number}); give plain text")
                yield line
                number += line.endswith("\n")
        except UnicodeError as error:
            where = _undecodable(path) if encoding.startswith("utf-8") else f"after line {number - 1}"
            name = encoding.removesuffix("-sig").upper()
            raise _refusal(path, field, f"is not {name} text ({where}); save it as UTF-8") from error


def _undecodable(path: Path) -> str:
    """The place of the first byte that is no UTF-8."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number}, byte {error.start + 1}"
    return "its last character is cut"
