"""What a recurrent model remembers of a conversation, in a file of some kB and back."""

import pytest
import torch
from chats import untrained_chat
from safetensors import safe_open
from safetensors.torch import save_file

from newllm_lib.chat import Chat
from newllm_lib.errors import InputError
from newllm_lib.evaluation.memory_file import FORMAT, read_memory
from newllm_lib.models.modeling_newllm import state_parts

SAID = ("Hello there", "How are you", "And then?")


@pytest.fixture(params=["dialogue", None], ids=["chat", "pretrained"])
def template(request):
    return request.param


@pytest.fixture(params=["newllm", "lstm"])
def folder(request, tmp_path, template):
    return untrained_chat(tmp_path / "model", request.param, template)


def talk(chat, *texts):
    return ["".join(chat.reply(text)) for text in texts]


@pytest.mark.parametrize("with_words", [False, True])
def test_a_conversation_goes_on_as_if_it_had_never_stopped(folder, tmp_path, with_words):
    unbroken = Chat(folder, max_new_tokens=12, temperature=0)
    expected = talk(unbroken, *SAID)[-1]

    chat = Chat(folder, max_new_tokens=12, temperature=0)
    talk(chat, *SAID[:-1])
    path = chat.save_memory(tmp_path / "kept" / "memory.safetensors", with_words)
    words = [message["content"] for message in chat.messages]
    assert talk(chat, SAID[-1])[0] == expected, "saving changes nothing"

    later = Chat(folder, max_new_tokens=12, temperature=0)
    talk(later, "Something else entirely")
    memory = later.load_memory(path)
    assert [message["content"] for message in later.messages] == (words if with_words else [])
    assert talk(later, SAID[-1])[0] == expected
    assert later.stream.cache.seen_tokens > memory.tokens > 0
    later.reset()
    assert later.memory is None and later.state_bytes == 0


def test_without_its_words_the_file_is_as_large_as_the_state(folder, tmp_path):
    sizes = []
    for texts in (SAID[:1], SAID * 3):
        chat = Chat(folder, max_new_tokens=12, temperature=0)
        talk(chat, *texts)
        path = chat.save_memory(tmp_path / "memory.safetensors")
        assert path.stat().st_size <= chat.state_bytes + 450
        sizes.append(path.stat().st_size)
        assert b"Hello" not in path.read_bytes()
    assert abs(sizes[0] - sizes[1]) <= 16, "a longer conversation takes no more"


def test_another_program_finds_its_way_in_the_file(tmp_path):
    """The order and the sizes that `Memory` tells of, with the header alone."""
    chat = Chat(untrained_chat(tmp_path / "model"), max_new_tokens=6, temperature=0)
    talk(chat, SAID[0])
    path = chat.save_memory(tmp_path / "memory.safetensors")
    with safe_open(path, framework="pt") as file:
        header, state = file.metadata(), file.get_tensor("state")[0]
    layers, context, hidden = (int(header[name]) for name in ("num_hidden_layers", "context_size", "hidden_size"))
    assert header["format"] == FORMAT and header["model_type"] == "newllm"
    assert int(header["context_numbers"]) == layers * context and len(state) == layers * (context + 2 * hidden)
    contexts, u, v = state_parts(chat.model.config, chat.stream.cache.context)
    assert torch.equal(state, torch.cat([*contexts, *u, *v], dim=1)[0].cpu())
    with torch.no_grad():  # the first layer's u is the normed embedding of the last token that was read
        model = chat.model.model
        embedding = model.embed_tokens(torch.tensor(chat.stream.read[-1], device=model.device)) * hidden**0.5
        first = model.layers[0].input_norm(embedding).cpu()
    begin = layers * context
    torch.testing.assert_close(state[begin : begin + hidden], first)


def test_a_memory_can_be_handed_on_before_a_word_is_said(folder, tmp_path):
    chat = Chat(folder, max_new_tokens=6, temperature=0)
    talk(chat, SAID[0])
    first = chat.save_memory(tmp_path / "first.safetensors", with_words=True)
    chat.load_memory(first)
    second = chat.save_memory(tmp_path / "second.safetensors", with_words=True)
    before, after = read_memory(first), read_memory(second)
    assert torch.equal(before.state, after.state) and before.messages == after.messages
    assert (before.tokens, before.weights) == (after.tokens, chat.weights)


