"""Files of labeling tools and trainers: what others read of ours, what comes back, and what is refused."""

from __future__ import annotations

import base64
import csv
import io
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from fai_fast import Detections, PackedMasks
from PIL import Image

SIZE = (70, 130)
NAMES = ("cat", "dog", "bird")


def masks(n=6, seed=0, size=SIZE, noise=0.0):
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[: size[0], : size[1]]
    stack = np.empty((n, *size), bool)
    for mask in stack:
        y, x = rng.uniform(5, size[0] - 5), rng.uniform(5, size[1] - 5)
        mask[:] = np.hypot(yy - y, (xx - x) * 0.7) < rng.uniform(5, 25)
        mask |= rng.random(size) < noise
    return stack


def found(stack, **options):
    rng = np.random.default_rng(1)
    n = len(stack)
    fields = {"query": rng.permutation(n), "class_names": NAMES, **options}
    return Detections(
        xyxy=PackedMasks.from_bool(stack).boxes,
        confidence=np.sort(rng.random(n))[::-1],
        class_id=rng.integers(0, 3, n),
        size=stack.shape[1:],
        mask=stack,
        **fields,
    )


def boxes():
    return Detections(
        xyxy=[[0, 0, 13, 7], [26, 14, 65, 35]],
        confidence=[0.75, 0.5],
        class_id=[1, 0],
        size=SIZE,
        class_names=NAMES,
    )


# ------------------------------------------------------------------------------------------------ JSON, COCO


@pytest.mark.parametrize("text", [False, True])
def test_json_comes_back(text):
    for result in (
        found(masks(noise=0.02)),
        found(masks()).with_tracker_id(np.arange(6)),
        boxes(),
        boxes()[:0],
    ):
        back = Detections.from_json(result.to_json()) if text else Detections.from_dict(result.to_dict())
        if len(result):
            assert back == result
        assert (back.size, back.class_names, len(back)) == (result.size, result.class_names, len(result))


def test_coco_comes_back():
    result = found(masks(noise=0.02), query=None)
    assert Detections.from_coco(result.to_coco(3), size=SIZE, class_names=NAMES) == result
    ids = {0: 10, 1: 5, 2: 7}
    annotations = json.loads(json.dumps(result.to_coco(3, category_ids=ids)))
    assert {item["category_id"] for item in annotations} <= {10, 5, 7}
    assert Detections.from_coco(annotations, size=SIZE, class_names=NAMES, category_ids=ids) == result
    assert Detections.from_coco(boxes().to_coco(1), size=SIZE, class_names=NAMES) == boxes()


def test_cocos_own_category_ids_come_back():
    from fai_fast._coco import CATEGORIES

    result = Detections(
        xyxy=[[0, 0, 4, 2]], confidence=[0.5], class_id=[11], size=(6, 8), class_names=tuple(CATEGORIES)
    )
    [annotation] = result.to_coco(1)
    assert annotation["category_id"] == 13
    assert Detections.from_coco([annotation], size=(6, 8), class_names=tuple(CATEGORIES)) == result


def test_run_lengths_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    for seed, noise in ((0, 0), (1, 0.3), (2, 0.9)):
        for stack in (
            masks(3, seed, noise=noise),
            np.ones((3, 1, 1), bool),
            masks(3, seed, (11, 13), 0.5),
            np.ones((1, 700, 900), bool),
        ):
            items = []
            for mask in stack:
                rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
                counts, value = [], False
                for pixel in mask.T.ravel().tolist():
                    if not counts or pixel != value:
                        counts += [0] if not counts and pixel else []
                        counts.append(0)
                        value = pixel
                    counts[-1] += 1
                items.append({"category_id": 0, "bbox": [0, 0, 1, 1], "segmentation": rle})
                items.append({**items[-1], "segmentation": {"size": list(mask.shape), "counts": counts}})
            back = Detections.from_coco(items, size=stack.shape[1:])
            np.testing.assert_array_equal(back.mask, np.repeat(stack, 2, 0))


