"""Semantic results by sum: against the float64 reference, and against transformers' own."""

from __future__ import annotations

from types import SimpleNamespace

import fai_fast
import hypothesis.strategies as st
import numpy as np
import pytest
import reference
from helpers import scenes
from helpers.logits import networks, sides
from helpers.results import same_bits
from hypothesis import given, settings

thresholds = st.sampled_from([0.5, 0.3, 0.05, 0.0, 1.0, -1.0]) | st.floats(0, 1)
BY_SUM = {"predict_all_pixels": True, "combine": "sum"}


def by_sum(mask_logits, class_logits, size, **options):
    return fai_fast.postprocess(mask_logits, class_logits, size, **BY_SUM, **options)


def check(mask_logits, class_logits, size, *, letterbox=None, num_threads=None, **options):
    """Runs it, compares it with the reference and returns its result."""
    result = by_sum(mask_logits, class_logits, size, letterbox=letterbox, num_threads=num_threads, **options)
    plain = letterbox and (letterbox.input, letterbox.content, letterbox.offset)
    truth = reference.semantic_sums(mask_logits, class_logits, size, letterbox=plain, **options)
    reference.assert_sums_match(truth, result)
    reference.assert_disjoint(result)
    labels = np.full(size, -1, np.int16)
    for class_id, mask in zip(result.class_id, result.mask, strict=True):
        labels[mask] = class_id
    np.testing.assert_array_equal(result.label_map, labels)
    return result


# ------------------------------------------------------------------------------------------- properties


@settings(max_examples=300)
@given(network=networks(), size=st.tuples(sides, sides), threshold=thresholds)
def test_equals_reference(network, size, threshold):
    mask_logits, class_logits, activation = network
    check(mask_logits, class_logits, size, class_activation=activation, threshold=threshold)


@settings(max_examples=100)
@given(
    network=networks(),
    frame=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    target=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_letterbox_equals_reference(network, frame, target):
    mask_logits, class_logits, activation = network
    letterbox = fai_fast.Letterbox.fit(frame, target)
    check(mask_logits, class_logits, frame, class_activation=activation, letterbox=letterbox, threshold=0.1)


@settings(max_examples=40)
@given(network=networks(), size=st.tuples(sides, sides), threads=st.integers(1, 5))
def test_threads_do_not_matter(network, size, threads):
    mask_logits, class_logits, activation = network
    options = {"class_activation": activation, "threshold": 0.0}
    same_bits(
        by_sum(mask_logits, class_logits, size, num_threads=threads, **options),
        by_sum(mask_logits, class_logits, size, num_threads=1, **options),
    )


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.01, 1.0, 30.0]),
    before=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    zoom=st.sampled_from([1, 2, 4]),
)
def test_where_a_pixel_lies_in_its_tile_does_not_matter(seed, spread, before, zoom):
    """What is left out of a tile must not show: with more before them, pixels lie elsewhere in other tiles. Fractions
    are multiples of 1/8, so that interpolation is the same to the last bit."""
    rng = np.random.default_rng(seed)
    masks = (spread * rng.standard_normal((9, 26, 40))).astype(np.float32)
    classes = (2 * rng.standard_normal((9, 21))).astype(np.float32)
    top, left = before
    padded = np.pad(masks, ((0, 0), (top, 0), (left, 0)), mode="wrap")
    here = by_sum(masks, classes, (26 * zoom, 40 * zoom), threshold=-1.0).label_map
    size = tuple(side * zoom for side in padded.shape[1:])
    there = by_sum(padded, classes, size, threshold=-1.0).label_map[top * zoom :, left * zoom :]
    # The first node's own half cell is clamped here, and no longer there. Classes of one pixel are no rows.
    inside = (slice(zoom, None), slice(zoom, None))
    differs = (here != there)[inside] & (here >= 0)[inside] & (there >= 0)[inside]
    assert not differs.any()


@pytest.mark.parametrize("grid", [(20, 31), (33, 47)])
def test_a_picture_turned_around_has_the_same_scores(grid):
    rng = np.random.default_rng(3)
    masks = rng.standard_normal((9, *grid)).astype(np.float32)
    classes = (2 * rng.standard_normal((9, 21))).astype(np.float32)
    # On the nodes themselves nothing is interpolated, and sums are sums of the same numbers in the same order.
    here = by_sum(masks, classes, grid, threshold=0.0)
    there = by_sum(masks[:, ::-1, ::-1], classes, grid, threshold=0.0)
    np.testing.assert_array_equal(here.label_map, there.label_map[::-1, ::-1])
    assert here.class_id.tolist() == there.class_id.tolist()
    assert here.confidence.tobytes() == there.confidence.tobytes()


