"""Detections: fields, rows, masks, and the way to and from other libraries' forms."""

from __future__ import annotations

import base64
import copy
import io
import json
import pickle
import subprocess
import sys
import warnings

import cv2
import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, PackedMasks, render
from PIL import Image
from pycocotools import mask as coco

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import supervision as sv

SIZE = (50, 140)
NAMES = ("person", "car", "dog")


def make_masks():
    masks = np.zeros((5, *SIZE), bool)
    masks[0, 3:20, 60:70] = True
    masks[0, 5:9, 63:66] = False  # a hole
    masks[1, 0:50, 100:140] = True
    masks[2, 30, 7] = True
    masks[3, 30:40, 2:6] = True
    masks[3, 44:47, 80:129] = True  # two parts
    return masks  # the last is empty


def boxes_of(masks):
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        ys, xs = np.nonzero(mask)
        if len(ys):
            box[:] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    return boxes


COLUMNS = {
    "confidence": [0.9, 0.8, 0.75, 0.5, 0.25],
    "class_id": [0, 1, 0, 7, 2],
    "query": [11, 4, 99, 0, 3],
}


def decoded(rle):
    with warnings.catch_warnings():  # of pycocotools' own __array__, under NumPy 2
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco.decode(rle).astype(bool)


def instances(**changes):
    masks = make_masks()
    fields = {**COLUMNS, "xyxy": boxes_of(masks), "size": SIZE, "class_names": NAMES, "mask": masks}
    return Detections(**{**fields, **changes})


def segment_map(dtype=np.uint8):
    rng = np.random.default_rng(3)
    segments = rng.integers(0, 6, (10, 7)).repeat(5, axis=0).repeat(20, axis=1)
    return np.where(segments == 5, np.iinfo(dtype).max, segments).astype(dtype)


def semantic(dtype=np.uint8, **changes):
    """Queries 4, 0, 3 are rows, 1 and 2 won pixels too."""
    segments = segment_map(dtype)
    queries = np.array([4, 0, 3])
    fields = {
        "xyxy": boxes_of(segments == queries[:, None, None]),
        "confidence": [0.9, 0.8, 0.7],
        "class_id": [2, 0, 2],
        "query": queries,
        "size": SIZE,
        "class_names": NAMES,
        "label_source": segments,
    }
    return Detections(**{**fields, **changes})


def boxes_only(**changes):
    fields = {**COLUMNS, "xyxy": boxes_of(make_masks()), "size": SIZE, "class_names": NAMES}
    return Detections(**{**fields, **changes})


KINDS = {"instances": instances, "semantic": semantic, "boxes": boxes_only}


@pytest.fixture(params=KINDS)
def found(request):
    return KINDS[request.param]()


# -------------------------------------------------------------------------------------------------- fields


def test_fields():
    found = instances(tracker_id=[5, 4, 3, 2, 1])
    expected = {
        "xyxy": ("float32", boxes_of(make_masks())),
        "confidence": ("float32", COLUMNS["confidence"]),
        "class_id": ("int64", COLUMNS["class_id"]),
        "query": ("int64", COLUMNS["query"]),
        "tracker_id": ("int64", [5, 4, 3, 2, 1]),
    }
    for name, (dtype, values) in expected.items():
        array = getattr(found, name)
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, np.asarray(values, dtype))
    assert found.size == SIZE
    assert found.class_names == NAMES
    assert found.class_name.tolist() == ["person", "car", "person", "7", "dog"]
    assert len(found) == 5
    assert not found.is_empty()


def test_defaults():
    found = Detections(xyxy=[[0, 0, 1, 2]], confidence=[1], class_id=[3], size=np.array(SIZE))
    assert found.query.tolist() == [-1]
    assert found.class_names is None
    assert found.tracker_id is None
    assert found.mask is None
    assert found.packed is None
    assert found.label_map is None
    assert found.class_name.tolist() == ["3"]
    assert found.size == SIZE


