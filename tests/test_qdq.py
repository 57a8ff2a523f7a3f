"""Explicit int8 for TensorRT: what is in the graph, where its scales are from, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from fai_fast import _gate
from fai_fast._gate import Verdict
from fai_fast.cli import main
from fai_fast.errors import EngineError, ExportError
from fai_fast.exporter import qdq, tensorrt
from fai_fast.exporter.builder import Builder, Value
from fai_fast.exporter.graph import build_graph, float32_products
from fai_fast.weights import load_weights
from helpers.networks import network, small_spec

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

SPEC = small_spec("bisenetformer", transformer_predictor_dec_layers=1)
SIZE = (64, 96)
RNG = np.random.default_rng(0)
PICTURES = [
    np.kron(RNG.integers(0, 255, (4, 6, 3), np.uint8), np.ones((16, 16, 1), np.uint8)) for _ in range(3)
]
GOOD = Verdict("panoptic quality", 0.97, 0.9, "", "40 detections", "3 pictures")
BAD = Verdict("panoptic quality", 0.41, 0.9, "", "40 detections", "3 pictures")


@pytest.fixture(scope="module")
def weights():
    return load_weights(SPEC, network(SPEC).state_dict())


@pytest.fixture(scope="module")
def images():
    mean, std = SPEC.config.pixel_mean, SPEC.config.pixel_std
    return [fai_fast.preprocess(picture, SIZE, mean=mean, std=std) for picture in PICTURES]


@pytest.fixture(scope="module")
def half(weights):
    return build_graph(SPEC, weights.state, SIZE, precision="fp16")


@pytest.fixture(scope="module")
def scales(half, images):
    return qdq.scales(half, images)


@pytest.fixture(scope="module")
def model(half, scales):
    return qdq.quantized(half, scales)


def arrays(model):
    return {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}


def convolution(weight, bias=None, dtype=np.float32, size=8):
    """A graph that is one convolution of `images`."""
    b = Builder(dtype)
    x = Value("images", (1, weight.shape[1], size, size), np.dtype(dtype))
    return b.model([x], [(b.conv(x, weight, bias, "conv"), "y")])


# ------------------------------------------------------------------------------------------------- the graph


def test_all_is_symmetric_int8_as_tensorrt_takes_it(half, model):
    values = arrays(model)
    nodes = {node.output[0]: node for node in model.graph.node}
    kinds = [node.op_type for node in model.graph.node]
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == [node.op_type for node in half.graph.node].count("Conv") > 10
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            _, scale, zero = (values.get(name) for name in node.input)
            assert zero.dtype == np.int8
            assert not zero.any()
            assert scale.dtype == np.float16
            assert (scale > 0).all()
    for node in convolutions:
        x, weight = (nodes[name] for name in node.input[:2])
        assert (x.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert nodes[x.input[0]].op_type == "QuantizeLinear"
        assert list(x.input[1:]) == list(nodes[x.input[0]].input[1:])
        integers, by_channel = values[weight.input[0]], values[weight.input[1]]
        assert integers.dtype == np.int8
        assert integers.min() >= -127
        assert by_channel.shape == (len(integers),)
        assert [item.i for item in weight.attribute if item.name == "axis"] == [0]
        # Biases are not quantized: TensorRT refuses int32 ones.
        assert all(values[name].dtype == np.float16 for name in node.input[2:])
    # One for the weights of each, one for each tensor that some read.
    read = {node.input[0] for node in convolutions}
    assert kinds.count("DequantizeLinear") == len(convolutions) + len(read)
    assert kinds.count("QuantizeLinear") == len(read)
    assert float32_products(model) == []


def test_it_takes_a_byte_for_a_weight_and_brings_no_other_form_of_it(half, model):
    names = {item.name for item in model.graph.initializer}
    assert names == {name for node in model.graph.node for name in node.input} & names
    convolutions = {node.input[1] for node in half.graph.node if node.op_type == "Conv"}
    saved = sum(arrays(half)[name].size for name in convolutions)
    assert len(model.SerializeToString()) < len(half.SerializeToString()) - 0.8 * saved


def test_it_gives_about_what_the_graph_gives(half, model, images):
    for image in images:
        for exact, low in zip(qdq.runner(half)(image), qdq.runner(model)(image), strict=True):
            exact, low = exact.astype(np.float64), low.astype(np.float64)
            noise = np.square(low - exact).sum() / np.square(exact).sum()
            assert 0 < noise < 0.05


def test_the_graph_that_was_given_is_as_before(half, scales):
    before = half.SerializeToString(deterministic=True)
    qdq.quantized(half, scales)
    assert half.SerializeToString(deterministic=True) == before


def test_a_product_is_that_of_the_integers():
    weight = RNG.normal(size=(4, 3, 3, 3)) * np.array([1e-4, 1, 30, 0])[:, None, None, None]
    bias = RNG.normal(size=4)
    model = qdq.quantized(convolution(weight, bias), {"images": 0.02})
    x = RNG.normal(size=(1, 3, 8, 8)).astype(np.float32)
    [found] = qdq.runner(model, ["y"])(x)
    values = arrays(model)
    integers = np.clip(np.rint(x.astype(np.float64) / np.float32(0.02)), -128, 127)
    steps = values["conv.weight.int8.scale"].astype(np.float64)
    padded = np.pad(integers, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded[0], (3, 3), (1, 2))
    sums = np.einsum("chwij,ocij->ohw", windows, values["conv.weight.int8"].astype(np.float64))
    expected = sums * (steps * np.float32(0.02))[:, None, None] + bias[:, None, None]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)
    # Each channel has its own scale, so that the small ones are not rounded away.
    assert (np.abs(values["conv.weight.int8"]).max((1, 2, 3))[:3] > 60).all()


@pytest.mark.parametrize(
    ("scale", "text"),
    [
        (float("nan"), "the scale of images is nan, expected a positive number"),
        (float("inf"), "the scale of images is inf"),
        (-0.5, "the scale of images is -0.5"),
        (1e6, r"the scale of images is 1000000\.0, expected .* fits into float16, or 0"),
        (None, "conv reads images, of which there is no scale"),
    ],
)
def test_damaged_scales_are_refused(scale, text):
    graph = convolution(np.ones((2, 3, 1, 1)), dtype=np.float16)
    with pytest.raises(ExportError, match=text):
        qdq.quantized(graph, {} if scale is None else {"images": scale})


def test_what_has_no_range_stays_as_it_is():
    graph = convolution(np.ones((2, 3, 1, 1)))
    assert qdq.scales(graph, [np.zeros((1, 3, 8, 8), np.float32)]) == {"images": 0.0}
    assert [node.op_type for node in qdq.quantized(graph, {"images": 0.0}).graph.node] == ["Conv"]


def test_a_weight_too_small_for_float16_scales_has_one_nevertheless():
    model = qdq.quantized(convolution(np.full((2, 3, 1, 1), 1e-6), dtype=np.float16), {"images": 0.5})
    steps = arrays(model)["conv.weight.int8.scale"]
    assert (steps == np.finfo(np.float16).smallest_subnormal).all()


# ------------------------------------------------------------------------------------------------- scales


def error_of(values, scale):
    return np.square(np.clip(np.rint(values / scale), -127, 127) * scale - values).mean()


@pytest.mark.parametrize("place", [0, -1])
def test_a_scale_has_about_the_least_error(place):
    # One value far beyond all others, in the first or the last picture: to hold it costs all others bits.
    values = np.random.default_rng(3).normal(size=(6, 1, 3, 256, 256)).astype(np.float32)
    values[place, 0, 0, 0, 0] = 12
    graph = convolution(np.ones((2, 3, 1, 1)), size=256)
    found = qdq.scales(graph, list(values))["images"]
    tried = [error_of(values, top / 127) for top in np.linspace(3, 12, 40)]
    assert error_of(values, found) < 1.05 * min(tried)
    assert error_of(values, found) < 0.6 * error_of(values, 12 / 127)


def test_what_is_not_finite_is_refused_by_its_name():
    graph = convolution(np.ones((2, 3, 1, 1)))
    images = np.ones((1, 3, 8, 8), np.float32)
    images[0, 1, 2, 3] = np.inf
    with pytest.raises(ExportError, match="images is not finite for one of the pictures"):
        qdq.scales(graph, [images])


def test_a_graph_that_cannot_be_run_is_an_export_error():
    graph = convolution(np.ones((2, 3, 1, 1)))
    with pytest.raises(ExportError, match=r"int8: ONNX Runtime cannot run the graph: \[ONNXRuntimeError\]"):
        qdq.runner(graph, ["none"])
    with pytest.raises(ExportError, match=r"int8: ONNX Runtime cannot run the graph: \[ONNXRuntimeError\]"):
        qdq.runner(graph, ["y"])(np.ones((1, 3, 9, 9), np.float32))


# ------------------------------------------------------------------------------------------------- export


def export(weights, folder, **options):
    given = {
        "format": "tensorrt",
        "target": "sm75",
        "precision": "int8",
        "pictures": PICTURES,
        "im_size": SIZE,
    }
    return fai_fast.export(weights, folder / "m.engine", **(given | options))


@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_exported_is_verified_by_what_it_finds(batch, weights, builder, tmp_path, monkeypatch):
    seen = []

    def verify(candidate, reference, pictures, spec, **options):
        image = np.zeros((1, 3, *SIZE), np.float32)
        seen.append((pictures.count, options, [len(item) for item in candidate(image)]))
        low, exact = candidate(image)[0], reference(image)[0]
        assert low.shape == exact.shape
        assert np.abs(low.astype(np.float32) - exact).max() > 0
        return GOOD

    monkeypatch.setattr(_gate, "verify", verify)
    report = export(weights, tmp_path, batch=batch)
    assert seen == [(3, {"size": SIZE}, [1, 1])]
    assert (report.precision, report.batch, report.targets) == ("int8", batch, ("sm75",))
    assert report.verified
    assert report.verification["agreement"] == GOOD.to_dict()
    assert report.verification["fp32"]["mask_difference"] < 1e-4
    assert "verified against the fp32 graph (panoptic quality 0.97" in repr(report)
    record = tensorrt.read_record(report.path)
    assert (record.precision, record.verification) == ("int8", report.verification)
    graph = onnx.load_from_string(report.path.read_bytes()).graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == batch
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) > 10


def test_a_graph_that_finds_something_else_is_refused_and_nothing_is_left(
    weights, builder, tmp_path, monkeypatch
):
    monkeypatch.setattr(_gate, "verify", lambda *_, **__: BAD)
    with pytest.raises(
        ExportError, match=r"the int8 graph does not find what the fp32 graph finds: panoptic quality 0\.41"
    ):
        export(weights, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_demo_model_finds_in_int8_what_it_finds_in_fp32(builder, tmp_path):
    from fai_fast import _scenes

    pictures = [_scenes.draw(seed, (192, 192)) for seed in range(12)]
    report = export("fai-mf-n-shapes", tmp_path, im_size=None, pictures=pictures)
    agreement = Verdict.from_dict(report.verification["agreement"])
    assert agreement.metric == "panoptic quality"
    assert agreement.holds


def test_the_demo_model_keeps_its_average_precision(monkeypatch):
    for package in ("cv2", "faster_coco_eval"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "tools"))
    import qdq_shapes

    monkeypatch.setattr(qdq_shapes, "CALIBRATION_SCENES", 16)
    (_, exact), (_, low) = qdq_shapes.precision_of(30)
    assert exact > 55
    assert low > exact - 1


def test_without_verification_nothing_is_run_but_for_ranges(weights, builder, tmp_path, monkeypatch):
    monkeypatch.setattr(_gate, "verify", None)
    report = export(weights, tmp_path, verify=False)
    assert not report.verified
    assert "not verified" in repr(report)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"pictures": None}, ValueError, "pictures: got None with precision 'int8', expected a folder"),
        ({"pictures": []}, ValueError, "pictures: got none"),
        ({"pictures": 3}, TypeError, "pictures: got int"),
        ({"pictures": "none/"}, FileNotFoundError, "pictures: no such folder"),
        ({"precision": "fp16"}, ValueError, "pictures: got some with precision 'fp16', expected None"),
    ],
)
def test_wrong_arguments_are_named(options, error, text, weights, builder, tmp_path):
    with pytest.raises(error, match=text):
        export(weights, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_runtime_it_says_so_at_once(weights, builder, tmp_path, monkeypatch):
    from fai_fast.engines import onnxruntime

    onnxruntime.package.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("fai_fast.exporter.write", None)
    try:
        with pytest.raises(EngineError, match=r"onnxruntime: .*install"):
            export(weights, tmp_path)
    finally:
        onnxruntime.package.cache_clear()


def test_the_command_line_exports_and_says_what_was_measured(builder, tmp_path, capsys, monkeypatch):
    from PIL import Image

    (tmp_path / "scenes").mkdir()
    Image.fromarray(PICTURES[0]).save(tmp_path / "scenes" / "a.png")
    monkeypatch.setattr(_gate, "verify", lambda *_, **__: GOOD)
    place = tmp_path / "m.engine"
    given = ["export", "fai-mf-n-shapes", str(place), "--target", "sm75", "--im-size", "64"]
    given += ["--format", "tensorrt"]
    assert main([*given, "--precision", "int8", "--pictures", str(tmp_path / "scenes")]) == 0
    said = capsys.readouterr().out
    assert "37 of 37 convolutions, 0 of 27 linear layers, " in said
    assert "panoptic quality 0.97 (at least 0.9) of 40 detections on 3 pictures" in said
    assert " of reference" in said
    assert main([*given, "--precision", "int8"]) == 2
    assert main([*given, "--pictures", str(tmp_path / "scenes")]) == 2
    onnx_file = ["export", "fai-mf-n-shapes", str(tmp_path / "m.onnx")]
    assert main([*onnx_file, "--precision", "int8", "--pictures", str(tmp_path / "scenes")]) == 2
