"""TensorRT-RTX builds every model's fp16 graph ahead of time, without a GPU, for the cards that matter."""

from __future__ import annotations

import importlib.util
import math

import fai_fast
import numpy as np
import pytest
from fai_fast import _core, _scenes
from fai_fast.engines.tensorrt import flavour
from fai_fast.errors import CudaError, EngineError, ExportError
from fai_fast.exporter import qdq, tensorrt
from fai_fast.exporter.builder import Builder, Value
from fai_fast.exporter.graph import build_graph
from fai_fast.weights import state_shapes
from helpers.golden_forward import golden_parameter

onnx = pytest.importorskip("onnx")
if not any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings")):
    pytest.skip("TensorRT-RTX is not installed: pip install tensorrt-rtx", allow_module_level=True)

# Turing (T4), where every product must be float16; Ampere (A100; RTX 30, Orin's generation); Ada (L4); Blackwell.
TARGETS = ["sm75", "sm80", "sm86", "sm89", "sm120"]
# The same network as bisenetformer-m-ade.
NAMES = [name for name in fai_fast.models() if name != "fai-bf-m-ade"]
QUICK = ("bisenetformer-s-ade", "fai-mf-n-shapes")


def state_of(name):
    return {key: golden_parameter(key, shape) for key, shape in state_shapes(fai_fast.spec(name)).items()}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES],
)
def graph(request, tmp_path_factory):
    """A model's name and its graph, at a camera's shape; written once for all tests."""
    name, path = request.param, tmp_path_factory.mktemp("graph") / "graph.onnx"
    onnx.save(build_graph(fai_fast.spec(name), state_of(name), (384, 640), precision="fp16"), path)
    yield name, path
    path.unlink()


MODERN = [target for target in TARGETS if target != "sm75"]


def test_every_model_builds_for_every_target(graph):
    name, path = graph
    # One engine for all targets costs hardly more than for one of them. Of models that are quick to build, those for
    # Turing, and for all but that, are built alone too.
    for target in ("sm75", MODERN) if name in QUICK else (TARGETS,):
        # With sm75 this begins with the check that every product is float16, every shape fixed.
        engine = tensorrt.build_engine(path, target)
        # The weights, in float16, are in it.
        assert len(engine) > 0.8 * sum(map(math.prod, state_shapes(fai_fast.spec(name)).values())) * 2


def test_every_model_builds_with_int8_convolutions(graph, tmp_path):
    name, path = graph
    # Either kind of target has every second model; of the demo's model all targets are below.
    target = MODERN if NAMES.index(name) % 2 else "sm75"
    # Which scales they are makes no difference to what is built.
    model = onnx.load(path)
    scales = {node.input[0]: 0.05 for node in model.graph.node if node.op_type == "Conv"}
    onnx.save(qdq.quantized(model, scales), tmp_path / "int8.onnx")
    assert len(tensorrt.build_engine(tmp_path / "int8.onnx", target)) > 1_000_000


def test_the_same_network_under_another_name_needs_no_build_of_its_own():
    assert fai_fast.spec("fai-bf-m-ade").config == fai_fast.spec("bisenetformer-m-ade").config


def product(tmp_path, dtype):
    """A graph that is one matrix product, in a file."""
    b = Builder(dtype)
    x = Value("x", (1, 64, 64), np.dtype(dtype))
    y = b.relu(b.matmul(x, b.constant(np.eye(64)[None], "weight"), "product"))
    path = tmp_path / "product.onnx"
    onnx.save(b.model([x], [(y, "y")]), path)
    return path


def test_what_turing_refuses_is_an_error_with_the_reason(tmp_path, monkeypatch):
    assert tensorrt.build_engine(product(tmp_path, np.float16), "sm75")
    single = product(tmp_path, np.float32)
    with pytest.raises(
        ExportError, match=r"cannot build .*product\.onnx: .* MatMul product reads x in FLOAT"
    ):
        tensorrt.build_engine(single, "sm75")
    # TensorRT-RTX itself, without the check before it.
    monkeypatch.setattr("fai_fast.engines.tensorrt.check_for_turing", lambda model: None)
    with pytest.raises(ExportError, match=r"cannot build .*product\.onnx for sm75: (?!it does not say why)"):
        tensorrt.build_engine(single, "sm75")


