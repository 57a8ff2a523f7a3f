"""OpenVINO on the CPU: the default engine there."""

from __future__ import annotations

import importlib
import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fai_fast._arguments import check_choice, check_threads
from fai_fast._foreign import explained
from fai_fast._forks import keep_for_ever
from fai_fast.engines import cpu, openvino_deformable, openvino_file
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

__all__ = [
    "NAME",
    "PRECISIONS",
    "compile_to",
    "depends",
    "load",
    "load_blob",
    "native_precisions",
    "package",
    "quantized_precision",
    "read_graph",
    "version",
    "without_telemetry",
]

NAME = "openvino"
_DEVICE = "CPU"
_FLOATS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_INT8 = "int8+"
# Of a quantized graph, what is not int8 is computed in the other of the two.
_HINTS = {**_FLOATS, **{f"{_INT8}{name}": hint for name, hint in _FLOATS.items()}}
PRECISIONS = tuple(_HINTS)
_DTYPES = {"f32": "float32", "f16": "float16"}
_COMPILING = 1
"""Counts changes of how graphs are compiled: a blob of another one may compute something else."""
_TELEMETRY = "openvino_telemetry"
_CONVERTER = "openvino.tools.ovc"


def load(path: str | os.PathLike[str], *, precision: str = "fp32", num_threads: int | None = None) -> Engine:
    """Compiles a graph. OpenVINO's own cache stays off: see :func:`compile_to` for keeping the result.

    Args:
        path: a deployed graph, written by ``fai_fast.export`` (.onnx) or ``fai_fast.quantize`` (.openvino).
        precision: what the CPU computes in: "fp32", or "bf16" or "fp16" where it has that natively; of a quantized
            graph "int8+fp32", "int8+bf16" or "int8+fp16", after what the rest of it is computed in. Inputs and
            outputs keep the dtypes of the file.
        num_threads: None for what OpenVINO finds best among the cores that this process may use.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or value.
        EngineError: OpenVINO is not installed, the file is not a deployed graph, or the CPU lacks the precision.
    """
    file = check_file(NAME, path)
    config = _config(precision, num_threads)
    _check_kind(file, precision)
    model = read_graph(file)
    ports = _ports(model, file)
    if _as_many_heads_as_places(model):
        config["SNIPPETS_MODE"] = "DISABLE"
    try:
        compiled = _core().compile_model(model, _DEVICE, config)
    except Exception as error:  # OpenVINO raises several kinds that share no base
        if not explained(error, *PACKAGES):
            raise
        raise EngineError(f"{NAME}: {file} cannot be compiled: {reason(error)}") from error
    return Engine(compiled, ports, file, precision)


def compile_to(
    path: str | os.PathLike[str],
    blob_path: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    num_threads: int | None = None,
) -> dict[str, Any]:
    """Compiles a graph into one file for :func:`load_blob`, which starts in a fraction of the time.

    The blob is worth something only where :func:`depends` says the same as here.

    Returns:
        ``compile_seconds``.

    Raises:
        As :func:`load` does; OSError: the blob cannot be written.
    """
    start = time.perf_counter()
    engine = load(path, precision=precision, num_threads=num_threads)
    try:
        engine.export(Path(blob_path))
    finally:
        engine.close()
    return {"compile_seconds": round(time.perf_counter() - start, 3)}


def load_blob(
    blob_path: str | os.PathLike[str], *, precision: str = "fp32", num_threads: int | None = None
) -> Engine:
    """Loads what :func:`compile_to` wrote with the same arguments.

    The file stays mapped: delete or replace it as you like, but do not write into it. OpenVINO notices most damage
    to it but not changed weights: keep a checksum beside it.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or value.
        EngineError: OpenVINO is not installed, the blob is damaged, or of another version or kind of CPU.
    """
    file = check_file(NAME, blob_path)
    config = _config(precision, num_threads)
    try:
        # Mapped, which saves a tenth of a second for 70 MB. The compiled model goes on reading from it.
        blob = np.memmap(file, np.uint8, "c")
        compiled = _core().import_model(package().Tensor(blob, shared_memory=True), _DEVICE, config)
        ports = _ports(compiled, file)
    except EngineError:
        raise
    except Exception as error:
        if not explained(error, *PACKAGES):
            raise
        raise EngineError(f"{NAME}: {file} cannot be loaded, compile it again: {reason(error)}") from error
    return Engine(compiled, ports, file, precision, blob)


