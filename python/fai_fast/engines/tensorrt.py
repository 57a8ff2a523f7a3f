"""TensorRT on a GPU: one adapter for the packages ``tensorrt`` (10 and 11) and ``tensorrt_rtx``.

Networks are strongly typed: a layer computes in the types that the ONNX file says, and no builder flag chooses others.
``tensorrt`` measures kernels on the GPU that it builds for. ``tensorrt_rtx`` builds without one, and compiles the
kernels of a GPU when an engine is loaded there. What that costs is kept in the cache: measurements of the first,
kernels of the second.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache as remembered
from pathlib import Path
from typing import Any

from fai_fast import _core, cache
from fai_fast._arguments import check_choice, check_int
from fai_fast._extras import install
from fai_fast._locks import SignalSafeLock
from fai_fast.engines import gpu
from fai_fast.engines.base import INPUT, OUTPUTS, TensorSpec, check_file, check_ports, reason
from fai_fast.engines.gpu import OpenGpuContext, OpenGpuEngine, translated
from fai_fast.errors import EngineError, FaiFastError

__all__ = ["BUILDER", "FLAVOURS", "GRAPH_PRECISION", "PRECISIONS", "Flavour", "check_for_turing", "flavour"]

BUILDER = 1
"""Counts changes of how engines are built: a file of another count is built again."""
GRAPH_PRECISION = {"fp16": "fp16", "fp32": "fp32"}
PRECISIONS = tuple(GRAPH_PRECISION)
_DTYPES = {"fp16": "float16", "fp32": "float32", "int8": "float16"}
"""Of ports. Only files that ``fai_fast.export`` wrote are int8: their graphs say so."""
_TURING = (7, 5)
_TURING_TARGET = "sm75"
_PRODUCTS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")

_log = logging.getLogger("fai_fast")


class Flavour:
    """One of the two packages, with the functions that an engine's module has.

    Attributes:
        name: "tensorrt" or "tensorrt_rtx".
        ahead_of_time: whether it builds for GPUs that are not in this machine, and compiles kernels where it runs.
    """

    GRAPH_PRECISION = GRAPH_PRECISION
    PRECISIONS = PRECISIONS

    def __init__(self, name: str, modules: Sequence[str], install: str, *, ahead_of_time: bool) -> None:
        self.name = self.NAME = name
        self.ahead_of_time = ahead_of_time
        self._modules, self._install = tuple(modules), install

    def package(self) -> Any:
        """TensorRT's own module. Raises EngineError where it cannot be imported."""
        errors = []
        for name in self._modules:
            try:
                return importlib.import_module(name)
            except (ImportError, OSError) as error:  # OSError: a library that it loads is not there
                errors.append(reason(error))
        raise EngineError(f"{self.name}: cannot be imported ({errors[0]}); install it: {self._install}")

    def version(self) -> str:
        """TensorRT's version. Raises EngineError where it cannot be imported."""
        text: str = self.package().__version__
        return text

    def native_precisions(self, device: int = 0) -> tuple[str, ...]:
        """The precisions to run in on that GPU, fastest first.

        Raises:
            CudaError: there is no such device.
            EngineError: the GPU is older than compute capability 7.5, or one on which TensorRT-RTX does not run.
        """
        self._check_gpu(device)
        found = gpu.device(device)
        if found.compute_capability < _TURING:
            major, minor = found.compute_capability
            raise EngineError(
                f"{self.name}: {found.name} has compute capability {major}.{minor}, expected 7.5 or later"
            )
        return ("fp16",) if found.compute_capability == _TURING else PRECISIONS

    def depends(self, precision: str = "fp16", device: int = 0) -> dict[str, Any]:
        """What a file of :meth:`compile_to` depends on besides the ONNX file, as JSON values.

        Raises:
            CudaError, EngineError: there is no such device, or TensorRT cannot be imported.
        """
        return {
            "engine": self.name,
            "version": self.version(),
            "precision": check_choice("precision", precision, tuple(_DTYPES)),
            "builder": BUILDER,
            **gpu.depends(device),
        }

    def compile_to(
        self,
        path: str | os.PathLike[str],
        blob_path: str | os.PathLike[str],
        *,
        precision: str = "fp16",
        device: int = 0,
    ) -> dict[str, Any]:
        """Builds an ONNX file for the GPU into one file for :meth:`load_blob`, with the help of :mod:`fai_fast.cache`.

        `tensorrt` keeps what it measured in the folder of `blob_path`, so that the next build there is quicker.

        Returns:
            ``build_seconds``.

        Raises:
            TypeError, ValueError: an argument is of the wrong type or value.
            CudaError: there is no such device.
            EngineError: TensorRT cannot be imported, or cannot read or build the file; the text has its own lines.
            OSError: the file cannot be written.
        """
        file = check_file(self.name, path)
        check_choice("precision", precision, PRECISIONS)
        gpu.device(check_int("device", device))
        blob = Path(blob_path)
        start = time.perf_counter()
        blob.write_bytes(self.build(file, precision=precision, device=device, folder=blob.parent))
        return {"build_seconds": round(time.perf_counter() - start, 3)}

    def build(
        self,
        path: Path,
        *,
        precision: str,
        targets: Sequence[str] = (),
        device: int | None = None,
        folder: Path | None = None,
    ) -> bytes:
        """A serialized engine of an ONNX file, in the types that the file says.

        Args:
            path: a deployed graph.
            precision: "fp32" keeps float32 products exact, without TensorFloat-32.
            targets: names such as "sm86" of the GPUs to build for; only where ``ahead_of_time``.
            device: the CUDA device to build on and for; None to build for `targets` without one.
            folder: where measurements are kept; None for nowhere.

        Raises:
            EngineError: TensorRT cannot be imported, or cannot read or build the file; the text has its own lines.
        """
        trt = self.package()
        if device is not None:
            self._check_gpu(device)
        where = (
            f"the {gpu.device(device).name} here" if device is not None else ", ".join(targets) or "any GPU"
        )
        turing = device is not None and gpu.device(device).compute_capability == _TURING
        if turing or _TURING_TARGET in targets:
            self._check_for_turing(path)
        log = _log_of(trt)
        log.take()
        with _current(device), translated(self.name, f"cannot build {path} for {where}"):
            builder = trt.Builder(log)
            # Since TensorRT 11 every network is strongly typed, and the flag is about to go.
            strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
            network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
            parser = trt.OnnxParser(network, log)
            if not parser.parse_from_file(str(path)):
                errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
                raise EngineError(f"{self.name}: cannot read {path}: {errors or log.take()}")
            config = builder.create_builder_config()
            if precision == "fp32":
                config.clear_flag(trt.BuilderFlag.TF32)
            if self.ahead_of_time:
                names = [name.upper() for name in targets] or ["CURRENT"]
                if unknown := [name for name in names if name not in trt.ComputeCapability.__members__]:
                    raise EngineError(
                        f"{self.name}: {self.version()} knows no target {', '.join(unknown).lower()}"
                    )
                config.num_compute_capabilities = len(names)
                for index, name in enumerate(names):
                    config.set_compute_capability(trt.ComputeCapability.__members__[name], index)
            # In TensorRT-RTX timing would have no effect but to need a GPU.
            timing = None
            if not self.ahead_of_time and folder is not None and device is not None:
                timing = self._timing(folder, device)
                self._start_timing(config, *timing)
            plan = builder.build_serialized_network(network, config)
            if plan is None:
                raise EngineError(f"{self.name}: cannot build {path} for {where}: {log.take()}")
            if timing is not None:
                _keep(*timing, bytes(config.get_timing_cache().serialize()))
            return bytes(plan)

    def load_blob(self, path: str | os.PathLike[str], *, precision: str = "fp16", device: int = 0) -> Engine:
        """Loads what :meth:`compile_to`, in the cache, or ``fai_fast.export(..., format="tensorrt")`` wrote.

        What is loaded can run anything on this machine: only a file that the record beside it describes is.

        Raises:
            TypeError, ValueError: an argument is of the wrong type or value.
            CudaError: there is no such device.
            EngineError: TensorRT cannot be imported; the file has no record, is damaged, or of another version,
                precision or GPU; the text says which.
        """
        file = check_file(self.name, path)
        check_choice("precision", precision, tuple(_DTYPES))
        self._check_gpu(check_int("device", device))
        plan, record = self._verified(file, precision, device)
        trt = self.package()
        log = _log_of(trt)
        log.take()
        with _current(device), translated(self.name, f"{file} cannot be loaded, build it again"):
            runtime = trt.Runtime(log)
            loaded = runtime.deserialize_cuda_engine(plan)
            if loaded is None:
                raise EngineError(f"{self.name}: {file} cannot be loaded, build it again: {log.take()}")
            ports = self._ports(trt, loaded, file)
            if ports[INPUT].dtype != _DTYPES[precision]:
                raise EngineError(
                    f"{self.name}: {file} has {ports[INPUT]}, expected {_DTYPES[precision]} for precision "
                    f"{precision!r}"
                )
            kernels = None
            if self.ahead_of_time:
                kernels = _Kernels(trt, loaded, self._kernels_path(file, record, device), record.sha256)
        return Engine(self, runtime, loaded, kernels, ports, file, precision, device)

    def _check_gpu(self, device: int) -> None:
        if unsupported := gpu.unsupported(self.name, device):
            raise EngineError(f"{self.name}: {unsupported}")

    def _verified(self, file: Path, precision: str, device: int) -> tuple[bytes, cache.Record]:
        """The file's content, which is what its record says, for this package and GPU; and the record."""
        beside = cache.record_path(file)
        again = "make it again with fai_fast.export(..., format='tensorrt')"
        try:
            record = cache.Record.read(beside)
        except FileNotFoundError:
            raise EngineError(
                f"{self.name}: {file} is not loaded without its record {beside.name}: copy that along, or {again}"
            ) from None
        except (OSError, ValueError) as error:
            raise EngineError(
                f"{self.name}: {beside} cannot be read ({reason(error)}); copy it anew, or {again}"
            ) from None
        plan = file.read_bytes()
        if hashlib.sha256(plan).hexdigest() != record.sha256:
            raise EngineError(
                f"{self.name}: {file} is damaged, or not what {beside.name} describes ({len(plan)} bytes, expected "
                f"{record.size}); copy both anew, or {again}"
            )
        said, here = record.depends, {**self.depends(precision, device), "targets": _target(device)}
        wrong = [
            f"{key} {said.get(key)}, expected {here[key]}"
            for key in ("engine", "version", "precision")
            if said.get(key) != here[key]
        ]
        wrong += [
            f"{key} {said[key]}, expected {here[key]}"
            for key in ("gpu", "compute_capability")
            if key in said and said[key] != here[key]
        ]
        if "targets" in said and here["targets"] not in said["targets"]:
            wrong.append(f"targets {', '.join(said['targets'])}, expected {here['targets']} among them")
        if wrong:
            raise EngineError(f"{self.name}: {file} is for something else: {'; '.join(wrong)}; {again}")
        return plan, record

    def _check_for_turing(self, path: Path) -> None:
        import onnx
        from google.protobuf.message import DecodeError

        try:
            check_for_turing(onnx.load(path))
        except DecodeError as error:
            raise EngineError(f"{self.name}: cannot read {path}: {reason(error)}") from None
        except EngineError as error:
            raise EngineError(f"{self.name}: cannot build {path}: {error}") from None

    def _ports(self, trt: Any, engine: Any, path: Path) -> dict[str, TensorSpec]:
        dtypes = {trt.DataType.HALF: "float16", trt.DataType.FLOAT: "float32"}

        def port(name: str) -> TensorSpec:
            dtype = engine.get_tensor_dtype(name)
            return TensorSpec(name, dtypes.get(dtype, str(dtype)), tuple(engine.get_tensor_shape(name)))

        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        return check_ports(
            self.name,
            path,
            [port(name) for name in inputs],
            [port(name) for name in names if name not in inputs],
        )

    def _kernels_path(self, file: Path, record: cache.Record, device: int) -> Path:
        """Where the kernels of an engine are kept: beside it in the cache, or there for one from elsewhere."""
        if "targets" not in record.depends:
            return file.with_suffix(".kernels")
        return cache.cache_folder() / "models" / self.name / f"{record.sha256[:16]}-gpu{device}.kernels"

    def _timing(self, folder: Path, device: int) -> tuple[Path, dict[str, Any]]:
        depends = {"engine": self.name, "version": self.version(), **gpu.depends(device)}
        name = re.sub(r"[^A-Za-z0-9]+", "-", str(depends["gpu"]))
        return folder / f"{self.name}-{name}-{depends['version']}.timing", depends

    def _start_timing(self, config: Any, path: Path, depends: Mapping[str, Any]) -> None:
        for data in (_kept(path, depends), b""):
            timing = config.create_timing_cache(data)
            if timing is not None and config.set_timing_cache(timing, ignore_mismatch=False):
                return
        raise EngineError(f"{self.name}: refuses an empty timing cache")


