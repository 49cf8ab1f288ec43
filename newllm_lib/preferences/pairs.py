"""Preferences (a prompt, the answer that is wanted, one that is not): generated Japanese pairs, a dataset of the hub,
or the user's file; and the pairs as tokens."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerFast

from ..data.chat_template import conversation_ids, plain_messages
from ..data.conversations import conversation_hash, unread_note
from ..data.examples import Message, answer_turns, check_messages, columns_read, prompt_turns, whole_conversation
from ..data.files import PlacedRow, RowError, check_file, checked_row, content_hash, is_unicode, read_rows, refuser
from ..data.sources import HELD_OUT_SHARE, Origin, Splits, find_data, find_dataset
from ..data.text import same_file_note
from ..errors import InputError
from ..progress import Progress
from .generator import PreferencePair, generator_identity, preference_pairs

GENERATED = "generated-ja"
GENERATED_SHARE = 0.15  # of the topics, held out by default
PLACES_SHOWN = 3


@dataclass(frozen=True)
class Preference:
    """A choice between two answers."""

    prompt: tuple[Message, ...]  # the conversation up to the answer; the last turn is not the assistant's
    chosen: str
    rejected: str
    kind: str = ""  # the flaw of the rejected answer, where it is known
    place: str = ""  # where it stands in its file, for the user who has to mend it


@dataclass(frozen=True)
class Preferences(Origin):
    """Pairs in memory."""

    pairs: list[Preference] = field(repr=False)
    remarks: tuple[str, ...] = ()  # sentences on what was left out or cut
    encoded: list["EncodedPreference"] = field(default_factory=list, repr=False)  # by `drop_too_long`


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


def any_preference(row: dict) -> Preference:
    """A row of a prompt, by the table of columns, with `chosen` and `rejected`, each a text or turns that may repeat
    the prompt, as TRL has them; or of two whole conversations that differ in their last answer, turns or transcripts.
    Raises RowError: it is none of these, or a side is empty or no text."""
    if "prompt" not in columns_read(row) and "chosen" in row and "rejected" in row:
        (*prompt, chosen), (*other, rejected) = (whole_conversation(row, name) for name in ("chosen", "rejected"))
        if prompt != other:
            raise RowError("'chosen' and 'rejected' differ before their last answer")
        if not prompt:
            raise RowError("'chosen' has no turn before its answer")
        answers = chosen["content"], rejected["content"]
    else:
        # The check wants an answer at the end of every conversation: the prompt gets one for as long as it takes.
        *prompt, last = _conversation("prompt", [*prompt_turns(row), {"role": "assistant", "content": "?"}])
        if not prompt or last["content"] != "?":
            raise RowError("'prompt' has to end with a turn that is to be answered")
        answers = _answer(row, "chosen", prompt), _answer(row, "rejected", prompt)
    kind = row.get("kind")
    return Preference(tuple(prompt), *answers, kind if isinstance(kind, str) and is_unicode(kind) else "")


def preference_columns(row: dict) -> tuple[str, ...]:
    """The columns that `any_preference` reads of a row."""
    read = columns_read(row)
    meanings = ("system", "history", "prompt", "context") if "prompt" in read else ()
    return (*(read[meaning] for meaning in meanings if meaning in read), "chosen", "rejected", "kind")


def _conversation(column: str, messages: list[Message]) -> list[Message]:
    try:
        return check_messages(messages)
    except RowError as error:
        raise RowError(f"{column!r}: {error}") from error


def _answer(row: dict, column: str, prompt: list[Message]) -> str:
    """The last answer of a column, which may repeat the prompt before it, with or without its system turn."""
    *before, answer = _conversation(column, answer_turns(row, column))
    without_system = [turn for turn in prompt if turn["role"] != "system"]
    if before and before not in (prompt, without_system):
        raise RowError(f"{column!r} begins with another conversation than 'prompt'")
    return answer["content"]


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
    test_data: str | None = None,
) -> Splits[Preferences]:
    """The pairs to train on and those to evaluate on, which share no prompt (generated ones: no topic). Raises
    InputError: bad file or row, unknown dataset or source, or data out of reach.

    Args:
        dataset: None or "generated-ja": pairs made from `pairs_seed`; hh-rlhf, or another id on the hub ("owner/name")
            with rows of prompt, chosen and rejected.
        held_out_share: None: 15 % of generated pairs, 5 % of others.
        max_samples: rows of the training split to look at, the first ones; None takes all.
        test_data: a file that the figures are of; without it, the hub's test split, or what is evaluated on.
    """
    if max_samples is not None and max_samples < 1:
        raise InputError(f"max_samples has to be at least 1, got {max_samples}.")
    if held_out_share is not None and not 0 < held_out_share < 1:
        raise InputError(f"held_out_share has to lie between 0 and 1, got {held_out_share}.")
    if data is None and data_source in ("auto", "hub", "offline") and dataset in (None, GENERATED):
        share = GENERATED_SHARE if held_out_share is None else held_out_share
        test = None if test_data is None else _of_file(test_data, "test_data", skip_bad_rows)
        return replace(_generated(pairs, pairs_seed, share, max_samples), test=test)
    entry = None
    if data is None and dataset is not None:
        if dataset != "hh-rlhf" and "/" not in dataset:
            known = f"{GENERATED}, hh-rlhf, or the id of a dataset on the hub (owner/name)"
            raise InputError(f"dataset has to be {known}, got {dataset!r}.")
        entry = replace(find_dataset(dataset), offline=None)  # conversations, which stand in elsewhere, are no pairs
    found = find_data(dataset, entry, data_source, data)
    notes = [found.note]
    if found.source == "file":
        sides = {"train": _of_file(data, "data", skip_bad_rows, max_samples)}
        notes.append(unread_note(read_rows(check_file(data, "data"), "data"), preference_columns))
    else:
        most = {"train": max_samples}
        sides = {name: _read(split, split.read(0), most.get(name)) for name, split in found.splits.items()}
    if test_data is not None:
        sides["test"] = _of_file(test_data, "test_data", skip_bad_rows)
        notes.append(same_file_note(sides["train"].identity, sides["test"].identity, ("data", "test_data")))
    if eval_data is not None:
        sides["validation"] = _of_file(eval_data, "eval_data", skip_bad_rows)
        notes.append(same_file_note(sides["train"].identity, sides["validation"].identity))
    if "validation" not in sides:
        share = HELD_OUT_SHARE if held_out_share is None else held_out_share
        sides |= _hold_out(sides["train"], share)
        notes.append(f"{share:.0%} of the prompts are held out for evaluation.")
    remedies = {"train": "give more rows", "validation": "give --eval_data or a larger --held_out_share"}
    for name, remedy in {**remedies, "test": "give another --test_data"}.items():
        if name in sides and not sides[name].pairs:
            why = f"{sides[name].origin} holds no pair; {remedy}. {' '.join(sides[name].remarks)}"
            raise InputError(why.strip(), "NL-403")
    both = sides["train"], sides["validation"]
    return Splits(*both, found.source, " ".join(filter(None, notes)), test=sides.get("test"))


def _generated(count: int, seed: int, share: float, max_samples: int | None) -> Splits[Preferences]:
    def side(name: str, pairs: list[PreferencePair]) -> Preferences:
        origin = f"{len(pairs):,} generated Japanese pairs, {name}, seed {seed}"
        identity = f"{generator_identity(count, seed, share)}/{name}/{len(pairs)}"
        items = [Preference(({"role": "user", "content": p.prompt},), p.chosen, p.rejected, p.kind) for p in pairs]
        return Preferences(origin, "MIT, as this package", identity, items)

    train, held_out = preference_pairs(count, seed, share)
    note = f"{share:.0%} of the topics are held out for evaluation."
    return Splits(side("train", train[:max_samples]), side("held out", held_out), "generated", note)


def _of_file(path: str, name: str, skip_bad_rows: bool, max_samples: int | None = None) -> Preferences:
    file = check_file(path, name, rows_of="pairs")
    source = Origin(f"file {file.name}", "as the file's owner says", f"file/{content_hash(file)}")
    return _read(source, read_rows(file, name), max_samples, refuser(file, name, skip_bad_rows))


def _read(
    source: Origin,
    rows: Iterable[PlacedRow],
    max_samples: int | None,
    refuse: Callable[[str, RowError], None] = lambda place, error: None,
) -> Preferences:
    """The first pairs of the rows. `refuse` may raise; without it, a bad row is left out, with its complaint: on the
    hub, where the user cannot mend it."""
    pairs, complaints = [], []
    for place, row in itertools.islice(rows, max_samples):
        try:
            pairs.append(replace(any_preference(checked_row(row)), place=place))
        except RowError as error:
            refuse(place, error)
            complaints.append(f"{place}: {error}")
    remarks = (f"{len(complaints):,} rows do not fit and were left out ({complaints[0]}).",) if complaints else ()
    identity = f"{source.identity}/{max_samples}" if max_samples else source.identity
    return Preferences(source.origin, source.licence, identity, pairs, remarks)


def _hold_out(whole: Preferences, share: float) -> dict[str, Preferences]:
    """Both sides by what the prompt says, so that equal prompts are on the same one."""
    parts: dict[str, list[Preference]] = {"train": [], "held out": []}
    for pair in whole.pairs:
        is_held_out = conversation_hash(list(pair.prompt)) % 10_000 < share * 10_000
        parts["held out" if is_held_out else "train"].append(pair)
    train, held_out = (
        replace(whole, origin=f"{whole.origin}, {name}", identity=f"{whole.identity}/{share} {name}", pairs=pairs)
        for name, pairs in parts.items()
    )
    return {"train": train, "validation": replace(held_out, remarks=())}  # what was left out is reported once


def encode_preferences(
    pairs: Sequence[Preference], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> Iterator[EncodedPreference]:
    """Pairs as the model's chat template has them, answers cut at `max_length` tokens of prompt and answer together; a
    prompt that is as long by itself leaves no answer."""
    for pair in pairs:
        answers = ((), (pair.chosen,), (pair.rejected,))
        prompt, chosen, rejected = (_token_ids(pair, tokenizer, *answer) for answer in answers)
        # The answers begin where one of them first differs from the prompt.
        at_each_place = zip(prompt, chosen, rejected, strict=False)
        start = sum(1 for _ in itertools.takewhile(lambda ids: len(set(ids)) == 1, at_each_place))
        is_cut = max(len(chosen), len(rejected)) > max_length
        yield EncodedPreference(prompt[:start], chosen[start:max_length], rejected[start:max_length], pair.kind, is_cut)


def _token_ids(pair: Preference, tokenizer: PreTrainedTokenizerFast, *answer: str) -> list[int]:
    """The prompt with an answer, or up to where one begins, without special tokens that the texts spell out."""
    turns = [{"role": "assistant", "content": text} for text in answer]
    return conversation_ids(plain_messages([*pair.prompt, *turns], tokenizer), tokenizer, is_turn_open=not answer)


def sample_pairs(pairs: Iterable[EncodedPreference], max_tokens: int) -> list[EncodedPreference]:
    """Evenly spaced pairs with about `max_tokens` tokens of answers, at least one; always the same ones."""
    pairs = list(pairs)
    tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    return pairs[:: max(-(-tokens // max_tokens), 1)]


def drop_too_long(side: Preferences, tokenizer: PreTrainedTokenizerFast, max_length: int, skips: bool) -> Preferences:
    """Without the pairs whose prompt leaves no room for an answer (with `skips` false the first one is refused), and
    without those whose answers are equal as far as there is room; the remarks have these, and others that are cut.
    Raises InputError: naming the line, or there is no pair left."""
    complaint = f"the prompt alone fills max_length {max_length}"
    kept, long, equal = [], [], []
    each = Progress(side.pairs, desc="preparing the pairs", unit="pairs")
    for pair, encoded in zip(each, encode_preferences(side.pairs, tokenizer, max_length), strict=True):
        if len(encoded.prompt) >= max_length:
            if not skips:
                remedy = "choose a larger --max_length, or --skip_bad_rows leaves such rows out"
                raise InputError(f"{side.origin}, {pair.place}: {complaint}; {remedy}.")
            long.append(pair.place)
        elif encoded.chosen == encoded.rejected:
            equal.append(pair.place)
        else:
            kept.append((pair, encoded))
    if not kept:
        why = f"{side.origin} has no prompt shorter than max_length {max_length}"
        if equal:
            why = f"in all {len(equal):,} pairs of {side.origin} both answers are the same within {max_length} tokens"
        raise InputError(f"{why}; choose a larger max_length, or other data.")
    remarks = list(side.remarks)
    if long:
        remarks.append(f"{len(long):,} rows do not fit and were left out ({long[0]}: {complaint}).")
    if equal:
        places = ", ".join([*equal[:PLACES_SHOWN], *(["..."] if len(equal) > PLACES_SHOWN else [])])
        remarks.append(f"{len(equal):,} pairs are equal within {max_length} tokens and were left out ({places}).")
    pairs, encoded = map(list, zip(*kept, strict=True))
    if cut := sum(pair.is_cut for pair in encoded):
        remarks.append(f"{cut:,} pairs have an answer that is cut at {max_length} tokens.")
    return replace(side, pairs=pairs, remarks=tuple(remarks), encoded=encoded)
