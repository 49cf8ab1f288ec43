"""A look at the text before training on it: origin, licence, counts, samples, and one sample cut into its tokens."""

import itertools

from IPython.display import HTML, display
from transformers import PreTrainedTokenizerFast

from ..data.tokenizer import text_backend
from ..training.run import PreparedRun
from ..training.trainer import count_training_tokens
from .page.notices import FAINT, escape, in_one_sentence, say, table_html
from .panel.settings_panel import SettingsPanel

NUM_SAMPLES = 3
SAMPLE_CHARACTERS = 280
LEAST_CHARACTERS = 80  # a sample of one short line shows little
SKIPPED_DOCUMENTS = 20  # between samples, so that they are not one text
TINTS = ("rgba(31,111,235,.30)", "rgba(209,73,91,.28)", "rgba(42,157,143,.32)")


@in_one_sentence
def preview_data(panel: SettingsPanel) -> None:
    """Load the text as the panel says, learn the tokenizer, and show what training will see."""
    args = panel.arguments(panel.models[0])
    prepared = panel.stage.prepare(args)
    samples = sample_texts(prepared)
    display(HTML(counts_html(prepared) + samples_html(samples) + tokens_html(samples[0], prepared.tokenizer)))
    updates, tokens = count_training_tokens(args, len(prepared.train_rows))
    passes = tokens / prepared.train_counts.tokens
    extent = f"{passes:.1f} passes over the text" if passes >= 1 else f"{passes:.1%} of the text"
    say(
        f"{prepared.train_counts.tokens:,} tokens are ready; training takes {updates:,} updates over {tokens:,} "
        f"tokens, {extent}."
    )


def sample_texts(prepared: PreparedRun) -> list[str]:
    """The beginnings of a few documents that are long enough to show something; of a text that has not so many,
    stretches from the beginning and further on."""
    texts = (piece.text.strip() for piece in prepared.splits.train.read() if piece.starts_document)
    long_enough = (text for text in texts if len(text) >= LEAST_CHARACTERS)
    chosen = list(itertools.islice(long_enough, 0, NUM_SAMPLES * SKIPPED_DOCUMENTS, SKIPPED_DOCUMENTS))
    if len(chosen) < NUM_SAMPLES:
        text = next(iter(prepared.splits.train.strings()))
        third = len(text) // NUM_SAMPLES
        starts = [0, *(text.find("\n", number * third) + 1 for number in range(1, NUM_SAMPLES))]
        chosen = [text[start:].strip() for start in dict.fromkeys(starts)]
    return [text[:SAMPLE_CHARACTERS] + (" …" if len(text) > SAMPLE_CHARACTERS else "") for text in chosen if text]


def counts_html(prepared: PreparedRun) -> str:
    """Where the text is from, and how much of it there is."""
    train, validation, counts = prepared.splits.train, prepared.splits.validation, prepared.train_counts
    held_out = prepared.held_out.counts
    rows = [
        ["", "<b>for training</b>", "<b>held out</b>"],
        ["text", escape(train.origin), escape(validation.origin)],
        ["licence", escape(train.licence), escape(validation.licence)],
        ["documents", f"{counts.documents:,}", f"{held_out.documents:,}"],
        ["bytes", f"{counts.bytes:,}", f"{held_out.bytes:,}"],
        ["words", f"{counts.words:,}", f"{held_out.words:,}"],
        ["tokens", f"{counts.tokens:,}", f"{held_out.tokens:,}"],
    ]
    if prepared.train_counts.unknown_tokens:
        shares = [f"{c.unknown_tokens / c.tokens:.1%} of the tokens" for c in (counts, held_out)]
        rows.append(["unknown words", *shares])
    rows.append(
        ["tokenizer", f"{len(prepared.tokenizer):,} types", f"{held_out.bytes / held_out.tokens:.2f} bytes a token"]
    )
    return table_html(rows)


def samples_html(samples: list[str]) -> str:
    """Samples one under the other, line breaks kept."""
    blocks = [
        f'<div style="white-space:pre-wrap;overflow-wrap:anywhere;background:{FAINT};padding:6px 10px;margin:6px 0;'
        f'font-size:13px;line-height:1.4">{escape(text)}</div>'
        for text in samples
    ]
    title = f"{len(samples)} samples" if len(samples) > 1 else "A sample"
    return f"<b>{title}</b>{''.join(blocks)}"


def tokens_html(text: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """The text with every token tinted; tokens that share one character (parts of its bytes) are one patch."""
    encoding = text_backend(tokenizer).encode(text, add_special_tokens=False)
    patches, position = [], 0
    for begin, end in encoding.offsets:
        if end <= position:
            continue
        if begin > position:
            patches.append((text[position:begin], False))
        patches.append((text[max(begin, position) : end], True))
        position = end
    patches.append((text[position:], False))
    spans, number = [], 0
    for patch, is_token in patches:
        tint = f' style="background:{TINTS[number % len(TINTS)]};border-radius:3px"' if is_token else ""
        spans.append(f"<span{tint}>{escape(patch)}</span>")
        number += is_token
    return (
        f"<b>The first sample as its {len(encoding.ids):,} tokens</b>"
        f'<div style="white-space:pre-wrap;overflow-wrap:anywhere;font-size:14px;line-height:1.9;margin:6px 0">'
        f"{''.join(spans)}</div>"
    )