FLAVOURS = {
    item.name: item
    for item in (
        Flavour(
            "tensorrt",
            ("tensorrt", "tensorrt_bindings"),
            f"{install('tensorrt')}; on a Jetson it comes with JetPack",
            ahead_of_time=False,
        ),
        # The package of the first name only passes on the second, and is not always installed with it.
        Flavour(
            "tensorrt_rtx",
            ("tensorrt_rtx", "tensorrt_rtx_bindings"),
            install("tensorrt-rtx"),
            ahead_of_time=True,
        ),
    )
}


def flavour(name: str) -> Flavour:
    """What drives the package "tensorrt" or "tensorrt_rtx". Raises ValueError for another name."""
    return FLAVOURS[check_choice("name", name, tuple(FLAVOURS))]


def check_for_turing(model: Any) -> None:
    """EngineError unless every product of an onnx.ModelProto is float16 and every shape is fixed; names the node.

    On compute capability 7.5 TensorRT-RTX refuses anything else, or silently returns zeros.
    """
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise EngineError(f"its shapes and types do not fit together: {reason(error)}") from None
    values = {item.name: item for item in (*graph.value_info, *graph.input, *graph.output)}
    types = {name: item.type.tensor_type.elem_type for name, item in values.items()}
    types |= {item.name: item.data_type for item in graph.initializer}
    for item in graph.input:
        if not _is_static(item):
            raise EngineError(
                f"compute capability 7.5 needs fixed shapes: input {item.name} has {_shape(item)}"
            )
    for node in graph.node:
        for name in node.output:
            if name and (name not in values or not _is_static(values[name])):
                shape = _shape(values[name]) if name in values else "an unknown shape"
                raise EngineError(
                    f"compute capability 7.5 needs fixed shapes: {node.op_type} {node.name or name} gives {shape}"
                )
        for name in filter(None, node.input if node.op_type in _PRODUCTS else ()):
            kind = types.get(name, onnx.TensorProto.UNDEFINED)
            if kind != onnx.TensorProto.FLOAT16:
                raise EngineError(
                    f"compute capability 7.5 needs float16 products: {node.op_type} {node.name or node.output[0]} "
                    f"reads {name} in {onnx.TensorProto.DataType.Name(kind)}; export with precision='fp16'"
                )


