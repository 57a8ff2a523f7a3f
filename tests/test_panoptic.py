"""Panoptic results on the CPU: against the float64 reference, and against what transformers itself computes."""

from __future__ import annotations

import importlib
import importlib.util

import fai_fast
import hypothesis.strategies as st
import numpy as np
import pytest
import reference_panoptic
from fai_fast import Panoptic
from helpers import scenes
from helpers.logits import few, networks, panoptic_options, panoptic_options_of, sides
from helpers.results import same_bits
from hypothesis import assume, currently_in_test_context, given, settings

WEIGHTED = pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "unweighted"])


def run(
    mask_logits, class_logits, size, *, activation="softmax", letterbox=None, num_threads=None, **options
):
    thresholds = {name: options.pop(name) for name in ("threshold", "mask_threshold") if name in options}
    return fai_fast.postprocess(
        mask_logits,
        class_logits,
        size,
        class_activation=activation,
        letterbox=letterbox,
        num_threads=num_threads,
        panoptic=Panoptic(**options),
        **thresholds,
    )


def truth_of(mask_logits, class_logits, size, *, activation="softmax", letterbox=None, **options):
    box = letterbox and (letterbox.input, letterbox.content, letterbox.offset)
    return reference_panoptic.panoptic(
        mask_logits, class_logits, size, class_activation=activation, letterbox=box, **options
    )


def check(mask_logits, class_logits, size, **options):
    """Runs it, compares it with the reference and returns the result."""
    result = run(mask_logits, class_logits, size, **options)
    options.pop("num_threads", None)
    truth = truth_of(mask_logits, class_logits, size, **options)
    if currently_in_test_context():
        assume(not truth.unclear)
    assert not truth.unclear
    reference_panoptic.assert_matches(truth, result)
    assert result.size == tuple(size)
    expected = np.full(size, -1, np.int16)
    for class_id, mask in zip(result.class_id, result.mask, strict=True):
        expected[mask] = class_id
    np.testing.assert_array_equal(result.label_map, expected)
    return result


# ------------------------------------------------------------------------------------------- properties


@settings(max_examples=300)
@given(network=networks(), size=st.tuples(sides, sides), options=panoptic_options_of)
def test_equals_reference(network, size, options):
    mask_logits, class_logits, activation = network
    check(
        mask_logits,
        class_logits,
        size,
        activation=activation,
        **panoptic_options(options, class_logits, activation),
    )


@settings(max_examples=150)
@given(
    network=networks(),
    frame=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    target=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    options=panoptic_options_of,
)
def test_letterbox_equals_reference(network, frame, target, options):
    mask_logits, class_logits, activation = network
    letterbox = fai_fast.Letterbox.fit(frame, target)
    options = panoptic_options(options, class_logits, activation)
    check(mask_logits, class_logits, frame, activation=activation, letterbox=letterbox, **options)


@settings(max_examples=60)
@given(
    network=networks(side=st.sampled_from([15, 16, 17, 31, 63, 64, 65, 66, 130])),
    scale=st.integers(1, 5),
    options=panoptic_options_of,
)
def test_sides_around_words_and_vectors(network, scale, options):
    mask_logits, class_logits, activation = network
    size = tuple(side * scale for side in mask_logits.shape[1:])
    check(
        mask_logits[:6],
        class_logits[:6],
        size,
        activation=activation,
        **panoptic_options(options, class_logits, activation),
    )


@settings(max_examples=12)
@given(
    network=networks(queries=st.sampled_from([254, 255, 256, 257, 300]), side=st.integers(1, 12)),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    options=panoptic_options_of,
)
def test_many_queries(network, size, options):
    """Around 255 queries a label changes from one byte to two."""
    mask_logits, class_logits, activation = network
    check(
        mask_logits,
        class_logits,
        size,
        activation=activation,
        **panoptic_options(options, class_logits, activation),
    )


@WEIGHTED
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("size", [(80, 80), (320, 320), (135, 240), (81, 323)])
def test_realistic_scene(size, dtype, weighted):
    mask_logits, class_logits = scenes.blobs(1, queries=40, grid=(80, 80), objects=12, dtype=dtype)
    result = check(mask_logits, class_logits, size, threshold=0.3, weighted=weighted, overlap_threshold=0.5)
    assert len(result) >= 5


