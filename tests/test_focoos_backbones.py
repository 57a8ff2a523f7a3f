"""The backbones of FocoosAI's library: names, shapes and features as its own modules have them, in every form here.

tests/data/focoos/backbones.npz has some values of each feature of a picture that anyone can draw again, as FocoosAI's
modules computed them in float32 on the CPU, with weights that follow from their names (helpers/golden_forward.py).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from itertools import cycle

import numpy as np
import pytest
from fai_fast.exporter import verify as verification
from fai_fast.exporter.backbone import backbone
from fai_fast.exporter.builder import Builder, Value
from fai_fast.exporter.fold import Params
from fai_fast.exporter.graph import build_graph, float32_products
from fai_fast.registry import BackboneConfig, ModelSpec
from fai_fast.registry.backbone_shapes import backbone_shapes
from fai_fast.registry.shapes import state_shapes
from fai_fast.weights import load_weights
from helpers.focoos_folders import FOLDERS
from helpers.golden_forward import golden_parameter
from helpers.networks import small_spec

pytest.importorskip("onnx")

SIZE = (96, 160)
FEATURES = ("res2", "res3", "res4", "res5")


def stdc(layers=(2, 2, 2), **changes):
    return BackboneConfig("stdc", base=16, layers=layers, **changes)


CASES = {
    **{f"resnet18-{variant}": BackboneConfig("resnet", depth=18, variant=variant) for variant in "acd"},
    "resnet34-d": BackboneConfig("resnet", depth=34),
    **{f"resnet50-{variant}": BackboneConfig("resnet", depth=50, variant=variant) for variant in "abcd"},
    **{f"stdc-cat{count}": stdc(block_num=count) for count in (2, 3, 5)},
    "stdc-cat4": stdc((4, 5, 3)),
    **{f"stdc-add{count}": stdc(block_num=count, block_type="add") for count in (2, 3)},
    "stdc-add4": stdc((4, 5, 3), block_type="add"),
    "mobilenet_v2": BackboneConfig("mobilenet_v2"),
    "mobilenet_v2-0.35": BackboneConfig("mobilenet_v2", widen_factor=0.35),
    "convnextv2-atto": BackboneConfig("convnextv2", depths=(2, 2, 6, 2), embed_dims=(40, 80, 160, 320)),
    "swin-window4": BackboneConfig(
        "swin", embed_dim=24, depths=(2, 2, 2, 2), num_heads=(3, 6, 12, 24), window_size=4
    ),
    "swin-window7": BackboneConfig(
        "swin",
        embed_dim=24,
        depths=(2, 2, 2, 1),
        num_heads=(3, 6, 12, 24),
        window_size=7,
        mlp_ratio=2.0,
        qkv_bias=False,
    ),
    "csp_darknet-small": BackboneConfig("csp_darknet", base=32, layers=(1, 3, 3, 1)),
}
# One of each kind of block, quick to run.
KINDS = (
    "resnet18-d",
    "resnet50-a",
    "stdc-cat3",
    "stdc-add2",
    "mobilenet_v2-0.35",
    "convnextv2-atto",
    "swin-window7",
    "csp_darknet-small",
)


def sample(feature):
    """The mean, the spread, and 62 values of a feature (1, C, h, w)."""
    values = np.asarray(feature, np.float64).ravel()
    picked = values[np.linspace(0, values.size - 1, 62).astype(int)]
    return np.array([values.mean(), values.std(), *picked], np.float32)


def picture():
    """Normalized (1, 3, *SIZE); this generator never changes."""
    return np.random.RandomState(5).standard_normal((1, 3, *SIZE)).astype(np.float32)


def golden_backbone(config):
    return {
        key: golden_parameter(f"pixel_decoder.backbone.{key}", shape)
        for key, shape in backbone_shapes(config)
    }


def assert_as_focoos(name, features, tolerance=2e-5):
    with np.load(FOLDERS / "backbones.npz") as stored:
        expected = [stored[f"{name}/{key}"] for key in FEATURES]
    for key, found, truth in zip(FEATURES, features, expected, strict=True):
        np.testing.assert_allclose(sample(found), truth, atol=tolerance * truth[1], rtol=0, err_msg=key)


def spec_of(config, family="fai_mf", **changes):
    spec = small_spec(family, **changes)
    return dataclasses.replace(spec, config=dataclasses.replace(spec.config, backbone_config=config))


@pytest.mark.parametrize("name", CASES)
def test_the_deployed_graph_has_the_features_of_focoos(name):
    b = Builder(np.float32)
    images = Value("images", (1, 3, *SIZE), b.dtype)
    features = backbone(b, Params(golden_backbone(CASES[name])), CASES[name], images)
    model = b.model([images], list(zip(features, FEATURES, strict=True)))
    dims = CASES[name].out_dims()
    assert [value.shape for value in features] == [
        (1, dim, SIZE[0] // stride, SIZE[1] // stride)
        for dim, stride in zip(dims, (4, 8, 16, 32), strict=True)
    ]
    prepare = verification._onnxruntime if importlib.util.find_spec("onnxruntime") else verification._openvino
    _, run = prepare(model.SerializeToString(), list(FEATURES))
    assert_as_focoos(name, run(picture()))


@pytest.mark.parametrize("name", CASES)
def test_the_reference_has_the_names_and_features_of_focoos(name):
    torch = pytest.importorskip("torch")
    from fai_fast.reference import deployed
    from fai_fast.reference.network import BACKBONES

    network = BACKBONES[CASES[name].model_type](CASES[name]).eval()
    shapes = [(key, tuple(value.shape)) for key, value in network.state_dict().items()]
    assert shapes == list(backbone_shapes(CASES[name]))
    state = {key: torch.from_numpy(value) for key, value in golden_backbone(CASES[name]).items()}
    network.load_state_dict(state)
    image = torch.from_numpy(picture())
    with torch.inference_mode():
        assert_as_focoos(name, network(image))
        # In float64 as it is folded when it is deployed.
        folded = deployed._folded(network.double())(image.double())
    assert_as_focoos(name, folded)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("name", CASES)
def test_its_record_survives_json_and_has_a_card(name):
    spec = spec_of(CASES[name])
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    [line] = [line for line in spec.card().splitlines() if line.startswith("  backbone ")]
    words = {"stdc": "STDC", "resnet": "ResNet", "swin": "Swin", "csp_darknet": "CSPDarknet"}
    assert words.get(CASES[name].model_type, "V2") in line


# The families take turns: what they know of a backbone is its channels alone.
@pytest.mark.parametrize(
    ("name", "family"), list(zip(KINDS, cycle(["fai_mf", "bisenetformer"]), strict=False))
)
def test_a_whole_network_is_deployed_as_the_reference_has_it(name, family):
    torch = pytest.importorskip("torch")
    from fai_fast import reference
    from fai_fast.reference.deployed import Deployed

    spec = spec_of(CASES[name], family, transformer_predictor_dec_layers=2)
    state = {key: golden_parameter(key, shape) for key, shape in state_shapes(spec).items()}
    for key, value in state.items():
        if ".conv_list." in key and key.endswith("bn.weight"):
            # What each block adds: with as much as its input the sums grow until float32 is too coarse.
            value *= 0.2
    weights = load_weights(spec, state)
    size, batch = (64, 96), 2
    graph = build_graph(spec, weights.state, size, batch)
    found = verification.verify(graph, weights, size, batch, "fp32")
    assert found is not None
    assert found.equal
    # In float64, where no decision of the attention is a tie.
    images = verification.normalized(
        np.stack([verification.picture(seed, size) for seed in range(batch)]), spec
    )
    expected = verification._Reference(weights, exact=True)(images)
    network = reference.build(spec).eval()
    network.load_state_dict({key: torch.from_numpy(value) for key, value in weights.state.items()})
    with torch.inference_mode():
        masks, classes = Deployed(network.double(), size)(torch.from_numpy(images).double())
    run = [masks.float().numpy(), classes.float().numpy()]
    assert verification.compared("reference", "deployed", [run], [expected]).equal


@pytest.mark.parametrize("name", KINDS)
def test_fp16_has_no_float32_product(name):
    spec = spec_of(CASES[name])
    state = {key: golden_parameter(key, shape) for key, shape in state_shapes(spec).items()}
    assert float32_products(build_graph(spec, state, (64, 96), precision="fp16")) == []


# Minutes together; the others have no operator that these lack.
SLOW = pytest.mark.slow
BUILT = [
    pytest.param(name, marks=() if name in ("swin-window7", "csp_darknet-small") else SLOW) for name in KINDS
]


@pytest.mark.parametrize("name", BUILT)
def test_tensorrt_builds_it(name, tmp_path):
    if not any(importlib.util.find_spec(item) for item in ("tensorrt_rtx", "tensorrt_rtx_bindings")):
        pytest.skip("TensorRT-RTX is not installed: pip install tensorrt-rtx")
    import onnx
    from fai_fast.exporter import tensorrt

    spec = spec_of(CASES[name])
    state = {key: golden_parameter(key, shape) for key, shape in state_shapes(spec).items()}
    onnx.save(build_graph(spec, state, (64, 96), precision="fp16"), tmp_path / "graph.onnx")
    # With Turing among them, every product is found to be float16 first.
    engine = tensorrt.build_engine(tmp_path / "graph.onnx", ["sm75", "sm80", "sm120"])
    assert len(engine) > 0.8 * sum(value.size for value in state.values()) * 2
