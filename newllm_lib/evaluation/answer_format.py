"""Replies that keep to a format, JSON or a regular expression: before each token the library llguidance says which ones
can still lead to such a reply, and all others are ruled out (https://github.com/guidance-ai/llguidance)."""

import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from ..data.tokenizer import end_token_ids
from ..errors import InputError

ANY_OBJECT = {"type": "object"}
TIGHT = {"whitespace_flexible": False}  # else a small model writes spaces between the parts for ever
POSSIBLE = 200  # llguidance's number for a token that may follow


class AnswerFormat:
    """What a reply has to look like: "json", the name of a .json file with a JSON schema, or a regular expression that
    all of the reply has to match. Raises InputError: it is none of them, the package is missing, or it cannot read the
    tokenizer."""

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerFast, vocab_size: int):
        if find_spec("llguidance") is None:
            remedy = "run pip install 'newllm[formats]', or leave it out"
            raise InputError(f"answer_format needs the package llguidance; {remedy}.", "NL-102")
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer

        self.ends: Sequence[int] = end_token_ids(tokenizer)
        try:
            if text == "json" or text.endswith(".json"):
                schema = ANY_OBJECT if text == "json" else json.loads(Path(os.path.expanduser(text)).read_text("utf-8"))
                grammar = LLMatcher.grammar_from_json_schema(schema, TIGHT)
            else:
                grammar = LLMatcher.grammar_from_regex(text)
            if problem := LLMatcher.validate_grammar(grammar):
                raise ValueError(problem)
            self.matcher = LLMatcher(from_tokenizer(tokenizer, vocab_size, list(self.ends)), grammar)
            if problem := self.matcher.get_error():
                raise ValueError(problem)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            why = " ".join(str(error).split())[:200]
            wanted = "json, the name of a .json file with a JSON schema, or a regular expression"
            raise InputError(f"answer_format has to be {wanted}, got {text!r}, which cannot be used: {why}") from error

    def begin(self) -> None:
        """A new reply."""
        self.matcher.reset()

    def only_possible(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits [1, vocabulary] of the tokens that can follow; a reply that is complete has to end."""
        bias = torch.frombuffer(bytearray(self.matcher.compute_logit_bias()), dtype=torch.uint8)
        is_possible = (bias == POSSIBLE).to(logits.device)
        return logits.masked_fill(~is_possible, -torch.inf)

    def take(self, token: int) -> None:
        """`token` was chosen."""
        self.matcher.consume_token(token)
