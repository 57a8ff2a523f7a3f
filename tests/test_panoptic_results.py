"""Panoptic results: things and stuff in one label map, their files, and what is drawn and tracked of them."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zlib

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, Panoptic, render
from fai_fast._coco import CATEGORIES, STUFF, category_ids_of
from fai_fast.detections import panoptic
from PIL import Image

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import supervision as sv

SIZE = (6, 8)
NAMES = ("person", "car", "sky", "road")
#  Query 7 is the sky in two parts, 2 and 5 are cars, 0 won pixels and is no row, 255 is nobody's.
LABELS = np.array(
    [
        [7, 7, 7, 7, 7, 7, 7, 7],
        [7, 7, 2, 2, 7, 7, 7, 7],
        [255, 2, 2, 2, 2, 5, 5, 255],
        [255, 2, 2, 2, 2, 5, 5, 255],
        [0, 0, 3, 3, 3, 3, 7, 7],
        [0, 0, 3, 3, 3, 3, 7, 7],
    ],
    np.uint8,
)
QUERIES = [2, 7, 5, 3]
BOXES = [[1, 1, 5, 4], [0, 0, 8, 6], [5, 2, 7, 4], [2, 4, 6, 6]]


def found(dtype=np.uint8, **changes):
    labels = np.where(LABELS == 255, np.iinfo(dtype).max, LABELS).astype(dtype)
    fields = {
        "xyxy": BOXES,
        "confidence": [0.9, 0.8, 0.7, 0.6],
        "class_id": [1, 2, 1, 3],
        "query": QUERIES,
        "size": SIZE,
        "class_names": NAMES,
        "is_thing": [True, False, True, False],
        "label_source": labels,
    }
    return Detections(**{**fields, **changes})


def of_masks():
    """The same without its label map."""
    d = found()
    return Detections(
        xyxy=d.xyxy, confidence=d.confidence, class_id=d.class_id, query=d.query, size=SIZE, class_names=NAMES,
        is_thing=d.is_thing, packed=d.packed,
    )  # fmt: skip


def ids_of(png):
    """The ids of a PNG, by way of Pillow and the format's definition."""
    pixels = np.asarray(Image.open(io.BytesIO(png))).astype(int)
    assert pixels.shape[2] == 3
    return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]


EXPECTED_IDS = np.select([q == LABELS for q in QUERIES], [1, 2, 3, 4], 0)


# ------------------------------------------------------------------------------------------------------- rows


def test_rows_know_whether_they_are_things():
    d = found()
    assert d.is_thing.dtype == np.bool_
    assert d.is_thing.tolist() == [True, False, True, False]
    assert [row.is_thing for row in d.rows()] == [True, False, True, False]
    assert repr(d) == "Detections(4 in 6x8, 2 things and 2 stuff: car 2, sky 1, road 1)"
    assert str(d).splitlines()[0] == "4 detections in 6x8, 2 things and 2 stuff"
    assert repr(d[:1]) == "Detections(1 in 6x8, 1 thing and 0 stuff: car 1)"
    with pytest.raises(ValueError, match=r"read-only"):
        d.is_thing[0] = False


def test_other_results_do_not_say():
    d = found(is_thing=None)
    assert d.is_thing is None
    assert [row.is_thing for row in d.rows()] == [None] * 4
    assert repr(d) == "Detections(4 in 6x8: car 2, sky 1, road 1)"
    assert "is_thing" not in d.to_dict()["detections"][0]
    assert d != found()


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ([True], ValueError, r"^is_thing: got shape \(1,\)"),
        ([1, 0, 1, 0], TypeError, "^is_thing: got dtype int"),
        (["yes"] * 4, TypeError, "^is_thing: got dtype <U3"),
        ([[True, False, True, False]], ValueError, "^is_thing: got shape"),
    ],
)
def test_is_thing_is_checked(value, error, text):
    with pytest.raises(error, match=text):
        found(is_thing=value)


