"""FocoosAI's JSON: what its readers make of ours, what we make of theirs, and of what is neither."""

from __future__ import annotations

import base64
import copy
import io
import json
import struct
import types
import zlib

import numpy as np
import pytest
from fai_fast import Detections, Latency, PackedMasks
from PIL import Image

SIZE = (61, 150)
NAMES = ("cat", "dog", "bird")


def masks(n=8, seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[: size[0], : size[1]]
    stack = np.empty((n, *size), bool)
    for mask in stack:
        y, x = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        mask[:] = np.hypot(yy - y, (xx - x) * 0.7) < rng.uniform(2, 30)
        mask |= rng.random(size) < 0.01
    return stack


def found(stack, **options):
    rng = np.random.default_rng(1)
    n = len(stack)
    return Detections(
        xyxy=PackedMasks.from_bool(stack).boxes,
        confidence=np.sort(rng.random(n))[::-1],
        class_id=rng.integers(0, 3, n),
        size=stack.shape[1:],
        class_names=NAMES,
        mask=stack,
        **options,
    )


def timed(result, latency):
    return result[:]._with_latency(latency)


def theirs(document, size):
    """The masks that FocoosAI's library makes of a result: each PNG, above 0, goes to the corner of its box."""
    cv2 = pytest.importorskip("cv2")
    stack = np.zeros((len(document["detections"]), *size), bool)
    for mask, row in zip(stack, document["detections"], strict=True):
        pixels = (
            cv2.imdecode(np.frombuffer(base64.b64decode(row["mask"]), np.uint8), cv2.IMREAD_GRAYSCALE) > 0
        )
        x1, y1, _, _ = row["bbox"]
        mask[y1 : y1 + pixels.shape[0], x1 : x1 + pixels.shape[1]] = pixels
    return stack


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 200])
def test_their_reader_sees_our_masks(seed, width):
    stack = masks(6, seed, (40, width))
    stack = stack[stack.any((1, 2))]
    np.testing.assert_array_equal(theirs(found(stack).to_focoos(), (40, width)), stack)


def test_their_fields():
    """Of their classes: {bbox, conf, cls_id, label, mask} in a list "detections", and the seconds of three stages."""
    latency = Latency(decode=1.5, preprocess=0.5, engine=20.25, postprocess=3.0)
    document = timed(found(masks()), latency).to_focoos()
    assert json.loads(json.dumps(document)) == document
    assert document["latency"] == pytest.approx(
        {"inference": 0.02025, "preprocess": 0.002, "postprocess": 0.003}
    )
    for row in document["detections"]:
        assert list(row) == ["bbox", "conf", "cls_id", "label", "mask"]
        kinds = [type(value) for value in row.values()]
        assert kinds == [list, float, int, str, str]
        assert {type(edge) for edge in row["bbox"]} == {int}
    ids = found(masks()).with_tracker_id(np.arange(8) + 5).to_focoos()
    assert [row["tracker_id"] for row in ids["detections"]] == list(range(5, 13))


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_what_the_format_has_comes_back(seed, text):
    stack = masks(seed=seed)
    stack[2] = False
    result = timed(found(stack).with_tracker_id(np.arange(8)), Latency(0.0, 1.5, 20.0, 2.25))
    document = result.to_focoos()
    back = Detections.from_focoos(json.dumps(document) if text else document, size=SIZE, class_names=NAMES)
    # A mask without pixels has a box of one pixel.
    expected = result.packed.boxes.copy()
    expected[2] = [0, 0, 1, 1]
    np.testing.assert_array_equal(back.xyxy, expected)
    for name in ("confidence", "class_id", "tracker_id"):
        np.testing.assert_array_equal(getattr(back, name), getattr(result, name))
    assert back.packed == result.packed
    assert (back.size, back.class_names) == (SIZE, NAMES)
    assert back.latency == pytest.approx(result.latency)
    assert back.to_focoos() == document


def test_boxes_come_back():
    boxes = Detections(
        xyxy=[[0, 0, 4, 2], [3, 1, 8, 6]],
        confidence=[0.5, 0.25],
        class_id=[1, 0],
        size=(6, 8),
        class_names=["a", "b"],
    )
    assert Detections.from_focoos(boxes.to_focoos(), size=(6, 8)) == boxes
    assert Detections.from_focoos(boxes.to_focoos()) == boxes  # the least frame
    empty = Detections.from_focoos({"detections": [], "latency": None}, size=(6, 8))
    assert len(empty) == 0
    assert empty.size == (6, 8)


