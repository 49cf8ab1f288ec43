"""Replies that keep to a format, whatever the model would say; each of them from an untrained one."""

import json
import re

import pytest
from chats import untrained_chat

from newllm_lib.chat import Chat
from newllm_lib.cli import main
from newllm_lib.errors import InputError
from newllm_lib.evaluation import answer_format


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return untrained_chat(tmp_path_factory.mktemp("chat") / "model")


def reply(folder, form: str, **options) -> str:
    return "".join(Chat(folder, **{"seed": 0, "max_new_tokens": 100, **options}, answer_format=form).reply("Hello"))


def test_without_the_package_it_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setattr(answer_format, "find_spec", lambda name: None)
    assert main(["chat", str(folder), "--answer_format", "json"]) == 2
    assert "pip install 'newllm[formats]'" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("form", ["(yes|no), [0-9]{3}", "[A-C]( [a-z]{2,4}){2}\\.", "日本(語|人)です"])
def test_a_reply_matches_its_regular_expression(folder, form, temperature):
    pytest.importorskip("llguidance", reason="needs newllm[formats]")
    assert re.fullmatch(form, reply(folder, form, temperature=temperature))


def test_every_turn_is_bound_anew_and_by_the_penalty_not_less(folder):
    pytest.importorskip("llguidance", reason="needs newllm[formats]")
    chat = Chat(folder, seed=1, repetition_penalty=1.3, top_p=0.5, answer_format="[0-9]{4}")
    said = ["".join(chat.reply(text)) for text in ("One", "Two", "Three")]
    assert all(re.fullmatch("[0-9]{4}", text) for text in said)


def test_json_is_json_of_its_schema(folder, tmp_path):
    pytest.importorskip("llguidance", reason="needs newllm[formats]")
    properties = {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 10, "maximum": 99}}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"], "additionalProperties": False}
    (tmp_path / "person.json").write_text(json.dumps(schema))
    said = json.loads(reply(folder, str(tmp_path / "person.json")))
    assert said.keys() == {"name", "age"} and 10 <= said["age"] <= 99
    assert reply(folder, "json", max_new_tokens=5).startswith("{")


@pytest.mark.parametrize("form", ["(", "gone.json", "broken.json", "deep.json", "~no such user/a.json"])
def test_what_is_no_format_is_one_sentence(folder, tmp_path, monkeypatch, form):
    pytest.importorskip("llguidance", reason="needs newllm[formats]")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"answer_format has to be json, .* got '.*', which cannot be used: \S"):
        reply(folder, form)
