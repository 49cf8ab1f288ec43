"""The hub's ways to fail, raised as its own client raises them, and what comes of each."""

import dataclasses
import re
import types

import datasets
import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from newllm_lib.data import sources
from newllm_lib.data.conversations import load_conversations
from newllm_lib.data.sources import DATASETS, Dataset, HubSource, dialogues_of_utterances
from newllm_lib.errors import InputError

SERVED_COMMIT = "ab" * 20


def refusal(kind: type[Exception], status: int) -> Exception:
    request = httpx.Request("GET", "https://huggingface.co/api/datasets/owner/name")
    return kind(f"{status} Client Error", response=httpx.Response(status, request=request))


NOT_THERE = refusal(errors.RepositoryNotFoundError, 404)
UNKNOWN_OR_PRIVATE = refusal(errors.RepositoryNotFoundError, 401)  # what the hub says to who has no token
GATED = refusal(errors.GatedRepoError, 403)
BROKEN = refusal(errors.HfHubHTTPError, 503)
TIMED_OUT = httpx.ReadTimeout("timed out")
UNREACHABLE = httpx.ConnectError("[Errno -3] Temporary failure in name resolution")


@pytest.fixture
def served(monkeypatch):
    """A hub that serves what is put into this: hub id -> rows by the hub's name of the split, or an exception. The
    ids that were asked for are in `asked`."""
    contents: dict = {}
    asked: list[str] = []

    def dataset_info(self, repo_id, *, revision, timeout):
        assert timeout == sources.TIMEOUT_SECONDS
        asked.append(repo_id)
        content = contents.get(repo_id, NOT_THERE)
        if isinstance(content, Exception):
            raise content
        return types.SimpleNamespace(sha=SERVED_COMMIT)

    def load_dataset(hub_id, config, split, revision, streaming, **files):
        assert revision == SERVED_COMMIT, "a branch is pinned to its commit"
        content = contents[hub_id]
        if callable(content):
            content = content()
        rows = datasets.Dataset.from_list(content[split])
        return rows.to_iterable_dataset() if streaming else rows

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    contents["asked"] = asked
    return contents


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (NOT_THERE, r"it answered 404"),
        (UNKNOWN_OR_PRIVATE, r"it answered 401: not there, or gated: accept its licence on its page and set HF_TOKEN"),
        (GATED, r"it answered 403: not there, or gated"),
        (BROKEN, r"it answered 503"),
        (TIMED_OUT, r"no connection: ReadTimeout"),
        (UNREACHABLE, r"no connection: ConnectError"),
        (errors.OfflineModeIsEnabled("offline"), r"HF_HUB_OFFLINE is set"),
    ],
)
def test_every_failure_is_one_sentence(served, failure, reason):
    served["owner/name"] = failure
    with pytest.raises(InputError, match=rf"dataset 'owner/name' could not be had from the hub \({reason}.*--data\.$"):
        load_conversations("owner/name")


def test_an_id_that_cannot_be_one_is_told_from_a_lost_connection():
    with pytest.raises(InputError, match="'owner/na/me' cannot be the id of a dataset"):
        load_conversations("owner/na/me")


DIALOGUE = {"dialog": ["Hi", "Yo", "Bye", "Ciao"]}
SPLITS = {"train": "train", "validation": "validation"}


@pytest.fixture
def two_mirrors(monkeypatch):
    """DailyDialog with two small mirrors, of which the second has a row an utterance."""
    sources = (
        HubSource("first/mirror", "main", splits=SPLITS, rows={"train": 2, "validation": 1}),
        HubSource("second/mirror", "main", splits=SPLITS, regroup=dialogues_of_utterances),
    )
    entry = Dataset("CC", sources, ("dialog",), offline=None)
    monkeypatch.setitem(DATASETS, "dailydialog", entry)
    return entry


def utterances(*dialogues: list[str]) -> list[dict]:
    return [{"dialog_id": number, "utterance": turn} for number, turns in enumerate(dialogues) for turn in turns]


SECOND = {"train": utterances(["a", "b"], ["c", "d"]), "validation": utterances(["e", "f"])}


def test_the_first_mirror_is_taken_if_it_is_right(served, two_mirrors):
    served |= {"first/mirror": {"train": [DIALOGUE] * 2, "validation": [DIALOGUE]}, "second/mirror": SECOND}
    splits = load_conversations("dailydialog")
    assert (splits.source, splits.note, splits.train.origin) == ("hub", "", "first/mirror, train, revision abababab")
    assert [[turn["content"] for turn in talk] for talk in splits.train] == [["Hi", "Yo", "Bye", "Ciao"]] * 2
    assert set(served["asked"]) == {"first/mirror"}
    assert [number for number, _, _ in splits.train.read(1)] == [1]


def no_rows():
    raise RuntimeError("Dataset scripts are no longer supported, but found\n daily_dialog.py")


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (NOT_THERE, "first/mirror: it answered 404"),
        (GATED, "first/mirror: it answered 403"),
        (no_rows, r"could not be loaded \(RuntimeError: Dataset scripts are no longer supported, but found daily_dial"),
        ({"train": [DIALOGUE] * 3, "validation": [DIALOGUE]}, "train has 3 rows where 2 are expected"),
        ({"train": [{"text": "a"}] * 2, "validation": [DIALOGUE]}, r"has no column 'dialog' \(found: 'text'\)"),
    ],
)
def test_the_next_mirror_is_taken_and_the_reason_told(served, two_mirrors, first, reason):
    served |= {"first/mirror": first, "second/mirror": SECOND}
    splits = load_conversations("dailydialog")
    assert splits.train.origin == "second/mirror, train, revision abababab"
    assert [[turn["content"] for turn in talk] for talk in splits.train] == [["a", "b"], ["c", "d"]]
    assert [[turn["content"] for turn in talk] for talk in splits.validation] == [["e", "f"]]
    assert [number for number, _, _ in splits.train.read(1)] == [1]
    assert re.match(f"Before it: .*{reason}", splits.note)


