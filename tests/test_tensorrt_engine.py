"""The TensorRT adapter against stand-ins for its packages; tests/gpu has what needs a GPU."""

from __future__ import annotations

import gc
import importlib
import json
import logging
import sys

import fai_fast
import numpy as np
import pytest
from fai_fast import _core, cache
from fai_fast.cli import export as commands
from fai_fast.cli import main
from fai_fast.engines import tensorrt
from fai_fast.errors import CudaError, EngineError, ExportError
from fai_fast.exporter.graph import build_graph
from fai_fast.exporter.tensorrt import TARGETS, read_record
from fai_fast.weights import state_shapes
from helpers.fake_tensorrt import MAGIC, World, fake, surface
from helpers.golden_forward import golden_parameter

onnx = pytest.importorskip("onnx")

CARD = {
    "index": 0,
    "name": "NVIDIA RTX 3090",
    "compute_capability": (8, 6),
    "memory": 24 << 30,
    "multiprocessors": 82,
    "uuid": "GPU-1",
}
T4 = {**CARD, "name": "Tesla T4", "compute_capability": (7, 5)}
KINDS = {
    "tensorrt 10": ("tensorrt", "10.3.0", {}),
    "tensorrt 11": ("tensorrt", "11.4.0", {"strongly_typed": False}),
    "tensorrt_rtx": ("tensorrt_rtx", "1.7.1", {"rtx": True}),
}
ADDRESSES = (0x1000, 0x2000, 0x3000)


class Machine:
    """One GPU, and one stand-in that is installed."""

    def __init__(self, monkeypatch, name, version, options):
        self.world, self.cards, self.driver = World(), [CARD], "13.0"
        self.monkeypatch = monkeypatch
        for absent in ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
            monkeypatch.setitem(sys.modules, absent, None)
        self.install(name, version, options)
        monkeypatch.setattr(_core, "cuda_devices", lambda: self.cards)
        monkeypatch.setattr(_core, "cuda_versions", lambda: {"driver": self.driver, "toolkit": "13.0"})
        monkeypatch.setattr(_core, "enter_cuda_device", self.enter_device)
        monkeypatch.setattr(_core, "leave_cuda_device", self.leave_device)
        self.entered = []
        self.engine = tensorrt.flavour(name)

    def install(self, name, version, options):
        self.monkeypatch.setitem(sys.modules, name, fake(name, version, self.world, **options))

    def enter_device(self, index):
        self.entered.append(self.world.device)
        self.world.device = index
        return True

    def leave_device(self, entered):
        assert entered is True
        self.world.device = self.entered.pop()


@pytest.fixture(params=KINDS)
def machine(request, monkeypatch):
    return Machine(monkeypatch, *KINDS[request.param])


def only(*kinds):
    return pytest.mark.parametrize("machine", kinds, indirect=True)


def info(name, shape, dtype="float16"):
    return onnx.helper.make_tensor_value_info(
        name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
    )


def deployed(path, dtype="float16", batch=1):
    """A graph with the inputs and outputs of a deployed one."""
    weight = onnx.numpy_helper.from_array(np.ones((5, 3, 1, 1), dtype), "weight")
    nodes = [
        onnx.helper.make_node("Conv", ["images", "weight"], ["features"], name="backbone/conv"),
        onnx.helper.make_node(
            "AveragePool", ["features"], ["mask_logits"], kernel_shape=[4, 4], strides=[4, 4]
        ),
        onnx.helper.make_node("ReduceMean", ["features"], ["mean"], axes=[3], keepdims=0),
        onnx.helper.make_node("MatMul", ["mean", "classes"], ["class_logits"], name="head/product"),
    ]
    classes = onnx.numpy_helper.from_array(np.ones((16, 4), dtype), "classes")
    graph = onnx.helper.make_graph(
        nodes,
        "deployed",
        [info("images", (batch, 3, 16, 16), dtype)],
        [info("mask_logits", (batch, 5, 4, 4), dtype), info("class_logits", (batch, 5, 4), dtype)],
        [weight, classes],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, path)
    return path


@pytest.fixture
def graph(tmp_path):
    return deployed(tmp_path / "graph.onnx")


