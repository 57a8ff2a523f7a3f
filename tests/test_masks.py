"""Packed masks against plain NumPy loops, and COCO's RLE against pycocotools."""

from __future__ import annotations

import itertools
import pickle
import threading

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from fai_fast import PackedMasks, _core, build_info
from helpers.guard import guarded
from pycocotools import mask as coco

SIZES = [
    *itertools.product([1, 2, 63, 64, 65, 130], [1, 2, 63, 64, 65, 127, 128, 129, 200]),
    (200, 1),
    (1, 1000),
]


def random_masks(size, seed=0):
    """Noise of several densities, and every structure that has an edge of its own."""
    rng = np.random.default_rng([seed, *size])
    height, width = size
    masks = [rng.random(size) < density for density in (0.002, 0.05, 0.5, 0.95)]
    empty, full, first, last, rows, columns, box, ring = (np.zeros(size, bool) for _ in range(8))
    full[:] = True
    first[0, 0] = True
    last[-1, -1] = True
    rows[::2] = True
    columns[:, ::2] = True
    box[height // 3 : height // 3 + height // 2 + 1, width // 3 : width // 3 + width // 2 + 1] = True
    ring[[0, -1]] = True
    ring[:, [0, -1]] = True
    return np.stack([*masks, empty, full, first, last, rows, columns, box, ring])


def tight_box(mask):
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(ys) else [0, 0, 0, 0]


def layout(mask):
    """The words of one mask, bit by bit, as the layout is described."""
    x1, y1, x2, y2 = tight_box(mask)
    first = x1 // 64
    stride = -(-x2 // 64) - first
    words = [0] * int((y2 - y1) * stride)
    for y, x in zip(*np.nonzero(mask), strict=True):
        words[(y - y1) * stride + x // 64 - first] |= 1 << int(x % 64)
    return words


def coco_counts(mask):
    return coco.encode(np.asfortranarray(mask))["counts"]


@pytest.mark.parametrize("size", SIZES)
def test_layout(size):
    masks = random_masks(size)
    packed = PackedMasks.from_bool(masks)
    assert packed.size == size
    assert packed.boxes.tolist() == [tight_box(mask) for mask in masks]
    expected = [layout(mask) for mask in masks]
    assert packed.bits.tolist() == [word for words in expected for word in words]
    assert packed.offsets.tolist() == np.cumsum([0] + [len(words) for words in expected[:-1]]).tolist()
    assert (packed.bits.dtype, packed.offsets.dtype, packed.boxes.dtype) == (np.uint64, np.int64, np.int32)


@pytest.mark.parametrize("size", SIZES)
def test_every_way_out(size):
    masks = random_masks(size)
    packed = PackedMasks.from_bool(masks)
    np.testing.assert_array_equal(packed.decode(), masks)
    np.testing.assert_array_equal(packed.area(), masks.sum((1, 2)))
    for crop, mask, (x1, y1, x2, y2) in zip(packed.crops(), masks, packed.boxes.tolist(), strict=True):
        np.testing.assert_array_equal(crop, mask[y1:y2, x1:x2])
    for rle, mask in zip(packed.to_rle(), masks, strict=True):
        assert rle == {"size": list(size), "counts": coco_counts(mask)}
    _core.Masks(packed.bits, packed.offsets, packed.boxes, size).check_form()


@hypothesis.given(hnp.arrays(bool, st.tuples(st.integers(0, 3), st.integers(1, 140), st.integers(1, 140))))
def test_any_mask(masks):
    packed = PackedMasks.from_bool(masks)
    np.testing.assert_array_equal(packed.decode(), masks)
    np.testing.assert_array_equal(packed.area(), masks.sum((1, 2)))
    assert [rle["counts"] for rle in packed.to_rle()] == [coco_counts(mask) for mask in masks]


@hypothesis.given(
    st.integers(1, 150), st.integers(1, 150), st.lists(st.tuples(*[st.integers(0, 150)] * 4), max_size=6)
)
def test_rle_of_boxes(height, width, boxes):
    # Runs that reach the frame's top and bottom go on in the next column.
    mask = np.zeros((1, height, width), bool)
    for x1, y1, x2, y2 in boxes:
        mask[0, y1:y2, x1:x2] ^= True
    assert PackedMasks.from_bool(mask).to_rle()[0]["counts"] == coco_counts(mask[0])


def test_rle_of_a_large_frame():
    yy, xx = np.mgrid[:1080, :1920]
    masks = np.stack(
        [
            np.hypot(yy - 500, xx - 900) < 480 + 30 * np.sin(np.arctan2(yy - 500, xx - 900) * 40),
            xx > 3,
            (yy + xx) % 97 < 50,
            np.ones_like(xx, bool),
        ]
    )
    packed = PackedMasks.from_bool(masks)
    expected = [coco_counts(mask) for mask in masks]
    for threads in (1, 2, None):
        assert [rle["counts"] for rle in packed.to_rle(num_threads=threads)] == expected
    for threads in (1, 2, None):
        np.testing.assert_array_equal(packed.decode(num_threads=threads), masks)
        assert PackedMasks.from_bool(masks, num_threads=threads) == packed


def test_decode_into_writes_every_pixel():
    masks = random_masks((70, 150))
    out = np.ones(masks.shape, bool)
    assert PackedMasks.from_bool(masks).decode(out=out) is out
    np.testing.assert_array_equal(out, masks)


@pytest.mark.parametrize("side", ["start", "end"])
@pytest.mark.parametrize("size", [(1, 1), (65, 63), (64, 64), (67, 129), (3, 200)])
def test_no_byte_outside_is_touched(size, side):
    masks = random_masks(size)
    packed = PackedMasks.from_bool(guarded(masks, side))
    held = guarded(packed.bits, side), guarded(packed.offsets, side), guarded(packed.boxes, side), size
    np.testing.assert_array_equal(
        _core.Masks(*held).decode(out=guarded(np.ones(masks.shape, bool), side)), masks
    )
    assert _core.Masks(*held).area().tolist() == masks.sum((1, 2)).tolist()
    assert _core.Masks(*held).rle() == [coco_counts(mask) for mask in masks]
    assert [crop.sum() for crop in _core.Masks(*held).crops()] == masks.sum((1, 2)).tolist()
    for name in ("uint8", "uint16"):
        segments = guarded(masks[2].astype(name), side)
        of_segments = _core.Masks.from_segments(segments, np.array([1]))
        assert of_segments.size == size
        np.testing.assert_array_equal(of_segments.decode()[0], masks[2])
        labels = _core.label_map(segments, np.array([1]), np.array([9]))
        np.testing.assert_array_equal(labels, np.where(masks[2], 9, -1))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[:, ::-1],
        lambda m: m[:, :, ::-1],
        lambda m: m[::-1, ::2, 1::3],
        lambda m: m.transpose(0, 2, 1),
        lambda m: m.transpose(2, 1, 0),
        np.asfortranarray,
        lambda m: np.broadcast_to(m[:1], (4, *m.shape[1:])),
    ],
)
def test_encode_takes_any_strides(change):
    masks = change(random_masks((90, 140)))
    np.testing.assert_array_equal(PackedMasks.from_bool(masks).decode(), masks)


def test_encode_takes_any_nonzero_byte_for_true():
    bytes_ = np.arange(256, dtype=np.uint8).reshape(1, 2, 128)
    np.testing.assert_array_equal(PackedMasks.from_bool(bytes_.view(bool)).decode(), bytes_ != 0)


# ---------------------------------------------------------------------------------------------- segments


def random_segments(size, dtype, seed=0):
    rng = np.random.default_rng([seed, *size])
    coarse = rng.integers(0, 12, (-(-size[0] // 7), -(-size[1] // 23)))
    segments = coarse.repeat(7, axis=0).repeat(23, axis=1)[: size[0], : size[1]]
    segments = np.where(rng.random(size) < 0.05, rng.integers(0, 12, size), segments)
    top = np.iinfo(dtype).max
    return np.choose(segments, [0, 1, 2, 3, 100, 127, 128, top // 2, top - 2, top - 1, top, top]).astype(
        dtype
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("size", [*SIZES, (700, 1000)])
def test_from_segments(size, dtype, threads):
    segments = random_segments(size, dtype)
    top = np.iinfo(dtype).max
    queries = np.array([top - 1, 3, 0, 100, 77, 3, top // 2])  # 77 wins nowhere, 3 is listed twice
    packed = PackedMasks.from_segments(segments, queries, num_threads=threads)
    expected = segments == queries[:, None, None]
    np.testing.assert_array_equal(packed.decode(), expected)
    assert packed == PackedMasks.from_bool(expected)

    class_ids = np.array([5, 0, 32767, 9, 4, 0, -1])
    labels = np.full(size, -1, np.int16)
    for query, class_id in zip(queries, class_ids, strict=True):
        labels[segments == query] = class_id
    result = _core.label_map(segments, queries, class_ids, num_threads=threads)
    assert result.dtype == np.int16
    np.testing.assert_array_equal(result, labels)


def test_segments_of_nothing():
    segments = np.zeros((5, 7), np.uint8)
    none = np.zeros(0, np.int64)
    assert len(PackedMasks.from_segments(segments, none)) == 0
    assert (_core.label_map(segments, none, none) == -1).all()


def test_first_row_of_a_query_gives_its_label():
    segments = np.zeros((2, 2), np.uint8)
    assert (_core.label_map(segments, np.array([0, 0]), np.array([4, 5])) == 4).all()


# ------------------------------------------------------------------------------------------- selections


def test_selection_shares_bits_and_compact_does_not():
    masks = random_masks((80, 90))
    packed = PackedMasks.from_bool(masks)
    rows = [3, 3, 0, -1, 4]
    some = packed[rows]
    assert some.bits is packed.bits
    np.testing.assert_array_equal(some.decode(), masks[rows])
    np.testing.assert_array_equal(some.area(), masks[rows].sum((1, 2)))
    dense = some.compact()
    assert dense == some
    assert dense.bits.size == sum(len(layout(mask)) for mask in masks[rows])
    np.testing.assert_array_equal(dense.decode(), masks[rows])
    assert PackedMasks.concatenate([some, packed]) == PackedMasks.from_bool(
        np.concatenate([masks[rows], masks])
    )


def test_equality():
    masks = random_masks((30, 70))
    packed = PackedMasks.from_bool(masks)
    assert packed == PackedMasks.from_bool(masks)
    assert packed != packed[:-1]
    assert packed != PackedMasks.from_bool(masks[::-1])
    assert packed != PackedMasks.from_bool(np.pad(masks, ((0, 0), (0, 1), (0, 0))))
    other = masks.copy()
    other[1, 7, 9] ^= True
    assert packed != PackedMasks.from_bool(other)
    assert packed != masks.tolist()


def test_arrays_are_copies_and_read_only():
    bits = np.array([6], np.uint64)
    packed = PackedMasks(bits, np.zeros(1, np.int64), np.array([[1, 0, 3, 1]], np.int32), (4, 4))
    bits[0] = 0
    assert packed.area().tolist() == [2]
    for name in ("bits", "offsets", "boxes"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(packed, name)[0] = 0
        with pytest.raises(AttributeError, match="immutable"):
            setattr(packed, name, None)


# ---------------------------------------------------------------------------------------------- malformed

GOOD = {
    "bits": np.array([0b110, 0b110], np.uint64),
    "offsets": np.array([0], np.int64),
    "boxes": np.array([[1, 0, 3, 2]], np.int32),
    "size": (4, 4),
}
MASK_METHODS = ["check_form", "decode", "crops", "area", "compact", "rle"]
BIG = 2**31 - 1

MALFORMED = [
    ("bits", [6, 6], TypeError),
    ("bits", None, TypeError),
    ("bits", np.array([6, 6], np.int64), TypeError),
    ("bits", np.array([6, 6], ">u8"), TypeError),
    ("bits", np.array([[6, 6]], np.uint64), ValueError),
    ("bits", np.array([6, 0, 6, 0], np.uint64)[::2], ValueError),
    ("bits", np.frombuffer(bytes(17), np.uint8)[1:].view(np.uint64), ValueError),
    ("bits", np.array(6, np.uint64), ValueError),
    ("bits", np.array([6], np.uint64), ValueError),
    ("bits", np.zeros(0, np.uint64), ValueError),
    ("offsets", np.array([0], np.int32), TypeError),
    ("offsets", np.array([0, 0], np.int64), ValueError),
    ("offsets", np.array([[0]], np.int64), ValueError),
    ("offsets", np.array([-1], np.int64), ValueError),
    ("offsets", np.array([1], np.int64), ValueError),
    ("offsets", np.array([2**63 - 1], np.int64), ValueError),
    ("offsets", np.array([-(2**63)], np.int64), ValueError),
    ("boxes", np.array([[1, 0, 3, 2]], np.int64), TypeError),
    ("boxes", np.array([1, 0, 3, 2], np.int32), ValueError),
    ("boxes", np.array([[1, 0, 3]], np.int32), ValueError),
    ("boxes", np.array([[1, 0, 3, 2]] * 2, np.int32), ValueError),
    ("boxes", np.array([[-1, 0, 3, 2]], np.int32), ValueError),
    ("boxes", np.array([[1, -1, 3, 2]], np.int32), ValueError),
    ("boxes", np.array([[1, 0, 5, 2]], np.int32), ValueError),
    ("boxes", np.array([[1, 0, 3, 5]], np.int32), ValueError),
    ("boxes", np.array([[3, 0, 1, 2]], np.int32), ValueError),
    ("boxes", np.array([[1, 2, 3, 0]], np.int32), ValueError),
    ("boxes", np.array([[-BIG - 1, -BIG - 1, BIG, BIG]], np.int32), ValueError),
    ("boxes", np.array([[0, 0, BIG, BIG]], np.int32), ValueError),
    ("size", (4, 2), ValueError),
    ("size", (1, 4), ValueError),
    ("size", (0, 4), ValueError),
    ("size", (-1, 4), ValueError),
    ("size", (32768, 4), ValueError),
    ("size", (32767, 32767), ValueError),
    ("size", (4, 4, 4), TypeError),
    ("size", "44", TypeError),
    ("size", (4.5, 4), TypeError),
    ("size", (2**70, 4), TypeError),
]


@pytest.mark.parametrize(("name", "value", "error"), MALFORMED)
def test_malformed_masks(name, value, error):
    # A size too small is found where a box lies outside of it.
    place = "boxes" if name == "size" and value in ((4, 2), (1, 4)) else name
    place = "offsets" if name == "bits" and error is ValueError and np.shape(value) in ((1,), (0,)) else place
    with pytest.raises(error, match=place):
        _core.Masks(**{**GOOD, name: value})


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("bits", np.array([6, 0b1110], np.uint64), "bits: .* outside"),
        ("bits", np.array([7, 6], np.uint64), "bits: .* outside"),
        ("bits", np.array([6, 2**63 + 6], np.uint64), "bits: .* outside"),
        ("bits", np.array([2, 2], np.uint64), "boxes: .* larger"),
        ("bits", np.array([4, 4], np.uint64), "boxes: .* larger"),
        ("bits", np.array([0, 6], np.uint64), "boxes: .* larger"),
        ("bits", np.array([6, 0], np.uint64), "boxes: .* larger"),
        ("boxes", np.array([[1, 1, 1, 3]], np.int32), "boxes: got an empty"),
        ("boxes", np.array([[1, 1, 2, 1]], np.int32), "boxes: got an empty"),
    ],
)
def test_only_one_form_of_a_mask_is_accepted(name, value, text):
    PackedMasks(**GOOD)
    with pytest.raises(ValueError, match=text):
        PackedMasks(**{**GOOD, name: value})


# Most of it where the sanitizers see what it does, as .ci/run has it.
@hypothesis.settings(max_examples=500 if build_info()["sanitizers"] else 150)
@hypothesis.given(st.data())
def test_malformed_arrays_never_crash(data):
    def array(dtype, elements, ndim):
        shape = data.draw(
            hnp.array_shapes(min_dims=max(0, ndim - 1), max_dims=ndim + 1, min_side=0, max_side=5)
        )
        return data.draw(hnp.arrays(dtype, shape, elements=elements))

    small = st.integers(-3, 140)
    bits = array(np.uint64, st.integers(0, 2**64 - 1), 1)
    offsets = array(np.int64, st.one_of(small, st.integers(-(2**63), 2**63 - 1)), 1)
    boxes = array(np.int32, st.one_of(small, st.integers(-(2**31), BIG)), 2)
    if data.draw(st.booleans()) and boxes.ndim == 2:
        boxes = np.ascontiguousarray(np.resize(boxes, (len(boxes), 4)).astype(np.int32))
        offsets = np.resize(offsets, len(boxes)).astype(np.int64)
    size = data.draw(st.tuples(st.integers(-1, 140), st.integers(-1, 140)))
    try:
        masks = _core.Masks(bits, offsets, boxes, size)
    except (TypeError, ValueError) as error:
        assert any(name in str(error) for name in GOOD)  # noqa: PT017
        return
    for method in MASK_METHODS:
        try:
            getattr(masks, method)()
        except (TypeError, ValueError) as error:
            assert any(name in str(error) for name in GOOD)  # noqa: PT017


@pytest.mark.parametrize(
    ("out", "error"),
    [
        ([[[False]]], TypeError),
        (np.zeros((1, 4, 4), np.uint8), TypeError),
        (np.zeros((4, 4), bool), ValueError),
        (np.zeros((2, 4, 4), bool), ValueError),
        (np.zeros((1, 4, 5), bool), ValueError),
        (np.zeros((1, 4, 8), bool)[:, :, ::2], ValueError),
        (np.broadcast_to(np.zeros(1, bool), (1, 4, 4)), ValueError),
        (np.frombuffer(bytes(16), bool).reshape(1, 4, 4), ValueError),
    ],
)
def test_malformed_out(out, error):
    with pytest.raises(error, match="out"):
        _core.Masks(**GOOD).decode(out=out)


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (None, TypeError),
        ([[[True]]], TypeError),
        (np.zeros((1, 4, 4), np.uint8), TypeError),
        (np.zeros((1, 4, 4), object), TypeError),
        (np.zeros((4, 4), bool), ValueError),
        (np.zeros((1, 1, 4, 4), bool), ValueError),
        (np.zeros((1, 0, 4), bool), ValueError),
        (np.zeros((1, 4, 0), bool), ValueError),
        (np.zeros((0, 32768, 1), bool), ValueError),
        (np.broadcast_to(np.zeros(1, bool), (1, 32767, 32767)), ValueError),
    ],
)
def test_malformed_mask(mask, error):
    with pytest.raises(error, match="mask"):
        PackedMasks.from_bool(mask)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("segments", None, TypeError),
        ("segments", np.zeros((4, 4), np.int16), TypeError),
        ("segments", np.zeros((4, 4), ">u2"), TypeError),
        ("segments", np.zeros(4, np.uint8), ValueError),
        ("segments", np.zeros((4, 8), np.uint16)[:, ::2], ValueError),
        ("segments", np.zeros((0, 4), np.uint8), ValueError),
        ("queries", [0], TypeError),
        ("queries", np.array([0], np.int32), TypeError),
        ("queries", np.array([[0]], np.int64), ValueError),
        ("queries", np.array([-1], np.int64), ValueError),
        ("queries", np.array([256], np.int64), ValueError),
        ("queries", np.array([2**63 - 1], np.int64), ValueError),
        ("class_ids", np.array([0.0]), TypeError),
        ("class_ids", np.array([0, 1]), ValueError),
        ("class_ids", np.array([32768]), ValueError),
        ("class_ids", np.array([-2]), ValueError),
    ],
)
def test_malformed_segments(name, value, error):
    good = {"segments": np.zeros((4, 4), np.uint8), "queries": np.array([0]), "class_ids": np.array([0])}
    bad = {**good, name: value}
    with pytest.raises(error, match=name):
        _core.label_map(**bad)
    if name != "class_ids":
        del bad["class_ids"]
        with pytest.raises(error, match=name):
            _core.Masks.from_segments(**bad)


@pytest.mark.parametrize("method", MASK_METHODS)
@pytest.mark.parametrize("words", [0, 1, 1 << 16])
def test_bits_that_were_resized_are_refused(method, words):
    bits = np.array(GOOD["bits"])
    masks = _core.Masks(**{**GOOD, "bits": bits})
    getattr(masks, method)()
    bits.resize(words, refcheck=False)
    with pytest.raises(ValueError, match=f"bits: .* resized, from 2 to {words} words"):
        getattr(masks, method)()


def test_masks_keep_offsets_and_boxes_as_they_were_checked():
    offsets, boxes = np.array(GOOD["offsets"]), np.array(GOOD["boxes"])
    masks = _core.Masks(GOOD["bits"], offsets, boxes, GOOD["size"])
    expected = masks.decode()
    offsets[:] = 2**62
    boxes[:] = BIG
    np.testing.assert_array_equal(masks.decode(), expected)


def test_a_pickle_of_before_there_was_a_bound_class_still_loads():
    masks = PackedMasks(**GOOD)
    assert masks.__reduce__()[0] is PackedMasks
    arrays = masks.__reduce__()[1]
    assert [type(part) for part in arrays] == [np.ndarray] * 3 + [tuple]
    assert pickle.loads(pickle.dumps((PackedMasks, arrays)))[0](*arrays) == masks
    assert pickle.loads(pickle.dumps(masks)) == masks


def test_negative_threads():
    with pytest.raises(ValueError, match="num_threads"):
        _core.Masks(**GOOD).decode(num_threads=-1)
    with pytest.raises(ValueError, match="num_threads"):
        PackedMasks(**GOOD).decode(num_threads=0)


def test_segments_that_change_meanwhile_never_crash():
    # The GIL is released: another thread may write what is being read.
    segments = np.zeros((400, 500), np.uint8)
    queries = np.arange(8)
    done = threading.Event()

    def write():
        rng = np.random.default_rng(0)
        while not done.is_set():
            segments[rng.integers(400), rng.integers(500)] = rng.integers(256)
            segments[:, rng.integers(500) :] = rng.integers(8)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(200):
            packed = PackedMasks.from_segments(segments, queries)
            assert packed.decode().shape == (8, 400, 500)
    finally:
        done.set()
        thread.join()
