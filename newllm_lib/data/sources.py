"""The datasets we know, one entry each, and where a run's data come from: the user's file, the hub, or a stand-in
without a network. The hub's mirrors are asked in order of preference, with a time-out, and their number of rows is
checked."""

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Generic, Literal, TypeVar

from huggingface_hub import HfApi, ModelInfo, auth_check
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from ..errors import InputError
from ..progress import Progress
from .files import PlacedRow

HELD_OUT_SHARE = 0.05  # held out for evaluation where the data have no validation split
DATA_SOURCES = ("auto", "hub", "offline", "file", "random")
TIMEOUT_SECONDS = 10
COMMIT = re.compile("[0-9a-f]{40}")
INSTALL = "run pip install 'newllm[offline]'"
Side = TypeVar("Side")


@dataclass(frozen=True)
class HubSource:
    """A dataset on the hub. A branch in the place of a commit is pinned when it is opened: the run names the commit."""

    hub_id: str
    revision: str = "main"  # a commit, "main" or "refs/convert/parquet"
    config: str | None = None
    # Our name of a split -> the hub's; where "validation" is missing, it is held out of "train". What is chosen is
    # chosen on "validation", and figures are of "test" where there is one.
    splits: dict[str, str] = field(default_factory=lambda: {"train": "train"})
    rows: dict[str, int] = field(default_factory=dict)  # of our splits, as far as they are known
    regroup: Callable[[Iterable[dict]], Iterable[dict]] | None = None  # rows of this mirror -> rows with our columns
    files: dict[str, str] = field(default_factory=dict)  # of our splits, where others would be downloaded with them


@dataclass(frozen=True)
class Dataset:
    """One entry of the catalogue."""

    licence: str
    sources: tuple[HubSource, ...]  # the first one that answers and has the expected number of rows is taken
    columns: tuple[str, ...]  # what a row has to have, by names of COLUMNS in examples.py; "text" alone: running text
    template: str = "dialogue"  # of TEMPLATES in chat_template.py, for a model with neither a template nor role tokens
    offline: str | None = None  # what stands in where there is no hub, one of `stand_in`
    streamed: bool = False  # too large to download whole: rows are read as they come
    language: str = "English"
    good_for: str = ""  # what a model learns from it
    about: int = 0  # rows of the training split, where no source's number is known to the row


def dialogues_of_utterances(rows: Iterable[dict]) -> Iterator[dict]:
    """Rows of one utterance each with the `dialog_id` they belong to -> rows of DailyDialog."""
    for _, group in itertools.groupby(rows, key=lambda row: row["dialog_id"]):
        yield {"dialog": [row["utterance"] for row in group]}


