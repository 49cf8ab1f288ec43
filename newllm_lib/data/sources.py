"""Where a run's data come from: the user's file, the hub, or a stand-in without a network. The hub's mirrors are asked
in order of preference, with a time-out, and their number of rows is checked. The stand-ins are conversations from the
package `chitchat-dataset` (MIT), and questions and answers made from the Python standard library's own documentation.
"""

import functools
import importlib
import inspect
import itertools
import os
import platform
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Generic, Literal, TypeVar

from ..errors import InputError
from .catalogue import HELD_OUT_SHARE, Dataset, HubSource

DATA_SOURCES = ("auto", "hub", "offline", "file")
TIMEOUT_SECONDS = 10
COMMIT = re.compile("[0-9a-f]{40}")
INSTALL = "run pip install 'newllm[offline]'"
MAX_ANSWER_CHARACTERS = 600
QUESTIONS = {
    "module": ("What is the Python module {name} for?", "Describe the Python module {name}."),
    "class": ("What is {name} in Python?", "Explain the Python class {name}."),
    "function": ("What does {name} do in Python?", "Explain the Python function {name}."),
}
# Importing these opens a window, a browser or a game, or prints something.
NOT_IMPORTED = {"antigravity", "this", "idlelib", "turtledemo", "turtle", "tkinter", "lib2to3", "test"}
Data = TypeVar("Data")


@dataclass(frozen=True)
class Splits(Generic[Data]):
    """What to train on and what to evaluate on.

    Attributes:
        source: "hub", "offline", "file" or "generated": what "auto" was settled to.
        template: the chat template of conversations, for a model that has none.
        note: what the user should know about how the source was chosen.
    """

    train: Data
    validation: Data
    source: str
    note: str = ""
    template: str = ""


@dataclass(frozen=True)
class HubProblem:
    """Why the hub does not serve a dataset or model, in a few words. "unreachable": it would serve no other, either."""

    kind: Literal["unreachable", "gated", "other"]
    words: str

    def __str__(self) -> str:
        return self.words

    @property
    def code(self) -> str:
        return "NL-302" if self.kind == "gated" else "NL-301"


def hub_problem(source: HubSource) -> HubProblem | None:
    """None if the hub serves the pinned revision, else why not; asks once, with a time-out."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(source.hub_id, revision=source.revision, timeout=TIMEOUT_SECONDS)
    except Exception as error:  # the HTTP library differs between hub versions
        return problem_of(error, source.hub_id, "dataset")
    return None


def problem_of(error: Exception, hub_id: str, kind: str) -> HubProblem:
    """The problem that an error of the hub's client stands for; `kind` is "dataset" or "model"."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return HubProblem("unreachable", "HF_HUB_OFFLINE is set")
    if isinstance(error, HFValidationError):
        return HubProblem("other", f"{hub_id!r} cannot be the id of a {kind}, which reads owner/name")
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)  # None: older hub clients raise it without an answer
        if status in (401, 403):
            words = f"it answered {status}: not there, or gated: accept its licence on its page and set HF_TOKEN"
            return HubProblem("gated", words)
        return HubProblem("other", "it did not answer" if status is None else f"it answered {status}")
    return HubProblem("unreachable", f"no connection: {type(error).__name__}")  # all failures to connect mean the same


def _joined(problems: list[HubProblem]) -> HubProblem | None:
    """The problems of several mirrors as one."""
    kinds = {problem.kind for problem in problems}
    worst = next((kind for kind in ("gated", "unreachable", "other") if kind in kinds), None)
    return HubProblem(worst, "; ".join(map(str, problems))) if worst else None


def _answering(entry: Dataset, problems: list[HubProblem]) -> Iterator[HubSource]:
    """The sources that the hub serves, in order; adds to `problems` why others are passed over."""
    for source in entry.sources:
        problem = hub_problem(source)
        if problem is None:
            yield source
            continue
        problems.append(_of_source(entry, source, problem))
        if problem.kind == "unreachable":
            return  # the next one would wait as long for the same


def _of_source(entry: Dataset, source: HubSource, problem: HubProblem) -> HubProblem:
    several = len(entry.sources) > 1
    return HubProblem(problem.kind, f"{source.hub_id}: {problem}") if several else problem


