"""Generate token by token for a reader who watches: the tokens that transformers' `generate` gives, without its
bookkeeping, and with a state that outlives the reply, so that a conversation is never read twice. And what a generated
token costs as the history grows."""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast, set_seed

from ..data.chat_template import conversation_ids
from ..data.files import is_unicode
from ..data.tokenizer import end_token_ids, text_backend
from ..errors import InputError
from ..models.adjust import extend_positions
from ..models.gpu import GraphedCall, can_be_captured
from ..models.recurrent_model import ContextCache, RecurrentGenerationMixin, state_after
from .answer_format import AnswerFormat


class NextToken:
    """One more token through a model: (logits of the next one [B, V] in fp32, the state after it). On a GPU the step of
    a recurrent model is one CUDA graph."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.graphed = GraphedCall(self._graphed) if can_be_captured(model) else None

    @torch.no_grad()
    def __call__(
        self, input_ids: torch.LongTensor, state: ContextCache | transformers.Cache | None
    ) -> tuple[torch.Tensor, ContextCache | transformers.Cache]:
        """The tokens [B, T] after those of `state`; None before the first."""
        if self.graphed is not None and state is not None and input_ids.shape[1] == 1:
            logits, context = self.graphed(input_ids=input_ids, context=state.context)
            return logits.clone(), ContextCache(context.clone(), state.seen_tokens + 1)
        return self._read(input_ids, state)

    def _read(self, input_ids: torch.LongTensor, state: ContextCache | transformers.Cache | None) -> tuple:
        outputs = self.model(input_ids=input_ids, past_key_values=state, use_cache=True, logits_to_keep=1)
        return outputs.logits[:, -1].float(), state_after(outputs)

    def _graphed(self, input_ids: torch.LongTensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, state = self._read(input_ids, ContextCache(context))
        return logits, state.context


class TokenStream:
    """One sequence, its tokens so far and what the model keeps of them; `generator` draws, torch's global one if None.

    `read` are the tokens that the state, `cache`, is of, after those that `start` is of, and `dropped` counts earlier
    ones that had no room in a model with learned positions, and are forgotten.
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
        self.form: AnswerFormat | None = None  # that what follows has to keep to
        self.set_sampling(temperature, top_p, repetition_penalty)
        self.begin()

    def set_sampling(self, temperature: float, top_p: float, repetition_penalty: float) -> None:
        """How tokens are chosen from now on; the state stays. Temperature 0 takes the most likely token each time;
        otherwise one is drawn among the most likely ones that together have the probability `top_p`. The penalty is
        that of transformers; 1 is none."""
        self.greedy = temperature == 0
        self.looks_back = repetition_penalty != 1.0
        self.warpers = transformers.LogitsProcessorList()  # in the order in which `generate` applies them
        if self.looks_back:
            self.warpers.append(transformers.RepetitionPenaltyLogitsProcessor(repetition_penalty))
        if not self.greedy and temperature != 1.0:
            self.warpers.append(transformers.TemperatureLogitsWarper(temperature))
        if not self.greedy and top_p < 1.0:
            self.warpers.append(transformers.TopPLogitsWarper(top_p))

    def begin(self, start: torch.Tensor | None = None, tokens: int = 0) -> None:
        """Forget everything; a recurrent model may begin with the state `start` [1, S], which is of `tokens`
        tokens, unknown here."""
        self.start = None if start is None else start.to(self.model.device)
        self.start_tokens = tokens
        self.read: list[int] = []
        self.dropped = 0
        self.cache = None if self.start is None else ContextCache(self.start.clone(), tokens)

    @torch.no_grad()
    def continue_with(self, token_ids: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int]) -> Iterator[int]:
        """The tokens that follow `token_ids`, up to and without one of `stop_ids`. Only what the state does not hold
        yet is read: give the whole conversation every time."""
        token_ids = list(token_ids)
        if self.read != token_ids[: len(self.read)] or len(self.read) >= len(token_ids):
            self.begin(self.start, self.start_tokens)
        fresh = token_ids[len(self.read) :]
        history = torch.tensor([token_ids], device=self.model.device) if self.looks_back else None
        if self.form is not None:
            self.form.begin()
        for _ in range(max_new_tokens):
            logits = self._next_logits(fresh)
            if not logits.isfinite().all():
                raise InputError("model: its weights are damaged, they give no finite numbers; copy or train it again.")
            if self.form is not None:
                logits = self.form.only_possible(logits)
            logits = self.warpers(history, logits)
            if self.greedy:
                chosen = logits.argmax(dim=-1, keepdim=True)
            else:
                chosen = torch.multinomial(logits.softmax(dim=-1), num_samples=1, generator=self.generator)
            token = int(chosen)
            if token in stop_ids:
                return
            if self.form is not None:
                self.form.take(token)
            yield token
            if history is not None:
                history = torch.cat([history, chosen], dim=1)
            fresh = [token]

    @torch.no_grad()
    def catch_up(self, token_ids: Sequence[int]) -> None:
        """Read `token_ids` to their end, as far as the state does not hold them yet, and say nothing."""
        token_ids = list(token_ids)
        if self.read != token_ids[: len(self.read)]:
            self.begin(self.start, self.start_tokens)
        if fresh := token_ids[len(self.read) :]:
            self._next_logits(fresh)

    def _next_logits(self, fresh: list[int]) -> torch.Tensor:
        """[1, vocabulary] fp32 after `fresh` has been read too."""
        if self.window is not None and len(self.read) + len(fresh) > self.window:
            # Positions have run out: the latter half of the text is read anew and goes on from there.
            whole = self.read + fresh
            dropped, fresh = self.dropped + len(whole) - self.window // 2, whole[-(self.window // 2) :]
            self.begin(self.start, self.start_tokens)
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
    """Raises InputError for a value outside its range: within it, no score of a token overflows."""
    for name, value, is_right, rule in (  # nan is never right
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "be at least 1"),
        ("temperature", temperature, temperature == 0 or 1e-3 <= temperature < math.inf, "be 0 (greedy) or >= 0.001"),
        ("top_p", top_p, 0 < top_p <= 1, "lie in (0, 1]"),
        ("repetition_penalty", repetition_penalty, 0.01 <= repetition_penalty <= 100, "lie in [0.01, 100] (1 is none)"),
        ("seed", seed, seed is None or 0 <= seed < 2**32, f"lie in [0, {2**32 - 1}]"),
    ):
        if not is_right:
            raise InputError(f"{name} has to {rule}, got {value}.")


