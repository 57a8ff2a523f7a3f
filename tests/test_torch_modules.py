"""Networks of others in torch-cuda: on whatever device, in float32 and float16, as they are in PyTorch.

No CUDA is needed: what would be left behind on another device is an error on the device "meta", which has no values.
"""

from __future__ import annotations

import functools
from typing import Any

import fai_fast
import numpy as np
import pytest
from fai_fast import _core
from fai_fast.engines import gpu as gpu_engines
from fai_fast.engines import select
from fai_fast.errors import EngineError
from fai_fast.ops import postprocess, preprocess

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from fai_fast._prepare import prepare  # noqa: E402
from fai_fast.engines import torch_cuda, torch_module  # noqa: E402
from fai_fast.networks import foreign, pretrained, tracing  # noqa: E402
from fai_fast.networks.module import Recorder  # noqa: E402
from fai_fast.networks.tracing import traced  # noqa: E402
from helpers import families, gpu, others, torch_modules  # noqa: E402
from helpers.torch_host import FakeGraph, frame_graph, with_torch, with_two_gpus  # noqa: E402
from helpers.torch_modules import Small  # noqa: E402
from torch.fx import GraphModule  # noqa: E402

KINDS = ("mask2former", "maskformer", "oneformer", "eomt", "eomt_dinov3", "rf_detr")
META = torch.device("meta")
HALF, FLOAT = torch.float16, torch.float32
BATCH = 2


def size_of(kind: str) -> tuple[int, int]:
    """Not a square, where the network takes others."""
    return (64, 64) if kind.startswith("eomt") else (64, 96)


@functools.cache
def network_of(kind: str) -> tuple[Any, Any, tuple[int, ...]]:
    """A family's network, as it is and traced, and the shape of its images. Tracing takes seconds."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    module, size = families.small(kind), size_of(kind)
    found = pretrained.find(module, families.processor(kind), "instance")
    assert found is not None
    network = found.network()
    assert network.module is not None
    recorded = network.module(size, BATCH)
    assert isinstance(recorded, GraphModule)
    return network.reference(size, BATCH), recorded, (BATCH, 3, *size)


@functools.cache
def halved(kind: str) -> Any:
    _, recorded, shape = network_of(kind)
    return torch_module.halved(recorded, shape)


def images_of(shape: tuple[int, ...], seed: int = 3) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def small_recorded() -> Any:
    return Recorder(Small(), lambda module, images: tuple(module(images).values()), "it").network((64, 64), 1)


def said(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "fai_fast"]


def devices_in(module: Any) -> set[Any]:
    """Of every tensor that it holds and every argument of its operations."""
    found = {value.device for value in module.state_dict().values()}
    for node in module.graph.nodes:
        torch.fx.node.map_aggregate(
            (node.args, node.kwargs),
            lambda item: found.add(item) if isinstance(item, torch.device) else None,
        )
    return found


@pytest.fixture
def machine(monkeypatch):
    """torch-cuda with the host's memory, as the only engine of a machine with two GPUs."""
    with_two_gpus(monkeypatch)
    account = with_torch(monkeypatch)
    monkeypatch.setattr(select, "_lacking", lambda *_: "")
    return account


def prepared(model: Any, cache: Any, **options: Any) -> Any:
    """What load() has before the first frame."""
    given = {"weights": None, "engine": "torch-cuda", "device": "cuda", "precision": "auto", **options}
    given = {"im_size": None, "frame": None, "num_threads": None, "batch_size": 1, **given}
    return prepare(model, cache_dir=cache, **given)


# --------------------------------------------------------------------------------------------- all families