def first_answering(entry: Dataset) -> tuple[HubSource | None, HubProblem | None]:
    """(the first source that the hub serves or None, what is wrong with those before it)."""
    problems: list[HubProblem] = []
    return next(_answering(entry, problems), None), _joined(problems)


def first_opened(entry: Dataset) -> tuple[dict[str, "HubSplit"] | None, HubProblem | None]:
    """(the splits for training and evaluation of the first source that answers and is what the catalogue says, or None
    if the hub serves none; what is wrong with those before it).

    Raises:
        InputError: sources answer, but none of them can be loaded as the catalogue describes it.
    """
    problems: list[HubProblem] = []
    refused = None
    for source in _answering(entry, problems):
        try:
            wanted = [name for name in ("train", "validation") if name in source.splits]
            return {name: open_hub_split(entry, source, name) for name in wanted}, _joined(problems)
        except InputError as error:
            refused = error
            problems.append(_of_source(entry, source, HubProblem("other", str(error).split(";")[0])))
    if refused is not None:
        raise refused
    return None, _joined(problems)


@dataclass(frozen=True)
class Found:
    """The settled source: "file", "hub" (`on_hub` is the answer of `reach`) or "offline"; the problem of what the hub
    does not serve; and what the user should know about the choice."""

    source: str
    on_hub: Any = None
    problem: HubProblem | None = None
    note: str = ""


def find_data(
    name: str | None,
    entry: Dataset | None,
    data_source: str,
    data: str | None,
    reach: Callable[[Dataset], tuple[Any, HubProblem | None]] | None = None,
) -> Found:
    """Settle a data source: "auto" is `data` if given, else the hub if it answers, else what stands in for `entry`.

    Args:
        name: of the dataset, for sentences; `entry`: its entry in the catalogue. Neither is needed with `data`.
        reach: how to ask the hub; None: `first_opened`.

    Raises:
        InputError: unknown source, one that does not go with `data`, or data out of reach.
    """
    if data_source not in DATA_SOURCES:
        raise InputError(f"data_source has to be one of {', '.join(DATA_SOURCES)}, got {data_source!r}.")
    if data is not None and data_source not in ("auto", "file"):
        raise InputError(f"data {data!r} contradicts data_source {data_source!r}; leave one of them out.")
    if data is None and data_source == "file":
        raise InputError("data_source 'file' needs the path of the file; add --data PATH.")
    if data is not None:
        return Found("file")
    if entry is None:
        raise InputError("there is nothing to train on; name a --dataset, or a file with --data.")
    problem = None
    if data_source != "offline":
        opened, problem = (reach or first_opened)(entry)
        if opened is not None:
            return Found("hub", opened, problem, f"Before it: {problem}." if problem else "")
    has_stand_in = entry.offline is not None and (entry.offline != "chitchat" or has_chitchat())
    if data_source == "hub" or (data_source == "auto" and not has_stand_in):
        remedy = "check the network and the name"
        if data_source == "hub" and has_stand_in:
            remedy += ", choose --data_source offline"
        elif data_source == "auto" and entry.offline is not None:
            remedy = f"for offline data {INSTALL}"
        raise InputError(
            f"dataset {name!r} could not be had from the hub ({problem}); {remedy}, or give a file with --data.",
            problem.code,
        )
    if entry.offline is None:
        raise InputError(f"dataset {name!r} has no offline stand-in; give a file with --data.")
    if not has_stand_in:
        raise InputError(f"data_source 'offline' needs the package chitchat-dataset; {INSTALL}.", "NL-102")
    note = f"The hub could not be reached ({problem}): {entry.offline} stands in for {name}." if problem else ""
    return Found("offline", None, problem, note)