@pytest.mark.parametrize("grid", [(1, 700), (700, 1), (3, 333), (257, 2)])
def test_long_thin_masks(grid):
    mask_logits, class_logits = scenes.noise(4, queries=5, grid=grid)
    size = (grid[0] * 2 + 1, grid[1] * 2 - 1)
    check(mask_logits, class_logits, size, threshold=0.01, overlap_threshold=0.1)


# ---------------------------------------------------------------------------------------- exact cases


def sure(classes, best, logit=9.0):
    """Class logits (Q, classes + 1) for softmax: each query surely of the class that `best` lists."""
    logits = np.zeros((len(best), classes + 1), np.float32)
    logits[np.arange(len(best)), best] = logit
    return logits


def blocks(*spans, grid=(8, 8), inside=9.0):
    """Masks (Q, *grid): sure of the nodes that (y1, x1, y2, x2) names, and of no other."""
    masks = np.full((len(spans), *grid), -9.0, np.float32)
    for mask, (y1, x1, y2, x2) in zip(masks, spans, strict=True):
        mask[y1:y2, x1:x2] = inside
    return masks


def test_only_queries_sure_of_a_class_compete():
    """Unlike the semantic contest: one that is left out takes no pixel from anybody."""
    masks = blocks((0, 0, 8, 4), (0, 0, 8, 8), (0, 4, 8, 8))
    classes = sure(3, [0, 1, 3])  # the last column is 'no object'
    classes[1, 1] = 1.0  # not sure enough
    result = check(masks, classes, (8, 8), threshold=0.8)
    assert result.query.tolist() == [0]
    # Nobody else competes, so that all is query 0's: twice as much as is its own.
    assert result.area.tolist() == [64]


def test_a_tie_with_no_object_is_a_class():
    masks = blocks((0, 0, 8, 8))
    classes = np.array([[1.0, 3.0, 3.0]], np.float32)
    options = {"threshold": 0.4, "mask_threshold": 0.4}
    assert run(masks, classes, (8, 8), **options).class_id.tolist() == [1]
    classes[0, 2] = np.nextafter(np.float32(3), np.float32(4))
    assert len(run(masks, classes, (8, 8), **options)) == 0


def test_sigmoid_has_no_no_object():
    masks = blocks((0, 0, 8, 8))
    result = run(masks, np.array([[0.0, 4.0]], np.float32), (8, 8), activation="sigmoid")
    assert result.class_id.tolist() == [1]


@pytest.mark.parametrize("size", [(8, 8), (31, 47)])
def test_without_a_competitor_all_is_nobodys(size):
    mask_logits, class_logits = scenes.noise(1, queries=7, grid=(8, 8))
    result = check(mask_logits, class_logits, size, threshold=1.0)
    assert len(result) == 0
    assert (result.label_map == -1).all()
    assert result.mask.shape == (0, *size)


@WEIGHTED
def test_what_wins_too_little_of_its_own_is_no_segment(weighted):
    """Query 0 has eight of its sixteen columns taken by query 1, which is surer."""
    masks = blocks((0, 0, 8, 8), (0, 4, 8, 16), grid=(8, 16))
    classes = sure(2, [0, 1], 4.0)
    classes[1, 1] = 9.0
    half = check(masks, classes, (8, 16), overlap_threshold=0.4, weighted=weighted)
    assert half.query.tolist() == [1, 0]
    assert half.area.tolist() == [96, 32]
    result = check(masks, classes, (8, 16), overlap_threshold=0.6, weighted=weighted)
    assert result.query.tolist() == [1]
    assert (result.label_map[:, :4] == -1).all()
    # As much as the threshold is not above it.
    assert len(check(masks, classes, (8, 16), overlap_threshold=0.5, weighted=weighted)) == 1


