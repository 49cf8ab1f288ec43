"""Conversations as tokens, by the chat template that is saved with the tokenizer.

A tokenizer with role tokens writes each role as one token and ends an answer with another. Others get a template of
role words; the model learns to write what a template marks as generated. A template may come from anywhere: it has a
time limit, and no text of a conversation becomes one of the tokens that steer the model.
"""

import functools
import itertools
import re
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from ..errors import InputError
from .examples import Message
from .text import Document, count_text
from .tokenizer import END_OF_TURN, ROLE_TOKENS, has_role_tokens, text_backend

ONE_RENDERING = threading.Lock()  # transformers notes the parts that are generated in one place for all threads
RENDER_SECONDS = 10  # for one conversation; a template takes some thousandths
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

# The space makes the first word of a turn the token that it is inside running text: fewer tokens, and known ones after
# pretraining. A role token ends the turn before it, so that only answers need an end of turn.
ROLE_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ ' ' + message.content + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ ' ' + message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Without role tokens: a turn a line, an answer closed by the end-of-text token. Every turn begins with its role word
# and a space, so that what is generated after "Assistant:" begins at a token's beginning whatever the tokenizer.
DIALOGUE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
    "Assistant:{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ {'system': 'System', 'user': 'User', 'context': 'Context'}[message.role] }}: {{ message.content }}"
    "{% endif %}{% if message.role != 'assistant' or not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# DialoGPT's (Zhang et al. 2019): turn after turn, each closed by the end-of-text token, no word for who speaks.
TURNS = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}"
    "{% endgeneration %}{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
)
INSTRUCTION = DIALOGUE.replace("Assistant:", "Response:").replace("'User'", "'Instruction'")
TEMPLATES = {"dialogue": DIALOGUE, "instruction": INSTRUCTION, "turns": TURNS}


def template_for(tokenizer: PreTrainedTokenizerFast, name: str) -> str:
    """The chat template for a tokenizer that has none: ROLE_TEMPLATE with role tokens, otherwise TEMPLATES[name]."""
    return ROLE_TEMPLATE if has_role_tokens(tokenizer) else TEMPLATES[name]


def learnable_template(tokenizer: PreTrainedTokenizerFast, name: str) -> tuple[str, str]:
    """(the tokenizer's own chat template, or that of `template_for` where its own does not mark what the model writes,
    so that it cannot be learned; a remark if its own is replaced)."""
    own = tokenizer.chat_template
    if own is not None and GENERATION.search(own):
        return own, ""
    remark = "The model's own chat template does not mark what is learned: ours is used." if own else ""
    return template_for(tokenizer, name), remark


def borrowed_template(tokenizer: PreTrainedTokenizerFast, lender: PreTrainedTokenizerFast) -> str:
    """The chat template of `lender` for a tokenizer that has none, or that of `template_for` where the lender writes
    roles as tokens."""
    return template_for(tokenizer, "dialogue") if _writes_role_tokens(lender) else lender.chat_template


@dataclass(frozen=True)
class ConversationFormat:
    """How a conversation becomes tokens."""

    max_length: int
    loss_on: str = "assistant"  # its words and the end of its turns; "all": every token after the first
    # Where a conversation has more than `max_length` tokens, "turns" keeps whole turns up to the last answer that fits,
    # and "cut" keeps the first `max_length` tokens, as the published runs do.
    too_long: str = "turns"


@dataclass
class EncodedConversation(Document):
    """A conversation as tokens [N]; its counts are of the supervised text."""

    turns_left_out: int = 0


def encode_conversations(
    conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerFast, form: ConversationFormat
) -> list[EncodedConversation | None]:
    """Conversations as tokens, in parallel; None where no supervised token fits. Raises InputError: as `render`."""
    conversations = [messages[: form.max_length] for messages in conversations]  # a turn is a token at least
    if _writes_role_tokens(tokenizer):
        items = zip(conversations, _turn_ids(conversations, tokenizer), strict=True)
        return [_encoded_turns(*item, tokenizer, form) for item in items]
    texts, answers = render(conversations, tokenizer)
    encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return [_encoded_text(*item, tokenizer, form) for item in zip(texts, answers, encodings, strict=True)]


