"""The products by oneDNN against float64, for every layout that a loss hands them."""

import pytest
import torch

from newllm_lib.models import matrix_products
from newllm_lib.models.matrix_products import linear, product, product_over_rows

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
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear(layout, with_bias):
    inputs, weight = torch.randn(7, 70), torch.randn(33, 70)
    bias = torch.randn(33) if with_bias else None
    expected = inputs.double() @ weight.double().t() + (bias.double() if with_bias else 0)
    close(linear(LAYOUTS[layout](inputs), LAYOUTS[layout](weight), bias), expected)


def test_torch_without_onednn(monkeypatch):
    monkeypatch.setattr(matrix_products, "ONEDNN_LINEAR", None)
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    assert torch.equal(product(a, b), a @ b)
