"""What every GPU engine offers: work put on a CUDA stream, between device buffers that a ``_core.FrameGraph`` owns.

A GPU engine is an :class:`~fai_fast.engines.base.Engine` too: its :class:`HostContext` runs it alone, between NumPy
arrays.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from fai_fast import _core
from fai_fast._foreign import explained
from fai_fast._forks import ProcessGuard, keep_in_children
from fai_fast._locks import SignalSafeLock
from fai_fast.engines.base import (
    INPUT,
    OUTPUTS,
    PACKAGES,
    Array,
    BaseEngine,
    Engine,
    OpenContext,
    TensorSpec,
    reason,
)
from fai_fast.errors import CudaError, EngineError

__all__ = [
    "Device",
    "GpuContext",
    "GpuEngine",
    "HostContext",
    "OpenGpuContext",
    "OpenGpuEngine",
    "buffers_of",
    "depends",
    "device",
    "devices",
    "translated",
    "unsupported",
]

# Of data centers' GPUs, which TensorRT-RTX builds for and then refuses to load on (1.7.1, on a 9.0).
_NOT_BY_RTX = ((9, 0), (10, 0))


@dataclass(frozen=True)
class Device:
    """A GPU: its CUDA index, its name, ``compute_capability`` as (major, minor), ``memory`` in bytes."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    memory: int
    multiprocessors: int
    uuid: str


def devices() -> tuple[Device, ...]:
    """The GPUs of this machine, at least one. Raises CudaError: built without CUDA, no driver or too old, no GPU."""
    return tuple(
        Device(
            index=found["index"],
            name=found["name"],
            compute_capability=(found["compute_capability"][0], found["compute_capability"][1]),
            memory=found["memory"],
            multiprocessors=found["multiprocessors"],
            uuid=str(found["uuid"]),
        )
        for found in _core.cuda_devices()
    )


def device(index: int) -> Device:
    """The GPU of that CUDA index. Raises CudaError where there is none."""
    found = devices()
    for item in found:
        if item.index == index:
            return item
    there = ", ".join(f"cuda:{item.index} ({item.name})" for item in found)
    raise CudaError(f"device: got cuda:{index}, expected one of {there}")


def depends(index: int) -> dict[str, Any]:
    """What every file compiled for a GPU depends on, as JSON values: ``gpu``, ``compute_capability``, ``driver``."""
    found = device(index)
    major, minor = found.compute_capability
    return {
        "gpu": found.name,
        "compute_capability": f"{major}.{minor}",
        "driver": _core.cuda_versions()["driver"],
    }


def unsupported(engine: str, index: int) -> str:
    """Why an engine does not run on a GPU that others do run on, or "". Raises CudaError where there is no such GPU."""
    if engine != "tensorrt_rtx":
        return ""
    found = device(index)
    if found.compute_capability not in _NOT_BY_RTX:
        return ""
    major, minor = found.compute_capability
    return (
        f"{found.name} has compute capability {major}.{minor}, on which TensorRT-RTX does not run; "
        "use the engine tensorrt or torch-cuda"
    )


class _Tensor(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...


def buffers_of(images: _Tensor, masks: _Tensor, classes: _Tensor) -> dict[str, Any]:
    """The arguments of ``_core.FrameGraph`` that say which buffers it owns, for ports or arrays like these."""
    return {
        "batch": images.shape[0],
        "size": images.shape[2:],
        "dtype": str(images.dtype),
        "mask_logits": masks.shape[1:],
        "mask_dtype": str(masks.dtype),
        "class_logits": classes.shape[1:],
        "class_dtype": str(classes.dtype),
    }


class GpuContext(Protocol):
    """One place to run a GPU engine: three device buffers that are bound once."""

    def enqueue(self, stream: int) -> None:
        """Puts one run on a stream and returns: no synchronisation, no allocation after the first call.

        Args:
            stream: a cudaStream_t of the engine's device.

        Raises:
            EngineError: the engine or context is closed, the process was forked after loading, or the engine failed.
        """
        ...

    def capture(self, frame_graph: _core.FrameGraph) -> str | None:
        """Captures a frame's work around this engine; None, or why every frame now calls :meth:`enqueue` instead."""
        ...

    def close(self) -> None:
        """Lets go of what the context holds. What was put on a stream must have ended. Idempotent."""
        ...


class GpuEngine(Engine, Protocol):
    """An :class:`~fai_fast.engines.base.Engine` on a GPU.

    Attributes:
        device: the CUDA device's index.
    """

    @property
    def device(self) -> int: ...

    def bind(self, images: int, mask_logits: int, class_logits: int, stream: int) -> GpuContext:
        """A context over device memory of the ports' shapes and dtypes, C-contiguous, 256-byte aligned, used in place.

        Args:
            images, mask_logits, class_logits: device addresses; they must outlive the context.
            stream: the cudaStream_t that runs will be put on.

        Raises:
            TypeError, ValueError: an address or the stream is not an address; the text names it.
            EngineError: the engine is closed, or cannot bind the buffers.
        """
        ...


class OpenGpuContext(ABC):
    """A GPU context's life cycle; an engine adds how to enqueue a run and what to let go of."""

    def __init__(self, engine: OpenGpuEngine) -> None:
        self._engine = engine.name
        self._guard = ProcessGuard(engine.name)
        self._lock = SignalSafeLock()  # a signal handler may close the context that its thread is running
        self._closed = False
        keep_in_children(self)

    def enqueue(self, stream: int) -> None:
        # Before the lock, which a thread that the child does not have may hold.
        self._guard.check()
        with self._lock:
            self._check_open()
            with translated(self._engine, "running failed"):
                self._enqueue(stream)

    def capture(self, frame_graph: _core.FrameGraph) -> str | None:
        self._guard.check()
        with self._lock:
            self._check_open()
            with translated(self._engine, "capturing failed"):
                return self._capture(frame_graph)

    def close(self) -> None:
        if self._guard.inherited:
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                self._release()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"{self._engine}: the context is closed, make another with engine.bind()")

    def _capture(self, frame_graph: _core.FrameGraph) -> str | None:
        foreign: list[BaseException] = []

        def enqueue(stream: int) -> None:
            try:
                self.enqueue(stream)
            except EngineError:  # why the engine cannot be captured
                raise
            except BaseException as error:
                foreign.append(error)
                raise

        reason = frame_graph.capture(enqueue)
        # The frame graph would run without a capture because of it.
        if foreign:
            raise foreign.pop()
        return reason

    @abstractmethod
    def _enqueue(self, stream: int) -> None: ...

    @abstractmethod
    def _release(self) -> None: ...


