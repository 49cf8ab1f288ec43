"""Rows from the hub: mirrors in order of preference, asked once with a time-out, their number of rows checked."""

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from .catalogue import Dataset, HubSource

TIMEOUT_SECONDS = 10
COMMIT = re.compile("[0-9a-f]{40}")


def hub_problem(source: HubSource) -> str | None:
    """None if the hub serves the pinned revision, else the reason in a few words; asks once, with a time-out."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(source.hub_id, revision=source.revision, timeout=TIMEOUT_SECONDS)
    except Exception as error:  # the HTTP library differs between hub versions
        return in_a_few_words(error, source.hub_id, "dataset")
    return None


def in_a_few_words(error: Exception, hub_id: str, kind: str) -> str:
    """Why the hub does not serve a dataset or model."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HFValidationError):
        return f"{hub_id!r} cannot be the id of a {kind}, which reads owner/name"
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)  # None: older hub clients raise it without an answer
        if status in (401, 403):
            return f"it answered {status}: not there, or gated: accept its licence on its page and set HF_TOKEN"
        return "it did not answer" if status is None else f"it answered {status}"
    return f"no connection: {type(error).__name__}"  # any failure to connect means the same


def code_of(problem: str) -> str:
    """The code for what `in_a_few_words` gives."""
    return "NL-302" if "gated" in problem else "NL-301"


def _answering(entry: Dataset, problems: list[str]) -> Iterator[HubSource]:
    """The sources that the hub serves, in order; `problems` is told why others are passed over."""
    for source in entry.sources:
        problem = hub_problem(source)
        if problem is None:
            yield source
            continue
        problems.append(_of_source(entry, source, problem))
        if "no connection" in problem or "HF_HUB_OFFLINE" in problem:
            return  # the next one would wait as long for the same


def _of_source(entry: Dataset, source: HubSource, problem: str) -> str:
    return f"{source.hub_id}: {problem}" if len(entry.sources) > 1 else problem


def first_answering(entry: Dataset) -> tuple[HubSource | None, str]:
    """(the first source that the hub serves or None, what is wrong with those before it)."""
    problems: list[str] = []
    source = next(_answering(entry, problems), None)
    return source, "; ".join(problems)


def first_opened(entry: Dataset) -> tuple[dict[str, "HubSplit"] | None, str]:
    """(the splits for training and evaluation of the first source that answers and is what the catalogue says, or None
    if the hub serves none; what is wrong with those before it).

    Raises:
        InputError: sources answer, but none of them can be loaded as the catalogue describes it.
    """
    problems: list[str] = []
    refused = None
    for source in _answering(entry, problems):
        try:
            wanted = [split for split in ("train", "validation") if split in source.splits]
            return {split: open_hub_split(entry, source, split) for split in wanted}, "; ".join(problems)
        except InputError as error:
            refused = error
            problems.append(_of_source(entry, source, str(error).split(";")[0]))
    if refused is not None:
        raise refused
    return None, "; ".join(problems)


@dataclass(frozen=True)
class HubSplit:
    """One split as the hub serves it. `rows` is None for one that is read as it comes."""

    source: HubSource
    name: str
    data: Any
    num_rows: int | None

    def read(self, first_row: int = 0) -> Iterator[dict]:
        """The rows from `first_row` on."""
        if self.source.regroup is not None:
            yield from itertools.islice(self.source.regroup(self.data), first_row, None)
        elif self.num_rows is None:
            yield from self.data.skip(first_row)
        else:
            yield from (self.data[number] for number in range(first_row, self.num_rows))

    @property
    def origin(self) -> str:
        config = f", {self.source.config}" if self.source.config else ""
        return f"{self.source.hub_id}{config}, {self.name}, revision {self.source.revision[:8]}"

    @property
    def identity(self) -> str:
        return f"{self.source.hub_id}/{self.source.config}/{self.name}@{self.source.revision}"


def open_hub_split(entry: Dataset, source: HubSource, split: str) -> HubSplit:
    """A split, downloaded (or opened, if the entry is streamed), with a check of its columns and number of rows.

    Raises:
        InputError: it cannot be loaded, or is not what the catalogue says.
    """
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(TIMEOUT_SECONDS))
    from datasets import load_dataset
    from huggingface_hub import HfApi

    try:
        if not COMMIT.fullmatch(source.revision):
            info = HfApi().dataset_info(source.hub_id, revision=source.revision, timeout=TIMEOUT_SECONDS)
            source = replace(source, revision=info.sha)
        data = load_dataset(
            source.hub_id,
            source.config,
            split=source.splits[split],
            revision=source.revision,
            streaming=entry.streamed,
        )
    except Exception as error:  # the loader's complaints come in many types; all mean that there are no rows
        sentence = " ".join(str(error).split())
        raise InputError(
            f"{source.hub_id} could not be loaded ({type(error).__name__}: {sentence[:200]}); try again, or give a "
            "file with --data.",
            "NL-303",
        ) from error
    num_rows = None if entry.streamed else len(data)
    expected = source.rows.get(split)
    if num_rows is not None and expected is not None and num_rows != expected:
        raise InputError(
            f"{source.hub_id} {split} has {num_rows} rows where {expected} are expected; clear the datasets cache and "
            "try again.",
            "NL-303",
        )
    opened = HubSplit(source, split, data, num_rows)
    _check_columns(entry, opened)
    return opened


def _check_columns(entry: Dataset, opened: HubSplit) -> None:
    """Refuse a source whose first row has other columns: row by row, every one of them would be a bad row."""
    try:
        first = next(opened.read(), None)
    except KeyError as error:
        raise InputError(f"{opened.source.hub_id} has no column {error}; give a file with --data.", "NL-303") from error
    missing = [] if first is None else [column for column in entry.columns if column not in first]
    if missing:
        raise InputError(
            f"{opened.source.hub_id} has no column {', '.join(map(repr, missing))} (found: "
            f"{', '.join(map(repr, first))}); give a file with --data.",
            "NL-303",
        )
