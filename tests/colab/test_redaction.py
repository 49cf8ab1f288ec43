"""What a report must not hold is found wherever it stands."""

from pathlib import Path

import pytest

from newllm_lib.colab.redaction import redact, short_path


@pytest.fixture(autouse=True)
def somebody(monkeypatch):
    monkeypatch.setattr("pathlib.Path.home", lambda: Path("/ho" + "me/ada lovelace"))
    monkeypatch.setenv("MY_SECRET_THING", "correct horse battery")
    monkeypatch.setenv("HF_TOKEN", "hf_zzzzzzzzzzzzzzzzzzzz")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("token hf_AbCdEfGhIjKlMnOp is bad", "AbCdEf"),
        ("Authorization: Bearer abc.def-123456", "abc.def"),
        ("api_key=abcdef123", "abcdef"),
        ("password: hunter2", "hunter2"),
        ("sk-proj-abcdef123456", "abcdef"),
        ("with correct horse battery in it", "horse"),
        ("ada.lovelace+x@mail.example.org wrote", "lovelace"),
        ("https://user:pw@host.example/path?token=1", "host.example"),
        ("/content/drive/MyDrive/My diary 2026/a b.txt is gone", "diary"),
        ("/ho" + "me/ada lovelace/notes/x y.md: gone", "notes"),
        ("cannot open /mnt/private/thing", "private"),
        ("~/letters/to bob", "letters"),
        ("C:\\Users\\Ada\\x.txt", "Ada"),
        ("my_diary.jsonl, line 3", "diary"),
        ("role has to be one of a, b, got 'My dear Bob'.", "Bob"),
        ('got "it is Bob\'s" here', "Bob"),
        ("Python's own row 'he said it\\'s me' is bad", "said"),
        ("KeyError: 'Dear\nBob'", "Bob"),
    ],
)
def test_secrets_go(text, secret):
    assert secret in text
    assert secret not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "newllm_lib/colab/panel.py:123 in arguments",
        "dropout has to lie in [0, 1), got 2.",
        "update 3/20 at 1.5 tokens/s",
        "shapes (8x64 and 32x8) cannot be multiplied; it's the model's fault",
    ],
)
def test_what_helps_stays(text):
    assert redact(text) == text


def test_names_of_the_user_s_own_go_wherever_they_stand():
    assert redact("file my notes.txt holds no text", ["my notes.txt"]) == "file [left out] holds no text"
    assert redact("a report", ["a"]) == "a report", "a letter is no secret"


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("/usr/lib/python3/dist-packages/torch/nn/module.py", "torch/nn/module.py"),
        ("/x/site-packages/newllm_lib/chat.py", "newllm_lib/chat.py"),
        ("/somebody/newllm_lib/colab/panel.py", "newllm_lib/colab/panel.py"),
        ("/usr/lib/python3.13/json/decoder.py", "json/decoder.py"),
        ("/some/where/my_secret_project.py", "[a cell or file of yours]"),
        ("<ipython-input-3-abc>", "[a cell or file of yours]"),
    ],
)
def test_places_in_the_code_are_named_without_the_machine(path, short):
    assert short_path(path) == short
