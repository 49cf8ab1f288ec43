"""Random Gemma models of every generation, small enough for a test, with a tokenizer of bytes."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GemmaConfig, PreTrainedModel

from newllm_lib.data.tokenizer import build_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.2,  # the usual 0.02 makes models of this size say the same whatever they read
}
GEMMA_2B = {  # google/gemma-2b, config.json; for GemmaConfig
    "vocab_size": 256_000, "hidden_size": 2048, "intermediate_size": 16_384, "num_hidden_layers": 18,
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
}  # fmt: skip
CONFIGS = {
    "gemma": (GemmaConfig, {}),
    "gemma2": (Gemma2Config, {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16, "sliding_window": 32}),
    "gemma3": (Gemma3TextConfig, {"query_pre_attn_scalar": 16, "sliding_window": 32}),
}


def tiny_gemma(kind: str = "gemma3", **changes) -> PreTrainedModel:
    """In fp32, always the same."""
    tokenizer = build_tokenizer("byte", [])
    config_class, more = CONFIGS[kind]
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    config = config_class(**{**SIZES, **more, **ids, "vocab_size": len(tokenizer), **changes})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def tiny_gemma_folder(folder: Path, kind: str = "gemma3", **changes) -> Path:
    """Saved with its tokenizer."""
    tiny_gemma(kind, **changes).save_pretrained(folder)
    build_tokenizer("byte", []).save_pretrained(folder)
    return folder


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of those that are trained."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