def depends(precision: str = "fp32", num_threads: int | None = None) -> dict[str, Any]:
    """What a blob of :func:`compile_to` depends on besides the graph's file, as JSON values."""
    core = _core()
    return {
        "engine": NAME,
        "version": version(),
        "rewriting": openvino_deformable.VERSION,
        "compiling": _COMPILING,
        "device": core.get_property(_DEVICE, "FULL_DEVICE_NAME"),
        "features": list(cpu.features()),
        "precision": precision,
        "threads": check_threads("num_threads", num_threads) or cpu.usable_cores(),
    }


def version() -> str:
    """OpenVINO's version. Raises EngineError where it cannot be imported."""
    text: str = package().get_version()
    return text


def native_precisions() -> tuple[str, ...]:
    """The precisions that this CPU computes in natively, fastest first. Raises EngineError without OpenVINO."""
    return cpu.precisions(_core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))


def quantized_precision(verified: Iterable[str]) -> str:
    """What :func:`load` is to compute a quantized graph in: the fastest rest that this CPU has and that was verified.

    Args:
        verified: "fp32", "bf16", "fp16": in what the rest of the graph was found to give the same as without int8.

    Raises:
        EngineError: this CPU has none of them.
    """
    known, native = tuple(verified), native_precisions()
    for name in native:
        if name in known:
            return f"{_INT8}{name}"
    raise EngineError(
        f"{NAME}: the rest of the quantized graph was verified in {', '.join(known) or 'nothing'}, and this CPU has "
        f"{', '.join(native)}; quantize it again"
    )


class Context(OpenContext):
    def __init__(self, engine: Engine, request: Any, blob: Array | None, arrays: Mapping[str, Array]) -> None:
        super().__init__(engine, arrays)
        self._request, self._blob = request, blob

    def _run(self) -> None:
        # One call, which no signal can cut in two as it could start_async() and wait().
        self._request.infer(share_outputs=True)

    def _release(self) -> None:
        self._request = self._blob = None


class Engine(BaseEngine):
    name = NAME

    def __init__(
        self,
        compiled: Any,
        ports: Mapping[str, TensorSpec],
        path: Path,
        precision: str,
        blob: Array | None = None,
    ) -> None:
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        computed = next((name for name, text in _FLOATS.items() if text == hint), hint)
        super().__init__(
            ports,
            {
                "version": version(),
                "device": "cpu",
                "device_name": _core().get_property(_DEVICE, "FULL_DEVICE_NAME"),
                "precision": f"{_INT8 if precision.startswith(_INT8) else ''}{computed}",
                "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
                "streams": compiled.get_property("NUM_STREAMS"),
                "path": str(path),
            },
        )
        self._compiled = compiled
        self._blob = blob

    def export(self, path: Path) -> None:
        """Writes the compiled model into one file, for :func:`load_blob`."""
        stream = io.BytesIO()
        self._compiled.export_model(stream)
        path.write_bytes(stream.getbuffer())

    def _bind(self, arrays: Mapping[str, Array]) -> Context:
        request = self._compiled.create_infer_request()
        for name, array in arrays.items():
            request.set_tensor(name, package().Tensor(array, shared_memory=True))
        return Context(self, request, self._blob, arrays)

    def _release(self) -> None:
        self._compiled = self._blob = None


@cache
def package() -> Any:
    """OpenVINO's own module, imported without its telemetry. Raises EngineError where it cannot be imported."""
    with import_lock:
        try:
            # OpenVINO is made to work without its converter, which takes longer to import than all the rest of it.
            with _hidden(_TELEMETRY, _CONVERTER):
                module = importlib.import_module("openvino")
        except ImportError:
            try:
                with _hidden(_TELEMETRY):
                    return importlib.import_module("openvino")
            except ImportError as error:
                raise missing(NAME, "openvino", error) from error
        if not hasattr(module, "convert_model"):
            _convert_when_asked(module)
        return module


@contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Makes importing these modules fail, unless they are there already.

    Importing OpenVINO's converter reports to its makers over the network, from a thread of its own, and writes into
    the home folder, unless the telemetry is missing. Nothing of that belongs into a library on a robot.
    """
    names = tuple(name for name in names if name not in sys.modules)
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def without_telemetry() -> AbstractContextManager[None]:
    """While it lasts, no package that is imported finds the telemetry of OpenVINO's makers."""
    return _hidden(_TELEMETRY)


