"""GPU engines: their life cycle and logic with stand-ins for the GPU, and what they compute where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from types import ModuleType, SimpleNamespace

import fai_fast
import numpy as np
import pytest
from fai_fast import _core, _forks, _gate
from fai_fast._pictures import Pictures
from fai_fast.engines import gpu, onnxruntime_cuda, torch_cuda
from fai_fast.engines.base import TensorSpec
from fai_fast.errors import CudaError, EngineError
from fai_fast.weights import Weights, load_weights
from helpers.networks import small_spec
from helpers.onnx_graphs import QUERIES, graph, truth
from helpers.torch_host import FakeGraph, array_at, frame_graph, with_torch, with_two_gpus

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from fai_fast import reference  # noqa: E402
from fai_fast.reference.deployed import Deployed, FoldedConv  # noqa: E402
from helpers import families, torch_modules  # noqa: E402
from helpers.golden_forward import golden_state  # noqa: E402

NAMES = ("images", "mask_logits", "class_logits")
LONG = 60


def has_gpu():
    """Whether both PyTorch and fai_fast have one; an emulated one is fai_fast's alone."""
    try:
        return torch.cuda.is_available() and bool(_core.cuda_devices())
    except CudaError:
        return False


HAS_GPU = has_gpu()


def needs_gpu(test):
    """One whose memory PyTorch shares, which the emulator's is not."""
    missing = not HAS_GPU and os.environ.get("FAI_FAST_REQUIRE_GPU") != "1"
    return pytest.mark.gpu(pytest.mark.skipif(missing, reason="needs an NVIDIA GPU")(test))


needs_onnxruntime = pytest.mark.skipif(
    not importlib.util.find_spec("onnxruntime"), reason="onnxruntime is not installed"
)


@pytest.fixture
def host(monkeypatch):
    """Two GPUs, whose memory is the host's."""
    return with_two_gpus(monkeypatch)


PORTS = {
    "images": TensorSpec("images", "float16", (2, 3, 8, 8)),
    "mask_logits": TensorSpec("mask_logits", "float32", (2, 5, 4, 4)),
    "class_logits": TensorSpec("class_logits", "float32", (2, 5, 3)),
}


class MeanContext(gpu.OpenGpuContext):
    def __init__(self, engine, addresses):
        super().__init__(engine)
        self.addresses, self.problem, self.streams, self.released = addresses, engine.problem, [], 0

    def _enqueue(self, stream):
        if self.problem:
            raise self.problem
        self.streams.append(stream)
        images, masks, classes = (
            array_at(address, port.shape, port.dtype)
            for address, port in zip(self.addresses, PORTS.values(), strict=True)
        )
        masks[...] = images.astype(np.float32).mean((1, 2, 3))[:, None, None, None]
        classes[...] = images.astype(np.float32).max()

    def _release(self):
        self.released += 1


class MeanEngine(gpu.OpenGpuEngine):
    """Its masks are the mean of each image, its class logits the largest value."""

    name = "mean"
    problem = None

    def __init__(self, device=0):
        super().__init__(PORTS, device, {"version": "1", "precision": "fp16", "path": None})
        self.unloaded = 0

    def _bind_device(self, images, mask_logits, class_logits, stream):
        if self.problem == "binding":
            raise OSError("no room")
        return MeanContext(self, (images, mask_logits, class_logits))

    def _unload(self):
        self.unloaded += 1


# What all GPU engines share


def test_devices(host):
    first, second = gpu.devices()
    assert (first.index, second.index) == (0, 1)
    assert (first.name, first.compute_capability, first.memory) == ("NVIDIA H200", (9, 0), 141 << 30)
    assert gpu.device(1) == second
    with pytest.raises(CudaError, match=r"got cuda:2, expected one of cuda:0 \(NVIDIA H200\), cuda:1 "):
        gpu.device(2)
    assert gpu.depends(0) == {"gpu": "NVIDIA H200", "compute_capability": "9.0", "driver": "13.0"}


def test_devices_say_why_there_are_none(monkeypatch):
    def devices():
        raise CudaError("no NVIDIA driver")

    monkeypatch.setattr(_core, "cuda_devices", devices)
    for call in (gpu.devices, lambda: gpu.device(0), MeanEngine):
        with pytest.raises(CudaError, match=r"^no NVIDIA driver$"):
            call()