def kept(machine, graph, folder, precision="fp16", device=0):
    """The engine file that _prepare.py has in the cache."""
    engine = machine.engine
    return cache.artefact(
        folder / "m.engine",
        engine.depends(precision, device),
        lambda path: engine.compile_to(graph, path, precision=precision, device=device),
    )


def loaded(machine, graph, folder, precision="fp16", device=0):
    file = kept(machine, graph, folder, precision, device).path
    return machine.engine.load_blob(file, precision=precision, device=device)


# ------------------------------------------------------------------------------------------------- package


def test_the_stand_in_offers_no_more_than_the_package():
    try:
        real = importlib.import_module("tensorrt_rtx_bindings")
    except ImportError:
        pytest.skip("TensorRT-RTX is not installed")
    name, version, options = KINDS["tensorrt_rtx"]
    offered = surface(fake(name, version, World(), **options))
    assert "IExecutionContext.execute_async_v3" in offered
    missing = []
    for path in offered:
        item = real
        for part in path.split("."):
            item = getattr(item, part, None)
        if item is None:
            missing.append(path)
    assert missing == []


def test_one_flavour_for_each_package(machine):
    engine = machine.engine
    assert tensorrt.flavour(engine.name) is engine
    assert engine.GRAPH_PRECISION == {"fp16": "fp16", "fp32": "fp32"}
    with pytest.raises(ValueError, match=r"name: got 'trt', expected one of 'tensorrt', 'tensorrt_rtx'"):
        tensorrt.flavour("trt")


def test_a_package_that_is_not_installed_says_how_to_install_it(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, machine.engine.name, None)
    with pytest.raises(EngineError, match=rf"{machine.engine.name}: cannot be imported \(.*pip install"):
        machine.engine.version()


@only("tensorrt_rtx")
def test_the_bindings_alone_will_do(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", sys.modules["tensorrt_rtx"])
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert machine.engine.version() == "1.7.1"


def test_precisions_follow_the_gpu(machine):
    assert machine.engine.native_precisions(0) == ("fp16", "fp32")
    machine.cards = [T4]
    assert machine.engine.native_precisions(0) == ("fp16",)
    machine.cards = [{**CARD, "name": "Tesla V100", "compute_capability": (7, 0)}]
    with pytest.raises(EngineError, match=r"Tesla V100 has compute capability 7\.0, expected 7\.5"):
        machine.engine.native_precisions(0)


@pytest.mark.parametrize("capability", [(9, 0), (10, 0)])
def test_tensorrt_rtx_says_before_it_builds_where_it_does_not_run(machine, graph, tmp_path, capability):
    machine.cards = [{**CARD, "name": "Hopper", "compute_capability": capability}]
    engine = machine.engine
    calls = [
        lambda: engine.native_precisions(0),
        lambda: engine.build(graph, precision="fp16", device=0),
        lambda: engine.load_blob(graph, device=0),
    ]
    if not engine.ahead_of_time:
        assert calls[0]() == ("fp16", "fp32")
        return
    for call in calls:
        with pytest.raises(EngineError, match=r"^tensorrt_rtx: Hopper has .* TensorRT-RTX does not run"):
            call()
    assert machine.world.builds == []
    # For a GPU elsewhere it builds as before.
    assert engine.build(graph, precision="fp16", targets=["sm86"])


# --------------------------------------------------------------------------------------------------- build


@only("tensorrt 10", "tensorrt 11", "tensorrt_rtx")
def test_networks_are_strongly_typed(machine, graph, tmp_path):
    kept(machine, graph, tmp_path)
    [build] = machine.world.builds
    assert build["flags"] == (0 if machine.engine.version() == "11.4.0" else 1 << 1)
    assert build["targets"] == (["current"] if machine.engine.ahead_of_time else [])


def test_single_precision_is_exact(machine, tmp_path):
    graph = deployed(tmp_path / "graph.onnx", "float32")
    kept(machine, graph, tmp_path, "fp32")
    assert machine.world.builds[0]["tf32"] is False


def test_everything_happens_on_the_device(machine, graph, tmp_path):
    machine.cards = [CARD, {**CARD, "index": 1, "uuid": "GPU-2"}]
    engine = loaded(machine, graph, tmp_path, device=1)
    engine.bind(*ADDRESSES, 7)
    assert machine.world.builds[0]["device"] == 1
    assert ("deserialize", 1) in machine.world.done
    assert ("context", 1) in machine.world.done
    assert machine.world.device == 0
    assert engine.device == 1
    with pytest.raises(CudaError, match=r"got cuda:2, expected one of cuda:0 .*, cuda:1"):
        machine.engine.compile_to(graph, tmp_path / "m.engine", device=2)


def change_driver(machine):
    machine.driver = "13.1"


def change_card(machine):
    machine.cards = [{**CARD, "name": "NVIDIA L4", "compute_capability": (8, 9)}]


def change_version(machine):
    name, _, options = KINDS["tensorrt_rtx"]
    machine.install(name, "1.8.0", options)


def change_builder(machine):
    machine.monkeypatch.setattr(tensorrt, "BUILDER", 2)


@only("tensorrt_rtx")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_driver, "driver was 13.0, is 13.1"),
        (change_card, "gpu was NVIDIA RTX 3090, is NVIDIA L4; compute_capability was 8.6, is 8.9"),
        (change_version, "version was 1.7.1, is 1.8.0"),
        (change_builder, "builder was 1, is 2"),
    ],
)
def test_what_an_engine_depends_on_is_the_reason_to_build_it_again(machine, graph, tmp_path, change, reason):
    assert kept(machine, graph, tmp_path).reason == "not there yet"
    assert not kept(machine, graph, tmp_path).built
    change(machine)
    again = kept(machine, graph, tmp_path)
    assert (again.built, again.reason) == (True, reason)
    machine.engine.load_blob(again.path)