def test_the_wrong_number_of_rows_everywhere_is_refused(served, two_mirrors):
    served |= {"first/mirror": {"train": [DIALOGUE], "validation": [DIALOGUE]}, "second/mirror": NOT_THERE}
    with pytest.raises(InputError, match="first/mirror train has 1 rows where 2 are expected"):
        load_conversations("dailydialog")


def test_a_mirror_without_the_columns_to_regroup_is_refused(served, two_mirrors):
    served |= {"second/mirror": {"train": [DIALOGUE], "validation": [DIALOGUE]}}
    with pytest.raises(InputError, match="second/mirror has no column 'dialog_id'"):
        load_conversations("dailydialog")


def test_a_hub_that_does_not_answer_is_asked_once(served, two_mirrors):
    """The mirrors are on the same hub: the next would wait as long."""
    served |= {"first/mirror": TIMED_OUT, "second/mirror": SECOND}
    with pytest.raises(InputError, match=r"first/mirror: no connection: ReadTimeout"):
        load_conversations("dailydialog")
    assert served["asked"] == ["first/mirror"]


def test_out_of_reach_the_stand_in_is_named(served):
    pytest.importorskip("chitchat_dataset")
    served |= {"OpenRL/daily_dialog": TIMED_OUT}
    splits = load_conversations("dailydialog")
    assert splits.source == "offline" and "ChitChat" in splits.train.origin
    assert "hub could not be reached" in splits.note and "chitchat stands in for dailydialog" in splits.note
    with pytest.raises(InputError, match="could not be had from the hub"):
        load_conversations("dailydialog", data_source="hub")


def test_any_dataset_of_messages_by_its_id(served):
    rows = [
        {"messages": [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": "A"}]}
        for number in range(60)
    ]
    rows[7]["messages"].pop()
    served["owner/name"] = {"train": rows}
    splits = load_conversations("owner/name")
    items = [*splits.train.read(0), *splits.validation.read(0)]
    assert sorted(number for number, _, _ in items) == list(range(60))
    assert [complaint for _, messages, complaint in items if messages is None] == [
        "row 8: there is no assistant turn to learn from"
    ]


def test_a_streamed_dataset_is_read_from_any_row(served, monkeypatch):
    entry = Dataset("MIT", (HubSource("big/data", "main"),), ("data",), streamed=True)
    monkeypatch.setitem(DATASETS, "ultrachat-full", entry)
    served["big/data"] = {"train": [{"id": str(number), "data": [f"Q{number}", "A"]} for number in range(100)]}
    splits = load_conversations("ultrachat-full", max_samples=50)
    numbers = [number for number, _, _ in splits.train.read(0)]
    assert max(numbers) < 50 and [number for number, _, _ in splits.train.read(20)] == [n for n in numbers if n >= 20]
    assert next(iter(splits.train))[0]["content"] == f"Q{numbers[0]}"


TALKS = [{"messages": [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": "A"}]} for n in range(80)]
CHOICES = [{"chosen": f"\n\nHuman: Q{n}\n\nAssistant: A", "rejected": "B"} for n in range(80)]


@pytest.mark.parametrize(("name", "rows", "train"), [("ultrachat", TALKS, "train_sft"), ("hh-rlhf", CHOICES, "train")])
def test_the_hubs_test_split_chooses_nothing(served, monkeypatch, name, rows, train):
    """Where the hub has no split to choose by, some of the training rows become one."""
    source = dataclasses.replace(DATASETS[name].sources[0], revision="main", rows={})
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], sources=(source,)))
    served[source.hub_id] = {train: rows[:60], source.splits["test"]: rows[60:]}
    splits = load_conversations(name)
    numbers = [number for side in (splits.train, splits.validation) for number, _, _ in side.read(0)]
    assert sorted(numbers) == list(range(60)) and splits.test is splits.reported
    assert [talk[0]["content"] for talk in splits.test] == [f"Q{number}" for number in range(60, 80)]


def test_what_is_held_out_of_a_stream_is_found_in_its_first_rows(served, monkeypatch):
    entry = Dataset("MIT", (HubSource("big/data", "main"),), ("data",), streamed=True)
    monkeypatch.setitem(DATASETS, "ultrachat-full", entry)
    monkeypatch.setattr("newllm_lib.data.conversations.STREAM_HELD_OUT", 60)
    served["big/data"] = {"train": [{"id": str(number), "data": [f"Q{number}", "A"]} for number in range(100)]}
    splits = load_conversations("ultrachat-full", held_out_share=0.3)
    held_out, trained = ([number for number, _, _ in side.read(0)] for side in (splits.validation, splits.train))
    assert held_out and max(held_out) < 60 <= max(trained), "the training split goes on to the end"
    assert not {*held_out} & {*trained} and {*range(60)} <= {*held_out, *trained}
    assert "30% of the first 60 rows are held out" in splits.note