def test_immutable(found):
    xyxy = found.xyxy.copy()
    for name in ("xyxy", "confidence", "class_id", "query"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(found, name)[0] = 0
        with pytest.raises(ValueError, match="read-only"):
            getattr(found[1:], name)[0] = 0
    for name in ("xyxy", "size", "anything"):
        with pytest.raises(AttributeError, match=name):
            setattr(found, name, None)
    with pytest.raises(AttributeError, match="xyxy"):
        del found.xyxy
    np.testing.assert_array_equal(found.xyxy, xyxy)
    with pytest.raises(TypeError, match="Detections"):
        hash(found)


def test_arguments_are_copied():
    arrays = {
        "xyxy": np.zeros((1, 4), np.float32),
        "confidence": np.zeros(1, np.float32),
        "class_id": np.zeros(1, np.int64),
        "query": np.zeros(1, np.int64),
        "tracker_id": np.zeros(1, np.int64),
        "label_source": np.zeros(SIZE, np.uint8),
    }
    found = Detections(**arrays, size=SIZE)
    for array in arrays.values():
        assert array.flags.writeable
        array += 7
    assert found.xyxy.tolist() == [[0, 0, 0, 0]]
    assert found.confidence[0] == found.class_id[0] == found.query[0] == found.tracker_id[0] == 0
    assert found.area.tolist() == [50 * 140]


@pytest.mark.parametrize(
    ("name", "value", "error", "text"),
    [
        ("xyxy", np.zeros((5, 5)), ValueError, r"\(5, 5\).*\(5, 4\)"),
        ("xyxy", np.zeros(4), ValueError, r"\(4,\)"),
        ("xyxy", 3, ValueError, r"\(\)"),
        ("xyxy", np.full((5, 4), np.nan), ValueError, "finite"),
        ("xyxy", np.full((5, 4), 1e39), ValueError, "finite"),
        ("xyxy", [[1, 0, 0, 1]] * 5, ValueError, "row 0.*x1 <= x2"),
        ("xyxy", [["a"] * 4] * 5, TypeError, "dtype"),
        ("xyxy", [[1, 2, 3, 4], [1]], TypeError, "list"),
        ("xyxy", None, TypeError, "object"),
        ("confidence", [0.5] * 4, ValueError, r"\(4,\).*\(5,\)"),
        ("confidence", [0.5] * 4 + [np.inf], ValueError, "finite"),
        ("confidence", [True] * 5, TypeError, "bool"),
        ("confidence", [1j] * 5, TypeError, "complex"),
        ("class_id", [0.0] * 5, TypeError, "float64"),
        ("class_id", [0] * 6, ValueError, r"\(6,\)"),
        ("class_id", [0, 0, 0, 0, -2], ValueError, "-2"),
        ("class_id", np.full(5, 2**64 - 1, np.uint64), ValueError, "int64"),
        ("query", [[0] * 5], ValueError, r"\(1, 5\)"),
        ("query", [-2] * 5, ValueError, "-2"),
        ("tracker_id", ["a"] * 5, TypeError, "integers"),
        ("tracker_id", [1], ValueError, r"\(1,\)"),
        ("size", (50,), ValueError, "height, width"),
        ("size", (0, 140), ValueError, "0"),
        ("size", 50, TypeError, "50"),
        ("class_names", "person", TypeError, "str"),
        ("class_names", [1, 2], TypeError, "1"),
        ("mask", np.zeros((5, *SIZE), np.uint8), TypeError, "uint8"),
        ("mask", np.zeros((4, *SIZE), bool), ValueError, r"\(4, 50, 140\)"),
        ("mask", np.zeros((5, 140, 50), bool), ValueError, r"\(5, 140, 50\)"),
        ("packed", np.zeros((5, *SIZE), bool), TypeError, "ndarray"),
        ("packed", PackedMasks.from_bool(np.zeros((4, *SIZE), bool)), ValueError, "4 masks"),
        ("packed", PackedMasks.from_bool(np.zeros((5, 140, 50), bool)), ValueError, "140"),
        ("label_source", np.zeros(SIZE, np.int64), TypeError, "int64"),
        ("label_source", np.zeros((140, 50), np.uint8), ValueError, "140"),
    ],
)
def test_constructor_names_what_is_wrong(name, value, error, text):
    with pytest.raises(error, match=rf"{name}: (?s:.*){text}"):
        boxes_only(**{name: value})


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"query": None}, "query"),
        ({"query": [-1, 0, 3]}, "query"),
        ({"query": [4, 0, 255]}, "query"),
        ({"class_id": [0, 1, 32768]}, "class_id"),
        ({"mask": np.zeros((3, *SIZE), bool)}, "mask"),
        ({"packed": PackedMasks.from_bool(np.zeros((3, *SIZE), bool))}, "packed"),
    ],
)
def test_label_source_needs(changes, name):
    with pytest.raises(ValueError, match=name):
        semantic(**changes)


# -------------------------------------------------------------------------------------------------- masks


