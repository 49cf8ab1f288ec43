"""What makes small models quick on an NVIDIA GPU: kernels of our own, and CUDA graphs, which record the kernels of a
call once and launch them together from then on. One by one, Python launches the hundreds of small kernels of an update
more slowly than the GPU runs them."""

import gc
import os
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from packaging.version import Version

WARM_UP = 3  # calls before one is captured: libraries set themselves up, and kernels are compiled, in the first ones
MOST_GRAPHS = 4  # each holds the memory of its call; what comes in more shapes is called as it is
KERNELS = f"{__package__.partition('.')[0]}.kernels"  # a wing: without it torch's own operations are taken
OLDEST_TRITON = Version("3.6")  # of torch 2.11, as Colab has it: tuples of pointers were not tried with earlier ones


@cache
def triton_kernels(name: str) -> ModuleType | None:
    """A module of kernels, where Triton can be used: torch brings it on Linux with a GPU, and it needs a C compiler."""
    has_compiler = "CC" in os.environ or any(map(shutil.which, ("cc", "gcc", "clang")))
    if not (find_spec("triton") and find_spec(KERNELS) and has_compiler):
        return None
    is_new_enough = Version(import_module("triton").__version__) >= OLDEST_TRITON
    return import_module(f"{KERNELS}.{name}") if is_new_enough else None


def kernels_for(*tensors: torch.Tensor, name: str = "newllm_layer") -> ModuleType | None:
    """The module of kernels of that name, where they run: on an NVIDIA GPU, in up to fp32. torch.compile makes better
    ones, for it sees what stands beside them."""
    if not tensors[0].is_cuda or torch.compiler.is_compiling():
        return None
    suit = all(tensor.is_cuda and tensor.dtype != torch.float64 for tensor in tensors)
    return triton_kernels(name) if suit else None


class GraphedCall:
    """`function(**tensors)` for tensors on an NVIDIA GPU, as one CUDA graph for every set of shapes that comes often.

    The function must not wait for the device, and may keep results from call to call only in tensors that it writes in
    place. The next call overwrites the results.

    Source: torch.cuda.CUDAGraph, and torch's notes on whole-network capture.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.calls: Counter[tuple] = Counter()
        self.graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, dict[str, torch.Tensor], Any]] = {}
        self.stream = torch.cuda.Stream()  # the warm-up has to be in the stream of the capture

    def __call__(self, **tensors: torch.Tensor) -> Any:
        shapes = tuple((name, *tensor.shape) for name, tensor in tensors.items())
        if shapes not in self.graphs:
            self.calls[shapes] += 1
            if self.calls[shapes] <= WARM_UP or len(self.graphs) == MOST_GRAPHS:
                return self._aside(tensors)
            self.graphs[shapes] = self._capture(tensors)
        graph, inputs, results = self.graphs[shapes]
        for name, tensor in tensors.items():
            inputs[name].copy_(tensor, non_blocking=True)
        graph.replay()
        return results

    def _aside(self, tensors: dict[str, torch.Tensor]) -> Any:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            results = self.function(**tensors)
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def _capture(self, tensors: dict[str, torch.Tensor]) -> tuple:
        graph, inputs = torch.cuda.CUDAGraph(), {name: tensor.clone() for name, tensor in tensors.items()}
        gc.collect()
        gc.disable()  # an earlier graph whose turn came while this one is captured would undo it
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                results = self.function(**inputs)
        finally:
            gc.enable()
        return graph, inputs, results


class GraphedBackward(GraphedCall):
    """A call that goes backward too: it adds to the gradients of `model`, which stay where they are."""

    def __init__(self, function: Callable[..., Any], model: torch.nn.Module):
        super().__init__(function)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.gradients = [(parameter, torch.zeros_like(parameter)) for parameter in trained]

    def __call__(self, **tensors: torch.Tensor) -> Any:
        if fresh := [gradient for parameter, gradient in self.gradients if parameter.grad is None]:
            torch._foreach_zero_(fresh)
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return super().__call__(**tensors)


def can_be_captured(model: torch.nn.Module) -> bool:
    """True for a model on an NVIDIA GPU whose forward pass never waits for the device."""
    return getattr(model, "is_capturable", False) and model.device.type == "cuda"
