"""ONNX Runtime on a GPU, where its build with CUDA is installed."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fai_fast import _core
from fai_fast._arguments import check_choice, check_int
from fai_fast._foreign import explained
from fai_fast.engines import gpu, onnxruntime
from fai_fast.engines.base import INPUT, OUTPUTS, PACKAGES, TensorSpec, check_file, reason
from fai_fast.engines.gpu import OpenGpuContext, OpenGpuEngine
from fai_fast.errors import EngineError

__all__ = [
    "GRAPH_PRECISION",
    "NAME",
    "PRECISIONS",
    "depends",
    "load",
    "native_precisions",
    "package",
    "version",
]

NAME = "onnxruntime-cuda"
GRAPH_PRECISION = {"fp16": "fp16", "fp32": "fp32"}
PRECISIONS = tuple(GRAPH_PRECISION)
_PROVIDER = "CUDAExecutionProvider"
_DTYPES = {"fp16": "float16", "fp32": "float32"}
_TENSOR_CORES = (7, 0)
_INSTALL = "onnxruntime-gpu"
_LIBRARIES = (
    "if its CUDA provider did not start, it lacks CUDA or cuDNN: pip install 'onnxruntime-gpu[cuda,cudnn]'"
)
_UNCAPTURED = "ONNX Runtime may allocate and synchronise while it runs, which a CUDA graph cannot hold"


def load(path: str | os.PathLike[str], *, precision: str = "fp16", device: int = 0) -> Engine:
    """Loads an ONNX file.

    A session runs on one stream only, so that every context holds a session, and weights, of its own.

    Args:
        path: a deployed graph, written by ``fai_fast.export`` in that precision.
        precision: "fp16", or "fp32" without TensorFloat-32.
        device: the CUDA device's index.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or value.
        CudaError: there is no such device.
        EngineError: no ONNX Runtime with CUDA is installed, its CUDA provider does not start, the file is not a
            deployed graph of that precision, or a part of it would run on the CPU.
    """
    file = check_file(NAME, path)
    check_choice("precision", precision, PRECISIONS)
    gpu.device(check_int("device", device))
    # No context can share this session, but what is wrong with the file or the provider is better known now.
    ports = onnxruntime.session_ports(NAME, _session(file, precision, device, None), file)
    if ports[INPUT].dtype != _DTYPES[precision]:
        raise EngineError(
            f"{NAME}: {file} has {ports[INPUT]}, expected {_DTYPES[precision]} for precision {precision!r}; export it "
            f"with precision={precision!r}"
        )
    return Engine(file, ports, precision, device)


def version() -> str:
    """ONNX Runtime's version. Raises EngineError where it cannot be imported, or has no CUDA."""
    text: str = package().__version__
    return text


def native_precisions(device: int = 0) -> tuple[str, ...]:
    """The precisions that the GPU has units for, fastest first. Raises CudaError."""
    return PRECISIONS if gpu.device(device).compute_capability >= _TENSOR_CORES else ("fp32",)


def depends(precision: str, device: int = 0) -> dict[str, Any]:
    """What a session depends on besides the ONNX file, as JSON values. Raises EngineError."""
    return {
        "engine": NAME,
        "version": version(),
        "precision": check_choice("precision", precision, PRECISIONS),
        **gpu.depends(device),
    }


def package() -> Any:
    """ONNX Runtime's own module. Raises EngineError where it cannot be imported, or has no CUDA."""
    module = onnxruntime.imported(NAME, _INSTALL)
    if _PROVIDER not in module.get_available_providers():
        raise EngineError(
            f"{NAME}: ONNX Runtime {module.__version__} was built without CUDA; pip uninstall onnxruntime, then pip "
            f"install '{_INSTALL}'"
        )
    return module


class Context(OpenGpuContext):
    def __init__(self, engine: Engine, session: Any, binding: Any, stream: int) -> None:
        super().__init__(engine)
        self._session, self._binding, self._stream = session, binding, stream
        self._options = package().RunOptions()
        self._options.log_severity_level = 4
        # Whoever owns the stream waits for it, once a frame.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def _enqueue(self, stream: int) -> None:
        if stream != self._stream:
            raise ValueError(
                f"stream: got {stream:#x}, expected {self._stream:#x}, which the context is bound to"
            )
        self._session.run_with_iobinding(self._binding, self._options)

    def _capture(self, frame_graph: _core.FrameGraph) -> str | None:
        return frame_graph.run_uncaptured(self.enqueue, _UNCAPTURED)

    def _release(self) -> None:
        self._session = self._binding = None


class Engine(OpenGpuEngine):
    name = NAME

    def __init__(self, path: Path, ports: Mapping[str, TensorSpec], precision: str, device: int) -> None:
        info = {"version": version(), "precision": precision, "path": str(path)}
        super().__init__(ports, device, info)
        self._path, self._precision = path, precision

    def _bind_device(self, images: int, mask_logits: int, class_logits: int, stream: int) -> Context:
        session = _session(self._path, self._precision, self.device, stream)
        binding = session.io_binding()
        for name, address in {INPUT: images, OUTPUTS[0]: mask_logits, OUTPUTS[1]: class_logits}.items():
            port = self._ports[name]
            bind = binding.bind_input if name == INPUT else binding.bind_output
            bind(name, "cuda", self.device, np.dtype(port.dtype).type, list(port.shape), address)
        return Context(self, session, binding, stream)

    def _unload(self) -> None:
        pass  # sessions belong to the contexts


def _session(path: Path, precision: str, device: int, stream: int | None) -> Any:
    """A session on a GPU alone, on a cudaStream_t where one is given."""
    onnxruntime = package()
    _preload(onnxruntime)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, not printed
    options.intra_op_num_threads = 1
    # ONNX Runtime would run on the CPU what its CUDA provider lacks, and all of it where that does not start.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = {"device_id": str(device)}
    if precision == "fp32":
        provider["use_tf32"] = "0"
    if stream is not None:
        provider["user_compute_stream"] = str(stream)
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[(_PROVIDER, provider)], enable_fallback=False
        )
    except Exception as error:  # ONNX Runtime raises a dozen kinds that share no base
        if not explained(error, *PACKAGES):
            raise
        raise EngineError(f"{NAME}: {path} cannot be loaded: {reason(error)}; {_LIBRARIES}") from error
    if _PROVIDER not in session.get_providers():
        raise EngineError(f"{NAME}: the CUDA provider did not start; {_LIBRARIES}")
    return session


@cache
def _preload(onnxruntime: Any) -> None:
    """Loads CUDA's libraries from the packages that pip installed, where ONNX Runtime would not look."""
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()
