"""Drawing: every pixel where it can be said, and that nothing which Detections can hold breaks it."""

from __future__ import annotations

import itertools
import os
import stat

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, PackedMasks, render
from fai_fast.detections import lettering, palettes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

SIZE = (60, 90)
NAMES = ("person", "car", "dog")


def picture(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def rectangles(*boxes, size=SIZE):
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


def found(*boxes, class_id=None, size=SIZE, **fields):
    n = len(boxes)
    return Detections(
        xyxy=np.array(boxes, float).reshape(n, 4),
        confidence=np.linspace(0.9, 0.5, n),
        class_id=range(n) if class_id is None else class_id,
        size=size,
        class_names=NAMES,
        **({"mask": rectangles(*boxes, size=size)} | fields),
    )


def semantic(labels, class_id):
    n = len(class_id)
    boxes = np.tile([0.0, 0, labels.shape[1], labels.shape[0]], (n, 1))
    return Detections(
        xyxy=boxes,
        confidence=np.full(n, 0.8),
        class_id=class_id,
        query=np.arange(n),
        size=labels.shape,
        class_names=[f"class {i}" for i in range(300)],
        label_source=labels,
    )


@pytest.fixture
def texts(monkeypatch):
    """What is laid on pictures, in order."""
    put, kept = lettering.put, []
    names = {}

    def written(text, *rest):
        line = write(text, *rest)
        names[id(line)] = text
        return line

    write = lettering.written
    monkeypatch.setattr(lettering, "written", written)
    monkeypatch.setattr(lettering, "put", lambda *a: (kept.append(names[id(a[1])]), put(*a)))
    return kept


def blend(pixels, color, opacity):
    return pixels + (np.array(color) - pixels.astype(float)) * opacity


# ---------------------------------------------------------------------------------------------------- draw


def test_masks_are_filled_and_have_an_opaque_contour():
    image, color = picture(), render.color(1)
    drawn = render.draw(image, found((20, 10, 50, 40), class_id=[1]), boxes=False, labels=False, opacity=0.4)
    inner = np.s_[11:39, 21:49]
    assert np.abs(drawn[inner] - blend(image[inner], color, 0.4)).max() <= 1
    contour = rectangles((20, 10, 50, 40))[0]
    contour[inner] = False
    assert (drawn[contour] == color).all()
    outside = ~rectangles((20, 10, 50, 40))[0]
    assert (drawn[outside] == image[outside]).all()


def test_boxes_are_outlined():
    image = picture()
    drawn = render.draw(image, found((20, 10, 50, 40)), masks=False, labels=False)
    outline = rectangles((20, 10, 50, 40))[0] & ~rectangles((21, 11, 49, 39))[0]
    assert (drawn[outline] == render.color(0)).all()
    assert (drawn[~outline] == image[~outline]).all()


def test_small_objects_lie_above_large_ones():
    image = picture()
    small, large = (30, 20, 40, 30), (10, 5, 80, 55)
    for boxes, classes in (((small, large), [0, 1]), ((large, small), [1, 0])):
        drawn = render.draw(image, found(*boxes, class_id=classes), boxes=False, labels=False, opacity=1)
        assert (drawn[20:30, 30:40] == render.color(0)).all()


def test_labels_are_written_in_the_color_of_the_class_inside_the_frame():
    image = np.zeros((60, 200, 3), np.uint8)
    drawn = render.draw(image, found((190, 0, 200, 5), size=(60, 200)), masks=False, boxes=False)
    ys, xs = np.nonzero((drawn == render.color(0)).all(-1))
    assert len(ys) > 200
    assert xs.max() == 199
    assert xs.min() > 60
    assert np.ptp(ys) < 30


def test_a_label_says_class_score_and_track(texts):
    detections = found((20, 10, 50, 40), (0, 0, 9, 9), class_id=[2, 7])
    render.draw(picture(), detections)
    render.draw(picture(), detections.with_tracker_id([4, 11]))
    assert sorted(texts) == sorted(["dog 0.90", "7 0.50", "#4 dog 0.90", "#11 7 0.50"])


@pytest.mark.parametrize("corners", [(100, 100, 200, 180), (0, 0, 30, 10), (280, 290, 300, 300)])
def test_labels_of_one_place_do_not_cover_each_other(corners):
    taken = []
    for _ in range(8):
        box = lettering.free_place(corners, (60, 14), (300, 300), taken)
        assert not any(lettering._covered(box, np.array([other])) for other in taken)
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= 300
        assert box[3] <= 300
        taken.append(box)


def test_a_label_that_is_wider_than_the_picture_is_cut(texts):
    size = (30, 60)
    name = "a name that is far too long for any picture of this size"
    detections = Detections(
        xyxy=[[50, 20, 58, 28]], confidence=[0.5], class_id=[0], size=size, class_names=[name]
    )
    drawn = render.draw(np.zeros((*size, 3), np.uint8), detections, boxes=False)
    assert texts == [f"{name} 0.50"]
    line = lettering.written(texts[0], lettering.style_of(size), 60)
    assert 40 < line.shape[1] <= 60
    assert ((drawn == render.color(0)).all(-1)).any(0)[:40].all()


def test_what_cannot_be_written_is_replaced():
    style = lettering.style_of((400, 400))
    unknown = lettering.written("\ufffd", style, 400)
    for character in ("\n", "\0", "\ud800", "\u202e"):
        assert (lettering.written(character, style, 400) == unknown).all()


def test_text_looks_as_pillow_writes_it():
    from PIL import Image, ImageDraw

    style = lettering.style_of((1080, 1920))
    text = "person 0.87"
    ours = lettering.written(text, style, 1920)
    canvas = Image.new("L", ours.shape[::-1])
    place = style.padding, style.padding - style.top
    ImageDraw.Draw(canvas).text(place, text, fill=255, font=lettering._font(style.font_size))
    theirs = np.asarray(canvas).astype(float)
    # Character for character, without kerning: a pixel to the side here and there.
    assert np.corrcoef(ours.sum(0), theirs.sum(0))[0, 1] > 0.9
    assert np.array_equal(ours.any(1), theirs.any(1))
    assert ours.max() == 255


def test_nothing_found_draws_nothing():
    image = picture()
    drawn = render.draw(image, Detections.empty(SIZE))
    assert (drawn == image).all()
    assert drawn is not image


def test_the_image_is_left_as_it_is_and_may_be_read_only_or_strided():
    image = picture(size=(120, 90))
    view = image[::2]
    view.flags.writeable = False
    before = view.copy()
    drawn = render.draw(view, found((20, 10, 50, 40)))
    assert (view == before).all()
    assert drawn.flags.writeable
    assert (drawn == render.draw(before, found((20, 10, 50, 40)))).all()
    drawn[:] = 0


def test_masks_are_never_decoded_as_a_stack(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("decoded")

    detections = found((20, 10, 50, 40), (0, 0, 9, 9))
    monkeypatch.setattr(PackedMasks, "decode", refuse)
    render.draw(picture(), detections)


def test_boxes_only_and_empty_masks_are_drawn():
    image = picture()
    assert (render.draw(image, found((20, 10, 50, 40), mask=None)) != image).any()
    nothing = found((20, 10, 50, 40), mask=np.zeros((1, *SIZE), bool))
    assert (render.draw(image, nothing, boxes=False, labels=False) == image).all()


# ------------------------------------------------------------------------------------------------ semantic


def halves(left=0, right=1):
    labels = np.full(SIZE, left, np.uint8)
    labels[:, 45:] = right
    return labels


def test_semantic_results_are_colored_by_class():
    image, labels = picture(), halves()
    labels[:10] = 255
    drawn = render.draw(image, semantic(labels, [5, 130]), labels=False, opacity=0.3)
    assert (drawn[:10] == image[:10]).all()
    assert np.abs(drawn[12:, :44] - blend(image[12:, :44], render.color(5), 0.3)).max() <= 1
    assert np.abs(drawn[12:, 47:] - blend(image[12:, 47:], render.color(130), 0.3)).max() <= 1
    assert (drawn[11:, 45] == render.color(130)).all()  # the border
    assert (drawn[10, :45] == render.color(5)).all()


def test_two_queries_of_one_class_have_no_border():
    image = picture()
    drawn = render.draw(image, semantic(halves(), [5, 5]), labels=False)
    assert np.abs(drawn - blend(image, render.color(5), 0.5)).max() <= 1


def test_a_selection_of_a_semantic_result_colors_its_rows_only():
    image = picture()
    drawn = render.draw(image, semantic(halves(), [5, 6])[:1], labels=False)
    assert (drawn[:, 46:] == image[:, 46:]).all()
    assert (drawn[:, :44] != image[:, :44]).any()
    assert (render.draw(image, semantic(halves(), [5, 6])[:0], labels=False) == image).all()


def test_the_legend_names_the_classes_that_are_there_largest_first(texts):
    labels = np.zeros((200, 200), np.uint8)
    labels[:, :140] = 1
    labels[0, 0] = 3
    render.draw(picture(size=labels.shape), semantic(labels, [9, 4, 7, 8]))  # of class 7 there is nothing
    assert texts == ["class 4", "70%", "class 9", "30%", "class 8", "<1%"]


def test_the_legend_is_beside_the_picture_and_always_as_wide():
    image = picture(size=(200, 200))
    labels = np.zeros((200, 200), np.uint8)
    labels[:, 100:] = 1
    results = [semantic(labels, [9, 4]), semantic(labels, [250, 7]), semantic(labels, [9, 4])[:0]]
    drawn = [render.draw(image, result) for result in results]
    assert len({whole.shape for whole in drawn}) == 1
    assert drawn[0].shape[1] > 200
    for result, whole in zip(results, drawn, strict=True):
        assert (whole[:, :200] == render.draw(image, result, labels=False)).all()
    legend = drawn[0][:, 200:].reshape(-1, 3)
    for class_id in (9, 4):
        assert (legend == render.color(class_id)).all(-1).any()


def test_a_legend_that_is_too_long_says_how_many_are_left_out(texts):
    labels = np.repeat(np.arange(200, dtype=np.uint8), 2).reshape(400, 1) * np.ones((1, 50), np.uint8)
    render.draw(picture(size=labels.shape), semantic(labels, np.arange(200)))
    names = texts[::2]
    shown = int(names[-1].removesuffix(" more"))
    assert len(names) - 1 + shown == 200
    assert 10 < len(names) < 40


# -------------------------------------------------------------------------------------------------- color


def test_colors_are_stable():
    expected = {-1: (150, 150, 150), 0: (255, 100, 95), 1: (24, 144, 101), 79: (149, 118, 26)}
    assert {class_id: render.color(class_id) for class_id in expected} == expected


def test_colors_of_few_classes_differ():
    colors = np.array([render.color(i) for i in range(12)], float)
    pairs = itertools.combinations(colors, 2)
    assert min(np.abs(a - b).sum() for a, b in pairs) > 60


@pytest.mark.parametrize(
    ("palette", "classes", "some"),
    [
        ("ade20k", 150, {0: (120, 120, 120), 2: (6, 230, 230), 149: (92, 0, 255)}),
        ("cityscapes", 19, {0: (128, 64, 128), 13: (0, 0, 142), 18: (119, 11, 32)}),
        ("coco", 80, {0: (220, 20, 60), 9: (250, 170, 30), 79: (191, 162, 208)}),
    ],
)
def test_customary_palettes(palette, classes, some):
    table = palettes.colors_of(np.arange(classes), None, palette)
    assert {i: tuple(table[i].tolist()) for i in some} == some
    # Classes that the data set does not have are gray, or as in any other.
    beyond = palettes.colors_of(np.array([-1, classes]), None, palette)
    assert beyond.tolist() == [list(render.color(-1)), list(render.color(classes))]


@pytest.mark.parametrize(
    ("model", "palette"), [("fai-mf-l-ade", "ade20k"), ("fai-mf-l-coco-ins", "coco"), (None, "distinct")]
)
def test_the_palette_follows_from_the_classes(model, palette):
    names = NAMES if model is None else fai_fast.spec(model).classes
    ids = np.arange(3)
    assert (palettes.colors_of(ids, names, None) == palettes.colors_of(ids, None, palette)).all()
    assert len(np.unique(palettes.colors_of(ids, names, None), axis=0)) == 3


def test_a_palette_of_ones_own():
    drawn = render.draw(
        picture(),
        found((20, 10, 50, 40), (60, 10, 80, 40), class_id=[1, 2]),
        palette=[[1, 2, 3], [4, 5, 6]],
        opacity=1,
        labels=False,
    )
    assert (drawn[20, 30] == [4, 5, 6]).all()
    assert (drawn[20, 70] == render.color(2)).all()


def test_objects_of_one_class_can_differ():
    boxes = (20, 10, 50, 40), (60, 10, 80, 40)
    result = found(*boxes, class_id=[1, 1])
    options = {"opacity": 1, "labels": False}
    image = picture()

    def colors(result, **more):
        drawn = render.draw(image, result, **options, **more)
        return [tuple(drawn[20, x].tolist()) for x in (30, 70)]

    assert colors(result) == [render.color(1)] * 2
    assert colors(result, color_by="instance") == [render.color(0), render.color(1)]
    tracked = result.with_tracker_id([7, 5])
    assert colors(tracked) == colors(tracked, color_by="instance") == [render.color(7), render.color(5)]
    assert colors(tracked, color_by="class") == [render.color(1)] * 2


def test_bgr_is_rgb_turned_around():
    image = picture(size=(200, 200))
    labels = np.zeros((200, 200), np.uint8)
    labels[:, 100:] = 1
    for result in (found((20, 10, 50, 40), size=(200, 200)), semantic(labels, [3, 5])):
        rgb = render.draw(image, result)
        bgr = render.draw(np.ascontiguousarray(image[:, :, ::-1]), result, color="bgr")
        np.testing.assert_array_equal(bgr[:, :, ::-1], rgb)


def test_gray_frames_are_drawn_in_color():
    gray = picture()[:, :, 0]
    result = found((20, 10, 50, 40))
    drawn = render.draw(gray, result, color="gray")
    np.testing.assert_array_equal(drawn, render.draw(np.repeat(gray[:, :, None], 3, axis=2), result))


def test_text_can_be_read_on_every_color():
    def luminance(color):
        c = np.array(color) / 255
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for class_id in range(300):
        light, dark = sorted(
            map(luminance, (render.color(class_id), lettering.contrast(render.color(class_id)))), reverse=True
        )
        assert (light + 0.05) / (dark + 0.05) >= 4.0


# --------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"image": None}, TypeError, "image: got NoneType"),
        ({"image": np.zeros((*SIZE, 3))}, TypeError, "image: got dtype float64"),
        ({"image": np.zeros(SIZE, np.uint8)}, ValueError, r"image: got shape \(60, 90\)"),
        ({"image": np.zeros((*SIZE, 4), np.uint8)}, ValueError, "image: got shape"),
        (
            {"image": np.zeros((*SIZE[::-1], 3), np.uint8)},
            ValueError,
            r"expected \(60, 90, 3\) as in detections",
        ),
        ({"detections": []}, TypeError, "detections: got list, expected Detections"),
        ({"masks": 1}, TypeError, "masks: got 1, expected a bool"),
        ({"boxes": None}, TypeError, "boxes: got None"),
        ({"labels": "no"}, TypeError, "labels: got 'no'"),
        ({"opacity": "0.5"}, TypeError, "opacity: got '0.5'"),
        ({"opacity": 1.01}, ValueError, "opacity: got 1.01, expected 0 to 1"),
        ({"opacity": float("nan")}, ValueError, "opacity: got nan"),
        ({"color": "yuv"}, ValueError, "color: got 'yuv'"),
        ({"color": "gray"}, ValueError, r"image: got shape \(60, 90, 3\), expected \(H, W\)"),
        ({"color_by": "track"}, ValueError, "color_by: got 'track'"),
        ({"palette": "voc", "detections": found((0, 0, 9, 9))}, ValueError, "palette: got 'voc'"),
        ({"palette": [[1, 2]], "detections": found((0, 0, 9, 9))}, TypeError, "palette: got list"),
        ({"palette": [[1, 2, 256]], "detections": found((0, 0, 9, 9))}, ValueError, "palette: got 1..256"),
    ],
)
def test_bad_arguments_are_named(fields, error, message):
    arguments = {"image": picture(), "detections": Detections.empty(SIZE), **fields}
    with pytest.raises(error, match=message):
        render.draw(arguments.pop("image"), arguments.pop("detections"), **arguments)