def test_another_precision_is_another_engine(machine):
    before, now = machine.engine.depends("fp16"), machine.engine.depends("fp32")
    assert [key for key in now if now[key] != before[key]] == ["precision"]


def test_a_build_that_fails_leaves_nothing(machine, graph, tmp_path):
    folder = tmp_path / "kept"
    machine.world.build_error = "no tactic found"
    with pytest.raises(
        EngineError, match=r"cannot build .*graph\.onnx for the NVIDIA RTX 3090 here: no tactic"
    ):
        kept(machine, graph, folder)
    left = {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}
    assert left == {cache._MARKER}  # of the folder itself


def test_a_file_that_is_no_graph(machine, tmp_path):
    file = tmp_path / "text.onnx"
    file.write_text("no graph")
    with pytest.raises(EngineError, match=r"cannot read .*text\.onnx: error 0: no ModelProto"):
        machine.engine.compile_to(file, tmp_path / "m.engine")
    with pytest.raises(EngineError, match="is not there"):
        machine.engine.compile_to(tmp_path / "none.onnx", tmp_path / "m.engine")
    assert not (tmp_path / "m.engine").exists()


@only("tensorrt 10", "tensorrt 11")
def test_what_was_timed_is_kept_and_used_again(machine, graph, tmp_path):
    machine.engine.compile_to(graph, tmp_path / "a.engine")
    machine.engine.compile_to(graph, tmp_path / "b.engine")
    assert [build["timed"] for build in machine.world.builds] == [b"", b"timed+"]
    [timing] = tmp_path.glob("*.timing")
    assert timing.name == f"tensorrt-NVIDIA-RTX-3090-{machine.engine.version()}.timing"
    assert timing.read_bytes() == b"timed++"
    # Of another driver, damaged, or refused by TensorRT: measured anew.
    machine.driver = "13.1"
    machine.engine.compile_to(graph, tmp_path / "c.engine")
    timing.write_bytes(b"timed?")
    machine.engine.compile_to(graph, tmp_path / "d.engine")
    machine.world.accepts_timing = False
    machine.engine.compile_to(graph, tmp_path / "e.engine")
    assert [build["timed"] for build in machine.world.builds[2:]] == [b"", b"", b""]


@only("tensorrt 11")
def test_where_timings_cannot_be_kept_the_engine_is_built(machine, graph, tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "artefact", full)
    with caplog.at_level(logging.WARNING, "fai_fast"):
        machine.engine.compile_to(graph, tmp_path / "a.engine")
    assert "timing is not kept: [Errno 28]" in caplog.text


# -------------------------------------------------------------------------------------------------- Turing


