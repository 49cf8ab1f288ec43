"""Memories in the chat box: told in bytes, saved beside the run, refused for another model, never written over."""

from types import SimpleNamespace

import pytest

from newllm_lib.chat import Chat
from newllm_lib.colab.chat_controls import MemoryControls, memory_html, memory_note, spoken_name
from newllm_lib.errors import InputError


def held(count, is_recurrent=False, dropped=0, memory=None):
    stream = SimpleNamespace(dropped=dropped)
    return SimpleNamespace(state_bytes=count, is_recurrent=is_recurrent, stream=stream, memory=memory)


def test_the_sentence_names_who_holds_what():
    chats = {"newllm": held(1024, True), "tiny-gpt2": held(412_672)}
    both = memory_html(chats, {})
    assert ">New-LLM remembers this conversation in 1,024 bytes; TinyGPT2 in 412,672 bytes and growing.<" in both
    alone = memory_html({"newllm": held(1024, True)}, {})
    assert ">New-LLM remembers this conversation in 1,024 bytes, however long it gets.<" in alone
    assert "without its first 130 tokens" in memory_html({"tiny-gpt2": held(9, dropped=130)}, {})
    assert memory_html({"newllm": held(0, True)}, {}) == ""
    assert spoken_name("newllm before") == "New-LLM before" and spoken_name("base") == "base"


def test_the_bytes_are_told_reply_by_reply():
    chats = {"newllm": held(1024, True), "tiny-gpt2": held(400)}
    counts = {"newllm": [1024] * 2, "tiny-gpt2": list(range(100, 900, 100))}
    html = memory_html(chats, counts)
    assert "New-LLM 1,024 → 1,024; TinyGPT2 … 300 → 400 → 500 → 600 → 700 → 800." in html
    assert "Reply by reply" not in memory_html(chats, {"newllm": [1024]})


def test_a_conversation_that_goes_on_says_so():
    assert memory_note(held(1, True)) == ""
    memory = SimpleNamespace(tokens=1300, messages=())
    assert memory_note(held(1, True, memory=memory)) == (
        "It remembers a conversation of 1,300 tokens; its words were not saved."
    )


@pytest.fixture
def make_controls(tmp_path, small_chats):
    """Builds the controls over chats with these models, as a new session would; `changes` is who has changed."""

    def make(*names):
        chats = {name: Chat(small_chats[name], max_new_tokens=6, temperature=0) for name in names}
        changes = []
        controls = MemoryControls(tmp_path / "memories", lambda: chats, changes.append)
        return SimpleNamespace(controls=controls, chats=chats, changes=changes, folder=tmp_path / "memories")

    return make


def test_saved_and_gone_on_from(make_controls):
    first = make_controls("newllm")
    chat = first.chats["newllm"]
    list(chat.reply("Hello"))
    first.controls.name.value = "../a name/of: mine"
    first.controls.with_words.value = True
    first.controls.save_button.click()
    assert [path.name for path in first.folder.iterdir()] == ["a-name-of-mine.safetensors"]
    assert "memory is saved as a-name-of-mine" in first.controls.notice.value

    later = make_controls("tiny-gpt2", "newllm")
    assert [name for name, _ in later.controls.saved.options] == ["a-name-of-mine"]
    later.controls.resume_button.click()
    assert later.changes == ["newllm"], "it goes to the model whose it is"
    assert later.chats["newllm"].messages == chat.messages
    assert "goes on from a-name-of-mine" in later.controls.notice.value


def test_nothing_is_written_over(make_controls):
    session = make_controls("newllm")
    list(session.chats["newllm"].reply("Hello"))
    for _ in range(3):
        session.controls.save_button.click()
    names = {path.stem for path in session.folder.iterdir()}
    assert names == {"conversation", "conversation-2", "conversation-3"}
    assert session.controls.saved.value.endswith("conversation-3.safetensors")


def test_another_model_is_refused_in_one_sentence(make_controls):
    first = make_controls("newllm")
    list(first.chats["newllm"].reply("Hello"))
    first.controls.save_button.click()
    other = make_controls("other newllm")
    other.controls.resume_button.click()
    assert "made by another model" in other.controls.notice.value and "NL-405" in other.controls.notice.value
    assert other.changes == [] and other.chats["other newllm"].memory is None


def test_without_a_memory_nothing_is_saved_or_resumed(make_controls):
    session = make_controls("tiny-gpt2")
    session.controls.resume_button.click()
    assert "No memory is saved yet" in session.controls.notice.value
    session.controls.save_button.click()
    assert "talk to a New-LLM" in session.controls.notice.value and not session.folder.exists()


@pytest.mark.parametrize("version", [7, 8])
def test_an_uploaded_memory_is_kept_and_gone_on_from(make_controls, version):
    first = make_controls("newllm")
    list(first.chats["newllm"].reply("Hello"))
    content = first.chats["newllm"].save_memory(first.folder / "first.safetensors", with_words=True).read_bytes()
    later = make_controls("newllm")
    files = {
        7: {"mine.safetensors": {"metadata": {"name": "mine.safetensors"}, "content": content}},
        8: ({"name": "mine.safetensors", "content": memoryview(content)},),
    }
    later.controls.upload = SimpleNamespace(value=files[version])
    later.controls._in_notice(later.controls.take_upload)
    assert (later.folder / "mine.safetensors").read_bytes() == content
    assert later.chats["newllm"].messages == first.chats["newllm"].messages


def test_an_upload_that_is_no_memory_leaves_nothing_behind(make_controls):
    session = make_controls("newllm")
    session.controls.upload = SimpleNamespace(value=({"name": "../x.safetensors", "content": b"junk"},))
    session.controls._in_notice(session.controls.take_upload)
    assert "not a memory" in session.controls.notice.value and not list(session.folder.parent.rglob("*x*.safetensors"))


def test_a_full_disk_is_one_sentence(make_controls, monkeypatch):
    session = make_controls("newllm")
    list(session.chats["newllm"].reply("Hello"))

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("newllm_lib.chat.write_bytes", full)
    session.controls.save_button.click()
    assert "NL-104" in session.controls.notice.value and "✗" in session.controls.notice.value


def test_a_model_that_cannot_be_opened_is_one_sentence(tmp_path):
    def gone():
        raise InputError("model folder 'x' does not exist.", "NL-404")

    controls = MemoryControls(tmp_path, gone, print)
    controls.save_button.click()
    assert "NL-404" in controls.notice.value
