"""What a resumed run is on a GPU that adds up in whatever order its blocks end, as attention's way back does (TinyGPT2,
Gemma) and cuDNN's LSTM may: the unbroken one but for rounding. All other tests ask for one order (conftest.py), and
find the same bits."""

import pytest
import torch
from run_files import StopAt, log_without_clock

from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.training.callbacks import TrainingInterrupted

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU adds up in one order")


@pytest.fixture(autouse=True)
def any_order():
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.mark.parametrize("model_type", ["newllm", "newllm-reference", "tiny-gpt2", "lstm"])
def test_a_resumed_run_learns_what_an_unbroken_one_does(text_file, tmp_path, model_type):
    def train(name, *callbacks):
        args = PretrainArguments(
            data=str(text_file), output_dir=str(tmp_path / name), model_type=model_type, tokenizer="byte",
            max_length=32, num_parameters=120_000, max_steps=12, per_device_train_batch_size=4, eval_steps=4,
            save_steps=4, logging_steps=1,
        )  # fmt: skip
        return pretrain(args, callbacks)

    unbroken = train("unbroken")
    with pytest.raises(TrainingInterrupted):
        train("broken", StopAt(5))
    losses = [
        [(row["step"], key, row[key]) for row in log_without_clock(run) for key in ("loss", "eval_loss") if key in row]
        for run in (unbroken, train("broken"))
    ]
    assert len(losses[0]) == 12 + 3
    for expected, found in zip(*losses, strict=True):
        assert found[:2] == expected[:2] and found[2] == pytest.approx(expected[2], rel=1e-3), expected[:2]
