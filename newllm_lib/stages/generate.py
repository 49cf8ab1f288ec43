"""Continue a prompt with one trained model."""

from pathlib import Path

from ..errors import InputError
from ..evaluation.generation import continue_prompt
from .evaluate import open_model


def generate(
    path: str | Path,
    prompt: str,
    max_new_tokens: int = 60,
    seed: int = 0,
    temperature: float = 0.8,
    top_p: float = 0.95,
) -> str:
    """The prompt and what the model in folder `path` writes after it.

    Raises:
        InputError: bad folder, or a value outside its range.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens has to be at least 1, got {max_new_tokens}.")
    if temperature < 0:
        raise InputError(f"temperature has to be 0 (greedy) or more, got {temperature}.")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p has to lie in (0, 1], got {top_p}.")
    trained = open_model(path)
    return prompt + continue_prompt(trained.model, trained.tokenizer, prompt, max_new_tokens, seed, temperature, top_p)