class Products(torch.fx.Interpreter):
    """Notes the types of what takes the time."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.kinds: list[Any] = []

    def run_node(self, node: Any) -> Any:
        value = super().run_node(node)
        if any(word in str(node.target) for word in ("linear", "conv2d", "matmul", "bmm", "einsum")):
            self.kinds.append(value.dtype)
        return value


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_on_another_device_or_waits_for_values(kind, precision):
    """What stays behind, and what a captured graph cannot hold, is an error where there are no values."""
    reference, recorded, shape = network_of(kind)
    module = torch_module.placed(recorded if precision == "fp32" else halved(kind), META)
    assert devices_in(module) == {META}
    dtype = FLOAT if precision == "fp32" else HALF
    run = Products(module)
    masks, classes = run.run(torch.empty(shape, dtype=dtype, device=META))
    assert {masks.dtype, classes.dtype} == {dtype}
    assert len(run.kinds) > 20
    assert set(run.kinds) == {dtype}
    assert torch_module.shapes_of(recorded, shape, "it") == (masks.shape, classes.shape)
    if precision == "fp32":
        expected = reference.run(np.zeros(shape, np.float32))
        assert [masks.shape, classes.shape] == [array.shape for array in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_it_is_the_original(kind):
    reference, recorded, shape = network_of(kind)
    network, form = torch_module.made(recorded, "fp32", shape, torch.device("cpu"), kind)
    assert form == "traced, operation by operation"
    images = images_of(shape)
    with torch.inference_mode():
        found = network(images)
    for ours, theirs in zip(found, reference.run(images.numpy()), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float16_it_is_near_the_original(kind):
    reference, _, shape = network_of(kind)
    images = images_of(shape)
    with torch.inference_mode():
        found = torch_module.placed(halved(kind), torch.device("cpu"))(images.to(HALF))
    # RF-DETR's queries start at the surest places of the picture, of which two that are equal but for rounding may come
    # in the other order.
    share = 0.5 if kind == "rf_detr" else 1.0
    for ours, theirs in zip(found, reference.run(images.numpy()), strict=True):
        assert ours.dtype == HALF
        of_each_query = tuple(range(2, theirs.ndim))
        noise = np.sqrt(np.mean((ours.float().numpy() - theirs) ** 2, axis=of_each_query))
        assert np.quantile(noise, share) < 0.02 * np.sqrt(np.mean(theirs**2))


# -------------------------------------------------------------------------------------------------- devices


def test_devices_among_the_arguments_follow(monkeypatch):
    """Constants that are too large to keep are made anew in each run: where the images are."""
    monkeypatch.setattr(tracing, "LARGEST_CONSTANT", 0)

    def function(images):
        x = torch.arange(8, dtype=FLOAT, device="cpu").sin()
        y = torch.full((1, 3, 8, 8), 2.0).to("cpu", torch.float64)
        place = torch.zeros((1, 3, 8, 8))
        return (images * x + y + place.new_ones(8), images + torch.tensor(2.0))

    shape = (1, 3, 8, 8)
    recorded = traced(function, images_of(shape))
    assert torch.device("cpu") in devices_in(recorded)
    named = [node for node in recorded.graph.nodes if node.kwargs.get("device") is not None]
    assert named
    moved = torch_module.placed(recorded, META)
    assert devices_in(moved) == {META}
    assert {value.device for value in moved(torch.empty(shape, device=META))} == {META}
    here = torch_module.placed(recorded, torch.device("cpu"))
    images = images_of(shape, 4)
    for ours, theirs in zip(here(images), function(images), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_users_own_module_stays_as_it_was():
    module = Small().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = foreign.network_of(module, torch_modules.spec(), (64, 64))
    recorded = network.module((64, 64), 1)
    for precision in ("fp32", "fp16"):
        made, _ = torch_module.made(recorded, precision, (1, 3, 64, 64), META, "Small")
        assert {value.device for value in made.state_dict().values()} == {META}
    assert module.training
    for name, value in module.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, before[name])


def test_a_tensor_that_is_used_twice_is_held_once():
    weight = torch.randn(4, 3, 1, 1)

    def function(images):
        return (torch.conv2d(images, weight), torch.conv2d(images * 2, weight))

    recorded = traced(function, images_of((1, 3, 8, 8)))
    for module in (recorded, torch_module.halved(recorded, (1, 3, 8, 8))):
        [held] = torch_module.placed(module, torch.device("cpu")).state_dict().values()
        assert held.is_contiguous(memory_format=torch.channels_last)


# -------------------------------------------------------------------------------------------------- float16


def power(images):
    return (300 * images).pow(2).mean((1, 2, 3), keepdim=True).sqrt() + images


def sampled(images):
    """A map of 1000 columns, read at places that float16 tells apart by half a column."""
    columns = torch.arange(1000.0).expand(1, 1, 4, 1000) % 7
    places = images.flatten()[:60].reshape(1, 1, 60, 1) / 10
    places = torch.cat([places + torch.linspace(0.6, 0.8, 60)[:, None], 0 * places], -1)
    return torch.nn.functional.grid_sample(columns, places, align_corners=False)


def indexed(images):
    table = torch.arange(4000.0) % 5
    return table[(3000 + images * 300).long().clamp(0, 3999)] + images


def tiny(images):
    return images / (0 * images.abs().sum((1, 2, 3), keepdim=True) + 1e-7) / 1e7


def logits(images):
    share = (images / 4).sigmoid()
    return torch.log(share.clamp(min=1e-7) / (1 - share).clamp(min=1e-7))


def named(images):
    return torch.softmax((images > 0).to(FLOAT) + images, -1, dtype=FLOAT).to(torch.float64) + images


@pytest.mark.parametrize("function", [power, sampled, indexed, tiny, logits, named])
def test_what_float16_is_not_enough_for(function):
    shape = (1, 3, 8, 8)
    images = images_of(shape).to(HALF).float()
    recorded = traced(lambda given: (function(given),), images)
    with torch.no_grad():
        [found] = torch_module.halved(recorded, shape)(images.to(HALF))
        expected = function(images)
    assert found.dtype in (HALF, FLOAT)
    assert bool(found.isfinite().all())
    assert (found.float() - expected).abs().max() <= 4e-3 * expected.abs().max()


def test_places_that_are_closed_stay_so_and_rows_without_an_open_one_finite():
    def function(images):
        keys = images.reshape(1, 3, 64)
        mask = torch.zeros_like(keys).masked_fill(keys > 0.5, torch.finfo(FLOAT).min)
        mask = mask.masked_fill(torch.tensor([True, False, False])[:, None], torch.finfo(FLOAT).min)
        values = images.reshape(1, 64, 3)
        attended = torch.nn.functional.scaled_dot_product_attention(
            torch.eye(3, 3)[None], values, values, mask
        )
        return (attended, torch.softmax(keys + mask, -1))

    shape = (1, 3, 8, 8)
    images = images_of(shape).to(HALF).float()
    recorded = traced(function, images)
    with torch.no_grad():
        found = torch_module.halved(recorded, shape)(images.to(HALF))
        expected = function(images)
    for ours, theirs in zip(found, expected, strict=True):
        assert bool(ours.isfinite().all())
        torch.testing.assert_close(ours[:, 1:].float(), theirs[:, 1:], atol=2e-3, rtol=0)
    assert bool((found[1][:, 1:][expected[1][:, 1:] == 0] == 0).all())


# ------------------------------------------------------------------------------------- what is not traced


class Refused(Small):
    """It writes into what it reads by another name afterwards, which tracing does not follow."""

    def forward(self, images):
        found = super().forward(images)
        place = torch.zeros_like(found["masks"])
        turned = place.transpose(2, 3)
        place[:, :3] = found["masks"][:, :3]
        return {**found, "masks": found["masks"] + 0 * turned.transpose(2, 3)}


class Moody(Small):
    """It computes something else of dark images."""

    def forward(self, images):
        found = super().forward(images)
        return {**found, "masks": found["masks"] * (1 if images[0, 0, 0, 0] > 0 else -1)}


@pytest.mark.parametrize("kind", [Refused, Moody])
def test_a_module_that_is_not_traced_runs_as_it_is(kind, caplog):
    module, shape, cpu = kind(), (2, 3, 64, 96), torch.device("cpu")
    network = foreign.network_of(module, torch_modules.spec(), (64, 96), 2)
    recorded = network.module((64, 96), 2)
    assert not isinstance(recorded, GraphModule)
    [line] = said(caplog)
    assert line.startswith(f"the module {kind.__name__} is taken as it is: ")
    assert torch_module.shapes_of(recorded, shape, "it") == ((2, 6, 16, 24), (2, 6, 4))
    exact, form = torch_module.made(recorded, "fp32", shape, cpu, "it")
    low, low_form = torch_module.made(recorded, "fp16", shape, cpu, "it")
    assert (form, low_form) == ("as it is", "as it is, by autocast")
    images = images_of(shape)
    expected = network.reference((64, 96), 2).run(images.numpy())
    with torch.inference_mode():
        for ours, lower, theirs in zip(exact(images), low(images.to(HALF)), expected, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)
            np.testing.assert_allclose(lower.float().numpy(), theirs, atol=0.03 * np.abs(theirs).max())
    assert all(value.device.type == "cpu" for value in module.state_dict().values())


def test_operations_that_do_not_take_float16_run_by_autocast(caplog, monkeypatch):
    def refuse(module, shape):
        raise RuntimeError("no such kernel for Half")

    monkeypatch.setattr(torch_module, "halved", refuse)
    images = images_of((1, 3, 64, 64))
    recorded = traced(lambda given: torch.conv2d(given, torch.ones(4, 3, 3, 3) / 9), images)
    network, form = torch_module.made(recorded, "fp16", (1, 3, 64, 64), torch.device("cpu"), "it")
    assert form == "traced, operation by operation, by autocast"
    assert said(caplog) == ["it runs in float16 by autocast: RuntimeError: no such kernel for Half"]
    with torch.inference_mode():
        found, expected = network(images.to(HALF)), recorded(images)
    assert found.dtype == HALF
    torch.testing.assert_close(found.float(), expected, atol=0.01, rtol=0)


def test_what_float16_cannot_do_at_all_is_done_in_float32(machine, monkeypatch, tmp_path):
    """Autocast does not take numbers that float16 does not have, as this module's for closed places."""

    def refuse(module, shape):
        raise RuntimeError("no such kernel for Half")

    monkeypatch.setattr(torch_module, "halved", refuse)
    ready = prepared(Small(), tmp_path, spec=torch_modules.spec())
    assert ready.provenance["precision"] == "fp32"
    assert ready.provenance["precision_reason"].startswith(
        "fp16: torch-cuda: the module Small cannot be used on cuda:0"
    )
    with pytest.raises(EngineError, match="cannot be converted to type"):
        prepared(Small(), tmp_path, spec=torch_modules.spec(), precision="fp16")