def test_masks_of_instances():
    masks, found = make_masks(), instances()
    np.testing.assert_array_equal(found.mask, masks)
    assert found.mask.flags.writeable
    for i in (*range(5), -1, np.int64(2)):
        np.testing.assert_array_equal(found.masks(i), masks[i])
    with pytest.raises(IndexError):
        found.masks(5)
    with pytest.raises(TypeError, match="i:"):
        found.masks(1.0)
    for crop, mask, (x1, y1, x2, y2) in zip(found.crops(), masks, boxes_of(masks).astype(int), strict=True):
        np.testing.assert_array_equal(crop, mask[y1:y2, x1:x2])
    np.testing.assert_array_equal(found.area, masks.sum((1, 2)))
    assert found.box_area.tolist() == [170, 2000, 1, 127 * 17, 0]
    assert found.label_map is None
    for rle, mask in zip(found.to_rle(), masks, strict=True):
        expected = coco.encode(np.asfortranarray(mask))
        assert rle == {"size": list(SIZE), "counts": expected["counts"]}
    assert instances(mask=None, packed=found.packed) == found


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_semantic(dtype):
    segments, found = segment_map(dtype), semantic(dtype)
    np.testing.assert_array_equal(found.mask, segments == np.array([4, 0, 3])[:, None, None])
    expected = np.full(SIZE, -1)
    for query, class_id in ((4, 2), (0, 0), (3, 2)):
        expected[segments == query] = class_id
    assert found.label_map.dtype == np.int16
    np.testing.assert_array_equal(found.label_map, expected)
    np.testing.assert_array_equal(found.area, [(segments == query).sum() for query in (4, 0, 3)])


@pytest.mark.parametrize("first_masks", [False, True])
def test_selected_rows_of_a_semantic_result(first_masks):
    segments, found = segment_map(), semantic()
    if first_masks:
        assert found.mask is not None
    some = found[[2, 0, 2]]
    np.testing.assert_array_equal(some.mask, segments == np.array([3, 4, 3])[:, None, None])
    np.testing.assert_array_equal(some.label_map, np.where(np.isin(segments, [3, 4]), 2, -1))
    np.testing.assert_array_equal(some.area, some.mask.sum((1, 2)))
    one = some[1]
    np.testing.assert_array_equal(one.mask[0], segments == 4)
    np.testing.assert_array_equal(one.label_map, np.where(segments == 4, 2, -1))
    none = found[:0]
    assert none.mask.shape == (0, *SIZE)
    assert (none.label_map == -1).all()


def test_boxes_only_have_no_masks():
    found = boxes_only()
    assert found.mask is None
    assert found.area.tolist() == found.box_area.tolist() == [170, 2000, 1, 127 * 17, 0]
    for method in (found.crops, found.to_rle, found.to_polygons, lambda: found.masks(0)):
        with pytest.raises(ValueError, match="boxes only"):
            method()


def test_box_area_is_exact():
    found = boxes_only(xyxy=[[0, 0, 32767, 32767]] * 5, size=(100, 100))
    assert found.box_area[0] == 32767 * 32767


# --------------------------------------------------------------------------------------------------- rows

INDEXES = [
    0,
    -1,
    np.int64(1),
    slice(None),
    slice(1, None),
    slice(None, None, -1),
    slice(10, 20),
    [],
    [2, 0],
    [-1, -1, 1],
    np.array([1, 2], np.uint8),
    [True, False, True],
    np.array([False, False, False]),
    ...,
]


def same_rows(some, found, rows):
    for name in ("xyxy", "confidence", "class_id", "query", "tracker_id"):
        np.testing.assert_array_equal(getattr(some, name), getattr(found, name)[rows])
    assert (some.size, some.class_names) == (found.size, found.class_names)
    if found.mask is not None:
        np.testing.assert_array_equal(some.mask, found.mask[rows])
        np.testing.assert_array_equal(some.area, found.area[rows])


@pytest.mark.parametrize("index", INDEXES, ids=repr)
def test_selection_is_numpys(found, index):
    found = found[:3].with_tracker_id([7, 8, 9])
    rows = np.atleast_1d(np.arange(3)[index])
    some = found[index]
    assert len(some) == len(rows)
    same_rows(some, found, rows)
    # Again, now that the areas are known and go with their rows.
    same_rows(found[index], found, rows)


@pytest.mark.parametrize(
    "index",
    [3, -4, [0, 3], [True, False], np.ones(4, bool), 1.0, [0.5], "xyxy", None, (0, 1), True, [[0, 1]]],
)
def test_selection_out_of_range(found, index):
    with pytest.raises(IndexError):
        found[:3][index]


def test_iteration(found):
    rows = list(found)
    assert len(rows) == len(found)
    for i, row in enumerate(rows):
        assert isinstance(row, Detections)
        assert row == found[i]
        assert len(row) == 1


def test_selection_shares_the_bits():
    found = instances()
    assert found[1:].packed.bits is found.packed.bits


def test_with_tracker_id(found):
    n = len(found)
    tracked = found.with_tracker_id(range(n))
    assert tracked.tracker_id.tolist() == list(range(n))
    assert found.tracker_id is None
    assert tracked != found
    assert tracked.with_tracker_id(None) == found
    with pytest.raises(ValueError, match="tracker_id"):
        found.with_tracker_id([1])


