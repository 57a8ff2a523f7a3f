"""What every engine offers: the protocol, and the checks and the life cycle that the engines share.

An engine is a graph made ready for a device. A context is one place to run it: three arrays that are bound once,
and a blocking :meth:`Context.run` between them.
"""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fai_fast._foreign import explained
from fai_fast._forks import ForkSafeLock, ProcessGuard, keep_in_children
from fai_fast._locks import SignalSafeLock
from fai_fast.errors import EngineError

__all__ = ["INPUT", "OUTPUTS", "Array", "Context", "Engine", "Port", "TensorSpec"]

Array = npt.NDArray[Any]
"""float32 or float16, C-contiguous."""

INPUT = "images"
OUTPUTS = ("mask_logits", "class_logits")
import_lock = ForkSafeLock()
"""Held while an engine's package is imported, because that needs a change to the process for as long."""
PACKAGES = ("openvino", "onnxruntime", "torch", "tensorrt", "tensorrt_rtx", "numpy")
"""Whose own exceptions engines turn into EngineError, besides Python's."""
_ALIGNMENT = 64  # bytes: a cache line, and the widest vector registers
_DIMENSIONS = {"images": 4, "mask_logits": 4, "class_logits": 3}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph: its name, "float32" or "float16", and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {self.shape}"


Port = TensorSpec
"""Its former name."""


class Context(Protocol):
    """One place to run an engine.

    Attributes:
        images: the normalized input (B, 3, h, w); write a frame here.
        mask_logits, class_logits: the outputs (B, Q, h/s, w/s) and (B, Q, K); read them after :meth:`run`.
    """

    @property
    def images(self) -> Array: ...
    @property
    def mask_logits(self) -> Array: ...
    @property
    def class_logits(self) -> Array: ...

    def run(self) -> None:
        """Computes the outputs of what is in ``images``, without the GIL, and returns when they are complete.

        Nothing is allocated on Python's side. A second thread that runs the same context waits for the first.

        Raises:
            EngineError: the engine or context is closed, the process was forked after loading, or the engine failed.
        """
        ...

    def close(self) -> None:
        """Gives the context's memory back, after a run in another thread has ended. Idempotent."""
        ...


class Engine(Protocol):
    """A graph ready to run. Its contexts may run at the same time, each in a thread of its own.

    Attributes:
        name: "openvino", "onnxruntime", ...
        inputs: one port, ``images``.
        outputs: two ports, ``mask_logits`` and ``class_logits``.
    """

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[TensorSpec]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, TensorSpec]: ...

    def context(
        self, images: Array | None = None, mask_logits: Array | None = None, class_logits: Array | None = None
    ) -> Context:
        """A new context over the given arrays, used in place; those not given are allocated, 64-byte aligned.

        Args:
            images, mask_logits, class_logits: of the port's dtype and shape, C-contiguous, aligned, writable.

        Raises:
            TypeError, ValueError: an array is not like that, or shares memory with another; the text names it.
            EngineError: the engine is closed, or cannot bind the arrays.
        """
        ...

    def info(self) -> dict[str, Any]:
        """``engine``, ``version``, ``device``, ``device_name``, ``precision``, ``threads``, ``path``, ``inputs``
        and ``outputs`` (name: "dtype (shape)"), and what only this engine has. Works after :meth:`close` too."""
        ...

    def close(self) -> None:
        """Closes every context, after runs in other threads have ended, then the engine. Idempotent."""
        ...


class OpenContext(ABC):
    """A context's arrays and life cycle; an engine adds how to run and what to let go of."""

    def __init__(self, engine: BaseEngine, arrays: Mapping[str, Array]) -> None:
        self._engine = engine.name
        self._guard = ProcessGuard(engine.name)
        self._lock = SignalSafeLock()  # a signal handler may close the context that its thread is running
        self._closed = False
        self._images, self._mask_logits, self._class_logits = (arrays[name] for name in (INPUT, *OUTPUTS))
        keep_in_children(self)

    @property
    def images(self) -> Array:
        return self._images

    @property
    def mask_logits(self) -> Array:
        return self._mask_logits

    @property
    def class_logits(self) -> Array:
        return self._class_logits

    def run(self) -> None:
        # Before the lock, which a thread that the child does not have may hold.
        self._guard.check()
        with self._lock:
            if self._closed:
                raise EngineError(
                    f"{self._engine}: the context is closed, make another with engine.context()"
                )
            try:
                self._run()
            except Exception as error:  # the engines raise many kinds that share no base
                if not explained(error, *PACKAGES):
                    raise
                raise EngineError(f"{self._engine}: running failed: {reason(error)}") from error

    def close(self) -> None:
        if self._guard.inherited:
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                self._release()

    @abstractmethod
    def _run(self) -> None: ...

    @abstractmethod
    def _release(self) -> None: ...


