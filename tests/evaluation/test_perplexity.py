import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from newllm_lib.data.text import Document, EvaluationDocuments, TextCounts
from newllm_lib.evaluation.perplexity import score_documents, text_metrics
from newllm_lib.models import build_config, build_model

START = 99


def documents_of(*lengths: int) -> EvaluationDocuments:
    generator = np.random.default_rng(0)
    return EvaluationDocuments(
        [
            Document(
                generator.integers(1, 99, length).astype(np.int32),
                TextCounts(1, length, 3 * length, length // 2 + 1),
            )
            for length in lengths
        ],
        "random tokens",
    )


def small_model(model_type: str, max_length: int = 16):
    return build_model(build_config(model_type, 100, max_length, num_parameters=40_000)).eval()


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("model_type", ["newllm", "newllm-reference", "lstm"])
def test_a_recurrent_model_reads_each_document_from_its_start(model_type, batch_size):
    """Equals the plain way: one document at a time, all at once, every token scored once."""
    model = small_model(model_type)
    documents = documents_of(1, 70, 16, 17, 33, 5)
    nats, correct = 0.0, 0
    with torch.no_grad():
        for document in documents.documents:
            ids = torch.tensor([[START, *document.token_ids]])
            logits = model(ids[:, :-1]).logits[0]
            nats += functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            correct += (logits.argmax(-1) == ids[0, 1:]).sum().item()
    metrics = score_documents(model, documents, START, max_length=16, batch_size=batch_size)
    assert metrics.tokens == 142
    assert metrics.loss == pytest.approx(nats / 142, rel=1e-6)
    assert metrics.token_accuracy == correct / 142


def test_what_has_been_read_to_its_end_is_not_read_on():
    """A long document beside short ones: 17 rows at first, one at the end."""
    model = small_model("newllm")
    rows = []
    model.model.register_forward_pre_hook(
        lambda _, args, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    score_documents(model, documents_of(160, 20, *[16] * 15), START, max_length=16, batch_size=32)
    assert rows == [17, 2, *[1] * 8]


@pytest.mark.parametrize("batch_size", [1, 32])
def test_a_model_with_a_window_scores_every_token_once_with_half_a_window_before_it(batch_size):
    model = small_model("tiny-gpt2")
    documents = documents_of(1, 8, 9, 16, 17, 70)
    nats = 0.0
    with torch.no_grad():
        for document in documents.documents:
            ids = [START, *document.token_ids]
            for target in range(1, len(ids)):
                # The first window begins at 0, the next ones every 8 tokens; the earliest that holds the target counts.
                begin = max(0, math.ceil((target - 16) / 8) * 8)
                assert target - begin >= min(target, 9)
                logits = model(torch.tensor([ids[begin:target]]), use_cache=False).logits[0, -1]
                nats -= functional.log_softmax(logits, -1)[ids[target]].item()
    metrics = score_documents(model, documents, START, max_length=16, batch_size=batch_size)
    assert metrics.tokens == 121
    assert metrics.loss == pytest.approx(nats / 121, rel=1e-5)


def test_uniform_bytes_cost_eight_bits():
    counts = TextCounts(documents=1, tokens=1000, bytes=1000, words=200)
    metrics = text_metrics(1000 * math.log(256), 4, counts)
    assert metrics.bits_per_byte == pytest.approx(8.0)
    assert metrics.perplexity == pytest.approx(256.0)
    assert metrics.word_perplexity == pytest.approx(256.0**5)
    assert metrics.token_accuracy == 0.004


def test_unknown_tokens_leave_no_figure_that_they_would_flatter():
    metrics = text_metrics(300.0, 10, TextCounts(1, 100, 500, 100, unknown_tokens=30))
    assert metrics.unk_rate == 0.3
    assert metrics.bits_per_byte is None
    assert metrics.word_perplexity is None
    assert metrics.perplexity == pytest.approx(math.exp(3))


def test_scoring_leaves_the_mode_as_it_was():
    model = small_model("newllm").train()
    score_documents(model, documents_of(9), START, 16, 4)
    assert model.training