def test_a_gpu_engine_runs_between_arrays(host):
    engine = MeanEngine(device=1)
    assert (engine.device, engine.inputs, engine.outputs) == (
        1,
        (PORTS["images"],),
        (PORTS["mask_logits"], PORTS["class_logits"]),
    )
    masks = np.full((2, 5, 4, 4), np.nan, np.float32)
    context = engine.context(mask_logits=masks)
    assert context.mask_logits is masks
    for seed in range(2):
        context.images[...] = np.random.default_rng(seed).normal(size=(2, 3, 8, 8))
        context.run()
        expected = context.images.astype(np.float32).mean((1, 2, 3))
        np.testing.assert_allclose(
            masks, np.broadcast_to(expected[:, None, None, None], masks.shape), rtol=1e-5
        )
        assert np.all(context.class_logits == context.images.max())
    spec = context._graph.spec
    assert (spec["device"], spec["batch"], spec["size"], spec["dtype"]) == (1, 2, (8, 8), "float16")
    assert (spec["mask_logits"], spec["class_logits"]) == ((5, 4, 4), (5, 3))
    assert (spec["mean"], spec["std"]) == ((0, 0, 0), (1, 1, 1))
    assert context._context.streams == [77, 77]


def test_the_gate_runs_gpu_engines(host):
    """Of a batch of two, which the four pictures fill twice."""
    spec = small_spec("fai_mf", "instance")
    found = _gate.verify(MeanEngine(), MeanEngine(1), Pictures.drawn((8, 8)), spec)
    assert (found.metric, found.value) == ("signal-to-noise ratio", 99)
    assert found.of == "the logits of the 20 surest queries"


def test_info(host):
    info = MeanEngine(device=1).info()
    assert json.loads(json.dumps(info)) == info
    assert info["engine"] == "mean"
    assert (info["device"], info["device_name"], info["compute_capability"]) == (
        "cuda:1",
        "NVIDIA H200",
        "9.0",
    )
    assert info["inputs"] == {"images": "float16 (2, 3, 8, 8)"}
    assert info["threads"] is None


def test_capture_is_the_frame_graphs(host):
    engine, graph = MeanEngine(), frame_graph(PORTS)
    context = engine.bind(graph.images, graph.mask_logits, graph.class_logits, graph.stream)
    assert context.capture(graph) is None
    assert graph.calls == ["captured"]
    assert context.streams == [77]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"images": None}, TypeError, "images: got NoneType, expected an int"),
        ({"mask_logits": 1.0}, TypeError, "mask_logits: got float"),
        ({"class_logits": 0}, ValueError, "class_logits: got 0, expected the address"),
        ({"images": -8}, ValueError, "images: got -8"),
        ({"stream": "0"}, TypeError, "stream: got str"),
    ],
)
def test_addresses_are_checked(host, changes, error, words):
    good = {"images": 256, "mask_logits": 512, "class_logits": 768, "stream": 0}
    with pytest.raises(error, match=words):
        MeanEngine().bind(**{**good, **changes})


def test_errors_name_the_engine_and_keep_their_kind(host):
    engine = MeanEngine()
    for problem, error, words in (
        (RuntimeError("the kernel failed"), EngineError, "^mean: running failed: the kernel failed$"),
        (CudaError("out of memory"), CudaError, "^out of memory$"),
    ):
        engine.problem = problem
        context = engine.context()
        with pytest.raises(error, match=words) as raised:
            context.run()
        assert type(raised.value) is error
        graph = frame_graph(PORTS)
        bound = engine.bind(graph.images, graph.mask_logits, graph.class_logits, 77)
        with pytest.raises(error, match=words):
            bound.enqueue(77)
        with pytest.raises(error, match=words):
            bound.capture(graph)
    engine.problem = "binding"
    with pytest.raises(EngineError, match=r"^mean: binding the buffers failed: no room$"):
        engine.context()
    with pytest.raises(EngineError, match=r"^mean: binding the buffers failed: no room$"):
        engine.bind(256, 512, 768, 0)


def test_closing(host):
    engine = MeanEngine()
    one, two = engine.context(), engine.context()
    graph = frame_graph(PORTS)
    bound = engine.bind(graph.images, graph.mask_logits, graph.class_logits, 77)
    bound.enqueue(77)
    inner, device_memory = one._context, one._graph
    one.close()
    one.close()
    assert (inner.released, device_memory.closed) == (1, True)
    with pytest.raises(EngineError, match="mean: the context is closed"):
        one.run()
    two.run()
    engine.close()
    engine.close()
    assert (bound.released, engine.unloaded) == (1, 1)
    with pytest.raises(EngineError, match=r"mean: the context is closed, make another with engine\.bind"):
        bound.enqueue(77)
    with pytest.raises(EngineError, match="mean: the context is closed"):
        bound.capture(graph)
    with pytest.raises(EngineError, match="mean: the context is closed"):
        two.run()
    for bind in (engine.context, lambda: engine.bind(256, 512, 768, 0)):
        with pytest.raises(EngineError, match="mean: the engine is closed, load it again"):
            bind()


