"""Explicit int8 for TensorRT of networks that are not FocoosAI's: which products, and what is said of them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import fai_fast
import numpy as np
import pytest
from fai_fast import _gate, _scenes
from fai_fast._gate import Verdict
from fai_fast._pictures import Pictures
from fai_fast.engines.tensorrt import check_for_turing
from fai_fast.errors import ExportError
from fai_fast.exporter import others as exporting
from fai_fast.exporter import products, qdq, tensorrt
from fai_fast.exporter.products import CONVOLUTION, LINEAR, OTHER
from fai_fast.networks import Network, Reference, foreign, pretrained
from helpers import others

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

node = onnx.helper.make_node
SIZE = (64, 64)
PICTURES = [_scenes.draw(seed, SIZE) for seed in range(4)]
GOOD = Verdict("panoptic quality", 0.97, 0.9, "", "40 detections", "3 pictures")
BAD = Verdict("panoptic quality", 0.41, 0.9, "", "40 detections", "3 pictures")
KINDS = ("mask2former", "eomt", "file")


@dataclasses.dataclass
class Case:
    """A network in all the forms between fp32 and int8."""

    network: Network
    exact: Any
    names: set[str]
    images: list[Any]
    model: Any


@pytest.fixture(scope="module")
def case_of(tmp_path_factory):
    """Makes a network's graphs once: tracing takes a second."""
    made: dict[str, Case] = {}

    def case(kind: str) -> Case:
        if kind not in made:
            if kind == "file":
                path = others.write(tmp_path_factory.mktemp("file") / "theirs.onnx", size=SIZE)
                network = foreign.network_of(path, others.spec(), SIZE)
            else:
                pytest.importorskip("transformers", reason="transformers is not installed")
                from helpers.families import small

                found = pretrained.find(small(kind), task="instance")
                assert found is not None
                network = found.network()
            original = network.graph(SIZE, 1)
            run = qdq.runner(original)
            network = dataclasses.replace(
                network,
                graph=lambda size, batch: copy.deepcopy(original),
                reference=lambda size, batch: Reference("it", lambda images: tuple(run(images)), True),
            )
            exact = exporting.ready_for_int8(original, "it")
            names = products.choices(exact)[0]
            pictures = Pictures.given(PICTURES)
            model, _ = exporting.made(network, SIZE, 1, "int8", False, pictures)
            images = list(qdq.batches(network.spec, SIZE, 1, pictures))
            made[kind] = Case(network, exact, names, images, model)
        return made[kind]

    return case


@pytest.fixture(params=KINDS)
def case(request, case_of) -> Case:
    return case_of(request.param)


def arrays(model):
    return {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}


# -------------------------------------------------------------------------------------------------- graphs


