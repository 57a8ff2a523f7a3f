"""postprocess and postprocess_batch against the float64 reference."""

from __future__ import annotations

import fai_fast
import hypothesis.strategies as st
import numpy as np
import pytest
import reference
import torch
from fai_fast import _core
from fai_fast.detections import PackedMasks
from fai_fast.ops import raw_queries
from helpers import scenes
from helpers.guard import run_to_done
from helpers.logits import networks, options_of, sides
from helpers.results import same_bits
from hypothesis import given, settings

INSTANCE = {"predict_all_pixels": False}
SEMANTIC = {"predict_all_pixels": True}
MODES = pytest.mark.parametrize("mode", [INSTANCE, SEMANTIC], ids=["instance", "semantic"])


def plain(letterbox):
    return letterbox and (letterbox.input, letterbox.content, letterbox.offset)


def check(mask_logits, class_logits, size, *, letterbox=None, num_threads=None, **options):
    """Runs postprocess, compares it with the reference and returns its result."""
    result = fai_fast.postprocess(
        mask_logits, class_logits, size, letterbox=letterbox, num_threads=num_threads, **options
    )
    truth = reference.postprocess(mask_logits, class_logits, size, letterbox=plain(letterbox), **options)
    reference.assert_matches(truth, result)
    assert result.size == tuple(size)
    assert result.xyxy.dtype == result.confidence.dtype == np.float32
    assert result.class_id.dtype == result.query.dtype == np.int64
    assert result.tracker_id is None
    if options.get("predict_all_pixels"):
        reference.assert_disjoint(result)
        check_label_map(truth, result)
    else:
        assert result.label_map is None
    return result


def check_label_map(truth, result):
    expected = np.full(truth.size, -1, np.int16)
    for class_id, mask in zip(result.class_id, result.mask, strict=True):
        expected[mask] = class_id
    assert result.label_map.dtype == np.int16
    np.testing.assert_array_equal(result.label_map, expected)


# ------------------------------------------------------------------------------------------- properties


@settings(max_examples=600)
@given(network=networks(), size=st.tuples(sides, sides), options=options_of)
def test_equals_reference(network, size, options):
    mask_logits, class_logits, activation = network
    check(mask_logits, class_logits, size, class_activation=activation, **options)


@settings(max_examples=150)
@given(
    network=networks(),
    frame=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    target=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    options=options_of,
)
def test_letterbox_equals_reference(network, frame, target, options):
    mask_logits, class_logits, activation = network
    letterbox = fai_fast.Letterbox.fit(frame, target)
    check(mask_logits, class_logits, frame, class_activation=activation, letterbox=letterbox, **options)


@settings(max_examples=40)
@given(network=networks(side=st.integers(1, 24)), scale=st.integers(2, 9), options=options_of)
def test_whole_scales_up(network, scale, options):
    """Networks return masks at a quarter or an eighth of their input: kernels may take these apart."""
    mask_logits, class_logits, activation = network
    size = tuple(side * scale for side in mask_logits.shape[1:])
    check(mask_logits, class_logits, size, class_activation=activation, **options)


@settings(max_examples=15)
@given(
    network=networks(queries=st.sampled_from([254, 255, 256, 257, 300]), side=st.integers(1, 12)),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    options=options_of,
)
def test_many_queries(network, size, options):
    """Around 255 queries the winner per pixel changes from one byte to two."""
    mask_logits, class_logits, activation = network
    check(mask_logits, class_logits, size, class_activation=activation, **options)


@MODES
@pytest.mark.parametrize("use_mask_score", [False, True])
@pytest.mark.parametrize("size", [(80, 80), (320, 320), (135, 240), (81, 323)])
def test_realistic_scene(mode, use_mask_score, size):
    """At half of a network's real sides: the reference takes a second for each of those."""
    mask_logits, class_logits = scenes.blobs(3, queries=40, grid=(80, 80), objects=12)
    result = check(mask_logits, class_logits, size, use_mask_score=use_mask_score, threshold=0.3, **mode)
    assert len(result) >= 8


@MODES
@pytest.mark.parametrize("grid", [(1, 700), (700, 1), (3, 333), (257, 2)])
def test_long_thin_masks(mode, grid):
    mask_logits, class_logits = scenes.noise(4, queries=5, grid=grid)
    check(mask_logits, class_logits, (grid[0] * 2 + 1, grid[1] * 2 - 1), threshold=0.01, **mode)