def test_contexts_in_several_threads(host):
    engine, wrong = MeanEngine(), []

    def work(seed):
        context = engine.context()
        for i in range(50):
            context.images[...] = seed + i
            context.run()
            if not np.all(context.mask_logits == seed + i):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(100 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_is_told_and_destroys_nothing(host, monkeypatch):
    engine = MeanEngine()
    graph = frame_graph(PORTS)
    bound = engine.bind(graph.images, graph.mask_logits, graph.class_logits, 77)
    context = engine.context()
    # As in a child, without one: pytest's own threads and files are better not forked.
    monkeypatch.setattr(os, "getpid", lambda: -1)
    for use in (lambda: bound.enqueue(77), lambda: bound.capture(graph), context.run, engine.context):
        with pytest.raises(EngineError, match="this process was forked after the engine was loaded"):
            use()
    with pytest.raises(EngineError, match="this process was forked"):
        engine.bind(256, 512, 768, 0)
    engine.close()
    bound.close()
    assert (bound.released, engine.unloaded) == (0, 0)
    kept = []
    monkeypatch.setattr(_forks, "keep_for_ever", kept.append)
    _forks._keep_inherited()
    assert bound in kept


# The network that torch-cuda runs


@pytest.mark.parametrize("name", ["bisenetformer-m-ade", "fai-mf-m-ade", "fai-mf-s-coco-ins"])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_deployed_network_is_the_reference(name, batch):
    """STDC and ResNet, with and without an encoder, both pixel decoders; float64 shows any other formula."""
    network = reference.build(name)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in golden_state(name).items()})
    network.double().eval()
    images = torch.randn(
        batch, 3, 96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(batch)
    )
    with torch.inference_mode():
        expected = network.predict(images)[-1]
        mask_logits, class_logits = Deployed(network, (96, 64)).double()(images)
    torch.testing.assert_close(mask_logits, expected.mask_logits, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(class_logits, expected.class_logits, atol=1e-9, rtol=1e-9)


def test_a_query_whose_places_are_all_blocked_looks_everywhere():
    weights = shapes_weights()
    state = {key: value.copy() for key, value in weights.state.items()}
    bias = "head.predictor.forward_prediction_heads.mask_classifier.layers.2"
    # Mask features and embeddings of opposite signs: every mask logit of every layer is negative.
    state[f"{bias}.weight"][...], state[f"{bias}.bias"][...] = 0, -1
    state["pixel_decoder.mask_features.weight"][...], state["pixel_decoder.mask_features.bias"][...] = 0, 1
    network = reference.build(weights.spec)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    network.eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network.predict(images)[-1]
        assert bool((expected.mask_logits < 0).all())
        _, class_logits = Deployed(network, (64, 64))(images)
    torch.testing.assert_close(class_logits, expected.class_logits, atol=2e-3, rtol=0)


def shapes_weights() -> Weights:
    return load_weights("fai-mf-n-shapes")


def on_cpu(name, batch=1, size=(64, 96)):
    """torch_cuda's run of the model in the package, between NumPy arrays."""
    weights = shapes_weights()
    network = torch_cuda.build(weights, size, name)
    dtype = np.dtype({"fp16": np.float16, "fp32": np.float32}[name])
    config = weights.spec.config
    arrays = {
        "images": np.zeros((batch, 3, *size), dtype),
        "mask_logits": np.full((batch, config.num_queries, size[0] // 4, size[1] // 4), np.nan, dtype),
        "class_logits": np.full((batch, config.num_queries, config.num_classes + 1), np.nan, dtype),
    }
    return torch_cuda.Run(network, {key: torch.from_numpy(array) for key, array in arrays.items()}), arrays


class Between:
    """A run between arrays, as _gate.verify wants an engine."""

    def __init__(self, name):
        self.run, self.arrays = on_cpu(name)
        self.inputs = (TensorSpec("images", "", self.arrays["images"].shape),)
        self.images, self.mask_logits, self.class_logits = (self.arrays[name] for name in NAMES)

    def context(self):
        return self

    def close(self):
        pass


@pytest.mark.parametrize("batch", [1, 2])
def test_a_run_writes_into_the_given_buffers(batch):
    run, arrays = on_cpu("fp32", batch)
    weights = shapes_weights()
    network = reference.build(weights.spec)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in weights.state.items()})
    network.eval()
    for seed in range(2):
        arrays["images"][...] = np.random.default_rng(seed).normal(size=arrays["images"].shape)
        run()
        with torch.inference_mode():
            expected = network.predict(torch.from_numpy(arrays["images"]))[-1]
        for name, value in expected._asdict().items():
            np.testing.assert_allclose(arrays[name], value.numpy(), atol=2e-3)


def test_autocast_of_the_program_changes_nothing():
    run, arrays = on_cpu("fp32")
    arrays["images"][...] = np.random.default_rng(0).normal(size=arrays["images"].shape)
    run()
    expected = arrays["mask_logits"].copy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run()
    assert np.array_equal(arrays["mask_logits"], expected)


def test_fp16_agrees_with_fp32():
    half, exact = Between("fp16"), Between("fp32")
    assert half.arrays["mask_logits"].dtype == np.float16
    found = _gate.verify(half, exact, Pictures.drawn((64, 96)), shapes_weights().spec)
    assert found.holds, str(found)


def test_nothing_of_the_network_waits_for_values():
    """What a graph cannot hold is an error already where there are no values: on the meta device."""
    network = torch_cuda.build(shapes_weights(), (64, 96), "fp32").to("meta")
    images = torch.zeros(1, 3, 64, 96, device="meta")
    masks, classes = network(images)
    assert (masks.shape, classes.shape) == ((1, 25, 16, 24), (1, 25, 7))


@pytest.mark.parametrize(
    ("kernel", "works"),
    [
        (lambda right: right, True),
        (lambda right: right * 1.001, True),
        (lambda right: right + 1, False),
        (lambda right: right * torch.nan, False),
        (RuntimeError("unable to find an engine"), False),
        (torch.cuda.OutOfMemoryError("no room"), None),
    ],
)
@pytest.mark.parametrize("add", [None, torch.ones(1, 5, 8, 8)])
def test_a_kernel_of_cudnns_is_used_only_where_it_is_right(monkeypatch, kernel, works, add):
    torch.manual_seed(1)
    conv = FoldedConv(torch.nn.Conv2d(4, 5, 3, padding=1), torch.nn.BatchNorm2d(5).eval(), relu=True)
    assert conv.fused is None

    def in_one(x, add):
        if isinstance(kernel, Exception):
            raise kernel
        return kernel(conv._in_turn(x, add))

    monkeypatch.setattr(conv, "_in_one", in_one)
    with torch.inference_mode():
        x = torch.randn(1, 4, 8, 8)
        if works is None:
            with pytest.raises(torch.cuda.OutOfMemoryError):
                conv._works_in_one(x, add)
        else:
            assert conv._works_in_one(x, add) is works


# torch-cuda around it


@pytest.mark.parametrize("left", ["as they are", "TensorFloat-32 everywhere", "by the newer interface"])
def test_the_switches_are_put_back(left):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    owners = (cudnn.conv, cudnn.rnn, matmul)

    def state():
        return cudnn.benchmark, *(owner.fp32_precision == "tf32" for owner in (cudnn.conv, matmul))

    default = [owner.fp32_precision for owner in owners]
    try:
        if left != "as they are":
            matmul.fp32_precision = "tf32"
        if left == "by the newer interface":
            cudnn.rnn.fp32_precision = "ieee"  # which the older one cannot say
        before = state()
        with torch_cuda.switches("fp16"):
            assert state() == (True, *before[1:])
        assert state() == before
        inside = []

        def interrupted():
            with torch_cuda.switches("fp32"):
                inside.append(state())
                raise KeyError

        with pytest.raises(KeyError):
            interrupted()
        assert inside == [(True, False, False)]
        assert state() == before
    finally:
        for owner, value in zip(owners, default, strict=True):
            owner.fp32_precision = value


def test_device_memory_is_described_as_pytorch_takes_it():
    described = torch_cuda.DeviceArray(4096, PORTS["images"]).__cuda_array_interface__
    assert described == {
        "shape": (2, 3, 8, 8),
        "typestr": "<f2",
        "data": (4096, False),
        "strides": None,
        "version": 3,
    }


@pytest.fixture
def torch_host(host, monkeypatch):
    """torch-cuda with the host's memory, and PyTorch's graphs replaced by an account of what happens."""
    account = with_torch(monkeypatch)
    weights = shapes_weights()
    ports = {
        name: TensorSpec(name, "float32", shape)
        for name, shape in zip(NAMES, [(1, 3, 64, 96), (1, 25, 16, 24), (1, 25, 7)], strict=True)
    }
    info = {"version": "2.13", "precision": "fp32", "path": None}
    engine = torch_cuda.Engine(torch_cuda.build(weights, (64, 96), "fp32"), ports, 0, info)
    return SimpleNamespace(engine=engine, graph=frame_graph(ports), **vars(account))


def bound(machine):
    graph = machine.graph
    return machine.engine.bind(graph.images, graph.mask_logits, graph.class_logits, graph.stream)


def test_torch_enqueues_between_the_addresses(torch_host):
    context = torch_host.engine.context()
    context.images[...] = np.random.default_rng(0).normal(size=context.images.shape)
    context.run()
    run, arrays = on_cpu("fp32")
    arrays["images"][...] = context.images
    run()
    np.testing.assert_array_equal(context.mask_logits, arrays["mask_logits"])
    np.testing.assert_array_equal(context.class_logits, arrays["class_logits"])
    assert torch_host.events[:3] == ["on 77", "run", "off"]
    torch_host.engine.close()
    assert torch_host.events[-1] == "empty_cache"
    with pytest.raises(EngineError, match="torch-cuda: the context is closed"):
        context.run()


def test_torch_captures_a_whole_frame(torch_host):
    context = bound(torch_host)
    torch_host.graph.calls = torch_host.events  # one account of both
    assert context.capture(torch_host.graph) is None
    assert torch_host.events == [
        "on None",  # what libraries allocate for the captured stream must be the graph's
        *["run"] * 3,
        "synchronize",
        "off",
        "on 77",
        "begin",
        "before",
        "run",
        "after",
        "end",
        "off",
        ("adopted", 4242),
    ]
    graph, run = torch_host.graph.owner
    assert isinstance(graph, FakeGraph)
    assert run is context._run


@pytest.mark.parametrize(
    ("fail", "at_end", "reason"),
    [
        (RuntimeError("operation not permitted"), "capture invalidated", "operation not permitted"),
        (None, "capture invalidated", "capture invalidated"),
        (RuntimeError("operation not permitted"), None, "operation not permitted"),
    ],
)
def test_what_cannot_be_captured_runs_without(torch_host, caplog, fail, at_end, reason):
    torch_host.state.fail, torch_host.state.fail_at_end = fail, at_end
    context = bound(torch_host)
    assert context.capture(torch_host.graph) == reason
    assert torch_host.graph.calls[-1] == "uncaptured"
    assert [record.getMessage() for record in caplog.records] == [
        f"torch-cuda: the frame cannot be captured, and runs without: {reason}"
    ]
    torch_host.state.fail = None
    torch_host.graph.enqueue(torch_host.graph.stream)
    assert torch_host.events[-1] == "run" or torch_host.events[-2:] == ["run", "off"]
    assert np.isfinite(torch_host.graph.memory["mask_logits"]).all()


def test_a_graph_that_cannot_be_instantiated_runs_without(torch_host, caplog):
    def adopt(graph, owner):
        raise CudaError("cudaGraphInstantiate failed: cudaErrorNotSupported")

    torch_host.graph.adopt = adopt
    assert "cudaErrorNotSupported" in bound(torch_host).capture(torch_host.graph)
    assert torch_host.graph.calls[-1] == "uncaptured"
    assert "cudaErrorNotSupported" in caplog.text


def test_a_torch_that_keeps_its_graphs(torch_host):
    torch_host.torch.cuda.CUDAGraph = object
    torch_host.torch.__version__ = "2.7.1"
    why = bound(torch_host).capture(torch_host.graph)
    assert why == "PyTorch 2.7.1 keeps its graphs to itself: install torch>=2.8"
    assert torch_host.graph.calls == ["uncaptured"]
    assert torch_host.events == []


def test_out_of_memory_is_a_cuda_error(torch_host):
    torch_host.state.fail = torch.cuda.OutOfMemoryError("Tried to allocate 20 MiB.")
    torch_host.events.append("begin")
    with pytest.raises(
        CudaError, match=r"torch-cuda: the GPU's memory is used up \(Tried to allocate 20 MiB"
    ):
        bound(torch_host).enqueue(77)


def test_torch_without_cuda(monkeypatch):
    fake = SimpleNamespace(__version__="2.13.0+cpu", version=SimpleNamespace(cuda=None))
    monkeypatch.setattr(torch_cuda.importlib, "import_module", lambda name: fake)
    with pytest.raises(EngineError, match=r"torch-cuda: PyTorch 2\.13\.0\+cpu was built without CUDA"):
        torch_cuda.version()

    def missing(name):
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(torch_cuda.importlib, "import_module", missing)
    with pytest.raises(
        EngineError, match=r"torch-cuda: cannot be imported .*pip install 'fai-fast\[torch\]'"
    ):
        torch_cuda.version()


@pytest.mark.parametrize("module", [torch_cuda, onnxruntime_cuda])
def test_precisions_are_those_of_the_gpu(host, module):
    assert module.native_precisions(0) == ("fp16", "fp32")
    host[1]["compute_capability"] = (6, 1)
    assert module.native_precisions(1) == ("fp32",)


def test_torch_depends_on_the_gpu_and_the_libraries(torch_host, monkeypatch):
    depends = torch_cuda.depends("fp16", 0)
    assert json.loads(json.dumps(depends)) == depends
    assert depends["engine"] == "torch-cuda"
    assert (depends["gpu"], depends["driver"], depends["cuda"]) == ("NVIDIA H200", "13.0", "13.0")
    assert torch_cuda.depends("fp32", 0) != depends


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"precision": "bf16"}, ValueError, "precision: got 'bf16', expected one of 'fp16', 'fp32'"),
        ({"size": (64, 100)}, ValueError, r"size: got \(64, 100\), expected multiples of 32"),
        ({"size": 64}, TypeError, "size: got 64"),
        ({"batch": 0}, ValueError, "batch: got 0"),
        ({"device": 5}, CudaError, "got cuda:5, expected one of cuda:0"),
    ],
)
def test_torch_arguments(host, options, error, words):
    arguments = {"size": (64, 64), "batch": 1, "precision": "fp16", "device": 0, **options}
    with pytest.raises(error, match=words):
        torch_cuda.load_weights(shapes_weights(), **arguments)


