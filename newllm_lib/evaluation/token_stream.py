"""Generate token by token for a reader who watches: the tokens that transformers' `generate` gives, without its
bookkeeping, and with a state that outlives the reply, so that a conversation is never read twice.

Dimensions: V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from transformers import (
    Cache,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from ..data.files import is_unicode
from ..data.tokenizer import text_backend
from ..errors import InputError
from ..models.context_cache import ContextCache, state_after
from ..models.gpu import GraphedCall, can_be_captured


class NextToken:
    """One more token through a model: (logits of the next one [B, V] in fp32, the state after it). On a GPU the step of
    a recurrent model is one CUDA graph."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.graphed = GraphedCall(self._graphed) if can_be_captured(model) else None

    @torch.no_grad()
    def __call__(
        self, input_ids: torch.LongTensor, state: ContextCache | Cache | None
    ) -> tuple[torch.Tensor, ContextCache | Cache]:
        """The tokens [B, T] after those of `state`; None before the first."""
        if self.graphed is not None and state is not None and input_ids.shape[1] == 1:
            logits, context = self.graphed(input_ids=input_ids, context=state.context)
            return logits.clone(), ContextCache(context.clone(), state.seen_tokens + 1)
        outputs = self.model(input_ids=input_ids, past_key_values=state, use_cache=True, logits_to_keep=1)
        return outputs.logits[:, -1].float(), state_after(outputs)

    def _graphed(self, input_ids: torch.LongTensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.model(
            input_ids=input_ids, past_key_values=ContextCache(context), use_cache=True, logits_to_keep=1
        )
        return outputs.logits[:, -1].float(), state_after(outputs).context


class TokenStream:
    """One sequence, its tokens so far and what the model keeps of them.

    Args:
        temperature: 0 takes the most likely token each time; otherwise tokens are drawn.
        top_p: draw among the most likely tokens that together have this probability.
        repetition_penalty: as in transformers; 1 is none.
        generator: draws; None is torch's global one.

    Attributes:
        read: the tokens that the state is of, after those that `start` is of.
        cache: the state, as the model has made it; None before the first token.
        start: [1, S] state that a recurrent model begins with in place of none.
        dropped: earlier tokens that had no room in a model with learned positions, and are forgotten.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float = 0.8,
        top_p: float = 0.95,
        repetition_penalty: float = 1.0,
        generator: torch.Generator | None = None,
    ):
        self.model, self.next_token = model.eval(), NextToken(model)
        self.window = getattr(model.config, "n_positions", None)  # of a model with learned positions
        self.generator = generator
        self.set_sampling(temperature, top_p, repetition_penalty)
        self.begin()

    def set_sampling(self, temperature: float, top_p: float, repetition_penalty: float) -> None:
        """How tokens are chosen from now on; the state stays."""
        self.greedy = temperature == 0
        self.warpers = LogitsProcessorList()  # in the order in which `generate` applies them
        if repetition_penalty != 1.0:
            self.warpers.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
        if not self.greedy and temperature != 1.0:
            self.warpers.append(TemperatureLogitsWarper(temperature))
        if not self.greedy and top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(top_p))

    def begin(self, start: torch.Tensor | None = None, tokens: int = 0) -> None:
        """Forget everything; a recurrent model may begin with the state `start` [1, S], which is of `tokens`
        tokens, unknown here."""
        self.start = None if start is None else start.to(self.model.device)
        self.start_tokens = tokens
        self._forget()

    def _forget(self) -> None:
        self.read: list[int] = []
        self.dropped = 0
        self.cache = None if self.start is None else ContextCache(self.start.clone(), self.start_tokens)

    @torch.no_grad()
    def continue_with(self, token_ids: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int]) -> Iterator[int]:
        """The tokens that follow `token_ids`, up to and without one of `stop_ids`.

        Of `token_ids` only what the state does not hold yet is read: give the whole conversation every time.
        """
        token_ids = list(token_ids)
        if self.read != token_ids[: len(self.read)] or len(self.read) >= len(token_ids):
            self._forget()
        fresh = token_ids[len(self.read) :]
        history = torch.tensor([token_ids], device=self.model.device) if self._looks_back() else None
        for _ in range(max_new_tokens):
            logits = self._next_logits(fresh)
            if not logits.isfinite().all():
                raise InputError("model: its weights are damaged, they give no finite numbers; copy or train it again.")
            logits = self.warpers(history, logits)
            if self.greedy:
                chosen = logits.argmax(dim=-1, keepdim=True)
            else:
                chosen = torch.multinomial(logits.softmax(dim=-1), num_samples=1, generator=self.generator)
            token = int(chosen)
            if token in stop_ids:
                return
            yield token
            if history is not None:
                history = torch.cat([history, chosen], dim=1)
            fresh = [token]

    @torch.no_grad()
    def catch_up(self, token_ids: Sequence[int]) -> None:
        """Read `token_ids` to their end, as far as the state does not hold them yet, and say nothing."""
        token_ids = list(token_ids)
        if self.read != token_ids[: len(self.read)]:
            self._forget()
        if fresh := token_ids[len(self.read) :]:
            self._next_logits(fresh)

    def _looks_back(self) -> bool:
        return any(isinstance(warper, RepetitionPenaltyLogitsProcessor) for warper in self.warpers)

    def _next_logits(self, fresh: list[int]) -> torch.Tensor:
        """[1, V] fp32 after `fresh` has been read too."""
        if self.window is not None and len(self.read) + len(fresh) > self.window:
            # Positions have run out: the latter half of the text is read anew and goes on from there.
            whole = self.read + fresh
            dropped, fresh = self.dropped + len(whole) - self.window // 2, whole[-(self.window // 2) :]
            self._forget()
            self.dropped = dropped
        input_ids = torch.tensor([fresh], device=self.model.device)
        logits, self.cache = self.next_token(input_ids, self.cache)
        self.read += fresh
        return logits


def document_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The tokens of a text's beginning, after one end-of-text token, as every document in training."""
    return [tokenizer.eos_token_id, *text_backend(tokenizer).encode(text, add_special_tokens=False).ids]


def check_prompt(text: str) -> None:
    """Raises InputError for what is no text: bytes of a terminal with another encoding, half of a surrogate pair."""
    if not is_unicode(text):
        raise InputError("prompt holds bytes that are no UTF-8 text; set the terminal to UTF-8, or type it anew.")


def check_sampling(
    max_new_tokens: int, temperature: float, top_p: float, repetition_penalty: float = 1.0, seed: int | None = None
) -> None:
    """Raises InputError for a value outside its range."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens has to be at least 1, got {max_new_tokens}.")
    if not 0 <= temperature < math.inf:  # nan is neither
        raise InputError(f"temperature has to be 0 (greedy) or more, got {temperature}.")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p has to lie in (0, 1], got {top_p}.")
    if not 0 < repetition_penalty < math.inf:
        raise InputError(f"repetition_penalty has to be above 0 (1 is none), got {repetition_penalty}.")
    if seed is not None and not 0 <= seed < 2**32:
        raise InputError(f"seed has to lie in [0, {2**32 - 1}], got {seed}.")
