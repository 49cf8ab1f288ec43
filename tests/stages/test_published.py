"""The published recipes as presets, rows that overlap, and the text of chance."""

import numpy as np
import pytest

from newllm_lib.colab.panel.lookups import data_identity, resolve_source
from newllm_lib.data.conversations import load_conversations
from newllm_lib.data.random_sentences import random_sentences
from newllm_lib.data.text import load_text, packed_rows
from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.errors import InputError
from newllm_lib.models import count_parameters
from newllm_lib.stages.evaluate import evaluate
from newllm_lib.stages.pretrain import PRESETS, PretrainArguments, prepare, pretrain
from newllm_lib.training.run import model_config


def test_500_random_sentences_of_252_words():
    train, held_out = random_sentences(held_out=False), random_sentences(held_out=True)
    assert (len(train), len(held_out)) == (400, 100) and train == random_sentences(held_out=False)
    words = [sentence.split() for sentence in (*train, *held_out)]
    assert len({word for sentence in words for word in sentence}) == 252
    assert {word for sentence in words[400:] for word in sentence} <= {
        word for sentence in words[:400] for word in sentence
    }
    assert 9 < np.mean([len(sentence) for sentence in words]) < 11
    assert len(set(train) & set(held_out)) == 0, "hardly a sentence comes twice"


def test_they_are_a_source_of_text():
    splits = load_text("random")
    assert splits.source == "random" and splits.train.origin == "500 random sentences, train (seed 1)"
    assert list(splits.validation.strings()) == random_sentences(held_out=True)
    assert all(piece.starts_document for piece in splits.train.read()) and splits.test is None
    with pytest.raises(InputError, match="data_source 'random' is running text, which newllm pretrain trains on"):
        load_conversations("dailydialog", "random")
    with pytest.raises(InputError, match="contradicts data_source 'random'"):
        load_text("random", "mine.txt")
    args = PretrainArguments(data_source="random", output_dir="unused")
    assert resolve_source("wikitext", "random", None)[0] == "random" and "random" in data_identity(args)


def test_a_model_is_trained_and_scored_on_them(tmp_path):
    few = {"max_steps": 2, "hidden_size": 32, "context_size": 16, "embedding_size": 16, "num_layers": 2}
    few |= {"eval_strategy": "steps", "save_strategy": "steps", "auto_precision": False}
    few |= {"data_source": "random", "output_dir": str(tmp_path / "run")}
    run = pretrain(PretrainArguments(**{**PRESETS["published-random"], **few}))
    metrics = evaluate(run)
    assert metrics["text"] == "500 random sentences, validation (seed 1)" and metrics["unk_rate"] == 0.0


def test_the_recipe_for_random_sentences():
    args = PretrainArguments(output_dir="unused", **PRESETS["published-random"])
    assert count_parameters(model_config(args, 1000)) == 4_052_968, "the published model had room for 1,000 words"
    assert (args.learning_rate, args.num_train_epochs) == (1e-4, 50)


@pytest.mark.parametrize(("name", "parameters"), [("published", 1_426_152), ("published-4-layers", 2_214_120)])
def test_the_recipe_for_wikitext(name, parameters):
    args = PretrainArguments(output_dir="unused", **PRESETS[name])
    assert (args.effective_batch_size, args.learning_rate, args.num_train_epochs) == (2048, 8e-4, 150)
    assert (args.max_length, args.stride, args.tokenizer, args.vocab_size) == (64, 32, "word", 1000)
    assert count_parameters(model_config(args, args.vocab_size)) == parameters


def test_rows_overlap_by_what_the_stride_leaves(text_file):
    text, tokenizer = load_text(data=str(text_file)).train, build_tokenizer("byte", [])
    plain, counts = packed_rows(text, tokenizer, 16)
    over, again = packed_rows(text, tokenizer, 16, stride=8)
    assert len(over) == 2 * len(plain) - 1 and counts == again
    for number in (0, 1, len(plain) - 1):
        for name in ("input_ids", "labels"):
            assert (over[2 * number][name] == plain[number][name]).all()
    between = over[1]["input_ids"]
    assert (between == np.concatenate([plain[0]["input_ids"][8:], plain[1]["input_ids"][:8]])).all()


@pytest.mark.parametrize("fields", [{"stride": 8}, {"stride": 7, "carry_context": False}])
def test_a_stride_that_cannot_be(fields):
    with pytest.raises(InputError, match=r"stride [78] has to divide max_length 16, without --carry_context"):
        PretrainArguments(output_dir="unused", max_length=16, **fields)
    with pytest.raises(InputError, match="stride has to be at least 1, got 0"):
        PretrainArguments(output_dir="unused", stride=0)


def test_a_run_over_rows_that_overlap_counts_them(text_file, tmp_path):
    small = {"data": str(text_file), "output_dir": str(tmp_path), "tokenizer": "byte", "carry_context": False}
    counted = [
        args.updates(len(prepare(args).train_rows))
        for args in (PretrainArguments(**small, num_parameters=120_000, stride=stride) for stride in (None, 32))
    ]
    assert counted[1] == pytest.approx(2 * counted[0], abs=3)