# onnxruntime-cuda


class CpuSession:
    """A session of ONNX Runtime that says it is on the GPU, whose memory is the host's."""

    def __init__(self, session, providers):
        self.session, self.providers = session, providers
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

    def get_providers(self):
        return self.providers

    def io_binding(self):
        binding = self.session.io_binding()

        def on_host(bind):
            def call(name, device_type, device_id, element_type, shape, buffer_ptr):
                assert (device_type, device_id) == ("cuda", 0)
                bind(name, "cpu", 0, element_type, shape, buffer_ptr)

            return call

        return SimpleNamespace(
            bind_input=on_host(binding.bind_input), bind_output=on_host(binding.bind_output), real=binding
        )

    def run_with_iobinding(self, binding, options):
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        self.session.run_with_iobinding(binding.real, options)


@pytest.fixture
def ort(host, monkeypatch):
    """onnxruntime-cuda over ONNX Runtime's CPU kernels; gives what sessions were asked for."""
    real = pytest.importorskip("onnxruntime")
    asked = SimpleNamespace(options=[], providers=["CUDAExecutionProvider", "CPUExecutionProvider"])

    def session(path, options, providers, enable_fallback):
        assert enable_fallback is False
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        ((name, provider),) = providers
        assert name == "CUDAExecutionProvider"
        asked.options.append(provider)
        quiet = real.SessionOptions()
        quiet.log_severity_level = 4
        return CpuSession(
            real.InferenceSession(path, quiet, providers=["CPUExecutionProvider"]), asked.providers
        )

    fake = ModuleType("onnxruntime")
    vars(fake).update(
        __version__=real.__version__,
        InferenceSession=session,
        SessionOptions=real.SessionOptions,
        RunOptions=real.RunOptions,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        preload_dlls=lambda: print("a library is missing"),
    )
    monkeypatch.setattr(onnxruntime_cuda.onnxruntime, "imported", lambda engine, install: fake)
    onnxruntime_cuda._preload.cache_clear()
    asked.module = fake
    yield asked
    onnxruntime_cuda._preload.cache_clear()


