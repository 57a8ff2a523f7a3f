"""Folders of FocoosAI's library: every field's odd values, where the weights are, and results as FocoosAI has them."""

from __future__ import annotations

import copy
import json
import logging
import re
import zipfile

import fai_fast
import numpy as np
import pytest
from fai_fast.registry import BackboneConfig, load_spec
from fai_fast.registry.shapes import decoder_levels, state_shapes
from fai_fast.weights import load_weights
from helpers import focoos_folders
from helpers.golden_forward import golden_parameter

TWO_LAYERS = "instance-two-layers"
RECORD = json.loads((focoos_folders.folder(TWO_LAYERS) / "model_info.json").read_text("utf-8"))
SOURCE = "model"


def record(backbone=None, **config):
    """What FocoosAI wrote of a model, with another backbone or other fields of the configuration."""
    changed = copy.deepcopy(RECORD)
    changed["config"].update(postprocessing_type="instance", **config)
    if backbone is not None:
        changed["config"]["backbone_config"] = {"use_pretrained": False, "backbone_url": None, **backbone}
    return changed


def write(folder, files=(), **changes):
    folder.mkdir(exist_ok=True)
    (folder / "model_info.json").write_text(json.dumps({**record(), **changes}))
    for name in files:
        (folder / name).write_bytes(b"weights")
    return folder


def backbone_of(**fields):
    return load_spec(record(fields)).config.backbone_config


@pytest.fixture
def said(caplog):
    """The warnings so far."""
    caplog.set_level(logging.WARNING, "fai_fast")
    return lambda: [item.getMessage() for item in caplog.records if item.name == "fai_fast"]


