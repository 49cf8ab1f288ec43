"""What a notebook says, in English or Japanese: the English texts are the keys of a table of Japanese ones."""

import functools
import json
import os
import re
from importlib.resources import files

from ...errors import InputError

LANGUAGES = {"en": "English", "ja": "日本語"}
SENTENCE_END = re.compile(r"(?<=[.!?;]) ")
WIDE = re.compile(r"[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]$")  # beside it no blank parts two sentences

_chosen = ""  # the language of a session; "": that of the environment


def use_language(code: str) -> None:
    """Let `text` speak this language from now on; a session has one. Raises InputError: there is no such language."""
    global _chosen
    if code not in LANGUAGES:
        raise InputError(f"the language has to be one of {', '.join(LANGUAGES)}, got {code!r}.")
    _chosen = code


def language() -> str:
    """The session's language: as it was chosen, else NEWLLM_LANGUAGE, which a notebook in Japanese sets."""
    return _chosen or os.environ.get("NEWLLM_LANGUAGE") or "en"


def text(english: str, **values: str) -> str:
    """The text in the session's language, its {names} filled in; what has no translation stays English."""
    found = english if language() == "en" else japanese().get(english, english)
    return found.format(**values) if values else found


def said(english: str) -> str:
    """A finished English text, of one or more sentences, in the session's language. Each sentence is a key of the table,
    or one with something in place of its {names}, which is itself put into that language."""
    return english if language() == "en" else _in_japanese(english)


@functools.lru_cache(maxsize=4096)
def _in_japanese(english: str) -> str:
    if (whole := _sentence(english)) is not None:
        return whole
    spoken = ""
    for sentence in SENTENCE_END.split(english):
        spoken += "" if not spoken or WIDE.search(spoken) else " "
        spoken += _sentence(sentence) or sentence
    return spoken


def _sentence(english: str) -> str | None:
    if english in japanese():
        return japanese()[english]
    for pattern, translation in _patterns():
        if found := pattern.fullmatch(english):
            return translation.format(**{name: _in_japanese(part) for name, part in found.groupdict().items()})
    return None


@functools.cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """(what a key with {names} can become, its Japanese), those with the most words of their own first."""
    keys = sorted((key for key in japanese() if "{" in key), key=lambda key: len(re.sub(r"\{\w+\}", "", key)))
    patterns = []
    for key in reversed(keys):
        seen: set[str] = set()
        # A name that comes twice stands for the same both times.
        form = re.sub(
            r"\\\{(\w+)\\\}",
            lambda name: f"(?P={name[1]})" if name[1] in seen else seen.add(name[1]) or rf"(?P<{name[1]}>.+?)",
            re.escape(key),
        )
        patterns.append((re.compile(form, re.DOTALL), japanese()[key]))
    return patterns


@functools.cache
def japanese() -> dict[str, str]:
    return json.loads(files(__package__).joinpath("japanese.json").read_text(encoding="utf-8"))