THREE_SPLITS = {"train": "train", "validation": "validation", "test": "test"}
DIALOGUES = {"train": 11_118, "validation": 1_000}
ALPACA = ("instruction", "input", "output")
# fmt: off
DATASETS: dict[str, Dataset] = {
    "wikitext": Dataset("CC BY-SA 3.0 and GFDL", (
        HubSource("Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3", "wikitext-2-raw-v1", THREE_SPLITS,
                  {"train": 36_718, "validation": 3_760, "test": 4_358}),
    ), ("text",), offline="chitchat", good_for="how written text goes on"),
    "dailydialog": Dataset("CC BY-NC-SA 4.0", (
        HubSource("OpenRL/daily_dialog", splits=THREE_SPLITS, rows=DIALOGUES),
        HubSource("pixelsandpointers/better_daily_dialog", splits=THREE_SPLITS, regroup=dialogues_of_utterances),
        HubSource("roskoN/dailydialog", "refs/convert/parquet", "full", THREE_SPLITS, DIALOGUES,
                  lambda rows: ({"dialog": row["utterances"]} for row in rows)),
    ), ("dialog",), offline="chitchat", good_for="small talk: taking turns, and ending an answer"),
    "dolly": Dataset("CC BY-SA 3.0", (
        HubSource("databricks/databricks-dolly-15k", "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
                  rows={"train": 15_011}),
    ), ("instruction", "context", "response"), "instruction", "documentation",
       good_for="questions and instructions with one answer each, written by people"),
    "dolly-ja": Dataset("CC BY-SA 3.0", (HubSource("kunishou/databricks-dolly-15k-ja"),), ALPACA, "instruction",
                        language="Japanese", about=15_000, good_for="the instructions of Dolly in Japanese"),
    "ultrachat": Dataset("MIT", (
        HubSource("HuggingFaceH4/ultrachat_200k", "8049631c405ae6576f93f445c6b8166f76f5505a",
                  splits={"train": "train_sft", "test": "test_sft"}, rows={"train": 207_865, "test": 23_110},
                  files={"train": "data/train_sft-*", "test": "data/test_sft-*"}),
    ), ("messages",), offline="chitchat", good_for="long conversations on many subjects, written by a large model"),
    "ultrachat-full": Dataset("MIT by its card, CC BY-NC 4.0 by its project's README", (
        HubSource("openbmb/UltraChat"), HubSource("stingning/ultrachat"),
    ), ("data",), offline="chitchat", streamed=True, about=1_500_000,
       good_for="all conversations of UltraChat, read as they come"),
    "hh-rlhf": Dataset("MIT", (
        HubSource("Anthropic/hh-rlhf", "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa",
                  splits={"train": "train", "test": "test"}, rows={"train": 160_800, "test": 8_552}),
    ), ("chosen", "rejected"), offline="chitchat",
       good_for="several turns that hang together, with the answer that people preferred"),
    "alpaca": Dataset("CC BY-NC 4.0", (
        HubSource("yahma/alpaca-cleaned", "12567cabf869d7c92e573c7c783905fc160e9639", rows={"train": 51_760}),
    ), ALPACA, "instruction", "documentation", good_for="instructions of many kinds, written by a large model"),
    "alpaca-ja": Dataset("see the card of fujiki/japanese_alpaca_data", (HubSource("fujiki/japanese_alpaca_data"),),
                         ALPACA, "instruction", language="Japanese", about=52_000,
                         good_for="the instructions of Alpaca in Japanese"),
    "codealpaca": Dataset("CC BY 4.0", (HubSource("sahil2801/CodeAlpaca-20k", rows={"train": 20_022}),),
                          ALPACA, "instruction", "documentation", good_for="short programs after a description"),
}
# fmt: on
CONVERSATION_DATASETS = tuple(name for name, entry in DATASETS.items() if entry.columns != ("text",))


def find_dataset(name: str) -> Dataset:
    """The entry called `name`, or for any other id on the hub ("owner/name") one of rows that `any_conversation` reads.
    Raises InputError: neither."""
    if name in CONVERSATION_DATASETS:
        return DATASETS[name]
    if "/" in name:
        return Dataset("as its card on the hub says", (HubSource(name),), ())
    names = ", ".join(CONVERSATION_DATASETS)
    raise InputError(f"dataset has to be one of {names}, or the id of a dataset on the hub (owner/name), got {name!r}.")


@dataclass(frozen=True)
class Origin:
    """What every kind of data says of itself."""

    origin: str  # what they are and where they came from, for plots, model cards and saved settings
    licence: str  # theirs, or how the user can know
    identity: str  # changes when the data do

    def part(self: Side, name: str, key: str, read: Callable[..., Iterable]) -> Side:
        """A part of the data, which `read` reads; `key` tells it from other parts."""
        return replace(self, origin=f"{self.origin}, {name}", identity=f"{self.identity}/{key}", read=read)


@dataclass(frozen=True)
class Examples(Origin):
    """The rows of one split, which can be read any number of times, from any row's number on."""

    rows: Callable[[int], Iterable[dict]] = field(repr=False)
    count: int | None = None  # of the rows, where it is known

    def read(self, first: int) -> Iterator[PlacedRow]:
        return ((f"row {number}", row) for number, row in enumerate(self.rows(first), start=first + 1))


@dataclass(frozen=True)
class Splits(Generic[Side]):
    """What to train on, what to choose by, and what the figures are of."""

    train: Side
    validation: Side
    source: str  # "hub", "offline", "file", "random" or "generated": what "auto" was settled to
    note: str = ""  # what the user should know about how the source was chosen
    template: str = ""  # the chat template of conversations, for a model that has none
    test: Side | None = None  # where the data have one

    @property
    def reported(self) -> Side:
        """What figures are of."""
        return self.validation if self.test is None else self.test

    def find(self, identity: str) -> Side | None:
        """The side for evaluation that a run has noted. An earlier version took a test split for validation where the
        hub has no other."""
        sides = {side.identity: side for side in (self.validation, self.test) if side is not None}
        return sides.get(identity) or sides.get(identity.replace("/validation@", "/test@"))


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
    try:
        HfApi().dataset_info(source.hub_id, revision=source.revision, timeout=TIMEOUT_SECONDS)
    except Exception as error:  # the HTTP library differs between hub versions
        return problem_of(error, source.hub_id, "dataset")
    return None


