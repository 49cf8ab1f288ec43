"""The trainer of learning without forgetting: the loss that the formula gives, in every way of cutting a batch."""

import math
import types

import pytest
import torch
from lwf_runs import lwf_arguments
from tiny_gemma import trainable
from torch.nn import functional

from newllm_lib.adapters.mixture import MixSampler, collate_examples
from newllm_lib.adapters.qlora_lwf import prepare
from newllm_lib.adapters.trainer import LwfTrainer, scheduled
from newllm_lib.data.text import IGNORED


def trainer_of(args, teacher=None, moved: bool = True):
    """A trainer at its first update; `moved`: with adapters that do something."""
    prepared = prepare(args)
    parts = prepared.model, args, prepared.train_rows, prepared.held_out, prepared.tokenizer, prepared.general
    trainer = LwfTrainer(*parts, teacher)
    if moved:
        torch.manual_seed(1)
        for name, parameter in trainable(prepared.model).items():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.1)
    prepared.model.train()
    trainer.state.max_steps = 10
    return trainer


def some_rows(trainer, count: int = 4) -> list[dict]:
    order = list(MixSampler(trainer.train_dataset, 0.5, 4, seed=1))
    return [trainer.train_dataset[index] for index in order[:count]]


def a_batch(trainer, rows: list[dict] | None = None) -> dict[str, torch.Tensor]:
    batch = collate_examples(rows or some_rows(trainer))
    return {name: tensor.to(trainer.args.device) for name, tensor in batch.items()}


def full_logits_loss(trainer, batch, weight: float, temperature: float, smoothing: float = 0.0) -> torch.Tensor:
    """The formula, with all logits of student and teacher in memory."""
    model = trainer.model
    student = model(input_ids=batch["input_ids"]).logits
    with torch.no_grad(), model.disable_adapter():
        teacher = model(input_ids=batch["input_ids"]).logits
    chosen = batch["labels"] != IGNORED
    task = functional.cross_entropy(
        student[chosen], batch["labels"][chosen], reduction="sum", label_smoothing=smoothing
    )
    divergence = functional.kl_div(
        functional.log_softmax(student[chosen] / temperature, -1),
        functional.log_softmax(teacher[chosen] / temperature, -1),
        log_target=True,
        reduction="sum",
    )
    return (task + weight * temperature**2 * divergence) / chosen.sum()


def gradients(trainer, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in trainable(trainer.model).items()}


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3"])
@pytest.mark.parametrize(("weight", "temperature", "smoothing"), [(0.5, 1.0, 0.0), (2.0, 3.0, 0.1), (0.0, 1.0, 0.0)])
def test_loss_and_gradients_are_those_of_the_full_logits(tmp_path, kind, weight, temperature, smoothing):
    from tiny_gemma import tiny_gemma_folder

    tiny_gemma_folder(tmp_path / "gemma", kind)
    loss = {"distill_weight": weight, "temperature": temperature, "label_smoothing_factor": smoothing}
    trainer = trainer_of(lwf_arguments(tmp_path, **loss, lora_dropout=0.0, rehearsal_ratio=0.5))
    batch = a_batch(trainer)
    ours = trainer.compute_loss(trainer.model, batch)
    expected = full_logits_loss(trainer, batch, weight, temperature, smoothing)
    assert float(ours) == pytest.approx(float(expected), rel=1e-5)
    found, wanted = gradients(trainer, ours), gradients(trainer, expected)
    assert len(found) == 28
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5 * float(wanted[name].abs().max()))
    assert all(parameter.grad is None for parameter in trainer.model.parameters() if not parameter.requires_grad)


def test_at_the_start_the_kl_is_zero_with_all_dropout_there_is(tmp_path):
    trainer = trainer_of(lwf_arguments(tmp_path, lora_dropout=0.3, distill_weight=1.0), moved=False)
    trainer.compute_loss(trainer.model, a_batch(trainer))
    task, divergence, tokens = trainer.sums.tolist()
    assert abs(divergence) / tokens < 1e-6 < task / tokens


