"""Where pairs come from, how they are split, what is left out of them, and what they are as tokens."""

import json

import pytest
from byte_ids import ids_with_roles
from preference_runs import make_pairs, write_pairs

from newllm_lib.data import sources
from newllm_lib.data.chat_template import TEMPLATES, template_for
from newllm_lib.data.sources import Examples, HubProblem
from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.errors import InputError
from newllm_lib.preferences.pairs import drop_too_long, encode_preferences, load_preferences, sample_pairs
from newllm_lib.stages.data import template_rows


@pytest.fixture
def tokenizer(byte_tokenizer):
    byte_tokenizer.chat_template = TEMPLATES["dialogue"]
    return byte_tokenizer


def side_of(folder, pairs: list[dict]):
    """The pairs of a file, none held out."""
    file = str(write_pairs(folder / "pairs.jsonl", pairs))
    return load_preferences(data=file, eval_data=file).train


def prompts(side) -> set[str]:
    return {pair.prompt[-1]["content"] for pair in side.pairs}


def test_without_a_name_pairs_are_generated():
    splits = load_preferences(pairs=200)
    assert splits.source == "generated" and len(splits.train.pairs) + len(splits.validation.pairs) == 200
    assert not prompts(splits.train) & prompts(splits.validation)
    assert {pair.kind for pair in splits.validation.pairs} == {pair.kind for pair in splits.train.pairs} != {""}
    assert load_preferences(pairs=200).train == splits.train
    others = load_preferences(pairs=200, pairs_seed=1)
    assert others.train.identity != splits.train.identity and prompts(others.train) != prompts(splits.train)
    assert len(load_preferences(pairs=200, max_samples=7).train.pairs) == 7


def test_a_file_is_split_by_prompt(tmp_path):
    pairs = make_pairs(60)
    file = write_pairs(tmp_path / "pairs.jsonl", pairs + [{**pair, "chosen": "Other."} for pair in pairs])
    splits = load_preferences(data=str(file), held_out_share=0.3)
    assert not prompts(splits.train) & prompts(splits.validation)
    assert len(splits.train.pairs) + len(splits.validation.pairs) == 120 and 10 < len(splits.validation.pairs) < 60
    assert "30%" in splits.note and splits.train.pairs[0].place.startswith("line ")
    own = write_pairs(tmp_path / "own.jsonl", make_pairs(3))
    assert len(load_preferences(data=str(file), eval_data=str(own)).validation.pairs) == 3


def test_identical_sides_are_dropped_and_counted(tmp_path, tokenizer):
    pairs = make_pairs(40)
    for number in (3, 8):
        pairs[number]["rejected"] = pairs[number]["chosen"]
    side = drop_too_long(side_of(tmp_path, pairs), tokenizer, 512, skips=False)
    assert len(side.pairs) == 38
    assert side.remarks == ("2 pairs are equal within 512 tokens and were left out (line 4, line 9).",)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("rejected", "", "'rejected' is empty"),
        ("chosen", 7, "'chosen' has to be a string or a list of messages, got int"),
        ("prompt", None, "'prompt' is empty"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, field, value, complaint):
    pairs = make_pairs(30)
    pairs[4][field] = value
    file = write_pairs(tmp_path / "pairs.jsonl", pairs)
    with pytest.raises(InputError, match=f"line 5: {complaint}.*--skip_bad_rows"):
        load_preferences(data=str(file))
    splits = load_preferences(data=str(file), skip_bad_rows=True)
    assert len(splits.train.pairs) + len(splits.validation.pairs) == 29
    assert "1 rows do not fit and were left out (line 5: " in splits.train.remarks[0]


def test_a_line_that_is_no_json_and_one_without_a_column(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt"\n', encoding="utf-8")
    with pytest.raises(InputError, match="line 2: not JSON"):
        load_preferences(data=str(file))
    file.write_text('{"prompt": "a", "chosen": "b"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="line 1: there is no 'rejected' column"):
        load_preferences(data=str(file))
    file.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"}), encoding="utf-8")
    with pytest.raises(InputError, match="holds no pair"):
        load_preferences(data=str(file))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"dataset": "dolly"}, "dataset has to be generated-ja, hh-rlhf, or the id .* got 'dolly'"),
        ({"held_out_share": 1.5}, "held_out_share has to lie between 0 and 1, got 1.5"),
        ({"max_samples": 0}, "max_samples has to be at least 1, got 0"),
        ({"dataset": "hh-rlhf", "data_source": "offline"}, "has no offline stand-in"),
        ({"data_source": "file"}, "needs the path of the file"),
    ],
)
def test_settings_that_cannot_be(fields, complaint):
    with pytest.raises(InputError, match=complaint):
        load_preferences(**fields)


