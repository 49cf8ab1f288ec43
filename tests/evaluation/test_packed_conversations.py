"""Conversations side by side in a row know nothing of each other: the loss that is trained on is the one that is
scored."""

import pytest
import torch
from torch.nn import functional

from newllm_lib.data.chat_template import TEMPLATES, ConversationFormat
from newllm_lib.data.conversations import conversation_documents, conversation_rows, load_conversations
from newllm_lib.data.text import collate_rows, positions_within_row
from newllm_lib.evaluation.perplexity import score_documents
from newllm_lib.models import build_config, build_model


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
@pytest.mark.parametrize("model_type", ["newllm", "newllm-reference", "tiny-gpt2", "lstm"])
def test_packed_rows_have_the_loss_of_each_conversation_alone(tmp_path, byte_tokenizer, model_type, loss_on):
    data = tmp_path / "talk.jsonl"
    lines = [f'{{"prompt": "Say {n}?", "completion": "{"so " * (n % 4)}{n}"}}\n' for n in range(30)]
    data.write_text("".join(lines))
    byte_tokenizer.chat_template = TEMPLATES["dialogue"]
    conversations = load_conversations(data=str(data), eval_data=str(data)).train
    form = ConversationFormat(96, loss_on)
    rows, counts = conversation_rows(conversations, byte_tokenizer, form)
    documents = conversation_documents(conversations, byte_tokenizer, form)
    byte_tokenizer.chat_template = None
    assert len(rows) < len(documents.documents) == 30
    model = build_model(build_config(model_type, len(byte_tokenizer), 96, num_parameters=120_000)).eval()
    batch = collate_rows(rows.__getitems__(range(len(rows))))
    labels = batch["shift_labels"]
    assert int((labels != -100).sum()) == counts.tokens == documents.counts.tokens
    with torch.no_grad():
        positions = positions_within_row(batch["position_ids"])
        assert torch.equal(positions, batch["position_ids"])
        logits = model(input_ids=batch["input_ids"], position_ids=positions, use_cache=False).logits
    packed = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    alone = score_documents(model, documents, byte_tokenizer.eos_token_id, 96, batch_size=7)
    assert float(packed) == pytest.approx(alone.loss, rel=1e-5)
