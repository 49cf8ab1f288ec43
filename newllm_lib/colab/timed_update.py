"""How long an update takes: for the panel's estimates, the speed in the results, and the benchmarks."""

import time

import torch
from torch import nn

from ..models.frozen_head import adapters_off
from ..models.gpu import WARM_UP, GraphedBackward, can_be_captured
from ..models.recurrent_model import loss_only


class TimedUpdate:
    """Trains `model` on `input_ids` [B, T] as the Trainer does, under autocast to `dtype` unless it is None; a call is
    an update, and gives its seconds, the device's work included.

    Args:
        readings: how often the model without its adapters reads the tokens before: for a reference or a teacher, and
            for layers that are computed twice.
        is_graphed: as one CUDA graph, after the first calls; None: if the Trainer would.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        input_ids: torch.LongTensor,
        dtype: torch.dtype | None = None,
        readings: int = 0,
        is_graphed: bool | None = None,
    ):
        self.model, self.optimizer, self.input_ids = model, optimizer, input_ids
        self.dtype, self.readings = dtype, readings
        self.learn = self._learn
        if can_be_captured(model) if is_graphed is None else is_graphed:
            self.learn = GraphedBackward(self._learn, model)
            for _ in range(WARM_UP):
                self()

    def __call__(self) -> float:
        wait = torch.cuda.synchronize if self.input_ids.is_cuda else lambda: None
        wait()
        started = time.perf_counter()
        self.learn(input_ids=self.input_ids)
        self.optimizer.step()
        self.optimizer.zero_grad()
        wait()
        return time.perf_counter() - started

    def _learn(self, input_ids: torch.LongTensor) -> None:
        model = self.model
        with torch.autocast(input_ids.device.type, self.dtype, enabled=self.dtype is not None):
            for _ in range(self.readings):
                with torch.no_grad(), adapters_off(model):
                    model(input_ids=input_ids, use_cache=False)
            loss = model(input_ids=input_ids, labels=input_ids, use_cache=False, **loss_only(model)).loss
        loss.backward()
