"""The chat box: replies are streamed into one output, one or two models hear what is said, nothing needs a click."""

import asyncio
import re
import warnings
from types import SimpleNamespace

import ipywidgets as widgets
import pytest
import torch

from newllm_lib.colab import chat_box
from newllm_lib.colab.chat_box import DISCLAIMER, NOBODY, ChatBox, SideBySide, show_chat, show_side_by_side
from newllm_lib.colab.page.notices import CellStopped
from newllm_lib.colab.page.pieces import bubbles_html, columns_html
from newllm_lib.errors import InputError


class Talker:
    """Stands in for a Chat: the reply comes in three pieces, and every reply takes ten bytes of memory."""

    is_recurrent = False
    memory = None

    def __init__(self, folder, seed=None):
        if "gone" in str(folder):
            raise InputError(f"model folder {str(folder)!r} does not exist.", "NL-404")
        self.messages = []
        self.stream = SimpleNamespace(dropped=0, read=[])
        self.sampling = None

    @property
    def state_bytes(self):
        return 5 * len(self.messages)

    def set_sampling(self, **values):
        self.sampling = values

    def reply(self, text):
        self.messages.append({"role": "user", "content": text})
        said = []
        try:
            for piece in ("I ", "am <b>", " well."):
                if text == "interrupt" and piece == " well.":
                    raise KeyboardInterrupt
                if text == "fail":
                    raise RuntimeError("no such layer")
                said.append(piece)
                yield piece
        finally:
            self.messages.append({"role": "assistant", "content": "".join(said)})

    def reset(self):
        self.messages.clear()


@pytest.fixture
def make_box(monkeypatch):
    monkeypatch.setattr(chat_box, "Chat", Talker)
    monkeypatch.setattr(chat_box, "INTERVAL_SECONDS", 0.0)
    return lambda folders: ChatBox({chat_box.Path(folder).name: folder for folder in folders})


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


def test_it_says_what_it_is_not_at_any_time(make_box):
    box = make_box(["runs/newllm"])
    assert DISCLAIMER in box.output.value and "no assistant" in DISCLAIMER and "knows no facts" in DISCLAIMER
    say(box, "Hello")
    assert DISCLAIMER in box.output.value


def test_two_models_hear_the_same_side_by_side(make_box):
    box = make_box(["runs/newllm", "runs/tiny-gpt2"])
    assert (box.first.value, box.second.value) == ("newllm", "tiny-gpt2")
    say(box, "First.")
    assert box.output.value.count("First.") == 2
    assert box.output.value.index("<b>newllm</b>") < box.output.value.index("<b>tiny-gpt2</b>")


def test_each_model_has_its_own_conversation_and_reset_clears_those_that_are_shown(make_box):
    box = make_box(["runs/newllm", "runs/tiny-gpt2"])
    box.second.value = NOBODY
    say(box, "First.")
    box.first.value = "tiny-gpt2"
    assert "First." not in box.output.value
    say(box, "Second.")
    box.first.value = "newllm"
    assert "First." in box.output.value and "Second." not in box.output.value
    box.reset_button.click()
    assert "First." not in box.output.value
    box.first.value = "tiny-gpt2"
    assert "Second." in box.output.value
    box.second.value = "tiny-gpt2"
    assert box.spoken_to() == ("tiny-gpt2",), "nobody hears it twice"


def test_one_model_needs_no_choice(make_box):
    assert make_box(["runs/newllm"]).choice.layout.display == "none"
    assert make_box(["runs/newllm", "runs/tiny-gpt2"]).choice.layout.display is None


def test_an_interrupted_reply_is_kept(make_box):
    box = make_box(["runs/newllm"])
    say(box, "interrupt")
    assert "I am" in box.output.value and "▌" not in box.output.value and not box.is_busy


def in_a_loop(box, text, meanwhile):
    """Click Send as Jupyter's kernel would, inside a running loop, and call `meanwhile` between two pieces."""

    async def session():
        say(box, text)
        while not box.task.done():
            meanwhile(box)
            await asyncio.sleep(0)
        await box.task

    asyncio.run(session())