def test_polygons_of_coco():
    pytest.importorskip("cv2")
    item = {
        "category_id": 0,
        "bbox": [2, 3, 5, 4],
        "segmentation": [[2, 3, 6, 3, 6, 6, 2, 6], [10, 10, 12, 10, 12, 12]],
    }
    mask = Detections.from_coco([item], size=(20, 20)).mask[0]
    assert mask[3:7, 2:7].all()
    assert mask[10, 10:13].all()
    assert mask.sum() == 20 + 6


# --------------------------------------------------------------------------------------------------- polygons


def agree(ours, expected, least=0.97):
    for a, b in zip(ours, expected, strict=True):
        assert (a & b).sum() / (a | b).sum() > least


def test_yolo_comes_back():
    pytest.importorskip("cv2")
    result = found(masks(8))
    for confidence in (False, True):
        text = result.to_yolo(confidence=confidence)
        assert len(text.splitlines()) == 8
        back = Detections.from_yolo(text, size=SIZE, class_names=NAMES)
        np.testing.assert_array_equal(back.mask, result.mask)
        np.testing.assert_array_equal(back.class_id, result.class_id)
        np.testing.assert_allclose(back.xyxy, result.xyxy, atol=1e-4)
        expected = result.confidence if confidence else np.ones(8)
        np.testing.assert_allclose(back.confidence, expected, rtol=1e-5)
    again = Detections.from_yolo(boxes().to_yolo(confidence=True), size=SIZE, class_names=NAMES)
    np.testing.assert_allclose(again.xyxy, boxes().xyxy, atol=1e-3)
    assert again.packed is None


def test_the_parts_of_a_mask_are_one_line():
    pytest.importorskip("cv2")
    mask = np.zeros((1, *SIZE), bool)
    mask[0, 5:25, 5:25] = mask[0, 40:60, 30:60] = mask[0, 10:30, 80:110] = True
    [line] = found(mask).to_yolo().splitlines()
    assert len(line.split()) % 2 == 1
    back = Detections.from_yolo(line, size=SIZE).mask[0]
    assert (back & mask[0]).sum() == mask.sum()
    assert back.sum() < mask.sum() + 2 * sum(SIZE)  # the ways between them


@pytest.mark.parametrize("exact", [False, True])
def test_labelme_comes_back(exact):
    pytest.importorskip("cv2")
    stack = masks(5, 2)
    stack[0, 20:25, 40:46] = False  # a hole, perhaps
    stack[1, 2:6, 100:110] = True  # another part
    result = found(stack)
    document = json.loads(json.dumps(result.to_labelme("a.jpg", exact=exact)))
    assert {shape["shape_type"] for shape in document["shapes"]} == {"mask" if exact else "polygon"}
    assert (document["imageHeight"], document["imageWidth"], document["imagePath"]) == (*SIZE, "a.jpg")
    for given in (document, json.dumps(document)):
        back = Detections.from_labelme(given, class_names=NAMES)
        assert len(back) == 5
        np.testing.assert_array_equal(back.class_id, result.class_id)
        np.testing.assert_allclose(back.confidence, result.confidence, rtol=1e-5)
        if exact:
            assert back.packed == result.packed
            np.testing.assert_array_equal(back.xyxy, result.xyxy)
        else:
            agree(back.mask, result.mask, 0.9)
    own = Detections.from_labelme(document)
    assert own.class_name.tolist() == result.class_name.tolist()
    again = Detections.from_labelme(boxes().to_labelme("b.jpg"), class_names=NAMES)
    assert again == boxes()


# ----------------------------------------------------------------------------------------------- label images


@pytest.mark.parametrize("largest", [2, 254, 255, 3000])
def test_label_images(largest, tmp_path):
    stack = masks(4, 3)
    result = found(stack, class_names=None)
    classes = np.array([0, 1, 2, largest])
    result = Detections(
        xyxy=result.xyxy, confidence=result.confidence, class_id=classes, size=SIZE, mask=stack
    )
    expected = np.full(SIZE, 255 if largest < 255 else 65535)
    for mask, class_id in list(zip(stack, classes, strict=True))[::-1]:
        expected[mask] = class_id
    image = result.to_label_image()
    assert image.dtype == (np.uint8 if largest < 255 else np.uint16)
    np.testing.assert_array_equal(image, expected)
    content = result.to_label_png()
    (tmp_path / "a.png").write_bytes(content)
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected)
    nobody = 255 if largest < 255 else 65535
    back = Detections.from_label_png(content)
    np.testing.assert_array_equal(back.label_map, np.where(expected == nobody, -1, expected))
    rows = result.to_label_image(values="row")
    np.testing.assert_array_equal(rows > 0, stack.any(0))
    assert rows[stack[0]].max() == rows[stack[0]].min() == 1