# --------------------------------------------------------------------------------------------- by itself


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("size", [(80, 80), (320, 320), (135, 240), (81, 323), (53, 31)])
def test_realistic_scene(size, dtype):
    mask_logits, class_logits = scenes.blobs(3, queries=40, grid=(80, 80), objects=12, dtype=dtype)
    assert len(check(mask_logits, class_logits, size, threshold=0.1)) >= 4


@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 254, 255, 256, 300, 1000])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_any_number_of_classes(classes, activation):
    mask_logits, class_logits = scenes.noise(6, queries=9, grid=(20, 33), classes=classes)
    if activation == "sigmoid":
        class_logits = class_logits[:, :-1]
    found = check(mask_logits, class_logits, (50, 60), class_activation=activation, threshold=0.0)
    assert len(found) >= min(classes, 3)


def test_a_class_beyond_the_first_255():
    """From 256 classes on a label takes two bytes; 65534 are the most that it can tell apart."""
    masks = np.full((2, 6, 8), 3.0, np.float32)
    for classes in (255, 256, 65534):
        logits = np.zeros((2, classes), np.float32)
        logits[:] = -20.0
        logits[1, -1] = 5.0
        found = by_sum(masks, logits, (9, 11), class_activation="sigmoid")
        assert found.class_id.tolist() == [classes - 1]
        assert found.mask.all()
    with pytest.raises(ValueError, match=r"class_logits: got 65535 classes .* expected at most 65534"):
        by_sum(masks, np.zeros((2, 65535), np.float32), (9, 11), class_activation="sigmoid")


def test_weak_queries_of_one_class_beat_a_strong_one_of_another():
    """What tells it from the contest of single queries."""
    masks = np.full((4, 5, 5), 9.0, np.float32)
    logits = np.full((4, 3), -20.0, np.float32)
    logits[0, 2] = 0.0  # 0.5
    logits[1:, 1] = -1.0  # 0.27 each
    options = {"class_activation": "sigmoid", "threshold": 0.0}
    found = by_sum(masks, logits, (20, 20), **options)
    assert found.class_id.tolist() == [1]
    contest = fai_fast.postprocess(masks, logits, (20, 20), predict_all_pixels=True, **options)
    assert contest.class_id.tolist() == [2]
    expected = 3 * reference.sigmoid(-1.0) * reference.sigmoid(9.0)
    np.testing.assert_allclose(found.confidence, [expected], rtol=0, atol=1e-6)


def test_a_mean_of_more_than_one_is_one():
    masks = np.full((5, 4, 4), 20.0, np.float32)
    found = by_sum(masks, np.full((5, 2), 20.0, np.float32), (7, 9), class_activation="sigmoid")
    assert found.confidence.tolist() == [1.0]


@pytest.mark.parametrize("value", [0.0, 5.0, -200.0, -np.inf, np.inf])
def test_ties_go_to_the_first_class(value):
    masks = np.full((3, 9, 20), value, np.float32)
    found = by_sum(masks, np.zeros((3, 40), np.float32), (31, 70), threshold=-1.0)
    assert found.class_id.tolist() == [0]
    assert found.mask.all()


def test_nan_takes_its_query_out_and_no_other():
    mask_logits, class_logits = scenes.blobs(10, queries=9, grid=(40, 37), objects=9)
    mask_logits[1, 39, 36] = mask_logits[4, 0, 0] = np.nan
    class_logits[6, 0] = np.nan
    class_logits[7, -1] = np.nan
    class_logits[8, 3] = np.inf
    found = check(mask_logits, class_logits, (80, 99), threshold=0.0)
    rest = [0, 2, 3, 5]
    same_bits(found, by_sum(mask_logits[rest], class_logits[rest], (80, 99), threshold=0.0))


def test_nan_where_no_pixel_lies_is_nan_all_the_same():
    masks = np.zeros((2, 40, 40), np.float32)
    masks[0, 39, 39] = np.nan  # in the padding
    letterbox = fai_fast.Letterbox.fit((10, 40), (40, 40))
    logits = np.array([[5.0, 0.0], [0.0, 5.0]], np.float32)
    found = by_sum(masks, logits, (10, 40), class_activation="sigmoid", letterbox=letterbox, threshold=0.0)
    assert found.class_id.tolist() == [1]


