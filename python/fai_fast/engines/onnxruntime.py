"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fai_fast._arguments import check_choice, check_threads
from fai_fast._extras import requirement
from fai_fast._foreign import explained
from fai_fast.engines import cpu
from fai_fast.engines.base import (
    INPUT,
    OUTPUTS,
    PACKAGES,
    Array,
    BaseEngine,
    OpenContext,
    TensorSpec,
    check_file,
    check_ports,
    import_lock,
    missing,
    reason,
)
from fai_fast.errors import EngineError

__all__ = ["NAME", "PRECISIONS", "depends", "load", "native_precisions", "package", "version"]

NAME = "onnxruntime"
PRECISIONS = ("fp32",)
_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


def load(path: str | os.PathLike[str], *, precision: str = "fp32", num_threads: int | None = None) -> Engine:
    """Loads an ONNX file.

    Args:
        path: a deployed graph, written by ``fai_fast.export``.
        precision: "fp32" only: ONNX Runtime's CPU kernels have no other. A float16 file keeps float16 inputs and
            outputs and is computed in float32 where a kernel has no float16.
        num_threads: None for the physical cores that this process may use.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or value.
        EngineError: ONNX Runtime is not installed, or the file is not a deployed graph.
    """
    file = check_file(NAME, path)
    check_choice("precision", precision, PRECISIONS)
    threads = check_threads("num_threads", num_threads) or cpu.usable_cores()
    onnxruntime = package()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised, not printed
    # Workers that go on spinning after a run would take the cores from pre- and postprocessing.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"], enable_fallback=False
        )
    except Exception as error:  # ONNX Runtime raises a dozen kinds that share no base
        if not explained(error, *PACKAGES):
            raise
        raise EngineError(f"{NAME}: {file} cannot be loaded: {reason(error)}") from error
    return Engine(session, session_ports(NAME, session, file), threads, file)


def depends(precision: str = "fp32", num_threads: int | None = None) -> dict[str, Any]:
    """What a session depends on besides the ONNX file, as JSON values."""
    return {
        "engine": NAME,
        "version": version(),
        "precision": precision,
        "threads": check_threads("num_threads", num_threads) or cpu.usable_cores(),
    }


def version() -> str:
    """ONNX Runtime's version. Raises EngineError where it cannot be imported."""
    text: str = package().__version__
    return text


def native_precisions() -> tuple[str, ...]:
    """The precisions that ONNX Runtime's CPU kernels compute in. Raises EngineError without ONNX Runtime."""
    package()
    return PRECISIONS


class Context(OpenContext):
    def __init__(self, engine: Engine, session: Any, binding: Any, arrays: Mapping[str, Array]) -> None:
        super().__init__(engine, arrays)
        self._session, self._binding = session, binding

    def _run(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def _release(self) -> None:
        self._session = self._binding = None


class Engine(BaseEngine):
    name = NAME

    def __init__(self, session: Any, ports: Mapping[str, TensorSpec], threads: int, path: Path) -> None:
        super().__init__(
            ports,
            {
                "version": version(),
                "device": "cpu",
                "device_name": cpu.name(),
                "precision": "fp32",
                "threads": threads,
                "path": str(path),
            },
        )
        self._session = session

    def _bind(self, arrays: Mapping[str, Array]) -> Context:
        binding = self._session.io_binding()
        make = package().OrtValue.ortvalue_from_numpy  # shares the array's memory on the CPU
        binding.bind_ortvalue_input(INPUT, make(arrays[INPUT]))
        for name in OUTPUTS:
            binding.bind_ortvalue_output(name, make(arrays[name]))
        return Context(self, self._session, binding, arrays)

    def _release(self) -> None:
        self._session = None


@cache
def package() -> Any:
    """ONNX Runtime's own module, imported without its telemetry. Raises EngineError where it cannot be imported."""
    return imported(NAME, requirement("onnxruntime"))


def imported(engine: str, install: str) -> Any:
    """As :func:`package`, for any engine that ONNX Runtime drives."""
    # Since 1.29 importing onnxruntime identifies the device in the home folder and reports sessions over the network,
    # unless this is set at that moment. Who sets it in the environment has decided for himself.
    with import_lock:
        before = os.environ.get(_TELEMETRY)
        os.environ.setdefault(_TELEMETRY, "1")
        try:
            return importlib.import_module("onnxruntime")
        except ImportError as error:
            raise missing(engine, install, error) from error
        finally:
            if before is None:
                del os.environ[_TELEMETRY]


def session_ports(engine: str, session: Any, path: Path) -> dict[str, TensorSpec]:
    """The ports by name. Raises EngineError unless they are those of a deployed graph."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return check_ports(engine, path, [_port(item) for item in inputs], [_port(item) for item in outputs])


def _port(item: Any) -> TensorSpec:
    shape = tuple(side if isinstance(side, int) else -1 for side in item.shape)
    return TensorSpec(item.name, _DTYPES.get(item.type, item.type), shape)