def hub_model(hub_id: str) -> tuple[ModelInfo | None, HubProblem | None]:
    """(what the hub says of a model's main branch, or None; why it does not serve it); asks once, with a time-out."""
    try:
        info = HfApi().model_info(hub_id, timeout=TIMEOUT_SECONDS, files_metadata=True)
        if info.gated:  # its page is open to all, its files are not
            auth_check(hub_id)
    except Exception as error:
        return None, problem_of(error, hub_id, "model")
    return info, None


def problem_of(error: Exception, hub_id: str, kind: str) -> HubProblem:
    """The problem that an error of the hub's client stands for; `kind` is "dataset" or "model"."""
    if isinstance(error, OfflineModeIsEnabled):
        return HubProblem("unreachable", "HF_HUB_OFFLINE is set")
    if isinstance(error, HFValidationError):
        return HubProblem("other", f"{hub_id!r} cannot be the id of a {kind}, which reads owner/name")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status not in (401, 403):
            return HubProblem("other", f"it answered {status}")
        remedy = "accept its licence on its page and set HF_TOKEN"
        return HubProblem("gated", f"it answered {status}: not there, or gated: {remedy}")
    return HubProblem("unreachable", f"no connection: {type(error).__name__}")  # all failures to connect mean the same


def first_answering(
    entry: Dataset, use: Callable[[HubSource], Any] = lambda source: source
) -> tuple[Any, HubProblem | None]:
    """(what `use` makes of the first source that the hub serves and `use` takes, or None if the hub serves none; what
    is wrong with those before it). Raises InputError: sources answer, but `use` refuses each."""
    problems: list[HubProblem] = []
    refused = value = None
    for source in entry.sources:
        problem = hub_problem(source)
        if problem is None:
            try:
                value = use(source)
                break
            except InputError as error:
                refused, problem = error, HubProblem("other", str(error).split(";")[0])
        words = f"{source.hub_id}: {problem}" if len(entry.sources) > 1 else problem.words
        problems.append(replace(problem, words=words))
        if problem.kind == "unreachable":
            break  # the next one would wait as long for the same
    if value is None and refused is not None:
        raise refused
    worst = [kind for kind in ("gated", "unreachable", "other") if kind in {problem.kind for problem in problems}]
    return value, HubProblem(worst[0], "; ".join(map(str, problems))) if worst else None


def first_opened(entry: Dataset) -> tuple[dict[str, Examples] | None, HubProblem | None]:
    """As `first_answering`: the splits of a source that is what the catalogue says."""
    return first_answering(entry, lambda source: {name: open_hub_split(entry, source, name) for name in source.splits})


@dataclass(frozen=True)
class Found:
    """A source that has been settled."""

    source: str  # "file", "hub", "offline" or "random"
    splits: dict[str, Examples] | None = None  # of the last three
    problem: HubProblem | None = None  # of what the hub does not serve
    note: str = ""  # what the user should know about the choice