def test_a_module_in_float16_is_taken_as_float32():
    network = foreign.network_of(Small().half(), torch_modules.spec(), (64, 64))
    masks, classes = network.module((64, 64), 1)(images_of((1, 3, 64, 64)))
    assert {masks.dtype, classes.dtype} == {FLOAT}
    expected = Small().eval()(images_of((1, 3, 64, 64)))
    torch.testing.assert_close(classes, expected["logits"], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "shapes", [((1, 6, 4), (1, 6, 4)), ((1, 6, 4, 4), (1, 5, 4)), ((2, 6, 4, 4), (2, 6, 4))]
)
def test_other_shapes_are_refused(shapes):
    class Wrong(torch.nn.Module):
        def forward(self, images):
            return tuple(torch.zeros(shape, device=images.device) for shape in shapes)

    with pytest.raises(
        EngineError, match=r"it gives \(.*\) for images \(1, 3, 8, 8\), expected mask logits \(B, Q"
    ):
        torch_module.shapes_of(Wrong(), (1, 3, 8, 8), "it")


# --------------------------------------------------------------------------------------------- the engine


def found_in(engine: Any, spec: Any, frame: Any) -> Any:
    """Between arrays, from a frame to what is found in it."""
    context, config = engine.context(), spec.config
    size = context.images.shape[2:]
    context.images[...] = preprocess(frame, size, mean=config.pixel_mean, std=config.pixel_std)
    context.run()
    found = postprocess(
        context.mask_logits[0].astype(np.float32),
        context.class_logits[0].astype(np.float32),
        frame.shape[:2],
        threshold=config.threshold,
    )
    context.close()
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_module_from_a_frame_to_what_is_found(machine, tmp_path, precision):
    spec, frame = torch_modules.spec(threshold=0.3), others.picture()
    module = Small()
    ready = prepared(module, tmp_path, spec=spec, precision=precision, im_size=(64, 96), batch_size=2)
    assert (ready.size, ready.batch_size, ready.graph, ready.weights) == ((64, 96), 2, None, None)
    kind = "float32" if precision == "fp32" else "float16"
    assert [str(port) for port in (*ready.engine.inputs, *ready.engine.outputs)] == [
        f"images {kind} (2, 3, 64, 96)",
        f"mask_logits {kind} (2, 6, 16, 24)",
        f"class_logits {kind} (2, 6, 4)",
    ]
    info = ready.engine.info()
    assert info["weights"] == "the module Small"
    assert info["network"].startswith("traced, operation by operation")
    assert ready.provenance["precision"] == precision
    if precision == "fp16":
        assert ready.provenance["precision_verdicts"]["fp16"]["holds"]
    ours = found_in(ready.engine, spec, frame)
    images = preprocess(frame, (64, 96), mean=spec.config.pixel_mean, std=spec.config.pixel_std)
    with torch.no_grad():
        found = module.eval()(torch.from_numpy(images))
    theirs = postprocess(
        found["masks"][0].numpy(), found["logits"][0].numpy(), frame.shape[:2], threshold=0.3
    )
    assert len(ours) == len(theirs) > 0
    assert np.array_equal(ours.class_id, theirs.class_id)
    np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=1e-5 if precision == "fp32" else 5e-3)
    assert (ours.mask == theirs.mask).mean() > (0.9999 if precision == "fp32" else 0.99)
    ready.engine.close()
    # Nothing but the verdict is kept.
    kept = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert ".onnx" not in kept


