"""Talk to a trained model: history in, streamed reply out, whatever the model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tokenizers.decoders import DecodeStream
from transformers import set_seed

from .data.chat_template import plain_messages
from .evaluation.forgetting import adapters_off
from .evaluation.token_stream import TokenStream, check_sampling, document_ids
from .stages.evaluate import TrainedModel, open_model


class Chat:
    """A conversation with the model in a folder, or with one that is open already.

    A model with a chat template gets the conversation as its template renders it; one without, such as a pretrained
    model, goes on with the text so far. The model's state is kept from turn to turn: what it holds is not read again,
    unless the conversation, turned into tokens anew, comes out otherwise than the model wrote it.

    Args:
        repetition_penalty: None takes what the model's folder says.
        base: talk to what the adapters were trained on. Both can be talked to at once, with one model in memory.

    Attributes:
        messages: the conversation, as {"role": "user" or "assistant", "content": text}.

    Raises:
        InputError: the folder is not one of our trained models, or a value is outside its range.
    """

    def __init__(
        self,
        path: str | Path | TrainedModel,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_p: float = 0.95,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        base: bool = False,
    ):
        check_sampling(max_new_tokens, temperature, top_p, 1.0 if repetition_penalty is None else repetition_penalty)
        trained = path if isinstance(path, TrainedModel) else open_model(path)
        if repetition_penalty is None:
            repetition_penalty = trained.model.generation_config.repetition_penalty or 1.0
        self.tokenizer = trained.tokenizer
        self.max_new_tokens = max_new_tokens
        self.model = trained.model
        self.base = base
        self.stream = TokenStream(trained.model, temperature, top_p, repetition_penalty)
        self.messages: list[dict[str, str]] = []
        if seed is not None:
            set_seed(seed)

    def reply(self, text: str) -> Iterator[str]:
        """Say `text`; yields the reply piece by piece as it is made. The conversation grows by both when it is done, or
        when the caller stops listening."""
        self.messages.append({"role": "user", "content": text})
        pieces = []
        # A template sets the white space around what is said: kept, it would stand there twice in the next turn.
        is_templated = self.tokenizer.chat_template is not None
        # Bytes of one character may be spread over tokens: the decoder holds them back until it is whole.
        decoder = DecodeStream(skip_special_tokens=True)
        try:
            for token in self._tokens():
                piece = decoder.step(self.tokenizer.backend_tokenizer, token)
                if piece and is_templated and not pieces:
                    piece = piece.lstrip()
                if piece:
                    pieces.append(piece)
                    yield piece
        finally:
            said = "".join(pieces)
            self.messages.append({"role": "assistant", "content": said.rstrip() if is_templated else said})

    def reset(self) -> None:
        """Begin a new conversation."""
        self.messages.clear()

    def _tokens(self) -> Iterator[int]:
        tokens = self.stream.continue_with(self._token_ids(), self.max_new_tokens, [self.tokenizer.eos_token_id])
        while True:
            # Between two tokens the adapters are on again: others may be talking to the same model.
            with adapters_off(self.model) if self.base else contextlib.nullcontext():
                token = next(tokens, None)
            if token is None:
                return
            yield token

    def _token_ids(self) -> list[int]:
        if self.tokenizer.chat_template is not None:
            messages = plain_messages(self.messages, self.tokenizer)
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return document_ids(self.tokenizer, "".join(message["content"] for message in self.messages))
