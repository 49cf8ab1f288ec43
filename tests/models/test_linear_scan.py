"""The scan against its plain definition, in values and in every gradient."""

import pytest
import torch

from newllm_lib.models import linear_scan as module
from newllm_lib.models.linear_scan import doubled, linear_scan, plain_scan

# Of the largest value of a tensor.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def by_doubling(keep: torch.Tensor, write: torch.Tensor, c0: torch.Tensor) -> torch.Tensor:
    """What a device without a loop of its own makes of it, differentiated by autograd."""
    return doubled(keep, torch.cat([write[:, :1] + keep[:, :1] * c0[:, None], write[:, 1:]], dim=1))


def arguments(batch_size, length, channels, masked, documents, dtype=torch.float64):
    # Gates from wide open to shut: half-lives from a tenth of a token to thousands.
    z = (4 * torch.randn(batch_size, length, channels, dtype=dtype)).requires_grad_()
    delta = torch.randn(batch_size, length, channels, dtype=dtype, requires_grad=True)
    c0 = torch.randn(batch_size, channels, dtype=dtype, requires_grad=True)
    starts = torch.rand(batch_size, length) < 0.2 if documents else None
    mask = torch.rand(batch_size, length) > 0.3 if masked else None
    return z, delta, starts, mask, c0


def values_and_gradients(scan, z, delta, starts, mask, c0):
    contexts = scan(z, delta, starts, mask, c0)
    weights = torch.randn(contexts.shape, generator=torch.Generator().manual_seed(1), dtype=contexts.dtype)
    return [contexts, *torch.autograd.grad((contexts * weights).sum(), (z, delta, c0))]


def assert_close(found, expected, dtype):
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= TOLERANCE[dtype] * other.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("batch_size", "length", "channels"), [(3, 1, 40), (5, 2, 31), (3, 63, 17), (2, 257, 192)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_equals_the_plain_loop(batch_size, length, channels, masked, documents, dtype):
    given = arguments(batch_size, length, channels, masked, documents, dtype)
    assert_close(values_and_gradients(linear_scan, *given), values_and_gradients(plain_scan, *given), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [1, 2, 63, 257])
def test_doubling_equals_the_plain_loop(length, dtype):
    z, delta, _, _, c0 = arguments(3, length, 17, False, False, dtype)
    expected = values_and_gradients(plain_scan, z, delta, None, None, c0)
    found = values_and_gradients(
        lambda z, delta, starts, mask, c0: by_doubling(z.sigmoid(), (-z).sigmoid() * delta, c0),
        z,
        delta,
        None,
        None,
        c0,
    )
    assert_close(found, expected, dtype)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_the_path_without_a_loop_equals_the_plain_loop(masked, documents, monkeypatch):
    monkeypatch.setattr(module, "WALKS_TIME", frozenset())
    given = arguments(3, 63, 17, masked, documents)
    assert_close(values_and_gradients(linear_scan, *given), values_and_gradients(plain_scan, *given), torch.float64)


def test_gradients_equal_finite_differences():
    z, delta, starts, mask, c0 = arguments(2, 7, 3, True, True)
    assert torch.autograd.gradcheck(lambda z, delta, c0: linear_scan(z, delta, starts, mask, c0), (z, delta, c0))


def test_rows_cut_anywhere_and_continued_are_the_whole_row():
    z, delta, starts, mask, c0 = arguments(3, 40, 5, True, True)
    expected = values_and_gradients(linear_scan, z, delta, starts, mask, c0)

    def in_pieces(z, delta, starts, mask, c0):
        parts = []
        for piece in (slice(0, 1), slice(1, 17), slice(17, 40)):
            parts.append(linear_scan(z[:, piece], delta[:, piece], starts[:, piece], mask[:, piece], c0))
            c0 = parts[-1][:, -1]
        return torch.cat(parts, dim=1)

    assert_close(values_and_gradients(in_pieces, z, delta, starts, mask, c0), expected, torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_fp32(dtype):
    """A channel that keeps 0.9999 of its context for a thousand tokens would stand still in 16 bits."""
    z, delta = torch.full((1, 1000, 1), 9.0, dtype=dtype), torch.ones(1, 1000, 1, dtype=dtype)
    contexts = linear_scan(z, delta, None, None, torch.zeros(1, 1))
    assert contexts.dtype == torch.float32
    keep = torch.sigmoid(torch.tensor(9.0, dtype=torch.float64))
    assert contexts[0, -1, 0].item() == pytest.approx(1 - keep.item() ** 1000, rel=1e-5)


def test_torch_checks_the_operation():
    """Schema, fake tensors and autograd registration, as torch.compile needs them."""
    torch.library.opcheck(module.scan_operation, arguments(2, 5, 3, True, True))
    torch.library.opcheck(module.scan_operation, arguments(2, 5, 3, False, False, torch.float32))