def test_merge():
    found = instances()
    assert Detections.merge([found[:2], found[2:3], found[3:]]) == found
    assert Detections.merge([found]) == found
    merged = Detections.merge([semantic(), found])
    np.testing.assert_array_equal(merged.mask, np.concatenate([semantic().mask, found.mask]))
    assert merged.label_map is None
    assert merged.query.tolist() == [4, 0, 3, 11, 4, 99, 0, 3]
    tracked = found.with_tracker_id([1, 2, 3, 4, 5])
    assert Detections.merge([tracked[3:], tracked[:3]]).tracker_id.tolist() == [4, 5, 1, 2, 3]
    boxes = boxes_only()
    assert Detections.merge([boxes[:1], boxes[1:]]) == boxes


def test_merge_with_empty_ones():
    found, empty = instances(), Detections.empty(SIZE, NAMES)
    assert Detections.merge([empty, found, empty]) == found
    assert Detections.merge([empty, boxes_only()]) == boxes_only()
    assert Detections.merge([Detections.empty(SIZE), found.with_tracker_id(range(5))]).tracker_id is not None
    assert Detections.merge([empty, empty]) == empty
    unnamed = instances(class_names=None)
    assert Detections.merge([empty, unnamed]).class_names == NAMES


@pytest.mark.parametrize(
    ("parts", "error", "text"),
    [
        ([], ValueError, "none"),
        ([instances(), None], TypeError, "NoneType"),
        ([instances(), Detections.empty((50, 141), NAMES)], ValueError, "141"),
        ([instances(), instances(class_names=("a",))], ValueError, "class_names"),
        ([instances(), boxes_only()], ValueError, "masks"),
        ([instances(), instances(tracker_id=[1] * 5)], ValueError, "tracker_id"),
    ],
)
def test_merge_refuses(parts, error, text):
    with pytest.raises(error, match=rf"detections: .*{text}"):
        Detections.merge(parts)


def test_empty():
    empty = Detections.empty(SIZE, NAMES)
    assert len(empty) == 0
    assert empty.is_empty()
    assert empty.mask.shape == (0, *SIZE)
    assert empty.xyxy.shape == (0, 4)
    assert (empty.area.shape, empty.box_area.shape, empty.class_name.shape) == ((0,), (0,), (0,))
    assert empty.class_name.dtype.kind == "U"
    assert empty.crops() == empty.to_rle() == empty.to_polygons() == empty.to_coco(1) == list(empty) == []
    assert empty.to_dict() == {"size": [50, 140], "class_names": list(NAMES), "detections": []}
    assert empty.to_focoos() == {"detections": [], "latency": None}
    assert empty == instances()[:0]
    assert not empty


# ---------------------------------------------------------------------------------------- equality and text


def test_equality(found):
    assert found == found[:]
    assert found != found[::-1]
    assert found != found[1:]
    assert found != "other"
    assert found.__eq__(3) is NotImplemented


@pytest.mark.parametrize(
    "changes",
    [
        {"xyxy": np.zeros((5, 4))},
        {"confidence": [0.9, 0.8, 0.75, 0.5, 0.26]},
        {"class_id": [0, 1, 0, 7, 1]},
        {"query": [11, 4, 99, 0, 2]},
        {"class_names": ("person", "car", "cat")},
        {"class_names": None},
        {"tracker_id": [1] * 5},
        {"mask": make_masks()[::-1]},
        {"mask": None},
        {"mask": make_masks() ^ np.eye(50, 140, dtype=bool)},
    ],
)
def test_inequality(changes):
    assert instances() != instances(**changes)


def test_a_label_map_makes_a_difference():
    with_map = semantic()
    without = semantic(label_source=None, mask=with_map.mask)
    assert with_map != without
    np.testing.assert_array_equal(with_map.mask, without.mask)
    # What queries without a row won does not show.
    segments = segment_map()
    assert semantic(label_source=np.where(segments == 1, 2, segments).astype(np.uint8)) == with_map


@pytest.mark.parametrize("again", [lambda d: pickle.loads(pickle.dumps(d)), copy.deepcopy, copy.copy])
def test_pickle(found, again):
    for original in (found, found.with_tracker_id(range(len(found))), found[1:2], found[[1, 1]], found[:0]):
        result = again(original)
        assert result == original
        if original.label_map is not None:
            np.testing.assert_array_equal(result.label_map, original.label_map)
        with pytest.raises(ValueError, match="read-only"):
            result.xyxy.flat = 0


def test_pickles_are_small():
    masks = np.zeros((20, 500, 500), bool)
    for i in range(20):
        masks[i, 20 * i : 20 * i + 100, 3 : 3 + 100] = True
    found = Detections(
        xyxy=boxes_of(masks), confidence=np.ones(20), class_id=np.zeros(20, int), size=(500, 500), mask=masks
    )
    assert len(pickle.dumps(found)) < 20 * 100 * 128 / 8 + 5000
    assert len(pickle.dumps(found[3])) < 100 * 128 / 8 + 2000


