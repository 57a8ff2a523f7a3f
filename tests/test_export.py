"""The deployed graph against FocoosAI's outputs and the reference networks, its file, and what is said of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import sys
from collections import Counter

import fai_fast
import numpy as np
import pytest
from fai_fast import exporter
from fai_fast.errors import EngineError, ExportError
from fai_fast.exporter import verify as verification
from fai_fast.exporter.builder import Builder, Value
from fai_fast.exporter.graph import build_graph, float32_products
from fai_fast.weights import load_weights
from helpers.golden_forward import IMAGE_SIZE, NAMES, golden_image, golden_outputs, golden_state

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

ENGINES = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
# Together these have everything that a published network has; the others are larger.
QUICK = ("bisenetformer-m-ade", "bisenetformer-s-ade", "fai-mf-m-ade", "fai-mf-s-coco-ins")

ENGINE = {"path": "a.engine", "format": "tensorrt"}


def small_spec(family="bisenetformer", **changes):
    """A network that is quick to run: the smallest backbone, few and narrow layers."""
    base = fai_fast.spec("fai-mf-m-ade" if family == "fai_mf" else "bisenetformer-s-ade")
    backbone = dataclasses.replace(base.config.backbone_config, base=16, layers=(2, 1, 1))
    config = dataclasses.replace(
        base.config,
        **{
            "backbone_config": backbone,
            "num_classes": 3,
            "num_queries": 9,
            "pixel_decoder_feat_dim": 32,
            "pixel_decoder_out_dim": 24,
            "transformer_predictor_out_dim": 24,
            "transformer_predictor_hidden_dim": 64,
            "transformer_predictor_dim_feedforward": 48,
            "transformer_predictor_dec_layers": 4,
            **changes,
        },
    )
    return dataclasses.replace(
        base,
        name=f"small-{family}",
        classes=("a", "b", "é"),
        config=config,
        per_class={},
        metrics={},
        im_size=64,
    )


def lively_weights(spec):
    """Random weights whose masks have both signs and whose norms do something."""
    torch.manual_seed(1)
    network = fai_fast.reference.build(spec)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.ndim == 1 and value.is_floating_point():
                value.add_(0.2 * torch.randn_like(value))
            elif value.ndim > 1:
                value.mul_(1.7)
    return load_weights(spec, network.state_dict())


def run(model, images):
    """mask_logits, class_logits by the first engine there is."""
    _, runs = verification.outputs_of(model, [images])
    return runs[0]


def use_engine(monkeypatch, wanted):
    """Lets the others be as if they were not installed."""
    from fai_fast.engines import onnxruntime, openvino

    def missing():
        raise EngineError("not here")

    for module in (onnxruntime, openvino):
        if wanted != module.NAME:
            monkeypatch.setattr(module, "version", missing)


@pytest.fixture(scope="module")
def weights():
    return lively_weights(small_spec())


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_golden_outputs_are_reproduced(name):
    spec, expected = fai_fast.spec(name), golden_outputs(name)
    model = build_graph(spec, golden_state(name), IMAGE_SIZE)
    images = verification.normalized(golden_image().transpose(2, 0, 1)[None], spec)
    masks, classes = run(model, images)
    assert masks[0].shape == tuple(expected["mask_shape"])
    np.testing.assert_allclose(classes[0], expected["logits"], atol=1e-4, rtol=0)
    spread = expected["mask_std"][:, None, None]
    assert (np.abs(masks[0, :, ::4, ::4] - expected["masks_sub"]) / spread).max() < 1e-4
    np.testing.assert_allclose(masks[0].mean((1, 2)), expected["mask_mean"], atol=1e-3, rtol=1e-4)
    np.testing.assert_allclose(masks[0].std((1, 2)), expected["mask_std"], atol=1e-3, rtol=1e-4)


SHAPES = [
    ("bisenetformer", {}, (64, 96), 1),
    ("bisenetformer", {"pixel_decoder_feat_dim": 96}, (160, 32), 3),
    ("fai_mf", {}, (64, 96), 2),
    ("fai_mf", {"pixel_decoder_transformer_layers": 2, "pixel_decoder_transformer_nheads": 4}, (160, 224), 1),
    # Far more channels than the decoder has: projecting them first is cheaper.
    ("fai_mf", {"pixel_decoder_feat_dim": 96, "transformer_predictor_hidden_dim": 16}, (96, 64), 2),
    ("fai_mf", {"transformer_predictor_dec_layers": 1}, (32, 32), 1),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("family", "changes", "size", "batch"), SHAPES)
def test_every_shape_is_the_reference_network(family, changes, size, batch, engine, monkeypatch):
    use_engine(monkeypatch, engine)
    weights = lively_weights(small_spec(family, **changes))
    model = build_graph(weights.spec, weights.state, size, batch)
    images = np.stack([verification.picture(seed, size) for seed in range(batch)])
    images = verification.normalized(images, weights.spec)
    masks, classes = run(model, images)
    true_masks, true_classes = verification._Reference(weights)(images)
    stride = 4 if family == "fai_mf" else 8
    assert masks.shape == (batch, 9, size[0] // stride, size[1] // stride)
    assert 0.02 < (masks > 0).mean() < 0.98
    np.testing.assert_allclose(masks, true_masks, atol=2e-5 * np.abs(true_masks).max())
    np.testing.assert_allclose(classes, true_classes, atol=2e-5 * np.abs(true_classes).max())


def test_a_resnet_is_the_reference_network():
    spec = fai_fast.spec("fai-mf-s-coco-ins")
    config = dataclasses.replace(
        spec.config, num_queries=5, transformer_predictor_dec_layers=1, pixel_decoder_transformer_layers=0
    )
    weights = load_weights(dataclasses.replace(spec, config=config), "random")
    images = verification.normalized(verification.picture(0, (64, 96))[None], spec)
    found = run(build_graph(weights.spec, weights.state, (64, 96)), images)
    for value, true in zip(found, verification._Reference(weights)(images), strict=True):
        np.testing.assert_allclose(value, true, atol=2e-5 * np.abs(true).max())


@pytest.mark.parametrize("bias", [-50.0, 50.0])
def test_queries_that_could_look_nowhere_look_everywhere(bias, weights):
    state = dict(weights.state)
    # Mask features that are all positive make masks all of one sign, by the last layer of the embedding.
    name = "head.predictor.forward_prediction_heads.mask_classifier.layers.2.bias"
    state[name] = np.full_like(state[name], bias)
    state["pixel_decoder.conv_out.bn.bias"] = np.full_like(state["pixel_decoder.conv_out.bn.bias"], 1.0)
    weights = load_weights(weights.spec, state)
    images = verification.normalized(verification.picture(0, (64, 64))[None], weights.spec)
    masks, classes = run(build_graph(weights.spec, weights.state, (64, 64)), images)
    true_masks, true_classes = verification._Reference(weights)(images)
    assert ((true_masks > 0) == (bias > 0)).all()
    np.testing.assert_allclose(masks, true_masks, rtol=1e-4)
    np.testing.assert_allclose(classes, true_classes, atol=1e-4)


def test_what_is_not_in_the_graph(weights):
    layers = weights.spec.config.transformer_predictor_dec_layers
    model = build_graph(weights.spec, weights.state, (64, 96))
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["Softmax"] == 2 * layers  # none for the classes
    assert counts["Sigmoid"] == 3  # the pixel decoder's three, none for the masks
    assert counts["Resize"] == 3  # two in the context path, mask features once to 1/32; none for masks
    assert counts["BatchNormalization"] == 0
    assert counts["LayerNormalization"] == 3 * layers
    producers = {name: node for node in model.graph.node for name in node.output}
    assert producers["mask_logits"].op_type == "Reshape"
    assert (
        sum("classes" in node.name for node in model.graph.node) == 2
    )  # one product, one sum: of the last layer
    # Neither normalization of the image, nor anything else, stands before the first convolution.
    first = next(node for node in model.graph.node if "images" in node.input)
    assert first.op_type == "Conv"
    # The first layer's queries and mask embedding are constants.
    constants = {item.name for item in model.graph.initializer}
    assert {"head/layer0/cross/q", "head/embedding"} <= constants
    assert [item.name for item in model.graph.output] == ["mask_logits", "class_logits"]


def test_equal_constants_are_stored_once(weights):
    model = build_graph(weights.spec, weights.state, (64, 64))
    seen = Counter((item.data_type, tuple(item.dims), item.raw_data) for item in model.graph.initializer)
    assert seen.most_common(1)[0][1] == 1


@pytest.mark.parametrize("family", ["bisenetformer", "fai_mf"])
def test_fp16_has_no_float32_product(family):
    spec = small_spec(family, **({"pixel_decoder_transformer_layers": 1} if family == "fai_mf" else {}))
    weights = lively_weights(spec)
    model = build_graph(spec, weights.state, (64, 64), precision="fp16")
    assert float32_products(model) == []
    types = {item.type.tensor_type.elem_type for item in (*model.graph.input, *model.graph.output)}
    assert types == {onnx.TensorProto.FLOAT16}
    large = [item.name for item in model.graph.initializer if item.data_type == 1 and len(item.dims) > 1]
    assert large == ["head/queries"]  # the start of a sum that is kept in float32
    fp32 = build_graph(spec, weights.state, (64, 64))
    products = [node.name for node in fp32.graph.node if node.op_type in ("Conv", "MatMul")]
    assert float32_products(fp32) == products


def test_weights_beyond_float16_are_refused(weights):
    state = dict(weights.state)
    name = "head.predictor.transformer_ffn_layers.0.linear2.weight"
    state[name] = state[name] * 1e7
    with pytest.raises(
        ExportError, match=r"head/layer0/feed_forward/outer.weight: weights do not fit into float16"
    ):
        build_graph(weights.spec, state, (64, 64), precision="fp16")
    build_graph(weights.spec, state, (64, 64))


def test_shapes_that_do_not_fit_fail_where_they_are_written():
    b = Builder(np.float32)
    x = Value("x", (1, 2, 3), np.dtype(np.float32))
    with pytest.raises(AssertionError, match=r"product"):
        b.matmul(x, x, "product")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_export_writes_a_verified_file_that_says_what_it_is(precision, weights, tmp_path):
    path = tmp_path / "small.onnx"
    report = fai_fast.export(weights, path, im_size=(64, 96), batch=2, precision=precision)
    assert report.verified
    assert report.path == path
    assert [item.name for item in tmp_path.iterdir()] == ["small.onnx"]
    measured = report.verification
    assert measured["against"] == "reference"
    assert measured["images"] == 4
    assert measured["mask_iou"] >= 0.99
    assert precision == "fp16" or measured["mask_difference"] <= 1e-4
    said = exporter.read_metadata(path)
    assert said.spec == weights.spec
    assert (said.size, said.batch, said.precision) == ((64, 96), 2, precision)
    assert said.weights_sha256 == weights.sha256
    assert said.fai_fast_version == fai_fast.__version__
    assert said.verification == measured
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["spec"]["classes"] == ["a", "b", "é"]
    assert plain["verification"] == measured
    onnx.checker.check_model(str(path), full_check=True)


def test_export_takes_what_describes_a_model(weights, tmp_path):
    path = tmp_path / "a.onnx"
    spec = weights.spec
    network = fai_fast.reference.build(spec)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in weights.state.items()})
    by_spec = fai_fast.export(spec, str(path), weights=weights.state, verify=False)
    assert by_spec.size == (64, 64)
    assert by_spec.verification is None
    first = path.read_bytes()
    fai_fast.export(network, path, verify=False)
    assert path.read_bytes() == first
    with pytest.raises(ValueError, match=r"weights: got some with a Weights"):
        fai_fast.export(weights, path, weights="random")
    with pytest.raises(TypeError, match=r"model: got a Linear without a spec"):
        fai_fast.export(torch.nn.Linear(1, 1), path)
    assert path.read_bytes() == first


WRAPPERS = {
    "data parallel": torch.nn.DataParallel,
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled data parallel": lambda network: torch.compile(torch.nn.DataParallel(network), backend="eager"),
    "as lightning has it": lambda network: torch.nn.ModuleDict(
        {"model": network, "metric": torch.nn.Linear(1, 1)}
    ),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_export_takes_a_network_in_a_wrapper(wrap, weights, tmp_path):
    network = fai_fast.reference.build(weights.spec)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in weights.state.items()})
    bare, wrapped = tmp_path / "bare.onnx", tmp_path / "wrapped.onnx"
    fai_fast.export(network, bare, verify=False)
    fai_fast.export(WRAPPERS[wrap](network), wrapped, verify=False)
    assert wrapped.read_bytes() == bare.read_bytes()


def test_two_networks_in_a_module_are_an_error(weights, tmp_path):
    networks = torch.nn.ModuleList([fai_fast.reference.build(weights.spec) for _ in range(2)])
    with pytest.raises(TypeError, match="got a ModuleList with 2 networks in it, expected one"):
        fai_fast.export(networks, tmp_path / "a.onnx")


# ------------------------------------------------------------------------------------------------ checksum


@pytest.fixture
def exported(weights, tmp_path):
    path = tmp_path / "robot.onnx"
    fai_fast.export(weights, path, verify=False)
    return path


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 0.99, 1.0])
def test_a_damaged_file_is_refused_wherever_the_damage_is(share, exported):
    content = bytearray(exported.read_bytes())
    place = min(int(share * len(content)), len(content) - 1)
    content[place] ^= 1
    exported.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"robot\.onnx (is|was not written by fai_fast\.export, or is) damaged"
    ):
        exporter.read_metadata(exported)
    with pytest.raises(ValueError, match=r"robot\.onnx .*damaged"):
        fai_fast.load(exported)


def test_damage_in_the_checksum_itself_is_no_file_without_one(exported):
    content = exported.read_bytes()
    place = content.rfind(b"fai_fast.sha256")
    for at in (place, place + 20, place + 50):
        exported.write_bytes(content[:at] + bytes([content[at] ^ 0x80]) + content[at + 1 :])
        with pytest.raises(ValueError, match=r"damaged"):
            exporter.read_metadata(exported)


def test_a_file_that_is_cut_off_or_has_more_behind_it_is_refused(exported):
    content = exported.read_bytes()
    for wrong in (content[:-1], content + content[-70:], content + b"\0"):
        exported.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"damaged"):
            exporter.read_metadata(exported)


def test_a_file_of_an_older_version_loads_with_a_line_that_says_so(exported, caplog):
    model = onnx.load(exported)
    kept = [
        item for item in model.metadata_props if item.key not in ("fai_fast.sha256", "fai_fast.checksummed")
    ]
    props = [(item.key, item.value) for item in kept]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(props))
    onnx.save(model, exported)
    with fai_fast.load(exported, engine=ENGINES[0]) as loaded:
        assert loaded.spec.name == "small-bisenetformer"
    [line] = [record.getMessage() for record in caplog.records if "checksum" in record.getMessage()]
    assert "robot.onnx carries no checksum" in line


def test_a_whole_file_says_nothing_of_its_checksum(exported, caplog):
    fai_fast.load(exported, engine=ENGINES[0]).close()
    assert not [record for record in caplog.records if "checksum" in record.getMessage()]


def test_upper_case_suffixes_are_the_same(exported, weights, tmp_path):
    fai_fast.export(weights, tmp_path / "M.ONNX", verify=False)
    assert (tmp_path / "M.ONNX").read_bytes() == exported.read_bytes()
    with fai_fast.load(tmp_path / "M.ONNX", engine=ENGINES[0]) as model:
        assert model.spec == weights.spec


def test_exporting_onto_a_link_writes_what_it_points_to(weights, tmp_path):
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "v1.onnx", tmp_path / "current.onnx"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to("store/v1.onnx")
    report = fai_fast.export(weights, link, verify=False)
    assert report.path == link
    assert link.is_symlink()
    assert exporter.read_metadata(target).spec == weights.spec
    assert target.stat().st_mode & 0o777 == 0o640
    assert [item.name for item in target.parent.iterdir()] == ["v1.onnx"]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"path": 3}, TypeError, r"path: got int, expected a path that ends in \.onnx"),
        ({"path": "a.pth"}, ValueError, r"path: got .*a\.pth', expected a path that ends in \.onnx"),
        ({"path": "none/a.onnx"}, FileNotFoundError, "path: no such folder: .*none"),
        ({"im_size": 100}, ValueError, r"im_size: got \(100, 100\), expected multiples of 32"),
        ({"im_size": (64, 65)}, ValueError, r"im_size: got \(64, 65\)"),
        ({"im_size": (64, 64, 64)}, ValueError, "im_size: got 3 values"),
        ({"im_size": 0}, ValueError, "im_size"),
        ({"im_size": 16384}, ValueError, "im_size: .* at most 8192"),
        ({"im_size": "64"}, TypeError, "im_size: got '64'"),
        ({"im_size": 64.0}, TypeError, "im_size"),
        ({"batch": 0}, ValueError, "batch: got 0, expected 1 to 256"),
        ({"batch": 1.0}, TypeError, "batch"),
        ({"precision": "int8"}, ValueError, "precision: got 'int8', expected one of 'fp32', 'fp16'"),
        ({"verify": 1}, TypeError, "verify: got 1, expected a bool"),
        ({"format": "tflite"}, ValueError, "format: got 'tflite', expected one of 'onnx', 'tensorrt'"),
        ({"target": "sm75"}, ValueError, "target: got 'sm75' with format='onnx', expected None"),
        ({"format": "tensorrt"}, ValueError, r"path: got .*a\.onnx', expected a path that ends in \.engine"),
        ({"path": "a.engine"}, ValueError, r"path: got .*a\.engine', expected a path that ends in \.onnx"),
        ({**ENGINE, "target": "sm10"}, ValueError, "target: got 'sm10', expected one or more of sm75, "),
        ({**ENGINE, "target": []}, ValueError, "target: got none"),
        ({**ENGINE, "target": 75}, TypeError, "target: got 75"),
        ({**ENGINE, "target": ["sm75", "current"]}, ValueError, "expected 'current' alone"),
        (
            {**ENGINE, "target": "sm75", "precision": "fp32"},
            ValueError,
            "precision: got 'fp32' with target 'sm75', expected 'fp16'",
        ),
        ({"model": "no-such-model"}, ValueError, "no-such-model"),
        ({"model": None}, TypeError, "model: got NoneType"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, text, weights, tmp_path):
    given = {"model": weights, "path": "a.onnx", **arguments}
    if isinstance(given["path"], str):
        given["path"] = tmp_path / given["path"]
    with pytest.raises(error, match=text):
        fai_fast.export(**given)
    assert list(tmp_path.iterdir()) == []


def other_graph(changed):
    """build_graph that does something else with one parameter."""

    def build(spec, state, *rest):
        return build_graph(spec, {**state, changed: state[changed] * 1.01 + 0.01}, *rest)

    return build


def test_a_graph_that_is_not_equal_is_refused_and_nothing_is_left(weights, tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"what was there before")
    name = "head.predictor.transformer_ffn_layers.1.linear2.bias"
    monkeypatch.setattr("fai_fast.exporter.graph.build_graph", other_graph(name))
    with pytest.raises(
        ExportError, match=r"not equal to the reference network|not blocked as in the reference"
    ):
        fai_fast.export(weights, path)
    assert [item.name for item in tmp_path.iterdir()] == ["a.onnx"]
    assert path.read_bytes() == b"what was there before"


def test_a_half_precision_graph_with_other_masks_is_refused(weights, tmp_path, monkeypatch):
    name = "head.predictor.forward_prediction_heads.mask_classifier.layers.2.bias"

    def build(spec, state, *rest):
        return build_graph(spec, {**state, name: state[name] + 0.5}, *rest)

    monkeypatch.setattr("fai_fast.exporter.graph.build_graph", build)
    with pytest.raises(
        ExportError, match=r"the fp16 graph does not find what the reference network finds: .* \(less than "
    ):
        fai_fast.export(weights, tmp_path / "a.onnx", precision="fp16")
    assert list(tmp_path.iterdir()) == []


def test_following_the_graphs_decisions_changes_nothing_without_ties(weights):
    reference = verification._Reference(weights)
    model = build_graph(weights.spec, weights.state, (64, 96))
    images = verification.normalized(verification.picture(3, (64, 96))[None], weights.spec)
    found = verification.compared("reference", "", [run(model, images)], [reference(images)])
    followed = verification._with_decisions(model, reference, [images], found)
    assert followed.ties == 0
    assert followed.mask_difference_with_ties < 1e-5


def moved_decisions(weights, size, move):
    """A graph whose attention is blocked where mask logits are below `move`, not below 0."""
    model = build_graph(weights.spec, weights.state, size)
    zero = next(item for item in model.graph.initializer if item.name == "head/layer0/mask/zero")
    # It is also what is added to the scores of open places, all alike, which changes nothing.
    zero.CopyFrom(onnx.numpy_helper.from_array(np.full(1, move, np.float32), zero.name))
    return model


@pytest.mark.parametrize("exact", [False, True])
def test_what_follows_from_ties_is_told_from_what_does_not(exact, weights, monkeypatch):
    size = (128, 160)
    images = verification.normalized(verification.picture(3, size)[None], weights.spec)
    plain = verification._Reference(weights)
    scale = float(np.sqrt((plain(images)[0] ** 2).mean()))
    model = moved_decisions(weights, size, 0.3 * scale)
    found = verification.compared("reference", "", [run(model, images)], [plain(images)])
    assert not found.equal

    reference = verification._Reference(weights, exact)
    with pytest.raises(ExportError, match="attention is not blocked as in the reference network"):
        verification._with_decisions(model, reference, [images], found)
    monkeypatch.setattr(verification, "TIE", 3.0)
    followed = verification._with_decisions(model, reference, [images], found)
    assert followed.ties > 0
    assert followed.equal
    assert followed.mask_difference == found.mask_difference
    assert followed.to_dict()["mask_difference_with_ties"] < 1e-5


def test_weights_may_be_read_only(weights, tmp_path):
    state = {key: value.copy() for key, value in weights.state.items()}
    for value in state.values():
        value.flags.writeable = False
    assert fai_fast.export(dataclasses.replace(weights, state=state), tmp_path / "a.onnx").verified


def decide(logits, wanted):
    logits = torch.tensor(logits).reshape(1, 1, 2, 2)
    own = (logits < 0).flatten(2)
    own = own & ~own.all(-1, keepdim=True)
    return verification._count_ties(logits, torch.tensor(wanted).reshape(1, 1, 4), own, 0)


def test_a_decision_may_differ_where_the_logit_is_zero_but_for_rounding():
    assert decide([-1.0, 1e-6, 1.0, 2.0], [True, False, False, False]) == 0
    assert decide([-1.0, 1e-6, 1.0, 2.0], [True, True, False, False]) == 1
    # The highest logit is a tie: that one place, or, as all are blocked, every place.
    assert decide([-1.0, -1.0, -1.0, -1e-6], [True, True, True, False]) == 3
    assert decide([-1.0, -1.0, -1.0, 1e-6], [False] * 4) == 3


@pytest.mark.parametrize(
    ("logits", "wanted"),
    [
        ([-1.0, 0.1, 1.0, 2.0], [True, True, False, False]),
        ([-1.0, 0.1, 1.0, 2.0], [False, False, False, False]),
        ([-1.0, -1.0, -1.0, -1.0], [True, True, True, False]),
        ([-1.0, -1.0, -1.0, 1e-6], [True, False, True, True]),
    ],
)
def test_no_decision_may_differ_elsewhere(logits, wanted):
    with pytest.raises(
        ExportError, match=r"layer 0: attention is not blocked as in the reference network, for 1 queries"
    ):
        decide(logits, wanted)


def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def test_without_torch_a_graph_is_not_verified_and_that_is_said(weights, tmp_path, monkeypatch, caplog):
    without_torch(monkeypatch)
    with caplog.at_level(logging.WARNING, "fai_fast"):
        report = fai_fast.export(weights, tmp_path / "a.onnx")
    assert not report.verified
    assert exporter.read_metadata(report.path).verification is None
    assert [record.message for record in caplog.records] == [
        "small-bisenetformer: not verified: torch is not installed (pip install 'fai-fast[torch]')"
    ]


def test_without_torch_stored_outputs_verify_bundled_weights(weights, tmp_path, monkeypatch, caplog):
    spec = dataclasses.replace(weights.spec, bundled_weights="small.safetensors")
    bundled = dataclasses.replace(weights, spec=spec)
    verification.make_reference_file(bundled, tmp_path / "small.reference.npz")
    monkeypatch.setattr(verification, "bundled_path", lambda name: tmp_path / name)
    without_torch(monkeypatch)
    report = fai_fast.export(bundled, tmp_path / "a.onnx")
    assert report.verification["against"] == "stored"
    assert report.verification["mask_difference"] <= 1e-4

    with caplog.at_level(logging.WARNING, "fai_fast"):
        assert not fai_fast.export(bundled, tmp_path / "b.onnx", im_size=96).verified
        other = dataclasses.replace(bundled, sha256="0")
        assert not fai_fast.export(other, tmp_path / "c.onnx").verified
    assert [record.message.count("of other weights or another size") for record in caplog.records] == [1, 1]

    name = "head.predictor.transformer_ffn_layers.1.linear2.bias"
    monkeypatch.setattr("fai_fast.exporter.graph.build_graph", other_graph(name))
    with pytest.raises(ExportError, match=r"not equal to the reference network"):
        fai_fast.export(bundled, tmp_path / "d.onnx")
    assert not (tmp_path / "d.onnx").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_what_verified_a_graph_is_said(engine, weights, tmp_path, monkeypatch):
    use_engine(monkeypatch, engine)
    report = fai_fast.export(weights, tmp_path / "a.onnx")
    assert report.verification["engine"].startswith(f"{engine} ")


def test_without_engines_nothing_can_be_verified(weights, tmp_path, monkeypatch):
    use_engine(monkeypatch, None)
    with pytest.raises(ExportError, match=r"no engine can run the graph to verify it: not here; not here"):
        fai_fast.export(weights, tmp_path / "a.onnx")
    assert fai_fast.export(weights, tmp_path / "a.onnx", verify=False).verified is False


def test_files_of_others_are_refused(weights, tmp_path):
    with pytest.raises(FileNotFoundError):
        exporter.read_metadata(tmp_path / "none.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("no graph")
    with pytest.raises(ValueError, match=r"text.onnx was not written by fai_fast.export"):
        exporter.read_metadata(text)
    onnx.save(build_graph(weights.spec, weights.state, (64, 64)), tmp_path / "plain.onnx")
    with pytest.raises(ValueError, match=r"plain.onnx was not written by fai_fast.export, .*export it again"):
        exporter.read_metadata(tmp_path / "plain.onnx")


def test_pictures_are_the_same_everywhere():
    picture = verification.picture(0, (64, 96))
    assert picture.shape == (3, 64, 96)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, verification.picture(0, (64, 96)))
    assert not np.array_equal(picture, verification.picture(1, (64, 96)))
    assert picture.std() > 30
