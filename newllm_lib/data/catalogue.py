"""The datasets we know, one entry each: where the hub keeps them, their columns, licence and size, and what stands
in for them where there is no hub."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..errors import InputError
from . import rows


@dataclass(frozen=True)
class HubSource:
    """A dataset on the hub. A branch in the place of a commit is pinned when it is opened: the run names the commit.

    Attributes:
        splits: our name of a split -> the hub's; what is not there is held out of "train".
        rows: expected rows of our splits, as far as they are known.
        regroup: what has to be done to this mirror's rows before they have the columns of the entry.
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
        sources: the first that answers and has the expected number of rows is taken.
        columns: what a row has to have; "text" alone is running text.
        template: the chat template that a model without one gets, of TEMPLATES.
        offline: what stands in for it with no hub: "chitchat", "documentation" or None.
        streamed: too large to download whole: rows are read as they come.
    """

    licence: str
    sources: tuple[HubSource, ...]
    columns: tuple[str, ...]
    template: str = "dialogue"
    offline: str | None = None
    streamed: bool = False


THREE_SPLITS = {"train": "train", "validation": "validation", "test": "test"}

DATASETS: dict[str, Dataset] = {
    "wikitext": Dataset(
        licence="CC BY-SA 3.0 and GFDL",
        sources=(
            HubSource(
                "Salesforce/wikitext",
                "b08601e04326c79dfdd32d625aee71d232d685c3",
                config="wikitext-2-raw-v1",
                splits=THREE_SPLITS,
                rows={"train": 36_718, "validation": 3_760},
            ),
        ),
        columns=("text",),
        offline="chitchat",
    ),
    "dailydialog": Dataset(
        licence="CC BY-NC-SA 4.0",
        sources=(
            HubSource("OpenRL/daily_dialog", "main", splits=THREE_SPLITS, rows={"train": 11_118, "validation": 1_000}),
            HubSource(
                "pixelsandpointers/better_daily_dialog",
                "main",
                splits=THREE_SPLITS,
                regroup=rows.dialogues_of_utterances,
            ),
            HubSource(
                "roskoN/dailydialog",
                "refs/convert/parquet",
                config="full",
                splits=THREE_SPLITS,
                rows={"train": 11_118, "validation": 1_000},
                regroup=rows.utterances_as_dialogue,
            ),
        ),
        columns=("dialog",),
        offline="chitchat",
    ),
    "dolly": Dataset(
        licence="CC BY-SA 3.0",
        sources=(
            HubSource(
                "databricks/databricks-dolly-15k", "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a", rows={"train": 15_011}
            ),
        ),
        columns=("instruction", "context", "response"),
        template="instruction",
        offline="documentation",
    ),
    "dolly-ja": Dataset(
        licence="CC BY-SA 3.0",
        sources=(HubSource("kunishou/databricks-dolly-15k-ja", "main"),),
        columns=("instruction", "input", "output"),
        template="instruction",
    ),
    "ultrachat": Dataset(
        licence="MIT",
        sources=(
            HubSource(
                "HuggingFaceH4/ultrachat_200k",
                "8049631c405ae6576f93f445c6b8166f76f5505a",
                splits={"train": "train_sft", "validation": "test_sft"},
                rows={"train": 207_865, "validation": 23_110},
            ),
        ),
        columns=("messages",),
        offline="chitchat",
    ),
    "ultrachat-full": Dataset(
        licence="MIT by its card, CC BY-NC 4.0 by its project's README",
        sources=(HubSource("openbmb/UltraChat", "main"), HubSource("stingning/ultrachat", "main")),
        columns=("data",),
        offline="chitchat",
        streamed=True,
    ),
    "hh-rlhf": Dataset(
        licence="MIT",
        sources=(
            HubSource(
                "Anthropic/hh-rlhf",
                "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa",
                splits={"train": "train", "validation": "test"},
                rows={"train": 160_800, "validation": 8_552},
            ),
        ),
        columns=("chosen", "rejected"),
        offline="chitchat",
    ),
    "alpaca": Dataset(
        licence="CC BY-NC 4.0",
        sources=(
            HubSource("yahma/alpaca-cleaned", "12567cabf869d7c92e573c7c783905fc160e9639", rows={"train": 51_760}),
        ),
        columns=("instruction", "input", "output"),
        template="instruction",
        offline="documentation",
    ),
    "alpaca-ja": Dataset(
        licence="see the card of fujiki/japanese_alpaca_data",
        sources=(HubSource("fujiki/japanese_alpaca_data", "main"),),
        columns=("instruction", "input", "output"),
        template="instruction",
    ),
    "codealpaca": Dataset(
        licence="CC BY 4.0",
        sources=(HubSource("sahil2801/CodeAlpaca-20k", "main", rows={"train": 20_022}),),
        columns=("instruction", "input", "output"),
        template="instruction",
        offline="documentation",
    ),
}
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