def test_overlap_thresholds_of_0_and_1():
    mask_logits, class_logits = scenes.blobs(7, queries=20, grid=(20, 20), objects=10)
    options = {"threshold": 0.3}
    all_of_them = check(mask_logits, class_logits, (60, 60), overlap_threshold=0.0, **options)
    some = check(mask_logits, class_logits, (60, 60), overlap_threshold=0.8, **options)
    assert len(all_of_them) > len(some) > 1
    # More than all of its own: where nobody else is, a query wins beyond that.
    most = check(mask_logits, class_logits, (60, 60), overlap_threshold=1.0, **options)
    assert set(most.query) <= set(some.query)
    lonely = check(mask_logits, class_logits, (60, 60), overlap_threshold=1.0, weighted=False, **options)
    assert set(lonely.query) <= set(some.query) | set(all_of_them.query)


def test_the_ratio_is_torchs():
    """4 of 5 pixels are 0.8 in float32, which is more than 0.8 in float64, with which Python compares."""
    masks = blocks((0, 0, 1, 5), (0, 4, 1, 8), grid=(1, 8))
    classes = sure(2, [0, 1], 4.0)
    classes[1, 1] = 9.0
    assert float(np.float32(4) / np.float32(5)) > 0.8
    assert run(masks, classes, (1, 8), overlap_threshold=0.8).query.tolist() == [1, 0]
    assert run(masks, classes, (1, 8), overlap_threshold=np.nextafter(0.8, 1) + 1e-7).query.tolist() == [1]


def test_weighted_own_pixels_are_fewer():
    """A score of 0.6 times a probability of 0.7 is below 0.5: no pixel is the query's own."""
    masks = np.full((1, 4, 4), np.log(0.7 / 0.3), np.float32)
    classes = np.log(np.array([[0.6, 0.2, 0.2]], np.float32))
    assert len(check(masks, classes, (9, 9), weighted=True)) == 0
    assert len(check(masks, classes, (9, 9), weighted=False)) == 1
    assert len(check(masks, classes, (9, 9), weighted=True, mask_threshold=0.4)) == 1


def test_unweighted_segments_are_of_own_pixels():
    """What is won without being the query's own counts for its share, and is nobody's."""
    masks = blocks((0, 0, 8, 4), grid=(8, 8))
    result = check(masks, sure(1, [0]), (8, 8), weighted=False)
    assert result.area.tolist() == [32]
    assert (result.label_map[:, :4] == 0).all()
    assert (result.label_map[:, 4:] == -1).all()
    assert run(masks, sure(1, [0]), (8, 8), weighted=True).area.tolist() == [64]


def test_stuff_is_one_segment():
    """Of the first query that is one, with its score, also where a later one is surer."""
    masks = blocks((0, 0, 4, 4), (0, 4, 4, 8), (4, 0, 8, 4), (4, 4, 8, 8))
    classes = sure(3, [2, 1, 2, 2], 5.0)
    classes[2, 2] = 9.0
    things = check(masks, classes, (16, 16), overlap_threshold=0.5)
    assert things.query.tolist() == [2, 0, 1, 3]
    fused = check(masks, classes, (16, 16), overlap_threshold=0.5, stuff=[2])
    assert fused.query.tolist() == [0, 1]
    by_query = dict(zip(things.query.tolist(), things.area.tolist(), strict=True))
    assert fused.area.tolist() == [by_query[0] + by_query[2] + by_query[3], by_query[1]]
    assert fused.confidence[0] == things.confidence[things.query.tolist().index(0)]
    assert fused.xyxy.tolist()[0] == [0, 0, 16, 16]
    everything = check(masks, classes, (16, 16), overlap_threshold=0.5, stuff=[0, 1, 2])
    assert everything.query.tolist() == fused.query.tolist()


def test_stuff_begins_with_its_first_valid_query():
    masks = blocks((0, 0, 8, 4), (0, 0, 8, 4), (0, 4, 8, 8))
    classes = sure(2, [1, 0, 1], 5.0)
    classes[1, 0] = 9.0
    result = check(masks, classes, (8, 8), stuff=[1])
    assert result.query.tolist() == [1, 2]


def test_a_segment_of_one_pixel_is_a_row():
    masks = blocks((0, 0, 8, 8), (3, 3, 4, 4))
    classes = sure(2, [0, 1], 4.0)
    classes[1, 1] = 9.0
    result = check(masks, classes, (8, 8))
    assert dict(zip(result.query.tolist(), result.area.tolist(), strict=True)) == {0: 63, 1: 1}


