"""Train, fine-tune and chat with small language models on one modest GPU, or on a plain CPU."""

__version__ = "0.1.0"
