"""A look, before training, at the pretrained model and its licence, and at the data: origin, counts and tokens."""

import itertools
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from ..adapters import offline_gemma
from ..adapters.qlora_lwf import PreparedLwf
from ..data.chat_template import ConversationFormat, encode_conversations, plain_messages, render
from ..data.examples import Message
from ..data.tokenizer import text_backend
from ..stages.sft import SftArguments, sft
from ..training.run import PreparedRun
from ..training.trainer import count_training_tokens
from .drive.drive_copy import callbacks_for
from .page.languages import text, translate
from .page.notices import in_one_sentence, say, show
from .page.pieces import AS_WRITTEN, FAINT, GRID, beside_html, bubbles_html, escape, shortened, small_html, table_html
from .panel.lookups import SMALL_FOLDER, base_of, chat_models, count_trainable
from .panel.preference_panel import PreferencePanel
from .panel.settings_panel import SettingsPanel
from .panel.stage import CHAT_PRESETS
from .storage import drive_copier, name_of

NUM_SAMPLES = 3
SKIPPED = 20  # documents or conversations between samples: neighbours are often alike
LEAST_CHARACTERS = 80  # a sample of one short line shows little
MOST_CHARACTERS = 280  # of a sample, or of a turn
MOST_TURNS, MOST_TOKENS = 6, 150  # shown of a conversation
# What a token's patch looks like, in turn.
TINTS = ("background:rgba(31,111,235,.30)", "background:rgba(209,73,91,.28)", "background:rgba(42,157,143,.32)")
LEARNED = tuple(f"background:rgba(42,157,143,{share});text-decoration:underline" for share in (".45", ".28"))
GIVEN = ("background:rgba(128,128,128,.24)", "background:rgba(128,128,128,.12)")


@in_one_sentence()
def preview_data(panel: SettingsPanel) -> None:
    """Load the text as the panel says, learn the tokenizer, and show what training will see."""
    args = panel.arguments(panel.models[0])
    prepared = panel.stage.prepare(args)
    counts, samples = prepared.train_counts, sample_texts(prepared)
    sides = counts, prepared.held_out.counts
    rows = [[n, *(f"{getattr(c, n):,}" for c in sides)] for n in ("documents", "bytes", "words", "tokens")]
    if counts.unknown_tokens:
        rows.append(["unknown words", *(f"{c.unknown_tokens / c.tokens:.1%} of the tokens" for c in sides)])
    style = f"{AS_WRITTEN};background:{FAINT};padding:6px 10px;margin:6px 0;font-size:13px;line-height:1.4"
    title = f"<b>{translate(f'{len(samples)} samples' if len(samples) > 1 else 'A sample')}</b>"
    shown = "".join(f'<div style="{style}">{escape(sample)}</div>' for sample in samples)
    table, tokens = counts_html("text", prepared, rows), tokens_html(samples[0], prepared.tokenizer)
    show(f"{table}{title}{shown}{tokens}")
    updates, tokens = count_training_tokens(args, len(prepared.train_rows))
    extent = passes_over("the text", tokens / counts.tokens)
    say(f"{counts.tokens:,} tokens are ready; training takes {updates:,} updates over {tokens:,} tokens, {extent}.")


@in_one_sentence()
def preview_conversations(panel: SettingsPanel) -> None:
    args = panel.arguments(panel.models[0])
    prepared = panel.stage.prepare(args)
    form = ConversationFormat(args.max_length, args.loss_on, args.too_long)
    samples = [*itertools.islice(prepared.splits.train, 0, NUM_SAMPLES * SKIPPED, SKIPPED)]
    if len(samples) < NUM_SAMPLES:
        samples = [*itertools.islice(prepared.splits.train, NUM_SAMPLES)]
    tokens = learned_html(samples, prepared.tokenizer, form)
    show(conversations_table(prepared) + conversations_html(samples) + tokens)
    ready = f"{prepared.train_counts.documents:,} conversations are ready"
    if prepared.extent:
        say(f"{ready}. {prepared.extent}")
        return
    rows = len(prepared.train_rows)
    updates, tokens = count_training_tokens(args, rows)
    extent = passes_over("them", tokens / (rows * args.max_length))
    say(f"{ready}, in {rows:,} rows of {args.max_length} tokens; training takes {updates:,} updates, {extent}.")


def passes_over(what: str, passes: float) -> str:
    return f"{passes:.1f} passes over {what}" if passes >= 1 else f"{passes:.1%} of {what}"