@dataclass(frozen=True)
class HubSplit:
    """One split as the hub serves it. `num_rows` is None for one that is read as it comes."""

    source: HubSource
    name: str
    data: Any = field(repr=False)
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

    def refusal(what: str, remedy: str) -> InputError:
        return InputError(f"{source.hub_id} {what}; {remedy}.", "NL-303")

    try:
        if not COMMIT.fullmatch(source.revision):
            info = HfApi().dataset_info(source.hub_id, revision=source.revision, timeout=TIMEOUT_SECONDS)
            source = replace(source, revision=info.sha)
        data = load_dataset(
            source.hub_id, source.config, split=source.splits[split], revision=source.revision, streaming=entry.streamed
        )
    except Exception as error:  # the loader's complaints come in many types; all mean that there are no rows
        what = f"could not be loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise refusal(what, "try again, or give a file with --data") from error
    num_rows = None if entry.streamed else len(data)
    expected = source.rows.get(split, num_rows)
    if num_rows is not None and num_rows != expected:
        what = f"{split} has {num_rows} rows where {expected} are expected"
        raise refusal(what, "clear the datasets cache and try again")
    opened = HubSplit(source, split, data, num_rows)
    # Other columns are refused here: row by row, every one of them would be a bad row.
    try:
        first = next(opened.read(), dict.fromkeys(entry.columns))
    except KeyError as error:
        raise refusal(f"has no column {error}", "give a file with --data") from error
    if missing := [column for column in entry.columns if column not in first]:
        what = f"has no column {', '.join(map(repr, missing))} (found: {', '.join(map(repr, first))})"
        raise refusal(what, "give a file with --data")
    return opened


def has_chitchat() -> bool:
    return find_spec("chitchat_dataset") is not None


def chitchat_names(split: str) -> tuple[str, str, str]:
    """(origin, licence, identity) of a split."""
    release = version("chitchat-dataset")
    origin = f"ChitChat conversations, {split} (package chitchat-dataset {release})"
    return origin, "MIT", f"chitchat-dataset/{release}/{split}"


def chitchat_conversations(held_out: bool) -> Iterator[list[str]]:
    """Its 7,168 conversations in an order of our own, every twentieth held out."""
    from chitchat_dataset import ConversationDataset

    conversations = [list(turns) for turns in ConversationDataset()]
    random.Random(0).shuffle(conversations)
    every = round(1 / HELD_OUT_SHARE)
    for index, turns in enumerate(conversations):
        if (index % every == 0) == held_out and any(turn.strip() for turn in turns):
            yield turns


def documentation_identity() -> str:
    return f"python documentation/{platform.python_version()}"


@functools.lru_cache(maxsize=1)
def documentation_rows() -> list[dict[str, str]]:
    """Rows of Dolly's columns: what a module, class or function of the standard library is, in its docstring's first
    paragraph, with its signature as context. The same for one release of Python."""
    rows = {}  # by answer: each is there once
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules warn on import
        for name in sorted(sys.stdlib_module_names):
            if name.startswith("_") or name in NOT_IMPORTED:
                continue
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue  # of another operating system, or left out of this build
            for kind, full_name, thing in _documented(name, module):
                row = _row(kind, full_name, thing, len(rows))
                if row is not None:
                    rows.setdefault(row["response"], row)
    return list(rows.values())


def _documented(name: str, module):
    yield "module", name, module
    for attribute, thing in sorted(vars(module).items()):
        if attribute.startswith("_") or getattr(thing, "__module__", None) != name:
            continue
        if inspect.isclass(thing):
            yield "class", f"{name}.{attribute}", thing
            for method, function in sorted(vars(thing).items()):
                if not method.startswith("_") and inspect.isroutine(function):
                    yield "function", f"{name}.{attribute}.{method}", function
        elif inspect.isroutine(thing):
            yield "function", f"{name}.{attribute}", thing


def _row(kind: str, name: str, thing, number: int) -> dict[str, str] | None:
    text = inspect.getdoc(thing)
    if not text or not text.isascii():
        return None
    answer = " ".join(text.split("\n\n")[0].split())
    if not 20 <= len(answer) <= MAX_ANSWER_CHARACTERS:
        return None
    context = ""
    if kind != "module":
        try:
            context = f"{name}{inspect.signature(thing)}"
        except (ValueError, TypeError, AttributeError):
            context = ""  # written in C, without a signature that Python can read
    # A default value may print an address, which differs from run to run.
    context = "" if " at 0x" in context or len(context) > 200 else context
    question = QUESTIONS[kind][number % len(QUESTIONS[kind])].format(name=name)
    return {"instruction": question, "context": context, "response": answer}
