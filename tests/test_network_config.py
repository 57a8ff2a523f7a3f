"""Records of networks that are not FocoosAI's."""

from __future__ import annotations

import dataclasses
import json
import pickle

import fai_fast
import pytest
from fai_fast import ModelSpec, NetworkConfig, Panoptic, Resampling
from fai_fast.registry import own_config, stride_of

FULL = NetworkConfig(
    num_classes=3,
    num_queries=7,
    pixel_mean=(1, 2, 3),
    pixel_std=(4, 5, 6),
    postprocessing_type="panoptic",
    mask_threshold=0.25,
    threshold=0.75,
    panoptic=Panoptic(stuff=(2, 1), overlap_threshold=0.5, weighted=False),
    resampling=Resampling(logits_size=(9, 8), of="logits"),
    resize="pad",
    stride=14,
    input_name="pixels",
    mask_logits_name="masks",
    class_logits_name="classes",
)


def model(config: NetworkConfig | None = FULL, **changes) -> ModelSpec:
    fields = {
        "name": "theirs",
        "family": "eomt",
        "task": "panoptic",
        "classes": ("thing", "sky", "grass"),
        "config": config,
        "im_size": (28, 42),
    }
    return ModelSpec(**{**fields, **changes})


def test_few_words_are_enough():
    spec = ModelSpec(name="pears", task="instance", classes=("ripe", "unripe"), im_size=640)
    assert spec.family == "custom"
    assert spec.config == NetworkConfig(num_classes=2)
    assert spec.config.class_columns == 3
    assert NetworkConfig(2, cls_sigmoid=True).class_columns == 2
    assert NetworkConfig(2).pixel_mean == fai_fast.spec("fai-mf-n-shapes").config.pixel_mean


@pytest.mark.parametrize(
    ("task", "all_pixels", "panoptic"),
    [("instance", False, None), ("semantic", True, None), ("panoptic", False, Panoptic())],
)
def test_the_task_decides_what_is_left_out(task, all_pixels, panoptic):
    config = ModelSpec(name="x", task=task, classes=("a",), im_size=64).config
    assert config.postprocessing_type == task
    assert (config.predict_all_pixels, config.panoptic) == (all_pixels, panoptic)


@pytest.mark.parametrize("spec", [model(), ModelSpec(name="x", task="semantic", classes=("a",), im_size=7)])
def test_a_record_comes_back_from_json_and_pickle_as_it_was(spec):
    again = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.config.panoptic == spec.config.panoptic
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_record_in_a_file_may_leave_the_network_out():
    spec = ModelSpec.from_dict({"name": "x", "task": "instance", "classes": ["a", "b"], "im_size": 30})
    assert (spec.family, spec.config.num_classes) == ("custom", 2)
    with pytest.raises(ValueError, match="spec: task, im_size missing"):
        ModelSpec.from_dict({"name": "x", "classes": ["a"]})


def test_replace_keeps_what_stays_true():
    spec = model(metrics={"PQ": 50.0}, dataset="theirs")
    config = dataclasses.replace(spec.config, num_queries=9, threshold=0.1)
    assert dataclasses.replace(spec, config=config).metrics == {"PQ": 50.0}
    other = dataclasses.replace(spec.config, num_classes=4)
    changed = dataclasses.replace(spec, config=other, classes=("a", "b", "c", "d"))
    assert (changed.metrics, changed.dataset) == ({}, None)


def test_the_card_says_what_goes_in_and_comes_out():
    card = model().card()
    assert "panoptic segmentation, 3 classes" in card
    assert "multiples of 14" in card
    assert "28 x 42 (height x width); frames of other sizes are put into its top left corner" in card
    assert "(B, 7, as its graph gives them)" in card
    assert "one per thing, and one per class of stuff; threshold 0.75" in card
    card = ModelSpec(name="x", task="semantic", classes=("a",), im_size=7).card()
    assert "(B, 3, h, w), RGB" in card
    assert "(B, Q, 2)" in card


def test_the_stride_is_that_of_the_network():
    assert stride_of(FULL) == 14
    assert stride_of(fai_fast.spec("fai-mf-n-shapes").config) == 32
    with pytest.raises(ValueError, match="im_size: got 32, expected a multiple of 14"):
        model(im_size=32)