def test_a_semantic_result_comes_back_from_its_label_png():
    segments = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 5, (7, 13)), 10, 0), 10, 1).astype(
        np.uint8
    )
    segments[3:9, 4:8] = 255
    result = Detections.from_label_png(
        base64.b64decode(base64.b64encode(gray(segments))), class_names=[f"c{i}" for i in range(5)]
    )
    np.testing.assert_array_equal(result.label_map, np.where(segments == 255, -1, segments.astype(int)))
    assert Detections.from_label_png(result.to_label_png(), class_names=result.class_names) == result


def gray(pixels, mode=None):
    file = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture if mode is None else picture.convert(mode)).save(file, "PNG")
    return file.getvalue()


# ------------------------------------------------------------------------------------------------------ tables


def test_csv_is_what_a_reader_expects():
    names = ("cat, or dog", 'a "b"', "c")
    result = found(masks(), class_names=names).with_tracker_id(np.arange(6))
    text = result.to_csv(file="a,b.jpg", time="2026-11-26T11:40:00Z")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 6
    for row, ours, rle in zip(rows, result.rows(), result.to_rle(), strict=True):
        assert (row["file"], row["time"]) == ("a,b.jpg", "2026-11-26T11:40:00Z")
        assert row["class_name"] == ours.class_name
        assert float(row["confidence"]) == ours.confidence
        assert tuple(float(row[edge]) for edge in ("x1", "y1", "x2", "y2")) == ours.xyxy
        assert (int(row["row"]), int(row["class_id"]), int(row["area"])) == (
            ours.index,
            ours.class_id,
            ours.area,
        )
        assert int(row["tracker_id"]) == ours.tracker_id
        assert row["rle"].encode() == rle["counts"]
    assert boxes().to_csv(header=False).splitlines()[0] == ",,0,1,dog,0.75,0.0,0.0,13.0,7.0,91.0,,"


def test_a_line_of_json_has_file_and_time():
    result = found(masks())
    line = result.to_json_line(file="a.jpg", time=1.5)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    content = json.loads(line)
    assert (content.pop("file"), content.pop("time")) == ("a.jpg", 1.5)
    assert content == result.to_dict()
    assert Detections.from_json(line) == result


def test_compact_masks_of_supervision():
    supervision = pytest.importorskip("supervision")
    if not hasattr(supervision, "CompactMask"):
        pytest.skip("this supervision has no CompactMask")
    stack = masks(noise=0.01)
    stack[2] = False
    result = found(stack)
    compact = result.to_supervision(compact=True)
    assert isinstance(compact.mask, supervision.CompactMask)
    np.testing.assert_array_equal(np.asarray(compact.mask), stack)
    assert Detections.from_supervision(compact, class_names=NAMES) == result
    assert Detections.from_supervision(compact[[3, 0]], class_names=NAMES) == result[[3, 0]]
    assert boxes().to_supervision(compact=True).mask is None


# ----------------------------------------------------------------------------------------------------- refused