def test_a_network_of_transformers_up_to_the_engine(machine, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    module = families.small("eomt")
    ready = prepared(module, tmp_path, task="instance")
    assert ready.spec.family == "eomt"
    assert ready.engine.name == "torch-cuda"
    assert ready.provenance["precision_verdicts"]["fp16"]["pictures"]
    assert ready.provenance["precision"] in ("fp16", "fp32")
    assert ready.engine.info()["weights"] == "the EomtForUniversalSegmentation"
    context = ready.engine.context()
    context.images[...] = images_of((1, 3, 64, 64)).numpy()
    context.run()
    with torch.no_grad():
        expected = module(pixel_values=images_of((1, 3, 64, 64))).masks_queries_logits.numpy()
    noise = np.sqrt(np.mean((context.mask_logits - expected) ** 2))
    assert noise < 0.02 * np.sqrt(np.mean(expected**2))


def test_a_folder_that_is_remembered_is_read_for_it_again(machine, tmp_path):
    """What of a network is kept, so that a start from the cache needs no PyTorch, is not enough here."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path / "eomt-instance"
    families.small("eomt").save_pretrained(folder)
    transformers.EomtImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(folder)
    found = []
    for _ in range(2):
        ready = prepared(folder, tmp_path / "cache", precision="fp32")
        context = ready.engine.context()
        context.images[...] = images_of((1, 3, 64, 64)).numpy()
        context.run()
        found.append(context.mask_logits.copy())
        ready.engine.close()
    assert found[0].any()
    assert np.array_equal(*found)


def test_it_is_captured_like_our_own(machine):
    recorded = small_recorded()
    engine = torch_cuda.load_module(recorded, (64, 64), precision="fp16", shown="it")
    assert machine.events == ["tried"]
    ports = {port.name: port for port in (*engine.inputs, *engine.outputs)}
    graph = frame_graph(ports)
    graph.calls = machine.events
    context = engine.bind(graph.images, graph.mask_logits, graph.class_logits, graph.stream)
    assert context.capture(graph) is None
    assert machine.events[1:5] == ["on None", "run", "run", "run"]
    assert machine.events[-6:] == ["before", "run", "after", "end", "off", ("adopted", 4242)]
    assert isinstance(graph.owner[0], FakeGraph)
    assert np.isfinite(graph.memory["mask_logits"]).all()
    assert graph.memory["mask_logits"].any()


@gpu.needed
@gpu.emulated
def test_loaded_on_the_emulator_it_finds_what_it_finds_on_a_cpu(monkeypatch, tmp_path):
    """All but CUDA's own PyTorch: what the engine would put on a stream is a host function there."""
    with_torch(monkeypatch)
    monkeypatch.setattr(select, "_lacking", lambda *_: "")
    monkeypatch.setattr(
        torch_cuda.Context, "_enqueue", lambda self, stream: _core.launch_host_function(stream, self._run)
    )
    monkeypatch.setattr(torch_cuda.Context, "_capture", gpu_engines.OpenGpuContext._capture)
    spec, frames = torch_modules.spec(threshold=0.3), [others.picture(seed) for seed in range(3)]
    options = {"spec": spec, "im_size": (64, 96), "batch_size": 2, "cache_dir": tmp_path, "precision": "fp32"}
    with fai_fast.load(Small(), engine="torch-cuda", device="cuda", **options) as model:
        assert model.info()["engine"]["engine"] == "torch-cuda"
        assert model.info()["execution"] == "one captured CUDA graph"
        ours = model.infer_batch(frames)
    with fai_fast.load(Small(), device="cpu", **options) as model:
        theirs = model.infer_batch(frames)
    for found, expected in zip(ours, theirs, strict=True):
        others.assert_same(found, expected)


def test_a_graph_of_others_is_refused(machine, tmp_path):
    path = others.write(tmp_path / "theirs.onnx")
    with pytest.raises(
        EngineError,
        match=r"^torch-cuda: .*theirs\.onnx holds a graph, and this engine runs PyTorch: expected a model by its name, "
        r"a network of transformers, or a torch\.nn\.Module with spec=; what takes a graph is tensorrt, tensorrt_rtx, "
        r"onnxruntime-cuda, openvino, onnxruntime$",
    ):
        fai_fast.load(path, spec=others.spec(), engine="torch-cuda", device="cuda", cache_dir=tmp_path)


def test_what_cannot_run_on_the_device_is_told(machine, monkeypatch):
    def fail(*_):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(torch_cuda, "_try", fail)
    recorded = small_recorded()
    with pytest.raises(
        EngineError, match=r"^torch-cuda: it cannot be used on cuda:1: no kernel image is available$"
    ):
        torch_cuda.load_module(recorded, (64, 64), device=1, shown="it")
    with pytest.raises(ValueError, match="precision: got 'bf16'"):
        torch_cuda.load_module(recorded, (64, 64), precision="bf16")
    with pytest.raises(ValueError, match="batch: got 0"):
        torch_cuda.load_module(recorded, (64, 64), 0)
