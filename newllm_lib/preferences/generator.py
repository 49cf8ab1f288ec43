"""Japanese preference pairs about AI, programming and data science, made from a seed: a question about one aspect of a
topic, a right answer, and one that is wrong in a known way.

The sentences are in `preference_topics.jsonl` and `preference_phrases.json`. Whether the wrong answer is the longer one
is drawn by a fair coin, the same for every kind of flaw, so that length says nothing about which answer is right.
"""

import functools
import hashlib
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, NamedTuple

from ..errors import InputError

VERSION = 1  # to be raised when the same tables come to mean other pairs
MIN_PAIRS = 20
MAX_CHARACTERS = 90  # of a Japanese answer
MAX_ENGLISH_CHARACTERS = 160
# After the topic's name; a sentence that follows another one goes without both ("Gitは、", "Gitを使うと、").
SUBJECT = "(?:(?:は|では|には|の)、?|を[^、]*、)"
DRAWS = 24  # wrong answers to choose from
PHRASE_END = "[を、]|(?<=[一-龥ァ-ヶー])[がに]"  # where a sentence falls into parts
MIN_CUT = 5  # characters of a broken-off sentence that are there, and that are missing


class Topic(NamedTuple):
    """A line of the first table: its Japanese `name`, and a right sentence on each aspect."""

    field: str
    name: str
    definition: str
    use: str
    benefit: str
    caution: str
    tip: str
    english: tuple[str, ...]


@dataclass(frozen=True)
class PreferencePair:
    """A question, a right answer and one with a flaw: `kind` is one of KINDS, `topic` the name in the prompt."""

    prompt: str
    chosen: str
    rejected: str
    kind: str
    topic: str