def continue_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    max_new_tokens: int = 60,
    seed: int = 0,
    temperature: float = 0.8,
    top_p: float = 0.95,
) -> str:
    """The text that follows `prompt`, without it. The prompt is read after one end-of-text token, as every document
    in training; temperature 0 takes the most likely token each time."""
    set_seed(seed)
    ids = document_ids(tokenizer, prompt)
    tokens = TokenStream(model, temperature, top_p).continue_with(ids, max_new_tokens, end_token_ids(tokenizer))
    return tokenizer.decode(list(tokens), skip_special_tokens=True)


def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, max_new_tokens: int = 60) -> str:
    """What a model with a chat template replies to `prompt`, the most likely token each time; what one without writes
    after it."""
    if tokenizer.chat_template is None:
        return continue_prompt(model, tokenizer, prompt, max_new_tokens)
    return " " + reply_to(model, tokenizer, [{"role": "user", "content": prompt}], max_new_tokens)[0]


def reply_to(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], max_new_tokens: int = 60
) -> tuple[str, bool]:
    """(the model's turn after `messages`, the most likely token each time; whether it ended it by itself)."""
    stream = TokenStream(model, temperature=0)
    ids = conversation_ids(messages, tokenizer)
    tokens = list(stream.continue_with(ids, max_new_tokens, end_token_ids(tokenizer)))
    return tokenizer.decode(tokens, skip_special_tokens=True).strip(), len(tokens) < max_new_tokens


@torch.no_grad()
def token_cost(model: PreTrainedModel, history_tokens: int, repeats: int = 20) -> tuple[float, int]:
    """(median milliseconds for one more token, bytes of state held) after `history_tokens` tokens, batch of one. A
    model with learned positions is timed on a copy with as many positions as it takes."""
    input_ids = torch.randint(0, model.config.vocab_size, (1, history_tokens), device=model.device)
    is_recurrent = isinstance(model, RecurrentGenerationMixin)
    if not is_recurrent:
        model = copy.deepcopy(model)
        extend_positions(model, history_tokens + repeats + 1)
    next_token = NextToken(model.eval())
    cache = next_token(input_ids, None)[1] if is_recurrent else _filled_key_value_cache(model, history_tokens)

    def step() -> None:
        nonlocal cache
        cache = next_token(input_ids[:, -1:], cache)[1]

    return _median_milliseconds(step, model.device, repeats), state_bytes(cache)


@torch.no_grad()
def batch_cost(model: PreTrainedModel, rows: int, length: int, repeats: int = 5) -> float:
    """Median milliseconds of a forward pass over [rows, length] tokens, up to the next one of each row."""
    input_ids = torch.randint(0, model.config.vocab_size, (rows, length), device=model.device)
    forward = partial(model.eval(), input_ids, use_cache=False, logits_to_keep=1)
    return _median_milliseconds(forward, model.device, repeats)


def _median_milliseconds(step: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Of a call of `step`, after one that counts for nothing."""
    milliseconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        milliseconds.append(1000 * (time.perf_counter() - started))
    return statistics.median(milliseconds[1:])


@torch.no_grad()
def trace_context(
    model: PreTrainedModel, token_ids: Sequence[int], last: int, start: torch.Tensor | None = None
) -> torch.Tensor:
    """[T + 1, N] fp32, on the CPU: the N numbers of the context vector before the last T = min(last, all) of
    `token_ids`, at least one, and after each. `start` is the [1, S] state before the first of them; None is zero."""
    token_ids = torch.tensor([list(token_ids)], device=model.device)
    cache = ContextCache(None if start is None else start.to(model.device))

    def read(begin: int, end: int) -> torch.Tensor:
        model(input_ids=token_ids[:, begin:end], past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache.context

    earlier = max(token_ids.shape[1] - last, 0)
    before = read(0, earlier) if earlier else cache.context
    states = [read(position, position + 1) for position in range(earlier, token_ids.shape[1])]
    states = torch.cat([torch.zeros_like(states[0]) if before is None else before, *states])
    return states[:, : model.config.context_numbers].float().cpu()


def state_bytes(cache: ContextCache | DynamicCache) -> int:
    """Bytes of a model's memory of the text."""
    if isinstance(cache, ContextCache):
        return cache.nbytes
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _filled_key_value_cache(model: PreTrainedModel, tokens: int) -> DynamicCache:
    """A cache as it stands after `tokens` tokens, filled with noise: running them would take long and change nothing
    about the time of the next one."""
    config = model.config
    shape = (1, config.num_attention_heads, tokens, config.hidden_size // config.num_attention_heads)
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        cache.update(*torch.randn(2, *shape).to(model.device), layer)
    return cache
