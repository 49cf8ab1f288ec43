"""The loss that a teacher adds, against its formula."""

import pytest
import torch
from torch.nn import functional

from newllm_lib.training.trainer import distillation_loss


def some_logits(seed: int, requires_grad: bool = False) -> torch.Tensor:
    logits = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3
    return logits.requires_grad_(requires_grad)


LABELS = torch.tensor([[3, -100, 6, 0, -100], [-100, -100, 1, 1, 5]])


def plain(student, teacher, labels, weight, temperature) -> torch.Tensor:
    """The formula, token by token."""
    total = 0.0
    for row, column in (labels != -100).nonzero().tolist():
        s, t = student[row, column], teacher[row, column]
        p, q = (t / temperature).softmax(0), (s / temperature).softmax(0)
        divergence = (p * (p.log() - q.log())).sum()
        cross_entropy = -s.softmax(0)[labels[row, column]].log()
        total = total + (1 - weight) * cross_entropy + weight * temperature**2 * divergence
    return total


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_loss_and_gradients_equal_the_formula(weight, temperature):
    student, twin, teacher = some_logits(0, True), some_logits(0, True), some_logits(1)
    loss = distillation_loss(student, teacher, LABELS, weight, temperature)
    expected = plain(twin, teacher, LABELS, weight, temperature)
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(student.grad, twin.grad, rtol=1e-10, atol=1e-12)


def test_without_weight_it_is_the_cross_entropy():
    student = some_logits(0)
    loss = distillation_loss(student, some_logits(1), LABELS, 0.0, 2.0)
    expected = functional.cross_entropy(student.flatten(0, 1), LABELS.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_who_agrees_with_the_teacher_has_nothing_to_learn_from_it():
    student = some_logits(0, True)
    loss = distillation_loss(student, student.detach().clone(), LABELS, 1.0, 2.0)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-12
    assert float(student.grad.abs().max()) < 1e-12


def test_masked_positions_contribute_nothing():
    student, teacher = some_logits(0), some_logits(1)
    masked = LABELS == -100
    loss = distillation_loss(student, teacher, LABELS, 0.5, 2.0)
    student[masked], teacher[masked] = 1e30, float("nan")
    student.requires_grad_(True)
    again = distillation_loss(student, teacher, LABELS, 0.5, 2.0)
    again.backward()
    assert torch.equal(loss, again.detach())
    assert not student.grad[masked].any()
    nothing = distillation_loss(student, teacher, torch.full_like(LABELS, -100), 0.5, 2.0)
    assert float(nothing.detach()) == 0.0


def test_the_square_of_the_temperature_keeps_the_gradients_size():
    """At a high temperature the teacher's gradient tends to (s - t) / V for centred logits, whatever the temperature
    (Hinton et al. 2015, section 2.1)."""
    student, teacher = some_logits(0), some_logits(1)
    student, teacher = (logits - logits.mean(-1, keepdim=True) for logits in (student, teacher))
    student.requires_grad_(True)
    distillation_loss(student, teacher, torch.zeros(2, 5, dtype=torch.long), 1.0, 1000.0).backward()
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 7, rtol=1e-2, atol=5e-3)


def test_half_precision_logits_are_taken_in_fp32():
    student, teacher = some_logits(0).bfloat16(), some_logits(1).bfloat16()
    loss = distillation_loss(student, teacher, LABELS, 0.5, 2.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distillation_loss(student.float(), teacher.float(), LABELS, 0.5, 2.0))
