"""Shared fixtures: small text, small tokenizers, and caches that live in the test's own folder."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may add in another order every time

import pytest
import torch
from sample_text import make_text

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported: its kernels then run on the CPU

import newllm_lib.models  # noqa: F401  registers the Auto classes
from newllm_lib.data.tokenizer import build_tokenizer

torch.set_num_threads(1)
# Figures are compared as fp32 gives them, also on a CPU that multiplies bf16; test_device.py says what holds there.
torch.cpu.get_capabilities = dict
torch.backends.cudnn.allow_tf32 = False  # what a GPU calls fp32 otherwise
if torch.cuda.is_available():
    # Runs are compared to the bit. By itself attention on a GPU adds up its gradients in the order in which blocks end;
    # test_resume_on_a_gpu.py says what holds then.
    torch.use_deterministic_algorithms(True, warn_only=True)
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True, scope="module")
def same_seed_for_fixtures():
    """What a module's fixtures draw depends on no other module that ran before in the same process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_seed(same_seed_for_fixtures):
    torch.manual_seed(0)


@pytest.fixture
def text_file(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(make_text(240), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def byte_tokenizer():
    return build_tokenizer("byte", [])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder ../shared/data is not there")
    return SHARED_DATA
