"""The list of layers is what `lora_target_modules` takes, with the sizes that the adapters then have."""

import re

import pytest
from tiny_gemma import tiny_gemma_folder, trainable
from transformers import AutoModelForCausalLM

from newllm_lib.adapters.lora import add_adapters
from newllm_lib.cli import main
from newllm_lib.models import build_config, build_model


def listed(capsys, *words: str) -> dict[str, int]:
    """name -> parameters of its adapters, as the command prints them."""
    assert main(["modules", *words]) == 0
    rows = re.findall(r"^(\S+) +[\d,]+ +(?:[\d,]+ x [\d,]+|\d sizes) +[\d,]+ +([\d,]+)$", capsys.readouterr().out, re.M)
    return {name: int(count.replace(",", "")) for name, count in rows}


def make_model(kind, folder):
    if kind == "gemma":
        return tiny_gemma_folder(folder)
    model = build_model(build_config(kind, 300, 32, num_parameters=80_000))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("kind", ["gemma", "newllm", "tiny-gpt2"])
def test_every_name_takes_adapters_of_the_size_that_is_said(kind, tmp_path, capsys):
    folder = make_model(kind, tmp_path / "model")
    counts = listed(capsys, str(folder), "--rank", "2")
    assert len(counts) > 2 and sum(counts.values()) == 2 * counts["all-linear"]
    for name, count in counts.items():
        targets = name if name == "all-linear" else [name]
        adapted = add_adapters(AutoModelForCausalLM.from_pretrained(folder), 2, 4.0, 0.0, targets)
        assert sum(parameter.numel() for parameter in trainable(adapted).values()) == count, name


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nothing-here"], "model 'nothing-here' is neither a folder"),
        (["x/y", "--rank", "0"], "rank has to be at least 1"),
    ],
)
def test_what_cannot_be_listed_is_told(words, complaint, capsys):
    assert main(["modules", *words]) == 2 and complaint in capsys.readouterr().err
