"""Conversations as tokens. Role words and end-of-turn live in the chat template alone, which is saved with the
tokenizer; what the template marks as generated is what a model learns to write."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from .batches import TextCounts
from .conversations import Conversations
from .rows import Message
from .tokenizer import build_tokenizer

# A turn a line, an answer closed by the end-of-text token. Every turn begins with its role word and a space, so that
# what is generated after "Assistant:" begins at a token's beginning whatever the tokenizer.
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
    """A tokenizer learned from what is said, role words left out, with a chat template of TEMPLATES.

    Raises:
        InputError: as `build_tokenizer`.
    """
    contents = (message["content"] for messages in conversations for message in messages)
    tokenizer = build_tokenizer(kind, contents, vocab_size, f"{conversations.identity}/{conversations.read_as}")
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


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
    return encode_rendered(*render(conversations, tokenizer), tokenizer, form)


def encode_rendered(
    texts: list[str],
    spans: list[list[tuple[int, int]]],
    tokenizer: PreTrainedTokenizerFast,
    form: ConversationFormat,
) -> list[EncodedConversation | None]:
    """What `render` gives as tokens. Several threads may do this at a time; only one may render."""
    encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return [
        _encoded(text, answers, encoding, tokenizer, form)
        for text, answers, encoding in zip(texts, spans, encodings, strict=True)
    ]


def render(
    conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """(texts, for each the [begin, end) characters of its answers, end of turn included)."""
    special = _special_tokens(tokenizer)
    return render_jinja_template(
        conversations=[_without(special, messages) for messages in conversations],
        chat_template=tokenizer.chat_template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )


def plain_messages(messages: list[Message], tokenizer: PreTrainedTokenizerFast) -> list[Message]:
    """The conversation without the tokenizer's special tokens where somebody has written them out: as text they would
    end a turn in its middle."""
    return _without(_special_tokens(tokenizer), messages)


def _special_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [token for token in tokenizer.all_special_tokens if token != tokenizer.unk_token]


def _without(special: list[str], messages: list[Message]) -> list[Message]:
    if not any(token in message["content"] for message in messages for token in special):
        return messages
    plain = []
    for message in messages:
        content = message["content"]
        for token in special:
            content = content.replace(token, " ")
        plain.append({**message, "content": content})
    return plain


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
        kept.append(text[begin:stop].removesuffix(tokenizer.eos_token).strip())
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
    unknown = 0 if tokenizer.unk_token_id is None else int((token_ids[supervised] == tokenizer.unk_token_id).sum())
    counts = TextCounts(
        documents=1,
        tokens=int(supervised.sum()),
        bytes=sum(len(part.encode()) for part in kept),
        words=sum(len(part.split()) for part in kept),
        unknown_tokens=unknown,
    )
    return EncodedConversation(token_ids, supervised, counts, left_out)


def _token_at(encoding, character: int) -> int:
    """The first token at or after a character; some tokenizers leave white space out."""
    while (token := encoding.char_to_token(character)) is None:
        character += 1
    return token