class BaseEngine(ABC):
    """An engine's description and life cycle; an engine adds how to make a context and what to let go of."""

    name: str

    def __init__(self, ports: Mapping[str, TensorSpec], info: Mapping[str, Any]) -> None:
        self._ports = ports
        self._info = {
            "engine": self.name,
            **info,
            "inputs": {INPUT: describe(ports[INPUT])},
            "outputs": {name: describe(ports[name]) for name in OUTPUTS},
        }
        self._lock = SignalSafeLock()
        self._closed = False
        self._guard = ProcessGuard(self.name)
        self._contexts: weakref.WeakSet[OpenContext] = weakref.WeakSet()
        keep_in_children(self)

    @property
    def inputs(self) -> tuple[TensorSpec]:
        return (self._ports[INPUT],)

    @property
    def outputs(self) -> tuple[TensorSpec, TensorSpec]:
        return self._ports[OUTPUTS[0]], self._ports[OUTPUTS[1]]

    def context(
        self, images: Array | None = None, mask_logits: Array | None = None, class_logits: Array | None = None
    ) -> OpenContext:
        given = {"images": images, "mask_logits": mask_logits, "class_logits": class_logits}
        arrays = bound_arrays(self._ports, given)
        self._guard.check()
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.name}: the engine is closed, load it again")
            try:
                context = self._bind(arrays)
            except Exception as error:
                if not explained(error, *PACKAGES):
                    raise
                raise EngineError(f"{self.name}: binding the arrays failed: {reason(error)}") from error
            self._contexts.add(context)
            return context

    def info(self) -> dict[str, Any]:
        return dict(self._info)

    def close(self) -> None:
        if self._guard.inherited:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            contexts = list(self._contexts)
        for context in contexts:
            context.close()
        self._release()

    @abstractmethod
    def _bind(self, arrays: Mapping[str, Array]) -> OpenContext: ...

    @abstractmethod
    def _release(self) -> None: ...


def bound_arrays(ports: Mapping[str, TensorSpec], given: Mapping[str, Array | None]) -> dict[str, Array]:
    """The given arrays, checked, and new ones for those that are None. Raises TypeError, ValueError."""
    arrays = {}
    for name, port in ports.items():
        array = given[name]
        if array is None:
            arrays[name] = aligned(port)
        else:
            check_array(array, port)
            arrays[name] = array
    for other in OUTPUTS:
        for name in arrays:
            if name != other and np.may_share_memory(arrays[name], arrays[other]):
                raise ValueError(f"{other}: shares memory with {name}, expected arrays of their own")
    return arrays


def check_array(array: object, port: TensorSpec) -> None:
    """TypeError, ValueError unless an engine can read and write `port` in `array` itself."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{port.name}: got {type(array).__name__}, expected a NumPy array")
    if array.dtype != port.dtype:
        raise TypeError(f"{port.name}: got dtype {array.dtype}, expected {port.dtype}")
    if array.shape != port.shape:
        raise ValueError(f"{port.name}: got shape {array.shape}, expected {port.shape}")
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned and flags.writeable):
        lacks = [name for name in ("c_contiguous", "aligned", "writeable") if not getattr(flags, name)]
        raise ValueError(
            f"{port.name}: got an array that is not {' and not '.join(lacks)}, which an engine cannot use in place; "
            "give a copy, or None for an array of the engine's own"
        )


def aligned(port: TensorSpec) -> Array:
    """A new array of zeros for `port` that starts at a multiple of 64 bytes."""
    dtype = np.dtype(port.dtype)
    room = np.zeros(int(np.prod(port.shape)) * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : room.size - (_ALIGNMENT - start)].view(dtype).reshape(port.shape)


def check_ports(
    engine: str, path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> dict[str, TensorSpec]:
    """The ports by name. Raises EngineError unless they are those of a deployed graph, with fixed shapes."""
    names = ([port.name for port in inputs], sorted(port.name for port in outputs))
    if names != ([INPUT], sorted(OUTPUTS)):
        raise EngineError(
            f"{engine}: {path} is no deployed graph: it has inputs {names[0]} and outputs {names[1]}, expected "
            f"['{INPUT}'] and {sorted(OUTPUTS)}; make one with fai_fast.export"
        )
    ports = {port.name: port for port in (*inputs, *outputs)}
    for port in ports.values():
        if len(port.shape) != _DIMENSIONS[port.name] or min(port.shape) < 1:
            raise EngineError(
                f"{engine}: {path} has {port}, expected {_DIMENSIONS[port.name]} fixed sides; "
                "make it with fai_fast.export"
            )
        if port.dtype not in ("float32", "float16"):
            raise EngineError(f"{engine}: {path} has {port}, expected float32 or float16")
    return ports


def check_file(engine: str, path: object) -> Path:
    """`path` as a Path. Raises TypeError unless it is one, EngineError unless it is a file with something in it."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: got {type(path).__name__}, expected a str or a path")
    path = Path(path)
    try:
        if not path.is_file():
            what = (
                "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "is not there"
            )
            raise EngineError(f"{engine}: {path} {what}, expected a file")
        if path.stat().st_size == 0:
            raise EngineError(f"{engine}: {path} is empty")
        with path.open("rb"):
            pass
    except OSError as error:
        if not explained(error):
            raise
        raise EngineError(f"{engine}: {path} cannot be read: {error.strerror or error}") from error
    return path


def missing(engine: str, install: str, error: ImportError) -> EngineError:
    """What to raise where an engine's package cannot be imported."""
    return EngineError(f"{engine}: cannot be imported ({reason(error)}); install it: pip install '{install}'")


def describe(port: TensorSpec) -> str:
    return f"{port.dtype} {port.shape}"


def reason(error: BaseException) -> str:
    """The line of an error that tells most: of OpenVINO's several, the first that is not a place in its sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    places = ("Exception from ", "Check '", "FrontEnd API failed")
    text = next((line for line in lines if line and not line.startswith(places)), "") or " ".join(lines)
    text = text or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