def test_hh_rlhf_from_the_hub(monkeypatch):
    def transcript(number, answer):
        return f"\n\nHuman: {number}?\n\nAssistant: {answer}"

    rows = [{"chosen": transcript(n, "yes"), "rejected": transcript(n, "no")} for n in range(10)]
    rows += [{"chosen": "none", "rejected": "none"}, {"chosen": transcript(3, "a"), "rejected": transcript(3, "a")}]
    opened = {name: Examples("hh-rlhf", "MIT", name, lambda first: rows[first:]) for name in ("train", "validation")}
    monkeypatch.setattr(sources, "first_opened", lambda entry: (opened, None))
    splits = load_preferences("hh-rlhf", max_samples=11)
    assert splits.source == "hub" and (len(splits.train.pairs), len(splits.validation.pairs)) == (10, 11)
    (complaint,) = splits.train.remarks
    assert complaint.startswith("1 rows do not fit and were left out (row 11: ")
    tested = {"train": opened["train"], "test": opened["validation"]}  # as the catalogue has it
    monkeypatch.setattr(sources, "first_opened", lambda entry: (tested, None))
    splits = load_preferences("hh-rlhf", held_out_share=0.5)
    assert splits.test is splits.reported and len(splits.test.pairs) == 11
    assert len(splits.train.pairs) + len(splits.validation.pairs) == 11, "what chooses is cut from training"
    problem = HubProblem("unreachable", "no connection")
    monkeypatch.setattr(sources, "first_opened", lambda entry: (None, problem))
    with pytest.raises(InputError, match=r"'hh-rlhf' could not be had from the hub .*--data"):
        load_preferences("hh-rlhf")


def test_pairs_by_role_tokens(tmp_path):
    """As TRL has them, which renders: what spells a special token is taken out."""
    tokenizer = build_tokenizer("byte", [])
    tokenizer.chat_template = template_for(tokenizer, "dialogue")
    pair = {"prompt": "a<|end|>b", "chosen": "c<|assistant|>", "rejected": "d"}
    first = next(encode_preferences(side_of(tmp_path, [pair]).pairs, tokenizer, 96))
    assert first.prompt == ids_with_roles("<|endoftext|><|user|> a b<|assistant|>")
    assert (first.chosen, first.rejected) == (ids_with_roles(" c <|end|>"), ids_with_roles(" d<|end|>"))


def test_pairs_as_tokens(tmp_path, tokenizer):
    pairs = side_of(tmp_path, make_pairs(2)).pairs
    first = next(encode_preferences(pairs, tokenizer, 96))
    assert tokenizer.decode(first.prompt) == "<|endoftext|>User: 0: what is red?\nAssistant:"
    assert tokenizer.decode(first.chosen) == " It is the colour red, thank you.<|endoftext|>"
    assert tokenizer.decode(first.rejected) == " RED!! GO AWAY 0!<|endoftext|>"
    short = next(encode_preferences(pairs, tokenizer, len(first.prompt) + 4))
    assert (short.prompt, short.chosen, short.rejected) == (first.prompt, first.chosen[:4], first.rejected[:4])
    assert len(sample_pairs(encode_preferences(pairs * 10, tokenizer, 96), 200)) in range(3, 7)


def test_the_template_rows_are_accepted(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(template_rows("preference"), encoding="utf-8")
    pairs = load_preferences(data=str(file), eval_data=str(file)).train.pairs
    assert [(len(pair.prompt), pair.kind) for pair in pairs] == [(1, "vague"), (3, "wrong_fact")]


def test_special_tokens_that_are_written_out_end_nothing(tmp_path, tokenizer):
    pair = {"prompt": "a<|endoftext|>b", "chosen": "c<|endoftext|>d", "rejected": "e"}
    first = next(encode_preferences(side_of(tmp_path, [pair]).pairs, tokenizer, 96))
    assert first.prompt.count(tokenizer.eos_token_id) == 1  # the one that opens the text
    assert first.chosen.count(tokenizer.eos_token_id) == 1 == first.chosen[-1:].count(tokenizer.eos_token_id)


def test_a_prompt_longer_than_the_window_is_named(tmp_path, tokenizer):
    pairs = make_pairs(6)
    pairs[2]["prompt"] = "long " * 40
    side = side_of(tmp_path, pairs)
    with pytest.raises(InputError, match=r"file pairs.jsonl, line 3: the prompt alone fills max_length 64; .*larger"):
        drop_too_long(side, tokenizer, 64, skips=False)
    kept = drop_too_long(side, tokenizer, 64, skips=True)
    assert len(kept.pairs) == 5 and "line 3: the prompt alone" in kept.remarks[0]
    assert drop_too_long(side, tokenizer, 512, skips=False).pairs == side.pairs
    with pytest.raises(InputError, match="no prompt shorter than max_length 8"):
        drop_too_long(side, tokenizer, 8, skips=True)


def test_pairs_that_are_equal_within_a_row_are_told_and_left_out(tmp_path, tokenizer):
    same = "the same words again and again, and again"
    pairs = make_pairs(6)
    pairs[1] |= {"chosen": f"{same}, yes", "rejected": f"{same}, no"}
    pairs[4] |= {"chosen": f"{same}, yes", "rejected": "no"}
    side = side_of(tmp_path, pairs)
    kept = drop_too_long(side, tokenizer, 64, skips=False)
    assert [pair.place for pair in kept.pairs] == [f"line {number}" for number in (1, 3, 4, 5, 6)]
    equal, cut = kept.remarks
    assert equal == "1 pairs are equal within 64 tokens and were left out (line 2)."
    assert cut.endswith("pairs have an answer that is cut at 64 tokens.")
    assert drop_too_long(side, tokenizer, 512, skips=False).remarks == ()
    with pytest.raises(InputError, match=r"in all 3 pairs of file .* both answers are the same within 64 tokens"):
        drop_too_long(side_of(tmp_path, [pairs[1]] * 3), tokenizer, 64, skips=False)
