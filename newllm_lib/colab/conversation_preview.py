"""A look at the conversations before training on them: counts, three of them, and one as tokens, with those marked
that are learned."""

import itertools

import numpy as np
from IPython.display import HTML, display
from transformers import PreTrainedTokenizerFast

from ..adapters.qlora_lwf import PreparedLwf
from ..data.chat_template import ConversationFormat, encode_conversations
from ..data.rendering import plain_messages, render
from ..data.turns import Message
from ..training.run import PreparedRun
from ..training.trainer import count_training_tokens
from .page.bubbles import bubbles_html
from .page.notices import GRID, escape, in_one_sentence, say, table_html
from .panel.settings_panel import SettingsPanel

NUM_SAMPLES = 3
SKIPPED = 20  # conversations between samples: neighbours are often alike
MOST_TURNS = 6
MOST_CHARACTERS = 280  # of a turn
MOST_TOKENS = 150
LEARNED = ("rgba(42,157,143,.45)", "rgba(42,157,143,.28)")
GIVEN = ("rgba(128,128,128,.24)", "rgba(128,128,128,.12)")


@in_one_sentence
def preview_conversations(panel: SettingsPanel) -> None:
    """Load the conversations as the panel says and show what training will see."""
    args = panel.arguments(panel.models[0])
    prepared = panel.stage.prepare(args)
    form = ConversationFormat(args.max_length, args.loss_on, args.too_long)
    samples = sample_conversations(prepared)
    display(HTML(counts_html(prepared) + samples_html(samples) + learned_html(samples, prepared.tokenizer, form)))
    if prepared.extent:
        say(f"{prepared.train_counts.documents:,} conversations are ready. {prepared.extent}")
        return
    updates, tokens = count_training_tokens(args, len(prepared.train_rows))
    rows = len(prepared.train_rows)
    passes = tokens / (rows * args.max_length)
    extent = f"{passes:.1f} passes over them" if passes >= 1 else f"{passes:.1%} of them"
    say(
        f"{prepared.train_counts.documents:,} conversations are ready, in {rows:,} rows of {args.max_length} tokens; "
        f"training takes {updates:,} updates, {extent}."
    )


def sample_conversations(prepared: PreparedRun) -> list[list[Message]]:
    """A few conversations; of data that have not so many, the first ones."""
    apart = itertools.islice(prepared.splits.train, 0, NUM_SAMPLES * SKIPPED, SKIPPED)
    samples = list(apart)
    return samples if len(samples) == NUM_SAMPLES else list(itertools.islice(prepared.splits.train, NUM_SAMPLES))


def counts_html(prepared: PreparedRun) -> str:
    """Where the conversations are from, how many there are, and how many did not fit."""
    train, validation, counts = prepared.splits.train, prepared.splits.validation, prepared.train_counts
    held_out = prepared.held_out.counts
    conversations = counts.documents + counts.too_long
    rows = [
        ["", "<b>for training</b>", "<b>held out</b>"],
        ["data", escape(train.origin), escape(validation.origin)],
        ["licence", escape(train.licence), escape(validation.licence)],
        ["conversations", f"{counts.documents:,}", f"{len(prepared.held_out.documents):,}"],
        ["tokens", f"{counts.all_tokens:,}", ""],
        ["of them learned", f"{counts.tokens:,} ({counts.tokens / counts.all_tokens:.0%})", f"{held_out.tokens:,}"],
        ["words learned", f"{counts.words:,}", f"{held_out.words:,}"],
        ["shortened", f"{counts.shortened:,} ({counts.shortened / conversations:.1%}) lost their last turns", ""],
        ["left out", f"{counts.too_long:,} ({counts.too_long / conversations:.1%}): no answer fits into a row", ""],
        ["tokenizer", f"{len(prepared.tokenizer):,} types", f"{held_out.bytes / held_out.tokens:.2f} bytes a token"],
    ]
    if counts.bad_rows:
        rows.append(["no conversation", f"{counts.bad_rows:,} rows left out; {escape(counts.complaints[0])}", ""])
    if prepared.splits.note:
        rows.append(["remark", escape(prepared.splits.note), ""])
    if isinstance(prepared, PreparedLwf):
        other = (prepared.rehearsal.train, prepared.rehearsal.validation)
        rows.append(["general text", *(escape(text.origin) for text in other)])
        rows.append(["its licence", *(escape(text.licence) for text in other)])
        rows += [["remark", escape(remark), ""] for remark in prepared.remarks]
    return table_html(rows)


def samples_html(samples: list[list[Message]]) -> str:
    """Conversations side by side where there is room, the first turns of each."""
    cards = []
    for messages in samples:
        more = len(messages) - MOST_TURNS
        rest = f'<div style="opacity:.75;font-size:12px">and {more} more turns</div>' if more > 0 else ""
        cards.append(
            f'<div style="flex:1 1 280px;min-width:240px;border:1px solid {GRID};border-radius:8px;padding:6px 10px">'
            f"{bubbles_html(messages[:MOST_TURNS], MOST_CHARACTERS)}{rest}</div>"
        )
    title = f"{len(samples)} conversations" if len(samples) > 1 else "A conversation"
    return (
        f'<b>{title}</b><div style="display:flex;flex-wrap:wrap;gap:8px;align-items:flex-start;margin:6px 0">'
        f"{''.join(cards)}</div>"
    )


def learned_html(samples: list[list[Message]], tokenizer: PreTrainedTokenizerFast, form: ConversationFormat) -> str:
    """The first of the samples that fits into a row as its tokens, the learned ones underlined."""
    samples = [plain_messages(messages, tokenizer) for messages in samples]  # as `render` shows them
    for messages, encoded in zip(samples, encode_conversations(samples, tokenizer, form), strict=True):
        if encoded is not None:
            return (
                f"<b>One of them as {len(encoded.token_ids):,} tokens; the {int(encoded.supervised.sum()):,} that are "
                "learned are underlined</b>"
                '<div style="white-space:pre-wrap;overflow-wrap:anywhere;font-size:14px;line-height:1.9;margin:6px 0">'
                f"{token_spans(messages, encoded.supervised, tokenizer)}</div>"
            )
    return ""


def token_spans(messages: list[Message], supervised: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> str:
    """The beginning of a rendered conversation, every token tinted; those that share one character (parts of its
    bytes) are one patch."""
    (text,), _ = render([messages], tokenizer)
    offsets = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).offsets[: len(supervised)]
    spans, position, number = [], 0, 0
    for (begin, end), learned in list(zip(offsets, supervised, strict=True))[:MOST_TOKENS]:
        if end <= position:
            continue
        spans.append(escape(text[position:begin]))
        tint = (LEARNED if learned else GIVEN)[number % 2]
        line = ";text-decoration:underline" if learned else ""
        spans.append(
            f'<span style="background:{tint};border-radius:3px{line}">{escape(text[max(begin, position) : end])}</span>'
        )
        position, number = end, number + 1
    return "".join(spans) + (" …" if len(offsets) > MOST_TOKENS else "")
