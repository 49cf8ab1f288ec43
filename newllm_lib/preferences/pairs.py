"""Where a run's preferences come from: generated Japanese pairs, a dataset of the hub, or the user's file; and the
pairs as tokens."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerFast

from ..data.catalogue import find_dataset
from ..data.chat_template import conversation_ids
from ..data.conversations import conversation_hash, unread_in_file
from ..data.files import bad_row, check_file, content_hash, read_rows
from ..data.hub import HubSplit, first_opened
from ..data.rendering import plain_messages
from ..data.rows import checked_row
from ..data.text import HELD_OUT_SHARE, check_source, same_file_note
from ..data.turns import RowError
from ..errors import InputError
from .generator import PreferencePair, generator_identity, preference_pairs
from .rows import IdenticalSides, Preference, any_preference, preference_columns

GENERATED = "generated-ja"
GENERATED_SHARE = 0.15  # of the topics, held out where nobody says how many
PLACES_TOLD = 3


@dataclass(frozen=True)
class Preferences:
    """Pairs in memory.

    Attributes:
        origin, licence, identity: as of `Conversations`.
        identical: places of rows whose sides are the same; they are left out.
        complaints: about rows that were left out because they are no preference.
        cut: sentences on answers that are cut.
    """

    origin: str
    licence: str
    identity: str
    pairs: list[Preference] = field(repr=False)
    identical: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()

    def remarks(self) -> list[str]:
        """What was left out, a sentence each."""
        sentences = []
        if self.identical:
            sentences.append(
                f"{len(self.identical):,} pairs have two identical sides and were left out ({_some(self.identical)})."
            )
        if self.complaints:
            sentences.append(f"{len(self.complaints):,} rows do not fit and were left out ({self.complaints[0]}).")
        return [*sentences, *self.cut]


@dataclass(frozen=True)
class PreferenceSplits:
    train: Preferences
    validation: Preferences
    source: str  # "generated", "hub" or "file": what "auto" came to
    note: str = ""


@dataclass(frozen=True)
class EncodedPreference:
    """Token ids of a pair: the prompt up to where the answer begins, and both answers with their end of turn."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    kind: str
    is_cut: bool = False  # an answer has been cut

    @property
    def length(self) -> int:
        """Tokens of the prompt with the longer answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def load_preferences(
    dataset: str | None = None,
    data_source: str = "auto",
    data: str | None = None,
    eval_data: str | None = None,
    skip_bad_rows: bool = False,
    pairs: int = 1000,
    pairs_seed: int = 0,
    held_out_share: float | None = None,
    max_samples: int | None = None,
) -> PreferenceSplits:
    """The pairs to train on and those to evaluate on, which share no prompt (generated ones: no topic).

    Args:
        dataset: None or "generated-ja": pairs made from `pairs_seed`; hh-rlhf, or another id on the hub ("owner/name")
            with rows of prompt, chosen and rejected.
        held_out_share: None: 15 % of generated pairs, 5 % of others.
        max_samples: rows of the training split to look at, the first ones; None takes all.

    Raises:
        InputError: bad file or row, unknown dataset or source, or data out of reach.
    """
    check_source(data_source, data)
    if max_samples is not None and max_samples < 1:
        raise InputError(f"max_samples has to be at least 1, got {max_samples}.")
    if held_out_share is not None and not 0 < held_out_share < 1:
        raise InputError(f"held_out_share has to lie between 0 and 1, got {held_out_share}.")
    if data is not None:
        train = _of_file(data, "data", skip_bad_rows, max_samples)
        splits = PreferenceSplits(train, None, "file", unread_in_file(data, preference_columns))
    elif dataset in (None, GENERATED):
        share = GENERATED_SHARE if held_out_share is None else held_out_share
        return _generated(pairs, pairs_seed, share, max_samples)
    else:
        splits = _of_hub(dataset, data_source, max_samples)
    if eval_data is not None:
        validation = _of_file(eval_data, "eval_data", skip_bad_rows)
        note = f"{splits.note} {same_file_note(splits.train.identity, validation.identity)}".strip()
        splits = replace(splits, validation=validation, note=note)
    if splits.validation is None:
        share = HELD_OUT_SHARE if held_out_share is None else held_out_share
        train, validation = _hold_out(splits.train, share)
        note = f"{splits.note} {share:.0%} of the prompts are held out for evaluation.".strip()
        splits = replace(splits, train=train, validation=validation, note=note)
    remedies = {"give more rows": splits.train, "give --eval_data or a larger --held_out_share": splits.validation}
    for remedy, side in remedies.items():
        if not side.pairs:
            raise InputError(f"{side.origin} holds no pair; {remedy}. {' '.join(side.remarks())}".strip(), "NL-403")
    return splits


def _generated(count: int, seed: int, share: float, max_samples: int | None) -> PreferenceSplits:
    def side(name: str, pairs: list[PreferencePair]) -> Preferences:
        return Preferences(
            f"{len(pairs):,} generated Japanese pairs, {name}, seed {seed}",
            "MIT, as this package",
            f"{generator_identity(count, seed, share)}/{name}/{len(pairs)}",
            [
                Preference(({"role": "user", "content": pair.prompt},), pair.chosen, pair.rejected, pair.kind)
                for pair in pairs
            ],
        )

    train, held_out = preference_pairs(count, seed, share)
    return PreferenceSplits(
        side("train", train[:max_samples]),
        side("held out", held_out),
        "generated",
        f"{share:.0%} of the topics are held out for evaluation.",
    )


def _of_file(path: str, name: str, skip_bad_rows: bool, max_samples: int | None = None) -> Preferences:
    file = check_file(path, name)
    if file.suffix.lower() == ".txt":
        raise InputError(f"{name} {path!r} is running text; pairs come as .jsonl, .json, .csv or .parquet.")
    rows = itertools.islice(read_rows(file, name), max_samples)

    def refuse(place: str, error: RowError) -> None:
        if not skip_bad_rows:
            raise bad_row(file, name, place, error) from error

    identity = f"file/{content_hash(file)}{f'/{max_samples}' if max_samples else ''}"
    return Preferences(f"file {file.name}", "as the file's owner says", identity, *_read(rows, refuse))


def _of_hub(dataset: str, data_source: str, max_samples: int | None) -> PreferenceSplits:
    if dataset != "hh-rlhf" and "/" not in dataset:
        raise InputError(
            f"dataset has to be {GENERATED}, hh-rlhf, or the id of a dataset on the hub (owner/name), got {dataset!r}."
        )
    entry = find_dataset(dataset)
    if data_source == "offline":
        raise InputError(f"dataset {dataset!r} is on the hub only; leave --data_source offline or --dataset out.")
    opened, problem = first_opened(entry)
    if opened is None:
        raise InputError(
            f"dataset {dataset!r} could not be had from the hub ({problem}); check the network and the name, or leave "
            "--dataset out for generated pairs."
        )

    def preferences(split: HubSplit, count: int | None) -> Preferences:
        # The user cannot mend rows of the hub: a bad one is left out, with its complaint.
        rows = ((f"row {number}", row) for number, row in enumerate(itertools.islice(split.read(), count), start=1))
        identity = f"{split.identity}{f'/{count}' if count else ''}"
        return Preferences(split.origin, entry.licence, identity, *_read(rows, lambda place, error: None))

    validation = preferences(opened["validation"], None) if "validation" in opened else None
    return PreferenceSplits(preferences(opened["train"], max_samples), validation, "hub", problem)


def _read(
    rows: Iterable[tuple[str, object]], refuse: Callable[[str, RowError], None]
) -> tuple[list[Preference], tuple[str, ...], tuple[str, ...]]:
    """(pairs, places of identical ones, complaints about bad ones). `refuse` may raise."""
    pairs, identical, complaints = [], [], []
    for place, row in rows:
        try:
            pairs.append(replace(any_preference(checked_row(row)), place=place))
        except IdenticalSides:
            identical.append(place)
        except RowError as error:
            refuse(place, error)
            complaints.append(f"{place}: {error}")
    return pairs, tuple(identical), tuple(complaints)


def _hold_out(whole: Preferences, share: float) -> tuple[Preferences, Preferences]:
    """(for training, held out): by what the prompt says, so that equal prompts are on the same side."""
    held_out = [conversation_hash(list(pair.prompt)) % 10_000 < share * 10_000 for pair in whole.pairs]

    def part(name: str, wanted: bool) -> Preferences:
        kept = [pair for pair, is_held_out in zip(whole.pairs, held_out, strict=True) if is_held_out == wanted]
        return replace(whole, origin=f"{whole.origin}, {name}", identity=f"{whole.identity}/{share} {name}", pairs=kept)

    train, validation = part("train", False), part("held out", True)
    return train, replace(validation, identical=(), complaints=())  # told once


def encode_preferences(
    pairs: Sequence[Preference], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> Iterator[EncodedPreference]:
    """Pairs as the model's chat template has them, answers cut at `max_length` tokens of prompt and answer together.
    The prompt of every pair has to be shorter than that: see `drop_too_long`."""
    for pair in pairs:
        prompt, chosen, rejected = (_token_ids(tokenizer, messages) for messages in conversations(pair, tokenizer))
        # Up to where both answers agree with the prompt: what follows is scored.
        start = len(prompt)
        while prompt[:start] != chosen[:start] or prompt[:start] != rejected[:start]:
            start -= 1
        is_cut = max(len(chosen), len(rejected)) > max_length
        yield EncodedPreference(prompt[:start], chosen[start:max_length], rejected[start:max_length], pair.kind, is_cut)


def sample_pairs(pairs: Iterable[EncodedPreference], max_tokens: int) -> list[EncodedPreference]:
    """Evenly spaced pairs with about `max_tokens` tokens of answers, at least one; always the same ones."""
    pairs = list(pairs)
    tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    return pairs[:: max(-(-tokens // max_tokens), 1)]


def conversations(pair: Preference, tokenizer: PreTrainedTokenizerFast) -> tuple[list, list, list]:
    """(the prompt, the prompt with the chosen answer, with the rejected one) as messages, without special tokens that
    somebody has written out."""
    prompt = list(pair.prompt)
    answers = ({"role": "assistant", "content": side} for side in (pair.chosen, pair.rejected))
    return tuple(plain_messages(messages, tokenizer) for messages in (prompt, *([*prompt, turn] for turn in answers)))


def _token_ids(tokenizer: PreTrainedTokenizerFast, messages: list) -> list[int]:
    return conversation_ids(messages, tokenizer, is_turn_open=messages[-1]["role"] != "assistant")


def drop_too_long(side: Preferences, tokenizer: PreTrainedTokenizerFast, max_length: int, skips: bool) -> Preferences:
    """Without the pairs whose prompt leaves no room for an answer (with `skips` false the first one is refused), and
    without those whose answers are equal as far as there is room; `cut` tells of these and of others that are cut.

    Raises:
        InputError: naming the line, or there is no pair left.
    """
    complaint = f"the prompt alone fills max_length {max_length}"
    complaints, kept = [], []
    for pair in side.pairs:
        is_too_long = len(_token_ids(tokenizer, conversations(pair, tokenizer)[0])) >= max_length
        if is_too_long and not skips:
            raise InputError(
                f"{side.origin}, {pair.place}: {complaint}; choose a larger --max_length, or --skip_bad_rows leaves "
                "such rows out."
            )
        if is_too_long:
            complaints.append(f"{pair.place}: {complaint}")
        else:
            kept.append(pair)
    if not kept:
        raise InputError(f"{side.origin} has no prompt shorter than max_length {max_length}; choose a larger one.")
    encoded = list(zip(kept, encode_preferences(kept, tokenizer, max_length), strict=True))
    equal = tuple(pair.place for pair, item in encoded if item.chosen == item.rejected)
    encoded = [(pair, item) for pair, item in encoded if item.chosen != item.rejected]
    if not encoded:
        raise InputError(
            f"in all {len(kept):,} pairs of {side.origin} both answers are the same within max_length {max_length}; "
            "choose a larger one."
        )
    cut = []
    if equal:
        cut = [f"{len(equal):,} pairs are equal within {max_length} tokens and were left out ({_some(equal)})."]
    if number := sum(item.is_cut for _, item in encoded):
        cut.append(f"{number:,} pairs have an answer that is cut at {max_length} tokens.")
    return replace(
        side,
        pairs=[pair for pair, _ in encoded],
        complaints=(*side.complaints, *complaints),
        cut=tuple(cut),
    )


def _some(places: Sequence[str]) -> str:
    return ", ".join(places[:PLACES_TOLD]) + (", ..." if len(places) > PLACES_TOLD else "")