def test_repr_and_print():
    found = instances()
    assert repr(found) == "Detections(5 in 50x140: person 2, car 1, 7 1, dog 1)"
    assert str(found).splitlines() == [
        "5 detections in 50x140",
        "class   count  best score",
        "person      2       0.900",
        "car         1       0.800",
        "7           1       0.500",
        "dog         1       0.250",
    ]
    many = boxes_only(class_id=range(5), class_names=None)
    assert repr(Detections.merge([many, boxes_only(class_id=[9] * 5, class_names=None)])) == (
        "Detections(10 in 50x140: 9 5, 0 1, 1 1, 2 1, 3 1, 1 more classes)"
    )
    assert repr(found[:0]) == "Detections(0 in 50x140)"
    assert str(found[:0]) == "no detections in 50x140"
    assert str(found[0]).startswith("1 detection in")
    assert repr(found.packed) == "PackedMasks(5 in 50x140)"


# ---------------------------------------------------------------------------------------- other forms


def test_polygons_cover_the_masks():
    masks, found = make_masks(), instances()
    polygons = found.to_polygons()
    assert [len(parts) for parts in polygons] == [1, 1, 1, 2, 0]
    assert polygons[2][0].tolist() == [[7, 30]]
    masks[0, 5:9, 63:66] = True  # holes are left out
    for parts, mask in zip(polygons, masks, strict=True):
        drawn = np.zeros(SIZE, np.uint8)
        for part in parts:
            assert part.dtype == np.int32
            cv2.fillPoly(drawn, [part], 1)
        np.testing.assert_array_equal(drawn.astype(bool), mask)


def test_to_dict_and_json(found):
    result = found.to_dict()
    assert json.loads(found.to_json()) == result
    assert "\n" in found.to_json(indent=2)
    assert result["size"] == list(SIZE)
    assert result["class_names"] == list(NAMES)
    again = Detections(
        **{
            name: np.array([row[name] for row in result["detections"]])
            for name in ("xyxy", "confidence", "class_id", "query")
        },
        size=result["size"],
        class_names=result["class_names"],
        mask=None if found.mask is None else np.stack([decoded(row["mask"]) for row in result["detections"]]),
    )
    assert again.packed == found.packed
    assert again == Detections.merge([found])
    assert [row["class_name"] for row in result["detections"]] == found.class_name.tolist()
    assert [row["area"] for row in result["detections"]] == found.area.tolist()
    assert {row["tracker_id"] for row in result["detections"]} == {None}
    tracked = found.with_tracker_id(range(len(found))).to_dict()
    assert [row["tracker_id"] for row in tracked["detections"]] == list(range(len(found)))


def test_to_coco():
    found = instances()
    annotations = found.to_coco(17)
    assert json.loads(json.dumps(annotations)) == annotations
    assert [a["category_id"] for a in annotations] == COLUMNS["class_id"]
    assert annotations[0]["bbox"] == [60, 3, 10, 17]
    assert annotations[1] == {
        "image_id": 17,
        "category_id": 1,
        "bbox": [100, 0, 40, 50],
        "score": pytest.approx(0.8),
        "segmentation": {"size": [50, 140], "counts": found.to_rle()[1]["counts"].decode()},
        "area": 2000,
        "iscrowd": 0,
    }
    for annotation, mask in zip(annotations, make_masks(), strict=True):
        np.testing.assert_array_equal(decoded(annotation["segmentation"]), mask)
        assert annotation["area"] == mask.sum()
    assert "segmentation" not in boxes_only().to_coco(1)[0]


@pytest.mark.parametrize("image_id", [3, np.int64(3), np.uint8(3), "a3"])
def test_to_coco_writes_ids_as_json_has_them(image_id):
    for annotation in json.loads(json.dumps(instances().to_coco(image_id))):
        assert annotation["image_id"] == (image_id if isinstance(image_id, str) else 3)


@pytest.mark.parametrize("image_id", [None, 3.5, True, np.float32(3), [3], b"a3"])
def test_to_coco_names_a_wrong_image_id(image_id):
    with pytest.raises(TypeError, match=r"^image_id: got .*, expected an integer or a str$"):
        instances().to_coco(image_id)
    with pytest.raises(TypeError, match=r"^image_id: got"):
        Detections.empty((4, 4)).to_coco(image_id)


