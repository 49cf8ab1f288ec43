"""Two data sets mixed: the share, the order, going on at any row, what is held out, and what a run says of it."""

import itertools
import types

import datasets
import huggingface_hub
import pytest
from lwf_runs import lwf_arguments, lwf_files

from newllm_lib.adapters.qlora_lwf import prepare_data
from newllm_lib.chat import Chat
from newllm_lib.data import conversations
from newllm_lib.data.chat_template import ConversationFormat, template_for
from newllm_lib.data.conversations import conversation_rows, load_conversations
from newllm_lib.data.mix import parse_mix
from newllm_lib.data.sources import DATASETS, Dataset, HubSource
from newllm_lib.errors import InputError
from newllm_lib.stages.evaluate import evaluate
from newllm_lib.stages.sft import SftArguments, sft
from newllm_lib.training.checkpoint import read_settings


def rows_of(word: str, count: int) -> list[dict]:
    return [{"instruction": f"{word} {number}?", "input": "", "output": f"{word}."} for number in range(count)]


@pytest.fixture
def hub(monkeypatch):
    """A hub with a larger and a smaller data set, the first with a validation split of its own."""
    splits = {"train": "train", "validation": "validation"}
    served = {"own/talk": {"train": rows_of("Talk", 950), "validation": rows_of("Asked", 50)}}
    served |= {"own/code": {"train": rows_of("Code", 100)}, "own/none": {"train": []}}
    for name, source in {
        "dolly": HubSource("own/talk", splits=splits),
        "codealpaca": HubSource("own/code"),
        "alpaca": HubSource("own/none"),
    }.items():
        licence = f"licence of {name}"
        monkeypatch.setitem(DATASETS, name, Dataset(licence, (source,), (), "instruction"))
    commit = types.SimpleNamespace(sha="ab" * 20)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **kwargs: commit)
    load = lambda hub_id, config, split, **how: datasets.Dataset.from_list(served[hub_id][split])  # noqa: E731
    monkeypatch.setattr(datasets, "load_dataset", load)


def words(side) -> list[str]:
    return [messages[-1]["content"] for messages in side]


def test_the_share_holds_from_the_first_hundred_rows_on(hub):
    splits = load_conversations("dolly", mix="codealpaca:0.2")
    said = words(splits.train)
    assert said.count("Talk.") == 950, "all of the first, and the mix ends with it"
    for begin in range(0, 1_100, 100):
        assert said[begin : begin + 100].count("Code.") == 20
    assert said.count("Code.") > 100, "the second one begins again"
    assert [talk[0]["content"] for talk in splits.train if "Talk" in talk[0]["content"]][:2] == ["Talk 0?", "Talk 1?"]


def test_both_have_something_held_out_and_nothing_of_it_is_trained_on(hub):
    splits = load_conversations("dolly", mix="codealpaca:0.1", held_out_share=0.2)
    held_out, trained = ({talk[0]["content"] for talk in side} for side in (splits.validation, splits.train))
    assert {text.split()[0] for text in held_out} == {"Asked", "Code"} and not held_out & trained
    assert words(splits.validation).count("Code.") == len(held_out) - 50, "none of it comes twice"


def test_it_goes_on_at_any_row_and_is_the_same_every_time(hub):
    train = load_conversations("dolly", mix="codealpaca:0.35").train
    whole = list(train.read(0))
    assert [number for number, *_ in whole] == list(range(len(whole)))
    assert list(train.read(0)) == whole
    for first in (1, 99, 100, 101, 640, len(whole) - 1):
        assert list(train.read(first)) == whole[first:]