def test_nothing_but_nan():
    found = by_sum(
        np.full((3, 5, 5), np.nan, np.float32), np.zeros((3, 4), np.float32), (9, 9), threshold=-1.0
    )
    assert len(found) == 0
    assert (found.label_map == -1).all()


def test_a_batch_and_names():
    pairs = [scenes.blobs(seed, queries=8, grid=(14, 15), objects=5, classes=7) for seed in range(3)]
    masks, classes = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    sizes = [(30, 40), (17, 70), (64, 5)]
    names = tuple("abcdefg")
    batch = fai_fast.postprocess_batch(masks, classes, sizes, class_names=names, threshold=0.0, **BY_SUM)
    for found, mask, logits, size in zip(batch, masks, classes, sizes, strict=True):
        same_bits(found, by_sum(mask, logits, size, threshold=0.0))
        assert found.class_names == names
        assert found.class_name.tolist() == [names[k] for k in found.class_id]


def test_views_of_any_strides():
    mask_logits, class_logits = scenes.blobs(4, queries=12, grid=(30, 40), objects=5)
    expected = by_sum(mask_logits, class_logits, (61, 77), threshold=0.0)
    turned = np.ascontiguousarray(mask_logits.transpose(1, 0, 2)).transpose(1, 0, 2)
    wide = np.zeros((12, 30, 50), np.float32)
    wide[..., 4:44] = mask_logits
    for view in (turned, wide[..., 4:44], np.asfortranarray(mask_logits)):
        same_bits(by_sum(view, np.asfortranarray(class_logits), (61, 77), threshold=0.0), expected)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"use_mask_score": True}, r"use_mask_score: got True with combine='sum'"),
        ({"predict_all_pixels": False}, r"combine: got 'sum' for a result that is not semantic"),
        ({"combine": "mean"}, r"combine: got 'mean', expected"),
        ({"resampling": fai_fast.Resampling(of="logits")}, r"resampling.of: got 'logits' with combine='sum'"),
    ],
)
def test_what_does_not_go_together_is_refused(options, problem):
    mask_logits, class_logits = scenes.blobs(1, queries=3, grid=(5, 5))
    with pytest.raises(ValueError, match=problem):
        fai_fast.postprocess(mask_logits, class_logits, (9, 9), **{**BY_SUM, **options})


# --------------------------------------------------------------------------------------- transformers


def theirs(mask_logits, class_logits, size):
    """The label map of transformers' MaskFormer processor."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    processor = transformers.MaskFormerImageProcessor()
    outputs = SimpleNamespace(
        masks_queries_logits=torch.from_numpy(mask_logits)[None],
        class_queries_logits=torch.from_numpy(class_logits)[None],
    )
    return processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0].numpy()


@pytest.mark.parametrize("kind", [scenes.blobs, scenes.noise])
@pytest.mark.parametrize("size", [(64, 64), (97, 131), (20, 17)])
def test_the_label_map_is_that_of_transformers(kind, size):
    """Up to pixels whose two largest sums are within rounding."""
    mask_logits, class_logits = kind(2, queries=25, grid=(32, 40), classes=12)
    labels = by_sum(mask_logits, class_logits, size, threshold=-1.0).label_map
    differs = (labels != theirs(mask_logits, class_logits, size)) & (labels >= 0)
    assert (labels >= 0).mean() > 0.99
    sums = np.sort(reference.semantic_sums(mask_logits, class_logits, size).sums, axis=0)
    assert (sums[-1] - sums[-2])[differs].max(initial=0) < 1e-5
    assert differs.mean() < 1e-3


def test_logits_resized_first_are_those_of_transformers_mask2former():
    """Whose processor resizes logits to 384 x 384 before anything else."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    mask_logits, class_logits = scenes.blobs(2, queries=25, grid=(32, 40), objects=8, classes=12)
    size = (97, 131)
    outputs = SimpleNamespace(
        masks_queries_logits=torch.from_numpy(mask_logits)[None],
        class_queries_logits=torch.from_numpy(class_logits)[None],
    )
    processor = transformers.Mask2FormerImageProcessor()
    labels = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0].numpy()
    resampling = fai_fast.Resampling(logits_size=(384, 384))
    ours = by_sum(mask_logits, class_logits, size, threshold=-1.0, resampling=resampling).label_map
    differs = (ours != labels) & (ours >= 0)
    assert (ours >= 0).mean() > 0.99
    assert differs.mean() < 1e-3
    plain = by_sum(mask_logits, class_logits, size, threshold=-1.0).label_map
    assert (plain != ours).mean() > differs.mean()