@pytest.mark.parametrize(
    ("select", "rows"),
    [
        (lambda d: d[[3, 0]], [3, 0]),
        (lambda d: d[d.is_thing], [0, 2]),
        (lambda d: d[2], [2]),
        (lambda d: d.filter(classes=["sky", "road"]), [1, 3]),
        (lambda d: d.top_k(3), [0, 1, 2]),
        (lambda d: d.nms(iou=0.0, class_agnostic=True), [0, 1, 2, 3]),
        (lambda d: d.clean(min_area=5), [0, 1, 3]),
        (lambda d: d.with_tracker_id([1, -1, 2, -1]), [0, 1, 2, 3]),
        (lambda d: pickle.loads(pickle.dumps(d)), [0, 1, 2, 3]),
        (lambda d: d.with_picture(np.zeros((*SIZE, 3), np.uint8)), [0, 1, 2, 3]),
    ],
)
def test_selections_keep_it(select, rows):
    d = select(found())
    assert d.is_thing.tolist() == found().is_thing[rows].tolist()
    assert d.class_id.tolist() == found().class_id[rows].tolist()


def test_a_label_map_has_the_class_of_each_pixel_and_void_is_minus_one():
    expected = np.select([q == LABELS for q in QUERIES], [1, 2, 1, 3], -1)
    np.testing.assert_array_equal(found().label_map, expected)
    # A class that is filtered out becomes void; nobody else gets its pixels.
    without = found().filter(classes=["car", "road"])
    np.testing.assert_array_equal(without.label_map, np.where(expected == 2, -1, expected))
    cleaned = found().clean(largest_part=True, min_area=1)
    lost = (LABELS == 7) & (np.arange(6)[:, None] >= 4)
    np.testing.assert_array_equal(cleaned.label_map, np.where(lost, -1, expected))


def test_merge_keeps_it_where_all_have_it():
    first, second = found()[:2], found()[2:]
    merged = Detections.merge([first, second, Detections.empty(SIZE)])
    assert merged.is_thing.tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match=r"is_thing"):
        Detections.merge([first, found(is_thing=None)])


def test_equality_counts_it():
    assert found() == found()
    assert found() != found(is_thing=[True, False, True, True])


# ----------------------------------------------------------------------------------------- files of COCO's


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_segment_map_numbers_rows_from_one(dtype):
    ids = found(dtype).segment_map()
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, EXPECTED_IDS)
    np.testing.assert_array_equal(
        found(dtype)[[3, 1]].segment_map(), np.choose(EXPECTED_IDS, [0, 0, 2, 0, 1])
    )
    np.testing.assert_array_equal(of_masks().segment_map(), EXPECTED_IDS)
    # Of a row that is there twice the first one has the pixels.
    np.testing.assert_array_equal(found(dtype)[[0, 0]].segment_map(), LABELS == 2)


def test_segment_map_of_what_is_not_panoptic():
    np.testing.assert_array_equal(found(is_thing=None).segment_map(), EXPECTED_IDS)
    boxes = Detections(xyxy=BOXES, confidence=[1] * 4, class_id=[0] * 4, size=SIZE)
    with pytest.raises(ValueError, match=r"boxes only"):
        boxes.segment_map()
    masks = np.zeros((2, *SIZE), bool)
    masks[0, :2], masks[1, 1:3] = True, True
    overlapping = Detections(
        xyxy=[[0, 0, 8, 2], [0, 1, 8, 3]], confidence=[0.5, 0.6], class_id=[0, 0], size=SIZE, mask=masks
    )
    assert overlapping.segment_map()[:, 0].tolist() == [1, 2, 2, 0, 0, 0]


def test_panoptic_png_is_what_cocos_format_says():
    np.testing.assert_array_equal(ids_of(found().panoptic_png()), EXPECTED_IDS)
    np.testing.assert_array_equal(ids_of(of_masks().panoptic_png()), EXPECTED_IDS)


def test_ids_above_a_byte_and_two():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 1 << 24, (40, 33))
    pixels = panoptic.image_of_ids(ids)
    np.testing.assert_array_equal(pixels.astype(int) @ [1, 256, 65536], ids)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    np.testing.assert_array_equal(panoptic.read_ids(file.getvalue(), "png"), ids)


def test_more_rows_than_a_byte_has_values():
    n = 700
    labels = np.arange(n, dtype=np.uint16).reshape(20, 35)
    ys, xs = np.divmod(np.arange(n), 35)
    d = Detections(
        xyxy=np.stack([xs, ys, xs + 1, ys + 1], 1), confidence=np.linspace(0.9, 0.1, n), class_id=np.arange(n),
        query=np.arange(n), size=(20, 35), label_source=labels, is_thing=np.arange(n) % 2 == 0,
    )  # fmt: skip
    np.testing.assert_array_equal(ids_of(d.panoptic_png()), labels.astype(int) + 1)
    record = d.to_coco_panoptic(1)
    assert [segment["id"] for segment in record["segments_info"]] == list(range(1, n + 1))
    assert Detections.from_coco_panoptic(record, d.panoptic_png()).is_thing.tolist() == d.is_thing.tolist()