def test_turing_gets_float16_products_or_an_error_that_names_the_node(machine, graph, tmp_path):
    machine.cards = [T4]
    kept(machine, graph, tmp_path)
    single = deployed(tmp_path / "single.onnx", "float32")
    text = r"float16 products: Conv backbone/conv reads images in FLOAT; export with precision='fp16'"
    with pytest.raises(EngineError, match=text):
        machine.engine.compile_to(single, tmp_path / "n.engine")
    assert len(machine.world.builds) == 1


def model_of(nodes, inputs, outputs, constants=()):
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        inputs,
        outputs,
        [onnx.numpy_helper.from_array(array, name) for name, array in dict(constants).items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


def test_turing_check_of_types_and_shapes():
    matmul = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="p")
    half = np.ones((4, 4), np.float16)
    tensorrt.check_for_turing(model_of([matmul], [info("x", (2, 4))], [info("y", (2, 4))], {"w": half}))
    with pytest.raises(EngineError, match=r"fixed shapes: input x has \(batch, 4\)"):
        tensorrt.check_for_turing(
            model_of([matmul], [info("x", ("batch", 4))], [info("y", ("batch", 4))], {"w": half})
        )
    # What is cast to float32 before a product is found by its inferred type.
    cast = [
        onnx.helper.make_node("Cast", ["x"], ["x32"], to=1, name="cast"),
        onnx.helper.make_node("MatMul", ["x32", "w"], ["y"], name="p"),
    ]
    single = {"w": np.ones((4, 4), np.float32)}
    with pytest.raises(EngineError, match=r"MatMul p reads x32 in FLOAT"):
        tensorrt.check_for_turing(model_of(cast, [info("x", (2, 4))], [info("y", (2, 4), "float32")], single))
    # A shape that depends on values.
    found = [onnx.helper.make_node("NonZero", ["x"], ["where"], name="nonzero")]
    with pytest.raises(EngineError, match=r"fixed shapes: NonZero nonzero gives \(2, "):
        tensorrt.check_for_turing(model_of(found, [info("x", (2, 4))], [info("where", (2, None), "int64")]))
    wrong = model_of([matmul], [info("x", (2, 3))], [info("y", (2, 4))], {"w": half})
    with pytest.raises(EngineError, match="do not fit together"):
        tensorrt.check_for_turing(wrong)


def test_a_deployed_graph_passes_the_turing_check():
    # tests/test_tensorrt_rtx.py builds the other models for sm75, which begins with this check.
    spec = fai_fast.spec("fai-mf-n-shapes")
    state = {key: golden_parameter(key, shape) for key, shape in state_shapes(spec).items()}
    tensorrt.check_for_turing(build_graph(spec, state, (64, 96), precision="fp16"))
    with pytest.raises(EngineError, match="needs float16 products: Conv "):
        tensorrt.check_for_turing(build_graph(spec, state, (64, 96)))


# --------------------------------------------------------------------------------------------- load, verify


def test_an_engine_says_what_it_is(machine, graph, tmp_path):
    engine = loaded(machine, graph, tmp_path)
    assert [str(port) for port in engine.inputs] == ["images float16 (1, 3, 16, 16)"]
    assert [port.shape for port in engine.outputs] == [(1, 5, 4, 4), (1, 5, 4)]
    said = engine.info()
    assert (said["engine"], said["version"]) == (machine.engine.name, machine.engine.version())
    assert (said["device"], said["device_name"], said["precision"]) == ("cuda:0", CARD["name"], "fp16")
    assert said["path"] == str(tmp_path / "m.engine")


def test_only_what_a_record_describes_is_loaded(machine, graph, tmp_path):
    file = kept(machine, graph, tmp_path).path
    record = tmp_path / "m.engine.json"
    text, plan = record.read_text(), file.read_bytes()

    def refused(message):
        deserialized = machine.world.done.count(("deserialize", 0))
        with pytest.raises(EngineError, match=message):
            machine.engine.load_blob(file)
        assert machine.world.done.count(("deserialize", 0)) == deserialized

    file.write_bytes(plan[:-1] + b"!")
    refused(r"m\.engine is damaged, or not what m\.engine\.json describes")
    file.write_bytes(plan + b"!")
    refused(rf"\({len(plan) + 1} bytes, expected {len(plan)}\)")
    file.write_bytes(plan)
    record.write_text("{}")
    refused(r"m\.engine\.json cannot be read")
    record.unlink()
    refused(r"is not loaded without its record m\.engine\.json")
    record.write_text(text)
    machine.engine.load_blob(file).close()
    with pytest.raises(EngineError, match=r"is for something else: precision fp16, expected fp32"):
        machine.engine.load_blob(file, precision="fp32")