def test_a_semantic_result_has_no_instances():
    with pytest.raises(ValueError, match="color_by: got 'instance' for a semantic result"):
        render.draw(picture(), semantic(halves(), [5, 6]), color_by="instance")


@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    n=st.integers(0, 5),
    scale=st.sampled_from([1.0, 1e3, 1e30]),
)
def test_whatever_detections_hold_is_drawn(seed, height, width, n, scale):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.normal(0, 30, (n, 2, 2)) * scale, axis=1)
    detections = Detections(
        xyxy=corners.reshape(n, 4),
        confidence=rng.normal(0, 1, n),
        class_id=rng.integers(-1, 400, n),
        size=(height, width),
        mask=rng.random((n, height, width)) < rng.random(),
    )
    image = picture(seed, (height, width))
    drawn = render.draw(image, detections)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8


# ---------------------------------------------------------------------------------------------------- save


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.png", "PNG"), ("a.webp", "WEBP")]
)
def test_pictures_are_saved_by_suffix(tmp_path, name, kind):
    smooth = np.broadcast_to(np.arange(90, dtype=np.uint8)[None, :, None] * 2, (60, 90, 3))
    render.save(tmp_path / name, smooth)
    with Image.open(tmp_path / name) as image:
        assert image.format == kind
        difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - smooth).max()
    assert difference <= (0 if kind == "PNG" else 12)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_saved_picture_has_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        render.save(tmp_path / "a.png", picture())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o640


def test_a_picture_that_cannot_be_saved_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.webp"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="picture: WEBP cannot hold 1x20000 pixels"):
        render.save(path, np.zeros((1, 20000, 3), np.uint8))
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.webp"]


@pytest.mark.parametrize(
    ("path", "content", "error", "message"),
    [
        (3, picture(), TypeError, "path: got int"),
        ("a.bmp", picture(), ValueError, "path: got 'a.bmp', expected a name that ends with .jpg"),
        ("a", picture(), ValueError, "path: got 'a'"),
        ("gone/a.png", picture(), FileNotFoundError, "no such folder: gone"),
        ("a.png", picture().astype(np.int16), TypeError, "picture: got dtype int16"),
        ("a.png", picture()[..., 0], ValueError, "picture: got shape"),
        ("a.png", picture()[:0], ValueError, "picture: got shape"),
    ],
)
def test_saving_names_what_is_wrong(tmp_path, monkeypatch, path, content, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        render.save(path, content)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a\.png is a folder"):
        render.save(tmp_path / "a.png", picture())
