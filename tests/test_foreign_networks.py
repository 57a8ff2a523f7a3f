"""Networks that are nobody's: ONNX files of others with a spec, found by name and shape, held against the original."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re

import fai_fast
import numpy as np
import pytest
from fai_fast import exporter
from fai_fast.errors import EngineError, ExportError, WeightsError
from fai_fast.exporter import others as exporting
from fai_fast.networks import Network, Reference, fold, foreign, ports
from fai_fast.ops import preprocess

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")

from helpers import others  # noqa: E402
from helpers.others import (  # noqa: E402
    NAMES,
    OPEN,
    QUERIES,
    assert_same,
    expected,
    found,
    outputs,
    picture,
    spec,
    write,
)


def load(path, given=None, **options):
    return fai_fast.load(path, spec=spec() if given is None else given, device="cpu", **options)


# ------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("form", [{}, OPEN, {"boxes": True}, {"opset": 21}, {"last": False, "seed": 3}])
def test_a_file_of_others_finds_what_it_says_itself(tmp_path, engine, form):
    pytest.importorskip(engine)
    path = write(tmp_path / "theirs.onnx", **form)
    given = spec(threshold=0.4)
    with load(path, given, engine=engine, precision="fp32", cache_dir=tmp_path) as model:
        assert (model.spec, model.size, model.batch_size) == (given, (64, 64), 1)
        frame = picture()
        assert_same(model.infer(frame), expected(onnx.load(path), given, frame, (64, 64)))
        info = model.info()
    assert info["name"] == "pears"
    assert info["weights"] == str(path)
    assert re.match(r"the original file in (onnxruntime|openvino)", info["verification"]["against"])
    assert info["verification"]["mask_difference"] <= 1e-4
    assert "built" in info["artefacts"]["graph"]


@pytest.mark.parametrize(
    "given",
    [
        spec(task="semantic"),
        spec(task="semantic", combine="sum", threshold=0.0),
        spec(task="panoptic", panoptic=fai_fast.Panoptic(stuff=(1,)), threshold=0.3),
        spec(threshold=0.3, use_mask_score=True, mask_threshold=0.4),
        spec(threshold=0.3, pixel_mean=(0, 0, 0), pixel_std=(255, 255, 255)),
    ],
    ids=["semantic", "sum", "panoptic", "scored", "scaled"],
)
def test_each_task_and_rule(tmp_path, given):
    path = write(tmp_path / "theirs.onnx")
    frame = picture(1)
    with load(path, given, precision="fp32") as model:
        ours = model.infer(frame)
    theirs = expected(onnx.load(path), given, frame, (64, 64))
    assert_same(ours, theirs)


def test_classes_of_a_sigmoid(tmp_path):
    path = write(tmp_path / "theirs.onnx", columns=2)
    given = spec(cls_sigmoid=True)
    frame = picture(2)
    with load(path, given, precision="fp32") as model:
        assert_same(model.infer(frame), expected(onnx.load(path), given, frame, (64, 64)))


def test_a_file_in_float16(tmp_path):
    path = write(tmp_path / "theirs.onnx", dtype=np.float16, **OPEN)
    given = spec(threshold=0.4)
    frame = picture()
    with load(path, given, precision="fp32") as model:
        assert model.info()["engine"]["inputs"]["images"] == "float32 (1, 3, 64, 64)"
        ours = model.infer(frame)
    config = given.config
    images = preprocess(frame, (64, 64), mean=config.pixel_mean, std=config.pixel_std).astype(np.float16)
    assert_same(ours, found(outputs(onnx.load(path), images), given, frame), 5e-3)


def test_sizes_and_batches_of_open_sides(tmp_path):
    path = write(tmp_path / "theirs.onnx", **OPEN)
    given = spec(threshold=0.4)
    frames = [picture(seed) for seed in range(5)]
    with load(path, given, im_size=(64, 96), batch_size=4, precision="fp32") as model:
        assert (model.size, model.batch_size) == ((64, 96), 4)
        for ours, frame in zip(model.infer_batch(frames), frames, strict=True):
            assert_same(ours, expected(onnx.load(path), given, frame, (64, 96)))
    with load(path, given, frame=(90, 160)) as model:
        assert model.size == fai_fast.fit_size((90, 160), area=64 * 64)
        assert not model._size_is_open
    with load(path, given) as model:
        assert model._size_is_open
        with model._with_size((96, 64)) as other:
            assert (other.size, other.spec) == ((96, 64), given)
    with load(path, spec(60, stride=4, threshold=0.4), im_size=76) as model:
        assert model.size == (76, 76)


def test_a_fixed_batch_is_taken(tmp_path):
    path = write(tmp_path / "theirs.onnx", batch=2)
    with load(path) as model:
        assert model.batch_size == 2
        assert len(model.infer_batch([picture(seed) for seed in range(3)])) == 3


def test_one_side_may_be_open(tmp_path):
    path = write(tmp_path / "theirs.onnx", size=(64, None))
    with load(path, im_size=(64, 96)) as model:
        assert model.size == (64, 96)
        assert not model._size_is_open
    with pytest.raises(ValueError, match=r"im_size: got \(96, 96\), .*fixed to, 64 x any"):
        load(path, im_size=(96, 96))


def test_it_is_made_once(tmp_path):
    path = write(tmp_path / "theirs.onnx")
    load(path, cache_dir=tmp_path).close()
    with load(path, cache_dir=tmp_path) as model:
        assert "from the cache" in model.info()["artefacts"]["graph"]
    write(path, seed=1)
    with load(path, cache_dir=tmp_path) as model:
        assert "built" in model.info()["artefacts"]["graph"]
    with load(path, spec(threshold=0.2), cache_dir=tmp_path) as model:
        assert "built" in model.info()["artefacts"]["graph"]
        assert model.spec.config.threshold == 0.2


def test_what_it_has_and_has_not(tmp_path, monkeypatch):
    write(tmp_path / "theirs.onnx")
    monkeypatch.chdir(tmp_path)
    with load("theirs.onnx", cache_dir="kept") as model:
        with pytest.raises(WeightsError, match="pears was loaded from a graph"):
            model.weights  # noqa: B018
        words = pickle.dumps(model)
    monkeypatch.chdir("/")
    with pickle.loads(words) as again:
        assert again.spec == spec()
        assert "from the cache" in again.info()["artefacts"]["graph"]


# ------------------------------------------------------------------------------------------ what is whose


def test_outputs_by_name(tmp_path):
    path = write(tmp_path / "theirs.onnx", auxiliary=True)
    with pytest.raises(
        ValueError, match=r"could be mask and class logits; say which.*mask_logits_name="
    ) as error:
        load(path)
    for text in ("'pred_masks' float32 (1, 5, 16, 16)", "'aux_logits' float32 (1, 5, 3)"):
        assert text in str(error.value)
    frame = picture()
    given = spec(
        input_name="pixel_values", mask_logits_name="aux_masks", class_logits_name="aux_logits", threshold=0.3
    )
    with load(path, given, precision="fp32") as model:
        names = {"masks": "aux_masks", "classes": "aux_logits"}
        assert_same(model.infer(frame), expected(onnx.load(path), given, frame, (64, 64), **names))


def test_a_name_decides_one_of_two(tmp_path):
    path = write(tmp_path / "theirs.onnx", boxes=True, columns=4)
    given = spec(classes=("a", "b", "c"))
    with pytest.raises(
        ValueError, match=r"'pred_masks' with 'pred_boxes', 'pred_masks' with 'pred_logits' could be"
    ):
        load(path, given)
    with load(path, spec(classes=("a", "b", "c"), class_logits_name="pred_logits")) as model:
        assert model.info()["engine"]["outputs"]["class_logits"] == "float32 (1, 5, 4)"


@pytest.mark.parametrize(
    "names", [("mask_logits", "class_logits"), ("class_logits", "mask_logits"), ("f2", "images")]
)
def test_names_that_are_ours_already_may_stand_for_anything(tmp_path, names):
    path = write(tmp_path / "theirs.onnx", masks=names[0], classes=names[1], image="x", auxiliary=False)
    given = spec(threshold=0.4)
    frame = picture()
    with load(path, given, precision="fp32") as model:
        named = {"masks": names[0], "classes": names[1], "image": "x"}
        assert_same(model.infer(frame), expected(onnx.load(path), given, frame, (64, 64), **named))


@pytest.mark.parametrize(
    ("form", "config", "text"),
    [
        (
            {},
            {"input_name": "image"},
            r"config.input_name: got 'image', .*'pixel_values' float32 \(1, 3, 64, 64\)",
        ),
        ({}, {"mask_logits_name": "m"}, r"config.mask_logits_name: got 'm', .*'pred_masks' float32"),
        ({}, {"class_logits_name": "m"}, r"config.class_logits_name: got 'm', expected one of the outputs"),
        (
            {},
            {"mask_logits_name": "pred_logits"},
            r"config.mask_logits_name: 'pred_logits' float32 \(1, 5, 3\) cannot be the mask_logits, .*\(1, Q, h, w\)",
        ),
        (
            {},
            {"class_logits_name": "pred_masks"},
            r"cannot be the class_logits, expected float32 or float16 .*\(1, Q, 3\), K = 2 classes and 'no object'",
        ),
        (
            {"columns": 2},
            {},
            r"'pred_logits' has 2 columns, as with config.cls_sigmoid=True .*or with one class less",
        ),
        (
            {},
            {"cls_sigmoid": True},
            r"has 3 columns, as with config.cls_sigmoid=False .*or with one class more",
        ),
        (
            {"columns": 7},
            {},
            r"'pred_masks' float32 .*'pred_logits' float32 \(1, 5, 7\), expected class_logits",
        ),
        ({}, {"num_queries": 9}, r"expected mask_logits \(B, Q, h, w\) = \(1, 9, h, w\)"),
        ({"last": True}, {}, r"\(1, 64, 64, 3\), with the colors last .*channels first"),
        (
            {"dtype": np.float64},
            {},
            r"input 'pixel_values' float64 \(1, 3, 64, 64\), expected the normalized image",
        ),
        ({"size": (32, 64)}, {}, r"spec.im_size: got 64, expected the size .*fixed to, 32 x 64"),
    ],
)
def test_what_is_not_as_it_was_said(tmp_path, form, config, text):
    path = write(tmp_path / "theirs.onnx", **form)
    with pytest.raises(ValueError, match=text):
        load(path, spec(**config))


@pytest.mark.parametrize("training", [None, False, True])
def test_what_is_drawn_at_random_is_refused(tmp_path, training):
    model = others.graph()
    last = model.graph.node[-1]
    assert last.op_type == "Reshape"
    last.input[0] = "drawn"
    if training is None:
        made = onnx.helper.make_node("RandomNormalLike", ["flat"], ["drawn"])
    else:
        made = onnx.helper.make_node("Dropout", ["flat", "", "training"], ["drawn"])
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(training), "training"))
    model.graph.node.insert(len(model.graph.node) - 1, made)
    onnx.save(model, tmp_path / "theirs.onnx")
    network = foreign.network_of(tmp_path / "theirs.onnx", spec(), (64, 64))
    if training is False:
        assert network.graph((64, 64), 1)
        return
    with pytest.raises(
        ValueError, match=rf"\({made.op_type}\) gives other numbers in each run, expected none"
    ):
        network.graph((64, 64), 1)


def test_masks_and_classes_of_different_queries_are_no_pair(tmp_path):
    model = others.graph()
    extra = others.graph(queries=QUERIES + 1)
    for node in extra.graph.node:
        node.output[:] = [f"x_{name}" for name in node.output]
        node.input[:] = [name if name == "pixel_values" else f"x_{name}" for name in node.input]
    for item in extra.graph.initializer:
        item.name = f"x_{item.name}"
    model.graph.node.extend(extra.graph.node)
    model.graph.initializer.extend(extra.graph.initializer)
    other = extra.graph.output[1]
    other.name = "x_pred_logits"
    del model.graph.output[1:]
    model.graph.output.extend([other])
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(ValueError, match=r"no mask logits .* have the same number of queries"):
        load(tmp_path / "theirs.onnx")


def test_a_second_input_is_refused(tmp_path):
    model = others.graph()
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("pixel_mask", onnx.TensorProto.INT64, [1, 64, 64])
    )
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(
        ValueError, match=r"inputs 'pixel_values'.*'pixel_mask' int64 \(1, 64, 64\), expected a single"
    ):
        load(tmp_path / "theirs.onnx")


def test_weights_among_the_inputs_are_none(tmp_path):
    """As files of old exporters have them."""
    model = others.graph()
    for item in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims))
    onnx.save(model, tmp_path / "theirs.onnx")
    with load(tmp_path / "theirs.onnx") as ready:
        assert ready.size == (64, 64)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"im_size": 32}, r"im_size: got 32, expected the size that the input of .*fixed to, 64 x 64"),
        ({"frame": (90, 160)}, r"frame: got \(90, 160\), expected the size"),
        ({"batch_size": 2}, r"batch_size: got 2, expected 1, which the input"),
        ({"weights": "a.pth"}, r"weights: got some with spec=, expected None"),
        ({"im_size": 9000}, r"im_size: got \(9000, 9000\), expected at most 8192"),
        (
            {"spec": fai_fast.spec("fai-mf-s-coco-ins")},
            r"spec: got one of the family 'fai_mf', expected .*'custom'",
        ),
        ({"spec": 3}, r"spec: got int, expected a ModelSpec"),
    ],
)
def test_arguments_that_do_not_go_with_it(tmp_path, options, text):
    path = write(tmp_path / "theirs.onnx")
    with pytest.raises((TypeError, ValueError), match=text):
        fai_fast.load(path, **{"spec": spec(), **options})


def test_a_spec_as_a_dict_or_a_file(tmp_path):
    path = write(tmp_path / "theirs.onnx")
    given = spec(task="panoptic", panoptic=fai_fast.Panoptic(stuff=(0,)), resize="letterbox")
    said = json.loads(json.dumps(given.to_dict()))
    (tmp_path / "spec.json").write_text(json.dumps(said))
    for form in (said, tmp_path / "spec.json", str(tmp_path / "spec.json")):
        assert foreign.spec_from(form) == given
    with load(path, tmp_path / "spec.json") as model:
        assert model.spec == given
    with pytest.raises(FileNotFoundError, match=r"spec: no such file: .*none\.json"):
        load(path, tmp_path / "none.json")
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(ValueError, match=r"spec: .*spec\.json cannot be read as JSON"):
        load(path, tmp_path / "spec.json")
    (tmp_path / "spec.json").write_text(json.dumps({**said, "task": "pears"}))
    with pytest.raises(ValueError, match=r"spec: .*spec\.json: task: got 'pears'"):
        load(path, tmp_path / "spec.json")


def test_without_a_spec_its_shapes_are_told(tmp_path):
    path = write(tmp_path / "theirs.onnx", boxes=True, **OPEN)
    with pytest.raises(ValueError, match="spec: got None with") as error:
        fai_fast.load(path)
    text = str(error.value)
    for said in (
        "'pixel_values' float32 (?, 3, ?, ?)",
        "'pred_boxes' float32 (?, 5, 4), 'pred_masks' float32 (?, 5, ?, ?), 'pred_logits' float32 (?, 5, 3)",
        "fai_fast.load('theirs.onnx', spec=fai_fast.ModelSpec(name='theirs', task='instance', classes=(...2 names",
    ):
        assert said in text


def test_a_spec_is_for_networks_of_others_alone(tmp_path):
    own = tmp_path / "own.onnx"
    fai_fast.export(write(tmp_path / "theirs.onnx"), own, spec=spec())
    with fai_fast.load(own) as model, fai_fast.load(own, spec=spec()) as other:
        assert model.spec == other.spec == spec()
    with pytest.raises(
        ValueError, match=r"spec: got one that is not that of own\.onnx, .*<ModelSpec pears: custom"
    ):
        fai_fast.load(own, spec=spec(threshold=0.3))
    for name in ("fai-mf-s-coco-ins", tmp_path, 3):
        with pytest.raises(
            ValueError, match=r"spec: got one with .*, expected it with an \.onnx file or a torch"
        ):
            fai_fast.load(name, spec=spec())
    for name in ("a.engine", "a.openvino"):
        with pytest.raises(ValueError, match=rf"spec: got one with a \{name[1:]} file, expected None"):
            fai_fast.load(name, spec=spec())


# ---------------------------------------------------------------------------------------- the deployed graph


def deployed(tmp_path, model=None, precision="fp32", given=None, **options):
    onnx.save(others.graph(**OPEN) if model is None else model, tmp_path / "theirs.onnx")
    report = fai_fast.export(
        tmp_path / "theirs.onnx",
        tmp_path / "ours.onnx",
        spec=spec() if given is None else given,
        precision=precision,
        **options,
    )
    return report, onnx.load(tmp_path / "ours.onnx")


def shapes_of(values):
    return {item.name: tuple(side.dim_value for side in item.type.tensor_type.shape.dim) for item in values}


def test_an_exported_file_is_a_deployed_graph(tmp_path):
    report, model = deployed(tmp_path, others.graph(boxes=True, auxiliary=True, **OPEN), given=spec(
        mask_logits_name="pred_masks", class_logits_name="pred_logits"), im_size=(64, 96), batch=2)  # fmt: skip
    assert report.verified
    assert (report.size, report.batch, report.precision) == ((64, 96), 2, "fp32")
    assert shapes_of(model.graph.input) == {"images": (2, 3, 64, 96)}
    assert shapes_of(model.graph.output) == {"mask_logits": (2, 5, 16, 24), "class_logits": (2, 5, 3)}
    assert not {"Neg"} & {node.op_type for node in model.graph.node}
    assert "wb" not in {item.name for item in model.graph.initializer}
    info = exporter.read_metadata(tmp_path / "ours.onnx")
    assert (info.spec.name, info.size, info.batch) == ("pears", (64, 96), 2)
    with fai_fast.load(tmp_path / "ours.onnx", device="cpu") as ready:
        assert (ready.size, ready.batch_size) == ((64, 96), 2)


def test_what_follows_from_shapes_is_computed_once(tmp_path):
    """A chain as exporters leave it where a size was open."""
    model = others.graph(**OPEN)
    node = onnx.helper.make_node
    constants = {"two": np.array([2, 3]), "twice": np.array([1, 1, 2, 2])}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, key) for key, value in constants.items()
    )
    model.graph.node.extend(
        [
            node("Shape", ["pred_masks"], ["sides"]),
            node("Mul", ["sides", "twice"], ["larger"]),
            node("Resize", ["pred_masks", "", "", "larger"], ["masks"], mode="linear"),
            node("Constant", [], ["one"], value=onnx.numpy_helper.from_array(np.array(1.0, np.float32))),
            node("Mul", ["masks", "one"], ["out"]),
        ]
    )
    model.graph.output[0].name = "out"
    for precision in ("fp32", "fp16"):
        if precision == "fp16":
            pytest.importorskip("onnxruntime")
        report, ours = deployed(tmp_path, model, precision)
        assert report.verified
        assert not {"Shape", "Constant"} & {item.op_type for item in ours.graph.node}
        assert shapes_of(ours.graph.output)["mask_logits"] == (1, 5, 32, 32)


def test_folding_leaves_what_it_may_not_store():
    model = others.graph()
    node = onnx.helper.make_node
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([4096, 4096]), "large"))
    model.graph.node.extend(
        [
            node("ConstantOfShape", ["large"], ["zeros"]),
            node("RandomNormal", [], ["noise"], shape=[1]),
            node("Size", ["pixel_values"], ["pixels"]),
            node("Cast", ["pixels"], ["as_float"], to=1),
        ]
    )
    kept = {item.op_type for item in fold.folded(model).graph.node}
    assert {"ConstantOfShape", "RandomNormal", "Conv"} <= kept
    assert not {"Size", "Cast"} & kept


def test_float16_for_gpus(tmp_path):
    pytest.importorskip("onnxruntime")
    report, model = deployed(tmp_path, precision="fp16")
    assert report.precision == "fp16"
    assert report.verification["agreement"]["holds"]
    kinds = {item.type.tensor_type.elem_type for item in (*model.graph.input, *model.graph.output)}
    assert kinds == {onnx.TensorProto.FLOAT16}
    floats = {item.data_type for item in model.graph.initializer if item.data_type != onnx.TensorProto.INT64}
    assert floats == {onnx.TensorProto.FLOAT16}
    with fai_fast.load(tmp_path / "ours.onnx", engine="onnxruntime") as ready:
        assert ready.info()["engine"]["inputs"]["images"] == "float16 (1, 3, 64, 64)"
        assert len(ready.infer(picture(), threshold=0.3))


def test_a_value_that_two_nodes_take_in_float32(tmp_path):
    """As the features of a ViT, which one normalization takes for the masks and one for the classes."""
    pytest.importorskip("onnxruntime")
    model = others.graph()
    node, constant = onnx.helper.make_node, onnx.numpy_helper.from_array
    model.graph.initializer.append(constant(np.ones(16, np.float32), "ones"))
    masks = model.graph.output[0].name
    place = next(i for i, item in enumerate(model.graph.node) if masks in item.output)
    model.graph.node[place].output[0] = "raw"
    model.graph.node.extend(
        [
            node("LayerNormalization", ["raw", "ones"], ["one"]),
            node("LayerNormalization", ["raw", "ones"], ["other"]),
            node("Add", ["one", "other"], [masks]),
        ]
    )
    report, ours = deployed(tmp_path, model, "fp16")
    assert report.verified
    assert [item.op_type for item in ours.graph.node].count("LayerNormalization") == 2
    names = [name for item in ours.graph.node for name in item.output]
    assert len(names) == len(set(names))


def test_a_network_beyond_float16_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    model = others.graph()
    weights = next(item for item in model.graph.initializer if item.name == "w1")
    weights.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * np.float32(1e6), "w1")
    )
    scale = onnx.numpy_helper.from_array(np.array(1e-6, np.float32), "scale")
    model.graph.initializer.append(scale)
    relu = next(item for item in model.graph.node if item.op_type == "Relu")
    relu.output[0] = "loud"
    index = list(model.graph.node).index(relu)
    model.graph.node.insert(index + 1, onnx.helper.make_node("Mul", ["loud", "scale"], ["f"]))
    with pytest.raises(
        ExportError, match=r"the fp16 graph does not find what the original file .* export it in fp32"
    ):
        deployed(tmp_path, model, "fp16")
    assert not (tmp_path / "ours.onnx").exists()


def test_without_the_converter_it_says_what_to_install(tmp_path, monkeypatch):
    def package():
        raise EngineError("onnxruntime: cannot be imported")

    monkeypatch.setattr("fai_fast.networks.deploy.onnxruntime.package", package)
    with pytest.raises(EngineError, match="onnxruntime: cannot be imported"):
        deployed(tmp_path, precision="fp16")


def made_by(model, reference, exact):
    return Network(
        spec(),
        "made",
        "0" * 64,
        lambda size, batch: model,
        lambda size, batch: Reference("it", reference, exact),
    )


def test_a_graph_that_differs_is_refused(tmp_path):
    given = spec()
    network = foreign.network_of(write(tmp_path / "theirs.onnx"), given, (64, 64))
    model = network.graph((64, 64), 1)
    run = network.reference((64, 64), 1).run

    def off(images):
        masks, classes = run(images)
        return masks + np.float32(0.01), classes

    with pytest.raises(
        ExportError, match=r"is not equal to it: mask and class probabilities differ by 0\.00"
    ):
        exporting.made(made_by(model, off, exact=True), (64, 64), 1, "fp32", verify=True)
    _, found = exporting.made(made_by(model, off, exact=False), (64, 64), 1, "fp32", verify=True)
    assert found["agreement"]["holds"]

    def far(images):
        masks, classes = run(images)
        return -masks, classes[..., ::-1]

    with pytest.raises(ExportError, match="does not find what it finds"):
        exporting.made(made_by(model, far, exact=False), (64, 64), 1, "fp32", verify=True)
    with pytest.raises(ExportError, match=r"depends on something else than the images"):
        exporting.made(
            made_by(model, lambda images: [item[:, :3] for item in run(images)], True),
            (64, 64),
            1,
            "fp32",
            True,
        )
    assert exporting.made(made_by(model, far, exact=True), (64, 64), 1, "fp32", verify=False)[1] is None


def test_openvino_verifies_where_onnxruntime_is_missing(tmp_path, monkeypatch):
    def package():
        raise EngineError("onnxruntime: not here")

    monkeypatch.setattr("fai_fast.engines.onnxruntime.package", package)
    with load(write(tmp_path / "theirs.onnx", **OPEN), cache_dir=tmp_path) as model:
        assert model.info()["verification"]["against"].startswith("the original file in openvino")


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes(tmp_path, seed):
    """Sizes, batches, queries and classes as they come; graphs with and without open sides."""
    rng = np.random.default_rng(seed)
    size = tuple(int(side) * 4 for side in rng.integers(5, 24, 2))
    batch, queries, classes = (int(rng.integers(1, high)) for high in (4, 12, 9))
    sigmoid, half = bool(rng.integers(2)), bool(rng.integers(2))
    open_sides = bool(rng.integers(2))
    given = spec(
        size, classes=tuple(f"c{i}" for i in range(classes)), cls_sigmoid=sigmoid, threshold=0.1, stride=4
    )
    columns = classes + (not sigmoid)
    form = {"queries": queries, "columns": columns, "boxes": columns != 4, "seed": seed}
    form |= OPEN if open_sides else {"batch": batch, "size": size}
    form |= {"dtype": np.float16} if half else {}
    path = write(tmp_path / "theirs.onnx", **form)
    frames = [picture(seed + i, (50 + seed, 70)) for i in range(batch)]
    with load(path, given, batch_size=batch, precision="fp32") as model:
        assert (model.size, model.batch_size) == (size, batch)
        results = model.infer_batch(frames)
    config = given.config
    images = np.concatenate(
        [preprocess(frame, size, mean=config.pixel_mean, std=config.pixel_std) for frame in frames]
    )
    logits = outputs(onnx.load(path), images.astype(np.float16 if half else np.float32))
    for index, (ours, frame) in enumerate(zip(results, frames, strict=True)):
        theirs = found([values[index : index + 1] for values in logits], given, frame)
        near = 0.02 if half else 1e-4
        sure = theirs.confidence > config.threshold + near
        assert len(ours) >= sure.sum()
        assert np.allclose(ours.confidence[: sure.sum()], theirs.confidence[: sure.sum()], atol=near)
        if not half:
            assert np.array_equal(ours.class_id, theirs.class_id)


def test_shapes_that_onnx_does_not_see_come_from_openvino(tmp_path, monkeypatch):
    monkeypatch.setattr(ports, "inferred", lambda model: model)
    model = others.graph(**OPEN)
    assert [
        item.is_known for item in ports.outputs_of(ports.fixed(model, ports.inputs_of(model)[0], (64, 64), 1))
    ] == [
        False,
        False,
    ]
    with load(write(tmp_path / "theirs.onnx", **OPEN), cache_dir=tmp_path) as ready:
        assert ready.info()["engine"]["outputs"]["mask_logits"] == "float32 (1, 5, 16, 16)"


def test_the_names_are_those_of_the_classes(tmp_path):
    with load(write(tmp_path / "theirs.onnx")) as model:
        assert model.infer(picture(), threshold=0.2).class_names == NAMES


# -------------------------------------------------------------------------------------- int8, command line


def test_int8(tmp_path):
    pytest.importorskip("nncf")
    path = write(tmp_path / "theirs.onnx", **OPEN)
    pictures = [picture(seed) for seed in range(6)]
    given = spec(threshold=0.3)
    report = fai_fast.quantize(
        path, pictures, tmp_path / "a.openvino", spec=given, im_size=96, progress=False, cache_dir=tmp_path
    )
    assert (report.spec, report.size, report.precision) == (given, (96, 96), "int8")
    with fai_fast.load(tmp_path / "a.openvino", cache_dir=tmp_path) as model:
        ours = model.infer(picture())
        assert model.info()["precision"] == "int8"
    theirs = expected(onnx.load(path), given, picture(), (96, 96))
    assert len(ours) == len(theirs)
    assert np.allclose(ours.confidence, theirs.confidence, atol=0.1)
    # And from load() alone.
    options = {"precision": "int8", "cache_dir": tmp_path}
    with pytest.raises(EngineError, match=r"no int8 form of these weights in 64x64 is there: pass pictures="):
        load(path, given, **options)
    with load(path, given, pictures=pictures, **options) as model:
        assert model.info()["precision"] == "int8"
    with load(path, given, **options) as model:
        assert "from the cache" in model.info()["artefacts"]["quantized"]


def test_products_of_two_activations_are_kept_where_int8_loses_too_much():
    pytest.importorskip("nncf")
    from fai_fast.quantizer import calibration

    first, second = calibration.attempts_for(spec())
    assert calibration.attempts_for(fai_fast.spec("fai-mf-s-coco-ins")) == calibration.ATTEMPTS
    products = ["conv", "scores"]
    assert first.kept(products, {"scores"}) == []
    assert second.kept(products, {"scores"}) == ["scores"]


def test_products_of_two_activations_are_found(tmp_path):
    pytest.importorskip("nncf")
    from fai_fast.engines import openvino
    from fai_fast.quantizer import calibration

    model = others.graph()
    node = onnx.helper.make_node
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((3, 3), np.float32), "square"))
    model.graph.node.extend(
        [
            node("MatMul", ["pred_logits", "square"], ["p1"], name="by_weight"),
            node("Transpose", ["pred_logits"], ["turned"], perm=[0, 2, 1]),
            node("MatMul", ["p1", "turned"], ["p2"], name="by_activation"),
            node("MatMul", ["p2", "pred_logits"], ["p3"], name="by_another"),
            node("Neg", ["p3"], ["less"]),
        ]
    )
    model.graph.output[1].name = "less"
    onnx.save(model, tmp_path / "a.onnx")
    assert calibration._of_activations(openvino.read_graph(tmp_path / "a.onnx")) == {
        "by_activation",
        "by_another",
    }


def test_what_lies_between_products_stays_in_floats(tmp_path):
    """A convolution with a sum, one layer of attention, and a transposed convolution."""
    pytest.importorskip("nncf")
    from fai_fast.engines import openvino
    from fai_fast.quantizer import calibration

    rng = np.random.default_rng(0)
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    weights = {
        "first": (8, 3, 8, 8), "second": (8, 8, 3, 3), "b": (8,), "bias": (8,), "up": (8, 4, 2, 2),
        "wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "wo": (8, 8),
    }  # fmt: skip
    constants = {name: rng.standard_normal(sides).astype(np.float32) / 4 for name, sides in weights.items()}
    constants |= {"flat": np.array([1, 8, 64]), "back": np.array([1, 8, 8, 8])}
    nodes = [
        node("Conv", ["images", "first"], ["c1"], strides=[8, 8]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "second", "b"], ["c2"], pads=[1, 1, 1, 1]),
        node("Add", ["c2", "r1"], ["shortcut"], name="shortcut"),
        node("Relu", ["shortcut"], ["r2"]),
        node("Conv", ["r2", "second", "b"], ["c3"], pads=[1, 1, 1, 1]),
        node("Reshape", ["c3", "flat"], ["rows"]),
        node("Transpose", ["rows"], ["tokens"], perm=[0, 2, 1]),
        node("LayerNormalization", ["tokens", "bias"], ["n"]),
        node("MatMul", ["n", "wq"], ["q"], name="queries"),
        node("MatMul", ["n", "wk"], ["k"], name="keys"),
        node("MatMul", ["n", "wv"], ["v"], name="values"),
        node("Transpose", ["k"], ["turned"], perm=[0, 2, 1]),
        node("MatMul", ["q", "turned"], ["scores"], name="scores"),
        node("Softmax", ["scores"], ["a"], axis=-1),
        node("MatMul", ["a", "v"], ["taken"], name="taken"),
        node("MatMul", ["taken", "wo"], ["o"], name="out"),
        node("Add", ["o", "tokens"], ["sum"], name="past"),
        node("Transpose", ["sum"], ["columns"], perm=[0, 2, 1]),
        node("Reshape", ["columns", "back"], ["map"]),
        node("ConvTranspose", ["map", "up"], ["masks"], strides=[2, 2], name="up"),
    ]  # fmt: skip
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("images", 1, (1, 3, 64, 64))],
        [info("masks", 1, (1, 4, 16, 16))],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "a.onnx")
    images = [rng.standard_normal((1, 3, 64, 64)).astype(np.float32) for _ in range(2)]
    made = calibration.calibrate(
        tmp_path / "a.onnx", 2, lambda: iter(images), calibration.ATTEMPTS_OF_OTHERS[0]
    )

    def moved(op):
        """Where the values of a FakeQuantize go, past what only moves them."""
        for target in op.output(0).get_target_inputs():
            taker = target.get_node()
            if taker.get_type_name() in calibration._AS_IT_IS:
                yield from moved(taker)
            else:
                yield taker, target.get_index()

    seen = set()
    for op in made.get_ordered_ops():
        # Of values, not of weights.
        if op.get_type_name() != "FakeQuantize" or calibration._is_weight(op.input_value(0)):
            continue
        low, high = (float(op.input_value(side).get_node().get_data()) for side in (1, 2))
        for taker, side in moved(op):
            seen.add((taker.get_type_name(), taker.get_friendly_name() if side == 0 else "right"))
            assert taker.get_type_name() not in {"MVN", "Multiply", "Softmax"}
            if taker.get_friendly_name() in {"scores", "taken"} or "Backprop" in taker.get_type_name():
                whole = taker.get_friendly_name() == "taken" and side == 0
                assert low == (0 if whole else pytest.approx(-high * 128 / 127, rel=1e-5))
            elif taker.get_friendly_name() == "queries":
                assert low != pytest.approx(-high * 128 / 127, rel=1e-5)
    assert {("MatMul", name) for name in ("queries", "scores", "taken", "out", "right")} <= seen
    assert ("Add", "past") not in seen
    assert any(kind == "Add" for kind, _ in seen)  # the sum of a convolution
    assert any("Backprop" in kind for kind, _ in seen)
    # It computes about the same.
    package = openvino.package()
    exact, low = (
        package.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images[0])[0]
        for model in (openvino.read_graph(tmp_path / "a.onnx"), made)
    )
    assert np.linalg.norm(low - exact) < 0.1 * np.linalg.norm(exact)


def test_the_command_line(tmp_path, capsys):
    from fai_fast.cli import main

    path = write(tmp_path / "theirs.onnx", **OPEN)
    said = tmp_path / "spec.json"
    said.write_text(json.dumps(spec(threshold=0.3).to_dict()))
    from PIL import Image

    Image.fromarray(picture()).save(tmp_path / "a.png")
    cache = ["--cache-dir", str(tmp_path / "cache")]
    command = ["predict", str(path), str(tmp_path / "a.png"), "--json", "-", "--no-images", *cache]
    assert main([*command, "--spec", str(said), "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["model"], report["classes"], report["im_size"]) == ("pears", list(NAMES), [64, 64])
    assert report["images"][0]["detections"]
    assert main(command) == 2
    assert "spec: got None with" in capsys.readouterr().err
    assert (
        main(
            ["export", str(path), str(tmp_path / "b.onnx"), "--spec", str(said), "--im-size", "64x96", *cache]
        )
        == 0
    )
    assert "pears" in capsys.readouterr().out
    assert exporter.read_metadata(tmp_path / "b.onnx").size == (64, 96)
    assert (
        main(["predict", str(path), str(tmp_path / "a.png"), "--spec", str(tmp_path / "none.json"), *cache])
        != 0
    )
    assert "spec: no such file" in capsys.readouterr().err


def with_doubles():
    """A grid in float64 somewhere inside, as exporters of modules write numbers of Python; and one cast to it."""
    model = others.graph(**OPEN)
    grid = np.stack(np.meshgrid(np.linspace(-0.9, 0.9, 16), np.linspace(-0.9, 0.9, 16)), -1)[None]
    node = onnx.helper.make_node
    model.graph.initializer.append(onnx.numpy_helper.from_array(grid, "grid"))
    model.graph.node.extend(
        [
            node("Cast", ["pred_masks"], ["exact"], to=onnx.TensorProto.DOUBLE),
            node("GridSample", ["exact", "grid"], ["sampled"]),
            node("Cast", ["sampled"], ["masks"], to=onnx.TensorProto.FLOAT),
        ]
    )
    model.graph.output[0].name = "masks"
    return model


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_double_precision_inside_is_single_in_the_graph(tmp_path, precision):
    pytest.importorskip("onnxruntime")
    report, model = deployed(tmp_path, with_doubles(), precision)
    assert report.verified
    kinds = {item.data_type for item in model.graph.initializer}
    casts = {item.i for one in model.graph.node for item in one.attribute if item.name == "to"}
    assert onnx.TensorProto.DOUBLE not in kinds | casts
    with fai_fast.load(tmp_path / "ours.onnx", engine="onnxruntime", device="cpu") as ready:
        assert ready.size == (64, 64)


def test_an_engine_of_tensorrt_for_gpus_that_are_not_here(tmp_path):
    if not any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings")):
        pytest.skip("TensorRT-RTX is not installed: pip install tensorrt-rtx")
    pytest.importorskip("onnxruntime")
    from fai_fast.exporter import tensorrt

    write(tmp_path / "theirs.onnx", **OPEN)
    report = fai_fast.export(
        tmp_path / "theirs.onnx",
        tmp_path / "a.engine",
        spec=spec(),
        format="tensorrt",
        target=["sm75", "sm86"],
    )
    assert (report.verified, report.precision, report.targets) == (True, "fp16", ("sm75", "sm86"))
    record = tensorrt.read_record(report.path)
    assert (record.spec, record.size, record.batch) == (spec(), (64, 64), 1)


@pytest.mark.parametrize("resize", ["letterbox", "pad"])
def test_frames_are_put_into_the_input_as_the_spec_says(tmp_path, resize):
    path = write(tmp_path / "theirs.onnx", size=(64, 96))
    given, frame = spec((64, 96), resize=resize, threshold=0.3), picture(0, (90, 60))
    with load(path, given, precision="fp32", cache_dir=tmp_path) as model:
        ours = model.infer(frame)
        assert_same(model.infer(frame, resize="stretch"), expected(onnx.load(path), given, frame, (64, 96)))
    config = given.config
    images, box = preprocess(frame, (64, 96), mean=config.pixel_mean, std=config.pixel_std, resize=resize)
    logits = [values[0] for values in outputs(onnx.load(path), images)]
    theirs = fai_fast.postprocess(*logits, (90, 60), letterbox=box, threshold=0.3, class_names=NAMES)
    assert_same(ours, theirs)


def test_an_export_calls_the_batch_as_its_caller_does(tmp_path):
    path = write(tmp_path / "theirs.onnx", batch=2)
    with pytest.raises(
        ValueError, match=r"^batch: got 3, expected 2, which the input of .*theirs\.onnx is fixed to"
    ):
        fai_fast.export(path, tmp_path / "a.onnx", spec=spec(), batch=3)
    assert fai_fast.export(path, tmp_path / "a.onnx", spec=spec()).batch == 2


@pytest.mark.parametrize("output", ["pred_masks", "pred_logits", None])
def test_probabilities_in_place_of_logits_are_told(tmp_path, caplog, output):
    model = others.graph()
    if output is not None:
        index = [item.name for item in model.graph.output].index(output)
        model.graph.node.append(onnx.helper.make_node("Sigmoid", [output], ["squashed"]))
        model.graph.output[index].name = "squashed"
    onnx.save(model, tmp_path / "theirs.onnx")
    with caplog.at_level("WARNING", "fai_fast"):
        fai_fast.export(tmp_path / "theirs.onnx", tmp_path / "a.onnx", spec=spec())
    told = [line for line in caplog.messages if "are all between 0 and 1, as probabilities are" in line]
    kinds = {"pred_masks": ["the mask logits"], "pred_logits": ["the class logits"], None: []}
    assert [line.split(": ")[1].split(" of ")[0] for line in told] == kinds[output]