def test_a_file_whose_record_is_right_may_still_be_no_engine(machine, tmp_path):
    def write(path):
        path.write_bytes(b"no engine")

    file = cache.artefact(tmp_path / "m.engine", machine.engine.depends(), write).path
    with pytest.raises(EngineError, match=r"cannot be loaded, build it again: magic tag does not match"):
        machine.engine.load_blob(file)


def test_a_damaged_engine_is_built_again_once(machine, graph, tmp_path):
    file = kept(machine, graph, tmp_path).path
    damaged = bytearray(file.read_bytes())
    damaged[5] ^= 1
    file.write_bytes(damaged)
    again = kept(machine, graph, tmp_path)
    assert again.reason == "file is corrupt: its SHA-256 is not the one on record"
    machine.engine.load_blob(again.path)


def test_an_engine_of_the_other_precision_is_refused(machine, graph, tmp_path):
    with pytest.raises(EngineError, match=r"has images float16 .*, expected float32 for precision 'fp32'"):
        loaded(machine, graph, tmp_path, "fp32")


def test_an_engine_of_something_else_is_refused(machine, tmp_path):
    ports = [["x", "INPUT", "HALF", [1]], ["y", "OUTPUT", "INT64", [1]]]

    def write(path):
        path.write_bytes(MAGIC + json.dumps({"ports": ports}).encode())

    file = cache.artefact(tmp_path / "m.engine", machine.engine.depends(), write).path
    with pytest.raises(EngineError, match="is no deployed graph"):
        machine.engine.load_blob(file)


# ----------------------------------------------------------------------------------------------------- run


def test_addresses_are_set_once_and_runs_go_to_the_stream(machine, graph, tmp_path):
    engine = loaded(machine, graph, tmp_path)
    context = engine.bind(*ADDRESSES, 7)
    for _ in range(3):
        context.enqueue(7)
    done = machine.world.done
    addresses = dict(zip(("images", "mask_logits", "class_logits"), ADDRESSES, strict=True))
    assert [step for step in done if step[0] == "address"] == [
        ("address", name, address) for name, address in addresses.items()
    ]
    assert [step for step in done if step[0] == "enqueue"] == [("enqueue", 7, addresses)] * 3


def test_two_contexts_of_one_engine(machine, graph, tmp_path):
    engine = loaded(machine, graph, tmp_path)
    first, second = engine.bind(*ADDRESSES, 7), engine.bind(0x4000, 0x5000, 0x6000, 8)
    first.enqueue(7)
    second.enqueue(8)
    runs = [step for step in machine.world.done if step[0] == "enqueue"]
    assert [(stream, places["images"]) for _, stream, places in runs] == [(7, 0x1000), (8, 0x4000)]
    assert machine.world.done.count(("deserialize", 0)) == 1
    first.close()
    second.enqueue(8)


def test_a_run_that_fails_says_what_tensorrt_said(machine, graph, tmp_path):
    context = loaded(machine, graph, tmp_path).bind(*ADDRESSES, 7)
    machine.world.enqueue_error = "illegal memory access"
    for _ in range(2):
        with pytest.raises(EngineError, match=r"^\w+: running failed: illegal memory access$"):
            context.enqueue(7)
    machine.world.enqueue_error = ""
    context.enqueue(7)


def test_a_context_that_does_not_fit(machine, graph, tmp_path):
    engine = loaded(machine, graph, tmp_path)
    machine.world.context_error = "out of memory"
    with pytest.raises(EngineError, match="no room for another context: out of memory"):
        engine.bind(*ADDRESSES, 7)
    machine.world.context_error = ""
    machine.world.address_error = "not aligned"
    with pytest.raises(EngineError, match="refuses 0x1000 for images: not aligned"):
        engine.bind(*ADDRESSES, 7)
    machine.world.address_error = ""
    engine.bind(*ADDRESSES, 7).enqueue(7)


