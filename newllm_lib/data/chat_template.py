"""Conversations as tokens, by the chat template that is saved with the tokenizer.

A tokenizer with role tokens writes each role as one token and ends an answer with another. Others get a template of
role words; what a template marks as generated is what a model learns to write.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from transformers import PreTrainedTokenizerFast

from .batches import TextCounts
from .conversations import Conversations
from .rendering import marks_answers, render, rendered_ids
from .tokenizer import END_OF_TURN, ROLE_TOKENS, build_tokenizer, has_role_tokens, text_backend
from .turns import Message

# The space makes the first word of a turn the token that it is inside running text: fewer tokens, and known ones after
# pretraining. A role token ends the turn before it, so that only answers need an end of turn.
ROLE_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ ' ' + message.content + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ ' ' + message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Without role tokens: a turn a line, an answer closed by the end-of-text token. Every turn begins with its role word
# and a space, so that what is generated after "Assistant:" begins at a token's beginning whatever the tokenizer.
TEMPLATE = (
    "{{{{ bos_token }}}}{{% for message in messages %}}"
    "{{% if message.role == 'assistant' %}}"
    "{assistant}:{{% generation %}}{{{{ ' ' + message.content + eos_token }}}}{{% endgeneration %}}"
    "{{% else %}}"
    "{{{{ {{'system': '{system}', 'user': '{user}', 'context': '{context}'}}[message.role] }}}}"
    ": {{{{ message.content }}}}"
    "{{% endif %}}"
    "{{% if message.role != 'assistant' or not loop.last %}}{{{{ '\\n' }}}}{{% endif %}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '{assistant}:' }}}}{{% endif %}}"
)
TEMPLATES = {
    "dialogue": TEMPLATE.format(system="System", user="User", context="Context", assistant="Assistant"),
    "instruction": TEMPLATE.format(system="System", user="Instruction", context="Context", assistant="Response"),
    # DialoGPT's (Zhang et al. 2019): turn after turn, each closed by the end-of-text token, no word for who speaks.
    "turns": (
        "{% for message in messages %}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content + eos_token }}{% endgeneration %}"
        "{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
    ),
}


def learned_tokenizer(
    conversations: Conversations, template: str, kind: str, vocab_size: int | None
) -> PreTrainedTokenizerFast:
    """A tokenizer learned from what is said, role words left out, with the chat template of `template_for`.

    Raises:
        InputError: as `build_tokenizer`.
    """
    space = " " if kind == "bpe" else ""  # as ROLE_TEMPLATE has it
    contents = (space + message["content"] for messages in conversations for message in messages)
    tokenizer = build_tokenizer(kind, contents, vocab_size, f"{conversations.identity}/{conversations.read_as}")
    tokenizer.chat_template = template_for(tokenizer, template)
    return tokenizer


def template_for(tokenizer: PreTrainedTokenizerFast, name: str) -> str:
    """The chat template for a tokenizer that has none: ROLE_TEMPLATE with role tokens, otherwise TEMPLATES[name]."""
    return ROLE_TEMPLATE if has_role_tokens(tokenizer) else TEMPLATES[name]


def learnable_template(tokenizer: PreTrainedTokenizerFast, name: str) -> tuple[str, str]:
    """(the tokenizer's own chat template, or that of `template_for` where it has none of which answers can be learned;
    a remark if its own gives way)."""
    own = tokenizer.chat_template
    if marks_answers(own):
        return own, ""
    remark = "The model's own chat template does not mark what is learned: ours is used." if own else ""
    return template_for(tokenizer, name), remark


def borrowed_template(tokenizer: PreTrainedTokenizerFast, lender: PreTrainedTokenizerFast) -> str:
    """The chat template of `lender` for a tokenizer that has none, or what `template_for` gives where it writes roles
    as tokens."""
    return template_for(tokenizer, "dialogue") if _writes_role_tokens(lender) else lender.chat_template


@dataclass(frozen=True)
class ConversationFormat:
    """What becomes of a conversation.

    Attributes:
        loss_on: "assistant": its words and the end of its turns; "all": every token after the first.
        too_long: what happens to a conversation of more than `max_length` tokens. "turns": whole turns are kept, up to
            the last answer that fits; "cut": the first `max_length` tokens, as in the published runs.
    """

    max_length: int
    loss_on: str = "assistant"
    too_long: str = "turns"


@dataclass(frozen=True)
class EncodedConversation:
    """Tokens [N] int32, which of them are learned [N] bool, and the counts of the learned text."""

    token_ids: np.ndarray
    supervised: np.ndarray
    counts: TextCounts
    turns_left_out: int


def encode_conversations(
    conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerFast, form: ConversationFormat
) -> list[EncodedConversation | None]:
    """Conversations as tokens, in parallel; None for one of which nothing that is learned fits."""
    return encoding_of(conversations, tokenizer, form)()


def encoding_of(
    conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerFast, form: ConversationFormat
) -> Callable[[], list[EncodedConversation | None]]:
    """`encode_conversations`, with the part still to be called that several threads may do at a time: only one may
    render a template."""
    conversations = [messages[: form.max_length] for messages in conversations]  # a turn is a token at least
    if _writes_role_tokens(tokenizer):
        return partial(_encode_with_roles, conversations, tokenizer, form)
    return partial(_encode_rendered, *render(conversations, tokenizer), tokenizer, form)


def conversation_ids(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast, is_turn_open: bool = True
) -> list[int]:
    """A conversation as the model reads it when it is asked: the beginning of its training row, token by token.

    Args:
        is_turn_open: it is the model's turn.
    """
    if not _writes_role_tokens(tokenizer):
        return rendered_ids(messages, tokenizer, is_turn_open)
    (turns,) = _turn_ids([messages], tokenizer)
    role = [tokenizer.convert_tokens_to_ids(ROLE_TOKENS["assistant"])] if is_turn_open else []
    return [tokenizer.bos_token_id, *itertools.chain.from_iterable(turns), *role]


def _writes_role_tokens(tokenizer: PreTrainedTokenizerFast) -> bool:
    return tokenizer.chat_template == ROLE_TEMPLATE and has_role_tokens(tokenizer)


def _turn_ids(conversations: Sequence[Sequence[Message]], tokenizer: PreTrainedTokenizerFast) -> list[list[list[int]]]:
    """The tokens of every turn of every conversation, as ROLE_TEMPLATE has them: role, what is said and, after an
    answer, the end of turn. What is said is encoded apart, so that no text is a role."""
    contents = [" " + message["content"] for messages in conversations for message in messages]
    encodings = iter(text_backend(tokenizer).encode_batch_fast(contents, add_special_tokens=False))
    begins = {role: tokenizer.convert_tokens_to_ids(token) for role, token in ROLE_TOKENS.items()}
    ends = {"assistant": [tokenizer.convert_tokens_to_ids(END_OF_TURN)]}
    return [
        [[begins[role := message["role"]], *next(encodings).ids, *ends.get(role, ())] for message in messages]
        for messages in conversations
    ]


def _encode_with_roles(
    conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerFast, form: ConversationFormat
) -> list[EncodedConversation | None]:
    return [
        _joined(messages, turns, tokenizer, form)
        for messages, turns in zip(conversations, _turn_ids(conversations, tokenizer), strict=True)
    ]


def _joined(
    messages: list[Message], turns: list[list[int]], tokenizer: PreTrainedTokenizerFast, form: ConversationFormat
) -> EncodedConversation | None:
    joined, end, left_out = [tokenizer.bos_token_id], 0, 0
    learned: list[tuple[int, int, str]] = []  # [begin, end) of what follows a role token, and what is said there
    for message, turn in zip(messages, turns, strict=True):
        begin = len(joined) + 1
        joined += turn
        is_answer = message["role"] == "assistant" and message.get("train", True)
        if is_answer or form.loss_on == "all":
            learned.append((begin, len(joined), message["content"]))
        if is_answer:
            left_out += len(joined) > form.max_length
            if form.too_long == "cut" or len(joined) <= form.max_length:
                end = len(joined)
    token_ids = np.asarray(joined[: min(end, form.max_length)], dtype=np.int32)
    supervised = np.zeros(len(token_ids), dtype=bool)
    if form.loss_on == "all":
        supervised[1:] = True  # the beginning is given
    texts = []
    for begin, stop, content in learned:
        if begin < len(token_ids):
            supervised[begin:stop] = True
            texts.append(content if stop <= len(token_ids) else tokenizer.decode(token_ids[begin:]).strip())
    return _counted(token_ids, supervised, texts, left_out, tokenizer) if supervised.any() else None


def _encode_rendered(
    texts: list[str],
    spans: list[list[tuple[int, int]]],
    tokenizer: PreTrainedTokenizerFast,
    form: ConversationFormat,
) -> list[EncodedConversation | None]:
    """What `render` gives as tokens."""
    encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return [
        _encoded(text, answers, encoding, tokenizer, form)
        for text, answers, encoding in zip(texts, spans, encodings, strict=True)
    ]


def _encoded(text, answers, encoding, tokenizer, form: ConversationFormat) -> EncodedConversation | None:
    token_ids = np.asarray(encoding.ids, dtype=np.int32)
    supervised = np.zeros(len(token_ids), dtype=bool)
    kept, end, left_out = [], 0, 0
    for begin, stop in answers:
        after = encoding.char_to_token(stop - 1) + 1
        left_out += after > form.max_length
        if form.too_long == "turns" and after > form.max_length:
            continue
        supervised[_token_at(encoding, begin) : after] = True
        kept.append(text[begin:stop].removesuffix(tokenizer.eos_token).removeprefix(" ").rstrip())
        end = after
    if not kept:
        return None
    token_ids, supervised = token_ids[:end][: form.max_length], supervised[:end][: form.max_length]
    if form.loss_on == "all":
        supervised = np.ones(len(token_ids), dtype=bool)
        supervised[0] = False  # the beginning is given
        whole = text[: encoding.offsets[len(token_ids) - 1][1]]
        for token in {tokenizer.bos_token, tokenizer.eos_token}:
            whole = whole.replace(token, "")
        kept = [whole]
    elif not supervised.any():
        return None  # the cut lies before the first answer
    elif end > form.max_length:  # cut in the middle of an answer: what is learned of it is not known by characters
        kept = [tokenizer.decode(token_ids[supervised], skip_special_tokens=True).strip()]
    return _counted(token_ids, supervised, kept, left_out, tokenizer)


def _counted(
    token_ids: np.ndarray, supervised: np.ndarray, learned: list[str], left_out: int, tokenizer: PreTrainedTokenizerFast
) -> EncodedConversation:
    """The conversation with the counts of the texts that are learned of it."""
    unknown = 0 if tokenizer.unk_token_id is None else int((token_ids[supervised] == tokenizer.unk_token_id).sum())
    counts = TextCounts(
        documents=1,
        tokens=int(supervised.sum()),
        bytes=sum(len(part.encode()) for part in learned),
        words=sum(len(part.split()) for part in learned),
        unknown_tokens=unknown,
    )
    return EncodedConversation(token_ids, supervised, counts, left_out)


def _token_at(encoding, character: int) -> int:
    """The first token at or after a character; some tokenizers leave white space out."""
    while (token := encoding.char_to_token(character)) is None:
        character += 1
    return token
