"""The reference of DPO: the chat model after it has learned the answers as such, so that it knows the kind of text that
is compared (Rafailov et al. 2023, section 4, with the chosen answers only)."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from ..data.chat_template import ConversationFormat
from ..data.conversations import Conversations, NumberedConversation, conversation_documents, conversation_rows
from ..data.sources import Splits
from ..training.arguments import StageArguments
from ..training.checkpoint import REFERENCE_FOLDER
from ..training.run import PreparedRun, opened_run
from ..training.trainer import LanguageModelTrainer
from .arguments import DpoArguments, values_for
from .pairs import Preferences

SMALL = 10_000_000  # parameters; larger models learn at a smaller rate
LEARNING_RATES = (3e-3, 1e-4)
PAIRS_READ = 10_000  # for new tokens
UPDATE_TOKENS = 1024
ROW_STEP = 64  # tokens; rows are a multiple of it
MIN_USES = 25  # of a piece: a token that is hardly ever learned is worse than the bytes it stands for
STEP = 0.9  # share of the pieces that is kept at least when rare ones go, for their parts take over their uses


@dataclass
class ReferenceArguments(StageArguments):
    """Settings of this first part of stage 6."""

    model_type: ClassVar[str] = "reference"  # what the run's curves and tables call the model
    model: str | None = None


def reference_arguments(args: DpoArguments, parameters: int, max_length: int) -> ReferenceArguments:
    """The settings of this part, from those of stage 6, for rows of `max_length` tokens."""
    rate = args.sft_learning_rate or LEARNING_RATES[parameters >= SMALL]
    ours = {
        "output_dir": str(Path(args.output_dir) / REFERENCE_FOLDER), "model": args.model, "learning_rate": rate,
        "num_train_epochs": args.sft_epochs, "max_steps": -1, "max_length": max_length,
        "per_device_train_batch_size": max(UPDATE_TOKENS // max_length, 1), "gradient_accumulation_steps": 1,
        "lr_scheduler_type": "cosine", "weight_decay": 0.1, "eval_steps": 0.5, "save_steps": 0.5,
        "eval_on_start": False, "logging_steps": 5, "metric_for_best_model": "loss", "greater_is_better": None,
    }  # fmt: skip
    if args.auto_precision:  # what suits pairs need not suit texts
        ours |= {"bf16": None, "fp16": None}
    return ReferenceArguments(**{**values_for(StageArguments, args), **ours})


def learn_answers(args: DpoArguments, prepared: PreparedRun, callbacks: tuple[TrainerCallback, ...]) -> Path:
    """Train all weights of the prepared model on the answers of its pairs, or go on with it. Returns the folder of the
    reference, a run of its own in that of stage 6. Raises InputError: no answer fits; TrainingInterrupted: stopped by
    hand, the same call continues."""
    max_length = row_length(args, prepared)
    form = ConversationFormat(max_length, too_long="cut")  # as DPO cuts them
    splits = Splits(all_answers(prepared.train_rows), all_answers(prepared.held_out), prepared.splits.source)
    rows, counts = conversation_rows(splits.train, prepared.tokenizer, form)
    documents = conversation_documents(splits.validation, prepared.tokenizer, form)
    model = prepared.model.requires_grad_(True)
    settings = reference_arguments(args, model.num_parameters(), max_length)
    identity = {"stage": "sft", "start": prepared.base.identity}
    data = {"splits": splits, "train_rows": rows, "train_counts": counts, "held_out": documents}
    with opened_run(settings, dataclasses.replace(prepared, **data, extent="", base=None), identity) as run:
        if not run.is_finished:
            parts = model, settings, rows, documents, prepared.tokenizer
            trainer = LanguageModelTrainer(*parts, carry_context=False, callbacks=run.callbacks(callbacks))
            run.train(trainer)
            run.finish(trainer.scores(documents))
    return run.folder


def row_length(args: DpoArguments, prepared: PreparedRun) -> int:
    """`args.max_length`, or less where every pair fits into less: many short rows are faster than few long ones."""
    longest = max(pair.length for side in (prepared.train_rows, prepared.held_out) for pair in side.encoded)
    return min(args.max_length, ROW_STEP * math.ceil(longest / ROW_STEP))


def learn_tokens(tokenizer: PreTrainedTokenizerFast, train: Preferences, most: int, name: str) -> str:
    """Add tokens for the pieces of the training pairs that the tokenizer takes apart; the remark says how many."""
    pairs = train.pairs[:PAIRS_READ]
    texts = [text for pair in pairs for text in (pair.prompt[-1]["content"], pair.chosen, pair.rejected)]
    added = tokenizer.add_tokens(new_tokens(texts, tokenizer, most))
    return f"The tokenizer of {name} gets {added:,} new tokens for these answers." if added else ""


def new_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, most: int) -> list[str]:
    """Pieces for `tokenizer.add_tokens`, at most `most`, each with fewer characters than the tokenizer takes tokens for
    it and found MIN_USES times in the texts when these are read from left to right, the longest piece first.

    They are learned as byte-pair encoding does (Sennrich et al. 2016), never across scripts, punctuation or spaces.
    """
    if most == 0:
        return []
    parts = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.UnicodeScripts()
    split = pre_tokenizers.Sequence(list(parts))
    words = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))
    taken_apart = _taken_apart(list(words), tokenizer)
    found = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=most, min_frequency=2, show_progress=False)
    found.train_from_iterator((word for word in words.elements() if word in taken_apart), trainer)
    pieces = sorted(_taken_apart(list(found.get_vocab()), tokenizer))
    while pieces:
        longest_first = re.compile("|".join(map(re.escape, sorted(pieces, key=len, reverse=True))))
        uses = Counter(piece for text in texts for piece in longest_first.findall(text))
        kept = sum(uses[piece] >= MIN_USES for piece in pieces)
        if kept == len(pieces):
            break
        pieces = sorted(pieces, key=lambda piece: -uses[piece])[: max(kept, int(len(pieces) * STEP))]
    return sorted(pieces)


def _taken_apart(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> set[str]:
    """The texts that have more tokens than characters."""
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return {text for text, ids in zip(texts, encoded, strict=True) if len(ids) > len(text)}


def grow(model: PreTrainedModel, vocab_size: int, seed: int) -> None:
    """Give the model as many embeddings as there are tokens, new ones drawn from the seed."""
    if vocab_size > model.get_input_embeddings().weight.shape[0]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # As at the model's initialisation: mean_resizing would draw them around the mean of the trained embeddings.
            model.resize_token_embeddings(vocab_size, mean_resizing=False)


def all_answers(side: Preferences) -> Conversations:
    """The prompts, each with its chosen and with its rejected answer: a model that knows how both are written has only
    to learn which of them is wanted."""
    answers = [(pair.prompt, answer) for pair in side.pairs for answer in (pair.chosen, pair.rejected)]

    def read(first_row: int) -> Iterator[NumberedConversation]:
        for number, (prompt, answer) in enumerate(answers[first_row:], start=first_row):
            yield number, [*prompt, {"role": "assistant", "content": answer}], ""

    identity = f"answers of {side.identity}/{len(side.pairs)}"
    return Conversations(f"the answers of {side.origin}", side.licence, identity, read)