def test_closing_lets_go_of_contexts_first(machine, graph, tmp_path):
    engine = loaded(machine, graph, tmp_path)
    contexts = [engine.bind(*ADDRESSES, 7) for _ in range(2)]
    for context in contexts:
        context.enqueue(7)
    assert machine.world.alive == 3
    engine.close()
    engine.close()
    gc.collect()
    assert machine.world.alive == 0
    gone = [step[0] for step in machine.world.done if step[0].endswith("gone")]
    assert gone == ["context gone", "context gone", "engine gone"]
    with pytest.raises(EngineError, match="the context is closed"):
        contexts[0].enqueue(7)
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.bind(*ADDRESSES, 7)
    assert engine.info()["engine"] == machine.engine.name


def test_capture_is_left_to_the_frame_graph(machine, graph, tmp_path):
    class FrameGraph:
        def capture(self, enqueue):
            enqueue(7)
            enqueue(7)
            return "why not"

    context = loaded(machine, graph, tmp_path).bind(*ADDRESSES, 7)
    assert context.capture(FrameGraph()) == "why not"
    assert [step[0] for step in machine.world.done].count("enqueue") == 2


# ------------------------------------------------------------------------------------- kernels of TensorRT-RTX


@only("tensorrt_rtx")
def test_kernels_are_compiled_once_and_kept(machine, graph, tmp_path):
    def run():
        engine = loaded(machine, graph, tmp_path)
        for _ in range(2):
            context = engine.bind(*ADDRESSES, 7)
            context.enqueue(7)
            context.enqueue(7)
        engine.close()
        return machine.world.done.count(("compile",))

    assert run() == 1
    kernels = tmp_path / "m.kernels"
    assert kernels.read_bytes() == b"kernels"
    assert run() == 1
    # Damaged ones, and ones that TensorRT-RTX refuses, are compiled again.
    kernels.write_bytes(b"kernel?")
    assert run() == 2
    assert kernels.read_bytes() == b"kernels"
    machine.world.accepts_kernels = False
    assert run() == 3


@only("tensorrt_rtx")
def test_kernels_that_cannot_be_kept_stop_no_frame(machine, graph, tmp_path, caplog):
    machine.world.gives_kernels = False
    with caplog.at_level(logging.WARNING, "fai_fast"):
        loaded(machine, graph, tmp_path).bind(*ADDRESSES, 7).enqueue(7)
    assert "m.kernels is not kept" in caplog.text
    assert "enqueue" in [step[0] for step in machine.world.done]


@only("tensorrt_rtx")
def test_the_frames_graph_is_the_only_one(machine, graph, tmp_path):
    engine = loaded(machine, graph, tmp_path)
    config = engine._kernels.config
    trt = sys.modules["tensorrt_rtx"]
    assert config.cuda_graph_strategy is trt.CudaGraphStrategy.DISABLED
    strategy = config.dynamic_shapes_kernel_specialization_strategy
    assert strategy is trt.DynamicShapesKernelSpecializationStrategy.EAGER


@only("tensorrt 10", "tensorrt 11")
def test_the_full_package_keeps_no_kernels(machine, graph, tmp_path):
    loaded(machine, graph, tmp_path).bind(*ADDRESSES, 7).enqueue(7)
    assert list(tmp_path.glob("*.kernels")) == []


def test_what_tensorrt_tells_is_for_debugging(machine, graph, tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, "fai_fast"):
        kept(machine, graph, tmp_path)
    told = [record for record in caplog.records if record.message == f"{machine.engine.name}: building"]
    assert [record.levelname for record in told] == ["DEBUG"]


# -------------------------------------------------------------------------------------------------- export


def export(path, **options):
    """The smallest model at the smallest size; verification is the ONNX export's, and tested there."""
    return fai_fast.export(
        "fai-mf-n-shapes", path, im_size=32, verify=False, **{"format": "tensorrt", **options}
    )


