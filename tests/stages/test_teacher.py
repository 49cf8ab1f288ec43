"""Training beside a larger model: one with the same tokenizer, whose loss is weighed as the data's."""

import pytest
import torch
from conversations import make_conversations, sft_arguments, write_conversations
from safetensors.torch import load_file
from sample_text import make_text

from newllm_lib.errors import InputError
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.stages.sft import sft
from newllm_lib.training.checkpoint import read_history


def pretrain_arguments(folder, data, **fields) -> PretrainArguments:
    small = {"data": str(data), "output_dir": str(folder), "tokenizer": "byte", "max_length": 128, "dropout": 0.0}
    small |= {"num_parameters": 120_000, "max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1}
    return PretrainArguments(**{**small, "auto_precision": False, **fields})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Text, conversations, and two runs to learn from."""
    folder = tmp_path_factory.mktemp("teachers")
    (folder / "text.txt").write_text(make_text(200))
    write_conversations(folder / "talk.jsonl", make_conversations(40))
    for model_type in ("newllm", "tiny-gpt2"):
        pretrain(pretrain_arguments(folder / model_type, folder / "text.txt", model_type=model_type))
    return folder


def run(stage: str, place, folder, **fields) -> dict[str, torch.Tensor]:
    """The weights of a run without dropout."""
    if "teacher" in fields:
        fields["teacher"] = str(place / fields["teacher"])
    if stage == "pretrain":
        return load_file(pretrain(pretrain_arguments(folder, place / "text.txt", **fields)) / "model.safetensors")
    fields = {"max_steps": 3, "dropout": 0.0, "auto_precision": False, **fields}
    return load_file(sft(sft_arguments(place / "talk.jsonl", folder, **fields)) / "model.safetensors")


def losses(folder) -> list[float]:
    return [line["loss"] for line in read_history(folder) if "loss" in line]


def assert_close(first, second) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-4, msg=name)


HALVES = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize("student", ["newllm", "tiny-gpt2"])
def test_accumulation_does_not_change_what_a_teacher_teaches(place, tmp_path, stage, student):
    """Conversations fill their rows unevenly: halves with fewer scored tokens count less, with a teacher, too."""
    fields = {"model_type": student, "teacher": "tiny-gpt2", "teacher_weight": 0.7}
    whole = run(stage, place, tmp_path / "whole", **fields)
    halves = run(stage, place, tmp_path / "halves", **fields, **HALVES)
    assert_close(whole, halves)
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "halves"), rel=1e-4)


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_the_teacher_has_the_share_it_is_given(place, tmp_path, stage):
    alone = run(stage, place, tmp_path / "alone", **HALVES)
    weights = {
        share: run(stage, place, tmp_path / f"share-{share}", teacher="newllm", teacher_weight=share, **HALVES)
        for share in (0.0, 0.5)
    }
    assert_close(alone, weights[0.0])
    assert losses(tmp_path / "alone") == pytest.approx(losses(tmp_path / "share-0.0"), rel=1e-5)
    assert losses(tmp_path / "alone")[0] != pytest.approx(losses(tmp_path / "share-0.5")[0], rel=1e-2)
    name = "model.embed_tokens.weight"
    assert not torch.allclose(alone[name], weights[0.5][name], rtol=0, atol=1e-4)


def test_who_starts_as_the_teacher_and_hears_only_it_stays(place, tmp_path):
    before = load_file(place / "newllm" / "model.safetensors")
    fields = {"model": str(place / "newllm"), "teacher": "newllm", "teacher_weight": 1.0, "weight_decay": 0.0}
    run("sft", place, tmp_path / "run", **fields, max_steps=1)
    assert losses(tmp_path / "run")[0] == pytest.approx(0.0, abs=1e-6)
    assert before.keys() == load_file(tmp_path / "run" / "model.safetensors").keys()


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_another_teacher_is_another_run(place, tmp_path, stage):
    run(stage, place, tmp_path / "run", teacher="newllm", max_steps=1)
    with pytest.raises(InputError, match="teacher_weights was"):
        run(stage, place, tmp_path / "run", teacher="tiny-gpt2", max_steps=1)
    with pytest.raises(InputError, match="has another tokenizer than the model; both need the same"):
        run(stage, place, tmp_path / "other", teacher="newllm", tokenizer="word", vocab_size=40, max_steps=1)
    with pytest.raises(InputError, match="reads 128 tokens; choose --max_length 128 or less"):
        run(stage, place, tmp_path / "other", teacher="tiny-gpt2", max_length=200, max_steps=1)
    assert not (tmp_path / "other").exists()
