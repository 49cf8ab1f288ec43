"""The products by oneDNN against float64, for every layout that the recurrence hands them."""

import pytest
import torch
from torch.nn import functional

from newllm_lib.models import matrix_products
from newllm_lib.models.matrix_products import RepeatedLinear, linear, product, product_over_rows

LAYOUTS = {
    "rows": lambda m: m,
    "columns": lambda m: m.t().contiguous().t(),
    "slice of columns": lambda m: torch.cat([m, m], dim=1)[:, : m.shape[1]],
    "slice of rows": lambda m: torch.cat([m, m], dim=0)[: m.shape[0]],
}


def close(found, expected):
    assert (found.double() - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("a_layout", LAYOUTS)
@pytest.mark.parametrize("b_layout", LAYOUTS)
@pytest.mark.parametrize(("n", "k", "m"), [(1, 1, 1), (3, 70, 33), (64, 128, 96)])
def test_products(a_layout, b_layout, n, k, m):
    a, b = torch.randn(n, k), torch.randn(k, m)
    expected = a.double() @ b.double()
    a, b = LAYOUTS[a_layout](a), LAYOUTS[b_layout](b)
    close(product(a, b), expected)
    close(product_over_rows(a.t(), b), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("repeats", [1, 100])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_repeated_linear_layer(layout, repeats, dtype, error):
    x, weight, bias = (torch.randn(*shape, dtype=dtype) for shape in ((7, 70), (33, 70), (33,)))
    expected = x.double() @ weight.double().t() + bias.double()
    layer = RepeatedLinear(LAYOUTS[layout](weight), bias, repeats, rows=7)
    for found, wanted in ((layer(LAYOUTS[layout](x)), expected), (layer(x, relu=True), expected.relu())):
        assert found.dtype == dtype
        assert (found.double() - wanted).norm() <= error * wanted.norm()
    unbiased = RepeatedLinear(weight, None, repeats, rows=7)(x).double()
    assert (unbiased - (expected - bias.double())).norm() <= error * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_has_the_gradients_of_torchs(dtype, with_bias):
    inputs, weight = torch.randn(2, 7, 5, dtype=dtype, requires_grad=True), torch.randn(9, 5, dtype=dtype)
    bias = torch.randn(9, dtype=dtype, requires_grad=True) if with_bias else None
    weight.requires_grad_()
    wanted = [tensor for tensor in (inputs, weight, bias) if tensor is not None]
    outputs = [run(inputs, weight, bias) for run in (linear, functional.linear)]
    torch.testing.assert_close(*outputs)
    for gradients in zip(*(torch.autograd.grad(out.sin().sum(), wanted) for out in outputs), strict=True):
        torch.testing.assert_close(*gradients)


def test_autocast_decides_the_precision():
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(2, 4), torch.randn(3, 4), None).dtype == torch.bfloat16


def test_torch_without_onednn(monkeypatch):
    monkeypatch.setattr(matrix_products, "ONEDNN_LINEAR", None)
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    assert torch.equal(product(a, b), a @ b)
    assert torch.equal(RepeatedLinear(b.t(), torch.zeros(5), 100, rows=3)(a), torch.addmm(torch.zeros(5), a, b))
