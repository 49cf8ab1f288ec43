"""The datasets we know, one entry each: where the hub keeps them, their columns, licence and size, and what stands
in for them where there is no hub."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ..errors import InputError

HELD_OUT_SHARE = 0.05  # held out for evaluation where the data have no validation split


@dataclass(frozen=True)
class HubSource:
    """A dataset on the hub. A branch in the place of a commit is pinned when it is opened: the run names the commit.

    Attributes:
        revision: a commit, "main" or "refs/convert/parquet".
        splits: our name of a split -> the hub's; a split that is missing here is held out of "train".
        rows: expected rows of our splits, as far as they are known.
        regroup: turns this mirror's rows into rows with the columns of the entry.
    """

    hub_id: str
    revision: str
    config: str | None = None
    splits: dict[str, str] = field(default_factory=lambda: {"train": "train"})
    rows: dict[str, int] = field(default_factory=dict)
    regroup: Callable[[Iterable[dict]], Iterable[dict]] | None = None


@dataclass(frozen=True)
class Dataset:
    """One entry of the catalogue.

    Attributes:
        sources: the first one that answers and has the expected number of rows is taken.
        columns: what a row has to have, by names of COLUMNS in examples.py; "text" alone is running text.
        template: of TEMPLATES in chat_template.py, for a model that has neither a template nor role tokens.
        offline: the stand-in where there is no hub: "chitchat" for English conversations, "documentation" for English
            instructions, or None.
        streamed: too large to download whole: rows are read as they come.
    """

    licence: str
    sources: tuple[HubSource, ...]
    columns: tuple[str, ...]
    template: str = "dialogue"
    offline: str | None = None
    streamed: bool = False


def dialogues_of_utterances(rows: Iterable[dict]) -> Iterator[dict]:
    """Rows of one utterance each with the `dialog_id` they belong to -> rows of DailyDialog."""
    for _, group in itertools.groupby(rows, key=lambda row: row["dialog_id"]):
        yield {"dialog": [row["utterance"] for row in group]}


def utterances_as_dialogue(rows: Iterable[dict]) -> Iterator[dict]:
    """{"utterances": [...]} -> rows of DailyDialog."""
    return ({"dialog": row["utterances"]} for row in rows)


THREE_SPLITS = {"train": "train", "validation": "validation", "test": "test"}
WIKITEXT_ROWS = {"train": 36_718, "validation": 3_760}
DIALOGUES = {"train": 11_118, "validation": 1_000}
TEST_IS_VALIDATION = {"train": "train", "validation": "test"}
SFT_SPLITS = {"train": "train_sft", "validation": "test_sft"}
ALPACA = ("instruction", "input", "output")
# fmt: off
DATASETS: dict[str, Dataset] = {
    "wikitext": Dataset(
        "CC BY-SA 3.0 and GFDL",
        (HubSource("Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3", "wikitext-2-raw-v1",
                   THREE_SPLITS, WIKITEXT_ROWS),),
        ("text",), offline="chitchat",
    ),
    "dailydialog": Dataset(
        "CC BY-NC-SA 4.0",
        (HubSource("OpenRL/daily_dialog", "main", None, THREE_SPLITS, DIALOGUES),
         HubSource("pixelsandpointers/better_daily_dialog", "main", None, THREE_SPLITS,
                   regroup=dialogues_of_utterances),
         HubSource("roskoN/dailydialog", "refs/convert/parquet", "full", THREE_SPLITS, DIALOGUES,
                   utterances_as_dialogue)),
        ("dialog",), offline="chitchat",
    ),
    "dolly": Dataset(
        "CC BY-SA 3.0",
        (HubSource("databricks/databricks-dolly-15k", "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
                   rows={"train": 15_011}),),
        ("instruction", "context", "response"), "instruction", "documentation",
    ),
    "dolly-ja": Dataset(
        "CC BY-SA 3.0", (HubSource("kunishou/databricks-dolly-15k-ja", "main"),), ALPACA, "instruction"
    ),
    "ultrachat": Dataset(
        "MIT",
        (HubSource("HuggingFaceH4/ultrachat_200k", "8049631c405ae6576f93f445c6b8166f76f5505a", None, SFT_SPLITS,
                   {"train": 207_865, "validation": 23_110}),),
        ("messages",), offline="chitchat",
    ),
    "ultrachat-full": Dataset(
        "MIT by its card, CC BY-NC 4.0 by its project's README",
        (HubSource("openbmb/UltraChat", "main"), HubSource("stingning/ultrachat", "main")),
        ("data",), offline="chitchat", streamed=True,
    ),
    "hh-rlhf": Dataset(
        "MIT",
        (HubSource("Anthropic/hh-rlhf", "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa", None, TEST_IS_VALIDATION,
                   {"train": 160_800, "validation": 8_552}),),
        ("chosen", "rejected"), offline="chitchat",
    ),
    "alpaca": Dataset(
        "CC BY-NC 4.0",
        (HubSource("yahma/alpaca-cleaned", "12567cabf869d7c92e573c7c783905fc160e9639", rows={"train": 51_760}),),
        ALPACA, "instruction", "documentation",
    ),
    "alpaca-ja": Dataset(
        "see the card of fujiki/japanese_alpaca_data", (HubSource("fujiki/japanese_alpaca_data", "main"),),
        ALPACA, "instruction",
    ),
    "codealpaca": Dataset(
        "CC BY 4.0", (HubSource("sahil2801/CodeAlpaca-20k", "main", rows={"train": 20_022}),),
        ALPACA, "instruction", "documentation",
    ),
}
# fmt: on
CONVERSATION_DATASETS = tuple(name for name, entry in DATASETS.items() if entry.columns != ("text",))


def find_dataset(name: str) -> Dataset:
    """The entry called `name`, or for any other id on the hub ("owner/name") one of rows that
    `any_conversation` reads.

    Raises:
        InputError: neither.
    """
    if name in CONVERSATION_DATASETS:
        return DATASETS[name]
    if "/" in name:
        return Dataset("as its card on the hub says", (HubSource(name, "main"),), ())
    raise InputError(
        f"dataset has to be one of {', '.join(CONVERSATION_DATASETS)}, or the id of a dataset on the hub "
        f"(owner/name), got {name!r}."
    )
