"""PyTorch on a GPU: the network itself, for machines without TensorRT."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from fai_fast import _core
from fai_fast._arguments import check_choice, check_int, check_size
from fai_fast._extras import requirement
from fai_fast._foreign import explained
from fai_fast.engines import gpu, torch_module
from fai_fast.engines.base import INPUT, OUTPUTS, PACKAGES, TensorSpec, missing, reason
from fai_fast.engines.gpu import OpenGpuContext, OpenGpuEngine, translated
from fai_fast.errors import CudaError, EngineError

if TYPE_CHECKING:
    import torch

    from fai_fast.weights import Weights

__all__ = [
    "GRAPH_PRECISION",
    "NAME",
    "PRECISIONS",
    "depends",
    "load_module",
    "load_weights",
    "native_precisions",
    "package",
    "version",
]

NAME = "torch-cuda"
GRAPH_PRECISION = None
PRECISIONS = ("fp16", "fp32")
_DTYPES = {"fp16": "float16", "fp32": "float32"}
_STEP = 32  # of the images' sides
_WARM_UP = 3
_TENSOR_CORES = (7, 0)  # the first compute capability whose float16 is faster than its float32 everywhere

# PyTorch's switches are the process's, and one capture may be under way at a time.
_switching = threading.RLock()
_log = logging.getLogger("fai_fast")


def load_weights(
    weights: Weights, size: tuple[int, int], batch: int = 1, *, precision: str = "fp16", device: int = 0
) -> Engine:
    """The network on a GPU, for images of one size.

    Args:
        weights: of the network.
        size: (height, width) of the images, multiples of 32.
        batch: images at once.
        precision: "fp16", or "fp32" without TensorFloat-32.
        device: the CUDA device's index.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or value.
        CudaError: there is no such device, or no memory left on it.
        EngineError: PyTorch is not installed or without CUDA, or cannot use this GPU.
    """
    check_choice("precision", precision, PRECISIONS)
    height, width = check_size("size", size)
    if height % _STEP or width % _STEP:
        raise ValueError(f"size: got {(height, width)}, expected multiples of {_STEP}")
    if check_int("batch", batch) < 1:
        raise ValueError(f"batch: got {batch}, expected at least 1")
    gpu.device(check_int("device", device))
    torch = package()
    place = _place(device)
    with _out_of_memory_told(), translated(NAME, f"cuda:{device} cannot be used"):
        network = build(weights, (height, width), precision).to(place)
        _try(network, (batch, 3, height, width), precision, place)
    spec = weights.spec
    queries, columns = spec.config.num_queries, spec.config.class_columns
    assert queries is not None  # of a network that is built here
    masks = (batch, queries, height // network.stride, width // network.stride)
    ports = _ports(precision, (batch, 3, height, width), masks, (batch, queries, columns))
    fused = "{} of {} convolutions".format(*network.fused())
    info = {**_about(torch, precision), "fused": fused, "weights": weights.source}
    return Engine(network, ports, device, info)


def load_module(
    module: Any,
    size: tuple[int, int],
    batch: int = 1,
    *,
    precision: str = "fp16",
    device: int = 0,
    shown: str = "the module",
) -> Engine:
    """A network of somebody else on a GPU, for images of one size.

    Args:
        module: a ``torch.nn.Module`` on the CPU, from images float32 (B, 3, h, w) of that size and batch to mask logits
            (B, Q, h', w') and class logits (B, Q, K), both float32. An ``fx.GraphModule`` of PyTorch's operations is
            computed in the types that are safe for each; any other in "fp16" by autocast. It stays as it is.
        size: (height, width) of the images.
        batch: images at once.
        precision: "fp16", or "fp32" without TensorFloat-32.
        device: the CUDA device's index.
        shown: what the module is, for errors and :meth:`Engine.info`.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or value.
        CudaError: there is no such device, or no memory left on it.
        EngineError: PyTorch is not installed or without CUDA, cannot use this GPU, or cannot run the module there.
    """
    check_choice("precision", precision, PRECISIONS)
    height, width = check_size("size", size)
    if check_int("batch", batch) < 1:
        raise ValueError(f"batch: got {batch}, expected at least 1")
    gpu.device(check_int("device", device))
    torch = package()
    images = (batch, 3, height, width)
    with _out_of_memory_told(), translated(NAME, f"{shown} cannot be used on cuda:{device}"):
        place = _place(device)
        masks, classes = torch_module.shapes_of(module, images, shown)
        network, form = torch_module.made(module, precision, images, place, shown)
        _try(network, images, precision, place)
    info = {**_about(torch, precision), "network": form, "weights": shown}
    return Engine(network, _ports(precision, images, masks, classes), device, info)


def _place(device: int) -> torch.device:
    import torch

    return torch.device("cuda", device)


def _ports(precision: str, *shapes: tuple[int, ...]) -> dict[str, TensorSpec]:
    """Of the images and both logits, by their shapes."""
    names = (INPUT, *OUTPUTS)
    return {
        name: TensorSpec(name, _DTYPES[precision], shape) for name, shape in zip(names, shapes, strict=True)
    }


def _about(torch: Any, precision: str) -> dict[str, Any]:
    return {
        "version": version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "precision": precision,
        "path": None,
    }


def build(weights: Weights, size: tuple[int, int], precision: str) -> Any:
    """The deployed network with these weights, on the CPU, channels last; float16 for "fp16", else float32."""
    import torch

    from fai_fast import reference
    from fai_fast.reference.deployed import Deployed

    with torch.device("meta"):
        network = reference.build(weights.spec)
    state = {key: torch.tensor(value) for key, value in weights.state.items()}
    network.load_state_dict(state, assign=True)
    # In float64 what is folded together is rounded once.
    deployed = Deployed(network.double().eval(), size)
    deployed.requires_grad_(False).to(getattr(torch, _DTYPES[precision]))
    # The types know no memory_format here.
    return cast(Any, deployed).to(memory_format=torch.channels_last)


def version() -> str:
    """PyTorch's version. Raises EngineError where it cannot be imported, or has no CUDA."""
    text: str = package().__version__
    return text