RLE = {"size": list(SIZE), "counts": [0, SIZE[0] * SIZE[1]]}
ROW = {"category_id": 0, "bbox": [0, 0, 1, 1], "segmentation": RLE}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"bbox": [1, 2, 3]}, ValueError, r"^annotations\[0\]\.bbox: got 3 numbers, expected 4"),
        ({"bbox": "abcd"}, TypeError, r"\.bbox: got str, expected a list"),
        ({"category_id": "a"}, TypeError, r"\.category_id: got 'a'"),
        ({"score": None}, TypeError, r"\.score: got None"),
        ({"segmentation": 3}, TypeError, r"\.segmentation: got int, expected a list"),
        (
            {"segmentation": [[1, 2, 3, 4]]},
            ValueError,
            r"\.segmentation: got 4 numbers, expected x and y of three",
        ),
        (
            {"segmentation": {**RLE, "size": [10**9, 10**9]}},
            ValueError,
            r"\.segmentation\.size: got \[1000000000",
        ),
        (
            {"segmentation": {**RLE, "counts": [1]}},
            ValueError,
            r"\.counts: got runs of another number of pixels",
        ),
        ({"segmentation": {**RLE, "counts": [-1, 9101]}}, ValueError, r"\.counts: got runs"),
        ({"segmentation": {**RLE, "counts": ["1"]}}, TypeError, r"\.counts: got '1'"),
        ({"segmentation": {**RLE, "counts": "\x01"}}, ValueError, r"\.counts: got a text that is not"),
        ({"segmentation": {**RLE, "counts": "o"}}, ValueError, r"\.counts: got a text that is not"),
        ({"segmentation": {**RLE, "counts": "o" * 40 + "1"}}, ValueError, r"\.counts: got a run of more"),
        ({"segmentation": {**RLE, "counts": "é"}}, ValueError, r"\.counts: got a text"),
        ({"segmentation": {**RLE, "counts": None}}, TypeError, r"\.counts: got NoneType"),
        ({"segmentation": {**RLE, "size": 5}}, ValueError, r"\.size: got 5, expected \["),
    ],
)
def test_coco_that_is_none(change, error, text):
    assert len(Detections.from_coco([ROW], size=SIZE)) == 1
    with pytest.raises(error, match=text):
        Detections.from_coco([{**ROW, **change}], size=SIZE)


def bomb(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


MASK_SHAPE = {"label": "a", "points": [[0, 0], [3, 2]], "shape_type": "mask"}


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Detections.from_dict(3), TypeError, r"^content: got int, expected an object"),
        (lambda: Detections.from_json("{"), ValueError, r"^content: got a text that is not JSON"),
        (lambda: Detections.from_dict({"size": [1, 2]}), TypeError, r"^detections: got NoneType, expected a list"),
        (lambda: Detections.from_dict({"size": None, "detections": []}), TypeError, r"^size: "),
        (
            lambda: Detections.from_dict({"size": [9, 9], "detections": [{"xyxy": [0, 0, 1, 1]}]}),
            TypeError,
            r"^detections\[0\]\.confidence: got None",
        ),
        (lambda: Detections.from_yolo(b"0 1 1", size=SIZE), TypeError, r"^text: got bytes"),
        (lambda: Detections.from_yolo("0 1 1\n", size=SIZE), ValueError, r"^text: line 1 has 2 numbers"),
        (lambda: Detections.from_yolo("a 1 1 1 1\n", size=SIZE), ValueError, r"^text: line 1 has what is not a number"),
        (lambda: Detections.from_yolo("0 nan 1 1 1\n", size=SIZE), ValueError, r"^text: line 1 has NaN"),
        (lambda: Detections.from_labelme({"imageHeight": 9}), TypeError, r"^imageHeight, imageWidth: got None"),
        (
            lambda: labelme({"label": 3, "points": []}), TypeError, r"^shapes\[0\]\.label: got int"
        ),
        (
            lambda: labelme({"label": "a", "points": [[1, 2]], "shape_type": "circle"}),
            ValueError,
            r"^shapes\[0\]: got shape_type 'circle' of 1 points",
        ),
        (lambda: labelme({**MASK_SHAPE, "mask": None}), TypeError, r"^shapes\[0\]\.mask: got NoneType"),
        (lambda: labelme({**MASK_SHAPE, "mask": "&"}), ValueError, r"\.mask: got a text that is not base64"),
        (
            lambda: labelme({**MASK_SHAPE, "mask": base64.b64encode(bomb(2**30, 2**30)).decode()}),
            ValueError,
            r"\.mask: got a PNG of 1073741824 x 1073741824 pixels, expected 3 x 4",
        ),
        (
            lambda: labelme({**MASK_SHAPE, "points": [[0, 0], [30, 2]], "mask": ""}),
            ValueError,
            r"\.mask: got corners outside",
        ),
        (
            lambda: Detections.from_labelme(found(masks()).to_labelme("a", exact=True), class_names=["x"]),
            ValueError,
            r"^shapes: got label '\w+', expected one of class_names",
        ),
        (lambda: Detections.from_label_png("a.png"), TypeError, r"^content: got str, expected the bytes of a PNG"),
        (lambda: Detections.from_label_png(b"GIF"), ValueError, r"^content: got 3 bytes that are not a PNG"),
        (lambda: Detections.from_label_png(bomb(2**30, 2**30)), ValueError, r"^content: got a PNG of .* at most"),
        (lambda: Detections.from_label_png(bomb(300, 300)), ValueError, r"^content: got a damaged PNG"),
        (
            lambda: Detections.from_label_png(gray(np.zeros((4, 4, 3), np.uint8))),
            ValueError,
            r"^content: got a PNG of mode RGB, expected gray",
        ),
        (
            lambda: Detections(xyxy=[[0, 0, 1, 1]], confidence=[1], class_id=[-1], size=SIZE).to_yolo(),
            ValueError,
            r"^class_id: got rows of class -1, expected",
        ),
        (lambda: boxes().to_label_png(), ValueError, r"^masks: these Detections hold boxes only"),
        (lambda: found(masks()).to_label_image(values="x"), ValueError, r"^values: got 'x'"),
    ],
)  # fmt: skip
def test_what_is_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()


