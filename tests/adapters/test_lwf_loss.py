"""The loss of learning without forgetting against the formula on full logits, and what it allocates."""

import math

import pytest
import torch
from torch.nn import functional

from newllm_lib.adapters.lwf_loss import lwf_loss
from newllm_lib.models import frozen_head as module
from newllm_lib.models.frozen_head import Head, token_scores

TOKENS, TYPES, WIDTH, TEACHER_WIDTH = 63, 1003, 17, 13
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def several_chunks_and_blocks(monkeypatch):
    """With a teacher 20, 20, 20 and 3 tokens, the last ones padded; 11 blocks of 91 token types and one of 2."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 2 * 20 * TYPES)
    monkeypatch.setattr(module, "TYPES_PER_BLOCK", 91)


def random_head(width=WIDTH, types=TYPES, dtype=torch.float64, softcap=None, with_bias=True):
    weight, bias = torch.randn(types, width, dtype=dtype), torch.randn(types, dtype=dtype)
    return Head(weight, bias if with_bias else None, softcap)


def case(dtype=torch.float64, softcap=None, own_head=False, tokens=TOKENS):
    """hidden, head, labels, teacher_hidden, teacher_head."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, dtype=dtype, requires_grad=True)
    head = random_head(dtype=dtype, softcap=softcap)
    teacher_head = random_head(TEACHER_WIDTH, dtype=dtype, softcap=4.0, with_bias=False) if own_head else None
    teacher_hidden = torch.randn(tokens, TEACHER_WIDTH if own_head else WIDTH, dtype=dtype)
    return hidden, head, torch.randint(0, TYPES, (tokens,)), teacher_hidden, teacher_head


def full_logits(hidden, head):
    logits = functional.linear(hidden, head.weight, head.bias)
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def plain_loss(
    hidden, head, labels, teacher_hidden, teacher_head, distill_weight=0.0, temperature=1.0, label_smoothing=0.0
):
    """total, task and KL as in the papers."""
    logits = full_logits(hidden, head)
    task = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    if teacher_hidden is None:
        return task, task, torch.zeros_like(task)
    log_q = (logits / temperature).log_softmax(dim=1)
    log_p = (full_logits(teacher_hidden, teacher_head or head) / temperature).log_softmax(dim=1)
    kl = (log_p.exp() * (log_p - log_q)).sum()
    return task + distill_weight * temperature**2 * kl, task, kl


