"""Which text a run will take, found out without loading it."""

import functools
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from ..data.files import check_file, content_hash
from ..data.hub import hub_problem
from ..data.text import WIKITEXT, load_text
from ..errors import InputError


def resolve_source(data_source: str, data: str | None, eval_data: str | None = None) -> tuple[str, str]:
    """("hub" | "offline" | "file", what the user should know about the choice).

    `auto` is settled here, once per session, so that a run's settings say where its text came from and a later
    session, with or without a network, goes on with the same text.

    Raises:
        InputError: a file that cannot be read, or no text within reach.
    """
    if data_source == "file":
        if not data:
            raise InputError("text is set to 'my file': enter the path of the file.")
        check_file(data, "data")
        if eval_data:
            check_file(eval_data, "eval_data")
        return "file", ""
    if data_source == "offline" and find_spec("chitchat_dataset") is None:
        load_text("offline")  # raises, with the library's sentence
    if data_source != "auto":
        return data_source, ""
    problem = _hub_problem()
    if problem is None:
        return "hub", "Text: auto takes WikiText-2 from the hub."
    if find_spec("chitchat_dataset") is None:
        load_text("auto")  # raises, with the library's sentence
    return "offline", f"Text: auto takes the offline conversations, for the hub was not reached ({problem})."


@functools.lru_cache(maxsize=1)
def _hub_problem() -> str | None:
    return hub_problem(WIKITEXT.sources[0])


def text_identity(args) -> str:
    """Changes when the text does: the pinned revision, the package's release, or the files' content."""
    if args.data is not None:
        return " ".join(_file_identity(path) for path in (args.data, args.eval_data) if path is not None)
    return (
        WIKITEXT.sources[0].revision if args.data_source == "hub" else f"chitchat-dataset {version('chitchat-dataset')}"
    )


def _file_identity(path: str) -> str:
    status = Path(path).expanduser().stat()
    return _file_hash(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _file_hash(path: str, size: int, modified: int) -> str:
    """The hash of the file's content, taken anew when its size or time has changed."""
    return content_hash(Path(path).expanduser())
