"""The cell *Take it with you*: a page of each New-LLM, shown and offered; what has none is said and stops nothing."""

import html
from types import SimpleNamespace

import pytest
from chats import train_chat, write_conversations

from newllm_lib.colab import share, take_along
from newllm_lib.colab.page.languages import use_language
from newllm_lib.colab.take_along import take_with_you
from newllm_lib.stages.pretrain import PretrainArguments, pretrain


@pytest.fixture
def page(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shown = SimpleNamespace(said=[], displayed=[])
    monkeypatch.setattr(take_along, "say", lambda sentence, status="ok", code="": shown.said.append((status, sentence)))
    monkeypatch.setattr(share, "display", shown.displayed.append)
    monkeypatch.setattr(take_along, "show", shown.displayed.append)
    return shown


def test_it_is_shown_in_a_frame_of_its_own_and_offered(page, tmp_path):
    run = train_chat(write_conversations(tmp_path / "rows.jsonl"), tmp_path / "run" / "newllm")
    use_language("ja")
    take_with_you([run])
    use_language("en")
    frame, link = page.displayed
    assert 'sandbox="allow-scripts allow-forms allow-downloads"' in frame and html.escape('<html lang="ja">') in frame
    assert link.path == "run/newllm/chat.html" and (run / "chat.html").is_file()
    ((status, sentence),) = page.said
    assert status == "ok" and sentence.startswith("newllm: chat.html (") and "double click" in sentence


def test_on_colab_it_waits_for_a_click(page, tmp_path, monkeypatch):
    run = train_chat(write_conversations(tmp_path / "rows.jsonl"), tmp_path / "run" / "newllm")
    monkeypatch.setattr(share, "on_colab", lambda: True)
    take_with_you([run])
    assert page.displayed[1].children[0].description.startswith("Download (")


def test_a_vocabulary_of_words_has_no_page_and_stops_nothing(page, tmp_path):
    (tmp_path / "text.txt").write_text("The river was cold and the boat was slow. " * 200)
    small = {"tokenizer": "word", "vocab_size": 10, "num_parameters": 30_000, "max_length": 16, "max_steps": 2}
    run = pretrain(PretrainArguments(data="text.txt", output_dir=str(tmp_path / "run" / "newllm"), **small))
    take_with_you([run])
    ((status, sentence),) = page.said
    assert status == "note" and "has no page" in sentence and "another tokenizer than bpe or byte" in sentence
    assert page.displayed == []
