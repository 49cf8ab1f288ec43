"""The byte tokenizer as runs have saved it before there were role tokens."""

import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from newllm_lib.data.tokenizer import END_OF_TEXT, PAD, build_tokenizer


def earlier_byte_tokenizer() -> PreTrainedTokenizerFast:
    """Of 258 types."""
    backend = json.loads(build_tokenizer("byte", []).backend_tokenizer.to_str())
    backend["added_tokens"] = backend["added_tokens"][:2]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