def conversation_ids(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast, is_turn_open: bool = True
) -> list[int]:
    """A conversation as the model reads it when it is asked: the beginning of its training row, token by token.
    `is_turn_open`: it is the model's turn. Raises InputError: the template fails, takes too long, or writes nothing."""
    if _writes_role_tokens(tokenizer):
        (turns,) = _turn_ids([messages], tokenizer)
        role = [tokenizer.convert_tokens_to_ids(ROLE_TOKENS["assistant"])] if is_turn_open else []
        return [tokenizer.bos_token_id, *itertools.chain.from_iterable(turns), *role]
    token_ids = _in_time(
        tokenizer.apply_chat_template,
        conversation=plain_messages(messages, tokenizer),
        add_generation_prompt=is_turn_open,
        return_dict=False,
    )
    if not token_ids:
        raise InputError("chat_template of this model writes nothing; name a model with another one.")
    return token_ids


def _writes_role_tokens(tokenizer: PreTrainedTokenizerFast) -> bool:
    return tokenizer.chat_template == ROLE_TEMPLATE and has_role_tokens(tokenizer)


def _turn_ids(conversations: Sequence[Sequence[Message]], tokenizer: PreTrainedTokenizerFast) -> list[list[list[int]]]:
    """The tokens of every turn of every conversation, as ROLE_TEMPLATE has them: role, content and, after an answer,
    the end of turn. The content is encoded apart, so that no text is a role."""
    contents = [" " + message["content"] for messages in conversations for message in messages]
    encodings = iter(text_backend(tokenizer).encode_batch_fast(contents, add_special_tokens=False))
    begins = {role: tokenizer.convert_tokens_to_ids(token) for role, token in ROLE_TOKENS.items()}
    ends = {"assistant": [tokenizer.convert_tokens_to_ids(END_OF_TURN)]}
    return [
        [[begins[role := message["role"]], *next(encodings).ids, *ends.get(role, ())] for message in messages]
        for messages in conversations
    ]


def _encoded_turns(
    messages: list[Message], turns: list[list[int]], tokenizer: PreTrainedTokenizerFast, form: ConversationFormat
) -> EncodedConversation | None:
    token_ids, spans, ends = [tokenizer.bos_token_id], [], []
    for message, turn in zip(messages, turns, strict=True):
        begin = len(token_ids) + 1  # after the role
        token_ids += turn
        is_answer = message["role"] == "assistant" and message.get("train", True)
        if is_answer or form.loss_on == "all":
            spans.append((begin, len(token_ids), message["content"]))
        if is_answer:
            ends.append(len(token_ids))
    return _encoded(token_ids, spans, ends, lambda begin, end: tokenizer.decode(token_ids[begin:end]), tokenizer, form)


def _encoded_text(text: str, answers: list[tuple[int, int]], encoding, tokenizer, form) -> EncodedConversation | None:
    ends = [encoding.char_to_token(stop - 1) + 1 for _, stop in answers]

    def spelled(begin: int, end: int) -> str:
        part = text[encoding.offsets[begin][0] : encoding.offsets[end - 1][1]]
        for token in {tokenizer.bos_token, tokenizer.eos_token}:
            part = part.replace(token, "")
        return part

    if form.loss_on == "all":
        spans = [(1, len(encoding), spelled(1, len(encoding)))] if len(encoding) > 1 else []
    else:
        spans = []
        for (begin, stop), end in zip(answers, ends, strict=True):
            tokens = map(encoding.char_to_token, range(begin, stop))
            first = next(token for token in tokens if token is not None)  # white space may have none
            spans.append((first, end, text[begin:stop].removesuffix(tokenizer.eos_token).removeprefix(" ").rstrip()))
    return _encoded(encoding.ids, spans, ends, spelled, tokenizer, form)


