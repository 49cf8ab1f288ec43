"""Questions and answers made from the Python standard library's own documentation: real text that every machine has,
where a dataset of instructions is out of reach."""

import functools
import importlib
import inspect
import platform
import sys
import warnings

MAX_ANSWER_CHARACTERS = 600
QUESTIONS = {
    "module": ("What is the Python module {name} for?", "Describe the Python module {name}."),
    "class": ("What is {name} in Python?", "Explain the Python class {name}."),
    "function": ("What does {name} do in Python?", "Explain the Python function {name}."),
}
# Importing these opens a window, a browser or a game, or says something.
NOT_IMPORTED = {"antigravity", "this", "idlelib", "turtledemo", "turtle", "tkinter", "lib2to3", "test"}


def documentation_identity() -> str:
    return f"python documentation/{platform.python_version()}"


@functools.lru_cache(maxsize=1)
def documentation_rows() -> list[dict[str, str]]:
    """Rows of Dolly's columns: what a module, class or function of the standard library is, in its docstring's first
    paragraph, with its signature as context. The same for one release of Python."""
    rows, seen = [], set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules say so on import
        for name in sorted(sys.stdlib_module_names):
            if name.startswith("_") or name in NOT_IMPORTED:
                continue
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue  # of another operating system, or left out of this build
            for kind, full_name, thing in _documented(name, module):
                row = _row(kind, full_name, thing, len(rows))
                if row is not None and row["response"] not in seen:
                    seen.add(row["response"])
                    rows.append(row)
    return rows


def _documented(name: str, module):
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


def _row(kind: str, name: str, thing, number: int) -> dict[str, str] | None:
    text = inspect.getdoc(thing)
    if not text or not text.isascii():
        return None
    answer = " ".join(text.split("\n\n")[0].split())
    if not 20 <= len(answer) <= MAX_ANSWER_CHARACTERS:
        return None
    questions = QUESTIONS[kind]
    context = ""
    if kind != "module":
        try:
            context = f"{name}{inspect.signature(thing)}"
        except (ValueError, TypeError, AttributeError):
            context = ""  # written in C, without a signature that Python can read
    # A default value may print an address, which differs from run to run.
    context = "" if " at 0x" in context or len(context) > 200 else context
    return {"instruction": questions[number % len(questions)].format(name=name), "context": context, "response": answer}
