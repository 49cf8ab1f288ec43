import json

import pytest
from run_folders import make_earlier_model
from transformers import AutoConfig, AutoModelForCausalLM

from newllm_lib.chat import Chat
from newllm_lib.errors import InputError
from newllm_lib.stages.compare import compare
from newllm_lib.stages.evaluate import open_model
from newllm_lib.training.base_model import find_base_model
from newllm_lib.training.checkpoint import (
    check_model_folder,
    is_of_earlier_version,
    newest_checkpoint,
    open_run,
    read_settings,
    seal_checkpoint,
    write_json,
)


def make_checkpoint(folder, step, sealed=True):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"x" * step)
    if sealed:
        seal_checkpoint(checkpoint)
    return checkpoint


def test_the_newest_complete_checkpoint_is_found(tmp_path):
    make_checkpoint(tmp_path, 8)
    make_checkpoint(tmp_path, 20)
    assert newest_checkpoint(tmp_path).name == "checkpoint-20"


@pytest.mark.parametrize("damage", ["no seal", "cut off", "file missing"])
def test_a_checkpoint_cut_off_by_a_vanished_machine_is_passed_over(tmp_path, damage):
    make_checkpoint(tmp_path, 8)
    newest = make_checkpoint(tmp_path, 20, sealed=damage != "no seal")
    if damage == "cut off":
        (newest / "model.safetensors").write_bytes(b"x")
    elif damage == "file missing":
        (newest / "model.safetensors").unlink()
    assert newest_checkpoint(tmp_path).name == "checkpoint-8"
    assert not newest.exists()


def test_no_checkpoint_yet(tmp_path):
    assert newest_checkpoint(tmp_path) is None


def test_the_same_run_may_go_on_and_another_may_not(tmp_path):
    folder = tmp_path / "run"
    open_run(folder, {"learning_rate": 0.1, "seed": 1}, {"data": "a.txt"})
    open_run(folder, {"learning_rate": 0.1, "seed": 1}, {"data": "moved/a.txt"})
    assert read_settings(folder)["session"] == {"data": "moved/a.txt"}
    with pytest.raises(InputError, match=r"learning_rate was 0\.1, is 0\.2; seed was 1, is 2"):
        open_run(folder, {"learning_rate": 0.2, "seed": 2}, {})
    assert read_settings(folder)["run"]["learning_rate"] == 0.1


def test_a_field_that_another_release_adds_is_no_other_run(tmp_path):
    open_run(tmp_path / "run", {"seed": 1, "old_field": 2}, {})
    open_run(tmp_path / "run", {"seed": 1, "new_field": 3}, {})


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(InputError, match="holds no run of ours"):
        open_run(tmp_path, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


def test_writing_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "settings.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        check_model_folder(tmp_path / "missing")
    with pytest.raises(InputError, match=r"not a model folder of ours: config\.json"):
        check_model_folder(tmp_path)
    write_json(tmp_path / "settings.json", {})
    with pytest.raises(InputError, match="the run is not finished"):
        check_model_folder(tmp_path)


@pytest.fixture
def earlier(tmp_path):
    return make_earlier_model(tmp_path / "earlier")


@pytest.mark.parametrize(
    "open_it",
    [
        open_model,
        Chat,
        check_model_folder,
        lambda folder: compare([folder]),
        lambda folder: find_base_model(str(folder)),
    ],
    ids=["open_model", "Chat", "check_model_folder", "compare", "find_base_model"],
)
def test_a_model_of_an_earlier_version_is_refused_in_a_sentence(earlier, open_it):
    with pytest.raises(InputError, match=r"an earlier version has trained.*; train it anew") as refusal:
        open_it(earlier)
    assert refusal.value.code == "NL-404" and str(earlier) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("open_it", [AutoConfig.from_pretrained, AutoModelForCausalLM.from_pretrained])
def test_transformers_does_not_open_it_with_random_weights(earlier, open_it):
    with pytest.raises(ValueError, match="trained by an earlier version"):
        open_it(earlier)


def test_a_run_of_an_earlier_version_is_not_gone_on_with(earlier, tmp_path):
    with pytest.raises(InputError, match="an earlier version has trained"):
        open_run(earlier, {"stage": "pretrain", "seed": 1}, {})
    unfinished = tmp_path / "unfinished"
    write_json(make_checkpoint(unfinished, 8) / "config.json", json.loads((earlier / "config.json").read_text()))
    assert is_of_earlier_version(unfinished)
    (unfinished / "checkpoint-8" / "config.json").write_text('{"model_type": "new')  # cut off
    assert not is_of_earlier_version(unfinished)
