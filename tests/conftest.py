"""Shared fixtures: small text, small tokenizers, and caches that live in the test's own folder."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

import newllm_lib.models  # noqa: F401  registers the Auto classes
from newllm_lib.data.tokenizer import build_tokenizer

torch.set_num_threads(1)
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

SENTENCES = [
    "The river ran low in the summer of that year, and the mill stood still.",
    "Nobody knew where the old map had come from, or who had drawn it.",
    "She counted the boats again: seven at the quay, two beyond the bar.",
    "A cold wind blew from the north; the harbour lights went out one by one.",
    "He wrote three letters, burned two of them, and kept the last.",
]


def make_text(num_lines: int, articles: bool = True) -> str:
    """Deterministic English-like text, about 70 characters a line, an article title every eight lines."""
    lines = []
    for number in range(num_lines):
        if articles and number % 8 == 0:
            lines.append(f" = Article {number} = \n")
        words = (SENTENCES[number % 5] + " " + SENTENCES[(number * 3 + 1) % 5]).split()
        shift = number % 7
        lines.append(" ".join(words[shift : shift + 12]) + f" {number}\n")
    return "".join(lines)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def same_seed():
    torch.manual_seed(0)


@pytest.fixture
def text_file(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(make_text(240), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def byte_tokenizer():
    return build_tokenizer("byte", [])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder ../shared/data is not there")
    return SHARED_DATA