@pytest.fixture
def file(tmp_path):
    def write(dtype="float32", **options):
        path = tmp_path / f"{dtype}.onnx"
        onnx.save(graph(dtype=dtype, **options)[0], path)
        return path

    return write


@pytest.mark.parametrize(("name", "dtype", "atol"), [("fp32", "float32", 1e-5), ("fp16", "float16", 5e-3)])
def test_onnxruntime_runs_between_the_addresses(ort, file, capfd, name, dtype, atol):
    engine = onnxruntime_cuda.load(file(dtype, batch=2), precision=name)
    context = engine.context()
    for seed in range(2):
        context.images[...] = np.random.default_rng(seed).normal(size=context.images.shape)
        context.run()
        weights = {key: array.astype(dtype) for key, array in graph(batch=2)[1].items()}
        masks, classes = truth(context.images, weights)
        np.testing.assert_allclose(context.mask_logits, masks, atol=atol, rtol=atol)
        np.testing.assert_allclose(context.class_logits, classes, atol=atol, rtol=atol)
    first, second = ort.options
    assert first["device_id"] == second["device_id"] == "0"
    assert "user_compute_stream" not in first
    assert second["user_compute_stream"] == "77"
    assert first.get("use_tf32") == ("0" if name == "fp32" else None)
    assert engine.info()["precision"] == name
    assert capfd.readouterr() == ("", "")