def find_data(
    name: str | None,
    entry: Dataset | None,
    data_source: str,
    data: str | None,
    reach: Callable[[Dataset], tuple[Any, HubProblem | None]] | None = None,
) -> Found:
    """Settle a data source: "auto" is `data` if given, else the hub if it answers, else what stands in for the dataset
    `name` with this `entry`; neither is needed with `data`. `reach` asks the hub for splits, or only whether it
    answers; None: `first_opened`. Raises InputError: unknown source, one that does not go with `data`, or data out of
    reach."""
    if data_source not in DATA_SOURCES:
        raise InputError(f"data_source has to be one of {', '.join(DATA_SOURCES)}, got {data_source!r}.")
    if data is not None and data_source not in ("auto", "file"):
        raise InputError(f"data {data!r} contradicts data_source {data_source!r}; leave one of them out.")
    if data is None and data_source == "file":
        raise InputError("data_source 'file' needs the path of the file; add --data PATH.")
    if data is not None:
        return Found("file")
    if data_source == "random" and name != "wikitext":
        raise InputError("data_source 'random' is running text, which newllm pretrain trains on; choose another one.")
    if entry is None:
        raise InputError("there is nothing to train on; name a --dataset, or a file with --data.")
    problem = None
    if data_source == "random":
        entry = replace(entry, offline="random")
    elif data_source != "offline":
        splits, problem = (reach or first_opened)(entry)
        if splits is not None:
            return Found("hub", splits, problem, f"Before it: {problem}." if problem else "")
    has_stand_in = entry.offline is not None and (entry.offline != "chitchat" or has_chitchat())
    if data_source == "hub" or (data_source == "auto" and not has_stand_in):
        remedy = "check the network and the name"
        if has_stand_in:
            remedy += ", choose --data_source offline"
        elif data_source == "auto" and entry.offline is not None:
            remedy = f"for offline data {INSTALL}"
        what = f"dataset {name!r} could not be had from the hub ({problem})"
        raise InputError(f"{what}; {remedy}, or give a file with --data.", problem.code)
    if entry.offline is None:
        raise InputError(f"dataset {name!r} has no offline stand-in; give a file with --data.")
    if not has_stand_in:
        raise InputError(f"data_source 'offline' needs the package chitchat-dataset; {INSTALL}.", "NL-102")
    from .stand_ins import stand_in

    splits = {side: Examples(*parts) for side, parts in stand_in(entry.offline).items()}
    note = f"The hub could not be reached ({problem}): {entry.offline} stands in for {name}." if problem else ""
    return Found("random" if data_source == "random" else "offline", splits, problem, note)


def has_chitchat() -> bool:
    return find_spec("chitchat_dataset") is not None


def open_hub_split(entry: Dataset, source: HubSource, split: str) -> Examples:
    """A split, downloaded (or opened, if the entry is streamed), with a check of its columns and number of rows. Raises
    InputError: it cannot be loaded, or is not what the catalogue says."""
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(TIMEOUT_SECONDS))
    from datasets import load_dataset

    def refusal(what: str, remedy: str = "give a file with --data") -> InputError:
        return InputError(f"{source.hub_id} {what}; {remedy}.", "NL-303")

    revision = source.revision
    try:
        if not COMMIT.fullmatch(revision):
            revision = HfApi().dataset_info(source.hub_id, revision=revision, timeout=TIMEOUT_SECONDS).sha
        where = {"split": source.splits[split], "revision": revision, "streaming": entry.streamed}
        if source.files:
            # The number of rows is checked below; the loader would miss the splits that are left out.
            where |= {"data_files": {source.splits[split]: source.files[split]}, "verification_mode": "no_checks"}
        with Progress(desc="loading {name}", of=source.hub_id):
            data = load_dataset(source.hub_id, source.config, **where)
    except Exception as error:  # the loader's complaints come in many types; all mean that there are no rows
        what = f"could not be loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise refusal(what, "try again, or give a file with --data") from error
    if not entry.streamed and len(data) != source.rows.get(split, len(data)):
        what = f"{split} has {len(data)} rows where {source.rows[split]} are expected"
        raise refusal(what, "clear the datasets cache and try again")

    def rows(first: int) -> Iterable[dict]:
        if source.regroup is not None:
            return itertools.islice(source.regroup(data), first, None)
        return data.skip(first) if entry.streamed else map(data.__getitem__, range(first, len(data)))

    # Other columns are refused here: row by row, every one of them would be a bad row.
    try:
        first = next(iter(rows(0)), dict.fromkeys(entry.columns))
    except KeyError as error:
        raise refusal(f"has no column {error}") from error
    if missing := [column for column in entry.columns if column not in first]:
        raise refusal(f"has no column {', '.join(map(repr, missing))} (found: {', '.join(map(repr, first))})")
    config = f", {source.config}" if source.config else ""
    origin = f"{source.hub_id}{config}, {split}, revision {revision[:8]}"
    count = None if entry.streamed or source.regroup else len(data)
    return Examples(origin, entry.licence, f"{source.hub_id}/{source.config}/{split}@{revision}", rows, count)
