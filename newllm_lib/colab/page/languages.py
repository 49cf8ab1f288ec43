"""What a notebook says, in English or Japanese: the English texts are the keys of a table of Japanese ones."""

import functools
import json
import os
import re
from importlib.resources import files

from ...errors import InputError

LANGUAGES = {"en": "English", "ja": "日本語"}
SENTENCE_END = re.compile(r"(?<=[.!?]) ")
NAME = re.compile(r"\{(\w+)\}")
WIDE = re.compile(r"[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]$")  # beside it no blank parts two sentences

LEAST_LETTERS = 3  # of its own, that a key with {names} needs to be found in a sentence

_chosen = ""  # the language of this session; "": none was chosen yet


def use_language(code: str) -> None:
    """Let `text` speak this language from now on; a session has one. Raises InputError: there is no such language."""
    global _chosen
    if code not in LANGUAGES:
        raise InputError(f"the language has to be one of {', '.join(LANGUAGES)}, got {code!r}.")
    _chosen = code


def chosen_language() -> str:
    """The language that NEWLLM_LANGUAGE or, in this session, a notebook or its user has chosen; "" before that."""
    return os.environ.get("NEWLLM_LANGUAGE") or _chosen


def language() -> str:
    return _chosen or os.environ.get("NEWLLM_LANGUAGE") or "en"


def text(english: str, **values: str) -> str:
    """The text in the session's language, its {names} filled in; what has no translation stays English."""
    found = english if language() == "en" else texts().get(english, english)
    return found.format(**values) if values else found


def translate(english: str) -> str:
    """Finished English sentences in the session's language. Each is a key of the table, or one that has values in place
    of its {names}; the values are put into that language, too, but for a {folder}."""
    return english if language() == "en" else _in_japanese(english)


@functools.lru_cache(maxsize=4096)
def _in_japanese(english: str) -> str:
    sentences = [english] if _translated(english) else SENTENCE_END.split(english)
    spoken = ""
    for sentence in sentences:
        spoken += "" if not spoken or WIDE.search(spoken) else " "
        spoken += _translated(sentence) or sentence
    return spoken


def _translated(english: str) -> str:
    """The Japanese of one key, with its values; "": it is none."""
    if english in texts():
        return texts()[english]
    for pattern, translation in _patterns():
        if found := pattern.fullmatch(english):
            values = {name: it if name == "folder" else _in_japanese(it) for name, it in found.groupdict().items()}
            return translation.format(**values)
    return ""


@functools.cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """(what a key with {names} becomes, its Japanese), those with the most words of their own first."""
    letters = {key: len(re.findall(r"[A-Za-z]", NAME.sub("", key))) for key in texts() if NAME.search(key)}
    keys = sorted((key for key in letters if letters[key] >= LEAST_LETTERS), key=letters.get, reverse=True)
    return [(re.compile(_form(key), re.DOTALL), texts()[key]) for key in keys]


def _form(key: str) -> str:
    """The key as a regular expression. No value has the end of a sentence or half a pair of brackets in it; one that
    comes twice is the same."""
    form, names = "", NAME.split(key)
    for number, part in enumerate(names):
        value = f"(?P={part})" if part in names[1:number:2] else rf"(?P<{part}>(?:(?![.!?] )(?:\([^()]*\)|[^()]))+?)"
        form += value if number % 2 else re.escape(part)
    return form


@functools.cache
def texts() -> dict[str, str]:
    """English -> Japanese: of the panel, and of what the cells around it say."""
    return japanese() | japanese("japanese_cells.json")


@functools.cache
def japanese(table: str = "japanese.json") -> dict[str, str]:
    return json.loads(files(__package__).joinpath(table).read_text(encoding="utf-8"))