@pytest.fixture
def file(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    return folder / "m.engine"


def names(file):
    return sorted(item.name for item in file.parent.iterdir())


@pytest.mark.parametrize(
    ("asked", "size"),
    [({"im_size": (32, 64)}, (32, 64)), ({"frame": (60, 90)}, None), ({"frame": (90, 60)}, None)],
)
def test_an_engine_of_two_sides_is_built_and_loaded_as_such(machine, file, asked, size):
    expected = size or fai_fast.fit_size(asked["frame"], area=192 * 192)
    assert (expected[0] < expected[1]) == (asked != {"frame": (90, 60)})
    options = {"format": "tensorrt", "verify": False, **asked}
    assert fai_fast.export("fai-mf-n-shapes", file, **options).size == expected
    assert read_record(file).size == expected
    with pytest.raises(
        ValueError, match=r"frame: got \(60, 90\) with m\.engine, expected None: its input is \("
    ):
        fai_fast.load(file, frame=(60, 90))
    with pytest.raises(ValueError, match=r"im_size: got \(64, 32\) with m\.engine, expected None or"):
        fai_fast.load(file, im_size=(64, 32))


def test_an_engine_is_exported_with_its_record(machine, file):
    report = export(file, batch=2)
    assert names(file) == ["m.engine", "m.engine.json"]
    assert (report.path, report.format, report.targets) == (file, "tensorrt", ("sm86",))
    assert report.version == f"{machine.engine.name} {machine.engine.version()}"
    assert report.file_size == file.stat().st_size
    assert json.loads(json.dumps(report.to_dict()))["targets"] == ["sm86"]
    record = read_record(file)
    assert (record.spec, record.size, record.batch) == (report.spec, (32, 32), 2)
    assert (record.precision, record.package) == ("fp16", machine.engine.name)
    assert record.gpu == (None if machine.engine.ahead_of_time else CARD["name"])
    assert record.weights_sha256 == report.weights_sha256
    assert machine.engine.load_blob(file).inputs[0].shape == (2, 3, 32, 32)


def test_an_engine_in_int8_is_loaded_as_such(machine, file):
    pytest.importorskip("onnxruntime")
    pictures = [np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)]
    export(file, precision="int8", pictures=pictures)
    assert read_record(file).precision == "int8"
    with pytest.raises(EngineError, match=r"is for something else: precision int8, expected fp16"):
        machine.engine.load_blob(file)
    engine = machine.engine.load_blob(file, precision="int8")
    # What goes in and comes out is float16.
    assert str(engine.inputs[0]) == "images float16 (1, 3, 32, 32)"
    assert engine.info()["precision"] == "int8"
    with pytest.raises(ValueError, match=r"precision: got 'fp16' with m\.engine, expected 'auto' or 'int8'"):
        fai_fast.load(file, precision="fp16")


@only("tensorrt_rtx")
def test_targets_need_not_be_here_but_must_be_where_it_runs(machine, file):
    machine.cards = []
    export(file, target=["sm75", "sm80", "sm75"])
    assert machine.world.builds[-1]["targets"] == ["sm75", "sm80"]
    machine.cards = [CARD]
    with pytest.raises(
        EngineError, match=r"something else: targets sm75, sm80, expected sm86 among them; make"
    ):
        machine.engine.load_blob(file)
    machine.cards = [T4]
    machine.engine.load_blob(file).bind(*ADDRESSES, 7).enqueue(7)
    # What is compiled for the GPU goes into the cache, not beside a user's file.
    assert names(file) == ["m.engine", "m.engine.json"]
    [kernels] = (cache.cache_folder() / "models" / "tensorrt_rtx").glob("*-gpu0.kernels")
    assert kernels.read_bytes() == b"kernels"


@only("tensorrt_rtx")
def test_a_target_that_the_installed_release_does_not_know(machine, file):
    with pytest.raises(ExportError, match=r"tensorrt_rtx: 1\.7\.1 knows no target sm121"):
        export(file, target="sm121")
    assert names(file) == []


@only("tensorrt 10", "tensorrt 11")
def test_the_full_package_builds_only_for_the_gpu_that_is_here(machine, file):
    with pytest.raises(
        ExportError, match=r"target: got sm86, but the tensorrt that is installed builds only for"
    ):
        export(file, target="sm86")
    export(file)
    machine.cards = [{**CARD, "name": "NVIDIA A10"}]
    with pytest.raises(EngineError, match=r"something else: gpu NVIDIA RTX 3090, expected NVIDIA A10; make"):
        machine.engine.load_blob(file)


def test_without_any_tensorrt_nothing_is_exported(machine, file, monkeypatch):
    monkeypatch.setitem(sys.modules, machine.engine.name, None)
    with pytest.raises(ExportError, match=r"tensorrt_rtx: cannot be imported .*pip install"):
        export(file, target="sm86")


