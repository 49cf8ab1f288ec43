"""The chat box: replies are streamed into one output, models have conversations of their own, nothing needs a click."""

import warnings

import ipywidgets as widgets
import pytest
from chats import train_chat, write_conversations

from newllm_lib.colab import chat_box
from newllm_lib.colab.bubbles import bubbles_html
from newllm_lib.colab.chat_box import DISCLAIMER, ChatBox, SideBySide, show_chat, show_side_by_side
from newllm_lib.colab.notices import CellStopped
from newllm_lib.errors import InputError


class Talker:
    """Stands in for a Chat: the reply comes in three pieces."""

    def __init__(self, folder, seed=None):
        if "gone" in str(folder):
            raise InputError(f"model folder {str(folder)!r} does not exist.")
        self.messages = []

    def reply(self, text):
        self.messages.append({"role": "user", "content": text})
        try:
            for piece in ("I ", "am <b>", " well."):
                if text == "stop" and piece == " well.":
                    raise KeyboardInterrupt
                yield piece
        finally:
            self.messages.append({"role": "assistant", "content": "I am <b> well."})

    def reset(self):
        self.messages.clear()


@pytest.fixture
def make_box(monkeypatch):
    monkeypatch.setattr(chat_box, "Chat", Talker)
    monkeypatch.setattr(chat_box, "INTERVAL_SECONDS", 0.0)
    return ChatBox


def say(box, text):
    box.text.value = text
    box.send_button.click()


def test_a_reply_grows_in_one_output(make_box):
    box = make_box(["runs/newllm"])
    seen = []
    box.output.observe(lambda change: seen.append(change["new"]), names="value")
    say(box, "How are you?")
    assert ["▌" in value for value in seen] == [True, True, True, False]
    assert "How are you?" in seen[0] and "I am &lt;b&gt; well." in seen[-1] and box.text.value == ""
    assert len([child for child in box.box.children if isinstance(child, widgets.HTML)]) == 1


def test_enter_sends_too_and_nothing_is_said_of_deprecation(make_box):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*on_submit.*")
        box = make_box(["runs/newllm"])
    box.text.value = "Hello"
    box.text._handle_string_msg(None, {"event": "submit"}, None)
    assert "Hello" in box.output.value


def test_an_empty_message_is_not_sent(make_box):
    box = make_box(["runs/newllm"])
    say(box, "  ")
    assert box.chats == {} and "Nothing has been said" in box.output.value


def test_it_says_that_it_is_no_assistant_at_any_time(make_box):
    box = make_box(["runs/newllm"])
    assert DISCLAIMER in box.output.value and "no assistant" in DISCLAIMER
    say(box, "Hello")
    assert DISCLAIMER in box.output.value


def test_each_model_has_its_own_conversation_and_reset_clears_one(make_box):
    box = make_box(["runs/newllm", "runs/tiny-gpt2"])
    say(box, "First.")
    box.model.value = "tiny-gpt2"
    assert "First." not in box.output.value
    say(box, "Second.")
    box.model.value = "newllm"
    assert "First." in box.output.value and "Second." not in box.output.value
    box.reset_button.click()
    assert "First." not in box.output.value
    box.model.value = "tiny-gpt2"
    assert "Second." in box.output.value


def test_one_model_needs_no_choice(make_box):
    assert not [child for child in make_box(["runs/newllm"]).box.children[1].children if "Dropdown" in str(type(child))]


def test_a_stopped_reply_is_kept(make_box):
    box = make_box(["runs/newllm"])
    say(box, "stop")
    assert "I am" in box.output.value and "▌" not in box.output.value


def test_a_folder_without_a_model_is_one_sentence(make_box, monkeypatch):
    box = make_box(["runs/gone"])
    say(box, "Hello")
    assert "does not exist" in box.output.value and "✗" in box.output.value
    monkeypatch.setattr(chat_box, "display", lambda content: None)
    with pytest.raises(CellStopped, match="does not exist"):
        show_chat(["runs/gone"], "Hello")


def test_the_cell_shows_an_exchange_without_a_click(make_box, monkeypatch):
    shown = []
    monkeypatch.setattr(chat_box, "display", shown.append)
    monkeypatch.setattr(chat_box, "say", shown.append)
    box = show_chat(["runs/newllm"], "Hello!")
    assert "Hello!" in box.output.value and "well." in box.output.value
    assert shown[0] is box.box and "newllm can be talked to" in shown[1]
    assert "Nothing has been said" in show_chat(["runs/newllm"]).output.value


def test_bubbles_keep_the_words_and_hide_no_markup():
    html = bubbles_html([{"role": "user", "content": "<i>$1$</i>"}, {"role": "context", "content": "x" * 50}], 20)
    assert "&lt;i&gt;" in html and "context: " in html and "x" * 20 + " …" in html and "<i>" not in html


def test_a_real_model_replies(tmp_path):
    folder = train_chat(write_conversations(tmp_path / "data.jsonl"), tmp_path / "newllm")
    box = ChatBox([folder], seed=0)
    say(box, "Hello")
    say(box, "And then?")
    assert [message["role"] for message in box.chats["newllm"].messages] == ["user", "assistant"] * 2
    assert "And then?" in box.output.value


def test_base_and_tuned_hear_the_same_and_share_one_model(adapter_run, monkeypatch):
    monkeypatch.setattr(chat_box, "SHORT_REPLY", 12)
    box = SideBySide(adapter_run, seed=0)
    assert "Nothing has been said" in box.output.value
    say(box, "Hello")
    base, tuned = box.chats["base"], box.chats["tuned"]
    assert base.model is tuned.model and "Dropdown" not in str(box.box.children[1].children)
    assert base.messages[0] == tuned.messages[0] == {"role": "user", "content": "Hello"}
    assert base.messages[1] != tuned.messages[1]
    assert box.output.value.count("Hello") >= 2 and box.output.value.index("base") < box.output.value.index("tuned")
    box.reset_button.click()
    assert base.messages == tuned.messages == [] and "Nothing has been said" in box.output.value


def test_a_reply_that_is_over_waits_for_the_other(make_box, monkeypatch):
    class Longer(Talker):
        def reply(self, text):
            yield from super().reply(text)
            yield " Thank you."

    box = make_box(["runs/tuned"])
    monkeypatch.setattr(box, "spoken_to", lambda: ("base", "tuned"))
    box.chats = {"base": Talker("base"), "tuned": Longer("tuned")}
    seen = []
    box.output.observe(lambda change: seen.append(change["new"].count("▌")), names="value")
    say(box, "Hello")
    assert seen == [2, 2, 2, 1, 0]


def test_side_by_side_shows_an_exchange_without_a_click(adapter_run, monkeypatch):
    shown = []
    monkeypatch.setattr(chat_box, "SHORT_REPLY", 4)
    monkeypatch.setattr(chat_box, "display", shown.append)
    monkeypatch.setattr(chat_box, "say", shown.append)
    box = show_side_by_side(adapter_run, "Hello!")
    assert shown[0] is box.box and box.output.value.count("Hello!") == 2
    with pytest.raises(CellStopped, match="does not exist"):
        show_side_by_side("runs/gone", "Hello!")