def sample_texts(prepared: PreparedRun) -> list[str]:
    """Beginnings of a few long documents; of a text that has not so many, stretches from here and there."""
    texts = (piece.text.strip() for piece in prepared.splits.train.read() if piece.starts_document)
    long_enough = (text for text in texts if len(text) >= LEAST_CHARACTERS)
    chosen = list(itertools.islice(long_enough, 0, NUM_SAMPLES * SKIPPED, SKIPPED))
    if len(chosen) < NUM_SAMPLES:
        text = next(iter(prepared.splits.train.strings()))
        third = len(text) // NUM_SAMPLES
        starts = [0, *(text.find("\n", number * third) + 1 for number in range(1, NUM_SAMPLES))]
        chosen = [text[start:].strip() for start in dict.fromkeys(starts)]
    return [shortened(text, MOST_CHARACTERS) for text in chosen if text]


def counts_html(what: str, prepared: PreparedRun, rows: list[list[str]]) -> str:
    """A table of both splits: where they are from, `rows` of counts, and how much text a token stands for."""
    sides, held_out = (prepared.splits.train, prepared.splits.validation), prepared.held_out.counts
    origins, licences = ([escape(getattr(side, name)) for side in sides] for name in ("origin", "licence"))
    head = [["", "<b>for training</b>", "<b>held out</b>"], [what, *origins], ["licence", *licences]]
    bytes_each = f"{held_out.bytes / held_out.tokens:.2f} bytes a token"
    if prepared.splits.test is not None:
        rows = [*rows, ["figures will be of", "", escape(prepared.splits.test.origin)]]
    return table_html([*head, *rows, ["tokenizer", f"{len(prepared.tokenizer):,} types", bytes_each]])


def conversations_table(prepared: PreparedRun) -> str:
    """Where the conversations are from, how many there are, and how many did not fit."""
    counts, held_out = prepared.train_counts, prepared.held_out.counts
    conversations = counts.documents + counts.too_long
    rows = [
        ["conversations", f"{counts.documents:,}", f"{len(prepared.held_out.documents):,}"],
        ["tokens", f"{counts.all_tokens:,}", ""],
        ["of them learned", f"{counts.tokens:,} ({counts.tokens / counts.all_tokens:.0%})", f"{held_out.tokens:,}"],
        ["words learned", f"{counts.words:,}", f"{held_out.words:,}"],
        ["shortened", f"{counts.shortened:,} ({counts.shortened / conversations:.1%}) lost their last turns", ""],
        ["left out", f"{counts.too_long:,} ({counts.too_long / conversations:.1%}): no answer fits into a row", ""],
    ]
    if counts.bad_rows:
        rows.append(["no conversation", f"{counts.bad_rows:,} rows left out; {escape(counts.complaints[0])}", ""])
    remarks = [prepared.splits.note]
    if isinstance(prepared, PreparedLwf):
        other = (prepared.rehearsal.train, prepared.rehearsal.validation)
        rows.append(["general text", *(escape(text.origin) for text in other)])
        rows.append(["its licence", *(escape(text.licence) for text in other)])
        remarks += prepared.remarks
    rows += [["remark", escape(remark), ""] for remark in remarks if remark]
    return counts_html("data", prepared, rows)


def conversations_html(samples: list[list[Message]]) -> str:
    style = f"flex:1 1 280px;min-width:240px;border:1px solid {GRID};border-radius:8px;padding:6px 10px"
    cards = []
    for messages in samples:
        more = len(messages) - MOST_TURNS
        rest = small_html(f"and {more} more turns") if more > 0 else ""
        cards.append(f'<div style="{style}">{bubbles_html(messages[:MOST_TURNS], MOST_CHARACTERS)}{rest}</div>')
    title = f"{len(samples)} conversations" if len(samples) > 1 else "A conversation"
    return f"<b>{translate(title)}</b>{beside_html(cards, align='flex-start')}"


def tokens_html(text: str, tokenizer: PreTrainedTokenizerFast) -> str:
    offsets = text_backend(tokenizer).encode(text, add_special_tokens=False).offsets
    return tinted_html(f"The first sample as its {len(offsets):,} tokens", text, offsets, itertools.repeat(TINTS))


