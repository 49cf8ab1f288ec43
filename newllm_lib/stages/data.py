"""Look at a data set before training on it: its examples, how they read as tokens, how long they are, what is wrong
with them, and which come twice."""

import itertools
import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerFast

from ..data.chat_template import ConversationFormat, encode_conversations, learned_tokenizer, render, template_for
from ..data.conversations import NumberedConversation, conversation_hash, first_rows, load_conversations
from ..data.sources import CONVERSATION_DATASETS, DATASETS
from ..errors import InputError
from ..training.checkpoint import check_model_folder
from ..training.trained_model import read_tokenizer

MAX_ROWS = 20_000  # looked at, so that time and memory are the same for 1.5 million conversations
CONVERSATIONS_PER_CALL = 200
ROWS_SHOWN = 3
COMPLAINTS_SHOWN = 5
TOKENS_SHOWN = 160
WHOLE = 1 << 40  # a length that no conversation has


@dataclass
class DatasetReport:
    """What `newllm data` says about a dataset. Counts are of the rows of the training split that were looked at."""

    origin: str
    licence: str
    note: str
    chat_template: str
    tokenizer: str
    max_length: int
    rows_read: int = 0
    sampled: bool = False  # there are more rows than were looked at
    conversations: int = 0
    examples: list[str] = field(default_factory=list)  # the first ones, rendered
    tokens: list[tuple[str, bool]] = field(default_factory=list)  # (token, supervised) of one of them
    more_tokens: int = 0  # that are not in `tokens`
    lengths: Counter[int] = field(default_factory=Counter)  # upper end of a bucket -> conversations
    total_tokens: int = 0
    supervised_tokens: int = 0
    longest: int = 0
    shortened: int = 0
    left_out: int = 0
    bad_rows: int = 0
    complaints: list[str] = field(default_factory=list)
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
    """Read at most MAX_ROWS rows of a dataset, each as `newllm sft` would.

    Args:
        dataset, data_source, data, skip_bad_rows: as for `load_conversations`.
        model: folder of a finished run whose tokenizer and chat template are taken; None learns a tokenizer of up to
            4,096 types from the rows.

    Raises:
        InputError: unknown dataset, data out of reach, a bad file or row, no conversation at all, or a bad model.
    """
    for name, value, least in (("max_length", max_length, 2), ("max_samples", max_samples, 1)):
        if value is not None and value < least:
            raise InputError(f"{name} has to be at least {least}, got {value}.")
    if dataset in DATASETS and dataset not in CONVERSATION_DATASETS:
        raise InputError(f"{dataset} is running text without conversations; newllm pretrain trains on it.")
    splits = load_conversations(dataset, data_source, data, skip_bad_rows=skip_bad_rows)
    limit = min(max_samples or MAX_ROWS, MAX_ROWS)
    if model is None:
        what = "bpe learned from these conversations"
        tokenizer = learned_tokenizer(first_rows(splits.train, limit), splits.template, "bpe", None)
    else:
        what, tokenizer = f"the tokenizer of {model}", read_tokenizer(check_model_folder(model))
        if tokenizer.chat_template is None:
            tokenizer.chat_template = template_for(tokenizer, splits.template)
    train, template, what = splits.train, tokenizer.chat_template, f"{what}, {len(tokenizer):,} types"
    report = DatasetReport(train.origin, train.licence, splits.note, template, what, max_length)

    def is_looked_at(row: NumberedConversation) -> bool:
        report.sampled = row[0] >= limit
        return not report.sampled

    rows, seen = itertools.takewhile(is_looked_at, train.read(0)), set()
    while block := list(itertools.islice(rows, CONVERSATIONS_PER_CALL)):
        _look_at(report, block, tokenizer, seen)
    if not report.conversations:
        complaint = f" ({report.complaints[0]})" if report.complaints else ""
        raise InputError(f"{report.origin} holds no conversation{complaint}.")
    for messages in first_rows(splits.validation, limit):
        report.held_out += 1
        report.overlap += conversation_hash(messages) in seen
    return report