def test_several_targets_in_one_engine(tmp_path):
    path = product(tmp_path, np.float16)
    assert len(tensorrt.build_engine(path, ["sm86", "sm89"])) > len(tensorrt.build_engine(path, "sm86"))


def test_wrong_arguments_are_named(tmp_path):
    path = product(tmp_path, np.float16)
    with pytest.raises(FileNotFoundError, match=r"onnx_path: no such file"):
        tensorrt.build_engine(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match=r"target: got 'sm10', expected one or more of .*sm75"):
        tensorrt.build_engine(path, "sm10")
    with pytest.raises(ValueError, match=r"target: got none"):
        tensorrt.build_engine(path, [])
    with pytest.raises(TypeError, match=r"target: got 75"):
        tensorrt.build_engine(path, 75)


@pytest.mark.parametrize("target", ["sm75", "sm86"])
def test_a_file_that_is_no_graph_is_an_error_with_the_parsers_reason(target, tmp_path):
    path = tmp_path / "text.onnx"
    path.write_text("no graph")
    with pytest.raises(ExportError, match=r"tensorrt_rtx: cannot read .*text\.onnx: ."):
        tensorrt.build_engine(path, target)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The demo model as one engine for two generations of GPUs, neither of which is here."""
    pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("exported") / "shapes.engine"
    targets = ["sm75", "sm86"]
    return fai_fast.export("fai-mf-n-shapes", path, im_size=(96, 128), format="tensorrt", target=targets)


def test_the_demo_model_is_exported_as_an_engine(exported):
    path = exported.path
    assert sorted(item.name for item in path.parent.iterdir()) == ["shapes.engine", "shapes.engine.json"]
    assert exported.verified
    assert exported.precision == "fp16"
    assert exported.targets == ("sm75", "sm86")
    assert exported.version == f"tensorrt_rtx {flavour('tensorrt_rtx').version()}"
    weights = sum(np.prod(shape) for shape in state_shapes(exported.spec).values())
    assert exported.file_size == path.stat().st_size > 0.8 * 2 * weights
    record = tensorrt.read_record(path)
    assert (record.spec, record.size, record.batch) == (exported.spec, exported.size, 1)
    assert record.verification == exported.verification


def test_the_demo_model_is_exported_in_int8(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    pictures = [_scenes.draw(seed, (192, 192)) for seed in range(16)]
    report = fai_fast.export(
        "fai-mf-n-shapes",
        tmp_path / "shapes.engine",
        precision="int8",
        pictures=pictures,
        format="tensorrt",
        target=TARGETS,
    )
    assert (report.verified, report.precision, report.targets) == (True, "int8", tuple(TARGETS))
    assert tensorrt.read_record(report.path).precision == "int8"


def test_loading_an_engine_without_a_gpu_is_an_error(exported, monkeypatch):
    try:
        found = _core.cuda_devices()
    except CudaError:
        found = []
    if found:
        pytest.skip("there is a GPU here")
    rtx = flavour("tensorrt_rtx")
    with pytest.raises(CudaError):
        rtx.load_blob(exported.path)
    # TensorRT-RTX itself, told that there is one.
    card = {
        "index": 0,
        "name": "T4",
        "compute_capability": (7, 5),
        "memory": 1,
        "multiprocessors": 40,
        "uuid": "1",
    }
    monkeypatch.setattr(_core, "cuda_devices", lambda: [card])
    monkeypatch.setattr(_core, "cuda_versions", lambda: {"driver": "13.0", "toolkit": "13.0"})
    monkeypatch.setattr(_core, "enter_cuda_device", lambda index: False)
    monkeypatch.setattr(_core, "leave_cuda_device", lambda entered: None)
    with pytest.raises(
        EngineError, match=r"tensorrt_rtx: .*shapes\.engine cannot be loaded, build it again: .*CUDA"
    ):
        rtx.load_blob(exported.path)