# ------------------------------------------------------------------------------------------ exact cases


def sure(queries, classes=3, scores=None):
    """Class logits (queries, classes) for sigmoid: class 0 and nothing else."""
    logits = np.full((queries, classes), -np.inf, np.float32)
    logits[:, 0] = 4.0 if scores is None else scores
    return logits


def run(mask_logits, class_logits, size, **options):
    return fai_fast.postprocess(mask_logits, class_logits, size, class_activation="sigmoid", **options)


@MODES
def test_no_query_passes(mode):
    mask_logits, class_logits = scenes.blobs(1)
    result = check(mask_logits, class_logits, (37, 41), threshold=1.0, **mode)
    assert len(result) == 0
    assert result.xyxy.shape == (0, 4)
    assert result.mask.shape == (0, 37, 41)


def test_empty_masks_give_no_rows():
    assert len(run(np.full((4, 8, 9), -9, np.float32), sure(4), (31, 45))) == 0
    assert len(run(np.full((4, 8, 9), -np.inf, np.float32), sure(4), (31, 45))) == 0


@pytest.mark.parametrize("value", [9, np.inf, 0.0])
@pytest.mark.parametrize("size", [(8, 9), (31, 45), (64, 128), (3, 2), (1, 2)])
def test_full_masks(value, size):
    """sigmoid(0) is exactly 1/2, which is >= a mask_threshold of 1/2."""
    result = run(np.full((3, 8, 9), value, np.float32), sure(3), size)
    assert result.query.tolist() == [0, 1, 2]
    assert result.mask.all()
    assert result.xyxy.tolist() == [[0, 0, size[1], size[0]]] * 3
    assert result.area.tolist() == [size[0] * size[1]] * 3


def test_full_mask_score():
    result = run(np.zeros((1, 4, 4), np.float32), sure(1), (50, 70), use_mask_score=True, threshold=0.0)
    expected = reference.sigmoid(4.0) * 0.5 * 3500 / 3500.01
    np.testing.assert_allclose(result.confidence, [expected], rtol=0, atol=1e-6)


def test_masks_below_two_pixels_are_dropped():
    masks = np.full((4, 5, 6), -9, np.float32)
    masks[1, 2, 3] = 9
    masks[2, 2, 3:5] = 9
    masks[3, 4, 0] = masks[3, 0, 5] = 9
    result = run(masks, sure(4), (5, 6))
    assert result.query.tolist() == [2, 3]
    assert result.area.tolist() == [2, 2]
    assert result.xyxy.tolist() == [[3, 2, 5, 3], [0, 0, 6, 5]]


@MODES
def test_one_pixel_frame_has_no_rows(mode):
    assert len(run(np.full((2, 5, 5), 9, np.float32), sure(2), (1, 1), **mode)) == 0


@MODES
def test_one_mask_value(mode):
    result = run(np.full((2, 1, 1), 9, np.float32), sure(2, scores=[3, 4]), (5, 7), **mode)
    assert result.query.tolist() == ([1] if mode == SEMANTIC else [1, 0])
    assert result.mask.all()


def test_semantic_ties_go_to_the_lower_query():
    mask_logits, class_logits = scenes.blobs(5, queries=6, grid=(20, 20), objects=6)
    twice = np.concatenate([mask_logits, mask_logits])
    both = np.concatenate([class_logits, class_logits])
    result = fai_fast.postprocess(twice, both, (75, 90), threshold=-1.0, predict_all_pixels=True)
    once = fai_fast.postprocess(mask_logits, class_logits, (75, 90), threshold=-1.0, predict_all_pixels=True)
    assert len(result) >= 2
    assert result.query.max() < 6
    same_bits(result, once)


def test_semantic_ties_at_zero_go_to_the_first_query():
    """Every score * m is 0: a tie of all queries, also of those before the first that has a class."""
    masks = np.full((4, 3, 5), -np.inf, np.float32)
    result = run(masks, sure(4), (9, 11), threshold=-1.0, predict_all_pixels=True)
    assert result.query.tolist() == [0]
    assert result.mask.all()
    no_class = run(masks, sure(4, scores=-np.inf), (9, 11), threshold=-1.0, predict_all_pixels=True)
    assert no_class.query.tolist() == [0]