def test_to_coco_panoptic():
    record = found().to_coco_panoptic(42, category_ids=[1, 3, 187, 149])
    expected = [
        {"id": 1, "category_id": 3, "isthing": 1, "area": 10, "bbox": [1, 1, 4, 3]},
        {"id": 2, "category_id": 187, "isthing": 0, "area": 18, "bbox": [0, 0, 8, 6]},
        {"id": 3, "category_id": 3, "isthing": 1, "area": 4, "bbox": [5, 2, 2, 2]},
        {"id": 4, "category_id": 149, "isthing": 0, "area": 8, "bbox": [2, 4, 4, 2]},
    ]
    scores = [0.9, 0.8, 0.7, 0.6]
    segments = [
        {**item, "iscrowd": 0, "score": pytest.approx(score)}
        for item, score in zip(expected, scores, strict=True)
    ]
    assert record == {"image_id": 42, "file_name": "42.png", "segments_info": segments}
    assert json.loads(json.dumps(record)) == record
    named = found().to_coco_panoptic("a", "folder/a.png", category_ids={1: 8, 2: 9, 3: 10})
    assert (named["image_id"], named["file_name"]) == ("a", "folder/a.png")
    assert [segment["category_id"] for segment in named["segments_info"]] == [8, 9, 8, 10]
    assert of_masks().to_coco_panoptic(42, category_ids=[1, 3, 187, 149]) == record


def test_rows_without_pixels_are_no_segments():
    d = found(query=[2, 7, 100, 3])
    record = d.to_coco_panoptic(1)
    assert [segment["id"] for segment in record["segments_info"]] == [1, 2, 4]
    assert set(np.unique(ids_of(d.panoptic_png()))) == {0, 1, 2, 4}


def test_an_empty_panoptic_result():
    d = found()[[]]
    assert d.is_thing.tolist() == []
    assert repr(d) == "Detections(0 in 6x8)"
    assert d.to_coco_panoptic(3)["segments_info"] == []
    assert not ids_of(d.panoptic_png()).any()
    again = Detections.from_coco_panoptic(d.to_coco_panoptic(3), d.panoptic_png())
    assert len(again) == 0
    assert again.is_thing.tolist() == []
    assert (again.label_map == -1).all()


def test_cocos_panoptic_categories():
    names = (*CATEGORIES, *STUFF)
    assert len(names) == 133
    ids = category_ids_of(names)
    assert (ids[names.index("person")], ids[names.index("banner")], ids[names.index("rug-merged")]) == (
        1,
        92,
        200,
    )
    assert len(set(ids)) == 133
    d = found(class_names=names, class_id=[2, 119, 2, 100])
    assert [segment["category_id"] for segment in d.to_coco_panoptic(1)["segments_info"]] == [
        3, 187, 3, ids[100],
    ]  # fmt: skip
    assert names[119] == "sky-other-merged"


@pytest.mark.parametrize("method", ["panoptic_png", "to_coco_panoptic"])
def test_what_is_not_panoptic_has_no_panoptic_files(method):
    arguments = (1,) if method == "to_coco_panoptic" else ()
    with pytest.raises(
        ValueError, match=f"^{method}: got a result that is not panoptic, expected one with is_thing"
    ):
        getattr(found(is_thing=None), method)(*arguments)
    boxes = Detections(xyxy=BOXES, confidence=[1] * 4, class_id=[0] * 4, size=SIZE, is_thing=[True] * 4)
    with pytest.raises(ValueError, match=r"boxes only"):
        getattr(boxes, method)(*arguments)


def test_arguments_of_to_coco_panoptic():
    with pytest.raises(TypeError, match=r"^image_id: got 1.5, expected an integer or a str"):
        found().to_coco_panoptic(1.5)
    with pytest.raises(TypeError, match=r"^file_name: got int, expected a str or None"):
        found().to_coco_panoptic(1, 2)
    with pytest.raises(ValueError, match=r"^category_ids: got none for class 2"):
        found().to_coco_panoptic(1, category_ids=[5, 6])


