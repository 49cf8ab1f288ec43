"""What is captured as a CUDA graph gives what single calls give. Off a GPU nothing is captured."""

import json

import pytest
import torch

from newllm_lib.evaluation.generation import NextToken
from newllm_lib.models import build_config, build_model
from newllm_lib.models.gpu import MOST_GRAPHS, WARM_UP, GraphedBackward, GraphedCall, can_be_captured
from newllm_lib.stages.pretrain import PretrainArguments, pretrain
from newllm_lib.training.trainer import GraphedTrainer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")
SIZES = {"hidden_size": 32, "context_size": 32, "intermediate_size": 48, "num_layers": 2}


def a_model(model_type: str = "newllm", **sizes):
    torch.manual_seed(0)
    return build_model(build_config(model_type, 60, 16, dropout=0.0, **sizes))


@pytest.mark.parametrize("model_type", ["newllm", "lstm", "tiny-gpt2"])
def test_nothing_is_captured_on_a_cpu(model_type):
    assert not can_be_captured(a_model(model_type, num_parameters=60_000))


@needs_gpu
def test_every_shape_that_comes_often_has_a_graph_and_the_others_none():
    double = GraphedCall(lambda x: 2 * x)
    for size in range(1, MOST_GRAPHS + 3):
        for number in range(WARM_UP + 2):
            x = torch.full((size,), float(number), device="cuda")
            assert double(x=x).tolist() == [2.0 * number] * size
    assert len(double.graphs) == MOST_GRAPHS


@needs_gpu
def test_gradients_of_micro_batches_add_up():
    model = a_model(**SIZES).cuda()
    plain = a_model(**SIZES).cuda()

    def learn(network, input_ids):
        network(input_ids=input_ids, labels=input_ids, skip_logits=True).loss.backward()

    graphed = GraphedBackward(lambda input_ids: learn(model, input_ids), model)
    for _ in range(WARM_UP + 3):
        for _ in range(2):  # two micro-batches of an update
            input_ids = torch.randint(0, 60, (3, 16), device="cuda")
            graphed(input_ids=input_ids)
            learn(plain, input_ids)
        for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6, msg=name)
        model.zero_grad()
        plain.zero_grad()
    assert len(graphed.graphs) == 1


@needs_gpu
def test_a_captured_step_of_generation_goes_on_from_any_state():
    model = a_model(**SIZES).cuda().eval()
    step, input_ids = NextToken(model), torch.randint(0, 60, (1, 40), device="cuda")
    expected = model(input_ids=input_ids, use_cache=False).logits[0]
    _, state = step(input_ids[:, :5], None)
    states = []
    for t in range(5, 40):
        states.append(state)
        logits, state = step(input_ids[:, t : t + 1], state)
        torch.testing.assert_close(logits[0], expected[t], rtol=1e-4, atol=1e-4)
    again, _ = step(input_ids[:, 10:11], states[5])  # a state that was kept is as it was
    torch.testing.assert_close(again[0], expected[10], rtol=1e-4, atol=1e-4)
    assert state.seen_tokens == 40


@needs_gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16", "no"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_captured_run_learns_what_a_plain_one_learns(text_file, tmp_path, monkeypatch, precision, accumulation):
    def losses(name):
        args = PretrainArguments(
            data=str(text_file), output_dir=str(tmp_path / name), tokenizer="byte", max_length=32, max_steps=12,
            num_parameters=120_000, per_device_train_batch_size=4, gradient_accumulation_steps=accumulation,
            logging_steps=1, eval_steps=4, save_steps=4, bf16=precision == "bf16", fp16=precision == "fp16",
        )  # fmt: skip
        graphs = []
        step = GraphedTrainer.training_step

        def watched(self, *args):
            loss = step(self, *args)
            graphs.append(0 if self.graphed is None else len(self.graphed.graphs))
            return loss

        with monkeypatch.context() as patch:
            patch.setattr(GraphedTrainer, "training_step", watched)
            pretrain(args)
        entries = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        kept = [(entry["step"], entry[key]) for entry in entries for key in ("loss", "eval_loss") if key in entry]
        return kept, graphs[-1]

    captured, graphs = losses("captured")
    monkeypatch.setattr("newllm_lib.training.trainer.can_be_captured", lambda model: False)
    plain, none = losses("plain")
    assert (graphs, none) == (1, 0)
    assert len(captured) == 12 + 3
    assert captured == plain