# Backbones


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"size": "nano"}, (32, (2, 2, 2), 4, "cat")),
        ({"size": "small", "base": 8, "layers": [4, 5, 3]}, (64, (2, 2, 2), 4, "cat")),
        ({"size": "large", "block_num": 2, "block_type": "add"}, (64, (4, 5, 3), 4, "cat")),
        ({"size": None, "base": 16, "layers": [2, 2, 2]}, (16, (2, 2, 2), None, None)),
        ({"block_num": 3, "block_type": "add"}, (64, (4, 5, 3), 3, "add")),
        ({}, (64, (4, 5, 3), None, None)),
    ],
)
def test_an_stdc_is_of_its_size_or_else_of_its_fields(fields, expected, said):
    found = backbone_of(model_type="stdc", in_chans=3, use_conv_last=False, **fields)
    assert (found.base, found.layers, found.block_num, found.block_type) == expected
    assert said() == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model_type": "resnet"}, BackboneConfig("resnet", depth=50, variant="d")),
        (
            {
                "model_type": "resnet",
                "depth": 18,
                "variant": "b",
                "act": "relu",
                "num_stages": 4,
                "freeze_at": 2,
            },
            BackboneConfig("resnet", depth=18, variant="b", act="relu"),
        ),
        (
            {
                "model_type": "mobilenet_v2",
                "widen_factor": 0.5,
                "strides": [1, 2, 2, 2, 1, 2, 1],
                "dilations": [1] * 7,
                "frozen_stages": -1,
                "norm": "BN",
            },
            BackboneConfig("mobilenet_v2", widen_factor=0.5),
        ),
        (
            {"model_type": "convnextv2"},
            BackboneConfig("convnextv2", depths=(2, 2, 6, 2), embed_dims=(40, 80, 160, 320)),
        ),
        (
            {"model_type": "convnextv2", "model_size": "nano", "drop_path_rate": 0.1},
            BackboneConfig("convnextv2", depths=(2, 2, 8, 2), embed_dims=(80, 160, 320, 640)),
        ),
        (
            {
                "model_type": "convnextv2",
                "model_size": None,
                "depths": [1, 1, 2, 1],
                "embed_dims": [8, 16, 32, 64],
            },
            BackboneConfig("convnextv2", depths=(1, 1, 2, 1), embed_dims=(8, 16, 32, 64)),
        ),
        (
            {"model_type": "swin", "model_size": "base", "embed_dim": 96, "window_size": 7},
            BackboneConfig(
                "swin", depths=(2, 2, 18, 2), embed_dim=128, num_heads=(4, 8, 16, 32), window_size=12
            ),
        ),
        (
            {
                "model_type": "swin",
                "model_size": None,
                "pretrain_img_size": 224,
                "patch_size": 4,
                "mlp_ratio": 4.0,
                "qkv_bias": True,
                "qk_scale": None,
                "ape": False,
                "patch_norm": True,
                "out_indices": [0, 1, 2, 3],
                "use_checkpoint": False,
            },
            BackboneConfig(
                "swin",
                depths=(2, 2, 6, 2),
                embed_dim=96,
                num_heads=(3, 6, 12, 24),
                window_size=7,
                mlp_ratio=4.0,
                qkv_bias=True,
            ),
        ),
        (
            {"model_type": "csp_darknet", "size": "medium"},
            BackboneConfig("csp_darknet", base=48, layers=(2, 6, 6, 2)),
        ),
    ],
)
def test_a_backbone_is_what_focoos_makes_of_its_fields(fields, expected, said):
    assert backbone_of(**fields) == expected
    assert said() == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "mit"},
            r"backbone_config\.model_type: got 'mit', expected one of 'resnet', 'stdc', .*; run",
        ),
        ({"model_type": "c2f_darknet"}, r"model_type: got 'c2f_darknet'"),
        ({"model_type": None}, r"model_type: got None"),
        ({"model_type": ["stdc"]}, r"model_type: got \['stdc'\]"),
        (
            {"model_type": "stdc", "size": "huge"},
            r"size: got 'huge', expected one of 'nano', 'small', 'large'; run",
        ),
        ({"model_type": "stdc", "size": 3}, r"size: got 3, expected one of"),
        (
            {"model_type": "stdc", "out_features": ["res3", "res4", "res5"]},
            r"out_features: got \['res3', .*; run",
        ),
        ({"model_type": "stdc", "block_num": 1}, r"block_num: got 1, expected 2 to 5"),
        ({"model_type": "stdc", "block_type": "sum"}, r"block_type: got 'sum', expected one of 'cat', 'add'"),
        ({"model_type": "stdc", "depth": 50}, r"depth: got 50, expected None"),
        ({"model_type": "resnet", "depth": 152}, r"depth: got 152, expected 18, 34, 50 or 101"),
        ({"model_type": "resnet", "variant": "e"}, r"variant: got 'e', expected one of 'a', 'b', 'c', 'd'"),
        ({"model_type": "resnet", "act": "silu"}, r"act: got 'silu', expected 'relu'; run such a model"),
        ({"model_type": "resnet", "num_stages": 3}, r"num_stages: got 3, expected 4; run"),
        ({"model_type": "resnet", "in_chans": 1}, r"in_chans: got 1, expected 3"),
        ({"model_type": "mobilenet_v2", "norm": "GN"}, r"norm: got 'GN', expected 'BN' or .*; run"),
        (
            {"model_type": "mobilenet_v2", "strides": [1] * 7},
            r"strides: got \[1, 1, .*, expected \[1, 2, 2, 2",
        ),
        ({"model_type": "mobilenet_v2", "dilations": [2] * 7}, r"dilations: got \[2, "),
        ({"model_type": "mobilenet_v2", "widen_factor": 0}, r"widen_factor: got 0, expected"),
        ({"model_type": "mobilenet_v2", "widen_factor": "1"}, r"widen_factor: got '1'"),
        ({"model_type": "convnextv2", "model_size": "huge"}, r"model_size: got 'huge'"),
        (
            {"model_type": "convnextv2", "model_size": None},
            r"depths: got None, expected the blocks of four stages",
        ),
        ({"model_type": "swin", "ape": True}, r"ape: got True, expected False; run"),
        ({"model_type": "swin", "patch_norm": False}, r"patch_norm: got False, expected True; run"),
        ({"model_type": "swin", "qk_scale": 0.5}, r"qk_scale: got 0.5, expected null; run"),
        ({"model_type": "swin", "out_indices": [1, 2, 3]}, r"out_indices: got \[1, 2, 3\]"),
        (
            {"model_type": "swin", "num_heads": [5, 6, 12, 24]},
            r"num_heads: got 5 for stage 1, expected a divisor",
        ),
        ({"model_type": "swin", "window_size": 1}, r"window_size: got 1, expected 2 to 64"),
        ({"model_type": "csp_darknet", "size": "nano"}, r"size: got 'nano', expected one of 'small'"),
    ],
)
def test_a_backbone_that_is_not_here_is_refused_with_field_value_and_way_out(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        backbone_of(**fields)
    assert str(caught.value).startswith("model: ")
    assert "backbone_config" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        ({"size_divisibility": 32, "pixel_decoder_transformer_dropout": 0.0, "filter_empty_masks": True}, []),
        ({"sparkle": None, "resolution": 999}, []),
        ({"sparkle": 1, "size_divisibility": 64}, ["config.size_divisibility = 64, config.sparkle = 1"]),
        ({"pixel_decoder_transformer_dropout": 0.1}, ["config.pixel_decoder_transformer_dropout = 0.1"]),
        ({"sparkle": "x" * 100}, ["config.sparkle = 'xxxxx"]),
    ],
)
def test_what_is_not_known_is_told_in_one_line_unless_it_says_nothing(config, lines, said):
    load_spec(record(**config))
    assert len(said()) == len(lines)
    for found, line in zip(said(), lines, strict=True):
        assert f"ignored what is not known here: {line}" in found
        assert len(found) < 250