class Context(OpenGpuContext):
    def __init__(self, engine: Engine, context: Any, log: Any, kernels: _Kernels | None) -> None:
        super().__init__(engine)
        self._context, self._log, self._kernels = context, log, kernels

    def _enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise EngineError(f"{self._engine}: running failed: {self._log.take()}")
        if self._kernels is not None:
            # By now the kernels are compiled, and the first run is in no capture.
            self._kernels.keep()
            self._kernels = None

    def _release(self) -> None:
        self._context = self._kernels = None


class Engine(OpenGpuEngine):
    def __init__(
        self,
        kind: Flavour,
        runtime: Any,
        engine: Any,
        kernels: _Kernels | None,
        ports: Mapping[str, TensorSpec],
        path: Path,
        precision: str,
        device: int,
    ) -> None:
        self.name = kind.name
        super().__init__(
            ports, device, {"version": kind.version(), "precision": precision, "path": str(path)}
        )
        self._runtime, self._loaded, self._kernels = runtime, engine, kernels
        self._log = _log_of(kind.package())

    def _bind_device(self, images: int, mask_logits: int, class_logits: int, stream: int) -> Context:
        self._log.take()
        with _current(self.device):
            # All contexts of an engine share its weights.
            context = (
                self._loaded.create_execution_context()
                if self._kernels is None
                else self._loaded.create_execution_context(self._kernels.config)
            )
            if context is None:
                raise EngineError(f"{self.name}: no room for another context: {self._log.take()}")
            for name, address in {INPUT: images, OUTPUTS[0]: mask_logits, OUTPUTS[1]: class_logits}.items():
                if not context.set_tensor_address(name, address):
                    raise EngineError(f"{self.name}: refuses {address:#x} for {name}: {self._log.take()}")
        return Context(self, context, self._log, self._kernels)

    def _unload(self) -> None:
        self._kernels = self._loaded = self._runtime = None