@WEIGHTED
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_query_with_nan_does_not_compete(weighted, dtype):
    mask_logits, class_logits = scenes.blobs(5, queries=9, grid=(20, 24), objects=6, dtype=dtype)
    options = {"threshold": 0.3, "weighted": weighted, "overlap_threshold": 0.4}
    found = check(mask_logits, class_logits, (50, 60), **options)
    assert len(found) >= 3
    lost = int(found.query[0])
    nowhere = mask_logits.copy()
    nowhere[lost, -1, -1] = np.nan
    without = check(nowhere, class_logits, (50, 60), **options)
    assert lost not in without.query
    rest = np.arange(9) != lost
    same = run(mask_logits[rest], class_logits[rest], (50, 60), **options)
    np.testing.assert_array_equal(without.mask, same.mask)
    unsure = class_logits.copy()
    unsure[lost, 3] = np.nan
    same_bits(run(mask_logits, unsure, (50, 60), **options), without)


def test_ties_of_pixels_go_to_the_lower_query():
    mask_logits, class_logits = scenes.blobs(5, queries=6, grid=(20, 20), objects=6)
    twice, both = np.concatenate([mask_logits] * 2), np.concatenate([class_logits] * 2)
    options = {"threshold": 0.1, "overlap_threshold": 0.1}
    result = run(twice, both, (75, 90), **options)
    assert len(result) >= 2
    assert result.query.max() < 6
    same_bits(result, run(mask_logits, class_logits, (75, 90), **options))


def test_batch():
    images = [scenes.blobs(seed, queries=12, grid=(20, 20), objects=6) for seed in range(3)]
    masks, classes = (np.stack(arrays) for arrays in zip(*images, strict=True))
    rules = Panoptic(stuff=range(0, 80, 2), overlap_threshold=0.5)
    sizes = [(40, 50), (33, 31), (64, 64)]
    found = fai_fast.postprocess_batch(masks, classes, sizes, threshold=0.3, panoptic=rules)
    assert sum(len(result) for result in found) >= 6
    for result, mask, class_, size in zip(found, masks, classes, sizes, strict=True):
        same_bits(result, fai_fast.postprocess(mask, class_, size, threshold=0.3, panoptic=rules))


@WEIGHTED
@pytest.mark.parametrize("queries", [40, 300])
def test_threads_give_the_same_bits(weighted, queries):
    mask_logits, class_logits = scenes.noise(9, queries=queries, grid=(60, 70), spread=2.0)
    options = {"threshold": 0.05, "overlap_threshold": 0.02, "weighted": weighted, "stuff": range(40)}
    options["mask_threshold"] = 0.05
    one = run(mask_logits, class_logits, (300, 411), num_threads=1, **options)
    assert len(one) > 5
    for threads in (2, 3, 8):
        same_bits(run(mask_logits, class_logits, (300, 411), num_threads=threads, **options), one)


# --------------------------------------------------------------------------------------------- arguments


def test_what_does_not_go_together_is_told():
    masks, classes = blocks((0, 0, 8, 8)), sure(3, [0])
    for options, text in (
        ({"use_mask_score": True}, "use_mask_score: got True with panoptic, expected False"),
        ({"predict_all_pixels": True}, "predict_all_pixels: got True with panoptic, expected False"),
        ({"combine": "sum"}, "combine: got 'sum' for a result that is not semantic"),
        ({"multi_label": True}, "multi_label: got True for a result that is not of instances"),
    ):
        with pytest.raises(ValueError, match=text):
            fai_fast.postprocess(masks, classes, (8, 8), panoptic=Panoptic(), **options)
    with pytest.raises(ValueError, match="stuff: got class 3, expected 0 to 2"):
        run(masks, classes, (8, 8), stuff=[3])
    for large in (1 << 31, 1 << 100):
        with pytest.raises(ValueError, match=r"panoptic\.stuff: got class .*, expected ids of 0"):
            fai_fast.Panoptic(stuff=(0, large))
    with pytest.raises(TypeError, match=r"panoptic: got dict, expected a fai_fast\.Panoptic or None"):
        fai_fast.postprocess(masks, classes, (8, 8), panoptic={"stuff": [1]})


# ------------------------------------------------------------------------------------ as transformers has it