def test_onnxruntime_is_not_captured_and_keeps_to_its_stream(ort, file):
    engine = onnxruntime_cuda.load(file(), precision="fp32")
    frame = frame_graph({port.name: port for port in (*engine.inputs, *engine.outputs)})
    context = engine.bind(frame.images, frame.mask_logits, frame.class_logits, frame.stream)
    assert context.capture(frame) == onnxruntime_cuda._UNCAPTURED
    frame.enqueue(frame.stream)
    assert frame.memory["mask_logits"].shape == (1, QUERIES, 8, 8)
    with pytest.raises(EngineError, match="onnxruntime-cuda: running failed: stream: got 0x5, expected 0x4d"):
        context.enqueue(5)
    engine.close()
    with pytest.raises(EngineError, match="the context is closed"):
        context.enqueue(frame.stream)


def test_onnxruntime_never_falls_back_to_the_cpu(ort, file):
    ort.providers = ["CPUExecutionProvider"]
    with pytest.raises(EngineError, match="onnxruntime-cuda: the CUDA provider did not start"):
        onnxruntime_cuda.load(file(), precision="fp32")
    ort.module.get_available_providers = lambda: ["CPUExecutionProvider"]
    with pytest.raises(EngineError, match=r"was built without CUDA.*'onnxruntime-gpu'"):
        onnxruntime_cuda.version()


