"""What cannot be made is said before the data are prepared: a model of no such size, a folder that takes nothing."""

import os

import pytest

from newllm_lib.adapters.qlora_lwf import QloraLwfArguments, qlora_lwf
from newllm_lib.errors import InputError
from newllm_lib.preferences.dpo import DpoArguments, dpo
from newllm_lib.preferences.sweep import SweepArguments, sweep
from newllm_lib.stages import pretrain as pretrain_stage
from newllm_lib.stages import sft as sft_stage
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.stages.sft import SftArguments, sft


class NothingIsPrepared(AssertionError):
    """Long work has begun."""


@pytest.fixture(autouse=True)
def no_preparation(monkeypatch):
    def refuse(*args, **kwargs):
        raise NothingIsPrepared

    monkeypatch.setattr(pretrain_stage, "load_text", refuse)
    for kind in (SftArguments, QloraLwfArguments):
        monkeypatch.setattr(kind, "load_conversations", refuse)
    monkeypatch.setattr(DpoArguments, "load_preferences", refuse)
    monkeypatch.setattr(sft_stage, "learned_tokenizer", refuse)


SIZES = [
    ({"num_parameters": 10}, "num_parameters 10 cannot be met by newllm"),
    ({"num_parameters": 10, "model_type": "lstm"}, "num_parameters 10 cannot be met by lstm"),
    ({"num_parameters": 10, "vocab_size": 512}, "with a vocabulary of 512"),
    ({"num_parameters": 10**13}, "need"),
    ({"hidden_size": 10**6, "num_layers": 2}, "GB to be trained"),
    ({"hidden_size": 10**12}, "more than can be counted"),
    ({"context_size": 8, "model_type": "tiny-gpt2"}, "context_size 8 is no size of tiny-gpt2"),
    ({"num_layers": 10**6}, "num_layers has to be less than 1001"),
]


@pytest.mark.parametrize(("stage", "kind"), [(pretrain, PretrainArguments), (sft, SftArguments)])
@pytest.mark.parametrize(("fields", "expected"), SIZES)
def test_a_model_that_cannot_be_is_refused_first(tmp_path, stage, kind, fields, expected):
    with pytest.raises(InputError) as error:
        stage(kind(data="none.txt", output_dir=str(tmp_path / "run"), **fields))
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fields", [{}, {"num_parameters": 100_000}, {"tokenizer": "word"}, {"tokenizer": "byte"}])
def test_one_that_can_be_is_not(tmp_path, fields):
    with pytest.raises(NothingIsPrepared):
        pretrain(PretrainArguments(data="none.txt", output_dir=str(tmp_path / "run"), **fields))
    assert not list(tmp_path.iterdir())


def too_long(folder):
    return folder / ("x" * 300)


def below_a_file(folder):
    (folder / "file").write_text("")
    return folder / "file" / "run"


def dangling(folder):
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link"


def below_a_dangling_link(folder):
    return dangling(folder) / "run"


def in_use(folder):
    (folder / "photos").mkdir()
    (folder / "photos" / "a.png").write_text("")
    return folder / "photos"


def a_file(folder):
    (folder / "file").write_text("")
    return folder / "file"


def read_only(folder):
    return os.path.join("/proc", "newllm-run")  # which takes no folder, from root neither


PLACES = [too_long, below_a_file, dangling, below_a_dangling_link, in_use, a_file, read_only]
STAGES = [
    (pretrain, PretrainArguments), (sft, SftArguments), (dpo, DpoArguments), (qlora_lwf, QloraLwfArguments),
    (sweep, SweepArguments),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "kind"), STAGES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_takes_no_run_is_said_first(tmp_path, place, stage, kind):
    pytest.importorskip("trl")
    pytest.importorskip("optuna")
    folder = place(tmp_path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"^output_dir '.+; choose another --output_dir\.$") as error:
        stage(kind(data="none.jsonl", output_dir=str(folder)))
    assert "\n" not in str(error.value)
    assert set(tmp_path.rglob("*")) == before
