"""The one exception that means: the input was wrong, nothing was lost, and this sentence says what to do."""


class InputError(ValueError):
    """Bad input, found at the boundary. The message is one sentence naming the field, the value and the remedy."""