def module_of(family):
    """Their image processor's module; that for Pillow where torchvision is missing, which the other needs."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    kind = "image_processing_" if importlib.util.find_spec("torchvision") else "image_processing_pil_"
    if family == "oneformer" and kind.endswith("pil_"):
        pytest.skip("OneFormer's segments need torchvision")
    return importlib.import_module(f"transformers.models.{family}.{kind}{family}")


def theirs(family, mask_logits, class_logits, size, *, threshold, stuff, overlap_threshold):
    """Their segments, the label of each pixel, and the label of pixels that are nobody's."""
    import torch

    module = module_of(family)
    masks = torch.from_numpy(np.array(mask_logits, np.float32))
    scores, labels = torch.from_numpy(np.array(class_logits, np.float32)).softmax(-1).max(-1)
    kept = module.remove_low_and_no_objects(masks, scores, labels, threshold, class_logits.shape[-1] - 1)
    if len(kept[0]) == 0:
        return [], np.full(size, -1), -1
    if family == "eomt":
        # It takes logits of the frame's size: those of the probabilities that we resize.
        resized = torch.nn.functional.interpolate(
            kept[0].sigmoid()[None], size=size, mode="bilinear", align_corners=False
        )[0]
        pixels, segments = module.compute_segments(
            torch.logit(resized.double()), kept[1], kept[2], list(stuff), 0.5, overlap_threshold, size
        )
        return segments, pixels.numpy(), -1
    pixels, segments = module.compute_segments(
        kept[0].sigmoid(), kept[1], kept[2], 0.5, overlap_threshold, set(stuff), size
    )
    return segments, pixels.numpy(), 0


def draws(mask_logits, class_logits, size, **options):
    """Pixels that float32 may decide either way, of queries whose segments do not hang on one; else None."""
    truth = truth_of(mask_logits, class_logits, size, **options)
    if truth.unclear or (truth.valid != truth.maybe_valid).any():
        return None
    return (truth.possible & ~truth.certain).any(axis=0) | (truth.own_possible & ~truth.own_certain).any(
        axis=0
    )


@pytest.mark.parametrize("family", ["maskformer", "mask2former", "oneformer", "eomt"])
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    queries=few,
    grid=st.tuples(st.integers(2, 30), st.integers(2, 30)),
    size=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    noisy=st.booleans(),
    threshold=st.sampled_from([0.8, 0.5, 0.1]),
    overlap_threshold=st.sampled_from([0.8, 0.5, 0.0, 1.0]),
    stuff=st.sampled_from([(), (0, 2), tuple(range(7))]),
)
def test_equals_transformers(family, seed, queries, grid, size, noisy, threshold, overlap_threshold, stuff):
    make = scenes.noise if noisy else scenes.blobs
    mask_logits, class_logits = make(seed, queries=queries, grid=grid, classes=7)
    options = {"threshold": threshold, "overlap_threshold": overlap_threshold, "stuff": stuff}
    options["weighted"] = family != "eomt"
    doubt = draws(mask_logits, class_logits, size, **options)
    assume(doubt is not None)
    options.pop("weighted")
    segments, labels, nobody = theirs(family, mask_logits, class_logits, size, **options)
    found = check(mask_logits, class_logits, size, weighted=family != "eomt", **options)

    # All but EoMT list a segment of stuff once for each query that it is made of, and may give the segments after it
    # identifiers that are taken: then classes are compared, else every segment's pixels.
    listed = []
    for segment in segments:
        if segment["label_id"] not in stuff or all(s["label_id"] != segment["label_id"] for s in listed):
            listed.append(segment)
    assert sorted(found.class_id) == sorted(segment["label_id"] for segment in listed)
    scores = sorted(segment["score"] for segment in listed)
    assert sorted(found.confidence.tolist()) == pytest.approx(scores, abs=2e-6)
    np.testing.assert_array_equal((labels == nobody)[~doubt], (found.label_map == -1)[~doubt])
    if len({segment["id"] for segment in segments}) < len(listed):
        return
    for segment in listed:
        alike = (found.class_id == segment["label_id"]) & (abs(found.confidence - segment["score"]) < 2e-6)
        theirs_of_it = labels == segment["id"]
        assert any((theirs_of_it == mask)[~doubt].all() for mask in found.mask[alike]), segment