def test_from_coco_panoptic_gives_the_same_back():
    d = found()
    again = Detections.from_coco_panoptic(
        d.to_coco_panoptic(1, category_ids=[4, 3, 2, 1]),
        d.panoptic_png(),
        class_names=NAMES,
        category_ids=[4, 3, 2, 1],
    )
    np.testing.assert_array_equal(again.label_map, d.label_map)
    np.testing.assert_array_equal(again.mask, d.mask)
    assert again.query.tolist() == [0, 1, 2, 3]
    for name in ("xyxy", "confidence", "class_id", "is_thing"):
        np.testing.assert_array_equal(getattr(again, name), getattr(d, name))
    assert again.class_names == NAMES


def test_cocos_own_annotations_say_by_stuff_what_is_a_thing():
    record = found().to_coco_panoptic(1)
    for segment in record["segments_info"]:
        del segment["isthing"], segment["score"]
    again = Detections.from_coco_panoptic(record, found().panoptic_png(), stuff=[2, 3])
    assert again.is_thing.tolist() == [True, False, True, False]
    assert again.confidence.tolist() == [1.0] * 4
    with pytest.raises(
        ValueError, match=r"^segments_info\[0\]\.isthing: missing, expected 0 or 1, or stuff="
    ):
        Detections.from_coco_panoptic(record, found().panoptic_png())


def saved(array, mode=None, **options):
    image = Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)
    file = io.BytesIO()
    image.save(file, format="PNG", **options)
    return file.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def rgb_of_16_bits():
    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    data = zlib.compress(bytes(6 * (1 + 8 * 6)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


RGB = panoptic.image_of_ids(EXPECTED_IDS)


@pytest.mark.parametrize(
    ("png", "text"),
    [
        (b"GIF89a", "^png: got 6 bytes that are not a PNG"),
        (saved(RGB, "L"), "^png: got a PNG of gray with 8 bits, expected RGB with 8 bits each"),
        (saved(RGB, "P"), "^png: got a PNG of a palette with 8 bits, expected RGB"),
        (saved(RGB, "1"), "^png: got a PNG of gray with 1 bits, expected RGB"),
        (rgb_of_16_bits(), "^png: got a PNG of RGB with 16 bits, expected RGB with 8 bits"),
        (found().panoptic_png()[:-30], "^png: got a damaged PNG"),
        (saved(np.where(RGB == [1, 0, 0], 9, RGB).astype(np.uint8)), "^png: got pixels of id"),
        (
            saved(np.where(RGB == 3, 0, RGB).astype(np.uint8)),
            "^segments_info: got id 3, which no pixel of png has",
        ),
    ],
)
def test_hostile_pngs(png, text):
    with pytest.raises(ValueError, match=text):
        Detections.from_coco_panoptic(found().to_coco_panoptic(1), png)


def test_a_png_with_opacity_is_read_without_it():
    png = saved(RGB, "RGBA")
    again = Detections.from_coco_panoptic(found().to_coco_panoptic(1), png)
    np.testing.assert_array_equal(again.segment_map(), EXPECTED_IDS)


def test_a_png_of_too_many_pixels_is_not_unpacked():
    with pytest.raises(ValueError, match=r"^png: got a PNG of 6 x 8 pixels, expected at most 47"):
        Detections.from_coco_panoptic(found().to_coco_panoptic(1), found().panoptic_png(), max_pixels=47)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"id": 0}, ValueError, r"^segments_info\[1\]\.id: got 0, expected 1 to 16777215"),
        ({"id": 1 << 24}, ValueError, r"^segments_info\[1\]\.id: got 16777216"),
        ({"id": "2"}, TypeError, r"^segments_info\[1\]\.id: got '2'"),
        ({"id": 1}, ValueError, "^segments_info: got id 1 more than once"),
        ({"id": 9}, ValueError, r"^png: got pixels of id 2 \(R \+ 256 G .*, which segments_info does not list"),
        ({"category_id": None}, TypeError, r"^segments_info\[1\]\.category_id: got None"),
        ({"category_id": 77}, ValueError, r"^segments_info\[1\]\.category_id: got 77, expected one of category_ids"),
        ({"isthing": 2}, ValueError, r"^segments_info\[1\]\.isthing: got 2, expected 0 or 1"),
        ({"isthing": "no"}, TypeError, r"^segments_info\[1\]\.isthing: got 'no'"),
        ({"score": 2}, ValueError, r"^segments_info\[1\]\.score: got 2"),
    ],
)  # fmt: skip
def test_hostile_records(change, error, text):
    record = found().to_coco_panoptic(1)
    record["segments_info"][1].update(change)
    with pytest.raises(error, match=text):
        Detections.from_coco_panoptic(record, found().panoptic_png(), category_ids=[0, 1, 2, 3])


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ([], "^annotation: got list, expected an object"),
        ({}, "^segments_info: got NoneType, expected a list"),
        ({"segments_info": [3]}, r"^segments_info\[0\]: got int, expected an object"),
    ],
)
def test_records_of_another_form(record, text):
    with pytest.raises(TypeError, match=text):
        Detections.from_coco_panoptic(record, found().panoptic_png())
    with pytest.raises(TypeError, match=r"^png: got str, expected the bytes of a PNG"):
        Detections.from_coco_panoptic(found().to_coco_panoptic(1), "a.png")