def test_rows_of_equal_score_are_in_query_order():
    mask_logits, _ = scenes.blobs(6, queries=9, grid=(12, 12), objects=9)
    result = run(np.abs(mask_logits), sure(9), (40, 40))
    assert result.query.tolist() == list(range(9))
    assert len(set(result.confidence.tolist())) == 1


def test_first_class_wins_a_tie():
    logits = np.zeros((1, 5), np.float32)
    assert run(np.ones((1, 4, 4), np.float32), logits, (4, 4), threshold=0.4).class_id.tolist() == [0]
    logits[0, 2:4] = 3
    assert run(np.ones((1, 4, 4), np.float32), logits, (4, 4)).class_id.tolist() == [2]
    softmax = fai_fast.postprocess(np.ones((1, 4, 4), np.float32), logits, (4, 4), threshold=0.3)
    assert softmax.class_id.tolist() == [2]


def test_no_object_is_never_a_class():
    logits = np.array([[0.0, 1.0, 50.0]], np.float32)
    result = fai_fast.postprocess(np.ones((1, 4, 4), np.float32), logits, (4, 4), threshold=-1.0)
    assert result.class_id.tolist() == [1]
    assert run(np.ones((1, 4, 4), np.float32), logits, (4, 4)).class_id.tolist() == [2]


def test_probabilities_are_resized_not_logits():
    """Between logits -1 and +9 the logits' middle is inside at 1/2 already, the probabilities' is not."""
    masks = np.array([[[-1.0, 9.0], [-1.0, 9.0]]], np.float32)
    result = run(masks, sure(1), (2, 64))
    expected = reference.postprocess(masks, sure(1), (2, 64), class_activation="sigmoid").inside[0]
    first = expected[0].argmax()
    logits_first = (reference.stretch(2, 64) @ [-1.0, 9.0] >= 0).argmax()
    assert logits_first != first
    np.testing.assert_array_equal(result.mask[0], expected)


def test_score_equal_to_the_threshold_is_not_kept():
    masks = np.ones((2, 4, 4), np.float32)
    logits = np.zeros((2, 1), np.float32)  # sigmoid: exactly 1/2
    assert len(run(masks, logits, (4, 4), threshold=0.5)) == 0
    assert len(run(masks, logits, (4, 4), threshold=np.nextafter(np.float32(0.5), np.float32(0)))) == 2


@MODES
@pytest.mark.parametrize("use_mask_score", [False, True])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_reported_score_is_always_above_the_threshold(mode, use_mask_score, activation):
    mask_logits, class_logits = scenes.blobs(3, queries=40, grid=(20, 20), objects=30, classes=5)
    options = {**mode, "use_mask_score": use_mask_score, "class_activation": activation}
    everything = fai_fast.postprocess(mask_logits, class_logits, (40, 40), threshold=-1.0, **options)
    assert len(everything) > 10
    for score in everything.confidence:
        found = fai_fast.postprocess(mask_logits, class_logits, (40, 40), threshold=float(score), **options)
        # Rounded to float32 a score may be larger or smaller than what it was computed as.
        assert found.query.tolist() == everything.query[everything.confidence > score].tolist()
        just_below = float(np.nextafter(score, np.float32(-2)))
        found = fai_fast.postprocess(mask_logits, class_logits, (40, 40), threshold=just_below, **options)
        assert found.query.tolist() == everything.query[everything.confidence >= score].tolist()


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.6, 0.7, 0.9])
def test_a_threshold_that_float32_does_not_have_is_what_float32_makes_of_it(threshold):
    # The three float32 logits whose sigmoids are nearest to the threshold, on both sides of it.
    nearest = np.float32(np.log(threshold / (1 - threshold)))
    logits = nearest + np.arange(-40, 41, dtype=np.float32) * np.spacing(nearest)
    found = run(np.ones((81, 4, 4), np.float32), logits[:, None], (4, 4), threshold=threshold)
    assert 0 < len(found) < 81
    assert (found.confidence > threshold).all()
    assert (found.confidence > np.float32(threshold)).all()


# ----------------------------------------------------------------------------------------- NaN, infinity