@needs_onnxruntime
def test_a_node_for_the_cpu_is_refused(file, monkeypatch):
    """ONNX Runtime itself, which has no CUDA here: every node would run on the CPU."""
    if has_gpu():
        pytest.skip("this machine's ONNX Runtime may have CUDA")
    import onnxruntime as real

    options = real.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(Exception, match="assigned to the default CPU EP, but fallback"):
        real.InferenceSession(str(file()), options)


def test_a_graph_of_another_precision(ort, file):
    with pytest.raises(EngineError, match=r"has images float32 .*, expected float16 for precision 'fp16'"):
        onnxruntime_cuda.load(file(), precision="fp16")


def test_files_that_are_no_graph(ort, tmp_path, file):
    (tmp_path / "broken.onnx").write_bytes(b"hello world")
    with pytest.raises(EngineError, match=r"onnxruntime-cuda: .*broken\.onnx cannot be loaded: "):
        onnxruntime_cuda.load(tmp_path / "broken.onnx")
    with pytest.raises(EngineError, match="is not there"):
        onnxruntime_cuda.load(tmp_path / "nowhere.onnx")
    with pytest.raises(ValueError, match="precision: got 'bf16'"):
        onnxruntime_cuda.load(file(), precision="bf16")
    with pytest.raises(CudaError, match="got cuda:9"):
        onnxruntime_cuda.load(file(), device=9)


def test_onnxruntime_depends_on_the_gpu(ort):
    depends = onnxruntime_cuda.depends("fp16", 1)
    assert json.loads(json.dumps(depends)) == depends
    assert depends["compute_capability"] == "9.0"
    assert depends["version"] == ort.module.__version__


# On a GPU


@needs_gpu
@pytest.mark.parametrize("name", ["fp16", "fp32"])
def test_torch_on_the_gpu_agrees_with_the_cpu(name):
    engine = torch_cuda.load_weights(shapes_weights(), (64, 96), precision=name)
    exact = Between("fp32")
    found = _gate.verify(engine, exact, Pictures.drawn((64, 96)), shapes_weights().spec)
    assert found.holds, str(found)
    if name == "fp32":
        context = engine.context()
        context.images[...] = exact.images[...] = np.random.default_rng(0).normal(size=exact.images.shape)
        context.run()
        exact.run()
        probabilities = [1 / (1 + np.exp(-ran.mask_logits)) for ran in (context, exact)]
        assert np.abs(probabilities[0] - probabilities[1]).max() < 1e-3
    assert engine.info()["fused"].split()[0] != "0"
    engine.close()