def _look_at(
    report: DatasetReport, block: list[NumberedConversation], tokenizer: PreTrainedTokenizerFast, seen: set[int]
) -> None:
    """Add a block of rows to the report."""
    conversations = [messages for _, messages, _ in block if messages is not None]
    complaints = [complaint for _, messages, complaint in block if messages is None]
    report.rows_read += len(block)
    report.conversations += len(conversations)
    report.bad_rows += len(complaints)
    report.complaints = (report.complaints + complaints)[:COMPLAINTS_SHOWN]
    for digest in map(conversation_hash, conversations):
        report.duplicates += digest in seen
        seen.add(digest)
    if missing := conversations[: ROWS_SHOWN - len(report.examples)]:
        report.examples += render(missing, tokenizer)[0]
    for item in encode_conversations(conversations, tokenizer, ConversationFormat(WHOLE)):
        length = len(item.token_ids)
        report.lengths[bucket(length)] += 1
        report.total_tokens += length
        report.supervised_tokens += int(item.supervised.sum())
        report.longest = max(report.longest, length)
        if length > report.max_length:  # it ends with an answer, which is lost at least
            first = item.supervised.argmax()
            first_end = first + np.append(item.supervised[first:], False).argmin()
            report.left_out += int(first_end > report.max_length)
            report.shortened += int(first_end <= report.max_length)
        if not report.tokens or (report.more_tokens and length <= TOKENS_SHOWN):
            shown = [_spelled(tokenizer, int(token)) for token in item.token_ids[:TOKENS_SHOWN]]
            report.tokens = list(zip(shown, item.supervised[:TOKENS_SHOWN].tolist(), strict=True))
            report.more_tokens = length - len(shown)


def bucket(length: int) -> int:
    """The upper end of the bucket of a length: 16, 32, 64, ..."""
    return max(16, 1 << (length - 1).bit_length())


def _spelled(tokenizer: PreTrainedTokenizerFast, token_id: int) -> str:
    """A token for the eye: spaces and ends of line visible, part of a character as the vocabulary spells it."""
    text = tokenizer.decode([token_id])
    if "\ufffd" in text or not text:
        text = tokenizer.convert_ids_to_tokens(token_id)
    text = text if len(text) <= 40 else f"{text[:40]}..."  # a row of one sign can become one token
    return text.replace(" ", "␣").replace("\n", "⏎")


def report_text(report: DatasetReport) -> str:
    """The report for a terminal."""

    def share(count: int, whole: int) -> str:
        return f"{count:,} ({count / whole:.1%})" if whole else f"{count:,}"

    lines = [
        f"Data       {report.origin}",
        f"Licence    {report.licence}",
        *([f"Note       {report.note}"] if report.note else []),
        f"Looked at  {report.rows_read:,} rows of the training split, "
        f"{'the first ones: there are more' if report.sampled else 'all of them'}",
        f"Tokenizer  {report.tokenizer}",
    ]
    for number, example in enumerate(report.examples, start=1):
        lines += ["", f"Conversation {number}", *(f"  {line}" for line in _shortened(example).splitlines())]
    tokens = " ".join(f"[{token}]" if supervised else token for token, supervised in report.tokens)
    more = f" ... and {report.more_tokens:,} more" if report.more_tokens else ""
    lines += ["", "Chat template", f"  {report.chat_template}", "", "Tokens ([supervised])", f"  {tokens}{more}"]
    lines += ["", "Tokens per conversation"]
    end, most = min(report.lengths), max(report.lengths.values())
    while end <= max(report.lengths):
        count = report.lengths[end]
        begin, bar = 1 if end == 16 else end // 2 + 1, "█" * -(-40 * count // most)
        lines.append(f"  {begin:>7,} - {end:>7,}  {bar:<40} {count:>8,}  {count / report.conversations:>6.1%}")
        end *= 2
    mean = report.total_tokens / report.conversations
    supervised = report.supervised_tokens / report.total_tokens
    return "\n".join([
        *lines,
        "",
        f"Conversations    {report.conversations:,}; {mean:,.0f} tokens on average, {report.longest:,} at most; "
        f"{supervised:.0%} of the tokens are supervised",
        f"At {report.max_length} tokens    {share(report.shortened, report.conversations)} lose their last turns, "
        f"{share(report.left_out, report.conversations)} are left out: not even the first answer fits",
        f"Bad rows         {share(report.bad_rows, report.rows_read)}",
        *(f"                 {complaint}" for complaint in report.complaints),
        f"Duplicates       {share(report.duplicates, report.conversations)} were there before, word for word",
        f"In both splits   {share(report.overlap, report.held_out)} of {report.held_out:,} held-out conversations "
        "are in the training split too",
    ])  # fmt: skip


def _shortened(text: str, characters: int = 1_000, lines: int = 20) -> str:
    beginning = "".join(text[:characters].splitlines(keepends=True)[:lines])
    return text if beginning == text else f"{beginning} ... ({len(text):,} characters)"


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
