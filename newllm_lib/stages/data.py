"""Look at a data set before training on it: its examples, how they read as tokens, how long they are, what is wrong
with them, and which come twice."""

import itertools
import json
from collections import Counter
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerFast

from ..data.chat_template import ConversationFormat, render, template_for
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


@dataclass
class DatasetReport(ConversationCounts):
    """What `newllm data` says about a dataset. Counts are of the rows of the training split that were looked at."""

    origin: str = ""
    licence: str = ""
    note: str = ""
    tokenizer: str = ""
    chat_template: str = ""
    max_length: int = 0
    sampled: bool = False  # there are more rows than were looked at
    examples: list[str] = field(default_factory=list)  # the first ones, rendered
    spelled: list[tuple[str, bool]] = field(default_factory=list)  # (token, supervised) of the shortest of them
    lengths: list[int] = field(default_factory=list)  # tokens of each conversation
    duplicates: int = 0  # conversations that were there before, word for word
    held_out: int = 0  # conversations of the held-out split that were looked at
    overlap: int = 0  # of these, in the training split too


def inspect_dataset(
    dataset: str | None = None,
    data_source: str = "auto",
    data: str | None = None,
    model: str | None = None,
    max_length: int = 256,
    max_samples: int | None = None,
    skip_bad_rows: bool = False,
) -> DatasetReport:
    """Read at most MAX_ROWS rows of a dataset, each as `newllm sft` would. The tokenizer and chat template are those of
    `model`, the folder of a finished run; None learns a tokenizer of up to 4,096 types from the rows. The other
    settings are those of `load_conversations`. Raises InputError: unknown dataset, data out of reach, a bad file or
    row, no conversation at all, or a bad model."""
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
    rows = list(itertools.islice(train.read(0), limit + 1))  # read once: they may come over the network
    identity = f"{train.identity}/{limit} looked at"
    looked_at = replace(train, identity=identity, read=lambda first: itertools.islice(rows, first, limit))
    if tokenizer is None:
        tokenizer = learned_tokenizer(looked_at, splits.template, "bpe", None)
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = template_for(tokenizer, splits.template)
    hashes, held_out = (
        [conversation_hash(messages) for messages in side] for side in (looked_at, first_rows(splits.validation, limit))
    )
    seen = set(hashes)
    report = DatasetReport(
        origin=train.origin, licence=train.licence, note=splits.note, tokenizer=f"{what}, {len(tokenizer):,} types",
        chat_template=tokenizer.chat_template, max_length=max_length, sampled=len(rows) > limit,
        examples=render(list(itertools.islice(looked_at, ROWS_SHOWN)), tokenizer)[0],
        duplicates=len(hashes) - len(seen), held_out=len(held_out), overlap=sum(it in seen for it in held_out),
    )  # fmt: skip
    for _, block, found in encoded_blocks(looked_at, tokenizer, ConversationFormat(WHOLE), 0):
        report.add(found)
        if block and not report.spelled:
            shortest = min(block[:ROWS_SHOWN], key=lambda item: len(item.token_ids))
            tokens = [_spelled(tokenizer, token_id) for token_id in shortest.token_ids.tolist()]
            report.spelled = list(zip(tokens, shortest.supervised.tolist(), strict=True))
        for item in block:
            report.lengths.append(len(item.token_ids))
            if report.lengths[-1] > max_length:  # it ends with an answer, which is lost at least
                first = item.supervised.argmax()
                fits = not item.supervised[first : max_length + 1].all()  # the first answer
                report.shortened += fits
                report.too_long += not fits
    if not report.documents:
        complaint = f" ({report.complaints[0]})" if report.complaints else ""
        raise InputError(f"{report.origin} holds no conversation{complaint}.")
    return report


def _spelled(tokenizer: PreTrainedTokenizerFast, token_id: int) -> str:
    """A token for the eye: spaces and ends of line visible, part of a character as the vocabulary spells it."""
    text = tokenizer.decode([token_id])
    if "\ufffd" in text or not text:
        text = tokenizer.convert_ids_to_tokens(token_id)
    text = text if len(text) <= 40 else f"{text[:40]}..."  # a row of one sign can become one token
    return text.replace(" ", "␣").replace("\n", "⏎")


def report_text(report: DatasetReport) -> str:
    """The report for a terminal."""

    def share(count: int, whole: int = report.documents) -> str:
        return f"{count:,} ({count / whole:.1%})" if whole else f"{count:,}"

    extent = "the first ones: there are more" if report.sampled else "all of them"
    lines = [f"Data       {report.origin}", f"Licence    {report.licence}"]
    lines += [f"Note       {report.note}"] if report.note else []
    lines.append(f"Looked at  {report.rows_read:,} rows of the training split, {extent}")
    lines.append(f"Tokenizer  {report.tokenizer}")
    for number, example in enumerate(report.examples, start=1):
        shown = "".join(example[:CHARACTERS_SHOWN].splitlines(keepends=True)[:LINES_SHOWN])
        shown += "" if shown == example else f" ... ({len(example):,} characters)"
        lines += ["", f"Conversation {number}", *(f"  {line}" for line in shown.splitlines())]
    tokens = [f"[{token}]" if supervised else token for token, supervised in report.spelled]
    more = f" ... and {len(tokens) - TOKENS_SHOWN:,} more" if len(tokens) > TOKENS_SHOWN else ""
    lines += ["", "Chat template", f"  {report.chat_template}", "", "Tokens ([supervised])"]
    lines += [f"  {' '.join(tokens[:TOKENS_SHOWN])}{more}", "", "Tokens per conversation"]
    # Buckets by their upper ends: 16, 32, 64, ...
    counts = Counter(max(16, 1 << (length - 1).bit_length()) for length in report.lengths)
    end = min(counts)
    while end <= max(counts):
        begin, bar = 1 if end == 16 else end // 2 + 1, "█" * -(-40 * counts[end] // max(counts.values()))
        share_of_all = counts[end] / report.documents
        lines.append(f"  {begin:>7,} - {end:>7,}  {bar:<40} {counts[end]:>8,}  {share_of_all:>6.1%}")
        end *= 2
    mean, supervised = report.all_tokens / report.documents, report.tokens / report.all_tokens
    return "\n".join([
        *lines,
        "",
        f"Conversations    {report.documents:,}; {mean:,.0f} tokens on average, {max(report.lengths):,} at most; "
        f"{supervised:.0%} of the tokens are supervised",
        f"At {report.max_length} tokens    {share(report.shortened)} lose their last turns, "
        f"{share(report.too_long)} are left out: not even the first answer fits",
        f"Bad rows         {share(report.bad_rows, report.rows_read)}",
        *(f"                 {complaint}" for complaint in report.complaints),
        f"Duplicates       {share(report.duplicates)} were there before, word for word",
        f"In both splits   {share(report.overlap, report.held_out)} of {report.held_out:,} held-out conversations "
        "are in the training split too",
    ])  # fmt: skip


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