def _encoded(token_ids, spans, ends, spelled, tokenizer, form) -> EncodedConversation | None:
    """Tokens cut at the last answer that is kept. `spans` are (begin, end, text) of what is supervised, in tokens;
    `spelled(begin, end)` gives the text of others; answers end at `ends`."""
    fitting = [end for end in ends if end <= form.max_length or form.too_long == "cut"]
    token_ids = np.asarray(token_ids[: min(max(fitting, default=0), form.max_length)], dtype=np.int32)
    length, texts = len(token_ids), []
    supervised = np.zeros(length, dtype=bool)
    if form.loss_on == "all":
        supervised[1:] = True  # the beginning is given
    for begin, end, text in spans:
        if begin < length:
            supervised[begin:end] = True
            texts.append(text if end <= length else spelled(begin, length).strip())
    counts = count_text(texts, token_ids[supervised], tokenizer)
    left_out = sum(end > form.max_length for end in ends)
    return EncodedConversation(token_ids, counts, supervised, left_out) if counts.tokens else None


def render(
    conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """(texts, for each the [begin, end) characters of its supervised answers, end of turn included). Raises InputError:
    the template fails, or takes too long."""
    texts, supervised = [], []
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
        supervised.append([span for span, turn in zip(spans, answers, strict=False) if turn.get("train", True)])
    return texts, supervised


def _in_time(rendering: Callable[..., Any], **arguments: Any) -> Any:
    """The result of `rendering`, within RENDER_SECONDS. A template is compiled to Python, whose every line can be
    watched in this thread alone; another clock would need a process of its own."""

    def watch(frame, event, argument):
        if time.monotonic() > end:
            raise TimeoutError
        return watch

    before = sys.gettrace()
    with ONE_RENDERING:
        end = time.monotonic() + RENDER_SECONDS
        sys.settrace(watch)
        try:
            return rendering(**arguments)
        except Exception as error:  # templates are programs: they raise what they like
            why = f"refuses a conversation ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            if isinstance(error, TimeoutError):
                why = f"does not end within {RENDER_SECONDS} seconds"
            remedy = "name a model with another one, or shorten or change the conversation"
            raise InputError(f"chat_template of this model {why}; {remedy}.") from error
        finally:
            sys.settrace(before)


def plain_messages(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> list[Message]:
    """The conversation with a space in place of every token of control that its texts spell out: in a rendered template
    it would end a turn in its middle, or begin another speaker's."""
    control, spellings = _control_tokens(tokenizer, len(tokenizer), tokenizer.chat_template)
    plain = []
    for message in messages:
        content = message["content"]
        # Few texts spell one, and a search is quick. Then the tokenizer itself decides, in whatever spelling.
        while spellings.search(_folded(content)):  # again: the text around a removed token may spell another
            encoding = tokenizer.backend_tokenizer.encode(content, add_special_tokens=False)
            if control.isdisjoint(encoding.ids):
                break
            for token_id, (begin, end) in zip(reversed(encoding.ids), reversed(encoding.offsets), strict=True):
                if token_id in control:
                    content = f"{content[:begin]} {content[end:]}"
        plain.append({**message, "content": content})
    return plain


@functools.lru_cache(maxsize=8)
def _control_tokens(
    tokenizer: PreTrainedTokenizerFast, num_types: int, template: str | None
) -> tuple[frozenset[int], re.Pattern]:
    """(the special tokens, and other added tokens in the template; what finds their folded spellings); computed again
    when `num_types` says that tokens were added. The unknown token is none: it steers nothing."""
    control = {
        token_id: re.escape(_folded(token.content.strip()))
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip()
        and token_id != tokenizer.unk_token_id
        and (token.special or token.content in (template or ""))
    }
    return frozenset(control), re.compile("|".join(control.values()) or "(?!)")


def _folded(text: str) -> str:
    """The part of a text that every normalisation of a tokenizer keeps."""
    if not text.isascii():
        text = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    return text.casefold()
