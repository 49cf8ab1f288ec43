"""Talk to a trained model: history in, streamed reply out, whatever the model. What a recurrent model remembers of the
conversation can be written to a file and taken up again."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers.decoders import DecodeStream

from .data.chat_template import conversation_ids
from .data.tokenizer import end_token_ids
from .errors import InputError
from .evaluation.generation import TokenStream, check_prompt, check_sampling, document_ids, state_bytes, trace_context
from .evaluation.memory_file import Memory, read_memory
from .models.frozen_head import adapters_off
from .models.recurrent_model import RecurrentGenerationMixin
from .training.disk import write_bytes
from .training.trained_model import TrainedModel, open_model, weights_hash


class Chat:
    """A conversation with the model in a folder, or with one that is open already.

    A model with a chat template gets the conversation as its template renders it; one without, such as a pretrained
    model, goes on with the text so far. The model's state is kept from turn to turn: what it holds is not read again,
    unless the conversation, turned into tokens anew, comes out otherwise than the model wrote it.

    Args:
        repetition_penalty: None takes what the model's folder says.
        seed: of what is drawn, by a generator of its own; None: other replies every time.
        base: talk to what the adapters were trained on. Both can be talked to at once, with one model in memory.

    Attributes:
        messages: the conversation, as {"role": "user" or "assistant", "content": text}; after `load_memory` it begins
            with the words of the earlier conversation, if they were saved.
        memory: what `load_memory` took up, None in a new conversation.

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
        penalty = 1.0 if repetition_penalty is None else repetition_penalty
        check_sampling(max_new_tokens, temperature, top_p, penalty, seed)  # before a model is opened
        self.trained = path if isinstance(path, TrainedModel) else open_model(path)
        self.tokenizer, self.model, self.base = self.trained.tokenizer, self.trained.model, base
        generator = torch.Generator(self.model.device)
        generator.seed() if seed is None else generator.manual_seed(seed)
        self.stream = TokenStream(self.model, generator=generator)
        self.set_sampling(max_new_tokens, temperature, top_p, repetition_penalty)
        self.messages: list[dict[str, str]] = []
        self.memory: Memory | None = None

    def set_sampling(
        self, max_new_tokens: int, temperature: float, top_p: float, repetition_penalty: float | None = None
    ) -> None:
        """How replies are drawn from the next one on, as in `Chat`. Raises InputError: a value is outside its range."""
        if repetition_penalty is None:
            repetition_penalty = self.model.generation_config.repetition_penalty or 1.0
        check_sampling(max_new_tokens, temperature, top_p, repetition_penalty)
        self.max_new_tokens = max_new_tokens
        self.stream.set_sampling(temperature, top_p, repetition_penalty)

    def reply(self, text: str) -> Iterator[str]:
        """Say `text`; yields the reply as it is made, a piece a token. The conversation grows by both when it is done,
        or when the caller stops listening. A piece is empty where a token ends no character: the caller can stop a
        reply of which nothing can be shown. Raises InputError: `text` is no text (the conversation is then as it was),
        or the model's template refuses it."""
        check_prompt(text)
        self.messages.append({"role": "user", "content": text})
        pieces = []
        # A template sets the white space around what is said: kept, it would stand there twice in the next turn.
        is_templated = self.tokenizer.chat_template is not None
        # Bytes of one character may be spread over tokens: the decoder holds them back until it is whole.
        decoder = DecodeStream(skip_special_tokens=True)
        try:
            for token in self._tokens():
                piece = decoder.step(self.tokenizer.backend_tokenizer, token) or ""
                if is_templated and not any(pieces):
                    piece = piece.lstrip()
                pieces.append(piece)
                yield piece
        finally:
            said = "".join(pieces)
            self.messages.append({"role": "assistant", "content": said.rstrip() if is_templated else said})

    def reset(self) -> None:
        """Begin a new conversation."""
        self.messages.clear()
        self.memory = None
        self.stream.begin()

    @property
    def is_recurrent(self) -> bool:
        """True for a model whose memory has a fixed size, whatever the length of the conversation."""
        return isinstance(self.model, RecurrentGenerationMixin)

    @property
    def state_bytes(self) -> int:
        """Bytes that the model holds of the conversation now."""
        return 0 if self.stream.cache is None else state_bytes(self.stream.cache)

    @functools.cached_property
    def weights(self) -> str:
        """The hash of the model's weights."""
        return weights_hash(self.trained.folder)

    def save_memory(self, path: str | Path, with_words: bool = False) -> Path:
        """Write what the model remembers of the conversation to a file (see evaluation/memory_file.py), whole or not at
        all; `with_words`: also what has been said, in the file's header, for people to read. Raises InputError: nothing
        has been said, or the model has no memory of fixed size."""
        problem = "" if self.messages or self.memory else "nothing has been said yet: there is no memory to save."
        if not self.is_recurrent:
            problem = f"{self.trained.name} has no memory of fixed size: only that of a New-LLM can be saved."
        if problem:
            raise InputError(problem, "NL-405")
        self.stream.catch_up(self._token_ids(is_turn_open=False))
        cache, messages = self.stream.cache, tuple(self.messages) if with_words else ()
        memory = Memory(cache.context, cache.seen_tokens, self.trained.name, self.weights, messages)
        path = Path(os.path.expanduser(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, memory.file(self.model.config))
        return path

    def load_memory(self, path: str | Path) -> Memory:
        """Go on from what `save_memory` has written, in place of the conversation so far; the repetition penalty knows
        only what is said from now on. Raises InputError: no such file, damaged, or of another model; the conversation
        is then as it was."""
        memory, what = read_memory(path), f"memory {Path(path).name!r}"
        if not self.is_recurrent or memory.weights != self.weights:
            raise InputError(
                f"{what} was made by another model ({memory.model}, weights {memory.weights}) and means nothing to "
                f"this one ({self.trained.name}, weights {self.weights}); load it with the model that made it.",
                "NL-405",
            )
        token = torch.tensor([[self.tokenizer.eos_token_id]], device=self.model.device)
        expected = self.stream.next_token(token, None)[1].context.shape[1]
        if (numbers := memory.state.shape[1]) != expected:
            size = f"holds {numbers} numbers, but this model's state has {expected}"
            raise InputError(f"{what} {size}; it is damaged: save it again.", "NL-405")
        self.messages, self.memory = list(memory.messages), memory
        self.stream.begin(memory.state, memory.tokens)
        return memory

    def context_trace(self, last: int = 48) -> tuple[list[str], torch.Tensor]:
        """(the last T = `last` tokens that have been read, as text; [T + 1, N] the context before them and after each)
        Raises InputError: nothing has been read since the conversation began, or the model has no context."""
        if not self.is_recurrent or not self.stream.read:
            raise InputError("there is no context to show: nothing has been said, or the model has none.")
        read = self.stream.read
        texts = [self.tokenizer.decode([token]) for token in read[-last:]]
        return texts, trace_context(self.model, read, last, self.stream.start)

    def _tokens(self) -> Iterator[int]:
        tokens = self.stream.continue_with(self._token_ids(), self.max_new_tokens, end_token_ids(self.tokenizer))
        while True:
            # Between two tokens the adapters are on again: others may be talking to the same model.
            with adapters_off(self.model) if self.base else contextlib.nullcontext():
                token = next(tokens, None)
            if token is None:
                return
            yield token

    def _token_ids(self, is_turn_open: bool = True) -> list[int]:
        """The conversation, or what has been said since the memory that it began with; `is_turn_open`: it is the
        model's turn."""
        said = self.messages[len(self.memory.messages) if self.memory else 0 :]
        if not said:
            return []
        if self.tokenizer.chat_template is not None:
            token_ids = conversation_ids(said, self.tokenizer, is_turn_open)
        else:
            token_ids = document_ids(self.tokenizer, "".join(message["content"] for message in said))
        if self.memory is not None and token_ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            return token_ids[1:]  # the token that begins a conversation is in the memory already
        return token_ids
