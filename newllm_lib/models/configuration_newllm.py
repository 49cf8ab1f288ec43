"""Configuration of New-LLM: a language model that carries one fixed-size context vector and has no attention."""

from transformers import PreTrainedConfig

INITIALIZERS = ("scaled", "normal")


class NewLLMConfig(PreTrainedConfig):
    """Sizes and choices of a New-LLM. The defaults are the recommended model; `NewLLMConfig.reference()` is the
    cell exactly as published.

    Args:
        vocab_size: number of token types, V.
        embedding_size: width of a token embedding, E.
        context_size: width of the context vector carried from token to token, C.
        hidden_size: width of the hidden layers, H.
        num_hidden_layers: number of hidden layers between input and gates, L >= 1.
        dropout: probability of dropping a hidden unit, in [0, 1).
        recurrent_dropout: also drop the hidden units that gates and deeper layers see, as published; otherwise only
            those on their way to the head, as in an LSTM language model.
        context_clamp: bound on every element of the context after its LayerNorm.
        layer_norm_eps: epsilon of the context's LayerNorm (and of the head's RMSNorm).
        tie_word_embeddings: True: hidden -> E projection -> RMSNorm -> logits against the embedding table.
            False: one linear layer H -> V with bias, as published.
        embedding_scale: factor on embeddings as they enter the cell. None takes E ** 0.5 with tied embeddings (as in
            Vaswani et al. 2017, section 3.4) and 1 otherwise, as published.
        initializer: "scaled" (He/Xavier weights, embeddings of variance 1 / embedding_scale ** 2, forget-gate bias +1)
            or "normal" (every weight from N(0, initializer_range), as published).
        initializer_range: standard deviation for `initializer="normal"`.

    Raises:
        ValueError: a size is not a positive integer, dropout is outside [0, 1) or the initializer is unknown.
    """

    model_type = "newllm"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 4096,
        embedding_size: int = 256,
        context_size: int = 320,
        hidden_size: int = 640,
        num_hidden_layers: int = 1,
        dropout: float = 0.1,
        recurrent_dropout: bool = False,
        context_clamp: float = 10.0,
        layer_norm_eps: float = 1e-5,
        tie_word_embeddings: bool = True,
        embedding_scale: float | None = None,
        initializer: str = "scaled",
        initializer_range: float = 0.02,
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs,
    ):
        sizes = {
            "vocab_size": vocab_size,
            "embedding_size": embedding_size,
            "context_size": context_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
        }
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a positive integer, got {size!r}.")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout!r}.")
        if initializer not in INITIALIZERS:
            raise ValueError(f"initializer must be one of {', '.join(INITIALIZERS)}, got {initializer!r}.")
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.context_size = context_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.dropout = dropout
        self.recurrent_dropout = recurrent_dropout
        self.context_clamp = context_clamp
        self.layer_norm_eps = layer_norm_eps
        if embedding_scale is None:
            embedding_scale = embedding_size**0.5 if tie_word_embeddings else 1.0
        self.embedding_scale = embedding_scale
        self.initializer = initializer
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        super().__init__(
            tie_word_embeddings=tie_word_embeddings,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            **kwargs,
        )

    @classmethod
    def reference(cls, **sizes) -> "NewLLMConfig":
        """The published cell: E = C = 256, H = 512, untied head, N(0, 0.02) weights. `sizes` override fields."""
        published = {
            "vocab_size": 1000,
            "embedding_size": 256,
            "context_size": 256,
            "hidden_size": 512,
            "tie_word_embeddings": False,
            "recurrent_dropout": True,
            "initializer": "normal",
        }
        return cls(**{**published, **sizes})