def test_to_coco_with_category_ids():
    found = instances()
    of_classes = {0: 5, 1: 90, 2: 3, 7: 44}
    expected = [of_classes[class_id] for class_id in COLUMNS["class_id"]]
    for ids in (of_classes, [5, 90, 3, 9, 9, 9, 9, 44], np.array([5, 90, 3, 9, 9, 9, 9, 44])):
        annotations = json.loads(json.dumps(found.to_coco(1, category_ids=ids)))
        assert [annotation["category_id"] for annotation in annotations] == expected
    with pytest.raises(
        ValueError, match=r"^category_ids: got none for class 7, expected an id of each class"
    ):
        found.to_coco(1, category_ids=[5, 90, 3])
    for ids, message in (([1.5] * 8, "1.5"), (3, "3"), ("abc", "'abc'"), ({0: "1"}, "'1'")):
        with pytest.raises(TypeError, match=f"^category_ids: got {message}"):
            found.to_coco(1, category_ids=ids)


def test_to_coco_knows_the_gaps_in_cocos_ids():
    specs = [fai_fast.spec(name) for name in fai_fast.models() if "coco" in name]
    assert len(specs) == 4
    for spec in specs:
        ids = spec.category_ids
        assert len(ids) == len(spec.classes) == 80
        assert list(ids) == sorted(set(ids))
        by_name = dict(zip(spec.classes, ids, strict=True))
        for name, expected in {
            "person": 1,
            "fire hydrant": 11,
            "stop sign": 13,
            "umbrella": 28,
            "toothbrush": 90,
        }.items():
            assert by_name[name] == expected
        found = Detections(
            xyxy=np.zeros((80, 4)),
            confidence=np.ones(80),
            class_id=range(80),
            size=SIZE,
            class_names=spec.classes,
        )
        assert [annotation["category_id"] for annotation in found.to_coco(1)] == list(ids)
        assert [a["category_id"] for a in found.to_coco(1, category_ids=range(80))] == list(range(80))
    assert fai_fast.spec("fai-mf-n-shapes").category_ids is None
    # Names in another order are not COCO's classes.
    other = instances(class_names=spec.classes[::-1])
    assert [annotation["category_id"] for annotation in other.to_coco(1)] == COLUMNS["class_id"]


def test_to_focoos():
    found = instances()
    result = found.to_focoos()
    assert json.loads(json.dumps(result)) == result
    assert result["latency"] is None
    masks = make_masks()
    for row, mask, class_id in zip(result["detections"], masks, COLUMNS["class_id"], strict=True):
        assert set(row) == {"bbox", "conf", "cls_id", "label", "mask"}
        assert row["cls_id"] == class_id
        png = Image.open(io.BytesIO(base64.b64decode(row["mask"])))
        assert (png.format, png.mode) == ("PNG", "1")
        pixels = np.asarray(png.convert("L"))
        x1, y1, x2, y2 = row["bbox"]
        assert all(type(edge) is int for edge in row["bbox"])
        assert pixels.shape == (y2 - y1 + 1, x2 - x1 + 1)
        pasted = np.zeros(SIZE, bool)
        pasted[y1 : y2 + 1, x1 : x2 + 1] = pixels == 255
        np.testing.assert_array_equal(pasted, mask)
    assert [row["bbox"] for row in result["detections"]] == [
        [60, 3, 69, 19],
        [100, 0, 139, 49],
        [7, 30, 7, 30],
        [2, 30, 128, 46],
        [0, 0, 0, 0],
    ]
    assert [row["label"] for row in result["detections"]] == ["person", "car", "person", "7", "dog"]
    assert [row["conf"] for row in result["detections"]] == pytest.approx(COLUMNS["confidence"])


def test_to_focoos_of_boxes():
    boxes = [[0.5, 1, 3.5, 4], [0, 0, 140, 50], [-5, -5, 500, 500], [200, 60, 300, 70], [10, 10, 10, 10]]
    rows = boxes_only(xyxy=boxes).to_focoos()["detections"]
    assert [row["bbox"] for row in rows] == [
        [0, 1, 3, 3],
        [0, 0, 139, 49],
        [0, 0, 139, 49],
        [139, 49, 139, 49],
        [10, 10, 10, 10],
    ]
    assert {row["mask"] for row in rows} == {None}


def test_focoos_box_is_the_masks():
    # A detector's box may cut its mask; the format's readers paste the PNG into the box.
    row = instances(xyxy=np.tile([[1.0, 2, 3, 4]], (5, 1))).to_focoos()["detections"][1]
    assert row["bbox"] == [100, 0, 139, 49]


# ---------------------------------------------------------------------------------------------- supervision


def test_to_supervision(found):
    result = found.to_supervision()
    assert isinstance(result, sv.Detections)
    np.testing.assert_array_equal(result.xyxy, found.xyxy)
    np.testing.assert_array_equal(result.confidence, found.confidence)
    np.testing.assert_array_equal(result.class_id, found.class_id)
    np.testing.assert_array_equal(result.data["class_name"], found.class_name)
    np.testing.assert_array_equal(result.area, found.area)
    if found.mask is not None:
        np.testing.assert_array_equal(result.mask, found.mask)
    result.xyxy += 1  # its arrays are its own
    result.class_id += 1
    assert found == back(found.to_supervision(), found)


