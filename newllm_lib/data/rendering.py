"""Conversations as text, by a chat template that may be anybody's: it has a time to do it in, and nothing that somebody
says in a conversation becomes one of the tokens that steer the model."""

import functools
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Container, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from ..errors import InputError
from .turns import Message

RENDER_SECONDS = 10  # for one conversation; a template takes some thousandths
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class TooSlow(Exception):
    """A template that comes to no end."""


def marks_answers(template: str | None) -> bool:
    """True for a chat template that says which part of a conversation the model writes, so that it can be learned."""
    return template is not None and GENERATION.search(template) is not None


def render(
    conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """(texts, for each the [begin, end) characters of its answers that are learned, end of turn included).

    Raises:
        InputError: the template fails, or takes too long.
    """
    texts, learned = [], []
    for messages in conversations:
        (text,), (spans,) = _in_time(
            render_jinja_template,
            conversations=[plain_messages(messages, tokenizer)],
            chat_template=tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
        answers = (turn for turn in messages if turn["role"] == "assistant")
        texts.append(text)
        learned.append([span for span, turn in zip(spans, answers, strict=False) if turn.get("train", True)])
    return texts, learned


def rendered_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast, is_turn_open: bool) -> list[int]:
    """A conversation as the tokens of its rendering.

    Args:
        is_turn_open: it is the model's turn.

    Raises:
        InputError: the template fails, takes too long, or writes nothing.
    """
    token_ids = _in_time(
        tokenizer.apply_chat_template,
        conversation=plain_messages(messages, tokenizer),
        add_generation_prompt=is_turn_open,
        return_dict=False,
    )
    if not token_ids:
        raise InputError("chat_template of this model writes nothing; name a model with another one.")
    return token_ids


def _in_time(rendering: Callable[..., Any], **arguments: Any) -> Any:
    """What `rendering` gives within RENDER_SECONDS. A template is compiled to Python, whose every line can be watched
    in this thread alone; another clock would need a process of its own."""
    end = time.monotonic() + RENDER_SECONDS

    def watch(frame, event, argument):
        if time.monotonic() > end:
            raise TooSlow
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        return rendering(**arguments)
    except TooSlow:
        raise InputError(
            f"chat_template of this model does not end within {RENDER_SECONDS} seconds; name a model with another one, "
            "or shorten the conversation."
        ) from None
    except Exception as error:  # templates are programs: they raise what they like
        sentence = " ".join(str(error).split())[:200]
        raise InputError(
            f"chat_template of this model refuses a conversation ({type(error).__name__}: {sentence}); name a model "
            "with another one, or change the conversation."
        ) from error
    finally:
        sys.settrace(before)


def plain_messages(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> Sequence[Message]:
    """The conversation with a space in place of every token of control that its texts spell out: in a rendered template
    it would end a turn in its middle, or begin one of somebody else."""
    control, first_signs = _control_tokens(tokenizer, len(tokenizer), tokenizer.chat_template)
    plain = []
    for message in messages:
        said = _folded(message["content"])
        if any(sign in said for sign in first_signs) and any(spelling in said for spelling in control.values()):
            message = {**message, "content": _plain(message["content"], tokenizer, control)}
        plain.append(message)
    return plain


def _plain(content: str, tokenizer: PreTrainedTokenizerFast, control: Container[int]) -> str:
    """The tokenizer itself says what it takes for a token of control, in which spelling ever."""
    while True:  # what was around one may spell another
        encoding = tokenizer.backend_tokenizer.encode(content, add_special_tokens=False)
        before = content
        for token_id, (begin, end) in zip(reversed(encoding.ids), reversed(encoding.offsets), strict=True):
            if token_id in control:
                content = f"{content[:begin]} {content[end:]}"
        if content == before:
            return content


@functools.lru_cache(maxsize=8)
def _control_tokens(
    tokenizer: PreTrainedTokenizerFast, num_types: int, template: str | None
) -> tuple[dict[int, str], frozenset[str]]:
    """(id -> spelling of the special tokens and of whatever else the template is made of, the signs they begin with);
    found again when `num_types` says that tokens were added. The unknown token is none: it steers nothing."""
    control = {
        token_id: _folded(token.content.strip())
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip()
        and token_id != tokenizer.unk_token_id
        and (token.special or token.content in (template or ""))
    }
    return control, frozenset(spelling[0] for spelling in control.values())


def _folded(text: str) -> str:
    """What is left of a text however a tokenizer normalises it."""
    if not text.isascii():
        text = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    return text.casefold()