def test_an_unknown_field_of_the_backbone_is_told_with_its_value(said):
    backbone_of(model_type="stdc", size="nano", glitter=[1, 2])
    assert said() == [f"{SOURCE}: ignored what is not known here: config.backbone_config.glitter = [1, 2]"]


def test_spaces_around_the_names_of_classes_are_no_part_of_them():
    changed = record()
    changed["classes"] = ["wall", "window ", " door"]
    changed["val_metrics"] = {"segm/AP-window ": 12.5, "segm/AP-door": 1.0}
    model = load_spec(changed)
    assert model.classes == ("wall", "window", "door")
    assert model.per_class == {"window": 12.5, "door": 1.0}


# Where the weights are


@pytest.mark.parametrize(
    ("files", "uri", "taken", "lines"),
    [
        (["model_final.pth"], "../run/model_final.pth", "model_final.pth", 0),
        (["model_final.pth"], "../../model_final.pth", "model_final.pth", 0),
        (["model_final.pth"], "C:\\runs\\model_final.pth", "model_final.pth", 0),
        (["model_final.pth"], "hub://someone/model", "model_final.pth", 0),
        (["model_final.pth", "best.pth"], "/elsewhere/best.pth", "best.pth", 0),
        (["model_final.pth", "best.pth"], "best.pth", "best.pth", 0),
        # What is taken has another name than what is meant.
        (["model_final.pth"], "best.pth", "model_final.pth", 1),
        (["model_final.pth"], "../best.pth", "model_final.pth", 1),
        (["model_final.safetensors"], "/elsewhere/model_final.pth", "model_final.safetensors", 1),
        (["model_final.pth"], "", "model_final.pth", 0),
        (["model_final.pth"], "a\0b", "model_final.pth", 0),
        (["model_final.pth"], 3, "model_final.pth", 0),
    ],
)
def test_what_lies_beside_is_taken_whatever_weights_uri_says(tmp_path, files, uri, taken, lines, said):
    folder = write(tmp_path / "run", files, weights_uri=uri)
    model = load_spec(folder)
    assert model.weights_path == str(folder / taken)
    assert model.weights_problem is None
    assert len(said()) == lines
    assert all(taken in line for line in said())


def test_an_absolute_path_is_followed_where_nothing_lies_beside(tmp_path, said):
    elsewhere = tmp_path / "elsewhere.pth"
    elsewhere.write_bytes(b"weights")
    folder = write(tmp_path / "run", weights_uri=str(elsewhere))
    assert load_spec(folder).weights_path == str(elsewhere)
    assert said() == []


def test_of_two_files_the_one_beside_is_taken_with_a_line_that_names_the_other(tmp_path, said):
    elsewhere = tmp_path / "model_final.pth"
    elsewhere.write_bytes(b"others")
    folder = write(tmp_path / "run", ["model_final.pth"], weights_uri=str(elsewhere))
    assert load_spec(folder).weights_path == str(folder / "model_final.pth")
    assert len(said()) == 1
    assert str(elsewhere) in said()[0]


def test_a_path_to_the_file_beside_is_nothing_to_tell(tmp_path, said):
    folder = write(tmp_path / "run", ["model_final.pth"])
    (folder / "model_info.json").write_text(
        json.dumps({**record(), "weights_uri": str(folder / "model_final.pth")})
    )
    assert load_spec(folder).weights_path == str(folder / "model_final.pth")
    assert said() == []