def test_stop_is_heard_while_a_reply_is_made(make_box):
    box = make_box(["runs/newllm"])
    assert box.stop_button.disabled

    def stop_after_two_pieces(box):
        assert not box.stop_button.disabled and box.send_button.disabled and box.memory.save_button.disabled
        if "am " in box.output.value:
            box.stop_button.click()

    in_a_loop(box, "Hello", stop_after_two_pieces)
    assert "I am" in box.output.value and "well" not in box.output.value and "▌" not in box.output.value
    assert box.stop_button.disabled and not box.send_button.disabled
    in_a_loop(box, "Again", lambda box: None)
    assert "well." in box.output.value, "the next reply is whole"


def test_what_is_typed_while_a_reply_is_made_waits(make_box):
    box = make_box(["runs/newllm"])

    def impatient(box):
        box.text.value = "Hello?"
        box.send()

    in_a_loop(box, "Hello", impatient)
    assert box.text.value == "Hello?" and box.output.value.count("Hello") == 1


def test_on_colab_a_reply_is_made_inside_the_click(make_box, monkeypatch):
    monkeypatch.setattr(chat_box, "on_colab", lambda: True)
    box = make_box(["runs/newllm"])
    assert box.stop_button.layout.display == "none"

    async def click():
        say(box, "Hello")
        assert box.task is None and "well." in box.output.value

    asyncio.run(click())


def test_a_folder_without_a_model_is_one_sentence(make_box, monkeypatch):
    box = make_box(["runs/gone"])
    say(box, "Hello")
    assert "does not exist" in box.notice.value and "✗" in box.notice.value and "NL-404" in box.notice.value
    monkeypatch.setattr(chat_box, "display", lambda content: None)
    with pytest.raises(CellStopped, match=r"does not exist.*\[NL-404\]"):
        show_chat(["runs/gone"], "Hello")


def test_a_fault_inside_a_click_is_told_and_kept_for_the_report(make_box):
    box = make_box(["runs/newllm"])
    say(box, "fail")
    assert "NL-901" in box.notice.value and "no such layer" in box.notice.value and not box.is_busy
    assert str(chat_box.sys.last_value) == "no such layer"
    say(box, "Hello")
    assert box.notice.value == "" and "well." in box.output.value


def test_the_sliders_hold_for_the_next_reply(make_box):
    box = make_box(["runs/newllm"])
    say(box, "Hello")
    first = dict(box.chats["newllm"].sampling)
    assert first == {"max_new_tokens": 200, "temperature": 0.8, "top_p": 0.95, "repetition_penalty": None}
    box.sampling.temperature.value = 0.3
    box.sampling.penalty.value = 1.2
    assert box.chats["newllm"].sampling == first
    say(box, "Again")
    assert box.chats["newllm"].sampling["temperature"] == 0.3
    assert box.chats["newllm"].sampling["repetition_penalty"] == 1.2


def test_bytes_are_told_after_every_reply(make_box):
    box = make_box(["runs/newllm", "runs/tiny-gpt2"])
    assert box.remembered.value == ""
    say(box, "Hello")
    assert "New-LLM remembers this conversation in 10 bytes and growing; TinyGPT2 in 10 bytes" in box.remembered.value
    say(box, "And then?")
    assert "TinyGPT2 10 → 20" in box.remembered.value
    box.reset_button.click()
    assert box.remembered.value == ""
    say(box, "Hello")
    assert "→" not in box.remembered.value


def test_the_conversation_can_be_downloaded(make_box):
    box = make_box(["runs/newllm"])
    assert box.links.value == ""
    say(box, "Hello")
    assert 'download="newllm-conversation.txt"' in box.links.value and "base64," in box.links.value


def test_the_cell_shows_an_exchange_without_a_click(make_box, monkeypatch):
    shown = []
    monkeypatch.setattr(chat_box, "display", shown.append)
    monkeypatch.setattr(chat_box, "say", shown.append)
    box = show_chat(["runs/newllm"], "Hello!")
    assert "Hello!" in box.output.value and "well." in box.output.value
    assert shown[0] is box.box and "newllm can be talked to" in shown[1]
    assert "Nothing has been said" in show_chat(["runs/newllm"]).output.value


def test_a_model_can_be_heard_beside_what_it_was_before(make_box, monkeypatch, tmp_path):
    monkeypatch.setattr(chat_box, "display", lambda content: None)
    monkeypatch.setattr(chat_box, "say", lambda sentence: None)
    box = show_chat(["runs/newllm"], "Hello!", before=tmp_path)
    assert box.folders == {"newllm": "runs/newllm", "newllm before": tmp_path / "newllm"}
    assert box.spoken_to() == ("newllm", "newllm before") and "<b>newllm before</b>" in box.output.value
    assert show_chat(["runs/newllm"], before=None).spoken_to() == ("newllm",)


