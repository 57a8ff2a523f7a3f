"""An engine for the emulator, so that the models' benchmark can be tried without a GPU: torch-cuda's network, run by
PyTorch on the CPU as a host function of the emulated stream."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
from fai_fast import _core
from fai_fast.engines import select, torch_cuda
from fai_fast.engines.base import INPUT, OUTPUTS, TensorSpec
from fai_fast.engines.gpu import OpenGpuContext, OpenGpuEngine


class _Context(OpenGpuContext):
    def __init__(self, engine: _Engine, run: torch_cuda.Run) -> None:
        super().__init__(engine)
        self._run: torch_cuda.Run | None = run

    def _enqueue(self, stream: int) -> None:
        assert self._run is not None
        _core.launch_host_function(stream, self._run)

    def _release(self) -> None:
        self._run = None


class _Engine(OpenGpuEngine):
    name = torch_cuda.NAME

    def __init__(self, network: Any, ports: Mapping[str, TensorSpec]) -> None:
        super().__init__(ports, 0, {"version": "emulated", "precision": "fp32", "path": None})
        self._network = network

    def _bind_device(self, images: int, mask_logits: int, class_logits: int, stream: int) -> _Context:
        addresses = {INPUT: images, OUTPUTS[0]: mask_logits, OUTPUTS[1]: class_logits}
        tensors = {name: _view(addresses[name], port) for name, port in self._ports.items()}
        return _Context(self, torch_cuda.Run(self._network, tensors))

    def _unload(self) -> None:
        self._network = None


def _view(address: int, port: TensorSpec) -> Any:
    """The emulated device's memory, which is the host's."""
    import torch

    count = int(np.prod(port.shape))
    memory = (ctypes.c_char * (4 * count)).from_address(address)
    return torch.from_numpy(np.frombuffer(memory, np.float32, count).reshape(port.shape))


def _load(weights: Any, size: tuple[int, int], batch: int = 1, **_: Any) -> _Engine:
    network = torch_cuda.build(weights, size, "fp32")
    config = weights.spec.config
    shapes = {
        INPUT: (batch, 3, *size),
        OUTPUTS[0]: (batch, config.num_queries, *(side // network.stride for side in size)),
        OUTPUTS[1]: (batch, config.num_queries, config.num_classes + 1),
    }
    return _Engine(network, {name: TensorSpec(name, "float32", shape) for name, shape in shapes.items()})


@contextmanager
def torch_on_the_cpu() -> Iterator[None]:
    """`engine="torch-cuda"` is this engine, while a model is loaded."""
    import torch

    instead = {
        "load_weights": _load,
        "package": lambda: torch,
        "version": lambda: torch.__version__,
        "native_precisions": lambda device=0: ("fp32",),
        "depends": lambda precision, device=0: {"engine": "emulated", "precision": precision},
    }
    with ExitStack() as stack:
        for name, function in instead.items():
            stack.enter_context(mock.patch.object(torch_cuda, name, function))
        # Which looks for the libraries of a build with CUDA.
        stack.enter_context(mock.patch.object(select, "_lacking", return_value=""))
        yield
