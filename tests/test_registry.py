"""The registry's entries, records that check themselves, and models of the user's own."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import math
import pickle
import re
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from fai_fast.registry import (
    BackboneConfig,
    ModelConfig,
    ModelSpec,
    PublishedLatency,
    load_spec,
    models,
    spec,
)
from fai_fast.registry.shapes import count_parameters, state_shapes
from hypothesis import given, settings
from hypothesis import strategies as st

PUBLISHED = [
    "fai-m2f-m-coco-ins",
    "fai-bf-m-ade",
    "fai-mf-s-coco-ins",
    "fai-mf-m-coco-ins",
    "fai-mf-l-coco-ins",
    "fai-mf-m-ade",
    "fai-mf-l-ade",
    "bisenetformer-s-ade",
    "bisenetformer-m-ade",
    "bisenetformer-l-ade",
]
# Of the entries as they were published. Another digest means that a published figure was edited.
PUBLISHED_SHA256 = "3c687790004d221cd575deb2925a5a0466b6ca4644dc8a4c93deff1d48756e8f"

# What FocoosAI's library writes beside the weights of a model that it trained, shortened.
MODEL_INFO = {
    "name": "orchard",
    "model_family": "fai_mf",
    "classes": ["ripe", "unripe"],
    "im_size": 640,
    "task": "instseg",
    "config": {
        "num_classes": 2,
        "backbone_config": {
            "use_pretrained": False,
            "backbone_url": None,
            "model_type": "stdc",
            "in_chans": 3,
            "base": 64,
            "layers": [4, 5, 3],
            "out_features": ["res2", "res3", "res4", "res5"],
            "block_num": 4,
            "block_type": "cat",
            "use_conv_last": False,
        },
        "num_queries": 50,
        "resolution": 640,
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
        "size_divisibility": 0,
        "pixel_decoder_out_dim": 128,
        "pixel_decoder_feat_dim": 128,
        "transformer_predictor_out_dim": 128,
        "transformer_predictor_dec_layers": 3,
        "head_out_dim": 128,
        "postprocessing_type": "instance",
        "filter_empty_masks": False,
    },
    "ref": None,
    "focoos_model": "fai-mf-m-ade",
    "status": "TRAINING_COMPLETED",
    "description": "apples",
    "train_args": {"run_name": "x", "max_iters": 100},
    "weights_uri": "model_final.pth",
    "val_dataset": "orchard_instance",
    "val_metrics": {
        "segm/AP": 61.5,
        "segm/AP-ripe": 70.25,
        "segm/AP-unripe": float("nan"),
        "segm/AP50": 80,
        "bbox/AP": 1.0,
        "loss_ce": 0.5,
        "iteration": 99,
        "note": "x",
    },
    "focoos_version": "0.15.0",
    "latency": [
        {
            "fps": 61,
            "engine": "onnx",
            "min": 1,
            "max": 2,
            "mean": 16.3,
            "std": 1,
            "im_size": 640,
            "device": "T4",
        },
        {"fps": 61},
    ],
    "updated_at": "2025-06-01T00:00:00",
}


def entry(name: str) -> dict:
    return json.loads((Path(fai_fast.__file__).parent / "registry" / f"{name}.json").read_text("utf-8"))


def write_model(folder: Path, weights=(), **changes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model_info.json").write_text(json.dumps({**MODEL_INFO, **changes}))
    for name in weights:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"weights")
    return folder


# The ten published entries


def test_the_published_models_come_first_and_in_order():
    assert models()[:10] == PUBLISHED
    assert models() == fai_fast.models()
    models().clear()
    assert models()[:10] == PUBLISHED


def test_published_entries_are_as_they_were_published():
    digest = hashlib.sha256()
    for name in PUBLISHED:
        digest.update(json.dumps(entry(name), sort_keys=True).encode())
    assert digest.hexdigest() == PUBLISHED_SHA256


@pytest.mark.parametrize("name", models())
def test_an_entry_is_complete_and_consistent(name):
    model = spec(name)
    assert model.name == name
    assert (model.family, model.task) == (
        "bisenetformer" if name.startswith(("bisenetformer", "fai-bf")) else "fai_mf",
        "semantic" if name.endswith("-ade") else "instance",
    )
    assert len(model.classes) == len(set(model.classes)) == model.config.num_classes
    assert set(model.per_class) <= set(model.classes)
    assert list(model.per_class) == [item for item in model.classes if item in model.per_class]
    assert all(0 <= value <= 100 for value in [*model.per_class.values(), *model.metrics.values()])
    assert model.config.postprocessing_type == model.task
    assert model.config.use_mask_score == (model.task == "instance")
    assert model.config.predict_all_pixels == (model.task == "semantic")
    assert model.weights_url or model.bundled_weights
    for latency in model.published_latency:
        assert latency.fps == int(1000 / latency.mean_ms)
    assert {
        key: value for key, value in entry(name).items() if value not in (None, [], {})
    } == model.to_dict()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_entry_has_its_dataset_and_address(name):
    model = spec(name)
    coco = name.endswith("coco-ins")
    assert len(model.classes) == (80 if coco else 150)
    assert model.im_size == (1024 if coco else 640)
    assert model.dataset == ("coco_2017_instance" if coco else "ade20k_semseg")
    assert len(model.per_class) == len(model.classes)
    assert re.fullmatch(
        r"https://public\.focoos\.ai/pretrained_models/[a-z-]+/model_final\.pth", model.weights_url
    )
    assert set(model.metrics) >= ({"segm/AP", "segm/AP50", "segm/AP75"} if coco else {"sem_seg/mIoU"})


def test_per_class_figures_are_those_whose_mean_is_published():
    for name in PUBLISHED:
        model = spec(name)
        mean = sum(model.per_class.values()) / len(model.per_class)
        overall = model.metrics["segm/AP" if model.task == "instance" else "sem_seg/mIoU"]
        assert mean == pytest.approx(overall, abs=0.011), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_of_the_state_are_those_published(name):
    path = Path(__file__).parent / "data" / "state_dicts" / f"{name}.json"
    expected = {key: tuple(shape) for key, shape in json.loads(path.read_text()).items()}
    assert list(state_shapes(spec(name)).items()) == list(expected.items())


def test_parameters_are_counted_without_statistics():
    path = Path(__file__).parent / "data" / "state_dicts" / "bisenetformer-s-ade.json"
    learnt = [
        math.prod(shape)
        for key, shape in json.loads(path.read_text()).items()
        if not re.search(r"running_|num_batches|empty_weight", key)
    ]
    assert count_parameters(spec("bisenetformer-s-ade")) == sum(learnt)


# Names


def test_an_unknown_name_is_answered_with_similar_ones():
    with pytest.raises(ValueError, match=r"name: got 'fai-mf-m-coco', did you mean fai-mf-m-coco-ins or"):
        spec("fai-mf-m-coco")
    with pytest.raises(
        ValueError, match=r"name: got 'yolo', expected one of fai-m2f-m-coco-ins, .*bisenetformer-l-ade"
    ):
        spec("yolo")
    with pytest.raises(TypeError, match="name: got int"):
        spec(3)


@pytest.mark.parametrize(
    "name", ["../registry/fai-mf-m-ade", "", "fai-mf-m-ade.json", "a\0b", "FAI-MF-M-ADE"]
)
def test_a_name_is_no_path(name):
    with pytest.raises(ValueError, match="name: got"):
        spec(name)
    with pytest.raises(ValueError, match="model: got"):
        load_spec(name or "\0")


def test_load_spec_takes_names_and_specs_and_nothing_else(tmp_path):
    model = spec("fai-mf-m-ade")
    assert load_spec("fai-mf-m-ade") is model
    assert load_spec(model) is model
    assert load_spec(model.to_dict()) == model
    for wrong in (3, None, ["fai-mf-m-ade"]):
        with pytest.raises(TypeError, match="model: got"):
            load_spec(wrong)
    with pytest.raises(ValueError, match=r"model: got '.*nowhere', no such file or folder"):
        load_spec(tmp_path / "nowhere")


# Records


@pytest.mark.parametrize("name", models())
def test_a_spec_survives_json_pickle_and_copy(name):
    model = spec(name)
    assert ModelSpec.from_dict(json.loads(json.dumps(model.to_dict()))) == model
    assert pickle.loads(pickle.dumps(model)) == model
    assert copy.deepcopy(model) == model
    assert dataclasses.replace(model) == model
    assert eval(repr(model.metrics)) == dict(model.metrics)


def test_specs_are_equal_by_value_and_cannot_be_changed():
    model = spec("fai-mf-m-ade")
    other = dataclasses.replace(model, metrics={**model.metrics, "sem_seg/mIoU": 1.0})
    assert other != model
    assert other.metrics["sem_seg/mIoU"] == 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.name = "x"
    with pytest.raises(TypeError):
        model.metrics["sem_seg/mIoU"] = 99.0
    with pytest.raises(TypeError):
        del model.per_class["wall"]


def test_a_spec_of_ones_own_keeps_no_hold_on_what_it_was_made_of():
    metrics, classes = {"segm/AP": 1.0}, ["a", "b"]
    config = ModelConfig(
        num_classes=2,
        backbone_config=BackboneConfig("stdc", base=16, layers=[2, 2, 2]),
        postprocessing_type="instance",
    )
    model = ModelSpec("mine", "fai_mf", "instance", classes, config, 320, metrics=metrics)
    metrics["segm/AP"] = 2.0
    classes.append("c")
    assert model.metrics == {"segm/AP": 1.0}
    assert model.classes == ("a", "b")
    assert model.config.backbone_config.layers == (2, 2, 2)
    assert model.config.num_queries == 100
    assert ModelSpec.from_dict(model.to_dict()) == model


def changed(**changes) -> ModelSpec:
    """fai-mf-m-ade with fields of the spec, of its config (config__x) and of its backbone (backbone__x) changed."""
    record = copy.deepcopy(spec("fai-mf-m-ade").to_dict())
    for key, value in changes.items():
        place, _, name = key.rpartition("__")
        target = {"": record, "config": record["config"], "backbone": record["config"]["backbone_config"]}[
            place
        ]
        target[name] = value
    return ModelSpec.from_dict(record)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": ""}, ValueError, "name: got ''"),
        ({"name": 3}, TypeError, "name: got int"),
        (
            {"family": "fai_detr"},
            ValueError,
            "family: got 'fai_detr', expected one of 'fai_mf', 'bisenetformer'",
        ),
        ({"task": "panoptic"}, ValueError, "task: got 'panoptic'"),
        ({"task": "instance"}, ValueError, "postprocessing_type: got 'semantic', expected 'instance'"),
        ({"classes": []}, ValueError, "classes: got none"),
        ({"classes": ["a"]}, ValueError, "classes: got 1 names, expected config.num_classes = 150"),
        ({"classes": "abc"}, TypeError, "classes: got 'abc'"),
        ({"classes": [1]}, TypeError, "classes: got 1 in it"),
        ({"im_size": 100}, ValueError, "im_size: got 100, expected a multiple of 32"),
        ({"im_size": 0}, ValueError, "im_size: got 0"),
        ({"im_size": 640.0}, TypeError, "im_size: got 640.0"),
        ({"im_size": True}, TypeError, "im_size: got True"),
        ({"im_size": (64, 100)}, ValueError, r"im_size: got \(64, 100\), expected a multiple of 32 each for"),
        ({"im_size": (64,)}, ValueError, "im_size: got 1 values"),
        ({"im_size": "64x96"}, TypeError, "im_size: got '64x96'"),
        ({"im_size": (64, None)}, TypeError, "im_size: got None"),
        ({"metrics_im_size": (64, 0)}, ValueError, r"metrics_im_size: got \(64, 0\)"),
        ({"weights_url": "file:///etc/passwd"}, ValueError, "weights_url: got 'file:///etc/passwd'"),
        ({"weights_url": "https://"}, ValueError, "weights_url: got"),
        ({"weights_url": "https://a b/c"}, ValueError, "weights_url: got"),
        ({"weights_url": "https://me:secret@host/c"}, ValueError, "weights_url: got"),
        ({"metrics": {"a": float("nan")}}, ValueError, r"metrics\['a'\]: got nan"),
        ({"metrics": {"a": "1"}}, TypeError, r"metrics\['a'\]: got '1'"),
        ({"metrics": [1]}, TypeError, "metrics: got list"),
        ({"per_class": {"unicorn": 1.0}}, ValueError, "per_class: got 'unicorn', which is not in classes"),
        ({"bundled_weights": "../x.safetensors"}, ValueError, "bundled_weights: got '../x.safetensors'"),
        ({"bundled_weights": "..\\x"}, ValueError, "bundled_weights"),
        (
            {"published_latency": [{"engine": "x"}]},
            ValueError,
            "published_latency: device, im_size, mean_ms, fps missing",
        ),
        ({"published_latency": [3]}, TypeError, "published_latency: got int"),
        ({"published_latency": 3}, TypeError, "published_latency: got 3"),
        ({"colour": 1}, ValueError, "spec: got unknown fields 'colour'"),
        ({"config": None}, ValueError, "spec: config missing"),
        ({"config": 3}, TypeError, "config: got int"),
        ({"config__layers": 1}, ValueError, "config: got unknown fields 'layers'"),
        ({"config__num_classes": None}, ValueError, "config: num_classes missing"),
        ({"config__num_queries": 0}, ValueError, "config.num_queries: got 0"),
        ({"config__num_queries": 1 << 40}, ValueError, "config.num_queries: got"),
        ({"config__num_queries": "100"}, TypeError, "config.num_queries: got '100'"),
        ({"config__pixel_mean": [1, 2]}, ValueError, "config.pixel_mean: got 2 values"),
        ({"config__pixel_std": [1, 0, 1]}, ValueError, "config.pixel_std: got"),
        ({"config__pixel_std": [1, float("inf"), 1]}, ValueError, "config.pixel_std: got inf"),
        ({"config__pixel_decoder_feat_dim": 130}, ValueError, "feat_dim: got 130, expected a multiple of 4"),
        (
            {"config__pixel_decoder_feat_dim": 132, "config__pixel_decoder_transformer_layers": 1},
            ValueError,
            "feat_dim: got 132, expected a multiple of 8",
        ),
        (
            {"config__transformer_predictor_hidden_dim": 100},
            ValueError,
            "hidden_dim: got 100, expected a multiple of 8",
        ),
        (
            {"config__pixel_decoder_out_dim": 64},
            ValueError,
            "transformer_predictor_out_dim: got 128, expected",
        ),
        ({"config__transformer_predictor_dec_layers": 0}, ValueError, "dec_layers: got 0"),
        ({"config__transformer_predictor_dec_layers": 101}, ValueError, "dec_layers: got 101"),
        ({"config__cls_sigmoid": 1}, TypeError, "config.cls_sigmoid: got 1, expected a bool"),
        ({"config__use_mask_score": 1}, TypeError, "config.use_mask_score: got 1, expected a bool"),
        ({"config__threshold": 1.5}, ValueError, "config.threshold: got 1.5, expected 0 to 1"),
        ({"config__criterion_eos_coef": -1}, ValueError, "config.criterion_eos_coef: got -1"),
        ({"config__backbone_config": "resnet"}, TypeError, "config.backbone_config: got str"),
        ({"backbone__model_type": "mit"}, ValueError, "backbone_config.model_type: got 'mit'"),
        (
            {"backbone__model_type": "resnet"},
            ValueError,
            "backbone_config.depth: got None, expected 18, 34, 50 or 101",
        ),
        ({"backbone__in_chans": 4}, ValueError, "backbone_config.in_chans: got 4, expected 3"),
        ({"backbone__base": 20}, ValueError, "backbone_config.base: got 20, expected a multiple of 8"),
        ({"backbone__base": None}, TypeError, "backbone_config.base: got None"),
        ({"backbone__layers": [2, 2]}, ValueError, "backbone_config.layers: got 2 values"),
        ({"backbone__layers": [2, 2, 0]}, ValueError, "backbone_config.layers: got 0"),
        ({"backbone__layers": None}, ValueError, "backbone_config.layers: got None"),
        (
            {"backbone__block_type": "sum"},
            ValueError,
            "backbone_config.block_type: got 'sum', expected one of 'cat', 'add'",
        ),
        ({"backbone__depth": 50}, ValueError, "backbone_config.depth: got 50, expected None"),
    ],
)
def test_a_wrong_field_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        changed(**changes)


def test_bisenetformer_has_no_encoder():
    model = spec("bisenetformer-s-ade")
    config = dataclasses.replace(model.config, pixel_decoder_transformer_layers=1)
    with pytest.raises(ValueError, match="bisenetformer has no encoder"):
        dataclasses.replace(model, config=config)


# FocoosAI's model_info.json


@pytest.mark.parametrize("given", ["folder", "file", "other name", "dict"])
def test_a_model_of_focoosai(tmp_path, given, caplog):
    folder = write_model(tmp_path / "run", ["model_final.pth"])
    path: object = folder
    if given == "file":
        path = folder / "model_info.json"
    elif given == "other name":
        path = str((folder / "model_info.json").rename(folder / "orchard.json"))
    elif given == "dict":
        path = MODEL_INFO
    model = load_spec(path)
    assert (model.name, model.family, model.task, model.im_size) == ("orchard", "fai_mf", "instance", 640)
    assert model.classes == ("ripe", "unripe")
    assert (model.config.num_queries, model.config.transformer_predictor_dec_layers) == (50, 3)
    assert model.config.transformer_predictor_dim_feedforward == 1024  # FocoosAI's default
    assert (model.dataset, model.note, model.weights_url) == ("orchard_instance", "apples", None)
    assert model.metrics == {"segm/AP": 61.5, "segm/AP50": 80.0}
    assert model.per_class == {"ripe": 70.25}
    assert model.published_latency == (PublishedLatency("onnx", "T4", 640, 16.3, 61),)
    assert model.weights_path == (None if given == "dict" else str(folder / "model_final.pth"))
    assert caplog.records == []


def test_a_model_saved_by_ourselves(tmp_path):
    model = spec("fai-mf-m-ade")
    (tmp_path / "model_info.json").write_text(json.dumps(model.to_dict()))
    (tmp_path / "mine.safetensors").touch()
    assert load_spec(tmp_path) == model
    assert load_spec(tmp_path).weights_path == str(tmp_path / "mine.safetensors")
    assert "weights_path" not in load_spec(tmp_path).to_dict()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_configurations_can_be_read_as_focoosai_writes_them(name):
    ours = entry(name)
    record = {
        "name": name,
        "model_family": ours["family"],
        "classes": ours["classes"],
        "im_size": ours["im_size"],
        "task": {"instance": "instseg", "semantic": "semseg"}[ours["task"]],
        "config": ours["config"],
        "weights_uri": ours["weights_url"],
    }
    model = load_spec(record)
    assert model.config == spec(name).config
    assert model.weights_url == spec(name).weights_url


@pytest.mark.parametrize("field", ["name", "classes", "im_size", "task", "config"])
def test_a_missing_field_is_named(tmp_path, field):
    folder = write_model(tmp_path, **{field: None})
    with pytest.raises(
        ValueError, match=rf"model_info\.json: {field} missing; expected the fields name, model_family"
    ):
        load_spec(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_family": None}, "model_family: got None|family missing"),
        ({"model_family": "fai_detr"}, "family: got 'fai_detr'"),
        ({"task": "detection"}, "task: got 'detection', expected instseg or semseg"),
        ({"config": [1]}, "config: got list, expected an object"),
        ({"config": {}}, "config.num_classes, config.backbone_config missing"),
        ({"classes": "ripe"}, "classes: got 'ripe'"),
        ({"classes": ["ripe"]}, "classes: got 1 names, expected config.num_classes = 2"),
        ({"im_size": "640"}, "im_size: got '640'"),
        ({"im_size": -1}, "im_size: got -1"),
        ({"im_size": [640]}, r"im_size: got 1 values, expected an int for a square or \(height, width\)"),
        ({"im_size": []}, "im_size: got 0 values"),
        ({"im_size": [64, 64, 3]}, "im_size: got 3 values"),
        ({"im_size": [64, 0]}, r"im_size: got \(64, 0\), expected 1 to 32736 each for \(height, width\)"),
        ({"im_size": [-64, 64]}, r"im_size: got \(-64, 64\)"),
        ({"im_size": [64.0, 64]}, "im_size: got 64.0, expected an integer"),
        ({"im_size": [64, "64"]}, "im_size: got '64', expected an integer"),
        ({"im_size": [True, 64]}, "im_size: got True, expected an integer"),
        ({"im_size": [[64, 64], 64]}, "im_size: got list, expected an integer"),
        ({"im_size": {"h": 64}}, "im_size: got dict, expected an integer"),
        ({"im_size": [64, 10**9]}, r"im_size: got \(64, 1000000000\), expected 1 to 32736"),
    ],
)
def test_a_wrong_model_info_names_file_and_field(tmp_path, changes, message):
    folder = write_model(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_spec(folder)
    assert str(folder / "model_info.json") in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"3", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_file_that_is_no_json_object_is_named(tmp_path, text):
    (tmp_path / "model_info.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"model: .*model_info\.json (cannot be read as JSON|holds a JSON)"):
        load_spec(tmp_path)


def test_weights_are_no_model_info(tmp_path):
    with open(tmp_path / "model.pth", "wb") as file:
        file.truncate(1 << 25)
    with pytest.raises(
        ValueError, match=r"model\.pth is a checkpoint, .*: load\(NAME, weights=.*model\.pth'\)"
    ):
        load_spec(tmp_path / "model.pth")


def test_a_folder_without_a_model_info_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"folder .* has no model_info\.json"):
        load_spec(tmp_path)


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_unknown_fields_of_the_configuration_are_ignored_with_one_line(tmp_path, caplog):
    config = {**MODEL_INFO["config"], "sparkle": 1, "glitter": 2}
    with caplog.at_level(logging.WARNING, "fai_fast"):
        load_spec(write_model(tmp_path, config=config))
    assert messages(caplog) == [
        f"{tmp_path / 'model_info.json'}: ignored what is not known here: config.glitter = 2, config.sparkle = 1"
    ]


@pytest.mark.parametrize(
    ("im_size", "expected"),
    [
        (640, 640),
        (600, 608),
        (1, 32),
        ([480, 640], (480, 640)),
        ([640, 640], 640),
        ([470, 640], (480, 640)),
        ([192, 1], (192, 32)),
        ([600, 601], 608),
    ],
)
def test_a_size_that_the_network_cannot_have_is_rounded_up_with_one_line(tmp_path, caplog, im_size, expected):
    with caplog.at_level(logging.WARNING, "fai_fast"):
        assert load_spec(write_model(tmp_path, im_size=im_size)).im_size == expected
    if im_size in (640, [640, 640], [480, 640]):
        assert messages(caplog) == []
    else:
        [line] = messages(caplog)
        height, width = expected if isinstance(expected, tuple) else (expected, expected)
        assert (
            f"im_size is {im_size}, the network's input will be {height} x {width} (height x width)" in line
        )


def test_the_postprocessing_type_decides_where_the_task_contradicts(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "fai_fast"):
        assert load_spec(write_model(tmp_path, task="semseg")).task == "instance"
    assert len(messages(caplog)) == 1
    config = {key: value for key, value in MODEL_INFO["config"].items() if key != "postprocessing_type"}
    assert (
        load_spec(write_model(tmp_path, task="semseg", config=config)).config.postprocessing_type
        == "semantic"
    )


@pytest.mark.parametrize(
    ("files", "uri", "expected"),
    [
        (["model_final.pth", "other.pth"], None, "model_final.pth"),
        (["model_final.pth", "best.pth"], "best.pth", "best.pth"),
        (["checkpoints/best.pth"], "checkpoints/best.pth", "checkpoints/best.pth"),
        (["model_final.pth"], "https://example.org/model.pth", "model_final.pth"),
        (["model_final.pth"], "/root/FocoosAI/models/run/model_final.pth", "model_final.pth"),
        (["best.safetensors"], "gone.pth", "best.safetensors"),
        (["a.pth", "b.pth"], None, None),
        ([], "model_final.pth", None),
        ([], "s3://bucket/model_final.pth", None),
    ],
)
def test_weights_are_found_beside_the_model_info(tmp_path, files, uri, expected):
    model = load_spec(write_model(tmp_path, files, weights_uri=uri))
    assert model.weights_path == (None if expected is None else str(tmp_path / expected))
    assert model.weights_url == (uri if uri and uri.startswith("https") else None)


def test_several_weights_beside_the_model_info_are_told_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "fai_fast"):
        load_spec(write_model(tmp_path, ["a.pth", "b.safetensors"], weights_uri=None))
    assert "several weights beside it (a.pth, b.safetensors)" in messages(caplog)[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


def places(record: dict) -> list[tuple[dict, str]]:
    """Every field of a record and of the objects in it."""
    found = [(record, key) for key in record]
    return found + [place for value in record.values() if isinstance(value, dict) for place in places(value)]


@given(st.data(), st.booleans())
@settings(max_examples=300)
def test_any_field_may_be_anything_and_is_accepted_or_named(data, focoosai):
    record = copy.deepcopy(MODEL_INFO if focoosai else spec("fai-mf-s-coco-ins").to_dict())
    for _ in range(data.draw(st.integers(1, 2))):
        owner, key = data.draw(
            st.sampled_from([place for place in places(record) if place[0] is not record["classes"]])
        )
        owner[key] = data.draw(JSON)
    try:
        model = load_spec(record)
    except ValueError as error:
        text = str(error)
    else:
        assert ModelSpec.from_dict(model.to_dict()) == model
        assert model.card()
        return
    assert text.startswith("model: ")


# The model card


@pytest.mark.parametrize("name", models())
def test_the_card_has_every_figure_of_the_entry(name):
    model = spec(name)
    card = model.card()
    lines = card.splitlines()
    assert lines[0] == f"{name}: {model.task} segmentation, {len(model.classes)} classes"
    assert max(map(len, lines)) <= 120
    assert card.isprintable() or card.replace("\n", "").isprintable()
    for key, value in model.metrics.items():
        assert re.search(rf"^  {re.escape(key)} +{value:g}$", card, re.MULTILINE)
    for index, (label, value) in enumerate(model.per_class.items()):
        assert re.search(rf"^ +{index}  {re.escape(label)} +{value:.2f}$", card, re.MULTILINE)
    for latency in model.published_latency:
        assert f"{latency.mean_ms:.3f} ms" in card
        assert f"{latency.fps} fps  {latency.device}" in card
    if model.documentation_fps_t4_tensorrt_640:
        assert "Older figure that FocoosAI's documentation shows" in card
        assert f"{model.documentation_fps_t4_tensorrt_640} fps" in card
    for text in (model.weights_url or model.bundled_weights, f"{count_parameters(model) / 1e6:.1f} million"):
        assert text in card
    if model.note:
        assert model.note in re.sub(r"\s+", " ", card)


def test_the_card_says_whose_figures_it_shows(tmp_path):
    published = spec("fai-mf-m-coco-ins").card()
    assert "Metrics in percent, at 1024 x 1024 (published by FocoosAI)" in published
    assert "Classes, with the published AP in percent" in published
    assert "FocoosAI's measurement" in published
    own = load_spec(write_model(tmp_path)).card()
    assert "Metrics in percent, at 640 x 640\n" in own
    assert "Classes, with the AP in percent" in own
    assert re.search(r"^ +1  unripe +-$", own, re.MULTILINE)


def test_the_card_of_a_model_without_figures_lists_its_classes():
    model = dataclasses.replace(spec("fai-mf-m-ade"), per_class={}, metrics={}, note=None, weights_url=None)
    card = model.card()
    assert "Metrics" not in card
    assert "Weights" not in card
    listed = card[card.index("Classes\n") :].split("\n\n")[0]
    assert " ".join(listed.split()) == "Classes " + "; ".join(model.classes)


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "A.PTH", "a.safetensors", "a.ckpt"])
def test_weights_in_place_of_a_model_say_what_to_do(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"anything")
    with pytest.raises(
        ValueError, match=r"is a checkpoint, .*: load\(NAME, weights='.*'\), with a registry name"
    ):
        load_spec(path)
    (tmp_path / "model_info.json").write_text(json.dumps(MODEL_INFO))
    with pytest.raises(ValueError, match="is a checkpoint") as caught:
        load_spec(path)
    assert f"({str(tmp_path)!r}, weights={str(path)!r})" in str(caught.value)


@pytest.mark.parametrize("begins", [b"PK\x03\x04", b"\x80\x02}"])
def test_weights_are_told_by_their_content_too(tmp_path, begins):
    (tmp_path / "checkpoint").write_bytes(begins)
    with pytest.raises(ValueError, match="is a checkpoint"):
        load_spec(tmp_path / "checkpoint")


@pytest.mark.parametrize("name", ["a.onnx", "A.ONNX", "a.openvino", "a.engine"])
def test_a_graph_is_no_record(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"holds a graph, which fai_fast\.load\(\)"):
        load_spec(tmp_path / name)


@pytest.mark.parametrize("name", ["best.pt", "best.pth", "best.safetensors", "model_final.pt", "BEST.PT"])
def test_any_kind_of_checkpoint_beside_the_model_info_is_found(tmp_path, name):
    folder = write_model(tmp_path / "run", [name], weights_uri=None)
    assert load_spec(folder).weights_path == str(folder / name)


# ------------------------------------------------------------------------------------- what a derived record keeps

FIGURES = {"metrics": {"segm/AP": 43.4}, "per_class": {"ripe": 40.0}}


def derived(**changes) -> ModelSpec:
    return dataclasses.replace(spec("fai-mf-s-coco-ins"), **changes)


def other_config(**changes) -> ModelConfig:
    return dataclasses.replace(spec("fai-mf-s-coco-ins").config, **changes)


PUBLISHED_FIELDS = ("metrics", "per_class", "published_latency", "weights_url", "dataset", "metrics_im_size")


def known(model: ModelSpec) -> set[str]:
    return {name for name in PUBLISHED_FIELDS if getattr(model, name)}


def test_a_record_with_other_classes_has_nothing_of_the_old_ones():
    base = spec("fai-mf-s-coco-ins")
    assert known(base) == set(PUBLISHED_FIELDS)
    pears = derived(name="pears", classes=("ripe", "unripe"), config=other_config(num_classes=2))
    assert known(pears) == set()
    assert (pears.note, pears.documentation_fps_t4_tensorrt_640, pears.bundled_weights) == (None, None, None)
    assert "published" not in pears.card()
    with pytest.raises(fai_fast.WeightsError, match="pears has none of its own"):
        fai_fast.load(pears)
    assert base == spec("fai-mf-s-coco-ins")
    assert known(base) == set(PUBLISHED_FIELDS)


@pytest.mark.parametrize(
    "change", [{"num_queries": 50}, {"backbone_config": BackboneConfig("resnet", depth=101)}], ids=str
)
def test_a_record_of_another_network_has_nothing_of_the_old_one(change):
    assert known(derived(config=other_config(**change))) == set()


def test_other_names_for_the_same_classes_keep_the_weights_but_no_figures():
    base = spec("fai-mf-s-coco-ins")
    renamed = derived(classes=tuple(f"Klasse {index}" for index in range(len(base.classes))))
    assert known(renamed) == {"published_latency", "weights_url", "dataset"}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "mine"},
        {"config": other_config(threshold=0.1, criterion_num_points=100)},
        {"config": other_config(transformer_predictor_dec_layers=3)},  # the checkpoint decides on it
    ],
    ids=["name", "thresholds", "depth"],
)
def test_what_changes_no_figure_keeps_them(changes):
    assert known(derived(**changes)) == set(PUBLISHED_FIELDS)


def test_figures_keep_the_size_that_they_were_measured_at():
    base = spec("fai-mf-m-ade")
    assert (base.im_size, base.metrics_im_size) == (640, None)
    assert dataclasses.replace(base, im_size=320).metrics_im_size == 640
    assert dataclasses.replace(base, im_size=320, metrics={}).metrics_im_size is None
    wide = dataclasses.replace(base, im_size=[384, 640])
    assert (wide.im_size, wide.input_size, wide.metrics_im_size) == ((384, 640), (384, 640), 640)
    # The same size, however it is written.
    assert dataclasses.replace(wide, im_size=[384, 640]) == wide
    measured = dataclasses.replace(wide, metrics_im_size=None)
    assert dataclasses.replace(measured, im_size=np.array([384, 640])).metrics_im_size is None
    assert dataclasses.replace(measured, im_size=320).metrics_im_size == (384, 640)


@pytest.mark.parametrize("im_size", [640, (640, 640), [640, 640], np.int64(640), np.array([640, 640])])
def test_a_square_is_its_side_however_it_is_written(im_size):
    base = spec("fai-mf-m-ade")
    square = dataclasses.replace(base, im_size=im_size)
    assert square == base
    assert hash(square) == hash(base)
    assert (square.im_size, type(square.im_size), square.input_size) == (640, int, (640, 640))


def test_a_size_with_two_sides_is_kept_and_told_as_height_by_width():
    wide = dataclasses.replace(spec("fai-mf-n-shapes"), im_size=(160, 288), metrics_im_size=(192, 352))
    assert json.loads(json.dumps(wide.to_dict()))["im_size"] == [160, 288]
    again = ModelSpec.from_dict(json.loads(json.dumps(wide.to_dict())))
    assert again == wide
    assert hash(again) == hash(wide)
    assert pickle.loads(pickle.dumps(wide)) == wide
    card = wide.card()
    assert "size    160 x 288 (height x width); frames of other sizes" in card
    assert "Metrics in percent, at 192 x 352 (height x width)" in card
    assert "height x width" not in spec("fai-mf-n-shapes").card()


def test_what_is_given_with_the_change_stays():
    given = {**FIGURES, "weights_url": "https://example.org/pears.pth", "note": "of pears"}
    pears = derived(classes=("ripe", "unripe"), config=other_config(num_classes=2), **given)
    assert {name: getattr(pears, name) for name in given} == given
    # And what is true of the derived record is true of those derived from it.
    assert dataclasses.replace(pears, name="x").metrics == FIGURES["metrics"]
    assert dataclasses.replace(pears, classes=("ripe", "rotten")).per_class == {}


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_derive_alike(copied):
    base = copied(spec("fai-mf-s-coco-ins"))
    assert dataclasses.replace(base, name="x").metrics == base.metrics != {}
    config = dataclasses.replace(base.config, num_classes=1)
    assert known(dataclasses.replace(base, classes=("a",), config=config)) == set()


def test_equal_records_have_one_hash():
    base = spec("fai-mf-s-coco-ins")
    other = ModelSpec.from_dict(json.loads(json.dumps(base.to_dict())))
    assert other == base
    assert hash(other) == hash(base)
    assert len({base, other, derived(name="x"), pickle.loads(pickle.dumps(base))}) == 2
    assert "_before" not in base.to_dict()
    assert "_before" not in repr(base)
    with pytest.raises(ValueError, match="unknown fields '_before'"):
        ModelSpec.from_dict({**base.to_dict(), "_before": None})


def test_class_names_that_are_twice_are_refused():
    with pytest.raises(ValueError, match=r"classes: got 'pear' more than once, expected each name once"):
        derived(classes=("pear", "apple", "pear"), config=other_config(num_classes=3))