def back(result, found):
    """With what is the frame's and not the rows'."""
    return Detections.from_supervision(result, size=found.size, class_names=found.class_names)


@pytest.mark.parametrize("tracked", [False, True])
def test_supervision_round_trip(found, tracked):
    if tracked:
        found = found.with_tracker_id(range(len(found)))
    result = found.to_supervision()
    assert back(result, found) == found
    some = back(result[result.confidence > 0.7], found)
    assert some == found[found.confidence > 0.7]
    for index in (0, [2, 0], slice(None, None, -1)):
        assert back(result[index], found) == found[index]
    if found.label_map is not None:
        np.testing.assert_array_equal(some.label_map, found[found.confidence > 0.7].label_map)
    nothing = back(result[np.zeros(len(found), bool)], found)
    assert (len(nothing), nothing.size, nothing.label_map) == (0, SIZE, None)
    assert len(back(found[:0].to_supervision(), found)) == 0


def test_supervision_tells_size_and_names_as_far_as_rows_do():
    assert Detections.from_supervision(instances().to_supervision()) == instances()
    assert Detections.from_supervision(instances(class_names=None).to_supervision()) == instances(
        class_names=None
    )
    without_dog = instances()[[0, 1]].to_supervision()
    assert Detections.from_supervision(without_dog).class_names == ("person", "car")
    with pytest.raises(ValueError, match=r"^size: got None, expected \(height, width\): there are no masks"):
        Detections.from_supervision(boxes_only().to_supervision())


def cross(flip):
    """A semantic result of two classes, in the upper and the lower half."""
    rows = np.repeat([flip, 1 - flip], 10).astype(np.uint8)
    return Detections(
        xyxy=[[0, 0, 30, 10], [0, 10, 30, 20]],
        confidence=[0.9, 0.8],
        class_id=[0, 1],
        size=(20, 30),
        query=[0, 1],
        label_source=rows[:, None] * np.ones((1, 30), np.uint8),
    )


def whole_frame(names, class_id=0):
    return Detections(
        xyxy=[[0, 0, 30, 20]],
        confidence=[0.9],
        class_id=[class_id],
        size=(20, 30),
        class_names=names,
        mask=np.ones((1, 20, 30), bool),
    )


MERGES = {
    "two frames, semantic": (cross(0), cross(1)),
    "two models, one frame": (whole_frame(["cat"]), whole_frame(["car"])),
    "semantic and instance": (cross(0), whole_frame(None)),
    "one without rows": (cross(0), cross(1)[:0]),
    "boxes of two sizes": tuple(
        Detections(xyxy=[[0, 0, 2, 2]], confidence=[0.5], class_id=[0], size=size)
        for size in ((20, 30), (40, 60))
    ),
}


@pytest.mark.parametrize("name", MERGES)
def test_supervision_merges_any_two_and_they_come_back(name):
    parts = MERGES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = sv.Detections.merge([part.to_supervision() for part in parts])
    assert merged.metadata == {}
    assert len(merged) == sum(map(len, parts))
    came = Detections.from_supervision(merged, size=None if merged.mask is not None else (40, 60))
    assert came.query.tolist() == [query for part in parts for query in part.query.tolist()]
    if merged.mask is not None:
        np.testing.assert_array_equal(came.mask, np.concatenate([part.mask for part in parts]))
    assert (came.label_map is None) == (name != "one without rows")
    if name == "two models, one frame":
        assert came.class_name.tolist() == ["0", "0"]  # which of the two names it is, nothing tells


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("side", [64, 60])
def test_supervisions_slicer_gives_results_of_the_whole_picture(masks, side):
    """Tiles of one size and, at the edges of the picture, of several."""
    picture = np.zeros((128, 192, 3), np.uint8)
    picture[30:50, 10:40], picture[100:120, 130:170] = 1, 2

    def find(part):
        kinds = [kind for kind in (1, 2) if (part == kind).any()]
        found = (
            np.stack([(part == kind)[..., 0] for kind in kinds])
            if kinds
            else np.zeros((0, *part.shape[:2]), bool)
        )
        return Detections(
            xyxy=boxes_of(found),
            confidence=[0.9] * len(kinds),
            class_id=[kind - 1 for kind in kinds],
            size=part.shape[:2],
            class_names=("first", "second"),
            mask=found if masks else None,
        ).to_supervision()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = sv.InferenceSlicer(callback=find, slice_wh=side, overlap_wh=0)(picture)
    came = Detections.from_supervision(merged, size=None if masks else picture.shape[:2])
    assert came.size == (128, 192)
    assert came.class_names == ("first", "second")
    if masks:
        for class_id in (0, 1):
            union = came[came.class_id == class_id].mask.any(axis=0)
            np.testing.assert_array_equal(union, picture[..., 0] == class_id + 1)
    else:
        assert came.xyxy[:, 2].max() == 170
        assert came.xyxy[:, 3].max() == 120


