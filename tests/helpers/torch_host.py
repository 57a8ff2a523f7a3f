"""torch-cuda without CUDA: GPUs whose memory is the host's, and an account of what happens for PyTorch's graphs."""

from __future__ import annotations

import contextlib
import ctypes
from types import SimpleNamespace

import numpy as np
from fai_fast import _core
from fai_fast.engines import torch_cuda
from fai_fast.engines.gpu import buffers_of


def array_at(address, shape, dtype):
    """An array over memory that somebody else owns."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype).reshape(shape)


class HostGraph:
    """_core.FrameGraph with the host's memory for the device's, and what was asked of it."""

    def __init__(self, **spec):
        self.spec = spec
        shapes = {
            "images": ((spec["batch"], 3, *spec["size"]), spec["dtype"]),
            "mask_logits": ((spec["batch"], *spec["mask_logits"]), spec["mask_dtype"]),
            "class_logits": ((spec["batch"], *spec["class_logits"]), spec["class_dtype"]),
        }
        self.memory = {name: np.zeros(*shape) for name, shape in shapes.items()}
        self.stream = 77
        self.calls = []
        self.closed = False

    images = property(lambda self: self.memory["images"].ctypes.data)
    mask_logits = property(lambda self: self.memory["mask_logits"].ctypes.data)
    class_logits = property(lambda self: self.memory["class_logits"].ctypes.data)

    def run_engine(self, enqueue, images, mask_logits, class_logits):
        self.memory["images"][...] = images
        enqueue(self.stream)
        mask_logits[...] = self.memory["mask_logits"]
        class_logits[...] = self.memory["class_logits"]

    def capture(self, enqueue):
        enqueue(self.stream)
        self.calls.append("captured")

    def run_uncaptured(self, enqueue, reason):
        self.calls.append("uncaptured")
        self.enqueue = enqueue
        return reason

    def enqueue_preprocess(self):
        self.calls.append("before")

    def enqueue_postprocess(self):
        self.calls.append("after")

    def adopt(self, handle, owner):
        self.calls.append(("adopted", handle))
        self.owner = owner

    def close(self):
        self.closed = True


def frame_graph(ports):
    """A HostGraph for an engine's ports."""
    return HostGraph(**buffers_of(*ports.values()))


def with_two_gpus(monkeypatch):
    """Makes the machine one with two GPUs, whose memory is the host's; what they are said to be."""
    cards = [
        {
            "index": index,
            "name": "NVIDIA H200",
            "compute_capability": (9, 0),
            "memory": 141 << 30,
            "multiprocessors": 132,
            "uuid": f"GPU-{index}",
        }
        for index in range(2)
    ]
    monkeypatch.setattr(_core, "cuda_devices", lambda: cards)
    monkeypatch.setattr(_core, "cuda_versions", lambda: {"driver": "13.0", "toolkit": "13.0"})
    monkeypatch.setattr(_core, "FrameGraph", HostGraph, raising=False)
    return cards


class FakeGraph:
    def __init__(self, keep_graph=False):
        assert keep_graph  # else there is no graph to hand over

    def raw_cuda_graph(self):
        return 4242


def with_torch(monkeypatch):
    """Makes torch-cuda run in the host's memory; its `torch`, and the `events` and `state` of what it does."""
    import torch

    events, state = [], SimpleNamespace(fail=None, fail_at_end=None)

    class Stream:
        def synchronize(self):
            events.append("synchronize")

    @contextlib.contextmanager
    def on(stream, device):
        events.append(f"on {stream}")
        yield Stream()
        events.append("off")

    @contextlib.contextmanager
    def capturing(graph, stream, capture_error_mode):
        assert isinstance(stream, Stream)
        assert capture_error_mode == "thread_local"
        events.append("begin")
        try:
            yield
        finally:
            events.append("end")
            if state.fail_at_end:
                raise RuntimeError(state.fail_at_end)

    fake = SimpleNamespace(
        __version__="2.13.0+cu130",
        version=SimpleNamespace(cuda="13.0"),
        backends=torch.backends,
        cuda=SimpleNamespace(
            CUDAGraph=FakeGraph, graph=capturing, empty_cache=lambda: events.append("empty_cache")
        ),
    )
    called = torch_cuda.Run.__call__

    def run(self):
        events.append("run")
        if state.fail and "begin" in events:
            raise state.fail
        called(self)

    def tensor(address, port, device):
        return torch.from_numpy(array_at(address, port.shape, port.dtype))

    def tried(network, shape, precision, place):
        events.append("tried")
        kind = torch.float16 if precision == "fp16" else torch.float32
        with torch.inference_mode():
            network(torch.zeros(shape, dtype=kind))

    monkeypatch.setattr(torch_cuda.Run, "__call__", run)
    monkeypatch.setattr(torch_cuda, "package", lambda: fake)
    monkeypatch.setattr(torch_cuda, "_on", on)
    monkeypatch.setattr(torch_cuda, "_tensor", tensor)
    monkeypatch.setattr(torch_cuda, "_place", lambda device: torch.device("cpu"))
    monkeypatch.setattr(torch_cuda, "_try", tried)
    return SimpleNamespace(torch=fake, events=events, state=state)