def test_another_model_refuses_it_in_one_sentence(tmp_path):
    ours, other = (Chat(untrained_chat(tmp_path / str(seed), seed=seed), 6, temperature=0) for seed in (0, 1))
    talk(ours, SAID[0])
    talk(other, SAID[0])
    path = ours.save_memory(tmp_path / "memory.safetensors")
    before = list(other.messages), other.state_bytes
    with pytest.raises(InputError, match="made by another model") as refusal:
        other.load_memory(path)
    assert refusal.value.code == "NL-405" and ours.weights in str(refusal.value) and "\n" not in str(refusal.value)
    assert (other.messages, other.state_bytes) == before


def test_a_model_with_attention_has_none_to_save(tmp_path):
    chat = Chat(untrained_chat(tmp_path / "gpt2", "tiny-gpt2"), 6)
    talk(chat, SAID[0])
    with pytest.raises(InputError, match="no memory of fixed size"):
        chat.save_memory(tmp_path / "memory.safetensors")
    with pytest.raises(InputError, match="no context to show"):
        chat.context_trace()


def test_nothing_said_is_nothing_to_save(folder, tmp_path):
    with pytest.raises(InputError, match="nothing has been said"):
        Chat(folder).save_memory(tmp_path / "memory.safetensors")
    assert list(tmp_path.glob("*.safetensors")) == []


GOOD = {"format": FORMAT, "model": "newllm", "weights": "0" * 16, "tokens": "3"}


@pytest.mark.parametrize(
    ("tensors", "header"),
    [
        ({"state": torch.zeros(1, 8)}, {}),
        ({"state": torch.zeros(1, 8)}, {**GOOD, "format": "other"}),
        ({"context": torch.zeros(1, 8)}, {**GOOD, "format": "newllm memory 1"}),
        ({"weights": torch.zeros(1, 8)}, GOOD),
        ({"state": torch.zeros(1, 8), "more": torch.zeros(1)}, GOOD),
        ({"state": torch.zeros(8)}, GOOD),
        ({"state": torch.zeros(2, 8)}, GOOD),
        ({"state": torch.zeros(1, 8, dtype=torch.float16)}, GOOD),
        ({"state": torch.full((1, 8), float("nan"))}, GOOD),
        ({"state": torch.zeros(1, 8)}, {**GOOD, "tokens": "many"}),
        ({"state": torch.zeros(1, 8)}, {**GOOD, "messages": "no JSON"}),
        ({"state": torch.zeros(1, 8)}, {**GOOD, "messages": '[{"role": "root", "content": "x"}]'}),
        ({"state": torch.zeros(1, 8)}, {**GOOD, "messages": "[1]"}),
        ({"state": torch.zeros(1, 8)}, {**GOOD, "messages": "3"}),
    ],
)
def test_files_that_are_no_memory_are_refused(tmp_path, tensors, header):
    path = tmp_path / "memory.safetensors"
    save_file(tensors, path, header)
    with pytest.raises(InputError, match="not a memory") as refusal:
        read_memory(path)
    assert refusal.value.code == "NL-405"


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 200, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "memory.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a memory"):
        read_memory(path)
    with pytest.raises(InputError, match="does not exist"):
        read_memory(tmp_path / "gone.safetensors")


def test_a_memory_of_another_size_under_the_same_name_is_refused(folder, tmp_path):
    chat = Chat(folder)
    path = tmp_path / "memory.safetensors"
    save_file({"state": torch.zeros(1, 3)}, path, {**GOOD, "weights": chat.weights})
    with pytest.raises(InputError, match="holds 3 numbers"):
        chat.load_memory(path)
    assert chat.memory is None


def test_the_picture_s_numbers_end_with_what_is_held(folder):
    chat = Chat(folder, max_new_tokens=1, temperature=0)
    talk(chat, SAID[0])
    tokens, contexts = chat.context_trace(last=7)
    assert len(tokens) == 7 and len(contexts) == 8
    held = chat.stream.cache.context[0, : contexts.shape[1]].cpu()
    torch.testing.assert_close(contexts[-1], held, rtol=1e-4, atol=1e-5)
    # The one token of the reply has been chosen, but not read yet.
    assert "".join(tokens) == (" there<|assistant|>" if chat.tokenizer.chat_template else "o there")