class OpenGpuEngine(BaseEngine):
    """A GPU engine's description and life cycle; an engine adds ``_bind_device`` and ``_unload``."""

    def __init__(self, ports: Mapping[str, TensorSpec], device_index: int, info: Mapping[str, Any]) -> None:
        """`info` needs ``version``, ``precision``, ``path`` and what only this engine has."""
        found = device(device_index)
        major, minor = found.compute_capability
        super().__init__(
            ports,
            {
                "device": f"cuda:{device_index}",
                "device_name": found.name,
                "compute_capability": f"{major}.{minor}",
                "threads": None,
                **info,
            },
        )
        self.device = device_index
        self._bound: weakref.WeakSet[OpenGpuContext] = weakref.WeakSet()

    def bind(self, images: int, mask_logits: int, class_logits: int, stream: int) -> OpenGpuContext:
        given = {"images": images, "mask_logits": mask_logits, "class_logits": class_logits}
        for name, address in given.items():
            _check_address(name, address)
            if address == 0:
                raise ValueError(f"{name}: got 0, expected the address of device memory")
        _check_address("stream", stream)
        self._guard.check()
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.name}: the engine is closed, load it again")
            with translated(self.name, "binding the buffers failed"):
                context = self._bind_device(images, mask_logits, class_logits, stream)
            self._bound.add(context)
            return context

    def context(
        self, images: Array | None = None, mask_logits: Array | None = None, class_logits: Array | None = None
    ) -> OpenContext:
        with _unwrapped():
            return super().context(images, mask_logits, class_logits)

    def _bind(self, arrays: Mapping[str, Array]) -> OpenContext:
        return HostContext(self, arrays)

    def _release(self) -> None:
        for context in list(self._bound):
            context.close()
        self._unload()

    @abstractmethod
    def _bind_device(
        self, images: int, mask_logits: int, class_logits: int, stream: int
    ) -> OpenGpuContext: ...

    @abstractmethod
    def _unload(self) -> None:
        """Lets go of the engine itself, after its contexts."""


class HostContext(OpenContext):
    """A GPU engine alone, between arrays of the host: ``run()`` uploads, runs the engine, downloads and waits."""

    def __init__(self, engine: OpenGpuEngine, arrays: Mapping[str, Array]) -> None:
        super().__init__(engine, arrays)
        self._graph: _core.FrameGraph | None = _core.FrameGraph(
            device=engine.device,
            **buffers_of(*(arrays[name] for name in (INPUT, *OUTPUTS))),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            predict_all_pixels=False,
            softmax=False,
        )
        self._context = engine.bind(
            self._graph.images, self._graph.mask_logits, self._graph.class_logits, self._graph.stream
        )

    def run(self) -> None:
        with _unwrapped():
            super().run()

    def _run(self) -> None:
        assert self._graph is not None
        self._graph.run_engine(self._context.enqueue, self._images, self._mask_logits, self._class_logits)

    def _release(self) -> None:
        self._context.close()
        if self._graph is not None:
            self._graph.close()
        self._graph = None


@contextmanager
def translated(engine: str, what: str) -> Iterator[None]:
    """Turns what an engine's package raises into an EngineError "engine: what: why"; keeps fai_fast's own."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # the packages raise many kinds that share no base
        if not explained(error, *PACKAGES):
            raise
        raise EngineError(f"{engine}: {what}: {reason(error)}") from error


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Raises a CudaError or EngineError that a base class has translated once more as it was."""
    try:
        yield
    except EngineError as error:
        if isinstance(error.__cause__, EngineError):
            raise error.__cause__ from error.__cause__.__cause__
        raise


def _check_address(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an int, an address")
    if value < 0:
        raise ValueError(f"{name}: got {value}, expected an address")
