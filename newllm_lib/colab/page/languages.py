"""The settings panel in English or Japanese: its English texts are the keys of a table of Japanese ones."""

import functools
import json
from importlib.resources import files

from ...errors import InputError

LANGUAGES = {"en": "English", "ja": "日本語"}

_chosen = "en"


def use_language(code: str) -> None:
    """Let `text` speak this language from now on; a session has one. Raises InputError: there is no such language."""
    global _chosen
    if code not in LANGUAGES:
        raise InputError(f"the language has to be one of {', '.join(LANGUAGES)}, got {code!r}.")
    _chosen = code


def text(english: str, **values: str) -> str:
    """The text in the session's language, its {names} filled in; what has no translation stays English."""
    found = english if _chosen == "en" else japanese().get(english, english)
    return found.format(**values) if values else found


@functools.cache
def japanese() -> dict[str, str]:
    return json.loads(files(__package__).joinpath("japanese.json").read_text(encoding="utf-8"))