def labelme(shape):
    return Detections.from_labelme({"imageHeight": 9, "imageWidth": 9, "shapes": [shape]})


RUNS_OF_A_LARGE_FRAME = [8000 * 4000, 3, 8000 * 4000 - 3]
OUTLINE = [[10, 10], [40, 10], [40, 30]]


@pytest.mark.parametrize(
    "read",
    [
        lambda size, n: Detections.from_yolo("0 .1 .1 .2 .1 .2 .15\n" * n, size=size),
        lambda size, n: Detections.from_coco(
            [{**ROW, "segmentation": [np.ravel(OUTLINE).tolist()]}] * n, size=size
        ),
        lambda size, n: Detections.from_coco(
            [{**ROW, "segmentation": {"size": list(size), "counts": RUNS_OF_A_LARGE_FRAME}}] * n, size=size
        ),
        lambda size, n: Detections.from_labelme(
            {
                "imageHeight": size[0],
                "imageWidth": size[1],
                "shapes": [{"label": "a", "points": OUTLINE, "shape_type": "polygon"}] * n
                + [
                    {"label": "b", "points": OUTLINE, "shape_type": "polygon", "group_id": i % 2}
                    for i in range(n)
                ],
            }
        ),
    ],
)
def test_small_masks_of_a_large_frame_take_little_memory(read):
    size, n = (8000, 8000), 50
    read(size, 1)
    tracemalloc.start()
    try:
        result = read(size, n)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(result) >= n
    assert result.area.min() > 0
    assert peak < size[0] * size[1]


def test_parts_of_one_group_are_united():
    one, other = [[0, 0], [3, 0], [3, 2], [0, 2]], [[70, 5], [72, 5], [72, 7], [70, 7]]
    shapes = [
        {"label": "a", "points": points, "shape_type": "polygon", "group_id": 7}
        for points in (one, other, one)
    ]
    result = Detections.from_labelme({"imageHeight": 9, "imageWidth": 80, "shapes": shapes})
    expected = np.zeros((1, 9, 80), bool)
    expected[0, :3, :4] = expected[0, 5:8, 70:73] = True
    assert (result.mask == expected).all()
    assert result.xyxy.tolist() == [[0, 0, 73, 8]]


@pytest.mark.parametrize(
    "counts", [[12 * 90], [0, 12 * 90], [5, 0, 12 * 90 - 5], [11, 2, 500, 1, 566], [12 * 90 - 1, 1]]
)
def test_run_lengths_begin_and_end_anywhere(counts):
    row = {**ROW, "segmentation": {"size": [12, 90], "counts": counts}}
    expected = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(90, 12).T
    assert (Detections.from_coco([row], size=(12, 90)).mask[0] == expected).all()
