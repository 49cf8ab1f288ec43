import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from newllm_lib.errors import InputError
from newllm_lib.preferences import generator
from newllm_lib.preferences.generator import KINDS, PreferencePair, generator_identity, preference_pairs

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "newllm_lib" / "preferences"
TOPICS = {
    topic["name"]: topic
    for topic in map(json.loads, (TABLES / "preference_topics.jsonl").read_text(encoding="utf-8").splitlines())
}
PHRASES = json.loads((TABLES / "preference_phrases.json").read_text(encoding="utf-8"))
ASPECTS = ("definition", "use", "benefit", "caution", "tip")
JAPANESE = re.compile("[ぁ-んァ-ヶ一-龥]")
SEEDS = (0, 1, 2)


def sentences(answer: str) -> list[str]:
    return re.findall("[^。]+。?", answer)


def answers(pairs: list[PreferencePair]) -> set[str]:
    return {answer for pair in pairs for answer in (pair.chosen, pair.rejected)}


def of_kind(kind: str) -> list[PreferencePair]:
    return [pair for side in preference_pairs() for pair in side if pair.kind == kind]


def told(topic: str, sentence: str) -> bool:
    """Whether a sentence of an answer is one of the topic's, joining word and subject aside."""
    rest = re.sub("^(ただし|なお)、", "", sentence)
    return any(TOPICS[topic][aspect].endswith(rest) for aspect in ASPECTS)


def test_the_pairs_of_a_seed_are_always_the_same():
    pairs = [[asdict(pair) for pair in side] for side in preference_pairs()]
    digest = hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()
    assert digest.startswith("51b0646fab48fcd3"), "other pairs than before: raise VERSION and pin the new digest"
    assert preference_pairs(seed=1) != preference_pairs()


@pytest.mark.parametrize("seed", SEEDS)
def test_sides_share_no_topic_no_prompt_and_no_answer(seed):
    train, held_out = preference_pairs(seed=seed)
    assert (len(train), len(held_out)) == (850, 150)
    assert len({pair.prompt for pair in train + held_out}) == 1000
    topics = [{pair.topic for pair in side} for side in (train, held_out)]
    assert topics[0] | topics[1] == TOPICS.keys() and not topics[0] & topics[1]
    assert Counter(TOPICS[topic]["field"] for topic in topics[1]) == {"AI": 9, "programming": 9, "data science": 9}
    assert not answers(train) & answers(held_out)


@pytest.mark.parametrize(("count", "share", "held_out"), [(20, 0.01, 1), (333, 0.5, 166), (5400, 0.15, 810)])
def test_kinds_and_coin_are_even_for_any_count(count, share, held_out):
    sides = preference_pairs(count, 5, share)
    assert [len(side) for side in sides] == [count - held_out, held_out]
    for side in sides:
        kinds = Counter(pair.kind for pair in side)
        assert kinds.keys() <= set(KINDS) and max(kinds.values()) - min(kinds[kind] for kind in KINDS) <= 1
        longer = Counter(pair.kind for pair in side if len(pair.rejected) > len(pair.chosen))
        assert all(abs(kinds[kind] - 2 * longer[kind]) <= 1 for kind in KINDS)
        assert abs(len(side) - 2 * longer.total()) <= 1
        assert all(len(pair.rejected) != len(pair.chosen) for pair in side)


def test_questions_and_chosen_answers():
    longest = 0
    for pair in (pair for side in preference_pairs() for pair in side):
        questions = {text.format(name=pair.topic): key for key, texts in PHRASES["questions"].items() for text in texts}
        assert len(pair.prompt) <= 32
        first, *rest = sentences(pair.chosen)
        assert first == TOPICS[pair.topic][questions[pair.prompt]] and all(
            told(pair.topic, sentence) for sentence in rest
        )
        assert len(rest) <= 2 and pair.chosen.endswith("。") and len(pair.chosen) <= 90
        assert len(pair.rejected) <= (160 if pair.kind == "wrong_language" else 90)
        longest = max(longest, len(rest))
    assert longest == 2