def test_every_chosen_product_multiplies_integers(case):
    values, exact = arrays(case.model), arrays(case.exact)
    makers = {item.output[0]: item for item in case.model.graph.node}
    before = {item.name: item for item in case.exact.graph.node}
    seen = set()
    for item in case.model.graph.node:
        if item.name not in case.names:
            assert not any("rounded" in name for name in item.input)
            continue
        seen.add(item.name)
        x, weight = (makers[name] for name in item.input[:2])
        assert (x.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert makers[x.input[0]].op_type == "QuantizeLinear"
        assert list(x.input[1:]) == list(makers[x.input[0]].input[1:])
        assert values[x.input[1]].shape == ()
        integers, steps = values[weight.input[0]], values[weight.input[1]]
        [axis] = [part.i for part in weight.attribute if part.name == "axis"]
        original = exact[before[item.name].input[1]]
        assert integers.dtype == np.int8
        assert integers.shape == original.shape
        assert steps.shape == (integers.shape[axis],)
        by_channel = np.expand_dims(
            steps.astype(np.float64), tuple(i for i in range(integers.ndim) if i != axis)
        )
        # In steps of the channel no weight is further away than what was cut off at the ends allows.
        off = np.abs(integers * by_channel - original) / by_channel
        assert np.quantile(off, 0.9) <= 0.55
        # Biases are not rounded.
        assert all(values[name].dtype == np.float16 for name in item.input[2:])
    assert seen == case.names
    for item in case.model.graph.node:
        if item.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert values[item.input[1]].dtype == np.float16
            assert (values[item.input[1]] > 0).all()
            assert values[item.input[2]].dtype == np.int8
            assert not values[item.input[2]].any()


def test_tensorrt_can_take_it(case):
    onnx.checker.check_model(case.model, full_check=True)
    assert case.model.opset_import[0].version >= qdq.OPSET
    assert case.model.ir_version >= qdq.IR_VERSION
    check_for_turing(case.model)  # all that is no integer is float16, and all shapes are known


def test_it_gives_about_what_fp32_gives(case):
    exact, low = qdq.runner(case.exact), qdq.runner(case.model)
    for image in case.images:
        for true, found in zip(exact(image), low(image), strict=True):
            noise = np.square(found.astype(np.float64) - true).sum() / np.square(true - true.mean()).sum()
            assert 0 < noise < 0.05


def test_a_weight_takes_a_quarter_of_its_bytes_and_is_there_once(case):
    exact, low = arrays(case.exact), arrays(case.model)
    before = {item.input[1] for item in case.exact.graph.node if item.name in case.names}
    integers = {name: value for name, value in low.items() if name.endswith(".weight.int8")}
    assert sum(value.nbytes for value in integers.values()) * 4 == sum(exact[name].nbytes for name in before)
    rest = sum(value.nbytes for name, value in exact.items() if name not in before)
    scales = sum(value.nbytes for name, value in low.items() if ".int8." in name)
    # All else takes half of what it took, but for normalizations and whole numbers.
    whole = sum(value.nbytes for value in low.values())
    assert whole <= sum(value.nbytes for value in integers.values()) + scales + rest


def test_the_report_says_what_is_int8(case):
    found = products.products_of(case.model)
    assert {item.name for item in found if item.low} == case.names
    said = products.in_words(case.model)
    convolutions = [item.low for item in found if item.kind == CONVOLUTION]
    assert f"{sum(convolutions)} of {len(convolutions)} convolutions" in said
    assert 0 < int(said.split(" %")[0].rsplit(" ", 1)[1]) <= 100


def test_attention_masks_and_classes_stay(case_of):
    case = case_of("eomt")
    kinds = {item.name: item for item in products.products_of(case.exact)}
    makers = {name: item for item in case.exact.graph.node for name in item.output}
    left = [item for item in kinds.values() if item.name not in case.names]
    assert sum(item.kind == OTHER for item in left) >= 2 * 3  # scores and sums of three layers, masks
    # The linear layer of the classes, and the last one of the queries' masks, for each time that masks are asked for.
    assert 2 <= sum(item.kind == LINEAR for item in left) <= 6
    assert all(item.decides for item in left if item.kind != OTHER)
    # Four of attention and two of the other half of each layer, and what is before the masks, are not.
    assert sum(kinds[name].kind == LINEAR for name in case.names) >= 6 * 3
    assert [kinds[name].kind for name in case.names].count(CONVOLUTION) >= 1
    last = makers["class_logits"]
    while last.op_type not in ("MatMul", "Gemm"):
        last = makers[next(name for name in last.input if name in makers)]
    assert last.name in {item.name for item in left}


# ----------------------------------------------------------------------------------------------- products


def graph_of(nodes, weights, inputs, outputs, opset=18):
    """A graph of float32 values; shapes by name."""
    rng = np.random.default_rng(0)
    info = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        nodes,
        "g",
        [info(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [info(name, onnx.TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [
            onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)


def kinds_of(model):
    return {item.name: item.kind for item in products.products_of(model)}


def test_what_multiplies_by_a_weight_is_told_from_what_does_not():
    weights = {
        "w": (3, 4), "t": (4, 3), "one": (1, 3, 4), "each": (2, 3, 4), "row": (3,), "left": (5, 5), "b": (4,),
    }  # fmt: skip
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="matmul"),
        node("Gemm", ["v", "w", "b"], ["b1"], name="gemm"),
        node("Gemm", ["v", "t"], ["b2"], name="gemm turned", transB=1),
        node("Gemm", ["u", "w"], ["b3"], name="gemm of columns", transA=1),
        node("MatMul", ["x", "one"], ["c"], name="one matrix"),
        node("MatMul", ["x", "each"], ["d"], name="a matrix each"),
        node("MatMul", ["x", "row"], ["e"], name="a row"),
        node("MatMul", ["left", "x"], ["f"], name="from the left"),
        node("Einsum", ["x", "a"], ["g"], name="einsum", equation="bij, bik -> bjk"),
        node("MatMul", ["v", "v2"], ["h"], name="activations"),
    ]
    inputs = {"x": (2, 5, 3), "v": (5, 3), "u": (3, 5), "v2": (3, 4)}
    model = graph_of(nodes, weights, inputs, {"g": (2, 3, 4)})
    found = kinds_of(model)
    able = {"matmul", "gemm", "gemm turned", "one matrix"}
    assert {name for name, kind in found.items() if kind == LINEAR} == able
    assert set(found.values()) == {LINEAR, OTHER}
    held = {item.name: item for item in model.graph.initializer}
    axes = [what.axis for item in nodes if (what := products.weighted(item, held))]
    assert axes == [1, 1, 0, 2]
    work = {item.name: item.work for item in products.products_of(model)}
    assert work["matmul"] == work["one matrix"] == 2 * 5 * 3 * 4
    assert work["gemm"] == work["gemm turned"] == work["gemm of columns"] == work["activations"] == 5 * 3 * 4
    assert work["einsum"] == 2 * 5 * 3 * 4


def test_convolutions_count_their_work_by_groups():
    nodes = [
        node("Conv", ["x", "w"], ["y"], name="plain", pads=[1, 1, 1, 1]),
        node("Conv", ["y", "d"], ["z"], name="by depth", group=8, pads=[1, 1, 1, 1]),
        node("ConvTranspose", ["z", "t"], ["out"], name="turned", strides=[2, 2]),
    ]
    weights = {"w": (8, 3, 3, 3), "d": (8, 1, 3, 3), "t": (8, 5, 2, 2)}
    model = graph_of(nodes, weights, {"x": (1, 3, 6, 6)}, {"out": (1, 5, 12, 12)})
    work = {item.name: item.work for item in products.products_of(model)}
    assert work == {"plain": 36 * 8 * 27, "by depth": 36 * 8 * 9, "turned": 36 * 8 * 5 * 4}
    assert kinds_of(model)["turned"] == OTHER


@pytest.mark.parametrize("bias", [False, True])
def test_a_transposed_convolution_of_squares_is_a_convolution(bias):
    weights = {"w": (5, 6, 2, 2), "b": (6,)} if bias else {"w": (5, 6, 2, 2)}
    nodes = [
        node("ConvTranspose", ["images", *weights], ["y"], name="first", strides=[2, 2]),
        node("ConvTranspose", ["images", *weights], ["z"], name="second", strides=[2, 2], pads=[0] * 4),
    ]
    shape = (1, 6, 6, 8)
    model = graph_of(nodes, weights, {"images": (1, 5, 3, 4)}, {"y": shape, "z": shape})
    plain = copy.deepcopy(model)
    products.with_plain_convolutions(plain)
    assert kinds_of(plain) == {"first": CONVOLUTION, "second": CONVOLUTION}
    assert sum(name.endswith(".squares") for name in arrays(plain)) == len(weights)
    image = np.random.default_rng(4).normal(size=(1, 5, 3, 4)).astype(np.float32)
    for found, true in zip(
        qdq.runner(plain, ["y", "z"])(image), qdq.runner(model, ["y", "z"])(image), strict=True
    ):
        np.testing.assert_allclose(found, true, rtol=1e-5, atol=1e-5)
    work = [[item.work for item in products.products_of(one)] for one in (model, plain)]
    assert work[0] == work[1]


@pytest.mark.parametrize(
    ("weight", "options"),
    [
        ((5, 6, 3, 3), {"strides": [2, 2]}),
        ((5, 6, 2, 2), {"strides": [1, 1]}),
        ((5, 6, 2, 2), {}),
        ((5, 6, 2, 3), {"strides": [2, 3]}),
        ((5, 6, 2), {"strides": [2]}),
        ((6, 3, 2, 2), {"strides": [2, 2], "group": 2}),
        ((5, 6, 2, 2), {"strides": [2, 2], "pads": [1, 0, 0, 0]}),
        ((5, 6, 2, 2), {"strides": [2, 2], "output_padding": [1, 1]}),
        ((5, 6, 2, 2), {"strides": [2, 2], "dilations": [2, 2]}),
        ((5, 6, 2, 2), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ((5, 6, 2, 2), {"strides": [2, 2], "output_shape": [7, 9]}),
    ],
)
def test_other_transposed_convolutions_stay(weight, options):
    nodes = [node("ConvTranspose", ["x", "w"], ["y"], name="it", **options)]
    model = graph_of(nodes, {"w": weight}, {"x": (1, weight[0], *[3] * (len(weight) - 2))}, {"y": None})
    before = model.SerializeToString(deterministic=True)
    products.with_plain_convolutions(model)
    assert model.SerializeToString(deterministic=True) == before


def test_what_decides_stays_and_the_layer_right_before_a_mask_too():
    nodes = [
        node("MatMul", ["q", "w1"], ["q1"], name="first"),
        node("Relu", ["q1"], ["q2"], name="relu"),
        node("MatMul", ["q2", "w2"], ["q3"], name="mask embedding"),
        node("Conv", ["x", "wc"], ["p"], name="pixels"),
        node("Flatten", ["p"], ["p1"], name="flat", axis=2),
        node("MatMul", ["q3", "p1"], ["masks"], name="masks"),
        node("MatMul", ["q2", "w3"], ["classes"], name="classes"),
        node("MatMul", ["q2", "w4"], ["d"], name="decision"),
        node("Less", ["d", "zero"], ["off"], name="less"),
        node("Where", ["off", "q2", "q1"], ["chosen"], name="where"),
        node("MatMul", ["chosen", "w5"], ["rest"], name="after"),
    ]
    square = (4, 4)
    weights = {"w1": square, "w2": square, "w3": square, "w4": square, "w5": square, "wc": (4, 3, 1, 1)}
    model = graph_of(
        nodes,
        weights | {"zero": ()},
        {"q": (4, 4), "x": (4, 3, 2, 2)},
        {"masks": (4, 4), "classes": (4, 4)},
    )
    deciding = {item.name for item in products.products_of(model) if item.decides}
    assert deciding == {"masks", "mask embedding", "classes", "decision"}
    assert products.choices(model)[0] == {"first", "pixels", "after"}


def test_a_layer_that_is_no_work_is_not_worth_it():
    nodes = [
        node("Conv", ["x", "w"], ["y"], name="all the work", pads=[1, 1, 1, 1]),
        node("ReduceMean", ["y", "plane"], ["v"], keepdims=0, name="mean"),
        node("MatMul", ["v", "w1"], ["v1"], name="small"),
        node("Relu", ["v1"], ["v2"], name="relu"),
        node("MatMul", ["v2", "w2"], ["out"], name="classes"),
    ]
    model = graph_of(
        nodes, {"w": (32, 3, 3, 3), "w1": (32, 32), "w2": (32, 4)}, {"x": (1, 3, 64, 64)}, {"out": (1, 4)}
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3]), "plane"))
    assert products.choices(model) == [{"all the work"}]


def test_a_weight_that_two_products_share_is_stored_once():
    nodes = [
        node("MatMul", ["images", "w"], ["a"], name="one"),
        node("MatMul", ["a", "w"], ["b"], name="two"),
    ]
    model = graph_of(nodes, {"w": (4, 4)}, {"images": (1, 3, 4, 4)}, {"b": (1, 3, 4, 4)})
    image = np.random.default_rng(1).normal(size=(1, 3, 4, 4)).astype(np.float32)
    low = qdq.quantized(model, qdq.scales(model, [image], {"one", "two"}), {"one", "two"})
    assert [name for name in arrays(low) if name.endswith("weight.int8")] == ["one.weight.int8"]
    [found], [true] = qdq.runner(low, ["b"])(image), qdq.runner(model, ["b"])(image)
    assert np.abs(found - true).max() < 0.05 * np.abs(true).max()


@pytest.mark.parametrize("turned", [False, True])
def test_a_linear_layer_is_that_of_the_integers(turned):
    weight = np.random.default_rng(2).normal(size=(6, 4)) * np.array([1e-3, 1, 30, 0.1])
    given = weight.T.copy() if turned else weight
    model = graph_of(
        [
            node("Flatten", ["images"], ["x"], axis=3, name="flat"),
            node("Gemm", ["x", "w"], ["y"], name="linear", transB=int(turned)),
        ],
        {},
        {"images": (1, 3, 5, 6)},
        {"y": (15, 4)},
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(given.astype(np.float32), "w"))
    low = qdq.quantized(model, {"x": 0.03}, {"linear"})
    values = arrays(low)
    image = np.random.default_rng(3).normal(size=(1, 3, 5, 6)).astype(np.float32)
    integers = np.clip(np.rint(image.reshape(15, 6) / np.float32(0.03)), -128, 127)
    matrix = values["linear.weight.int8"].astype(np.float64)
    steps = values["linear.weight.int8.scale"].astype(np.float64)
    expected = integers @ (matrix.T if turned else matrix) * steps * np.float32(0.03)
    [found] = qdq.runner(low, ["y"])(image)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # Each output has its own scale, so that the small ones are not rounded away.
    assert (np.abs(matrix).max(1 if turned else 0) > 60).all()


# ------------------------------------------------------------------------------------------------- export


def export(model, folder, **options):
    given = {"format": "tensorrt", "target": "sm75", "precision": "int8", "pictures": PICTURES}
    return fai_fast.export(model, folder / "m.engine", **(given | options))


def test_a_file_of_somebody_is_exported_and_verified(builder, tmp_path):
    path = tmp_path / "theirs.onnx"
    model = others.graph(**others.OPEN)
    [mean] = [item for item in model.graph.node if item.op_type == "ReduceMean"]
    del mean.input[1:]
    mean.attribute.append(onnx.helper.make_attribute("axes", [2, 3]))
    model.opset_import[0].version = 13  # where axes were an attribute
    onnx.save(model, path)
    pictures = [others.picture(seed) for seed in range(6)]
    report = export(path, tmp_path, spec=others.spec(threshold=0.3), pictures=pictures)
    assert (report.precision, report.targets, report.verified) == ("int8", ("sm75",), True)
    assert report.int8.startswith("1 of 2 convolutions, 0 of 1 linear layers, ")
    assert report.to_dict()["int8"] == report.int8
    said = report.verification
    assert Verdict.from_dict(said["agreement"]).holds
    assert said["fp32"]["mask_difference"] < 1e-4
    record = tensorrt.read_record(report.path)
    assert (record.precision, record.int8, record.verification) == ("int8", report.int8, said)
    model = onnx.load_from_string(report.path.read_bytes())
    assert [item.op_type for item in model.graph.node].count("QuantizeLinear") == 1
    assert model.opset_import[0].version == qdq.OPSET


def test_batches_and_padded_frames(builder, tmp_path, monkeypatch):
    path = others.write(tmp_path / "theirs.onnx", batch=2)
    seen = []

    def verify(candidate, reference, pictures, spec, **options):
        image = np.zeros((1, 3, *SIZE), np.float32)
        seen.append([len(item) for run in (candidate, reference) for item in run(image)])
        return GOOD

    monkeypatch.setattr(_gate, "verify", verify)
    spec = others.spec(resize="pad")
    report = export(path, tmp_path, spec=spec, batch=2, pictures=[others.picture()])
    assert seen == [[1, 1, 1, 1]]
    assert report.batch == 2
    [images] = qdq.batches(spec, SIZE, 2, Pictures.given([others.picture()]))
    assert images.shape == (2, 3, *SIZE)
    assert np.array_equal(images[0], images[1])
    # 120 x 90 into 64 x 64: what is below is one colour.
    assert np.ptp(images[0, :, 50:], axis=(1, 2)).max() == 0


def test_convolutions_alone_are_tried_where_linear_layers_lose_too_much(case_of, monkeypatch):
    case = case_of("mask2former")
    verdicts = [BAD, GOOD]
    monkeypatch.setattr(_gate, "verify", lambda *_, **__: verdicts.pop(0))
    first, second = products.choices(case.exact)
    assert second < first
    model, said = exporting.made(case.network, SIZE, 1, "int8", True, Pictures.given(PICTURES))
    assert {item.name for item in products.products_of(model) if item.low} == second
    assert said["agreement"] == GOOD.to_dict()
    verdicts = [BAD, BAD]
    with pytest.raises(
        ExportError,
        match=r"int8 graph does not find what the fp32 graph finds with .* linear layers.*; with .* 0 of .* 0\.41",
    ):
        exporting.made(case.network, SIZE, 1, "int8", True, Pictures.given(PICTURES))


def test_what_finds_something_else_is_refused_and_nothing_is_left(builder, tmp_path, monkeypatch):
    path = others.write(tmp_path / "theirs.onnx")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(_gate, "verify", lambda *_, **__: BAD)
    with pytest.raises(ExportError, match=r"pears: the int8 graph does not find .* or export in fp16"):
        export(path, tmp_path / "out", spec=others.spec(), pictures=[others.picture()])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_graph_without_anything_to_round_is_refused(builder, tmp_path):
    model = others.graph()
    del model.graph.node[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1, 5, 3), np.float32), "zeros"))
    model.graph.node.extend(
        [
            node("AveragePool", ["pixel_values"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
            node("Concat", ["small", "small"], ["six"], axis=1),
            node("Split", ["six"], ["pred_masks", "left"], axis=1),
            node("ReduceMean", ["pixel_values"], ["mean"]),
            node("Squeeze", ["mean"], ["number"]),
            node("Add", ["zeros", "number"], ["pred_logits"]),
        ]
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([5, 1]), "parts"))
    model.graph.node[2].input.append("parts")
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(ExportError, match=r"has no convolution and no linear layer to make int8"):
        export(tmp_path / "theirs.onnx", tmp_path, spec=others.spec(), pictures=[others.picture()])


def test_an_opset_that_cannot_be_converted_is_told(case_of, monkeypatch):
    model = copy.deepcopy(case_of("file").exact)
    model.opset_import[0].version = 13
    model.graph.node.append(node("NoSuchThing", ["images"], ["x"], name="x"))
    with pytest.raises(ExportError, match=r"has opset 13, and cannot be converted to 18, which int8 needs"):
        exporting._with_newer_operators(model, "theirs.onnx")


def test_the_command_line_says_what_is_int8(builder, tmp_path, capsys, monkeypatch):
    import json

    from fai_fast.cli import main
    from PIL import Image

    path = others.write(tmp_path / "theirs.onnx")
    (tmp_path / "spec.json").write_text(json.dumps(others.spec().to_dict()))
    (tmp_path / "scenes").mkdir()
    Image.fromarray(PICTURES[0]).save(tmp_path / "scenes" / "a.png")
    monkeypatch.setattr(_gate, "verify", lambda *_, **__: GOOD)
    given = ["export", str(path), str(tmp_path / "m.engine"), "--spec", str(tmp_path / "spec.json")]
    given += ["--target", "sm75", "--precision", "int8", "--pictures", str(tmp_path / "scenes")]
    assert main([*given, "--format", "tensorrt"]) == 0
    said = capsys.readouterr().out
    assert "1 of 2 convolutions, 0 of 1 linear layers, " in said
    assert "panoptic quality 0.97" in said