@MODES
@pytest.mark.parametrize("where", ["mask", "class", "no object"])
@pytest.mark.parametrize("query", [0, 3, 9])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_query_with_nan_is_as_if_absent(mode, where, query, dtype):
    mask_logits, class_logits = scenes.blobs(7, queries=10, grid=(21, 18), objects=10, dtype=dtype)
    others = np.delete(np.arange(10), query)
    without = fai_fast.postprocess(mask_logits[others], class_logits[others], (63, 77), **mode)
    if where == "mask":
        mask_logits[query, 20, 17] = np.nan
    else:
        class_logits[query, 5 if where == "class" else -1] = np.nan
    result = check(mask_logits, class_logits, (63, 77), **mode)
    np.testing.assert_array_equal(result.query, others[without.query])
    assert result.mask.tobytes() == without.mask.tobytes()
    assert result.confidence.tobytes() == without.confidence.tobytes()


@pytest.mark.parametrize("place", range(0, 97, 7))
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_nan_is_found_wherever_it_is(place, dtype):
    masks = np.full((1, 1, 97), 5, dtype)
    masks[0, 0, place] = np.nan
    for mode in (INSTANCE, SEMANTIC):
        # At (2, 2) most of the mask's values are never sampled.
        assert len(run(masks, sure(1).astype(dtype), (2, 2), **mode)) == 0


@MODES
def test_all_queries_nan(mode):
    result = run(np.full((3, 6, 6), np.nan, np.float32), sure(3), (20, 30), threshold=-1.0, **mode)
    assert len(result) == 0
    if mode == SEMANTIC:
        assert (result.label_map == -1).all()


@MODES
def test_infinite_class_logits(mode):
    masks = np.ones((5, 6, 6), np.float32)
    logits = np.zeros((5, 4), np.float32)
    logits[0, 1] = np.inf  # softmax: inf / inf
    logits[1, :] = -np.inf  # softmax: 0 / 0
    logits[2, 1] = -np.inf
    logits[3, 3] = np.inf  # infinitely sure of no object: NaN as well
    result = check(masks, logits, (12, 12), threshold=0.1, **mode)
    assert result.query.tolist() == ([2] if mode == SEMANTIC else [2, 4])
    result = check(masks, logits, (12, 12), threshold=0.1, class_activation="sigmoid", **mode)
    assert result.query[0] == 0
    assert result.confidence[0] == 1


@MODES
def test_infinite_mask_logits(mode):
    mask_logits, class_logits = scenes.blobs(8, queries=8, grid=(15, 15), objects=8)
    infinite = np.where(mask_logits > 0, np.inf, -np.inf).astype(np.float32)
    result = check(infinite, class_logits, (60, 60), **mode)
    assert len(result) >= 3


# ---------------------------------------------------------------------------- same bits, whatever the way


@pytest.fixture(params=[INSTANCE, SEMANTIC], ids=["instance", "semantic"])
def scene(request):
    mask_logits, class_logits = scenes.blobs(11, queries=20, grid=(33, 47), objects=9)
    options = {"size": (130, 211), "use_mask_score": True, "threshold": 0.2, **request.param}
    return mask_logits, class_logits, options, fai_fast.postprocess(mask_logits, class_logits, **options)


def test_thread_count_changes_nothing(scene):
    mask_logits, class_logits, options, expected = scene
    assert len(expected) >= 4
    for threads in (1, 2, 3, 16):
        same_bits(fai_fast.postprocess(mask_logits, class_logits, num_threads=threads, **options), expected)


@pytest.mark.parametrize("last_row", [2, 3, 4, 5])
def test_masks_do_not_spill_into_each_other(last_row):
    """Masks that end near the grid's last row, drawn next to each other in memory by two threads."""
    masks = np.full((24, 6, 3), -9, np.float32)
    masks[0::2, : last_row + 1] = 9
    masks[1::2] = 9
    expected = run(masks, sure(24), (600, 90), num_threads=1)
    assert expected.area[1::2].tolist() == [600 * 90] * 12
    for _ in range(100):
        same_bits(run(masks, sure(24), (600, 90), num_threads=2), expected)


@pytest.mark.parametrize("kind", [scenes.blobs, scenes.noise])
@pytest.mark.parametrize("size", [(640, 640), (97, 1031)])
@MODES
def test_thread_count_changes_nothing_at_full_size(kind, size, mode):
    mask_logits, class_logits = kind(12, queries=100, grid=(80, 80))
    runs = [
        fai_fast.postprocess(
            mask_logits, class_logits, size, num_threads=n, threshold=0.1, use_mask_score=True, **mode
        )
        for n in (1, 2)
    ]
    assert len(runs[0]) >= 3
    same_bits(*runs)