@pytest.mark.parametrize(
    ("name", "aspect", "rest"),
    [
        ("Git", "caution", "パスワードなどの秘密の情報を記録してはいけません。"),
        ("Git", "benefit", "記録しておいた過去の状態にいつでも戻せます。"),
        ("仮説検定", "tip", "有意水準をデータを見る前に決めましょう。"),
        ("ドロップアウト", "tip", "割合は、0.1から0.5の間で試すとよいでしょう。"),
    ],
)
def test_a_following_sentence_goes_without_the_subject(name, aspect, rest):
    (topic,) = [topic for topic in generator._topics() if topic.name == name]
    assert generator._without_subject(topic, getattr(topic, aspect)) == rest


def test_off_topic_answers_are_about_another_topic_of_the_same_side_or_everyday_matters():
    for side in preference_pairs():
        names = {pair.topic for pair in side}
        off_topic = [pair for pair in side if pair.kind == "off_topic"]
        everyday = [pair for pair in off_topic if set(sentences(pair.rejected)) <= set(PHRASES["everyday"])]
        assert 0.25 < len(everyday) / len(off_topic) < 0.75
        for pair in off_topic:
            if pair not in everyday:
                (other,) = [name for name in names if name in pair.rejected]
                assert other != pair.topic and all(told(other, sentence) for sentence in sentences(pair.rejected))


def test_vague_answers_say_nothing():
    pairs = of_kind("vague")
    for pair in pairs:
        general = [text.format(name=pair.topic) for text in PHRASES["vague"]]
        parts = sentences(pair.rejected)
        assert set(parts) <= set(general) and 1 <= len(parts) == len(set(parts)) <= 4
    assert len({pair.rejected for pair in pairs}) == len(pairs)


def test_impolite_answers_are_right_between_rude_phrases():
    curt = 0
    for pair in of_kind("impolite"):
        opening = next(text for text in PHRASES["rude_openings"] if pair.rejected.startswith(text))
        closing = next(text for text in PHRASES["rude_closings"] if pair.rejected.endswith(text))
        parts = sentences(pair.rejected.removeprefix(opening).removesuffix(closing))
        assert parts
        if not all(told(pair.topic, part) for part in parts):
            curt += 1
            plain = [generator._curt(TOPICS[pair.topic][aspect]) for aspect in ASPECTS]
            parts = [re.sub("^(ただし|なお)、", "", part) for part in parts]
            assert all(any(sentence.endswith(part) for sentence in plain) for part in parts)
    assert 30 < curt < 110


@pytest.mark.parametrize(
    ("polite", "curt"),
    [
        ("表で示す図です。", "表で示す図だ。"),
        ("使う仕組みです。", "使う仕組みだ。"),
        ("とても良いです。", "とても良いです。"),  # an adjective ends another way: left alone
        ("広く使われます。", "広く使われる。"),
        ("役に立ちます。", "役に立つ。"),
        ("保証がありません。", "保証がない。"),
        ("正しく動きません。", "正しく動かない。"),
        ("書くことができません。", "書くことができない。"),
        ("時間がかかります。値を確かめましょう。", "時間がかかる。値を確かめろ。"),
        ("基準を作りましょう。", "基準を作れ。"),
        ("すぐに直しましょう。", "すぐに直せ。"),
        ("保存しましょう。", "保存しろ。"),
    ],
)
def test_polite_endings_turn_curt(polite, curt):
    assert generator._curt(polite) == curt


def test_wrong_facts_are_claims_of_the_table_about_the_topic():
    for pair in of_kind("wrong_fact"):
        claims = [text.format(name=pair.topic) for texts in PHRASES["wrong_facts"].values() for text in texts]
        first, *rest = sentences(pair.rejected)
        assert first in claims and len(rest) <= 2
        assert all(any(claim.endswith(sentence) for claim in claims) for sentence in rest)


def test_answers_cut_short_break_off_in_a_sentence():
    for pair in of_kind("cut_short"):
        *whole, broken = sentences(pair.rejected)
        broken = re.sub("^(ただし|なお)、?", "", broken)
        assert not pair.rejected.endswith(("。", "、")) and all(told(pair.topic, sentence) for sentence in whole)
        assert any(broken in TOPICS[pair.topic][aspect] for aspect in ASPECTS)


def test_repetitive_answers_repeat():
    for pair in of_kind("repetitive"):
        repeated = re.search(r"(.{5,}?)\1+", pair.rejected)
        assert repeated and len(repeated[0]) <= 4 * len(repeated[1])
        assert any(repeated[1] in TOPICS[pair.topic][aspect] for aspect in ASPECTS)


