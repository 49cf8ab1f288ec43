"""500 random sentences of 252 words: a text in which chance decides nearly every word. What a model scores on it is the
figure under which a model has learned anything; the published one is a perplexity of 21.4."""

import random

SENTENCES, HELD_OUT, SEED = 500, 100, 1
WORDS = {
    "trait": "quiet young patient clever old brave gentle proud honest lonely careful cheerful famous hungry "
    "humble jolly kind lazy lively modest nervous noble polite rich serious shy silly strict tall tired "
    "weary",
    "who": "baker painter nurse student farmer sailor teacher tailor judge singer doctor gardener pilot poet "
    "cook soldier miner dancer clerk guard hunter weaver potter actor butcher carpenter driver lawyer "
    "monk porter scholar",
    "does": "paint repair discover collect clean borrow check count cover deliver enjoy explain fill gather gain "
    "print inspect invent join kick lift mark mend need order pack pick plant question record request "
    "sort visit weigh",
    "kind": "broken golden heavy narrow simple wooden ancient bright common dusty empty fancy giant hollow iron "
    "local modern odd plain rare secret useful",
    "thing": "boxes lamps letters maps tools windows baskets bottles candles chairs clocks coins doors drums "
    "engines flags gifts jars keys ladders mirrors ropes",
    "place": "harbour library market station garden kitchen museum forest village bridge castle factory hospital "
    "island meadow office tower",
    "time": "yesterday today tomorrow often rarely always sometimes recently soon daily weekly monthly early late "
    "again tonight nowadays once twice usually eventually",
    "link": "because although while when if unless since after before until",
    "helps": "helps pleases teaches saves protects feeds warms surprises changes unites",
    "whom": "people children neighbours time nature families hearts friends lives nations",
    "and": "and but so yet or",
}
# What follows a simple sentence, and in how many of the sentences.
ENDINGS = {"": 80, "time": 100, "place": 100, "effect": 120, "and": 60, "place time effect": 40}


def random_sentences(held_out: bool) -> list[str]:
    """The 400 sentences to train on, or the 100 that are held out; the same ones on every machine."""
    draw, words = random.Random(SEED), {name: text.split() for name, text in WORDS.items()}

    def pair(first: str, second: str) -> str:
        """Two words that always go together."""
        return " ".join(draw.choice(list(zip(words[first], words[second], strict=True))))

    def simple() -> str:
        does = draw.choice(words["does"]) + draw.choice(("s", "ed"))
        return f"{draw.choice(('the', 'a'))} {pair('trait', 'who')} {does} {pair('kind', 'thing')}"

    more = {
        "time": lambda: draw.choice(words["time"]),
        "place": lambda: f"{draw.choice(('at', 'in'))} the {draw.choice(words['place'])}",
        "effect": lambda: f"{draw.choice(words['link'])} it {pair('helps', 'whom')}",
        "and": lambda: f"{draw.choice(words['and'])} {simple()}",
    }
    endings = (ending.split() for ending, count in ENDINGS.items() for _ in range(count))
    found = [" ".join([simple(), *(more[part]() for part in parts)]) for parts in endings]
    draw.shuffle(found)
    return found[-HELD_OUT:] if held_out else found[:-HELD_OUT]
