"""One training update as the Trainer makes it, for whoever measures what it takes."""

import time

import torch
from torch import nn

from ..models.language_model_head import loss_only


def timed_update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    input_ids: torch.LongTensor,
    dtype: torch.dtype | None = None,
    readings: int = 0,
) -> float:
    """Train `model` on `input_ids` [B, T], under autocast to `dtype` unless it is None.

    Args:
        readings: how often the model without its adapters reads the tokens before: for a reference or a teacher, and
            for layers that are computed twice.

    Returns:
        Seconds, the device's work included.
    """
    kind = input_ids.device.type
    _synchronize(kind)
    started = time.perf_counter()
    with torch.autocast(kind, dtype, enabled=dtype is not None):
        for _ in range(readings):
            with torch.no_grad(), model.disable_adapter():
                model(input_ids=input_ids, use_cache=False)
        loss = model(input_ids=input_ids, labels=input_ids, use_cache=False, **loss_only(model)).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    _synchronize(kind)
    return time.perf_counter() - started


def _synchronize(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()
