"""What is chosen is chosen on the validation split, and what is reported is of the test split, where there is one."""

import json

import pytest
from conversations import make_conversations, sft_arguments, write_conversations
from sample_text import make_text

from newllm_lib.data.sources import Splits
from newllm_lib.data.text import Text
from newllm_lib.errors import InputError
from newllm_lib.export.model_folder import read_card
from newllm_lib.stages.compare import compare, comparison_table
from newllm_lib.stages.evaluate import evaluate
from newllm_lib.stages.pretrain import PretrainArguments, prepare, pretrain
from newllm_lib.stages.sft import sft


def arguments(folder, place, **fields) -> PretrainArguments:
    small = {"data": str(place / "text.txt"), "output_dir": str(folder), "tokenizer": "byte", "max_length": 32}
    small |= {"num_parameters": 120_000, "max_steps": 4, "per_device_train_batch_size": 4, "eval_steps": 2}
    return PretrainArguments(**{**small, "save_steps": 2, "auto_precision": False, **fields})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A text, one to test on that is harder, and a run that is tested on it."""
    folder = tmp_path_factory.mktemp("tested")
    (folder / "text.txt").write_text(make_text(120))
    (folder / "harder.txt").write_text("Zyx! %% 0123456789 QQQ\n" * 20)
    pretrain(arguments(folder / "run", folder, test_data=str(folder / "harder.txt")))
    return folder


def settings_without(folder, name: str) -> None:
    """Settings and results as a version wrote them that read no test split."""
    for file, part in (("settings.json", "run"), ("results.json", None)):
        content = json.loads((folder / file).read_text())
        (content[part] if part else content).pop(name if part else "split")
        (folder / file).write_text(json.dumps(content))


def test_the_figures_are_of_the_test_split(place):
    results, scored = json.loads((place / "run" / "results.json").read_text()), evaluate(place / "run")
    assert (results["split"], scored["split"], scored["text"]) == ("test", "test", "file harder.txt")
    assert scored["loss"] == pytest.approx(results["loss"])
    log = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    chosen = [line["eval_loss"] for line in log if "eval_loss" in line]
    assert results["validation"]["loss"] == min(chosen), "what a sweep compares by"
    assert max(chosen) < results["loss"] - 0.5, "evaluations on the way are of what is held out"
    card = (place / "run" / "README.md").read_text()
    assert "| tested on | file harder.txt (licence: as the file's owner says) |" in card and "the test split" in card
    assert read_card(place / "run")["tested on"].startswith("file harder.txt")


def test_a_comparison_says_of_which_split_it_is(place):
    rows = compare([place / "run"], max_new_tokens=2)
    assert rows[0]["split"] == "test" and "Held-out text (test): file harder.txt" in comparison_table(rows)
    on_file = compare([place / "run"], data=str(place / "text.txt"), max_new_tokens=2)
    assert on_file[0]["split"] == "another text"


def test_a_run_of_an_earlier_version_keeps_its_split(place, tmp_path):
    run = pretrain(arguments(tmp_path / "run", place, max_steps=2))
    expected = evaluate(run)
    settings_without(run, "test_text")
    assert evaluate(run) == expected and expected["split"] == "validation"
    assert compare([run], max_new_tokens=2)[0]["loss"] == pytest.approx(expected["loss"])


def test_conversations_are_tested_on_others(tmp_path):
    data = write_conversations(tmp_path / "talk.jsonl", make_conversations(40))
    other = write_conversations(tmp_path / "other.jsonl", make_conversations(60)[40:])
    run = sft(sft_arguments(data, tmp_path / "run", max_steps=2, test_data=str(other)))
    assert evaluate(run)["text"] == "file other.jsonl"
    assert evaluate(run)["loss"] == pytest.approx(json.loads((run / "results.json").read_text())["loss"])


def test_nothing_to_test_on_is_said_before_training(place, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(InputError, match=r"test_data .* holds no text"):
        prepare(arguments(tmp_path / "run", place, test_data=str(tmp_path / "empty.txt")))
    with pytest.raises(InputError, match=r"test_data .*gone.txt' does not exist"):
        prepare(arguments(tmp_path / "run", place, test_data=str(tmp_path / "gone.txt")))


def test_what_was_validation_is_found_among_the_splits():
    def side(identity: str) -> Text:
        return Text(identity, "MIT", identity, lambda: ())

    splits = Splits(side("a/train"), side("a/train/held out"), "hub", test=side("owner/name/None/test@1"))
    assert splits.find("owner/name/None/validation@1") is splits.test
    assert splits.find("a/train/held out") is splits.validation and splits.find("other") is None
    both = Splits(side("t"), side("n/validation@1"), "hub", test=side("n/test@1"))
    assert both.find("n/validation@1") is both.validation and both.reported is both.test
