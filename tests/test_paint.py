"""Masks painted into a frame, against plain loops."""

from __future__ import annotations

import itertools
import threading

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import reference
from fai_fast import PackedMasks, _core
from helpers.guard import guarded

SIZES = list(itertools.product([1, 2, 9], [1, 2, 63, 64, 65, 127, 128, 150]))


def masks_of(size, seed=0):
    """Noise, and every structure that has an edge of its own."""
    rng = np.random.default_rng([seed, *size])
    masks = np.zeros((8, *size), bool)
    masks[0] = rng.random(size) < 0.5
    masks[1] = rng.random(size) < 0.95
    masks[2] = True
    masks[3, 0, 0] = True
    masks[4, -1, -1] = True
    masks[5, size[0] // 3 : size[0] // 3 + 3, size[1] // 3 :] = True
    masks[6, :, : size[1] // 2 + 1] = True
    return masks  # the last one is empty


def painted(image, masks, colors, rows, alpha, line, **options):
    picture = image.copy()
    packed = PackedMasks.from_bool(masks)._masks()
    packed.paint(picture, colors, np.array(rows, np.int64), alpha=alpha, line=line, **options)
    return picture


@pytest.mark.parametrize("size", SIZES)
def test_every_byte_is_that_of_plain_loops(size):
    rng = np.random.default_rng(size)
    masks = masks_of(size)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    colors = rng.integers(0, 256, (len(masks), 3), np.uint8)
    for alpha, line in ((128, 1), (0, 2), (255, 0), (77, 300)):
        rows = rng.permutation(len(masks))
        expected = reference.paint(image, masks, colors, rows, alpha, line)
        np.testing.assert_array_equal(painted(image, masks, colors, rows, alpha, line), expected)


@hypothesis.given(
    masks=hnp.arrays(
        bool,
        st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(1, 140)),
        elements=st.booleans(),
        fill=st.booleans(),
    ),
    alpha=st.integers(0, 255),
    line=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_masks(masks, alpha, line, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*masks.shape[1:], 3), np.uint8)
    colors = rng.integers(0, 256, (len(masks), 3), np.uint8)
    rows = rng.integers(0, max(len(masks), 1), 2 * min(len(masks), 2))
    expected = reference.paint(image, masks, colors, rows, alpha, line)
    np.testing.assert_array_equal(painted(image, masks, colors, rows, alpha, line), expected)


def test_every_opacity_of_every_value_is_rounded_to_nearest():
    image = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 256, 3)
    everything = np.ones((1, 1, 256), bool)
    for alpha in range(256):
        for color in (0, 1, 100, 254, 255):
            colors = np.full((1, 3), color, np.uint8)
            exact = (image * (255.0 - alpha) + color * alpha) / 255
            drawn = painted(image, everything, colors, [0], alpha, 0)
            assert np.abs(drawn - exact).max() <= 0.5 + 1e-9


def test_threads_make_no_difference():
    rng = np.random.default_rng(0)
    masks = np.kron(rng.random((5, 40, 60)) < 0.5, np.ones((1, 8, 8))) > 0
    image = rng.integers(0, 256, (320, 480, 3), np.uint8)
    colors = rng.integers(0, 256, (5, 3), np.uint8)
    one = painted(image, masks, colors, range(5), 100, 3, num_threads=1)
    for threads in (0, 2, 7):
        np.testing.assert_array_equal(
            painted(image, masks, colors, range(5), 100, 3, num_threads=threads), one
        )
    results = [None] * 4

    def work(i):
        results[i] = painted(image, masks, colors, range(5), 100, 3)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in results:
        np.testing.assert_array_equal(result, one)


def test_nothing_beside_the_frame_is_touched():
    for width, side in itertools.product((1, 63, 64, 65, 129), ("start", "end")):
        masks = np.ones((1, 3, width), bool)
        image = guarded(np.zeros((3, width, 3), np.uint8), side)
        PackedMasks.from_bool(masks)._masks().paint(
            image, np.full((1, 3), 9, np.uint8), np.array([0]), alpha=255, line=1
        )
        assert (image == 9).all()


def test_bits_beyond_the_frame_are_not_painted():
    # Only what Python code puts together by hand has such bits.
    bits = np.full(2, 2**64 - 1, np.uint64)
    masks = _core.Masks(bits, np.array([0]), np.array([[0, 0, 70, 1]], np.int32), (1, 70))
    image = guarded(np.zeros((1, 70, 3), np.uint8), "end")
    masks.paint(image, np.full((1, 3), 9, np.uint8), np.array([0]), alpha=255, line=1)
    assert (image == 9).all()


IMAGE = np.zeros((4, 70, 3), np.uint8)
READ_ONLY = IMAGE.copy()
READ_ONLY.flags.writeable = False
COLORS = np.zeros((2, 3), np.uint8)
ROWS = np.arange(2)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"image": None}, TypeError, "image: got NoneType"),
        ({"image": IMAGE.astype(np.int8)}, TypeError, "image: got dtype int8"),
        ({"image": IMAGE[:, :, 0]}, ValueError, "image: got shape"),
        ({"image": IMAGE[:, :69]}, ValueError, "image: got strides"),
        ({"image": IMAGE[:3]}, ValueError, r"image: got shape \(3, 70, 3\), expected \(4, 70, 3\)"),
        ({"image": READ_ONLY}, ValueError, "image: got a read-only array"),
        ({"colors": COLORS[:1]}, ValueError, "colors: got 1, expected 2"),
        ({"colors": COLORS.astype(int)}, TypeError, "colors: got dtype int64"),
        ({"colors": np.zeros((2, 4), np.uint8)}, ValueError, "colors: got shape"),
        ({"rows": ROWS + 1}, ValueError, "rows: got 2 at 1, expected 0 to 1"),
        ({"rows": ROWS - 1}, ValueError, "rows: got -1 at 0"),
        ({"rows": ROWS.astype(np.int32)}, TypeError, "rows: got dtype int32"),
        ({"alpha": 256}, ValueError, "alpha: got 256"),
        ({"alpha": -1}, ValueError, "alpha: got -1"),
        ({"line": -1}, ValueError, "line: got -1"),
        ({"num_threads": -1}, ValueError, "num_threads: got -1"),
    ],
)
def test_bad_arguments_are_named(changed, error, message):
    arguments = {"image": IMAGE.copy(), "colors": COLORS, "rows": ROWS, "alpha": 1, "line": 1} | changed
    masks = PackedMasks.from_bool(np.ones((2, 4, 70), bool))._masks()
    with pytest.raises(error, match=message):
        masks.paint(arguments.pop("image"), arguments.pop("colors"), arguments.pop("rows"), **arguments)
