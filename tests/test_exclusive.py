"""Instances that compete for pixels with their logits: against the float64 reference, and as transformers has them."""

from __future__ import annotations

import importlib
import importlib.util
from types import SimpleNamespace

import fai_fast
import hypothesis.strategies as st
import numpy as np
import pytest
import reference_exclusive
from fai_fast import Resampling
from fai_fast.networks.families import describe
from helpers import scenes
from helpers.logits import exclusive_options_of, few, networks, sides
from helpers.others import found as found_by
from hypothesis import assume, currently_in_test_context, given, settings

LOGITS = Resampling(of="logits")


def run(mask_logits, class_logits, size, *, activation="softmax", logits_size=None, **options):
    options = {"multi_label": True, "overlap_threshold": 0.8, **options}
    return fai_fast.postprocess(
        mask_logits,
        class_logits,
        size,
        class_activation=activation,
        resampling=Resampling(logits_size, of="logits"),
        **options,
    )


def check(
    mask_logits, class_logits, size, *, activation="softmax", letterbox=None, num_threads=None, **options
):
    """Runs it, compares it with the reference and returns the result."""
    found = run(
        mask_logits,
        class_logits,
        size,
        activation=activation,
        letterbox=letterbox,
        num_threads=num_threads,
        **options,
    )
    box = letterbox and (letterbox.input, letterbox.content, letterbox.offset)
    truth = reference_exclusive.exclusive(
        mask_logits, class_logits, size, class_activation=activation, letterbox=box, **options
    )
    if currently_in_test_context():
        assume(not truth.unclear)
    assert not truth.unclear
    reference_exclusive.assert_matches(truth, found)
    assert (found.label_map, found.is_thing, found.size) == (None, None, tuple(size))
    return found


@settings(max_examples=80)
@given(network=networks(), size=st.tuples(sides, sides), options=exclusive_options_of)
def test_any_network(network, size, options):
    mask_logits, class_logits, activation = network
    check(mask_logits, class_logits, size, activation=activation, **options)


@settings(max_examples=30)
@given(
    network=networks(),
    frame=st.tuples(sides, sides),
    target=st.tuples(sides, sides),
    logits_size=st.none() | st.tuples(sides, sides),
    options=exclusive_options_of,
)
def test_any_letterbox(network, frame, target, logits_size, options):
    mask_logits, class_logits, activation = network
    # Of infinite logits only their order is left after two interpolations.
    mask_logits = np.clip(mask_logits, -100, 100)
    letterbox = fai_fast.Letterbox.fit(frame, target)
    check(
        mask_logits,
        class_logits,
        frame,
        activation=activation,
        letterbox=letterbox,
        logits_size=logits_size,
        **options,
    )


@pytest.mark.parametrize("queries", [255, 256])
def test_labels_of_one_byte_and_of_two(queries):
    """Where each query is nearly as good as every other, and all of them compete."""
    rng = np.random.default_rng(queries)
    masks = rng.normal(0, 2, (queries, 7, 6)).astype(np.float32)
    classes = np.zeros((queries, 3), np.float32)
    classes[:, 0] = 4 + rng.normal(0, 0.01, queries)
    found = check(masks, classes, (13, 12), overlap_threshold=0.001)
    assert len(found) > 50


def test_threads_make_no_difference():
    mask_logits, class_logits = scenes.blobs(3, queries=40, grid=(60, 70), objects=15, classes=4)
    options = {"threshold": 0.2, "overlap_threshold": 0.1}
    one = run(mask_logits, class_logits, (400, 500), num_threads=1, **options)
    assert len(one) > 3
    assert one == run(mask_logits, class_logits, (400, 500), num_threads=4, **options)


# ------------------------------------------------------------------------------------------- made scenes


