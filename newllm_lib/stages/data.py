"""Look at a data set before training on it: its examples, how they read as tokens, how long they are, what is wrong
with them, and which come twice."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from ..data.chat_template import ConversationFormat, EncodedConversation, render, template_for
from ..data.conversations import (
    ConversationCounts,
    conversation_hash,
    encoded_blocks,
    first_rows,
    learned_tokenizer,
    load_conversations,
)
from ..data.sources import CONVERSATION_DATASETS, DATASETS
from ..errors import InputError
from ..training.checkpoint import check_model_folder
from ..training.trained_model import read_tokenizer

MAX_ROWS = 20_000  # looked at, so that time and memory are the same for 1.5 million conversations
ROWS_SHOWN = 3
TOKENS_SHOWN, CHARACTERS_SHOWN, LINES_SHOWN = 160, 1_000, 20  # of one conversation
WHOLE = 1 << 40  # a length that no conversation has


def inspect_dataset(
    dataset: str | None = None,
    data_source: str = "auto",
    data: str | None = None,
    model: str | None = None,
    max_length: int = 256,
    max_samples: int | None = None,
    skip_bad_rows: bool = False,
) -> str:
    """What `newllm data` says of a dataset, after at most MAX_ROWS rows, each read as `newllm sft` would. The tokenizer
    and chat template are those of `model`, the folder of a finished run; None learns a tokenizer of up to 4,096 types
    from the rows. The other settings are those of `load_conversations`. Raises InputError: unknown dataset, data out of
    reach, a bad file or row, no conversation at all, or a bad model."""
    for name, value, least in (("max_length", max_length, 2), ("max_samples", max_samples, 1)):
        if value is not None and value < least:
            raise InputError(f"{name} has to be at least {least}, got {value}.")
    if dataset in DATASETS and dataset not in CONVERSATION_DATASETS:
        raise InputError(f"{dataset} is running text without conversations; newllm pretrain trains on it.")
    splits = load_conversations(dataset, data_source, data, skip_bad_rows=skip_bad_rows)
    train, limit = splits.train, min(max_samples or MAX_ROWS, MAX_ROWS)
    tokenizer, what = None, "bpe learned from these conversations"
    if model is not None:
        tokenizer, what = read_tokenizer(check_model_folder(model)), f"the tokenizer of {model}"
    rows, are_all = [], True
    for row in train.read(0):  # once: they may come over the network
        if row[0] >= limit:
            are_all = False
            break
        rows.append(row)
    looked_at = replace(first_rows(train, limit), read=lambda first: iter(rows))
    if tokenizer is None:
        tokenizer = learned_tokenizer(looked_at, splits.template, "bpe", None)
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = template_for(tokenizer, splits.template)

    counts, lengths, lost, shown = ConversationCounts(), [], Counter(), []
    for _, block, found in encoded_blocks(looked_at, tokenizer, ConversationFormat(WHOLE), 0):
        counts.add(found)
        lengths += [len(item.token_ids) for item in block]
        lost.update(_lost(item, max_length) for item in block)
        shown += block[: ROWS_SHOWN - len(shown)]
    if not lengths:
        complaint = f" ({counts.complaints[0]})" if counts.complaints else ""
        raise InputError(f"{train.origin} holds no conversation{complaint}.")
    hashes, held_out = (
        [conversation_hash(messages) for messages in side] for side in (looked_at, first_rows(splits.validation, limit))
    )
    known = set(hashes)
    overlap = sum(digest in known for digest in held_out)
    return "\n".join([
        f"Data       {train.origin}",
        f"Licence    {train.licence}",
        *([f"Note       {splits.note}"] if splits.note else []),
        f"Looked at  {counts.rows_read:,} rows of the training split, "
        f"{'all of them' if are_all else 'the first ones: there are more'}",
        f"Tokenizer  {what}, {len(tokenizer):,} types",
        *_conversation_lines(render(list(itertools.islice(looked_at, ROWS_SHOWN)), tokenizer)[0]),
        "",
        "Chat template",
        f"  {tokenizer.chat_template}",
        "",
        "Tokens ([supervised])",
        f"  {_spelled(min(shown, key=lambda item: len(item.token_ids)), tokenizer)}",
        "",
        "Tokens per conversation",
        *length_lines(lengths),
        "",
        f"Conversations    {len(lengths):,}; {counts.all_tokens / len(lengths):,.0f} tokens on average, "
        f"{max(lengths):,} at most; {counts.tokens / counts.all_tokens:.0%} of the tokens are supervised",
        f"At {max_length} tokens    {_share(lost['last turns'], len(lengths))} lose their last turns, "
        f"{_share(lost['all'] + counts.too_long, len(lengths))} are left out: not even the first answer fits",
        f"Bad rows         {_share(counts.bad_rows, counts.rows_read)}",
        *(f"                 {complaint}" for complaint in counts.complaints),
        f"Duplicates       {_share(len(hashes) - len(known), len(lengths))} were there before, word for word",
        f"In both splits   {_share(overlap, len(held_out))} of {len(held_out):,} held-out conversations "
        "are in the training split too",
    ])  # fmt: skip


def _share(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.1%})" if whole else f"{count:,}"


def _lost(item: EncodedConversation, max_length: int) -> str:
    """What of a whole conversation a row of `max_length` tokens has no room for: "", "last turns" or "all"."""
    if len(item.token_ids) <= max_length:
        return ""
    # It ends with an answer, which is lost at least. All is, if the first answer goes on to the end of the row.
    return "all" if item.supervised[item.supervised.argmax() : max_length + 1].all() else "last turns"


def _conversation_lines(texts: list[str]) -> Iterator[str]:
    """The first conversations as they are rendered, long ones by their beginning."""
    for number, text in enumerate(texts, start=1):
        shown = "".join(text[:CHARACTERS_SHOWN].splitlines(keepends=True)[:LINES_SHOWN])
        shown += "" if shown == text else f" ... ({len(text):,} characters)"
        yield from ["", f"Conversation {number}", *(f"  {line}" for line in shown.splitlines())]


def _spelled(item: EncodedConversation, tokenizer: PreTrainedTokenizerFast) -> str:
    """The tokens of a conversation for the eye: spaces and ends of line visible, part of a character as the vocabulary
    spells it, supervised ones in brackets."""
    spelled = []
    for token_id, supervised in zip(item.token_ids[:TOKENS_SHOWN].tolist(), item.supervised, strict=False):
        text = tokenizer.decode([token_id])
        if "\ufffd" in text or not text:
            text = tokenizer.convert_ids_to_tokens(token_id)
        text = text if len(text) <= 40 else f"{text[:40]}..."  # a row of one sign can become one token
        text = text.replace(" ", "␣").replace("\n", "⏎")
        spelled.append(f"[{text}]" if supervised else text)
    left_out = len(item.token_ids) - len(spelled)
    return " ".join(spelled) + (f" ... and {left_out:,} more" if left_out else "")


def length_lines(lengths: list[int]) -> Iterator[str]:
    """How many conversations have up to 16 tokens, up to 32, 64, ..."""
    counts = Counter(max(16, 1 << (length - 1).bit_length()) for length in lengths)
    end = min(counts)
    while end <= max(counts):
        begin, bar = 1 if end == 16 else end // 2 + 1, "█" * -(-40 * counts[end] // max(counts.values()))
        yield f"  {begin:>7,} - {end:>7,}  {bar:<40} {counts[end]:>8,}  {counts[end] / len(lengths):>6.1%}"
        end *= 2


def catalogue_text() -> str:
    """The catalogue as a table: name, licence, rows, what stands in for it, and where the hub keeps it."""
    table = [("name", "rows", "stand-in", "licence", "on the hub")]
    for name, entry in DATASETS.items():
        known = [source.rows["train"] for source in entry.sources if "train" in source.rows]
        ids = ", then ".join(source.hub_id for source in entry.sources)
        table.append((name, f"{known[0]:,}" if known else "-", entry.offline or "-", entry.licence, ids))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


TEMPLATE_ROWS = {
    "instruction": [  # of a file that `newllm sft --data FILE.jsonl` takes
        {"prompt": "What is the capital of France?", "completion": "Paris."},
        {"messages": [{"role": "system", "content": "Answer in one sentence."},
                      {"role": "user", "content": "Why is the sky blue?"},
                      {"role": "assistant", "content": "Air scatters blue light more than red light."}]},
        {"messages": [{"role": "user", "content": "Summarise the text."},
                      {"role": "context", "content": "The mill stood still because the river ran low all summer."},
                      {"role": "assistant", "content": "A dry summer stopped the mill."},
                      {"role": "user", "content": "日本語でお願いします。"},
                      {"role": "assistant", "content": "乾いた夏のため、水車は止まっていました。"}]},
    ],
    "preference": [  # of a file that `newllm dpo --data FILE.jsonl` takes; `kind`, what is wrong, may be left out
        {"prompt": "Gitとは何ですか。", "chosen": "Gitは、変更の履歴を記録する道具です。",
         "rejected": "いろいろ便利なものです。", "kind": "vague"},
        {"prompt": [{"role": "user", "content": "Name a prime number."}, {"role": "assistant", "content": "Seven."},
                    {"role": "user", "content": "And a larger one?"}],
         "chosen": "Eleven.", "rejected": "Nine.", "kind": "wrong_fact"},
    ],
}  # fmt: skip


def template_rows(name: str) -> str:
    """Rows of one of TEMPLATE_ROWS, a line each, to write one's own file after."""
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in TEMPLATE_ROWS[name])