def test_bubbles_keep_the_words_and_hide_no_markup():
    html = bubbles_html([{"role": "user", "content": "<i>$1$</i>"}, {"role": "context", "content": "x" * 50}], 20)
    assert "&lt;i&gt;" in html and "context: " in html and "x" * 20 + " …" in html and "<i>" not in html
    html = columns_html({"a": [], "b<": []}, {"a": "a note <"})
    assert "a note &lt;" in html and "<b>b&lt;</b>" in html
    assert "<b>" not in columns_html({"a": []})


@pytest.fixture
def runs(small_chats):
    return {name: small_chats[name] for name in ("newllm", "tiny-gpt2")}


def test_real_models_reply_and_only_one_memory_grows(runs):
    box = ChatBox(runs, seed=0)
    box.sampling.length.value = 10
    say(box, "Hello")
    first = {name: chat.state_bytes for name, chat in box.chats.items()}
    assert box.picture.value.count("<img") == 1, "TinyGPT2 has no context vector"
    say(box, "And then?")
    assert [message["role"] for message in box.chats["newllm"].messages] == ["user", "assistant"] * 2
    assert box.output.value.count("And then?") == 2
    now = {name: chat.state_bytes for name, chat in box.chats.items()}
    assert now["newllm"] == first["newllm"] and now["tiny-gpt2"] > first["tiny-gpt2"]
    assert re.search(
        rf"New-LLM remembers.* in {now['newllm']:,} bytes; TinyGPT2 in .* and growing", box.remembered.value
    )
    box.memory.picture.value = False
    assert box.picture.value == ""


def test_a_conversation_is_saved_and_gone_on_from_in_another_session(runs):
    box = ChatBox({"newllm": runs["newllm"]}, seed=0)
    box.sampling.length.value = 10
    say(box, "Hello")
    box.memory.save_button.click()
    assert "✓" in box.memory.notice.value and "bytes" in box.memory.notice.value

    later = ChatBox({"newllm": runs["newllm"]}, seed=0)
    later.sampling.length.value = 10
    later.memory.resume_button.click()
    chat = later.chats["newllm"]
    assert chat.messages == [] and chat.memory.tokens == box.chats["newllm"].stream.cache.seen_tokens
    torch.testing.assert_close(chat.stream.cache.context, box.chats["newllm"].stream.cache.context)
    assert "its words were not saved" in later.output.value and "goes on from conversation" in later.memory.notice.value
    say(later, "Who am I?")
    assert "Who am I?" in later.output.value
    later.reset_button.click()
    assert "Nothing has been said" in later.output.value


def test_base_and_tuned_hear_the_same_and_share_one_model(adapter_run):
    box = SideBySide(adapter_run, seed=0)
    box.sampling.length.value = 12
    assert "Nothing has been said" in box.output.value and box.choice.layout.display == "none"
    say(box, "Hello")
    base, tuned = box.chats["base"], box.chats["tuned"]
    assert base.model is tuned.model
    assert base.messages[0] == tuned.messages[0] == {"role": "user", "content": "Hello"}
    assert base.messages[1] != tuned.messages[1]
    assert box.output.value.count("Hello") >= 2 and box.output.value.index("base") < box.output.value.index("tuned")
    assert box.remembered.value.count("and growing") == 2 and box.picture.value == ""
    box.memory.save_button.click()
    assert "NL-405" in box.memory.notice.value
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
    monkeypatch.setattr(chat_box.SideBySide, "max_new_tokens", 10)
    monkeypatch.setattr(chat_box, "display", shown.append)
    monkeypatch.setattr(chat_box, "say", shown.append)
    box = show_side_by_side(adapter_run, "Hello!")
    assert shown[0] is box.box and box.output.value.count("Hello!") == 2
    with pytest.raises(CellStopped, match="does not exist"):
        show_side_by_side("runs/gone", "Hello!")


def test_only_core_widgets_are_used(make_box):
    def all_widgets(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from all_widgets(child)

    box = make_box(["runs/newllm", "runs/tiny-gpt2"])
    assert {widget._model_module for widget in all_widgets(box.box)} == {"@jupyter-widgets/controls"}
    assert isinstance(box.box, widgets.VBox)