def test_supervision_with_changed_masks():
    result = semantic().to_supervision()
    result.mask[0] ^= True
    changed = Detections.from_supervision(result)
    np.testing.assert_array_equal(changed.mask, result.mask)
    assert changed.label_map is None


def test_supervision_merge_comes_back():
    found = instances()
    merged = sv.Detections.merge([found[:2].to_supervision(), found[2:].to_supervision()])
    assert Detections.from_supervision(merged) == found


def test_supervision_of_others():
    masks = make_masks()[:3]
    bare = sv.Detections(xyxy=boxes_of(masks), mask=masks)
    found = Detections.from_supervision(bare)
    assert found.size == SIZE
    assert found.class_id.tolist() == [-1] * 3
    assert found.confidence.tolist() == [1] * 3
    assert found.class_names is None
    np.testing.assert_array_equal(found.mask, masks)
    assert Detections.from_supervision(bare, class_names=NAMES).class_names == NAMES

    boxes = sv.Detections(
        xyxy=np.array([[1.0, 2, 3, 4]]),
        class_id=np.array([2]),
        confidence=np.array([0.5]),
        data={"class_name": np.array(["dog"])},
    )
    with pytest.raises(ValueError, match="size"):
        Detections.from_supervision(boxes)
    found = Detections.from_supervision(boxes, size=SIZE)
    assert found.class_names == ("0", "1", "dog")
    assert found.mask is None
    assert found.query.tolist() == [-1]
    with pytest.raises(ValueError, match="mask"):
        Detections.from_supervision(bare, size=(140, 50))
    with pytest.raises(TypeError, match="detections"):
        Detections.from_supervision([1])
    assert Detections.from_supervision(sv.Detections.empty(), size=SIZE).is_empty()


def test_plot(found):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    before = image.copy()
    picture = found.plot(image)
    np.testing.assert_array_equal(image, before)
    assert picture.dtype == np.uint8
    assert picture.shape[0] == image.shape[0]
    assert (picture.shape[1] > image.shape[1]) == (found.label_map is not None)
    assert not np.shares_memory(picture, image)
    assert (picture[:, : image.shape[1]] != image).any()
    np.testing.assert_array_equal(found.plot(Image.fromarray(image)), picture)
    image.flags.writeable = False
    np.testing.assert_array_equal(found.plot(image), picture)
    np.testing.assert_array_equal(found[:0].plot(image, labels=False), image)


def test_plot_takes_the_options_of_draw():
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    found = instances()
    for options in ({}, {"opacity": 0.1}, {"boxes": False, "labels": False}, {"color_by": "instance"}):
        np.testing.assert_array_equal(found.plot(image, **options), render.draw(image, found, **options))
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    np.testing.assert_array_equal(found.plot(bgr, color="bgr")[:, :, ::-1], found.plot(image))


def test_plot_of_unknown_classes_and_trackers():
    image = np.zeros((*SIZE, 3), np.uint8)
    unknown = boxes_only(class_id=[-1] * 5)
    assert unknown.plot(image).any()
    assert (unknown.with_tracker_id(range(5)).plot(image) != unknown.plot(image)).any()


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (None, ValueError),
        ("street.jpg", TypeError),
        (np.zeros((*SIZE, 3), np.float32), TypeError),
        (np.zeros(SIZE, np.uint8), ValueError),
        (np.zeros((*SIZE, 4), np.uint8), ValueError),
        (np.zeros((140, 50, 3), np.uint8), ValueError),
        (Image.new("RGB", (50, 140)), ValueError),
    ],
)
def test_plot_refuses(image, error):
    with pytest.raises(error, match="image"):
        instances().plot(image)


# ------------------------------------------------------------------------------------------- optional extras


@pytest.mark.parametrize(
    ("missing", "extra", "use"),
    [
        ("cv2", "polygons", lambda d: d.to_polygons()),
        ("PIL", "focoos", lambda d: type(d).from_focoos(d.to_focoos())),
        ("supervision", "plot", lambda d: d.to_supervision()),
    ],
)
def test_missing_extra_says_how_to_install_it(monkeypatch, missing, extra, use):
    for name in list(sys.modules):
        if name.partition(".")[0] == missing:
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"pip install 'fai-fast\[{extra}\]'"):
        use(instances())


def test_import_needs_numpy_alone():
    others = "{'cv2', 'PIL', 'supervision', 'torch', 'pycocotools'}"
    code = f"import sys, fai_fast.detections; sys.exit(len({others} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