def learned_html(samples: list[list[Message]], tokenizer: PreTrainedTokenizerFast, form: ConversationFormat) -> str:
    """The beginning of the first of the samples that fits into a row as its tokens, the learned ones underlined."""
    samples = [plain_messages(messages, tokenizer) for messages in samples]  # as `render` shows them
    encoded = zip(samples, encode_conversations(samples, tokenizer, form), strict=True)
    for messages, supervised in ((messages, found.supervised) for messages, found in encoded if found is not None):
        (text,), _ = render([messages], tokenizer)
        count = len(supervised)
        offsets = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).offsets[: min(count, MOST_TOKENS)]
        text = text[: offsets[-1][1]] + (" …" if count > MOST_TOKENS else "")
        styles = (LEARNED if is_learned else GIVEN for is_learned in supervised)
        title = f"One of them as {count:,} tokens; the {int(supervised.sum()):,} that are learned are underlined"
        return tinted_html(title, text, offsets, styles)
    return ""


def tinted_html(title: str, text: str, tokens: Iterable[tuple[int, int]], styles: Iterable[tuple[str, ...]]) -> str:
    """The text under its title, each token (begin, end) in the next of its `styles`, which take turns; tokens that
    share one character, parts of its bytes, are one patch."""
    spans, position, number = [], 0, 0
    for (begin, end), turns in zip(tokens, styles, strict=False):
        if end > position:
            patch = escape(text[max(begin, position) : end])
            style = f"border-radius:3px;{turns[number % len(turns)]}"
            spans.append(f'{escape(text[position:begin])}<span style="{style}">{patch}</span>')
            position, number = end, number + 1
    style = f"{AS_WRITTEN};font-size:14px;line-height:1.9;margin:6px 0"
    return f'<b>{translate(title)}</b><div style="{style}">{"".join(spans)}{escape(text[position:])}</div>'


@in_one_sentence()
def show_base_model(panel: SettingsPanel) -> None:
    """Name the base model and its licence. The one of the package shows its terms and is converted, once."""
    args = panel.arguments(panel.models[0])
    base = base_of(args)
    if base.path == offline_gemma.NAME and not offline_gemma.converted_folder().exists():
        style = f"max-height:220px;overflow-y:auto;border:1px solid {GRID};border-radius:8px;padding:6px 10px;"
        style += f"margin:6px 0;{AS_WRITTEN};font-size:13px;line-height:1.45"
        terms = f'<div style="{style}">{escape(offline_gemma.terms_text())}</div>'
        show(f"<b>{text('The Gemma Terms of Use. By going on you accept them.')}</b>{terms}")
        say(f"{base.name} is converted for its first use, once; this takes one to two minutes.", "note")
        offline_gemma.offline_gemma(terms_were_shown=True)
    stays = f"It stays as it is; {count_trainable(args, base):,} parameters beside it are trained."
    say(f"The base is {base.name}, licence: {base.licence}. {stays} {base.note}".strip())


@in_one_sentence()
def show_tuned_model(panel: PreferencePanel) -> None:
    """Name the chat model that is tuned by preferences and its licence; train a small one if there is no other."""
    if panel.lacks_chat_model():
        small = small_chat_model(panel.runs)
        remark = (
            "There is no chat model: neither DialoGPT-small from the hub, nor one of notebooks 2 to 4. A small one is "
            f"trained first, in {small.max_steps} updates; this takes about a minute. What it says makes no sense, but "
            "all that follows can be seen on it."
        )
        say(remark, "note")
        sft(small, callbacks_for(drive_copier(panel.runs)))
        panel.refresh()
    args = panel.arguments(panel.models[0])
    base = base_of(args)
    what = "It stays as it is, and is the reference; adapters beside it are trained."
    if args.sft_epochs > 0:
        what = "A copy of it first learns the answers as such and is the reference; adapters on that are trained."
    others = ", ".join(name_of(folder) for folder in chat_models(panel.runs) if str(folder) != base.path)
    may_name = f"Other chat models here: {others}; the panel's base model may name one." if others else ""
    sentences = f"{base.name} is tuned, licence: {base.licence}.", what, base.note, may_name
    say(" ".join(filter(None, sentences)))


def small_chat_model(runs: str | Path) -> SftArguments:
    """The small one is trained as TinyGPT2 by notebook 2's smallest preset: in a minute, and it makes no sense."""
    few = {**CHAT_PRESETS["smoke"], "per_device_train_batch_size": 8, "eval_steps": 0.5, "save_steps": 0.5}
    what = {"dataset": "dailydialog", "data_source": "offline", "model_type": "tiny-gpt2"}
    return SftArguments(**few, **what, output_dir=str(Path(runs) / SMALL_FOLDER / "smoke" / "tiny-gpt2"))