def test_a_semantic_result_comes_back_as_masks():
    segments = np.repeat(np.arange(6, dtype=np.uint8)[:, None], 9, 1)
    result = Detections(
        xyxy=[[0, 1, 9, 2], [0, 4, 9, 5]], confidence=[0.9, 0.8], class_id=[0, 1], query=[1, 4], size=(6, 9),
        class_names=["a", "b"], label_source=segments,
    )  # fmt: skip
    back = Detections.from_focoos(result.to_focoos(), size=(6, 9))
    np.testing.assert_array_equal(back.mask, result.mask)
    assert back.label_map is None
    assert back.query.tolist() == [-1, -1]


def png(pixels, mode="L"):
    file = io.BytesIO()
    picture = Image.fromarray(pixels.astype(np.uint8) * 255)
    (picture if mode == "L" else picture.convert(mode)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def row_of(mask, cut, **fields):
    """A detection as a version of FocoosAI's library writes it, which cuts its masks by `cut`."""
    y, x = np.nonzero(mask)
    x1, y1, x2, y2 = (int(edge) for edge in (x.min(), y.min(), x.max(), y.max()))
    text = png(mask[cut(x1, y1, x2, y2)])
    return {"bbox": [x1, y1, x2, y2], "conf": 0.87, "cls_id": 1, "label": "dog", "mask": text, **fields}


def test_masks_of_their_versions():
    def lost(x1, y1, x2, y2):
        return np.s_[y1:y2, x1:x2]

    def padded(x1, y1, x2, y2):
        return np.s_[max(y1 - 1, 0) : min(y2 + 2, SIZE[0]), max(x1 - 1, 0) : min(x2 + 2, SIZE[1])]

    stack = masks(40, 3)
    corners = np.zeros((4, *SIZE), bool)
    corners[0, :5, :9] = corners[1, -5:, -9:] = corners[2, 1:-1, 1:-1] = corners[3] = True
    for mask in [*corners, *stack]:
        y, x = np.nonzero(mask)
        if x.min() == x.max() or y.min() == y.max():
            continue
        [whole] = Detections.from_focoos({"detections": [row_of(mask, padded)]}, size=SIZE)
        np.testing.assert_array_equal(whole.mask[0], mask)
        [cut] = Detections.from_focoos({"detections": [row_of(mask, lost)]}, size=SIZE)
        expected = mask.copy()
        expected[y.max()] = expected[:, x.max()] = False
        np.testing.assert_array_equal(cut.mask[0], expected)
        assert cut.class_name.tolist() == ["dog"]


def test_objects_of_their_classes_and_older_files():
    row = row_of(masks()[0], lambda x1, y1, x2, y2: np.s_[y1 : y2 + 1, x1 : x2 + 1])
    row["bbox"] = [float(edge) + 0.25 for edge in row["bbox"]]
    whole = types.SimpleNamespace(model_dump=lambda: {"detections": [row], "latency": {"inference": 0.5}})
    result = Detections.from_focoos(whole, size=SIZE)
    np.testing.assert_array_equal(result.mask[0], masks()[0])
    assert result.latency == (0.0, 0.0, 500.0, 0.0)
    result = Detections.from_focoos(
        {"detections": [{**row, "mask": png(result.crops()[0], "RGB")}]}, size=SIZE
    )
    np.testing.assert_array_equal(result.mask[0], masks()[0])
    sparse = {"detections": [{"bbox": [1, 2, 3, 4]}]}
    [bare] = Detections.from_focoos(sparse)
    assert (bare.confidence.tolist(), bare.class_id.tolist(), bare.packed, bare.size) == (
        [1.0],
        [-1],
        None,
        (5, 4),
    )


def bomb(width, height):
    """A PNG of a few bytes that says it is of this size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    return base64.b64encode(content).decode()


GOOD = {"bbox": [1, 1, 4, 3], "conf": 0.5, "cls_id": 0, "label": "cat", "mask": png(np.ones((3, 4), bool))}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"bbox": None}, TypeError, r"^detections\[1\]\.bbox: got NoneType, expected \[x1, y1, x2, y2\]"),
        ({"bbox": [1, 2, 3]}, TypeError, r"\.bbox: got 3 values"),
        ({"bbox": [1, 2, 3, "4"]}, TypeError, r"\.bbox: got '4', expected a number"),
        ({"bbox": [1, 2, 3, float("nan")]}, ValueError, r"\.bbox: got nan"),
        ({"bbox": [4, 1, 1, 3]}, ValueError, r"\.bbox: got \[4, 1, 1, 3\], expected corners in a frame of 61 x 150"),
        ({"bbox": [1, 1, 150, 3]}, ValueError, r"\.bbox: got"),
        ({"bbox": [-1, 1, 4, 3]}, ValueError, r"\.bbox: got"),
        ({"bbox": [1, 1, 10**400, 3]}, ValueError, r"\.bbox: "),
        ({"conf": "high"}, TypeError, r"\.conf: got 'high'"),
        ({"conf": float("inf")}, ValueError, r"\.conf: "),
        ({"cls_id": 0.5}, TypeError, r"\.cls_id: got 0\.5"),
        ({"cls_id": -2}, ValueError, r"^class_id: got -2"),
        ({"cls_id": 2**70}, TypeError, r"^class_id: got dtype object, expected integers"),
        ({"label": 3}, TypeError, r"\.label: got int"),
        ({"label": "dog"}, ValueError, r"\[1\]\.label: got 'dog' for class 0, which is 'cat' in others"),
        ({"tracker_id": 4}, ValueError, r"^tracker_id: got some detections without one"),
        ({"tracker_id": "a"}, TypeError, r"\.tracker_id: got 'a'"),
        ({"mask": None}, ValueError, r"^mask: got 1 in 2 detections, expected one in all or in none"),
        ({"mask": 5}, TypeError, r"\.mask: got int, expected a base64 PNG"),
        ({"mask": "&&&&"}, ValueError, r"\.mask: got a text that is not base64"),
        ({"mask": "é"}, ValueError, r"\.mask: got a text that is not base64"),
        ({"mask": base64.b64encode(b"GIF89a" + bytes(40)).decode()}, ValueError, r"got 46 bytes that are not a PNG"),
        ({"mask": bomb(2**31 - 1, 2**31 - 1)}, ValueError, r"\.mask: got a PNG of 2147483647 x 2147483647 "),
        ({"mask": bomb(0, 0)}, ValueError, r"\.mask: got a PNG of 0 x 0"),
        ({"mask": bomb(9, 3)}, ValueError, r"\.mask: got a PNG of 3 x 9"),
        ({"mask": GOOD["mask"][:-40] + GOOD["mask"][-4:]}, ValueError, r"\.mask: got "),
    ],
)  # fmt: skip
def test_hostile_fields(change, error, text):
    document = {"detections": [GOOD, {**GOOD, **change}], "latency": None}
    before = copy.deepcopy(document)
    with pytest.raises(error, match=text):
        Detections.from_focoos(document, size=SIZE)
    assert repr(document) == repr(before)


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        (None, TypeError, r"^source: got NoneType, expected an object as FocoosAI's library writes it"),
        ([GOOD], TypeError, r"^source: got list"),
        ("{", ValueError, r"^source: got a text that is not JSON"),
        ("[" * 10**6, ValueError, r"^source: got a text that is not JSON"),
        (b"\xff\xfe\xff", ValueError, r"^source: got a text that is not JSON"),
        ("[]", TypeError, r"^source: got list"),
        ({}, TypeError, r"^detections: got NoneType, expected a list"),
        ({"detections": "abc"}, TypeError, r"^detections: got str"),
        ({"detections": [3]}, TypeError, r"^detections\[0\]: got int"),
        ({"detections": [None] * 70000}, ValueError, r"^detections: got 70000, expected at most 65536"),
        ({"detections": [], "latency": 3}, TypeError, r"^latency: got int"),
        ({"detections": [], "latency": {"inference": "x"}}, TypeError, r"^latency\.inference: got 'x'"),
    ],
)
def test_hostile_documents(source, error, text):
    with pytest.raises(error, match=text):
        Detections.from_focoos(source, size=SIZE)


def test_many_large_masks_are_refused_before_they_are_unpacked(monkeypatch):
    from fai_fast.detections import focoos

    monkeypatch.setattr(focoos, "_MOST_BYTES", 30)
    document = {"detections": [GOOD] * 2}
    assert len(Detections.from_focoos(document, size=SIZE)) == 2
    with pytest.raises(
        ValueError, match=r"^detections\[2\]\.mask: got more than 30 pixels with those before"
    ):
        Detections.from_focoos({"detections": [GOOD] * 3}, size=SIZE)
    with pytest.raises(ValueError, match=r"^size: "):
        Detections.from_focoos(document, size=(0, 4))
    with pytest.raises(TypeError, match=r"^class_names: "):
        Detections.from_focoos(document, class_names="cat")