def squares(*boxes, grid=(8, 8), inside=4.0, outside=-4.0):
    """Mask logits of a square of nodes (y1, x1, y2, x2) for each query."""
    masks = np.full((len(boxes), *grid), outside, np.float32)
    for mask, (y1, x1, y2, x2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = inside
    return masks


def of_scores(*scores):
    """Class logits whose softmax these are, 'no object' having what is left."""
    rows = [[*row, 1 - sum(row)] for row in scores]
    return np.log(np.array(rows, np.float32).clip(1e-12))


def test_the_only_one_has_all_pixels():
    """Nobody else competes, so that nobody else can win what is not its own."""
    masks = squares((0, 0, 4, 4), (4, 4, 8, 8))
    found = run(masks, of_scores((0.9, 0.05), (0.3, 0.2)), (8, 8))
    assert found.query.tolist() == [0]
    assert found.area.tolist() == [64]
    assert found.xyxy.tolist() == [[0, 0, 8, 8]]


def test_without_a_pixel_of_its_own_there_is_no_instance():
    masks = np.full((2, 8, 8), -3.0, np.float32)
    assert len(run(masks, of_scores((0.9, 0.0), (0.8, 0.0)), (8, 8))) == 0
    # Its own are those where the product reaches the threshold; negative ones where that is negative.
    found = run(masks, of_scores((0.9, 0.0), (0.8, 0.0)), (8, 8), mask_threshold=-2.5)
    # The one that is less sure loses less by a negative logit.
    assert found.query.tolist() == [1]
    assert len(run(masks, of_scores((0.9, 0.0), (0.8, 0.0)), (8, 8), mask_threshold=-2.39)) == 0


def test_nobody_competes():
    found = run(squares((0, 0, 4, 4)), of_scores((0.4, 0.3)), (8, 8))
    assert len(found) == 0
    assert found.mask.shape == (0, 8, 8)


def test_who_wins_too_little_of_its_own_is_none_and_its_pixels_are_nobodys():
    masks = squares((0, 0, 8, 4), (0, 0, 8, 8), inside=4.0)
    # The surer one takes the left half, which is half of the other's own.
    classes = of_scores((0.9, 0.0), (0.7, 0.0))
    found = run(masks, classes, (8, 8))
    assert (found.query.tolist(), found.area.tolist()) == ([0], [32])
    both = run(masks, classes, (8, 8), overlap_threshold=0.49)
    assert (both.query.tolist(), both.area.tolist()) == ([0, 1], [32, 32])
    assert len(run(masks, classes, (8, 8), overlap_threshold=1.0)) == 0


def test_of_a_querys_classes_the_surest_has_what_is_positive_and_the_least_sure_the_rest():
    masks = squares((0, 0, 8, 4), (0, 0, 8, 8), (0, 0, 8, 8), (0, 0, 8, 8))
    classes = of_scores((0.4, 0.35, 0.25), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    found = run(masks, classes, (8, 8), threshold=0.2)
    # As many pixels as are its own, though none of them: it is an instance there.
    pairs = list(zip(found.query.tolist(), found.class_id.tolist(), found.area.tolist(), strict=True))
    assert pairs == [(0, 0, 32), (0, 2, 32)]
    assert found.mask[0, :, :4].all()
    assert found.mask[1, :, 4:].all()
    assert run(masks, classes, (8, 8), threshold=0.2, multi_label=False).class_id.tolist() == [0]


def test_ties_go_to_the_first_row():
    masks = squares((0, 0, 8, 8), (0, 0, 8, 8))
    same = of_scores((0.3, 0.3), (0.3, 0.3))
    found = run(masks, same, (8, 8), threshold=0.2)
    assert (found.query.tolist(), found.class_id.tolist(), found.area.tolist()) == ([0], [0], [64])


def test_an_instance_of_a_single_pixel_is_one():
    masks = squares((0, 0, 1, 1), (0, 1, 8, 8))
    masks[1, 1:, 0] = 4.0
    found = run(masks, of_scores((0.9, 0.0), (0.8, 0.0)), (8, 8))
    assert sorted(found.area.tolist()) == [1, 63]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_query_with_nan_in_its_mask_takes_no_pixel(value):
    masks = squares((0, 0, 8, 4), (0, 4, 8, 8))
    masks[0, 0, 0] = value
    found = run(masks, of_scores((0.9, 0.0), (0.8, 0.0)), (16, 16))
    assert found.query.tolist() == ([1] if np.isnan(value) else [0, 1])
    assert found.area.sum() == 256


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"overlap_threshold": 2}, ValueError, "overlap_threshold: got 2"),
        ({"overlap_threshold": "x"}, TypeError, "overlap_threshold: got 'x'"),
        (
            {"resampling": None},
            ValueError,
            "resampling.of: got 'probabilities' with overlap_threshold, expected 'logits'",
        ),
        (
            {"resampling": Resampling(of="logits", nearest=True)},
            ValueError,
            "resampling.nearest: got True with overlap_threshold",
        ),
        ({"use_mask_score": True}, ValueError, "use_mask_score: got True with overlap_threshold"),
        (
            {"predict_all_pixels": True},
            ValueError,
            "overlap_threshold: got 0.8 for a result that is not of instances, expected None",
        ),
        (
            {"panoptic": fai_fast.Panoptic()},
            ValueError,
            "overlap_threshold: got 0.8 for a result that is not",
        ),
    ],
)
def test_what_does_not_go_together_is_named(options, error, message):
    options = {"resampling": LOGITS, "overlap_threshold": 0.8, **options}
    with pytest.raises(error, match=message):
        fai_fast.postprocess(squares((0, 0, 4, 4)), of_scores((0.9, 0.0)), (8, 8), **options)


# ------------------------------------------------------------------------------------ as transformers has it


def resize(image, size, interpolation=None):
    """As torchvision's, of which the library's function uses nothing else. Antialiasing changes nothing where a mask
    gets no smaller."""
    import torch

    return torch.nn.functional.interpolate(
        image, size=size, mode="bilinear", align_corners=False, antialias=True
    )


