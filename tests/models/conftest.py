"""A small model of every recurrent kind, and tokens for it."""

import pytest
import torch

from newllm_lib.models import (
    LSTMConfig,
    LSTMForCausalLM,
    NewLLMConfig,
    NewLLMForCausalLM,
    NewLLMReferenceConfig,
    NewLLMReferenceForCausalLM,
)

MARKERS_OF_SUITES = (
    "accelerate_tests", "bitsandbytes", "flash_attn_3_test", "flash_attn_4_test", "flash_attn_test", "generate",
    "is_training_test", "torch_compile_test",
)  # fmt: skip
SIZES = {"vocab_size": 41, "hidden_size": 16, "dropout": 0.0}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 40, "bos_token_id": 40}


@pytest.fixture(params=["newllm", "newllm-4-layers", "newllm-reference", "lstm", "lstm-2-layers"])
def model(request):
    if request.param.startswith("lstm"):
        layers = 2 if "2" in request.param else 1
        model = LSTMForCausalLM(LSTMConfig(**SIZES, **SPECIAL, embedding_size=12, num_hidden_layers=layers))
    elif request.param == "newllm-reference":
        sizes = {"embedding_size": 12, "context_size": 14, "num_hidden_layers": 2}
        model = NewLLMReferenceForCausalLM(NewLLMReferenceConfig(**SIZES, **SPECIAL, **sizes))
    else:
        sizes = {"context_size": 14, "intermediate_size": 24, "num_hidden_layers": 4 if "4" in request.param else 1}
        model = NewLLMForCausalLM(NewLLMConfig(**SIZES, **SPECIAL, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def pytest_configure(config):
    for marker in MARKERS_OF_SUITES:
        config.addinivalue_line("markers", f"{marker}: of the suites of other libraries")
