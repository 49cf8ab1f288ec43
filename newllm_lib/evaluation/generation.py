"""Continue prompts, and measure what a generated token costs as the history grows.

Dimensions: L layers, T tokens of history.
"""

import copy
import statistics
import time

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast, set_seed

from ..data.chat_template import conversation_ids
from ..data.tokenizer import end_token_ids
from ..models.context_cache import ContextCache, RecurrentGenerationMixin
from .token_stream import NextToken, TokenStream, document_ids


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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    messages: list[dict[str, str]],
    max_new_tokens: int = 60,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> tuple[str, bool]:
    """(the model's turn after `messages`, whether it ended it by itself)."""
    ids = conversation_ids(messages, tokenizer)
    stream = TokenStream(model, temperature, top_p)
    tokens = list(stream.continue_with(ids, max_new_tokens, end_token_ids(tokenizer)))
    return tokenizer.decode(tokens, skip_special_tokens=True).strip(), len(tokens) < max_new_tokens


@torch.no_grad()
def token_cost(model: PreTrainedModel, history_tokens: int, repeats: int = 20) -> tuple[float, int]:
    """(median milliseconds for one more token, bytes of state held) after `history_tokens` tokens, batch of one.

    A model with learned positions is timed on a copy with as many positions as it takes.
    """
    next_token = NextToken(model.eval())
    input_ids = torch.randint(0, model.config.vocab_size, (1, history_tokens), device=model.device)
    if isinstance(model, RecurrentGenerationMixin):
        _, cache = next_token(input_ids, None)
    else:
        model = _with_positions(model, history_tokens + repeats + 1)
        next_token = NextToken(model)
        cache = _filled_key_value_cache(model, history_tokens)
    milliseconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        _, cache = next_token(input_ids[:, -1:], cache)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        milliseconds.append(1000 * (time.perf_counter() - started))
    return statistics.median(milliseconds[1:]), state_bytes(cache)


def state_bytes(cache: ContextCache | DynamicCache) -> int:
    """Bytes of a model's memory of the text."""
    if isinstance(cache, ContextCache):
        return cache.nbytes
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _with_positions(model: PreTrainedModel, positions: int) -> PreTrainedModel:
    """The model, or a copy of it with more learned positions (their values do not matter for time)."""
    if model.config.n_positions >= positions:
        return model
    longer = copy.deepcopy(model)
    table = longer.transformer.wpe
    longer.transformer.wpe = torch.nn.Embedding(positions, table.embedding_dim).to(table.weight)
    longer.config.n_positions = positions
    return longer


def _filled_key_value_cache(model: PreTrainedModel, tokens: int) -> DynamicCache:
    """A cache as it stands after `tokens` tokens, filled with noise: running them would take long and change nothing
    about the time of the next one."""
    config = model.config
    shape = (1, config.num_attention_heads, tokens, config.hidden_size // config.num_attention_heads)
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        cache.update(torch.randn(shape).to(model.device), torch.randn(shape).to(model.device), layer)
    return cache
