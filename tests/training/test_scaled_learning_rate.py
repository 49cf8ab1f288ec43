"""The square-root rule: a learning rate that is right for the preset's batch follows another batch."""

import json
import math

import pytest

from newllm_lib.adapters.qlora_lwf import qlora_lwf
from newllm_lib.cli import parse_stage
from newllm_lib.preferences.dpo import dpo
from newllm_lib.preferences.trainer import dpo_config
from newllm_lib.stages import pretrain, sft


def arguments(stage, *words: str):
    kind = stage.__annotations__["args"]
    return parse_stage(kind, "newllm", words)


@pytest.mark.parametrize(
    ("words", "factor"),
    [
        ([], 1.0),  # 32 rows
        (["--per_device_train_batch_size", "128"], 2.0),
        (["--per_device_train_batch_size", "64", "--gradient_accumulation_steps", "2"], 2.0),
        (["--per_device_train_batch_size", "8"], 0.5),
        (["--preset", "published"], 1.0),  # 2,048 rows, for which 8e-4 is right
        (["--preset", "published", "--gradient_accumulation_steps", "4"], 0.5),
    ],
)
def test_the_rate_follows_the_square_root_of_the_batch(words, factor):
    args = arguments(sft.sft, *words, "--scale_learning_rate")
    assert args.peak_learning_rate == pytest.approx(args.learning_rate * factor)
    plain = arguments(sft.sft, *words)
    assert plain.peak_learning_rate == plain.learning_rate == args.learning_rate


def test_a_run_is_trained_with_the_scaled_rate(tmp_path, text_file, caplog):
    args = pretrain.PretrainArguments(
        data=str(text_file), tokenizer="byte", max_length=16, num_parameters=60_000, max_steps=4, logging_steps=1,
        per_device_train_batch_size=8, lr_scheduler_type="constant", warmup_steps=0, learning_rate=2e-3,
        scale_learning_rate=True, output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    with caplog.at_level("INFO", logger="newllm_lib"):
        folder = pretrain.pretrain(args)
    rates = [json.loads(line).get("learning_rate") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {rate for rate in rates if rate} == {2e-3 * math.sqrt(8 / 32)}
    assert "The learning rate is scaled to 0.001." in caplog.text
    run = json.loads((folder / "settings.json").read_text())["run"]
    assert (run["learning_rate"], run["scale_learning_rate"]) == (2e-3, True)


@pytest.mark.parametrize(("stage", "batch"), [(qlora_lwf, 32), (dpo, 4)])
def test_stages_of_adapters_have_the_rule_too(stage, batch):
    words = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--scale_learning_rate"]
    args = arguments(stage, *words)
    assert args.peak_learning_rate == pytest.approx(args.learning_rate * math.sqrt(8 / batch))
    assert arguments(stage, "--preset", "smoke", "--scale_learning_rate").peak_learning_rate == args.learning_rate
    if stage is dpo:
        assert dpo_config(args).learning_rate == args.peak_learning_rate, "TRL's trainer knows no such rule"
