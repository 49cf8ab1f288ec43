"""What is prepared once and found again: where it is kept, under which name, and how much of it. Whatever becomes of it
costs the time to prepare it again, and nothing else.

Each file of the cache has a seal beside it, which states its hash and what its maker said of it. What does not match
its seal is made anew.
"""

import errno
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

from ..errors import InputError
from .files import content_hash

LARGEST_BYTES = 20 * 2**30  # of the whole cache; what was used longest ago gives way
ENTRY = re.compile(r"\.?([\w-]+-[0-9a-f]{32})(\..*)?")  # what we name so is ours to remove
FULL = {errno.ENOSPC, errno.EDQUOT}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, *FULL}


def cache_folder() -> Path:
    """Where prepared rows and tokenizers are kept: NEWLLM_CACHE, or newllm in the user's cache folder."""
    folder = Path(os.environ.get("NEWLLM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "newllm")
    return folder.expanduser()


def cache_path(kind: str, suffix: str, *contents: object) -> Path:
    """The path in the cache of a thing of this kind that `contents` determine."""
    key = hashlib.sha256("|".join(map(str, contents)).encode()).hexdigest()[:32]
    return cache_folder() / f"{kind}-{key}{suffix}"


def kept(path: Path, make: Callable[[Path], Any]) -> Any:
    """What `make` has said of the file `path`, which it writes if there is none, or a damaged one.

    Args:
        make: writes the file that it is given the path of, and returns something that JSON can hold, not None.

    Raises:
        InputError: the cache cannot be written to.
    """
    if (said := known(path)) is None:
        with writing(path) as temporary:
            said = make(temporary)
        seal(path, said)
    return said


def known(path: Path) -> Any:
    """What the seal of a file says of it; None if there is none that is as it was sealed."""
    stated = path.with_suffix(".json")
    try:
        content = json.loads(stated.read_bytes())
        if content["sha256"] != _digest(path, content["said"]):
            return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    with suppress(OSError):  # a cache that may only be read
        os.utime(stated)
    return content["said"]


def seal(path: Path, said: Any) -> None:
    """State what the file `path` is, or that there is none, and what its maker says of it.

    Raises:
        InputError: the cache cannot be written to.
    """
    with writing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"sha256": _digest(path, said), "said": said}), encoding="utf-8")


def _digest(path: Path, said: Any) -> str:
    content = content_hash(path) if path.exists() else ""
    return hashlib.sha256(f"{content} {json.dumps(said)}".encode()).hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path for a file or a folder, which becomes `path` if something is there in the end.

    Raises:
        InputError: the cache cannot be written to.
    """
    folder, temporary = cache_folder(), path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(folder, path)
        yield temporary
        if temporary.exists():
            if path.is_dir():
                _remove(path)
            os.replace(temporary, path)
    except OSError as error:
        if not _is_of(folder, error):
            raise
        raise InputError(
            f"the cache folder {str(folder)!r} cannot be written to ({error.strerror or error}); make room there, or "
            "name another folder in the environment variable NEWLLM_CACHE.",
            "NL-104" if error.errno in FULL else "NL-401",
        ) from error
    finally:
        _remove(temporary)


def _is_of(folder: Path, error: OSError) -> bool:
    """True if it is the cache that refuses: whoever makes a thing for it reads other files, and from the network."""
    if error.filename is None:
        return error.errno in REFUSED
    path = Path(os.fsdecode(error.filename))
    return path.is_relative_to(folder) or folder.is_relative_to(path)


def _make_room(folder: Path, needed: Path) -> None:
    """Remove what killed processes have left, then, as long as there is more than LARGEST_BYTES, the entry that was
    used longest ago, but for the one that `needed` is in."""
    entries: dict[str, list[Path]] = defaultdict(list)
    for path in folder.iterdir():
        if not (match := ENTRY.fullmatch(path.name)):
            continue
        for part in (path, *(path.rglob("*") if path.is_dir() else ())):
            if part.name.endswith(".tmp") and not _is_being_written(part):
                _remove(part)
            elif part.is_file():
                entries[match[1]].append(part)
    status = {name: [part.stat() for part in parts] for name, parts in entries.items()}
    total = sum(part.st_size for parts in status.values() for part in parts)
    needed_name = needed.relative_to(folder).parts[0]
    for name in sorted(status, key=lambda name: max(part.st_mtime for part in status[name])):
        if total > LARGEST_BYTES and not needed_name.startswith(name):
            total -= sum(part.st_size for part in status[name])
            for path in folder.glob(f"{name}*"):
                _remove(path)


def _is_being_written(temporary: Path) -> bool:
    """True if the process that a temporary path names lives, and is no later one of the same number."""
    try:
        writer = psutil.Process(int(temporary.suffixes[-2][1:]))
        return writer.create_time() <= temporary.stat().st_mtime
    except (psutil.Error, ValueError, IndexError, OSError):
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # somebody else was quicker, or it may only be read
            path.unlink(missing_ok=True)