def preference_pairs(
    count: int = 1000, seed: int = 0, held_out_share: float = 0.15
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """(pairs to train on, pairs held out), together `count`, with as many of each kind as of any other and no prompt
    twice. The sides share no topic, and so no prompt and no sentence about a topic. `held_out_share` is that of the
    topics of each field, at least one, and of the pairs. The same on every machine. Raises InputError: fewer pairs than
    MIN_PAIRS or more than there are questions, or a share outside (0, 0.5]."""
    most = len(_topics()) * sum(map(len, _phrases()["questions"].values()))
    if not MIN_PAIRS <= count <= most:
        raise InputError(f"pairs has to be between {MIN_PAIRS} and {most}, the questions there are, got {count}.")
    if not 0 < held_out_share <= 0.5:
        raise InputError(f"held_out_share of generated pairs has to be above 0 and at most 0.5, got {held_out_share}.")
    rng = random.Random(seed)
    train, held_out = [], []
    for _, group in itertools.groupby(_topics(), key=lambda topic: topic.field):
        topics = list(group)
        rng.shuffle(topics)
        boundary = max(round(len(topics) * held_out_share), 1)
        held_out += topics[:boundary]
        train += topics[boundary:]
    num_held_out = max(round(count * len(held_out) / len(_topics())), 1)
    used: set[str] = set()  # wrong answers that are about no topic in particular
    return _side(train, count - num_held_out, used, rng), _side(held_out, num_held_out, used, rng)


def generator_identity(count: int, seed: int, held_out_share: float) -> str:
    """Changes when the pairs do."""
    constants = (VERSION, KINDS, MAX_CHARACTERS, MAX_ENGLISH_CHARACTERS, SUBJECT, DRAWS, PHRASE_END, MIN_CUT)
    tables = json.dumps([_topics(), _phrases()], ensure_ascii=False)
    digest = hashlib.sha256(f"{constants}{tables}".encode()).hexdigest()[:16]
    return f"japanese preference pairs/{VERSION}/{digest}/{count}/{seed}/{held_out_share}"


@functools.lru_cache(maxsize=1)
def _topics() -> tuple[Topic, ...]:
    lines = (files(__package__) / "preference_topics.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Topic(**{**row, "english": tuple(row["english"])}) for row in map(json.loads, lines))


@functools.lru_cache(maxsize=1)
def _phrases() -> dict[str, Any]:
    return json.loads((files(__package__) / "preference_phrases.json").read_text(encoding="utf-8"))


def _side(topics: list[Topic], count: int, used: set[str], rng: random.Random) -> list[PreferencePair]:
    """`count` pairs about the topics, none with a wrong answer of `used`, which grows."""
    questions = itertools.islice(_questions(topics, rng), count)
    flaws = _flaws(count, rng)
    return [_pair(topics, question, flaw, used, rng) for question, flaw in zip(questions, flaws, strict=True)]


def _questions(topics: list[Topic], rng: random.Random) -> Iterator[tuple[Topic, str, str]]:
    """Every (topic, aspect, prompt) once, in a random order whose beginnings are even over topics and aspects."""
    by_topic = []
    for topic in topics:
        rounds = []
        phrasings = {aspect: rng.sample(texts, len(texts)) for aspect, texts in _phrases()["questions"].items()}
        for texts in zip(*phrasings.values(), strict=True):
            turns = list(zip(phrasings, texts, strict=True))
            rounds += rng.sample(turns, len(turns))
        by_topic.append([(topic, aspect, text.format(name=topic.name)) for aspect, text in rounds])
    for turn in zip(*by_topic, strict=True):
        yield from rng.sample(turn, len(turn))


def _flaws(count: int, rng: random.Random) -> list[tuple[str, bool]]:
    """(kind, whether the rejected answer is the longer one), both as even as `count` allows, in a random order."""
    kinds = rng.sample(KINDS, len(KINDS))
    first = rng.random() < 0.5
    # Two turns through the kinds: the coin alternates from kind to kind, and from turn to turn as their number is odd.
    coins = itertools.cycle((first, not first))
    flaws = list(zip(itertools.islice(itertools.cycle(kinds), count), coins, strict=False))
    return rng.sample(flaws, len(flaws))


def _pair(
    topics: list[Topic], question: tuple[Topic, str, str], flaw: tuple[str, bool], used: set[str], rng: random.Random
) -> PreferencePair:
    """The answers are as long as two right ones: the shortest and one of the others."""
    (topic, aspect, prompt), (kind, is_longer) = question, flaw
    short, *longer = _right_answers(topic, aspect)
    others = [other for other in topics if other is not topic]
    wrong = [text for text in _wrong_answers(kind, topic, aspect, others, rng) if text not in used]
    for long in rng.sample(longer, len(longer)):
        chosen, counterpart = (short, long) if is_longer else (long, short)
        if fitting := [text for text in wrong if _exceeds(*((text, chosen) if is_longer else (chosen, text)))]:
            rejected = min(fitting, key=lambda text: abs(_bytes(text) - _bytes(counterpart)))
            if kind in ("vague", "off_topic", "repetitive"):
                used.add(rejected)
            return PreferencePair(prompt, chosen, rejected, kind, topic.name)
    raise AssertionError(f"no {kind} answer has the length it should: {prompt}, {is_longer}")


def _exceeds(text: str, other: str) -> bool:
    """Whether it is longer in characters and in bytes."""
    return len(text) > len(other) and _bytes(text) > _bytes(other)


def _bytes(text: str) -> int:
    return len(text.encode())


@functools.cache
def _right_answers(topic: Topic, aspect: str) -> tuple[str, ...]:
    """The sentence on the aspect, then with one or two more behind it."""
    sentences = {key: getattr(topic, key) for key in _phrases()["questions"]}
    sentences |= {f"then_{key}": _without_subject(topic, sentence) for key, sentence in sentences.items()}
    answers = (form.format_map(sentences) for form in _phrases()["right_answers"][aspect])
    return tuple(answer for answer in answers if len(answer) <= MAX_CHARACTERS)


def _without_subject(topic: Topic, sentence: str) -> str:
    return re.sub(f"^{re.escape(topic.name)}{SUBJECT}", "", sentence)


# Wrong answers of a kind to a question about an aspect of a topic; `others`: topics of the same side.


def _off_topic(topic: Topic, aspect: str, others: list[Topic], rng: random.Random) -> Iterator[str]:
    """A right answer to the same question about another topic, or one to three remarks on everyday matters."""
    if rng.random() < 0.5:
        table = _phrases()["everyday"]
        yield from ("".join(rng.sample(table, rng.randint(1, 3))) for _ in range(DRAWS))
    else:
        for other in rng.sample(others, min(len(others), 4)):
            yield from _right_answers(other, aspect)


def _vague(topic: Topic, aspect: str, others: list[Topic], rng: random.Random) -> Iterator[str]:
    """One to four generalities, of which the first may name the topic."""
    table = _phrases()["vague"]
    named, unnamed = ([text for text in table if ("{name}" in text) is wanted] for wanted in (True, False))
    for _ in range(DRAWS):
        first = [rng.choice(named).format(name=topic.name)] if rng.random() < 0.5 else []
        yield "".join([*first, *rng.sample(unnamed, rng.randint(1 - len(first), 4 - len(first)))])


def _impolite(topic: Topic, aspect: str, others: list[Topic], rng: random.Random) -> Iterator[str]:
    """A right answer between two rude phrases, half of the times curt itself."""
    for _ in range(DRAWS):
        shortest, *longer = _right_answers(topic, aspect)
        answer = _without_subject(topic, shortest) if rng.random() < 0.5 else rng.choice([shortest, *longer])
        answer = _curt(answer) if rng.random() < 0.5 else answer
        yield rng.choice(_phrases()["rude_openings"]) + answer + rng.choice(_phrases()["rude_closings"])


@functools.cache
def _curt(answer: str) -> str:
    """The answer with the polite endings of its sentences turned into plain ones."""
    sentences = _sentences(answer)
    for index, sentence in enumerate(sentences):
        changed = (re.subn(polite, curt, sentence) for polite, curt in _phrases()["curt_endings"])
        sentences[index] = next((curt for curt, number in changed if number), sentence)
    return "".join(sentences)


def _sentences(answer: str) -> list[str]:
    return [f"{sentence}。" for sentence in answer.split("。")[:-1]]


def _wrong_fact(topic: Topic, aspect: str, others: list[Topic], rng: random.Random) -> Iterator[str]:
    """One to three claims that are true of no topic, the first about the aspect asked for."""
    table = _phrases()["wrong_facts"]
    for _ in range(DRAWS):
        aspects = rng.sample([other for other in table if other != aspect], rng.randint(0, 2))
        first, *rest = (rng.choice(table[chosen]).format(name=topic.name) for chosen in (aspect, *aspects))
        yield "".join([first, *(rest if rng.random() < 0.3 else [_without_subject(topic, claim) for claim in rest])])


def _cut_short(topic: Topic, aspect: str, others: list[Topic], rng: random.Random) -> Iterator[str]:
    """A right answer that breaks off within its last sentence."""
    for _ in range(DRAWS):
        answer = rng.choice(_right_answers(topic, aspect))
        start = len(answer) - len(_sentences(answer)[-1])
        yield answer[: rng.randint(start + MIN_CUT, len(answer) - MIN_CUT)].rstrip("、")


def _repetitive(topic: Topic, aspect: str, others: list[Topic], rng: random.Random) -> Iterator[str]:
    """A right sentence said two to four times, or a part of it again and again: its beginning, its end, or what is
    left without its subject."""
    sentence = getattr(topic, aspect)
    rest = _without_subject(topic, sentence)
    subject = sentence.removesuffix(rest)
    cuts = [match.end() for match in re.finditer(PHRASE_END, rest) if MIN_CUT < match.end() < len(rest) - MIN_CUT]
    for times in (2, 3, 4):
        yield from (sentence * times, rest * times, subject + rest * times)
        for cut in cuts:
            starts, end, ends = rest[:cut] * (times - 1), rest[cut:], rest[cut:] * (times - 1)
            yield from (end + ends, rest + ends, sentence + ends, starts + rest, subject + starts + rest)


def _wrong_language(topic: Topic, aspect: str, others: list[Topic], rng: random.Random) -> Iterator[str]:
    """One to three English sentences on the topic."""
    for number in (1, 2, 3):
        yield from map(" ".join, itertools.combinations(topic.english, number))


WRONG_ANSWERS: dict[str, Callable[[Topic, str, list[Topic], random.Random], Iterator[str]]] = {
    "off_topic": _off_topic, "vague": _vague, "impolite": _impolite, "wrong_fact": _wrong_fact,
    "cut_short": _cut_short, "repetitive": _repetitive, "wrong_language": _wrong_language,
}  # fmt: skip
KINDS = tuple(WRONG_ANSWERS)


def _wrong_answers(kind: str, topic: Topic, aspect: str, others: list[Topic], rng: random.Random) -> list[str]:
    """Possible answers with a flaw, as far as they are not too long."""
    most = MAX_ENGLISH_CHARACTERS if kind == "wrong_language" else MAX_CHARACTERS
    return [answer for answer in WRONG_ANSWERS[kind](topic, aspect, others, rng) if len(answer) <= most]