@pytest.fixture(scope="module")
def theirs():
    """The library's own function: the label of each pixel, and the segments."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    if importlib.util.find_spec("torchvision") is None:
        # That for Pillow needs torchvision at the one place where it resizes masks.
        module = importlib.import_module("transformers.models.oneformer.image_processing_pil_oneformer")
        kind = module.OneFormerImageProcessorPil
    else:
        module = importlib.import_module("transformers.models.oneformer.image_processing_oneformer")
        kind = module.OneFormerImageProcessor
    functions = SimpleNamespace(resize=resize, InterpolationMode=SimpleNamespace(BILINEAR="bilinear"))
    processor = SimpleNamespace(class_info_file="")

    def call(mask_logits, class_logits, size, threshold, overlap_threshold):
        outputs = SimpleNamespace(
            masks_queries_logits=torch.from_numpy(mask_logits)[None],
            class_queries_logits=torch.from_numpy(class_logits)[None],
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "tvF", functions, raising=False)
            [found] = kind.post_process_instance_segmentation(
                processor,
                outputs,
                threshold=threshold,
                overlap_mask_area_threshold=overlap_threshold,
                target_sizes=[size],
            )
        return found["segmentation"].numpy(), found["segments_info"]

    return call


def assert_agree(found, truth, expected):
    """Fails unless all is as theirs, but for pixels that rounding may decide either way."""
    labels, segments = expected
    doubt = (truth.possible & ~truth.certain).any(axis=0)
    order = sorted(segments, key=lambda segment: -segment["score"])
    assert found.class_id.tolist() == [segment["label_id"] for segment in order]
    assert found.confidence.tolist() == pytest.approx([segment["score"] for segment in order], abs=2e-6)
    for mask, segment in zip(found.mask, order, strict=True):
        assert (mask == (labels == segment["id"]))[~doubt].all()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    queries=few,
    grid=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    growth=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    kind=st.sampled_from(["blobs", "noise", "negative"]),
    classes=st.sampled_from([1, 7, 80]),
    threshold=st.sampled_from([0.8, 0.5, 0.1, 0.0]),
    overlap_threshold=st.sampled_from([0.8, 0.5, 0.0, 1.0]),
)
def test_equals_transformers(
    theirs, seed, queries, grid, growth, kind, classes, threshold, overlap_threshold
):
    make = scenes.blobs if kind == "blobs" else scenes.noise
    mask_logits, class_logits = make(seed, queries=queries, grid=grid, classes=classes)
    if kind == "negative":
        mask_logits = -np.abs(mask_logits)
    size = (grid[0] + growth[0], grid[1] + growth[1])
    options = {"threshold": threshold, "overlap_threshold": overlap_threshold}
    found = run(mask_logits, class_logits, size, **options)
    truth = reference_exclusive.exclusive(mask_logits, class_logits, size, **options)
    # Which rows there are, and their order, must not hang on rounding.
    assume(not truth.unclear and (truth.valid == truth.maybe_valid).all())
    assume(len(set(truth.score)) == len(truth.score))
    assert_agree(found, truth, theirs(mask_logits, class_logits, size, **options))


@pytest.mark.parametrize("overlap_threshold", [0.8, 0.1])
def test_a_scene_of_objects_that_overlap_equals_transformers(theirs, overlap_threshold):
    """Several classes of a query among them."""
    mask_logits, class_logits = scenes.blobs(0, queries=20, grid=(16, 18), objects=12, classes=4)
    rng = np.random.default_rng(0)
    class_logits[:, :2] = class_logits.max(axis=1, keepdims=True) + rng.normal(0, 0.2, (20, 2))
    options = {"threshold": 0.2, "overlap_threshold": overlap_threshold}
    found = run(mask_logits, class_logits, (60, 71), **options)
    truth = reference_exclusive.exclusive(mask_logits, class_logits, (60, 71), **options)
    assert len(truth.pairs) > len({query for query, _ in truth.pairs})
    assert len(truth.pairs) > len(found) >= (1 if overlap_threshold > 0.5 else 3)
    assert_agree(found, truth, theirs(mask_logits, class_logits, (60, 71), **options))


def test_the_record_of_a_oneformer_says_so(theirs):
    labels = {0: "person", 1: "car", 2: "tree", 3: "dog"}
    config = SimpleNamespace(model_type="oneformer", id2label=labels, num_queries=20)
    spec = describe(config, None, "theirs", "instance")
    mask_logits, class_logits = scenes.blobs(3, queries=20, grid=(16, 18), objects=5, classes=4)
    found = found_by((mask_logits[None], class_logits[None]), spec, np.zeros((60, 71, 3), np.uint8))
    options = {"threshold": 0.5, "overlap_threshold": 0.8}
    truth = reference_exclusive.exclusive(mask_logits, class_logits, (60, 71), **options)
    assert len(found) >= 2
    assert_agree(found, truth, theirs(mask_logits, class_logits, (60, 71), **options))
    assert fai_fast.ModelSpec.from_dict(spec.to_dict()) == spec