def test_a_preparation_that_is_cut_off_goes_on_as_if_it_had_not_been(hub, byte_tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr(conversations, "ROWS_PER_SHARD", 300)
    monkeypatch.setattr(conversations, "CONVERSATIONS_PER_CALL", 100)
    monkeypatch.setattr(byte_tokenizer, "chat_template", template_for(byte_tokenizer, "instruction"))
    train, form = load_conversations("dolly", mix="codealpaca:0.2").train, ConversationFormat(64)
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "unbroken"))
    rows, counts = conversation_rows(train, byte_tokenizer, form)

    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cut"))
    read, asked = train.read, []

    def cut(first_row):
        asked.append(first_row)
        yield from itertools.islice(read(first_row), 900)
        raise KeyboardInterrupt

    object.__setattr__(train, "read", cut)
    with pytest.raises(KeyboardInterrupt):
        conversation_rows(train, byte_tokenizer, form)
    object.__setattr__(train, "read", lambda first_row: asked.append(first_row) or read(first_row))
    again, same = conversation_rows(train, byte_tokenizer, form)
    assert asked[0] == 0 and asked[1] in (300, 600) and same == counts and len(again) == len(rows)
    assert all((again[n]["input_ids"] == rows[n]["input_ids"]).all() for n in range(len(rows)))


@pytest.mark.parametrize("other", ["codealpaca:0.3", "codealpaca:0.02", None])
def test_another_mix_is_other_data(hub, other):
    mix = load_conversations("dolly", mix="codealpaca:0.2")
    changed = load_conversations("dolly", mix=other)
    assert changed.train.identity != mix.train.identity and changed.validation.identity != mix.validation.identity
    assert load_conversations("dolly", mix="codealpaca:.20").train.identity == mix.train.identity


@pytest.mark.parametrize(
    "mix", ["codealpaca", "codealpaca:1", "codealpaca:0", "codealpaca:0.00", "a:b", ":0.2", "c:nan"]
)
def test_what_is_no_share_is_refused(mix):
    with pytest.raises(
        InputError, match=r"mix has to be a dataset and its share, from 0.01 to 0.99: codealpaca:0.2, got"
    ):
        parse_mix(mix)


@pytest.mark.parametrize(
    ("mix", "complaint"),
    [
        ("dolly:0.2", "mix 'dolly:0.2' is the same data as the dataset here, own/talk, train"),
        ("alpaca:0.2", "own/none, train.* holds no rows to mix in; leave out --mix"),
        ("wikitext:0.2", "dataset has to be one of dailydialog"),
    ],
)
def test_what_cannot_be_mixed_in_is_said(hub, mix, complaint):
    with pytest.raises(InputError, match=complaint):
        load_conversations("dolly", mix=mix)


def test_two_stand_ins_that_are_one_are_refused():
    with pytest.raises(InputError, match="is the same data as the dataset here, questions about the Python"):
        load_conversations("dolly", "offline", mix="codealpaca:0.2")


def test_a_run_names_both_and_finds_its_held_out_text_again(hub, tmp_path):
    args = SftArguments(
        dataset="dolly", mix="codealpaca:0.2", tokenizer="byte", max_length=64, num_parameters=60_000, max_steps=2,
        per_device_train_batch_size=4, output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    folder = sft(args)
    card = (folder / "README.md").read_text()
    for line in ("| trained on | own/talk, train", "| held out | own/talk, validation"):
        (said,) = [row for row in card.splitlines() if row.startswith(line)]
        assert (
            "with 20 % of own/code, train" in said and "(licence: licence of dolly and licence of codealpaca)" in said
        )
    assert read_settings(folder)["run"]["mix"] == "codealpaca:0.2"
    assert "with 20 % of own/code" in evaluate(folder)["text"]
    with pytest.raises(InputError, match=r"mix was 'codealpaca:0.2', is 'codealpaca:0.4'"):
        sft(SftArguments(**{**vars_of(args), "mix": "codealpaca:0.4"}))
    assert Chat(folder).reply("Code 1?") is not None


def test_stage_5_mixes_too(hub, tmp_path):
    fields = lwf_files(tmp_path) | {"data": None, "dataset": "dolly", "mix": "codealpaca:0.5", "data_source": "hub"}
    prepared = prepare_data(lwf_arguments(tmp_path, **fields))
    assert prepared.train_counts.documents == 1_900 and "with 50 % of own/code" in prepared.held_out.origin


def vars_of(args: SftArguments) -> dict:
    names = (
        "dataset",
        "tokenizer",
        "max_length",
        "num_parameters",
        "max_steps",
        "per_device_train_batch_size",
        "output_dir",
    )
    return {name: getattr(args, name) for name in names}