def test_a_path_that_leaves_the_folder_is_never_followed(tmp_path):
    (tmp_path / "secret.pth").write_bytes(b"weights")
    folder = write(tmp_path / "run", weights_uri="../secret.pth")
    model = load_spec(folder)
    assert model.weights_path is None
    with pytest.raises(
        fai_fast.WeightsError, match=r"weights_uri '\.\./secret\.pth' leaves the folder"
    ) as caught:
        load_weights(model)
    assert str(folder) in str(caught.value)
    assert "weights=" in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (None, r"no weights_uri is given, and none lie in .*run; put .* or pass its path as weights="),
        (
            "/home/someone/run/model_final.pth",
            r"weights_uri '/home/someone/run/model_final\.pth' is not a file here",
        ),
        ("model_final.pth", r"weights_uri 'model_final\.pth' is not a file here"),
        ("hub://someone/model", r"weights_uri 'hub://someone/model' is not a file here"),
    ],
)
def test_without_weights_the_error_names_weights_uri_and_the_folder(tmp_path, uri, message):
    model = load_spec(write(tmp_path / "run", weights_uri=uri))
    with pytest.raises(fai_fast.WeightsError, match=message):
        load_weights(model)
    assert "weights_problem" not in model.to_dict()


def test_an_exported_folder_points_to_the_weights_of_the_training(tmp_path):
    folder = write(tmp_path / "run", ["model.onnx"], weights_uri="/home/someone/run/model_final.pth")
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("model/code/__torch__.py", "")
        archive.writestr("model/data.pkl", "")
    model = load_spec(folder)
    assert model.weights_path is None
    expected = r"exported \(model\.onnx, model\.pt\) holds a graph, .* or pass its path as weights="
    with pytest.raises(fai_fast.WeightsError, match=expected):
        load_weights(model)
    # Weights beside an export are what they always are.
    (folder / "model_final.pth").write_bytes(b"weights")
    assert load_spec(folder).weights_path == str(folder / "model_final.pth")


def test_an_address_is_used_where_nothing_lies_beside(tmp_path):
    model = load_spec(write(tmp_path / "run", ["model.onnx"], weights_uri="https://example.org/model.pth"))
    assert (model.weights_url, model.weights_path, model.weights_problem) == (
        "https://example.org/model.pth",
        None,
        None,
    )


# Depth


@pytest.mark.parametrize("family", ["fai_mf", "bisenetformer"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_decoder_attends_to_as_many_maps_as_it_has_layers(family, layers):
    changed = record(transformer_predictor_dec_layers=layers)
    model = load_spec({**changed, "model_family": family})
    maps = min(layers, 3 if family == "fai_mf" else 2)
    assert decoder_levels(model) == maps
    projections = {key for key in state_shapes(model) if key.startswith("head.predictor.input_proj.")}
    assert len(projections) == 2 * maps
    state = {key: golden_parameter(key, shape) for key, shape in state_shapes(model).items()}
    # What this package wrote of such networks before has a projection of every map.
    more = {f"head.predictor.input_proj.{maps}.bias": np.zeros(64, np.float32)} if layers == 1 else {}
    assert list(load_weights(model, {**state, **more}).state) == list(state_shapes(model))


# Results


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory):
    pytest.importorskip("torch")  # its weights are a .pth
    folder = focoos_folders.folder(TWO_LAYERS)
    with fai_fast.load(folder, cache_dir=tmp_path_factory.mktemp("cache"), precision="fp32") as model:
        yield model


def test_a_folder_with_two_layers_finds_what_focoos_finds(two_layers):
    expected = focoos_folders.expected(TWO_LAYERS)
    labels, scores, masks = two_layers.queries(expected.image)
    np.testing.assert_array_equal(labels, expected.labels)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5, rtol=0)
    assert ((masks >= 0) != expected.inside).mean() < 1e-4


def test_a_folder_with_two_layers_gives_the_rows_of_focoos(two_layers):
    expected = focoos_folders.expected(TWO_LAYERS)
    found = two_layers.infer(expected.image, threshold=0.3)
    wanted = [
        query
        for query in np.argsort(-expected.scores, kind="stable")
        if expected.scores[query] > 0.3 and expected.inside[query].sum() > 1
    ]
    assert len(wanted) > 2
    np.testing.assert_array_equal(found.class_id, expected.labels[wanted])
    np.testing.assert_allclose(found.confidence, expected.scores[wanted], atol=1e-5, rtol=0)
    assert (found.mask != expected.inside[wanted]).mean() < 1e-4