@needs_gpu
@pytest.mark.parametrize("batch", [1, 3])
def test_torch_is_captured_and_replays_what_it_ran(batch):
    engine = torch_cuda.load_weights(shapes_weights(), (64, 96), batch, precision="fp16")
    masks, classes = engine.outputs
    frame = _core.FrameGraph(
        device=0,
        batch=batch,
        size=(64, 96),
        dtype="float16",
        mask_logits=masks.shape[1:],
        mask_dtype="float16",
        class_logits=classes.shape[1:],
        class_dtype="float16",
        mean=(0.0, 0.0, 0.0),
        std=(255.0, 255.0, 255.0),
        predict_all_pixels=False,
        softmax=True,
    )
    context = engine.bind(frame.images, frame.mask_logits, frame.class_logits, frame.stream)

    def answers():
        found = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            pictures = [rng.integers(0, 255, (64 + 8 * seed, 96, 3), np.uint8) for _ in range(batch)]
            frame.submit(
                [(picture, "rgb", "stretch", "bt601", "limited") for picture in pictures], 0.0, 0.5, False
            )
            assert frame.wait(-1.0)
            found += frame.results(10, False)
        return found

    frame.run_uncaptured(context.enqueue, "to compare")
    expected = answers()
    assert context.capture(frame) is None
    replayed = answers()
    assert len(replayed) == len(expected) == 3 * batch
    for ours, others in zip(replayed, expected, strict=True):
        assert len(ours["query"]) > 0
        for key in ("query", "class_id", "area", "boxes"):
            np.testing.assert_array_equal(ours[key], others[key])
        np.testing.assert_allclose(ours["confidence"], others["confidence"], atol=1e-3)
    context.close()
    frame.close()
    engine.close()


@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_torch_puts_work_on_the_stream_without_waiting():
    engine = torch_cuda.load_weights(shapes_weights(), (64, 96), precision="fp16")
    context = engine.context()
    context.run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        context.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    engine.close()


def module_of(kind):
    """A network of somebody else and how it is loaded: one that needs nothing but PyTorch, and one of transformers."""
    if kind == "module":
        return torch_modules.Small().eval(), {"spec": torch_modules.spec(threshold=0.3)}
    pytest.importorskip("transformers", reason="transformers is not installed")
    return families.small(kind), {"task": "instance"}


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", ["module", "mask2former"])
def test_a_network_of_others_on_the_gpu(kind, precision, tmp_path):
    """The same as PyTorch on the CPU, captured, and on every frame again."""
    module, options = module_of(kind)
    options |= {
        "engine": "torch-cuda",
        "precision": precision,
        "verify_precision": False,
        "im_size": (64, 96),
    }
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (64 + 8 * seed, 96, 3), np.uint8) for seed in range(3)]
    with fai_fast.load(module, batch_size=2, cache_dir=tmp_path, **options) as model:
        assert model.info()["execution"] == "one captured CUDA graph"
        assert model.info()["engine"]["network"].startswith("traced, operation by operation")
        config = model.spec.config
        images = np.concatenate(
            [
                fai_fast.preprocess(frame, (64, 96), mean=config.pixel_mean, std=config.pixel_std)
                for frame in frames[:2]
            ]
        )
        context = model._engine.context()
        context.images[...] = images
        context.run()
        with torch.no_grad():
            found = module(torch.from_numpy(images))
        names = ("masks", "logits") if kind == "module" else ("masks_queries_logits", "class_queries_logits")
        for name, ours in zip(names, (context.mask_logits, context.class_logits), strict=True):
            theirs = (found[name] if kind == "module" else getattr(found, name)).numpy()
            noise = np.sqrt(np.mean((ours.astype(np.float32) - theirs) ** 2) / np.mean(theirs**2))
            # Places within rounding of a threshold inside may be closed in one and open in the other.
            assert noise < (0.02 if precision == "fp32" else 0.05)
        context.close()
        first = model.infer_batch(frames, threshold=0.0)
        assert sum(map(len, first)) > 0
        for ours, again in zip(model.infer_batch(frames, threshold=0.0), first, strict=True):
            # In another slot, for which cuDNN may have chosen another kernel.
            assert abs(len(ours) - len(again)) <= 2
            rows = min(len(ours), len(again))
            np.testing.assert_allclose(ours.confidence[:rows], again.confidence[:rows], atol=0.02)


@needs_gpu
@pytest.mark.parametrize(("name", "dtype"), [("fp32", "float32"), ("fp16", "float16")])
def test_onnxruntime_on_the_gpu(file, name, dtype):
    try:
        onnxruntime_cuda.version()
    except EngineError as error:
        pytest.skip(str(error))
    engine = onnxruntime_cuda.load(file(dtype), precision=name)
    context = engine.context()
    context.images[...] = np.random.default_rng(0).normal(size=context.images.shape)
    context.run()
    masks, _ = truth(context.images, {key: array.astype(dtype) for key, array in graph()[1].items()})
    np.testing.assert_allclose(context.mask_logits, masks, atol=1e-2, rtol=1e-2)
    engine.close()