# ------------------------------------------------------------------------------------------ other libraries


def test_json_and_back():
    d = found()
    content = json.loads(d.to_json())
    assert [row["is_thing"] for row in content["detections"]] == [True, False, True, False]
    again = Detections.from_json(content)
    assert again.is_thing.tolist() == d.is_thing.tolist()
    assert again == of_masks()
    assert json.loads(d.to_json_line())["detections"][1]["is_thing"] is False
    del content["detections"][2]["is_thing"]
    with pytest.raises(ValueError, match=r"^is_thing: got some rows without it"):
        Detections.from_json(content)
    content["detections"][2]["is_thing"] = 1
    with pytest.raises(TypeError, match=r"^is_thing: got 1, expected a bool"):
        Detections.from_json(content)


def test_supervision_and_back():
    d = found()
    there = d.to_supervision()
    again = Detections.from_supervision(there, class_names=NAMES)
    assert again == d
    np.testing.assert_array_equal(again.label_map, d.label_map)
    assert Detections.from_supervision(there[[2, 1]], class_names=NAMES) == d[[2, 1]]
    # Results of all kinds can be merged there.
    both = sv.Detections.merge([there, found(is_thing=None).to_supervision()])
    assert Detections.from_supervision(both).is_thing is None
    assert Detections.from_supervision(found(is_thing=None).to_supervision()).is_thing is None


def test_other_forms_are_made_of_its_rows():
    d = found()
    assert len(d.to_coco(1)) == 4
    assert len(d.to_rle()) == 4
    assert len(d.to_focoos()["detections"]) == 4
    assert d.to_csv().count("\n") == 5
    assert d.to_yolo().count("\n") == 4
    expected = np.select([q == LABELS for q in QUERIES], [1, 2, 1, 3], 255)
    np.testing.assert_array_equal(d.to_label_image(), expected)


# ----------------------------------------------------------------------------------------------- the picture


def large():
    """A frame in which texts have room: a sky, a road, two cars."""
    labels = np.full((120, 160), 255, np.uint8)
    labels[:60], labels[60:] = 0, 1
    labels[70:100, 20:60], labels[70:100, 90:130] = 2, 3
    labels[50:60, 150:] = 255
    return Detections(
        xyxy=[[20, 70, 60, 100], [90, 70, 130, 100], [0, 0, 160, 60], [0, 60, 160, 120]],
        confidence=[0.9, 0.8, 0.7, 0.6], class_id=[1, 1, 2, 3], query=[2, 3, 0, 1], size=(120, 160),
        class_names=NAMES, label_source=labels, is_thing=[True, True, False, False],
    )  # fmt: skip


def test_stuff_is_filled_and_things_are_drawn_as_objects():
    d, image = large(), np.zeros((120, 160, 3), np.uint8)
    drawn = render.draw(image, d, labels=False, opacity=1, palette="distinct")
    assert drawn.shape == image.shape
    sky, road, car = (np.array(render.color(i)) for i in (2, 3, 1))
    assert (drawn[10, 80] == sky).all()
    assert (drawn[110, 80] == road).all()
    assert (drawn[85, 40] == car).all()
    # Void stays as it is.
    assert not drawn[52:60, 152:].any()
    things = d[d.is_thing]
    boxes = Detections(
        xyxy=things.xyxy,
        confidence=things.confidence,
        class_id=things.class_id,
        size=d.size,
        class_names=NAMES,
    )
    np.testing.assert_array_equal(
        render.draw(image, d, masks=False, labels=False),
        render.draw(image, boxes, masks=False, labels=False),
    )