def test_wrong_language_is_english_on_the_topic():
    for pair in of_kind("wrong_language"):
        assert not JAPANESE.search(pair.rejected)
        assert re.sub(r"(?<=\.) (?=[A-Z])", "\n", pair.rejected).splitlines() == [
            sentence for sentence in TOPICS[pair.topic]["english"] if sentence in pair.rejected
        ]


def test_topics_are_well_formed():
    assert Counter(topic["field"] for topic in TOPICS.values()) == {"AI": 60, "programming": 60, "data science": 60}
    japanese = [topic[aspect] for topic in TOPICS.values() for aspect in ASPECTS]
    english = [sentence for topic in TOPICS.values() for sentence in topic["english"]]
    assert len(set(japanese)) == 900 and len(set(english)) == 540
    for name, topic in TOPICS.items():
        for aspect in ASPECTS:
            sentence = topic[aspect]
            assert re.fullmatch(rf"{re.escape(name)}[^。]+(です|ます|ません|ましょう|でしょう)。", sentence), sentence
            assert 20 <= len(sentence) <= 45, sentence
            assert [other for other in TOPICS if other in sentence] == [name], sentence
        assert all(40 <= len(sentence) <= 90 and sentence.endswith(".") for sentence in topic["english"]), name


@pytest.mark.parametrize("kind", ["wrong_language", "repetitive"])
def test_every_question_has_right_answers_longer_and_shorter_than_the_wrong_ones(kind):
    # Of these kinds there are few wrong answers; a change of the tables can leave a question without a fitting one.
    for topic in generator._topics():
        for aspect in ASPECTS:
            wrong = generator._wrong_answers(kind, topic, aspect, [], None)
            shortest, *longer = generator._right_answers(topic, aspect)
            assert any(generator._exceeds(text, shortest) for text in wrong), (topic.name, aspect)
            assert any(generator._exceeds(right, text) for text in wrong for right in longer), (topic.name, aspect)


def test_phrases_are_many_and_distinct():
    wrong = [text for texts in PHRASES["wrong_facts"].values() for text in texts]
    questions = [text for texts in PHRASES["questions"].values() for text in texts]
    tables = (PHRASES["vague"], PHRASES["rude_openings"], PHRASES["rude_closings"], wrong, questions)
    for table, least in zip(tables, (14, 12, 12, 24, 20), strict=True):
        assert len(set(table)) == len(table) >= least
    assert all(text.startswith("{name}") and text.endswith("。") for text in wrong)
    assert all(text.endswith(("。", "\N{FULLWIDTH QUESTION MARK}")) for text in questions)


def test_no_answer_has_a_doubled_ending_or_mark():
    doubled = re.compile("ですです|ますます|ですだ|ますだ|。。|、、|、。|。、|(ただし|なお)、(ただし|なお)|[{}]")
    for seed in SEEDS:
        for side in preference_pairs(1800, seed):
            assert not [it for it in side if doubled.search(f"{it.prompt}\n{it.chosen}\n{it.rejected}")]


def test_the_identity_changes_with_arguments_and_tables(monkeypatch):
    before = [generator_identity(1000, 0, 0.15), generator_identity(999, 0, 0.15), generator_identity(1000, 1, 0.15)]
    before.append(generator_identity(1000, 0, 0.2))
    assert generator_identity(1000, 0, 0.15) == before[0]
    fewer = generator._topics()[:-1]
    monkeypatch.setattr(generator, "_topics", lambda: fewer)
    before.append(generator_identity(1000, 0, 0.15))
    monkeypatch.setattr(generator, "VERSION", 0)
    before.append(generator_identity(1000, 0, 0.15))
    assert len(set(before)) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 19}, "pairs has to be between 20 and 5400, the questions there are, got 19."),
        ({"count": 5401}, "pairs has to be between 20 and 5400, the questions there are, got 5401."),
        ({"held_out_share": 0}, "has to be above 0 and at most 0.5, got 0."),
        ({"held_out_share": 0.51}, "has to be above 0 and at most 0.5, got 0.51."),
    ],
)
def test_counts_and_shares_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        preference_pairs(**arguments)
    assert str(caught.value).endswith(message)