def strided(array, how):
    """A view of the same values in another memory layout."""
    if how == "padded":
        big = np.full([side + 3 for side in array.shape], np.nan, array.dtype)
        view = big[tuple(slice(1, side + 1) for side in array.shape)]
    elif how == "reversed":
        view = np.empty_like(array)[tuple(slice(None, None, -1) for _ in array.shape)]
    elif how == "stepped":
        big = np.full([side * 2 for side in array.shape], np.nan, array.dtype)
        view = big[tuple(slice(None, None, 2) for _ in array.shape)]
    else:
        view = np.empty(array.shape[::-1], array.dtype).T
    view[...] = array
    return view


@pytest.mark.parametrize("how", ["padded", "reversed", "stepped", "fortran"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_any_strides(scene, how, dtype):
    mask_logits, class_logits, options, _ = scene
    mask_logits, class_logits = mask_logits.astype(dtype), class_logits.astype(dtype)
    expected = fai_fast.postprocess(mask_logits, class_logits, **options)
    result = fai_fast.postprocess(strided(mask_logits, how), strided(class_logits, how), **options)
    same_bits(result, expected)


def test_zero_strides_and_read_only(scene):
    _, class_logits, options, _ = scene
    masks = np.broadcast_to(np.linspace(-3, 3, 47, dtype=np.float32), (20, 33, 47))
    assert not masks.flags.writeable
    same_bits(
        fai_fast.postprocess(masks, class_logits, **options),
        fai_fast.postprocess(masks.copy(), class_logits, **options),
    )


def test_leading_one(scene):
    mask_logits, class_logits, options, expected = scene
    same_bits(fai_fast.postprocess(mask_logits[None], class_logits[None], **options), expected)


def test_torch_tensors(scene):
    mask_logits, class_logits, options, expected = scene
    tensors = torch.from_numpy(mask_logits), torch.from_numpy(class_logits)
    same_bits(fai_fast.postprocess(*tensors, **options), expected)
    transposed = tensors[0].permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not transposed.is_contiguous()
    same_bits(fai_fast.postprocess(transposed, tensors[1][None], **options), expected)
    halves = [tensor.half() for tensor in tensors]
    same_bits(
        fai_fast.postprocess(*halves, **options),
        fai_fast.postprocess(*(half.numpy() for half in halves), **options),
    )


def test_mixed_dtypes(scene):
    mask_logits, class_logits, options, _ = scene
    result = fai_fast.postprocess(mask_logits.astype(np.float16), class_logits, **options)
    rounded = fai_fast.postprocess(mask_logits.astype(np.float16).astype(np.float32), class_logits, **options)
    same_bits(result, rounded)


def test_inputs_are_left_alone(scene):
    mask_logits, class_logits, options, expected = scene
    copies = mask_logits.copy(), class_logits.copy()
    same_bits(fai_fast.postprocess(mask_logits, class_logits, **options), expected)
    assert mask_logits.tobytes() == copies[0].tobytes()
    assert class_logits.tobytes() == copies[1].tobytes()


def test_results_do_not_share_memory_with_inputs(scene):
    mask_logits, class_logits, options, expected = scene
    result = fai_fast.postprocess(masks := mask_logits.copy(), logits := class_logits.copy(), **options)
    masks.fill(np.nan)
    logits.fill(np.nan)
    same_bits(result, expected)


def test_identical_letterbox_is_no_letterbox(scene):
    mask_logits, class_logits, options, expected = scene
    letterbox = fai_fast.Letterbox.fit(options["size"], options["size"])
    same_bits(fai_fast.postprocess(mask_logits, class_logits, letterbox=letterbox, **options), expected)


def test_numpy_scalars_and_lists_as_arguments(scene):
    mask_logits, class_logits, options, expected = scene
    odd = dict(options, size=np.array(options["size"]), threshold=np.float32(0.2), use_mask_score=np.True_)
    same_bits(fai_fast.postprocess(mask_logits, class_logits, **odd), expected)


def test_class_names():
    mask_logits, class_logits = scenes.blobs(2, classes=3)
    names = ["cat", "dog", "road"]
    result = fai_fast.postprocess(mask_logits, class_logits, (50, 60), class_names=names)
    assert result.class_names == ("cat", "dog", "road")
    result = fai_fast.postprocess(
        mask_logits, class_logits, (50, 60), class_names=(*names, "sky"), class_activation="sigmoid"
    )
    assert result.class_names == (*names, "sky")


# ------------------------------------------------------------------------------------------------ batches


def batch_of(count):
    pictures = [scenes.blobs(20 + i, queries=15, grid=(20, 26), objects=6) for i in range(count)]
    return tuple(np.stack(arrays) for arrays in zip(*pictures, strict=True))


@MODES
def test_batch_equals_single_calls(mode):
    mask_logits, class_logits = batch_of(5)
    batch = fai_fast.postprocess_batch(mask_logits, class_logits, (81, 99), threshold=0.3, **mode)
    assert isinstance(batch, list)
    assert len(batch) == 5
    for i, result in enumerate(batch):
        same_bits(
            result,
            fai_fast.postprocess(mask_logits[i], class_logits[i], (81, 99), threshold=0.3, **mode),
        )


@MODES
def test_batch_with_a_size_and_a_letterbox_each(mode):
    mask_logits, class_logits = batch_of(3)
    sizes = [(81, 99), (20, 26), (7, 200)]
    letterboxes = [fai_fast.Letterbox.fit(size, (80, 104)) for size in sizes]
    batch = fai_fast.postprocess_batch(mask_logits, class_logits, sizes, letterbox=letterboxes, **mode)
    for i, result in enumerate(batch):
        assert result.size == sizes[i]
        same_bits(
            result,
            fai_fast.postprocess(mask_logits[i], class_logits[i], sizes[i], letterbox=letterboxes[i], **mode),
        )


@MODES
def test_batch_with_one_letterbox(mode):
    mask_logits, class_logits = batch_of(2)
    letterbox = fai_fast.Letterbox.fit((60, 99), (80, 104))
    batch = fai_fast.postprocess_batch(mask_logits, class_logits, (60, 99), letterbox=letterbox, **mode)
    for i, result in enumerate(batch):
        same_bits(
            result,
            fai_fast.postprocess(mask_logits[i], class_logits[i], (60, 99), letterbox=letterbox, **mode),
        )


def test_batch_of_torch_tensors_and_strides():
    mask_logits, class_logits = batch_of(3)
    expected = fai_fast.postprocess_batch(mask_logits, class_logits, (33, 44))
    tensors = fai_fast.postprocess_batch(
        torch.from_numpy(mask_logits), torch.from_numpy(class_logits), (33, 44)
    )
    flipped = fai_fast.postprocess_batch(
        strided(mask_logits, "reversed"), strided(class_logits, "stepped"), (33, 44), num_threads=2
    )
    for a, b, c in zip(expected, tensors, flipped, strict=True):
        same_bits(a, b)
        same_bits(a, c)


# ------------------------------------------------------------------------------------------ memory bounds


def test_reads_nothing_outside_the_logits():
    """Logits that end, or begin, at a page that may not be touched."""
    script = """
        import fai_fast, numpy as np
        from helpers import scenes
        from helpers.guard import guarded
        for dtype in (np.float16, np.float32):
            for seed, (queries, height, width) in enumerate([(3, 5, 7), (1, 1, 1), (17, 9, 33), (2, 31, 16)]):
                masks, logits = scenes.noise(seed, queries, (height, width), classes=4, dtype=dtype)
                for size in ((height * 4, width * 4), (11, 13), (1, 2)):
                    for semantic in (False, True):
                        results = [
                            fai_fast.postprocess(
                                m, c, size, threshold=0.01, use_mask_score=True, predict_all_pixels=semantic
                            )
                            for m, c in (
                                (masks, logits),
                                (guarded(masks, "end"), guarded(logits, "end")),
                                (guarded(masks, "start"), guarded(logits, "start")),
                            )
                        ]
                        assert results[0] == results[1] == results[2]
        print("done")
    """
    run_to_done(script)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@MODES
def test_raw_queries_are_every_query(mode, activation):
    rng = np.random.default_rng(11)
    mask_logits = rng.normal(-3, 4, (9, 12, 16)).astype(np.float32)
    class_logits = rng.normal(0, 3, (9, 4)).astype(np.float32)
    size = (37, 90)
    mask_logits[4] = -40
    class_ids, scores, masks = raw_queries(
        mask_logits, class_logits, size, class_activation=activation, **mode
    )
    odds = np.exp(class_logits.astype(np.float64))
    probability = (
        (odds / odds.sum(-1, keepdims=True))[:, :-1] if activation == "softmax" else odds / (1 + odds)
    )
    np.testing.assert_array_equal(class_ids, probability.argmax(-1))
    np.testing.assert_allclose(scores, probability.max(-1), rtol=0, atol=1e-6)
    assert (class_ids.dtype, scores.dtype, masks.dtype) == (np.int64, np.float32, np.int16)
    result = fai_fast.postprocess(
        mask_logits, class_logits, size, threshold=-1.0, class_activation=activation, **mode
    )
    assert 1 < len(result) < 9
    expected = np.full((9, *size), -1, np.int16)
    for query, class_id, mask in zip(result.query, result.class_id, result.mask, strict=True):
        expected[query][mask] = class_id
    assert np.array_equal(masks, expected)
    assert (masks[4] == -1).all()


@MODES
def test_a_mask_of_one_pixel_is_among_the_raw_queries(mode):
    mask_logits = np.full((2, 8, 8), -9, np.float32)
    mask_logits[1] = 5
    mask_logits[:, 2, 3] = 9, 1
    class_logits = np.array([[5.0, 1.0, 0.0], [1.0, 4.0, 0.0]], np.float32)
    assert fai_fast.postprocess(mask_logits, class_logits, (8, 8), threshold=-1.0, **mode).query.tolist() == [
        1
    ]
    _, _, masks = raw_queries(mask_logits, class_logits, (8, 8), **mode)
    assert np.argwhere(masks[0] != -1).tolist() == [[2, 3]]
    assert masks[0, 2, 3] == 0


@MODES
def test_raw_queries_keep_their_place_beside_nan(mode):
    rng = np.random.default_rng(12)
    mask_logits = rng.normal(0, 4, (4, 8, 8)).astype(np.float32)
    class_logits = np.array([[1, 5, 0], [6, 1, 0], [0, 7, 0], [3, 1, 0]], np.float32)
    mask_logits[1, 2, 3] = np.nan
    class_logits[2, 0] = np.nan
    class_ids, scores, masks = raw_queries(mask_logits, class_logits, (16, 16), **mode)
    assert class_ids.tolist() == [1, 0, 0, 0]
    assert np.isnan(scores).tolist() == [False, False, True, False]
    assert [bool((mask != -1).any()) for mask in masks] == [True, False, False, True]


def test_no_raw_query_has_pixels_at_a_probability_of_one():
    class_logits = np.array([[1, 5, 0], [6, 1, 0]], np.float32)
    class_ids, scores, masks = raw_queries(
        np.full((2, 4, 4), 10, np.float32), class_logits, (8, 8), mask_threshold=1.0
    )
    assert class_ids.tolist() == [1, 0]
    assert (scores > 0.9).all()
    assert (masks == -1).all()


def test_queries_without_pixels_have_empty_boxes_and_masks():
    class_logits = np.array([[1, 5, 0], [6, 1, 0]], np.float32)
    sure, size = np.full((2, 4, 4), 50, np.float32), (8, 8)
    # Above every probability, so that nothing is drawn; the public functions refuse it.
    arguments = False, [size], -1.0, 1.5, False, False, True, -1, [None], 0
    [found] = _core.postprocess(sure, class_logits, *arguments, min_area=0)
    assert found["query"].tolist() == [1, 0]
    assert found["class_id"].tolist() == [0, 1]
    assert found["area"].tolist() == [0, 0]
    assert found["boxes"].tolist() == [[0, 0, 0, 0]] * 2
    assert PackedMasks(found["bits"], found["offsets"], found["boxes"], size).area().tolist() == [0, 0]
    [found] = _core.postprocess(sure, class_logits, *arguments)
    assert found["query"].tolist() == []


@pytest.mark.parametrize("name", ["threshold", "mask_threshold"])
@pytest.mark.parametrize("value", [50, 1.0001, np.float32(2)])
def test_thresholds_are_no_percents(name, value):
    """50 % as 50 would find nothing, and say nothing."""
    logits = np.zeros((1, 4, 4), np.float32), sure(1)
    with pytest.raises(ValueError, match=rf"^{name}: got .*, expected at most 1$"):
        fai_fast.postprocess(*logits, (4, 4), **{name: value})
    with pytest.raises(ValueError, match=rf"^{name}: got .*, expected at most 1$"):
        fai_fast.postprocess_batch(logits[0][None], logits[1][None], (4, 4), **{name: value})
    for edge in (0, 1, -1, np.float32(0.5)):
        fai_fast.postprocess(*logits, (4, 4), **{name: edge})
