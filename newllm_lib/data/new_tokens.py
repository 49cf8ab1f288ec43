"""Pieces of text that a tokenizer takes apart and that are worth tokens of their own, such as Japanese ones for a
tokenizer that has seen English only."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

MIN_USES = 25  # of a piece: a token that is hardly ever learned is worse than the bytes it stands for
STEP = 0.9  # of the pieces are kept at least when too rare ones go, for their parts take over what they stood for


def new_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, most: int) -> list[str]:
    """Pieces for `tokenizer.add_tokens`, at most `most`, each with fewer characters than the tokenizer takes tokens for
    it and found MIN_USES times in the texts when these are read from left to right, the longest piece first.

    They are learned as byte-pair encoding does (Sennrich et al. 2016), never across scripts, punctuation or spaces.
    """
    if most == 0:
        return []
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.UnicodeScripts()]
    )
    words = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))
    is_taken_apart = _taken_apart(list(words), tokenizer)
    found = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=most, min_frequency=2, show_progress=False)
    found.train_from_iterator(
        itertools.chain.from_iterable([word] * count for word, count in words.items() if word in is_taken_apart),
        trainer,
    )
    pieces = sorted(_taken_apart(list(found.get_vocab()), tokenizer))
    while pieces:
        longest_first = re.compile("|".join(map(re.escape, sorted(pieces, key=len, reverse=True))))
        uses = Counter(piece for text in texts for piece in longest_first.findall(text))
        kept = sum(uses[piece] >= MIN_USES for piece in pieces)
        if kept == len(pieces):
            break
        pieces = sorted(pieces, key=lambda piece: -uses[piece])[: max(kept, int(len(pieces) * STEP))]
    return sorted(pieces)


def _taken_apart(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> set[str]:
    """Those for which the tokenizer takes more tokens than they have characters."""
    if not texts:
        return set()
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return {text for text, ids in zip(texts, encoded, strict=True) if len(ids) > len(text)}