def test_without_a_gpu_current_is_an_error_before_the_export(machine, file, monkeypatch):
    def none():
        raise CudaError("no driver")

    monkeypatch.setattr(_core, "cuda_devices", none)
    monkeypatch.setattr("fai_fast.exporter.write", None)
    with pytest.raises(CudaError, match="no driver"):
        export(file)


@only("tensorrt 11", "tensorrt_rtx")
def test_what_an_exported_engine_is_not_for_is_named(machine, file, monkeypatch):
    export(file)
    name = machine.engine.name
    before, options = machine.engine.version(), KINDS["tensorrt_rtx" if "rtx" in name else "tensorrt 11"][2]
    machine.install(name, "12.0.0", options)
    with pytest.raises(
        EngineError, match=rf"something else: version {before}, expected 12\.0\.0; make it again"
    ):
        machine.engine.load_blob(file)
    machine.install(name, before, options)
    machine.engine.load_blob(file)
    # Its record with another engine.
    file.write_bytes(MAGIC + b"{}")
    with pytest.raises(EngineError, match=r"is damaged, or not what m\.engine\.json describes"):
        machine.engine.load_blob(file)


def test_an_engine_for_the_other_package_is_refused(machine, file):
    export(file)
    other = next(item for item in tensorrt.FLAVOURS.values() if item is not machine.engine)
    name, version, options = next(KINDS[kind] for kind in KINDS if KINDS[kind][0] == other.name)
    machine.install(name, version, options)
    with pytest.raises(
        EngineError, match=rf"something else: engine {machine.engine.name}, expected {name}; "
    ):
        other.load_blob(file)


def test_a_failing_export_leaves_what_was_there(machine, file, monkeypatch):
    export(file)
    before = {item.name: item.read_bytes() for item in file.parent.iterdir()}
    machine.world.build_error = "no tactic found"
    with pytest.raises(ExportError, match=r"cannot build .*: no tactic found"):
        export(file)
    machine.world.build_error = ""

    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.Record, "write", full)
    with pytest.raises(OSError, match="No space left"):
        export(file, batch=2)
    assert {item.name: item.read_bytes() for item in file.parent.iterdir()} == before


@only("tensorrt_rtx")
def test_the_command_line_exports_engines(machine, file, capsys):
    options = ["--im-size", "32", "--no-verify"]
    argv = ["export", "fai-mf-n-shapes", str(file), *options]
    assert main([*argv, "--format", "tensorrt", "--target", "sm75,sm80"]) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {"target sm75, sm80", "built by tensorrt_rtx 1.7.1"} < set(said)
    assert read_record(file).targets == ("sm75", "sm80")
    # The file's ending says the format; without a target it is for the GPU that is here.
    assert main(argv) == 0
    assert read_record(file).targets == ("sm86",)
    assert main([*argv, "--target", "sm10"]) == 2
    assert "target: got 'sm10', expected one or more of sm75" in capsys.readouterr().err
    onnx_argv = ["export", "fai-mf-n-shapes", str(file.with_suffix(".onnx")), *options]
    assert main([*onnx_argv, "--target", "sm75"]) == 2
    assert "--target: only with --format tensorrt" in capsys.readouterr().err
    assert main([*onnx_argv, "--format", "tensorrt"]) == 2
    assert "expected a name that ends with .engine" in capsys.readouterr().err
    assert commands.TARGETS == TARGETS


def test_records_that_cannot_be_used(machine, graph, file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"name_or_path: no such file: .*m\.engine"):
        read_record(file)
    export(file)
    text = (file.parent / "m.engine.json").read_text()
    (file.parent / "m.engine.json").write_text(text[:-9])
    with pytest.raises(EngineError, match=r"m\.engine\.json was not written by fai_fast\.export"):
        read_record(file)
    (file.parent / "m.engine.json").unlink()
    with pytest.raises(EngineError, match=r"is not loaded without its record m\.engine\.json.*copy both"):
        read_record(file)
    # The cache's own records say nothing of a model.
    with pytest.raises(EngineError, match=r"was not written by fai_fast\.export"):
        read_record(kept(machine, graph, tmp_path).path)
