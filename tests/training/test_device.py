import pytest

from newllm_lib.training.device import Device, choose_precision


@pytest.mark.parametrize(
    ("name", "capability", "precision"),
    [
        ("Tesla T4", (7, 5), "fp16"),
        ("Tesla P100", (6, 0), "fp16"),
        ("NVIDIA L4", (8, 9), "bf16"),
        ("A100", (8, 0), "bf16"),
    ],
)
def test_precision_follows_the_compute_capability(name, capability, precision):
    chosen, why = choose_precision(Device("cuda", name, 15.0, capability, 2))
    assert chosen == precision
    assert f"{capability[0]}.{capability[1]}" in why
    assert "fp32 weights" in why


def test_without_a_gpu_it_is_fp32():
    assert choose_precision(Device("cpu", "CPU", None, None, 2))[0] == "fp32"