def native_precisions(device: int = 0) -> tuple[str, ...]:
    """The precisions that the GPU has units for, fastest first. Raises CudaError."""
    return PRECISIONS if gpu.device(device).compute_capability >= _TENSOR_CORES else ("fp32",)


def depends(precision: str, device: int = 0) -> dict[str, Any]:
    """What the network's outputs depend on besides its weights, as JSON values. Raises EngineError."""
    torch = package()
    return {
        "engine": NAME,
        "version": version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "precision": check_choice("precision", precision, PRECISIONS),
        "modules": torch_module.VERSION,
        **gpu.depends(device),
    }


def package() -> Any:
    """PyTorch's own module. Raises EngineError where it cannot be imported, or has no CUDA."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise missing(NAME, requirement("torch"), error) from error
    if torch.version.cuda is None:
        raise EngineError(
            f"{NAME}: PyTorch {torch.__version__} was built without CUDA; install a build with it, see "
            "https://pytorch.org/get-started"
        )
    return torch


class Run:
    """The network between three tensors, on whatever device they are."""

    def __init__(self, network: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        self.network = network
        self.images, self.mask_logits, self.class_logits = (tensors[name] for name in (INPUT, *OUTPUTS))

    def __call__(self) -> None:
        import torch

        # A program's own autocast would compute float32 in something else.
        with torch.inference_mode(), torch.autocast(self.images.device.type, enabled=False):
            mask_logits, class_logits = self.network(self.images)
            self.mask_logits.copy_(mask_logits)
            self.class_logits.copy_(class_logits)


class Context(OpenGpuContext):
    def __init__(self, engine: Engine, run: Run) -> None:
        super().__init__(engine)
        self._run: Run | None = run
        self._device, self._precision = engine.device, engine.precision

    def _enqueue(self, stream: int) -> None:
        assert self._run is not None
        with _out_of_memory_told(), _on(stream, self._device), switches(self._precision):
            self._run()

    def _capture(self, frame_graph: _core.FrameGraph) -> str | None:
        torch = package()
        if not hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph"):
            return frame_graph.run_uncaptured(
                self.enqueue, f"PyTorch {torch.__version__} keeps its graphs to itself: install torch>=2.8"
            )
        assert self._run is not None
        # PyTorch's allocator must know of a capture, so that it is PyTorch that begins and ends it.
        try:
            graph = _captured(torch, frame_graph, self._run, self._device, self._precision)
            # The graph's memory belongs to `graph`, what it reads and writes to the run.
            frame_graph.adopt(graph.raw_cuda_graph(), (graph, self._run))
        except Exception as error:  # whatever PyTorch and its libraries cannot do while a stream is captured
            if not explained(error, *PACKAGES):
                raise
            why = reason(error)
            _log.warning("%s: the frame cannot be captured, and runs without: %s", NAME, why)
            return frame_graph.run_uncaptured(self.enqueue, why)
        return None

    def _release(self) -> None:
        self._run = None


class Engine(OpenGpuEngine):
    name = NAME

    def __init__(
        self, network: Any, ports: Mapping[str, TensorSpec], device: int, info: Mapping[str, Any]
    ) -> None:
        super().__init__(ports, device, info)
        self.precision: str = info["precision"]
        self._network: Any = network

    def _bind_device(self, images: int, mask_logits: int, class_logits: int, stream: int) -> Context:
        addresses = {INPUT: images, OUTPUTS[0]: mask_logits, OUTPUTS[1]: class_logits}
        tensors = {
            name: _tensor(address, self._ports[name], self.device) for name, address in addresses.items()
        }
        return Context(self, Run(self._network, tensors))

    def _unload(self) -> None:
        self._network = None
        package().cuda.empty_cache()


class DeviceArray:
    """Memory of the device, as torch.as_tensor takes it."""

    def __init__(self, address: int, port: TensorSpec) -> None:
        self.__cuda_array_interface__ = {
            "shape": port.shape,
            "typestr": {"float16": "<f2", "float32": "<f4"}[port.dtype],
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def _tensor(address: int, port: TensorSpec, device: int) -> torch.Tensor:
    """Memory of the device as a tensor, in place."""
    import torch

    with torch.cuda.device(device):
        tensor = torch.as_tensor(DeviceArray(address, port), device=torch.device("cuda", device))
    if tensor.data_ptr() != address:
        raise EngineError(f"{NAME}: PyTorch copied {port.name} instead of using it in place")
    return tensor


def _captured(torch: Any, frame_graph: _core.FrameGraph, run: Run, device: int, precision: str) -> Any:
    """A torch.cuda.CUDAGraph of a whole frame."""
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    began: BaseException | None = None
    # Libraries load, allocate and choose their kernels at first use. Not on the stream that is captured: PyTorch gives
    # cuBLAS a workspace for each stream, and that of a captured one must come from the graph's own memory, since other
    # libraries free the rest (torch._C._cuda_clearCublasWorkspaces).
    with _on(None, device) as aside, switches(precision):
        for _ in range(_WARM_UP):
            run()
        aside.synchronize()
    # The outer stream context is left in order also where the capture's own cannot be.
    with _on(frame_graph.stream, device) as stream, switches(precision):
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                try:
                    frame_graph.enqueue_preprocess()
                    run()
                    frame_graph.enqueue_postprocess()
                except BaseException as error:
                    began = error
                    raise
        except BaseException:
            if began is None:
                raise
            raise began from None  # ending a capture that failed fails too, and says less
    return graph


def _try(network: Any, shape: tuple[int, ...], precision: str, place: Any) -> None:
    """Runs the network once: what a GPU or a build of PyTorch lacks is better known now, and kernels are chosen."""
    import torch

    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.cuda.device(place), switches(precision), torch.inference_mode():
        network(noise.to(place, getattr(torch, _DTYPES[precision])))
        torch.cuda.synchronize(place)


@contextmanager
def _on(stream: int | None, device: int) -> Iterator[Any]:
    """Makes a cudaStream_t PyTorch's current stream; None for one of PyTorch's own."""
    import torch

    place = torch.device("cuda", device)
    if stream is None:
        current: Any = cast(Any, torch.cuda.Stream)(place)
    else:
        current = cast(Any, torch.cuda.ExternalStream)(stream, device=place)
    with torch.cuda.stream(current):
        yield current


@contextmanager
def switches(precision: str) -> Iterator[None]:
    """PyTorch's switches as the engine needs them: cuDNN measures which kernels are fastest, and fp32 is float32."""
    import torch

    wanted: list[tuple[Any, str, Any]] = [(torch.backends.cudnn, "benchmark", True)]
    if precision == "fp32":
        wanted += _exact(torch.backends.cudnn, torch.backends.cuda.matmul)
    with _switching:
        before = [getattr(owner, name) for owner, name, _ in wanted]
        try:
            for owner, name, value in wanted:
                setattr(owner, name, value)
            yield
        finally:
            for (owner, name, _), value in zip(wanted, before, strict=True):
                setattr(owner, name, value)


def _exact(cudnn: Any, matmul: Any) -> list[tuple[Any, str, Any]]:
    """What keeps TensorFloat-32 out, in the one of PyTorch's two interfaces that this program has not left."""
    try:
        switches = [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]
        return [switch for switch in switches if getattr(*switch[:2])]
    except RuntimeError:  # since 2.9, where a program has set what the older interface cannot say
        return [(owner, "fp32_precision", "ieee") for owner in (cudnn.conv, matmul)]


@contextmanager
def _out_of_memory_told() -> Iterator[None]:
    """Raises PyTorch's OutOfMemoryError as CudaError."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise CudaError(
            f"{NAME}: the GPU's memory is used up ({reason(error)}); use a smaller batch_size or im_size, or close "
            "other models"
        ) from error