def assert_equal_to_plain(inputs, tolerance, **options):
    hidden = inputs[0]
    total, task, kl = plain_loss(*inputs, **options)
    found = lwf_loss(*inputs, **options)
    for ours, theirs in ((found.total, total), (found.task, task), (found.kl, kl)):
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=tolerance, atol=tolerance)
    assert not found.task.requires_grad and not found.kl.requires_grad
    (expected,), (gradient,) = torch.autograd.grad(total, [hidden]), torch.autograd.grad(found.total, [hidden])
    assert gradient.dtype == hidden.dtype
    torch.testing.assert_close(gradient, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("distill_weight", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_formula_on_full_logits(dtype, softcap, own_head, temperature, distill_weight):
    inputs = case(dtype, softcap, own_head)
    for label_smoothing in (0.0, 0.1):
        options = {"distill_weight": distill_weight, "temperature": temperature, "label_smoothing": label_smoothing}
        assert_equal_to_plain(inputs, TOLERANCE[dtype], **options)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_without_a_teacher_it_is_cross_entropy(softcap, label_smoothing):
    hidden, head, labels, _, _ = case(softcap=softcap)
    assert_equal_to_plain((hidden, head, labels, None, None), 1e-10, label_smoothing=label_smoothing)
    assert lwf_loss(hidden, head, labels, distill_weight=2.0).kl == 0


@pytest.mark.parametrize("elements, types_per_block", [(1, 5000), (10**9, 1), (10**9, 1003), (7 * 1003, 500)])
def test_any_chunks_and_blocks(monkeypatch, elements, types_per_block):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(module, "TYPES_PER_BLOCK", types_per_block)
    assert_equal_to_plain(case(softcap=5.0), 1e-10, distill_weight=0.5, temperature=2.0, label_smoothing=0.1)


def test_two_tokens_by_hand():
    """Student (1/2, 1/2) against teacher (3/4, 1/4), then (1/5, 4/5) against (1/2, 1/2); labels 0 and 1."""
    head = Head(torch.eye(2, dtype=torch.float64))
    hidden = torch.tensor([[0.5, 0.5], [0.2, 0.8]], dtype=torch.float64).log().requires_grad_()
    teacher_hidden = torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=torch.float64).log()
    loss = lwf_loss(hidden, head, torch.tensor([0, 1]), teacher_hidden, distill_weight=2.0)
    task = -math.log(0.5) - math.log(0.8)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5) + 0.5 * math.log(2.5) + 0.5 * math.log(0.625)
    assert loss.task.item() == pytest.approx(task, rel=1e-12)
    assert loss.kl.item() == pytest.approx(kl, rel=1e-12)
    assert loss.total.item() == pytest.approx(task + 2 * kl, rel=1e-12)
    loss.total.backward()  # student - label + 2 * (student - teacher)
    torch.testing.assert_close(hidden.grad, torch.tensor([[-1.0, 1.0], [-0.4, 0.4]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_teacher_that_is_the_student_pulls_nowhere(dtype, temperature):
    hidden, head, labels, _, _ = case(dtype)
    loss = lwf_loss(hidden, head, labels, hidden.detach(), distill_weight=5.0, temperature=temperature)
    plain = lwf_loss(hidden, head, labels)
    assert loss.kl.abs() < TOLERANCE[dtype] * TOKENS
    (gradient,), (expected,) = torch.autograd.grad(loss.total, hidden), torch.autograd.grad(plain.total, hidden)
    torch.testing.assert_close(gradient, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_only_the_students_hidden_states_get_a_gradient():
    hidden, head, labels, teacher_hidden, _ = case()
    others = [head.weight.requires_grad_(), head.bias.requires_grad_(), teacher_hidden.requires_grad_()]
    lwf_loss(hidden, head, labels, teacher_hidden, distill_weight=1.0).total.backward()
    assert hidden.grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in others)


def test_no_tokens():
    hidden, head, labels, teacher_hidden, _ = case(tokens=0)
    loss = lwf_loss(hidden, head, labels, teacher_hidden, distill_weight=1.0)
    assert loss.total == loss.task == loss.kl == 0
    loss.total.backward()
    assert hidden.grad.shape == (0, WIDTH)
    assert [len(scores) for scores in token_scores(hidden, head, labels, teacher_hidden)] == [0, 0, 0]


@pytest.mark.parametrize("function", [lwf_loss, token_scores])
def test_another_vocabulary_is_refused(function):
    hidden, head, labels, teacher_hidden, _ = case()
    with pytest.raises(ValueError, match="teacher_head has 997 token types and head has 1,003"):
        function(hidden, head, labels, teacher_hidden, random_head(types=997))


def test_half_precision_weights_are_promoted():
    hidden, head, labels, teacher_hidden, _ = case(torch.float32)
    low = Head(head.weight.bfloat16(), head.bias.bfloat16(), 5.0)
    exact = Head(low.weight.float(), low.bias.float(), 5.0)
    found = lwf_loss(hidden, low, labels, teacher_hidden, distill_weight=0.5, temperature=2.0)
    expected = lwf_loss(hidden, exact, labels, teacher_hidden, distill_weight=0.5, temperature=2.0)
    torch.testing.assert_close(found.total, expected.total)
    torch.testing.assert_close(*(torch.autograd.grad(each.total, hidden)[0] for each in (found, expected)))


@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_products_and_a_loss_that_is_not(autocast, own_head):
    hidden, head, labels, teacher_hidden, teacher_head = case(torch.float32, own_head=own_head)
    inputs = hidden, head, labels, teacher_hidden, teacher_head
    expected = lwf_loss(*inputs, distill_weight=0.5, temperature=2.0)
    (gradient,) = torch.autograd.grad(expected.total, hidden)
    if not autocast:
        head = Head(head.weight.bfloat16(), head.bias.bfloat16())
        if own_head:
            teacher_head = Head(teacher_head.weight.bfloat16(), None, teacher_head.softcap)
        hidden = hidden.detach().bfloat16().requires_grad_()
        inputs = hidden, head, labels, teacher_hidden.bfloat16(), teacher_head
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = lwf_loss(*inputs, distill_weight=0.5, temperature=2.0)
    assert found.total.dtype == found.task.dtype == found.kl.dtype == torch.float32
    assert found.total.item() == pytest.approx(expected.total.item(), rel=5e-3)
    found.total.backward()
    assert hidden.grad.dtype == hidden.dtype
    assert (hidden.grad - gradient).norm() < 0.02 * gradient.norm()


def test_large_logits_stay_finite():
    hidden, head, labels, teacher_hidden, _ = case(torch.float32)
    hidden = (hidden.detach() * 30).requires_grad_()
    assert_equal_to_plain((hidden, head, labels, teacher_hidden * 30, None), 1e-4, distill_weight=1.0)


def test_the_gradient_is_scaled_and_handed_over_once():
    inputs = case()
    expected = plain_loss(*inputs, distill_weight=0.5)[0] * 3
    loss = lwf_loss(*inputs, distill_weight=0.5).total * 3
    (gradient,) = torch.autograd.grad(loss, inputs[0], retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, inputs[0])[0], rtol=1e-10, atol=1e-10)
    with pytest.raises(RuntimeError, match="backward once"):
        loss.backward()


@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_scores_of_every_token(softcap, own_head):
    hidden, head, labels, teacher_hidden, teacher_head = case(softcap=softcap, own_head=own_head)
    logits = full_logits(hidden, head).detach()
    labels[::2] = logits.argmax(dim=1)[::2]
    log_q, log_p = (each.log_softmax(1) for each in (logits, full_logits(teacher_hidden, teacher_head or head)))
    nats, correct, kl = token_scores(hidden, head, labels, teacher_hidden, teacher_head)
    torch.testing.assert_close(nats, functional.cross_entropy(logits, labels, reduction="none"), rtol=1e-10, atol=1e-10)
    assert correct.dtype == torch.bool and torch.equal(correct, logits.argmax(dim=1) == labels)
    torch.testing.assert_close(kl, (log_p.exp() * (log_p - log_q)).sum(1), rtol=1e-10, atol=1e-10)
    alone = token_scores(hidden, head, labels)
    torch.testing.assert_close(alone[0], nats)
    assert torch.equal(alone[1], correct)
    assert alone[2].shape == kl.shape and not alone[2].any()
    assert not nats.requires_grad


class Watch(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the largest tensor that is made, and every number of rows that meets a head."""

    largest, rows = 0, frozenset()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        if function in (torch.ops.aten.mm.default, torch.ops.mkldnn._linear_pointwise.default):
            self.rows |= {len(result)}
        return result


@pytest.mark.parametrize("own_head", [False, True])
def test_neither_all_logits_nor_another_weight_exist(own_head):
    hidden, head, labels, teacher_hidden, teacher_head = case(torch.float32, 5.0, own_head)
    low = Head(head.weight.bfloat16(), head.bias.bfloat16(), head.softcap)
    with Watch() as watch:
        loss = lwf_loss(hidden, low, labels, teacher_hidden, teacher_head, distill_weight=0.5, temperature=2.0)
        loss.total.backward()
        token_scores(hidden, low, labels, teacher_hidden, teacher_head)
    assert watch.largest <= 2 * 21 * 91 < TYPES * WIDTH < TOKENS * TYPES  # one block of both models, padded


def test_the_head_meets_few_numbers_of_tokens(monkeypatch):
    """oneDNN keeps a program for every shape: numbers of tokens at random would fill the memory."""
    monkeypatch.setattr(module, "TYPES_PER_BLOCK", TYPES)
    with Watch() as watch:
        for tokens in range(1, 21):
            hidden, head, labels, teacher_hidden, _ = case(torch.float32, tokens=tokens)
            lwf_loss(hidden, head, labels, teacher_hidden, distill_weight=0.5).total.backward()
    assert 0 < len(watch.rows) <= 2 * module.LENGTHS
