"""Continue a prompt with one trained model."""

from pathlib import Path

from ..evaluation.generation import check_prompt, check_sampling, continue_prompt
from ..training.trained_model import open_model


def generate(
    path: str | Path,
    prompt: str,
    max_new_tokens: int = 60,
    seed: int = 0,
    temperature: float = 0.8,
    top_p: float = 0.95,
    base: str | None = None,
) -> str:
    """The prompt and what the model in folder `path` writes after it. `base` is that of `open_model`. Raises
    InputError: bad folder, a prompt that is no text, or a value outside its range."""
    check_sampling(max_new_tokens, temperature, top_p, seed=seed)
    check_prompt(prompt)
    trained = open_model(path, base)
    return prompt + continue_prompt(trained.model, trained.tokenizer, prompt, max_new_tokens, seed, temperature, top_p)
