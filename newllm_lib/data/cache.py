"""The cache folder: its files are prepared once and found again. A lost one costs the time to prepare it again.

Each file of the cache has a seal beside it, with the file's hash and a note by the function that made it. A file that
does not match its seal is made anew.
"""

import hashlib
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from ..errors import FULL, REFUSED, InputError
from .files import content_hash

LARGEST_BYTES = 20 * 2**30  # of the whole cache; the entries used longest ago are removed
ENTRY = re.compile(r"\.?([\w-]+-[0-9a-f]{32})(\..*)?")  # only files with such names are removed


def cache_folder() -> Path:
    """Where prepared rows and tokenizers are kept: NEWLLM_CACHE, or newllm in the user's cache folder."""
    folder = Path(os.environ.get("NEWLLM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "newllm")
    return Path(os.path.expanduser(folder))


def cache_path(kind: str, suffix: str, *contents: object) -> Path:
    """The path in the cache of a thing of this kind that `contents` determine."""
    key = hashlib.sha256("|".join(map(str, contents)).encode()).hexdigest()[:32]
    return cache_folder() / f"{kind}-{key}{suffix}"


def kept(path: Path, make: Callable[[Path], Any]) -> Any:
    """The note about the file `path`, which is `made` if it is missing or damaged."""
    return made(path, make) if (note := known(path)) is None else note


def known(path: Path) -> Any:
    """The note in the seal of a file; None if there is no file that matches its seal."""
    sealed = path.with_suffix(".json")
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        content = json.loads(sealed.read_bytes())
        if content["sha256"] == _digest(path, content["note"]):
            with suppress(OSError):  # the cache may be read-only
                os.utime(sealed)
            return content["note"]
    return None


def made(path: Path, make: Callable[[Path], Any]) -> Any:
    """The note about the file `path`, sealed: `make` writes it to the path it is given, and returns a note that JSON
    can hold, not None. Raises InputError: the cache cannot be written to."""
    with writing(path) as temporary:
        note = make(temporary)
    with writing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"sha256": _digest(path, note), "note": note}), encoding="utf-8")
    return note


def _digest(path: Path, note: Any) -> str:
    return hashlib.sha256(f"{content_hash(path)} {json.dumps(note)}".encode()).hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path for a file or a folder, which is moved to `path` if it exists in the end. Raises InputError: the
    cache cannot be written to."""
    folder, temporary = cache_folder(), path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(folder, path.relative_to(folder).parts[0])
        yield temporary
        if temporary.exists():
            if path.is_dir():
                _remove(path)
            os.replace(temporary, path)
    except OSError as error:
        # The code that makes a file for the cache reads other files, and from the network.
        refused = None if error.filename is None else Path(os.fsdecode(error.filename))
        is_in_cache = refused and (refused.is_relative_to(folder) or folder.is_relative_to(refused))
        if not (error.errno in REFUSED if refused is None else is_in_cache):
            raise
        what = f"the cache folder {str(folder)!r} cannot be written to ({error.strerror or error})"
        remedy = "make room there, or name another folder in the environment variable NEWLLM_CACHE"
        raise InputError(f"{what}; {remedy}.", "NL-104" if error.errno in FULL else "NL-401") from error
    finally:
        _remove(temporary)


def _make_room(folder: Path, needed: str) -> None:
    """Remove temporary files of killed processes and then, while the cache is larger than LARGEST_BYTES, the entry used
    longest ago, except the one that `needed` begins with."""
    entries: dict[str, list[os.stat_result]] = defaultdict(list)
    for path in folder.iterdir():
        if match := ENTRY.fullmatch(path.name):
            for part in (path, *(path.rglob("*") if path.is_dir() else ())):
                if part.name.endswith(".tmp") and not _is_being_written(part):
                    _remove(part)
                elif part.is_file():
                    entries[match[1]].append(part.stat())
    total = sum(status.st_size for parts in entries.values() for status in parts)
    for name, parts in sorted(entries.items(), key=lambda entry: max(status.st_mtime for status in entry[1])):
        if total > LARGEST_BYTES and not needed.startswith(name):
            total -= sum(status.st_size for status in parts)
            for path in folder.glob(f"{name}*"):
                _remove(path)


def _is_being_written(temporary: Path) -> bool:
    """True if the process that the temporary path names is alive, and not a later one of the same number."""
    try:
        return psutil.Process(int(temporary.suffixes[-2][1:])).create_time() <= temporary.stat().st_mtime
    except (psutil.Error, ValueError, IndexError, OSError):
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # another process was quicker, or the cache is read-only
            path.unlink(missing_ok=True)
