"""What is prepared once and found again: where it is kept, under which name, and how it is written whole."""

import hashlib
import os
from pathlib import Path


def cache_folder() -> Path:
    """Where prepared rows and tokenizers are kept: NEWLLM_CACHE, or newllm in the user's cache folder."""
    folder = Path(os.environ.get("NEWLLM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "newllm")
    folder = folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_path(kind: str, suffix: str, *contents: object) -> Path:
    """The path in the cache of a thing of this kind that `contents` determine."""
    key = hashlib.sha256("|".join(map(str, contents)).encode()).hexdigest()[:32]
    return cache_folder() / f"{kind}-{key}{suffix}"


def write_atomically(path: Path, content: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)