def test_stuff_has_no_contour():
    d, image = large(), np.zeros((120, 160, 3), np.uint8)
    drawn = render.draw(image, d, labels=False, boxes=False, opacity=0.5)
    sky = drawn[:50, :100].reshape(-1, 3)
    assert len(np.unique(sky, axis=0)) == 1
    # A thing has one, of the opaque color.
    assert (drawn[70:100, 20] == render.color(1)).all()
    assert (drawn[85, 40] != render.color(1)).any()


def test_stuff_is_in_the_legend_and_has_no_label(monkeypatch):
    from fai_fast.detections import lettering

    texts, write, put, known = [], lettering.written, lettering.put, {}

    def written(text, *rest):
        line = write(text, *rest)
        known[id(line)] = text
        return line

    monkeypatch.setattr(lettering, "written", written)
    monkeypatch.setattr(
        lettering, "put", lambda *a: (texts.append((known[id(a[1])], a[0].shape[1])), put(*a))
    )
    d, image = large(), np.zeros((120, 160, 3), np.uint8)
    drawn = render.draw(image, d)
    assert drawn.shape[1] > 160
    on_frame = [text for text, width in texts if width == 160]
    beside = [text for text, width in texts if width != 160]
    assert sorted(on_frame) == ["car 0.80", "car 0.90"]
    assert beside == ["sky", "49%", "road", "38%"]
    # As wide for any result of one model and frame size.
    assert render.draw(image, d[[]]).shape == drawn.shape


def test_things_may_differ_by_instance_and_stuff_does_not():
    d, image = large(), np.zeros((120, 160, 3), np.uint8)
    options = {"labels": False, "boxes": False, "opacity": 1.0, "palette": "distinct"}
    drawn = render.draw(image, d, color_by="instance", **options)
    assert (drawn[85, 40] != drawn[85, 110]).any()
    assert (drawn[110, 80] == render.color(3)).all()
    tracked = d.with_tracker_id([7, 9, -1, -1])
    drawn = render.draw(image, tracked, **options)
    assert (drawn[85, 40] == render.color(7)).all()
    assert (drawn[85, 110] == render.color(9)).all()


def test_drawing_without_a_label_map():
    image = np.zeros((*SIZE, 3), np.uint8)
    options = {"labels": False, "opacity": 1.0, "boxes": False}
    drawn, same = render.draw(image, found(), **options), render.draw(image, of_masks(), **options)
    np.testing.assert_array_equal(drawn, same)
    assert drawn.any()


def test_plot_takes_it():
    d = large().with_picture(np.zeros((120, 160, 3), np.uint8))
    assert d.plot().shape[0] == 120


# --------------------------------------------------------------------------------------------------- tracking


class Counting:
    """A tracker that numbers what it is shown, in the order of its boxes."""

    def update(self, detections):
        self.seen = detections
        detections.tracker_id = np.arange(len(detections)) + 10
        return detections


def test_things_are_tracked_and_stuff_has_no_number():
    from fai_fast.stream.tracking import Tracking

    tracker = Counting()
    d = Tracking(tracker).numbered(found(), 25.0)
    assert tracker.seen.class_id.tolist() == [1, 1]
    assert d.tracker_id.tolist() == [10, -1, 11, -1]
    assert d.is_thing.tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match=r"^track: got a semantic result"):
        Tracking(tracker).numbered(found(is_thing=None), 25.0)


# ------------------------------------------------------------------------------------------ from the kernels


def test_what_the_kernels_give_is_told_by_the_classes_that_are_stuff():
    rows = {
        "segments": LABELS.copy(),
        "query": np.array(QUERIES),
        "class_id": np.array([1, 2, 1, 3]),
        "confidence": np.array([0.9, 0.8, 0.7, 0.6], np.float32),
        "boxes": np.array(BOXES, np.int32),
        "area": np.array([10, 18, 4, 8]),
    }
    assert Detections._from_core(rows, SIZE, NAMES, Panoptic(stuff=(3, 2)).stuff) == found()
    assert Detections._from_core(rows, SIZE, NAMES, ()).is_thing.tolist() == [True] * 4
    assert Detections._from_core(rows, SIZE, NAMES).is_thing is None


def test_it_is_exported():
    assert fai_fast.Panoptic is Panoptic