def test_micro_batches_add_up_to_the_whole_batch(tmp_path):
    trainer = trainer_of(lwf_arguments(tmp_path, lora_dropout=0.0))
    rows = some_rows(trainer)
    batch = a_batch(trainer, rows)
    tokens = (batch["labels"] != IGNORED).sum()
    whole = gradients(trainer, trainer.compute_loss(trainer.model, batch, num_items_in_batch=tokens))
    trainer.model.zero_grad()
    for part in (rows[:1], rows[1:]):  # uneven on purpose: by rows they would weigh the same
        trainer.compute_loss(trainer.model, a_batch(trainer, part), num_items_in_batch=tokens).backward()
    for name, parameter in trainable(trainer.model).items():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-4, atol=1e-7)


def test_what_stands_in_the_padding_does_not_matter(tmp_path):
    trainer = trainer_of(lwf_arguments(tmp_path, lora_dropout=0.0, distill_weight=1.0))
    batch = a_batch(trainer)
    before = float(trainer.compute_loss(trainer.model, batch))
    lengths = [int(torch.nonzero(row != IGNORED).max()) for row in batch["labels"]]
    padded = {name: tensor.clone() for name, tensor in batch.items()}
    for row, last in enumerate(lengths):
        padded["input_ids"][row, last + 1 :] = 77
    assert not torch.equal(padded["input_ids"], batch["input_ids"])
    assert float(trainer.compute_loss(trainer.model, padded)) == pytest.approx(before, rel=1e-6)


def test_another_model_can_be_the_teacher(tmp_path):
    from tiny_gemma import tiny_gemma

    args = lwf_arguments(tmp_path, lora_dropout=0.0, distill_weight=1.0)
    same, other = trainer_of(args, tiny_gemma("gemma3")), trainer_of(args, tiny_gemma("gemma3", num_hidden_layers=1))
    own = trainer_of(args)
    batch = a_batch(own)
    for trainer in (own, same, other):
        trainer.compute_loss(trainer.model, batch)
    assert float(same.sums[1]) == pytest.approx(float(own.sums[1]), rel=1e-4)
    assert float(other.sums[1]) > 1.5 * float(own.sums[1])


@pytest.mark.parametrize(("step", "value"), [(0, 2.0), (3, 2.0 - 3 / 9), (9, 1.0), (12, 1.0)])
def test_schedules_are_straight_lines(step, value):
    state = types.SimpleNamespace(global_step=step, max_steps=10)
    assert scheduled(2.0, 1.0, state) == pytest.approx(value)
    assert scheduled(2.0, None, state) == 2.0


def test_the_schedules_reach_the_loss(tmp_path):
    args = lwf_arguments(tmp_path, lora_dropout=0.0, distill_weight=0.0, distill_weight_end=2.0, temperature_end=2.0)
    trainer = trainer_of(args)
    batch = a_batch(trainer)
    for step, weight, temperature in ((0, 0.0, 1.0), (9, 2.0, 2.0)):
        trainer.state.global_step = step
        expected = full_logits_loss(trainer, batch, weight, temperature)
        assert float(trainer.compute_loss(trainer.model, batch)) == pytest.approx(float(expected), rel=1e-5)


def test_the_log_has_task_loss_and_kl_per_token(tmp_path):
    trainer = trainer_of(lwf_arguments(tmp_path, lora_dropout=0.0, distill_weight=0.5))
    total = float(trainer.compute_loss(trainer.model, a_batch(trainer)))
    logs = {"loss": total}
    trainer.log(logs)
    assert logs["task_loss"] + 0.5 * logs["kl_to_teacher"] == pytest.approx(total, rel=1e-5)
    assert math.isclose(float(trainer.sums.sum()), 0.0)


def test_an_update_is_divided_by_all_its_supervised_tokens(tmp_path):
    """Those of a text to rehearse begin at its first."""
    trainer = trainer_of(lwf_arguments(tmp_path, rehearsal_ratio=1.0))
    batches, tokens = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, torch.device("cpu"))
    assert len(batches) == 2 and any(int((batch["labels"][:, 0] != IGNORED).sum()) for batch in batches)
    assert int(tokens) == sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