# Classes from a sigmoid


def sigmoid_weights():
    model = load_spec(record(cls_sigmoid=True))
    return load_weights(
        model, {key: golden_parameter(key, shape) for key, shape in state_shapes(model).items()}
    )


def test_classes_from_a_sigmoid_are_those_of_the_reference(tmp_path):
    torch = pytest.importorskip("torch")
    weights = sigmoid_weights()
    image = focoos_folders.expected(TWO_LAYERS).image
    network = fai_fast.reference.build(weights.spec).eval()
    network.load_state_dict({key: torch.from_numpy(value) for key, value in weights.state.items()})
    with torch.inference_mode():
        logits = network(torch.from_numpy(image).permute(2, 0, 1)[None].float()).class_logits[0]
    # FocoosAI leaves out the last column behind the sigmoid.
    scores, labels = logits.sigmoid()[:, :-1].max(-1)
    with fai_fast.load(weights.spec, weights=weights.state, cache_dir=tmp_path, precision="fp32") as model:
        found_labels, found_scores, _ = model.queries(image)
        assert "sigmoid" in model.spec.card()
        rows = model.infer(image, threshold=0.0)
    np.testing.assert_array_equal(found_labels, labels.numpy())
    np.testing.assert_allclose(found_scores, scores.numpy(), atol=1e-5)
    assert set(rows.confidence) <= set(found_scores)


def test_the_losses_of_sigmoid_classes_are_those_of_focoos():
    torch = pytest.importorskip("torch")
    pytest.importorskip("scipy")
    from fai_fast.losses import SetCriterion, Target
    from fai_fast.reference import Output

    config = sigmoid_weights().spec.config
    torch.manual_seed(0)
    masks, classes = torch.randn(2, 6, 16, 16), torch.randn(2, 6, config.num_classes + 1)
    boxes = torch.zeros(3, 32, 32, dtype=torch.bool)
    boxes[0, :8], boxes[1, 20:], boxes[2, :, :9] = True, True, True
    targets = [Target(torch.tensor([0, 2, 1]), boxes), Target(torch.tensor([1]), boxes[:1])]
    criterion = SetCriterion(config, torch.Generator().manual_seed(1))
    losses = criterion(Output(masks, classes), targets)
    pairs = SetCriterion(config, torch.Generator().manual_seed(1)).match(Output(masks, classes), targets)
    truth = torch.zeros(2, 6, config.num_classes)
    for image, (target, (queries, matched)) in enumerate(zip(targets, pairs, strict=True)):
        truth[image, queries, target.labels[matched]] = 1
    probability = classes[..., :-1].double().sigmoid()
    entropy = -(truth * probability.log() + (1 - truth) * (1 - probability).log())
    # Summed over queries and classes, over the number of targets; no weight for 'no object'.
    assert losses["loss_ce"].item() == pytest.approx(entropy.sum().item() / 4, rel=1e-5)
    changed = classes.clone()
    changed[..., -1] += 5
    again = SetCriterion(config, torch.Generator().manual_seed(1))(Output(masks, changed), targets)
    assert again["loss_ce"].item() == losses["loss_ce"].item()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_family": "rtdetr"}, r": model_family: got 'rtdetr', expected one of 'fai_mf'"),
        ({"model_family": 3}, r": model_family: got 3, expected one of"),
        ({"description": 3}, r": description: got int, expected a str"),
        ({"val_dataset": ["a"]}, r": val_dataset: got list, expected a str"),
        ({"config": {"postprocessing_type": "panoptic"}}, r": config\.postprocessing_type: got 'panoptic'"),
        ({"config": {"postprocessing_type": 1}}, r": config\.postprocessing_type: got 1, expected one of"),
    ],
)
def test_what_is_refused_is_called_as_the_file_calls_it(tmp_path, caplog, fields, message):
    record = json.loads((focoos_folders.folder("instance-two-layers") / "model_info.json").read_text("utf-8"))
    record = {**record, **fields, "config": {**record["config"], **fields.get("config", {})}}
    (tmp_path / "model_info.json").write_text(json.dumps(record), "utf-8")
    with pytest.raises(ValueError, match=message):
        fai_fast.registry.load_spec(tmp_path)
    assert not re.search(r"taken as (?!semantic)", caplog.text)