class _Kernels:
    """What TensorRT-RTX compiles for the GPU when an engine is loaded, shared by its contexts and kept on the disk."""

    def __init__(self, trt: Any, engine: Any, path: Path, engine_sha256: str) -> None:
        self._path, self._lock, self._done = path, SignalSafeLock(), False
        # TensorRT-RTX itself refuses kernels of another version, driver or GPU.
        self._depends = {"engine_sha256": engine_sha256}
        self._found = _kept(path, self._depends)
        self.config = engine.create_runtime_config()
        # A frame is one graph already, which the engine's work becomes a part of.
        self.config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        # Nothing may be compiled, or exchanged for something better, after the first run.
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        self.config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        self._cache = self.config.create_runtime_cache()
        if self._found and not self._cache.deserialize(self._found):
            _log.info("%s is compiled again: TensorRT-RTX, the driver or the GPU changed", path)
        self.config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Writes them where they are not there yet; once."""
        with self._lock:
            if self._done:
                return
            self._done = True
            data = self._cache.serialize()
            if data is None:
                _log.warning("%s is not kept: TensorRT-RTX does not give its kernels", self._path)
            elif bytes(data) != self._found:
                _keep(self._path, self._depends, bytes(data))


def _kept(path: Path, depends: Mapping[str, Any]) -> bytes:
    """What :func:`_keep` put there; b"" where that is missing, damaged, or made of something else."""
    try:
        record, data = cache.Record.read(cache.record_path(path)), path.read_bytes()
    except (OSError, ValueError):
        return b""
    whole = hashlib.sha256(data).hexdigest() == record.sha256
    return data if whole and record.depends == {**depends, "sha256": record.sha256} else b""


def _keep(path: Path, depends: Mapping[str, Any], data: bytes) -> None:
    """Puts bytes into the cache. Where that fails, only the next start is slower."""

    def write(place: Path) -> None:
        place.write_bytes(data)

    try:
        cache.artefact(path, {**depends, "sha256": hashlib.sha256(data).hexdigest()}, write)
    except (FaiFastError, OSError) as error:
        _log.warning("%s is not kept: %s", path, error)


@contextmanager
def _current(device: int | None) -> Iterator[None]:
    """Makes a GPU the one that this thread uses, which is where TensorRT builds, loads and allocates."""
    if device is None:
        yield
        return
    entered = _core.enter_cuda_device(device)
    try:
        yield
    finally:
        _core.leave_cuda_device(entered)


def _target(device: int) -> str:
    major, minor = gpu.device(device).compute_capability
    return f"sm{major}{minor}"


@remembered
def _log_of(trt: Any) -> Any:
    """TensorRT's logger, which must outlive all that is made with it: errors for exceptions, the rest for debugging."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._errors: deque[str] = deque(maxlen=8)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self._errors.append(message)
            elif severity in (trt.ILogger.WARNING, trt.ILogger.INFO):
                _log.debug("%s: %s", trt.__name__, message)

        def take(self) -> str:
            """The errors since the last call, in a line."""
            lines = []
            while self._errors:
                lines.append(self._errors.popleft().strip())
            return "; ".join(lines) or "it does not say why"

    return Log()


def _is_static(item: Any) -> bool:
    shape = item.type.tensor_type
    return shape.HasField("shape") and all(side.dim_value > 0 for side in shape.shape.dim)


def _shape(item: Any) -> str:
    kind = item.type.tensor_type
    if not kind.HasField("shape"):
        return "an unknown shape"
    sides = [str(side.dim_value) if side.dim_value > 0 else side.dim_param or "?" for side in kind.shape.dim]
    return f"({', '.join(sides)})"
