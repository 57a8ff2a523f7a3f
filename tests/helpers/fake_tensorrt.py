"""Stand-ins for `tensorrt` 10 and 11 and `tensorrt_rtx`: no more than what the adapter uses, and strict about it.

They read real ONNX files. A serialized engine is JSON with the ports; "compiled" kernels and timings are bytes that
grow with what was made. Any attribute that a stand-in does not have is an AttributeError, reading and writing.
"""

from __future__ import annotations

import enum
import json
import types
from dataclasses import dataclass, field

import onnx

MAGIC = b"PLAN"


@dataclass
class World:
    """What a stand-in is told to do, and what was done with it."""

    build_error: str = ""
    enqueue_error: str = ""
    context_error: str = ""
    address_error: str = ""
    gives_kernels: bool = True
    accepts_timing: bool = True
    accepts_kernels: bool = True
    builds: list[dict] = field(default_factory=list)
    done: list[tuple] = field(default_factory=list)
    device: int = 0
    alive: int = 0


class Strict:
    """Only the attributes that the class declares can be set."""

    def __setattr__(self, name, value):
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        object.__setattr__(self, name, value)


def fake(name, version, world, *, strongly_typed=True, rtx=False):
    """A module such as `tensorrt`, of that version, for one test."""
    trt = types.ModuleType(name)
    trt.__version__ = version

    class ILogger:
        class Severity(enum.Enum):
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    class Flag(enum.IntEnum):
        # int(flag) is its bit's number.
        STRONGLY_TYPED = 1

    class NoFlag(enum.IntEnum):
        EXPLICIT_BATCH = 0

    class BuilderFlag(enum.IntEnum):
        TF32 = 6

    class ComputeCapability(enum.Enum):
        NONE, CURRENT, SM75, SM80, SM86 = range(5)

    class DataType(enum.Enum):
        FLOAT, HALF, INT64 = range(3)

    class TensorIOMode(enum.Enum):
        NONE, INPUT, OUTPUT = range(3)

    class CudaGraphStrategy(enum.Enum):
        DISABLED, WHOLE_GRAPH_CAPTURE = range(2)

    class DynamicShapesKernelSpecializationStrategy(enum.Enum):
        LAZY, EAGER, NONE = range(3)

    class Bytes(Strict):
        """An IHostMemory: a buffer."""

        def __init__(self, data):
            self._data = data

        def __bytes__(self):
            return self._data

    class Network(Strict):
        def __init__(self, flags):
            self._flags, self._model = flags, None

    class Timing(Strict):
        def __init__(self, data):
            self._data = data

        def serialize(self):
            return Bytes(self._data)

    class Config(Strict):
        if rtx:
            num_compute_capabilities = 0

        def __init__(self):
            self._flags, self._targets, self._timing = {BuilderFlag.TF32}, {}, None

        def clear_flag(self, flag):
            self._flags.discard(BuilderFlag(flag))

        if rtx:

            def set_compute_capability(self, target, index):
                assert index < self.num_compute_capabilities
                self._targets[index] = ComputeCapability(target).name.lower()
                return True

        else:

            def create_timing_cache(self, data):
                return Timing(bytes(data)) if not data or data.startswith(b"timed") else None

            def set_timing_cache(self, timing, ignore_mismatch):
                assert not ignore_mismatch
                accepted = world.accepts_timing or timing._data == b""
                self._timing = timing if accepted else None
                return accepted

            def get_timing_cache(self):
                return self._timing

    class Builder(Strict):
        def __init__(self, logger):
            self._logger = logger

        def create_network(self, flags=0):
            return Network(flags)

        def create_builder_config(self):
            return Config()

        def build_serialized_network(self, network, config):
            self._logger.log(ILogger.INFO, "building")
            world.builds.append(
                {
                    "flags": network._flags,
                    "tf32": BuilderFlag.TF32 in config._flags,
                    "targets": [config._targets[index] for index in sorted(config._targets)],
                    "timed": None if config._timing is None else config._timing._data,
                    "device": world.device,
                }
            )
            if world.build_error:
                self._logger.log(ILogger.ERROR, world.build_error)
                return None
            if config._timing is not None:
                config._timing._data = config._timing._data or b"timed"
                config._timing._data += b"+"
            types_ = {1: "FLOAT", 10: "HALF"}
            ports = [
                [
                    item.name,
                    mode,
                    types_[item.type.tensor_type.elem_type],
                    [side.dim_value for side in item.type.tensor_type.shape.dim],
                ]
                for mode, items in (
                    ("INPUT", network._model.graph.input),
                    ("OUTPUT", network._model.graph.output),
                )
                for item in items
            ]
            return Bytes(MAGIC + json.dumps({"version": version, "ports": ports}).encode())

    class OnnxParser(Strict):
        num_errors = 0

        def __init__(self, network, logger):
            self._network = network

        def parse_from_file(self, path):
            try:
                self._network._model = onnx.load(path)
            except Exception:
                self.num_errors = 1
                return False
            return True

        def get_error(self, index):
            return f"error {index}: no ModelProto"

    class RuntimeCache(Strict):
        def __init__(self):
            self._data = b""

        def deserialize(self, data):
            if not world.accepts_kernels:
                return False
            self._data = bytes(data)
            return True

        def serialize(self):
            return Bytes(self._data) if world.gives_kernels else None

    class RuntimeConfig(Strict):
        cuda_graph_strategy = CudaGraphStrategy.DISABLED
        dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

        def __init__(self):
            self._cache = None

        def create_runtime_cache(self):
            return RuntimeCache()

        def set_runtime_cache(self, cache):
            self._cache = cache
            return True

    class ExecutionContext(Strict):
        def __init__(self, engine, config):
            self._engine, self._config, self._addresses = engine, config, {}
            world.alive += 1

        def __del__(self):
            world.alive -= 1
            world.done.append(("context gone", self._engine is not None))

        def set_tensor_address(self, tensor, address):
            world.done.append(("address", tensor, address))
            if world.address_error:
                self._engine._logger.log(ILogger.ERROR, world.address_error)
                return False
            self._addresses[tensor] = address
            return tensor in {port[0] for port in self._engine._ports}

        def execute_async_v3(self, stream):
            assert len(self._addresses) == 3
            if world.enqueue_error:
                self._engine._logger.log(ILogger.ERROR, world.enqueue_error)
                return False
            if rtx and not self._config._cache._data:
                world.done.append(("compile",))
                self._config._cache._data = b"kernels"
            world.done.append(("enqueue", stream, dict(self._addresses)))
            return True

    class CudaEngine(Strict):
        num_io_tensors = 0

        def __init__(self, ports, logger):
            self._ports, self._logger = ports, logger
            self.num_io_tensors = len(ports)
            world.alive += 1

        def __del__(self):
            world.alive -= 1
            world.done.append(("engine gone",))

        def _port(self, tensor):
            return next(port for port in self._ports if port[0] == tensor)

        def get_tensor_name(self, index):
            return self._ports[index][0]

        def get_tensor_mode(self, tensor):
            return TensorIOMode[self._port(tensor)[1]]

        def get_tensor_dtype(self, tensor):
            return DataType[self._port(tensor)[2]]

        def get_tensor_shape(self, tensor):
            return tuple(self._port(tensor)[3])

        def create_execution_context(self, *config):
            if world.context_error:
                self._logger.log(ILogger.ERROR, world.context_error)
                return None
            assert len(config) == int(rtx)
            world.done.append(("context", world.device))
            return ExecutionContext(self, *config, *(() if rtx else (None,)))

        if rtx:

            def create_runtime_config(self):
                return RuntimeConfig()

    class Runtime(Strict):
        def __init__(self, logger):
            self._logger = logger

        def deserialize_cuda_engine(self, data):
            assert isinstance(data, bytes)
            world.done.append(("deserialize", world.device))
            if not data.startswith(MAGIC):
                self._logger.log(ILogger.ERROR, "magic tag does not match")
                return None
            return CudaEngine(json.loads(data[len(MAGIC) :])["ports"], self._logger)

    for item in (ILogger, BuilderFlag, DataType, TensorIOMode, Builder, OnnxParser, Runtime):
        setattr(trt, item.__name__, item)
    trt.NetworkDefinitionCreationFlag = Flag if strongly_typed else NoFlag
    trt.IBuilderConfig, trt.ICudaEngine, trt.IExecutionContext = Config, CudaEngine, ExecutionContext
    if rtx:
        trt.IRuntimeConfig, trt.IRuntimeCache = RuntimeConfig, RuntimeCache
        for item in (ComputeCapability, CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy):
            setattr(trt, item.__name__, item)
    else:
        trt.ITimingCache = Timing
    return trt


def surface(trt):
    """What a stand-in offers: "IExecutionContext.execute_async_v3", "BuilderFlag.TF32", ..."""
    names = []
    for name, item in vars(trt).items():
        if isinstance(item, type):
            names.append(name)
            names += [f"{name}.{member}" for member in vars(item) if not member.startswith("_")]
    return sorted(names)
