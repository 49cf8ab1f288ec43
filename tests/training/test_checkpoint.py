import json

import pytest
from run_folders import make_earlier_model
from transformers import AutoConfig, AutoModelForCausalLM

from newllm_lib.adapters.base_model import find_base_model
from newllm_lib.chat import Chat
from newllm_lib.errors import InputError
from newllm_lib.models import NewLLMConfig
from newllm_lib.stages.compare import compare
from newllm_lib.training.checkpoint import (
    check_model_folder,
    is_of_earlier_version,
    newest_checkpoint,
    open_run,
    read_results,
    read_settings,
    seal_checkpoint,
)
from newllm_lib.training.disk import write_json
from newllm_lib.training.trained_model import open_model


def make_checkpoint(folder, step, sealed=True):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"x" * step)
    if sealed:
        seal_checkpoint(checkpoint, folder)
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


@pytest.mark.parametrize("damage", [None, "", "{", "[]", '{"run": 1, "session": {}}'])
def test_lost_settings_come_back_from_the_newest_checkpoint(tmp_path, caplog, damage):
    run, session = {"stage": "pretrain", "seed": 1}, {"data": "a.txt"}
    open_run(tmp_path, run, session)
    make_checkpoint(tmp_path, 8)
    (tmp_path / "settings.json").unlink()
    if damage is not None:
        (tmp_path / "settings.json").write_text(damage)
    assert read_settings(tmp_path) == {"run": run, "session": session}
    assert "settings.json" in caplog.text and "lost or damaged" in caplog.text
    with pytest.raises(InputError, match="seed was 1, is 2"):
        open_run(tmp_path, {**run, "seed": 2}, session)
    open_run(tmp_path, run, session)
    assert json.loads((tmp_path / "settings.json").read_text()) == {"run": run, "session": session}


def test_lost_settings_that_no_checkpoint_states_are_told(tmp_path):
    (tmp_path / "settings.json").write_text("{")
    make_checkpoint(tmp_path, 8)
    with pytest.raises(InputError, match=r"no readable settings\.json.*train in another one"):
        open_run(tmp_path, {"seed": 1}, {})


def test_an_output_dir_that_cannot_be_is_told_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    reasons = {"file/run": "Not a directory", "link": "a link to nothing", "n" * 300: "File name too long"}
    for name, why in reasons.items():
        with pytest.raises(InputError, match=f"output_dir .*{why}.*choose another --output_dir") as refusal:
            open_run(tmp_path / name, {"seed": 1}, {})
        assert "\n" not in str(refusal.value)


def finished(folder, results='{"loss": 1.5}', weights="model.safetensors"):
    (folder / "results.json").write_text(results)
    (folder / weights).write_bytes(b"x")
    return folder


def test_a_run_is_finished_with_results_and_weights(tmp_path):
    assert read_results(finished(tmp_path)) == {"loss": 1.5}
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    assert read_results(tmp_path) == {"loss": 1.5}
    (tmp_path / "adapter_model.safetensors").unlink()
    assert read_results(tmp_path) is None


@pytest.mark.parametrize("results", ["", "{", "[]", "{}", "3"])
def test_damaged_results_are_none(tmp_path, results):
    assert read_results(finished(tmp_path, results)) is None


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


@pytest.fixture(params=["read its tokens one by one", "its contexts were normalised"])
def earlier(tmp_path, request):
    folder = make_earlier_model(tmp_path / "earlier")
    if request.param == "its contexts were normalised":
        config = NewLLMConfig(vocab_size=64).to_dict()
        del config["layer_version"]
        write_json(folder / "config.json", config)
    return folder


@pytest.mark.parametrize(
    "open_it",
    [open_model, Chat, check_model_folder, lambda folder: compare([folder]), lambda it: find_base_model(str(it))],
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
