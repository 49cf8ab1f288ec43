"""What stands in for a dataset where there is no hub: conversations from the package `chitchat-dataset` (MIT), and
questions and answers made from the Python standard library's own documentation."""

import functools
import importlib
import inspect
import itertools
import platform
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version

from .random_sentences import SEED, SENTENCES, random_sentences

QUESTIONS = {
    "module": ("What is the Python module {name} for?", "Describe the Python module {name}."),
    "class": ("What is {name} in Python?", "Explain the Python class {name}."),
    "function": ("What does {name} do in Python?", "Explain the Python function {name}."),
}
# Importing these opens a window, a browser or a game, or prints something.
NOT_IMPORTED = {"antigravity", "this", "idlelib", "turtledemo", "turtle", "tkinter", "lib2to3", "test"}


def stand_in(name: str) -> dict[str, tuple[str, str, str, Callable[[int], Iterable[dict]]]]:
    """Split -> what `Examples` takes. "chitchat": rows of DailyDialog, in English, in two splits. "documentation": rows
    of Dolly, in English, in one. "random": rows of a `text` each, random sentences, in two."""
    identity = identity_of(name)
    if name == "documentation":
        origin = "questions about the Python standard library, from its documentation"
        return {"train": (origin, "PSF-2.0", identity, lambda first: documentation_rows()[first:])}
    origin, licence, rows = f"ChitChat conversations, {{}} (package {identity.replace('/', ' ')})", "MIT", _chitchat
    if name == "random":
        origin, licence = f"{SENTENCES} random sentences, {{}} (seed {SEED})", "MIT, as this package"
        rows = _random
    return {
        split: (origin.format(split), licence, f"{identity}/{split}", functools.partial(rows, held_out))
        for split, held_out in (("train", False), ("validation", True))
    }


def identity_of(name: str) -> str:
    """Changes when the stand-in does."""
    if name == "random":
        return f"random sentences/1/{SEED}"
    if name == "documentation":
        return f"python documentation/{platform.python_version()}"
    return f"chitchat-dataset/{version('chitchat-dataset')}"


def _random(held_out: bool, first: int) -> Iterator[dict]:
    return ({"text": sentence} for sentence in random_sentences(held_out)[first:])


def _chitchat(held_out: bool, first: int) -> Iterator[dict]:
    """The package's 7,168 conversations in an order of our own; every twentieth is held out."""
    from chitchat_dataset import ConversationDataset

    conversations = [list(turns) for turns in ConversationDataset()]
    random.Random(0).shuffle(conversations)
    side = [turns for index, turns in enumerate(conversations) if (index % 20 == 0) == held_out]
    return itertools.islice(({"dialog": turns} for turns in side if any(map(str.strip, turns))), first, None)


@functools.lru_cache(maxsize=1)
def documentation_rows() -> list[dict[str, str]]:
    """Rows of Dolly's columns: what a module, class or function of the standard library is, in its docstring's first
    paragraph, with its signature as context. The same for one release of Python."""
    rows = {}  # by answer: each is there once
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules warn on import
        for name in sorted(sys.stdlib_module_names - NOT_IMPORTED):
            if name.startswith("_"):
                continue
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue  # of another operating system, or left out of this build
            for kind, full_name, thing in _documented(name, module):
                text = inspect.getdoc(thing) or ""
                answer = " ".join(text.split("\n\n")[0].split())
                if text.isascii() and 20 <= len(answer) <= 600 and answer not in rows:
                    question = QUESTIONS[kind][len(rows) % 2].format(name=full_name)
                    context = "" if kind == "module" else _signature(full_name, thing)
                    rows[answer] = {"instruction": question, "context": context, "response": answer}
    return list(rows.values())


def _documented(name: str, module) -> Iterator[tuple[str, str, object]]:
    """(kind, full name, object) of a module and of what it defines."""
    yield "module", name, module
    for attribute, thing in sorted(vars(module).items()):
        if attribute.startswith("_") or getattr(thing, "__module__", None) != name:
            continue
        if inspect.isclass(thing):
            yield "class", f"{name}.{attribute}", thing
            for method, function in sorted(vars(thing).items()):
                if not method.startswith("_") and inspect.isroutine(function):
                    yield "function", f"{name}.{attribute}.{method}", function
        elif inspect.isroutine(thing):
            yield "function", f"{name}.{attribute}", thing


def _signature(name: str, thing) -> str:
    try:
        signature = f"{name}{inspect.signature(thing)}"
    except (ValueError, TypeError, AttributeError):
        return ""  # written in C, without a signature that Python can read
    # A default value may print an address, which differs from run to run.
    return "" if " at 0x" in signature or len(signature) > 200 else signature
