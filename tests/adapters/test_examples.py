"""Examples of the new task and of the text to rehearse: exact labels, exact mixing, nothing seen twice too early."""

import numpy as np
import pytest
import torch
from byte_ids import byte_ids

from newllm_lib.adapters.mixture import (
    ExampleMix,
    MixSampler,
    collate_examples,
    conversation_examples,
    in_paragraphs,
    text_examples,
)
from newllm_lib.data.chat_template import TEMPLATES, ConversationFormat
from newllm_lib.data.conversations import load_conversations
from newllm_lib.data.text import IGNORED, load_text


@pytest.fixture
def tokenizer(byte_tokenizer):
    byte_tokenizer.chat_template = TEMPLATES["instruction"]
    yield byte_tokenizer
    byte_tokenizer.chat_template = None


def conversations_of(tmp_path, lines: list[str]):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return load_conversations(data=str(path), eval_data=str(path)).train


def test_an_example_learns_the_answer_and_its_end(tmp_path, tokenizer):
    conversations = conversations_of(tmp_path, ['{"prompt": "Hi?", "completion": "Yo."}'])
    rows, counts = conversation_examples(conversations, tokenizer, ConversationFormat(64))
    (row,) = rows
    end = [tokenizer.eos_token_id]
    assert row["input_ids"].tolist() == [*end, *byte_ids("Instruction: Hi?\nResponse: Yo."), *end]
    learned = row["input_ids"][row["supervised"]].tolist()
    assert learned == [*byte_ids(" Yo."), *end]
    assert (counts.documents, counts.tokens, counts.bytes) == (1, 5, 3)


def test_labels_are_shifted_and_padding_is_never_learned(tmp_path, tokenizer):
    conversations = conversations_of(
        tmp_path, ['{"prompt": "Hi?", "completion": "Yo."}', '{"prompt": "A longer one?", "completion": "Y"}']
    )
    rows, _ = conversation_examples(conversations, tokenizer, ConversationFormat(64))
    batch = collate_examples(list(rows))
    assert batch["input_ids"].shape == batch["labels"].shape
    assert torch.equal(batch["labels"].flatten()[batch["supervised"]], batch["labels"][batch["labels"] != IGNORED])
    for number, row in enumerate(rows):
        ids, length = row["input_ids"], len(row["input_ids"]) - 1
        assert batch["input_ids"][number, :length].tolist() == ids[:-1].tolist()
        scored = batch["labels"][number] != IGNORED
        assert batch["labels"][number][scored].tolist() == ids[row["supervised"]].tolist()
        # What is predicted is what follows, and the first learned token is predicted from the last given one.
        first = int(torch.nonzero(scored)[0])
        assert ids[first + 1] == batch["labels"][number, first]
        assert not scored[length:].any()


def test_text_is_cut_into_stretches_that_lose_nothing(text_file, tokenizer):
    text = load_text(data=str(text_file)).train
    rows, counts = text_examples(text, tokenizer, 32)
    assert all(len(row["input_ids"]) <= 32 for row in rows)
    assert all(row["input_ids"][0] == tokenizer.bos_token_id and not row["supervised"][0] for row in rows)
    assert all(row["supervised"][1:].all() for row in rows)
    joined = np.concatenate([row["input_ids"][1:] for row in rows])
    assert tokenizer.decode(joined) == "".join(text.strings())
    assert counts.tokens == len(joined)


def test_paragraphs_are_whole_lines_and_all_of_the_text(text_file):
    text = load_text(data=str(text_file)).validation
    pieces = list(in_paragraphs(text).read())
    assert "".join(piece.text for piece in pieces) == "".join(text.strings())
    assert all(piece.starts_document for piece in pieces)
    assert len(pieces) > 1 and max(len(piece.text) for piece in pieces) < 600


class Rows(list):
    """Rows as datasets has them, as far as a mix asks."""

    @property
    def data(self):
        import pyarrow

        return pyarrow.table({"input_ids": pyarrow.array([row["input_ids"] for row in self])})


def mix_of(new: int, rehearsal: int | None) -> ExampleMix:
    def rows(count: int, first: int) -> Rows:
        return Rows({"input_ids": list(range(2 + (first + n) % 5)), "name": first + n} for n in range(count))

    return ExampleMix(rows(new, 0), None if rehearsal is None else rows(rehearsal, 1000))


def epochs(sampler: MixSampler, count: int) -> list[list[int]]:
    taken = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        taken.append(list(sampler))
    return taken


def test_every_epoch_has_all_that_is_new_and_its_share_to_rehearse():
    mix = mix_of(20, 50)
    for taken in epochs(MixSampler(mix, 0.2, 4, seed=1), 5):
        assert sorted(index for index in taken if index < 20) == list(range(20))
        assert len([index for index in taken if index >= 20]) == 4


def test_nothing_is_rehearsed_again_before_all_was_seen():
    mix = mix_of(20, 7)
    sequence = [
        index for taken in epochs(MixSampler(mix, 0.3, 4, seed=1), 14) for index in sorted(taken) if index >= 20
    ]
    assert len(sequence) == 14 * 6
    seen = np.bincount(np.array(sequence) - 20, minlength=7)
    assert set(seen) == {12}
    for count in range(1, 14):  # after every epoch no row is two passes ahead of another
        seen = np.bincount(np.array(sequence[: 6 * count]) - 20, minlength=7)
        assert seen.max() - seen.min() <= 1


@pytest.mark.parametrize(("ratio", "rehearsal", "expected"), [(0.0, 5, 0), (0.0, None, 0), (1.0, 5, 20), (1.0, 50, 20)])
def test_ratio_zero_and_one_are_legal(ratio, rehearsal, expected):
    sampler = MixSampler(mix_of(20, rehearsal), ratio, 4, seed=1)
    (taken,) = epochs(sampler, 1)
    assert len(taken) == len(sampler) == 20 + expected
    assert len([index for index in taken if index >= 20]) == expected


def test_the_seed_and_the_epoch_decide_the_order():
    mix = mix_of(20, 7)
    assert epochs(MixSampler(mix, 0.3, 4, seed=1), 3) == epochs(MixSampler(mix, 0.3, 4, seed=1), 3)
    assert epochs(MixSampler(mix, 0.3, 4, seed=1), 1) != epochs(MixSampler(mix, 0.3, 4, seed=2), 1)
    first, second = epochs(MixSampler(mix, 0.3, 4, seed=1), 2)
    assert first != second


def test_alike_lengths_stand_together_within_an_update_only():
    mix = mix_of(40, 7)
    (taken,) = epochs(MixSampler(mix, 0.3, 8, seed=1), 1)
    lengths = mix.lengths[taken]
    for begin in range(0, len(taken), 8):
        assert (np.diff(lengths[begin : begin + 8]) >= 0).all()
    assert (np.diff(lengths) < 0).any()


def test_the_mix_says_which_is_which():
    mix = mix_of(3, 2)
    assert [mix[index]["name"] for index in range(len(mix))] == [0, 1, 2, 1000, 1001]
    assert (mix.num_new, mix.num_rehearsal) == (3, 2)
    assert mix.lengths.tolist() == [len(mix[index]["input_ids"]) for index in range(len(mix))]