def _convert_when_asked(module: Any) -> None:
    """Gives the rest of the program `openvino.convert_model`, imported at its first use."""
    others = getattr(module, "__getattr__", None)

    def find(name: str) -> Any:
        if name == "convert_model":
            with suppress(ImportError), import_lock, _hidden(_TELEMETRY):
                module.convert_model = importlib.import_module(_CONVERTER).convert_model
                return module.convert_model
        if others is not None:
            return others(name)
        raise AttributeError(f"module 'openvino' has no attribute {name!r}")

    module.__getattr__ = find


@cache
def _core() -> Any:
    return package().Core()


def _keep_core() -> None:
    """In a forked child, which gets a core of its own: its parent's waits for threads that are not there."""
    if _core.cache_info().currsize:
        keep_for_ever(_core())
        _core.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_core)


def _config(precision: str, num_threads: int | None) -> dict[str, Any]:
    check_choice("precision", precision, PRECISIONS)
    threads = check_threads("num_threads", num_threads)
    native = native_precisions()
    # OpenVINO takes a hint that the CPU cannot follow, then computes in something else or slowly.
    if precision.removeprefix(_INT8) not in native:
        raise EngineError(
            f"{NAME}: this CPU does not compute in {precision} natively, only in {', '.join(native)}; ask for that"
        )
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # A pinned thread has to wait where another process keeps its core busy.
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
    }
    # OpenVINO itself heeds affinity and kinds of cores, but no control group's quota: it is told of one that allows no
    # more threads than there are cores.
    limit = cpu.quota() or 0
    if not threads and limit == cpu.usable_cores():
        threads = limit
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    return config


def _as_many_heads_as_places(model: Any) -> bool:
    """Whether a product (B, H, L, C) with H = L is turned to (B, L, H, C), as at the end of attention.

    OpenVINO's fused attention (2026.4) exchanges the two where queries are normalized first, as Swin v2 does: results
    are wrong, without an error. What is not fused is right.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Transpose" or node.input_value(0).get_node().get_type_name() != "MatMul":
            continue
        order, sides = node.input_value(1).get_node(), node.get_input_partial_shape(0)
        if order.get_type_name() != "Constant" or sides.rank.is_dynamic or len(sides) != 4:
            continue
        if list(order.get_data()) == [0, 2, 1, 3] and sides[1] == sides[2] != 1:
            return True
    return False


def _check_kind(path: Path, precision: str) -> None:
    """ValueError where a quantized graph is to be computed as another one, or the other way round."""
    quantized = path.suffix.lower() == openvino_file.SUFFIX
    if quantized != precision.startswith(_INT8):
        expected = [name for name in PRECISIONS if name.startswith(_INT8) == quantized]
        raise ValueError(f"precision: got {precision!r} with {path.name}, expected {' or '.join(expected)}")


def read_graph(path: Path) -> Any:
    """The file as an OpenVINO model.

    Raises:
        EngineError: it is not a graph, or is damaged.
    """
    return _read_quantized(path) if path.suffix.lower() == openvino_file.SUFFIX else _read_onnx(path)


def _read_quantized(path: Path) -> Any:
    contents = openvino_file.read(path)
    try:
        return _core().read_model(contents.graph, package().Tensor(contents.weights))
    except Exception as error:
        if not explained(error, *PACKAGES):
            raise
        raise EngineError(f"{NAME}: {path} cannot be read as OpenVINO's graph: {reason(error)}") from error


def _read_onnx(path: Path) -> Any:
    """By the ONNX front end alone: the others would print that they cannot read it."""
    frontend = package().frontend.FrontEndManager().load_by_framework("onnx")
    try:
        model = frontend.convert(frontend.load(str(path)))
        openvino_deformable.rewrite_deformable_attention(model, importlib.import_module("openvino.opset13"))
        return model
    except Exception as error:
        if not explained(error, *PACKAGES):
            raise
        raise EngineError(f"{NAME}: {path} cannot be read as ONNX: {reason(error)}") from error


def _ports(model: Any, path: Path) -> dict[str, TensorSpec]:
    return check_ports(
        NAME,
        path,
        [_port(item, [INPUT]) for item in model.inputs],
        [_port(item, OUTPUTS) for item in model.outputs],
    )


def _port(item: Any, expected: Any) -> TensorSpec:
    names = sorted(item.get_names())
    # A tensor has every name that a folded node gave it.
    name = next((name for name in names if name in expected), names[0] if names else "?")
    dtype = item.get_element_type().get_type_name()
    sides = item.get_partial_shape()
    shape = (
        () if sides.rank.is_dynamic else tuple(-1 if side.is_dynamic else side.get_length() for side in sides)
    )
    return TensorSpec(name, _DTYPES.get(dtype, dtype), shape)
