"""Codes of failures: those in the code, those in the table, and those in the README are the same."""

import ast
import re
from pathlib import Path

import pytest

from newllm_lib.errors import CODES

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"NL-\d{3}")


def used_codes() -> dict[str, set[str]]:
    """code -> the modules that give it."""
    used: dict[str, set[str]] = {}
    for path in (ROOT / "newllm_lib").rglob("*.py"):
        if path.name == "errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for code in CODE.findall(node.value):
                    used.setdefault(code, set()).add(path.name)
    used.setdefault("NL-401", set()).add("errors.py")  # what an InputError has that names no other
    return used


def test_every_code_that_is_given_is_explained_and_every_explained_one_is_given():
    assert set(used_codes()) == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_an_explanation_is_two_sentences_or_three(code):
    happened, remedy = CODES[code]
    assert CODE.fullmatch(code) and happened.endswith(".") and remedy.endswith(".")
    assert "|" not in happened + remedy, "it would end a cell of the README's table"


def test_the_readme_has_the_same_table():
    text = (ROOT / "README_COLAB.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (NL-\d{3}) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert {code: (happened, remedy) for code, happened, remedy in rows} == CODES
    assert [code for code, *_ in rows] == sorted(CODES)