def test_what_needs_layers_refuses_a_network_without():
    with pytest.raises(TypeError, match="theirs is a network of the family 'eomt', whose layers are not"):
        own_config(model())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "config.num_classes: got 0"),
        ({"num_classes": "3"}, TypeError, "config.num_classes: got '3'"),
        ({"num_queries": 0}, ValueError, "config.num_queries: got 0"),
        ({"pixel_mean": (1, 2)}, ValueError, "config.pixel_mean: got 2 values"),
        ({"pixel_std": (1, 0, 1)}, ValueError, "config.pixel_std: got"),
        ({"cls_sigmoid": 1}, TypeError, "config.cls_sigmoid: got 1"),
        ({"postprocessing_type": "depth"}, ValueError, "config.postprocessing_type: got 'depth'"),
        ({"mask_threshold": 2}, ValueError, "config.mask_threshold: got 2"),
        ({"threshold": -1}, ValueError, "config.threshold: got -1"),
        (
            {"predict_all_pixels": True},
            ValueError,
            "config.predict_all_pixels: got True for the task 'panoptic'",
        ),
        ({"top_k": 0}, ValueError, "config.top_k: got 0"),
        ({"combine": "max"}, ValueError, "config.combine: got 'max'"),
        ({"combine": "sum"}, ValueError, "config.combine: got 'sum'"),
        ({"panoptic": 3}, TypeError, "config.panoptic: got int"),
        (
            {"panoptic": Panoptic(stuff=(3,))},
            ValueError,
            "config.panoptic.stuff: got class 3, expected ids of 0 to 2",
        ),
        ({"panoptic": {"things": (1,)}}, ValueError, "config.panoptic: got unknown fields 'things'"),
        ({"postprocessing_type": "instance"}, ValueError, "config.panoptic: got one for the task 'instance'"),
        ({"multi_label": True}, ValueError, "config.multi_label: got True"),
        (
            {"overlap_threshold": 0.8},
            ValueError,
            "config.overlap_threshold: got 0.8 for a result that is not",
        ),
        ({"resampling": "nearest"}, TypeError, "config.resampling: got str"),
        ({"resampling": Resampling(nearest=True)}, ValueError, "config.resampling.nearest: got True"),
        ({"resize": "crop"}, ValueError, "config.resize: got 'crop'"),
        ({"stride": 0}, ValueError, "config.stride: got 0"),
        ({"input_name": ""}, ValueError, "config.input_name: got ''"),
        ({"mask_logits_name": 3}, TypeError, "config.mask_logits_name: got int"),
        ({"mask_logits_name": "classes"}, ValueError, "config.class_logits_name: got 'classes'"),
    ],
)
def test_a_wrong_field_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(FULL, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_mask_score": True}, "config.use_mask_score: got True with combine='sum'"),
        ({"resampling": Resampling(of="logits")}, "config.resampling.of: got 'logits' with combine='sum'"),
    ],
)
def test_what_sums_refuse_is_known_before_a_frame_is(changes, message):
    by_sum = NetworkConfig(3, postprocessing_type="semantic", combine="sum")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(by_sum, **changes)


def test_what_instances_that_compete_refuse_is_known_before_a_frame_is():
    rules = {"overlap_threshold": 0.8, "resampling": Resampling(of="logits")}
    competing = NetworkConfig(3, **rules)
    assert NetworkConfig(3, **rules, multi_label=True).overlap_threshold == 0.8
    with pytest.raises(ValueError, match=r"^config\.use_mask_score: got True with overlap_threshold"):
        dataclasses.replace(competing, use_mask_score=True)
    with pytest.raises(ValueError, match=r"^config\.resampling\.of: got 'probabilities' with overlap_"):
        dataclasses.replace(competing, resampling=None)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"family": "yolo"}, ValueError, "family: got 'yolo'"),
        ({"task": ""}, ValueError, "task: got ''"),
        ({"task": "instance"}, ValueError, "config.postprocessing_type: got 'panoptic'"),
        ({"classes": ("a", "b")}, ValueError, "classes: got 2 names"),
        ({"config": None, "classes": ()}, ValueError, "classes: got none"),
        ({"config": 3}, TypeError, "config: got int, expected a NetworkConfig for the family 'eomt'"),
        (
            {"family": "fai_mf", "task": "instance"},
            TypeError,
            "expected a ModelConfig for the family 'fai_mf'",
        ),
        ({"config": fai_fast.spec("fai-mf-n-shapes").config}, TypeError, "config: got ModelConfig"),
        ({"im_size": 0}, ValueError, "im_size: got 0"),
    ],
)
def test_a_wrong_field_of_the_record_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        model(**changes)
