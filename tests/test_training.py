"""Training on classes of one's own: from whose weights. What docs/training.md says runs in test_snippets.py."""

from __future__ import annotations

import dataclasses

import fai_fast
import pytest
import torch
from fai_fast import losses, reference
from fai_fast.losses import Target
from fai_fast.weights import load_weights

NAME = "fai-mf-n-shapes"
HEADS = "head.predictor.forward_prediction_heads"
CLASSIFIER = (f"{HEADS}.classifier.weight", f"{HEADS}.classifier.bias")


@pytest.fixture(scope="module")
def published():
    return {key: torch.from_numpy(value) for key, value in load_weights(NAME).state.items()}


def unlike(network, published) -> set[str]:
    """Names of what is not as published, apart from what configures the losses."""
    return {
        key
        for key, value in network.state_dict().items()
        if not key.endswith("empty_weight")
        and (
            key not in published
            or published[key].shape != value.shape
            or not torch.equal(published[key], value)
        )
    }


def test_all_but_the_classifier_starts_as_published(published):
    network, fresh = reference.pretrained(NAME, classes=("ripe", "unripe"))
    assert fresh == CLASSIFIER
    assert unlike(network, published) == set(CLASSIFIER)
    assert network.head.criterion.empty_weight.tolist() == pytest.approx([1, 1, 0.1])
    assert network.training
    assert network.spec.name == f"{NAME}-2-classes"
    assert network.spec.classes == ("ripe", "unripe")
    output = network(torch.zeros(1, 3, 64, 96))
    assert output.class_logits.shape == (1, 25, 3)


def test_as_many_other_classes_have_a_fresh_classifier_too(published):
    classes = tuple(f"new {index}" for index in range(len(fai_fast.spec(NAME).classes)))
    network, fresh = reference.pretrained(NAME, classes=classes)
    assert fresh == CLASSIFIER
    assert unlike(network, published) == set(CLASSIFIER)


def test_the_same_classes_go_on_where_they_were(published):
    network, fresh = reference.pretrained(NAME)
    assert fresh == ()
    assert unlike(network, published) == set()
    assert network.spec.name == NAME


def test_other_heads_are_named(published):
    network, fresh = reference.pretrained(
        NAME,
        classes=("a",),
        name="mine",
        num_queries=7,
        criterion_eos_coef=0.5,
        postprocessing_type="semantic",
    )
    assert set(fresh) == {
        *CLASSIFIER,
        "head.predictor.query_feat.weight",
        "head.predictor.query_embed.weight",
    }
    assert unlike(network, published) == set(fresh)
    assert network.head.criterion.empty_weight.tolist() == [1, 0.5]
    assert (network.spec.name, network.spec.task) == ("mine", "semantic")


def test_nothing_of_the_old_model_is_said_of_the_new_one():
    for classes in (("a", "b"), None):
        spec = reference.pretrained(NAME, classes=classes).network.spec
        assert spec.metrics == spec.per_class == {}
        assert (spec.weights_url, spec.bundled_weights, spec.weights_path, spec.note) == (None,) * 4
        with pytest.raises(fai_fast.WeightsError, match="has none of its own"):
            fai_fast.load(spec)


def test_the_default_initialization_can_be_repeated():
    torch.manual_seed(3)
    first = reference.pretrained(NAME, classes=("a", "b")).network.state_dict()
    torch.manual_seed(3)
    second = reference.pretrained(NAME, classes=("a", "b")).network.state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_depth_is_that_of_the_weights(tmp_path):
    spec = fai_fast.spec(NAME)
    deeper = dataclasses.replace(
        spec, config=dataclasses.replace(spec.config, transformer_predictor_dec_layers=4)
    )
    torch.save({"ema": reference.build(deeper).state_dict()}, tmp_path / "a.pth")
    network, fresh = reference.pretrained(NAME, classes=("a",), weights=tmp_path / "a.pth")
    assert network.spec.config.transformer_predictor_dec_layers == 4
    assert fresh == CLASSIFIER


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"classes": "ripe"}, TypeError, "classes: got 'ripe'"),
        ({"classes": ()}, ValueError, "num_classes: got 0"),
        ({"classes": ("a", "a")}, ValueError, "classes: got 'a' more than once"),
        ({"num_classes": 3}, TypeError, "num_classes: follows from classes"),
        ({"queries": 3}, TypeError, "queries: no argument, and no field of ModelConfig"),
        ({"num_queries": 0}, ValueError, "num_queries: got 0"),
        ({"weights": "none.pth"}, fai_fast.WeightsError, "none.pth does not exist"),
    ],
)
def test_wrong_arguments_are_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        reference.pretrained(NAME, **arguments)


def batch():
    """Squares on gray, with one picture that has none and a border of which nothing is known."""
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 5:30, 8:50] = True
    masks[1, 35:60, 20:60] = True
    image = torch.full((3, 64, 64), 60.0) + masks[0] * 150.0
    image[1] += masks[1] * 120.0
    ignore = torch.zeros(64, 64, dtype=torch.bool)
    ignore[:3] = True
    nothing = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 64, 64, dtype=torch.bool))
    targets = [{"labels": torch.tensor([0, 1]), "masks": masks.byte(), "ignore": ignore}, nothing]
    images = torch.stack([image, torch.full_like(image, 60.0)])
    return images, targets


def test_a_network_learns_from_dicts_with_ignored_pixels_and_from_a_picture_without_objects():
    torch.manual_seed(0)
    network, fresh = reference.pretrained(NAME, classes=("ripe", "unripe"))
    criterion = losses.SetCriterion(network.spec.config)
    optimizer = torch.optim.AdamW(
        [value for name, value in network.named_parameters() if name in fresh], 1e-3
    )
    images, targets = batch()
    values = []
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = network(images)
        loss = criterion.total(criterion(output, targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.dtype == torch.float32
        values.append(loss.item())
    assert torch.isfinite(torch.tensor(values)).all()
    assert values[-1] < values[0]
