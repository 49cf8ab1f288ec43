"""One training update as the Trainer makes it, for whoever measures what it takes."""

import time

import torch
from torch import nn

from ..models.language_model_head import loss_only


def timed_update(
    model: nn.Module, optimizer: torch.optim.Optimizer, input_ids: torch.LongTensor, dtype: torch.dtype | None = None
) -> float:
    """Train `model` on `input_ids` [B, T], under autocast to `dtype` unless it is None.

    Returns:
        Seconds, the device's work included.
    """
    kind = input_ids.device.type
    _synchronize(kind)
    started = time.perf_counter()
    with torch.autocast(kind, dtype, enabled=dtype is not None):
        loss = model(input_ids=input_ids, labels=input_ids, use_cache=False, **loss_only(model)).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    _synchronize(kind)
    return time.perf_counter() - started


def _synchronize(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()
