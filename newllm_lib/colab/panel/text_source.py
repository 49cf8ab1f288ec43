"""Which text or conversations a run will take, found out without loading them."""

import functools
from pathlib import Path

from ...data.files import check_file, content_hash, read_rows
from ...data.sources import DATASETS, HubProblem, HubSource, find_data, first_answering
from ...data.stand_ins import identity_of
from ...errors import InputError

STAND_INS = {"chitchat": "the ChitChat conversations", "documentation": "Python's own documentation"}


def resolve_source(dataset: str, data_source: str, data: str | None, eval_data: str | None = None) -> tuple[str, str]:
    """("hub" | "offline" | "file", what the user should know about the choice).

    `auto` is settled here, once per session, so that a run's settings say where its data came from and a later
    session, with or without a network, goes on with the same data.

    Raises:
        InputError: a file that cannot be read, or no data within reach.
    """
    if data_source == "hub":
        return "hub", ""
    if data_source == "file" and not data:
        raise InputError("data is set to 'my file': enter the path of the file.")
    if data_source == "file":
        for name, path in (("data", data), ("eval_data", eval_data)):
            if path:
                check_file(path, name)
        return "file", ""
    found = find_data(dataset, DATASETS[dataset], data_source, data, lambda entry: _answering(dataset))
    if found.source == "hub":
        return "hub", f"Data: auto takes {dataset} from the hub."
    stand_in = STAND_INS[DATASETS[dataset].offline]
    if data_source == "auto":
        return "offline", f"Data: auto takes {stand_in} offline, for the hub was not reached ({found.problem})."
    return "offline", f"Data: {stand_in} stand in for {dataset}."


def dataset_of_file(dataset: str, path: str) -> str | None:
    """`dataset` if the file's first row has its columns, None for rows of `messages` or of `prompt` and `completion`.
    Raises InputError: a file that cannot be read."""
    file = check_file(path, "data", rows_of="conversations")
    _, row = next(iter(read_rows(file, "data")), ("", None))
    return dataset if isinstance(row, dict) and DATASETS[dataset].columns[0] in row else None


@functools.lru_cache(maxsize=8)
def _answering(dataset: str) -> tuple[HubSource | None, HubProblem | None]:
    return first_answering(DATASETS[dataset])


def data_identity(args, dataset: str) -> str:
    """Changes when the data do: the pinned revision, the package's release, or the files' content."""
    if args.data is not None:
        return " ".join(file_identity(path) for path in (args.data, args.eval_data) if path is not None)
    if args.data_source == "hub":
        return DATASETS[dataset].sources[0].revision
    return identity_of(DATASETS[dataset].offline)


def file_identity(path: str) -> str:
    """Changes when the file's content does."""
    status = Path(path).expanduser().stat()
    return _file_hash(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _file_hash(path: str, size: int, modified: int) -> str:
    """The hash of the file's content, taken anew when its size or time has changed."""
    return content_hash(Path(path).expanduser())
