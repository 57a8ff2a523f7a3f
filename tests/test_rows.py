"""Rows one at a time, the choice among them, masks one at a time; and the same choice as options of a model."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import tracemalloc

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, PackedMasks
from helpers.networks import network, small_spec

NAMES = ("cat", "dog", "window ", "cat")


def blobs(seed, n=12, size=(90, 140), noise=0.03):
    """Masks with parts of all sizes, that reach the frame's edges and overlap."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[: size[0], : size[1]]
    masks = np.empty((n, *size), bool)
    for mask in masks:
        y, x = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        mask[:] = np.hypot(yy - y, (xx - x) * rng.uniform(0.5, 1.5)) < rng.uniform(4, 35)
        mask |= rng.random(size) < noise * rng.random()
    return masks


def found(masks, seed=0, **options):
    rng = np.random.default_rng(seed)
    n = len(masks)
    return Detections(
        xyxy=PackedMasks.from_bool(masks).boxes,
        confidence=rng.random(n),
        class_id=rng.integers(0, len(NAMES), n),
        query=rng.permutation(n),
        size=masks.shape[1:],
        class_names=NAMES,
        mask=masks,
        **options,
    )


def semantic(seed=0, size=(40, 70), dtype=np.uint8):
    rng = np.random.default_rng(seed)
    nobody = np.iinfo(dtype).max
    segments = np.repeat(np.repeat(rng.integers(0, 6, (size[0] // 5, size[1] // 5)), 5, 0), 5, 1).astype(
        dtype
    )
    segments[rng.random(size) < 0.05] = 2
    segments[rng.random(size) < 0.05] = nobody
    queries = np.array([4, 0, 2, 5])  # two queries have no row
    boxes = PackedMasks.from_segments(segments, queries).boxes
    return Detections(
        xyxy=boxes, confidence=[0.9, 0.8, 0.7, 0.6], class_id=[1, 0, 2, 1], query=queries, size=size,
        class_names=NAMES, label_source=segments,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- one row


def test_rows_are_plain_numbers_and_texts():
    masks = blobs(1, 3)
    result = found(masks).with_tracker_id([7, -1, 3])
    rows = list(result.rows())
    assert [row.index for row in rows] == [0, 1, 2]
    for i, row in enumerate(rows):
        assert type(row.confidence) is float
        assert row.confidence == result.confidence[i]
        assert f"{row.confidence:.2f}" in repr(row)
        assert (type(row.class_id), type(row.query), type(row.tracker_id)) == (int, int, int)
        assert (row.class_id, row.query) == (result.class_id[i], result.query[i])
        assert row.class_name == NAMES[row.class_id]
        assert type(row.class_name) is str
        assert row.xyxy == tuple(result.xyxy[i].tolist())
        assert row.area == masks[i].sum()
        assert type(row.area) is int
        np.testing.assert_array_equal(row.mask, masks[i])
        np.testing.assert_array_equal(row.crop, result.crops()[i])
    assert repr(rows[0]).startswith("Row(#7 ")
    assert [row.tracker_id for row in found(masks).rows()] == [None] * 3
    assert list(found(masks)[:0].rows()) == []


def test_a_row_of_boxes_has_no_mask():
    [row] = Detections(xyxy=[[0, 0, 4, 2.5]], confidence=[0.5], class_id=[7], size=(6, 8)).rows()
    assert (row.class_name, row.area, row.query) == ("7", 10.0, -1)
    with pytest.raises(ValueError, match=r"^masks: these Detections hold boxes only"):
        row.mask  # noqa: B018


def test_masks_are_decoded_one_at_a_time():
    masks = blobs(2)
    result = found(masks)
    assert len(result.masks) == len(masks)
    for i in (0, 5, -1, np.int64(3)):
        np.testing.assert_array_equal(result.masks[i], masks[i])
        np.testing.assert_array_equal(result.masks(i), masks[i])
    for mask, expected in zip(result.masks, masks, strict=True):
        np.testing.assert_array_equal(mask, expected)
    part = result.masks[2:9:3]
    assert len(part) == 3
    np.testing.assert_array_equal(np.asarray(part), masks[2:9:3])
    np.testing.assert_array_equal(result.mask, masks)
    assert repr(result.masks) == "MaskSequence(12 in 90x140)"
    result.masks[0][:] = True  # a copy
    np.testing.assert_array_equal(result.masks[0], masks[0])
    with pytest.raises(IndexError):
        result.masks[12]
    with pytest.raises(TypeError, match=r"^i: got"):
        result.masks["a"]
    with pytest.raises(ValueError, match=r"^copy: "):
        np.asarray(part, copy=False)


def test_a_mask_does_not_cost_what_all_of_them_do():
    size, n = (500, 600), 200
    packed = PackedMasks.concatenate([PackedMasks.from_bool(blobs(3, 1, size, noise=0))] * n)
    result = Detections(
        xyxy=packed.boxes, confidence=np.ones(n), class_id=np.zeros(n, int), size=size, packed=packed
    )
    tracemalloc.start()
    kept = result.masks[10:], result.masks[50]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept[1].nbytes == size[0] * size[1]
    assert peak < 5 * size[0] * size[1] < n * size[0] * size[1]


# ---------------------------------------------------------------------------------------------- choosing rows


def test_filter():
    result = found(blobs(4))
    assert result.filter() == result
    for classes, ids in (
        (["cat"], {0, 3}),
        (["window"], {2}),
        (["window ", 1], {1, 2}),
        ([], set()),
        ((3,), {3}),
    ):
        kept = result.filter(classes=classes)
        assert kept == result[np.isin(result.class_id, list(ids))]
    score = float(result.confidence[3])
    assert result.filter(min_confidence=score) == result[result.confidence >= result.confidence[3]]
    assert 3 in [row.index for row in result.rows() if row.confidence >= score]
    assert result.filter(min_area=500) == result[result.area >= 500]
    both = result.filter(classes=["dog"], min_confidence=0.4, min_area=100)
    assert both == result[(result.class_id == 1) & (result.confidence >= 0.4) & (result.area >= 100)]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"classes": "cat"}, TypeError, "^classes: got 'cat', expected a sequence of class names or ids"),
        ({"classes": ["kat"]}, ValueError, "^classes: got 'kat', .* 4 classes; did you mean 'cat'"),
        ({"classes": ["zzz"]}, ValueError, "such as 'cat'"),
        ({"classes": [4]}, ValueError, "^classes: got class 4, expected ids of 0 to 3"),
        ({"classes": [1.5]}, TypeError, "^classes: got float in it"),
        ({"min_confidence": "high"}, TypeError, "^min_confidence: "),
        ({"min_area": float("nan")}, ValueError, "^min_area: "),
    ],
)  # fmt: skip
def test_filter_says_what_is_wrong(options, error, text):
    with pytest.raises(error, match=text):
        found(blobs(4)).filter(**options)


def test_classes_without_names_have_ids():
    result = Detections(xyxy=[[0, 0, 4, 2]], confidence=[0.5], class_id=[700], size=(6, 8))
    assert len(result.filter(classes=[700])) == 1
    with pytest.raises(ValueError, match=r"^classes: got 'cat', expected ids: these classes have no names"):
        result.filter(classes=["cat"])


def test_top_k():
    result = found(blobs(5))
    best = np.argsort(-result.confidence)[:4]
    assert result.top_k(4) == result[best]
    assert len(result.top_k(100)) == len(result)
    for n in (0, -1):
        with pytest.raises(ValueError, match=r"^n: got"):
            result.top_k(n)
    with pytest.raises(TypeError, match=r"^n: got"):
        result.top_k(1.5)


def slow_nms(masks, scores, groups, iou):
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        for j in kept:
            common, both = (masks[i] & masks[j]).sum(), (masks[i] | masks[j]).sum()
            if groups[i] == groups[j] and both and common / both > iou:
                break
        else:
            kept.append(i)
    return sorted(kept)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("iou", [0.0, 0.2, 0.5, 1.0])
def test_nms_of_masks(iou, agnostic):
    suppressed = 0
    for seed in range(6):
        masks = blobs(seed, 25, (60, 150))
        masks[3] = masks[7]
        masks[11] = False
        result = found(masks, seed)
        kept = result.nms(iou=iou, class_agnostic=agnostic)
        groups = np.zeros(len(masks)) if agnostic else result.class_id
        expected = slow_nms(masks, result.confidence, groups, iou)
        assert kept == result[expected]
        suppressed += len(masks) - len(expected)
    # An overlap of 1 is not above 1.
    assert (suppressed > 0) == (iou < 1)


@pytest.mark.parametrize("agnostic", [False, True])
def test_nms_of_boxes_is_that_of_their_masks(agnostic):
    rng = np.random.default_rng(0)
    corner, side = rng.integers(0, 40, (30, 2)), rng.integers(1, 30, (30, 2))
    boxes = np.concatenate([corner, corner + side], 1)
    masks = np.zeros((30, 80, 80), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    with_masks = found(masks)
    fields = {name: getattr(with_masks, name) for name in ("xyxy", "confidence", "class_id", "query", "size")}
    kept = Detections(**fields).nms(iou=0.3, class_agnostic=agnostic)
    assert kept.query.tolist() == with_masks.nms(iou=0.3, class_agnostic=agnostic).query.tolist()
    assert 5 < len(kept) < 30


def test_nms_is_supervisions():
    pytest.importorskip("supervision")
    result = found(blobs(8, 20, (60, 80), noise=0))
    theirs = result.to_supervision().with_nms(threshold=0.4, class_agnostic=True)
    ours = result.nms(iou=0.4, class_agnostic=True)
    assert sorted(ours.query) == sorted(theirs.data["fai_fast_query"])
    assert len(ours) < len(result)


def test_nms_checks_its_arguments():
    result = found(blobs(4))
    with pytest.raises(ValueError, match=r"^iou: "):
        result.nms(iou=1.5)
    with pytest.raises(TypeError, match=r"^class_agnostic: "):
        result.nms(class_agnostic=1)
    masks = result.packed._masks()
    for order in (np.arange(11), np.zeros(12, int), np.arange(1, 13), np.arange(13)):
        with pytest.raises(ValueError, match=r"^order: "):
            masks.nms(order=order, groups=np.zeros(12, int), iou=0.5)
    with pytest.raises(ValueError, match=r"^groups: "):
        masks.nms(order=np.arange(12), groups=np.zeros(11, int), iou=0.5)


# --------------------------------------------------------------------------------------------------- clean


def parts(mask):
    """The parts of a mask, by flooding it from one pixel after the other."""
    left = {tuple(pixel) for pixel in np.argwhere(mask).tolist()}
    while left:
        part, front = set(), [min(left)]
        left.discard(front[0])
        while front:
            y, x = front.pop()
            part.add((y, x))
            for near in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                if near in left:
                    left.discard(near)
                    front.append(near)
        yield part


def slow_clean(mask, min_area, largest):
    kept = [part for part in parts(mask) if len(part) >= min_area]
    if largest:
        kept = sorted(kept, key=len, reverse=True)[:1]  # sorting is stable
    clean = np.zeros_like(mask)
    for part in kept:
        for pixel in part:
            clean[pixel] = True
    return clean


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("min_area", [1, 2, 9, 60, 10**6])
@pytest.mark.parametrize("offset", [0, 1, 40])
def test_clean(min_area, largest, offset):
    masks = blobs(offset, 4, (37, 150 + offset), noise=0.15)
    masks[1] = np.random.default_rng(0).random(masks.shape[1:]) < 0.4
    masks[2] = False
    masks[2, 3:9, 60:70] = masks[2, 20:26, 60:70] = True  # a tie
    masks[3, 0] = masks[3, :, -1] = True
    result = found(masks)
    expected = np.stack([slow_clean(mask, min_area, largest) for mask in masks])
    kept = np.flatnonzero(expected.any((1, 2)))
    cleaned = result.clean(min_area=min_area, largest_part=largest)
    np.testing.assert_array_equal(cleaned.mask, expected[kept])
    packed = PackedMasks.from_bool(expected[kept])
    assert cleaned.packed == packed
    assert (
        PackedMasks(*(getattr(cleaned.packed, name) for name in ("bits", "offsets", "boxes", "size")))
        == packed
    )
    np.testing.assert_array_equal(cleaned.xyxy, packed.boxes)
    np.testing.assert_array_equal(cleaned.area, packed.area())
    np.testing.assert_array_equal(cleaned.query, result.query[kept])
    np.testing.assert_array_equal(cleaned.confidence, result.confidence[kept])
    assert cleaned.clean(min_area=min_area, largest_part=largest) == cleaned


def test_clean_keeps_boxes_of_masks_that_lose_nothing():
    mask = np.zeros((2, 20, 30), bool)
    mask[:, 4:12, 5:17] = True
    mask[1, 19, 29] = True
    boxes = [[4.5, 3.5, 18, 13], [4.5, 3.5, 30, 20]]
    result = Detections(xyxy=boxes, confidence=[1, 1], class_id=[0, 0], size=(20, 30), mask=mask)
    assert result.clean().xyxy.tolist() == [[4.5, 3.5, 18, 13], [5, 4, 17, 12]]


def test_clean_checks_its_arguments():
    result = found(blobs(4))
    for options, error in (
        ({"min_area": 0}, ValueError),
        ({"min_area": 1.5}, TypeError),
        ({"largest_part": 1}, TypeError),
    ):
        with pytest.raises(error, match=f"^{next(iter(options))}: got"):
            result.clean(**options)
    assert len(result.clean(min_area=10**30)) == 0
    with pytest.raises(ValueError, match=r"^masks: these Detections hold boxes only"):
        Detections(xyxy=[[0, 0, 4, 2]], confidence=[0.5], class_id=[0], size=(6, 8)).clean()


# ------------------------------------------------------------------------------------------ semantic results


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_leaves_a_semantic_result_leaves_no_label(dtype):
    result = semantic(dtype=dtype)
    labels = result.label_map
    kept = result.filter(classes=["dog"])
    np.testing.assert_array_equal(kept.label_map, np.where(labels == 1, 1, -1))
    best = result.top_k(1)
    np.testing.assert_array_equal(best.label_map, np.where(result.mask[0], 1, -1))
    assert result.nms(iou=0.0, class_agnostic=True) == result
    for options in ({}, {"largest_part": True}, {"min_area": 30}):
        cleaned = result.clean(**options)
        expected = np.full(labels.shape, -1)
        for mask, class_id in zip(cleaned.mask, cleaned.class_id, strict=True):
            expected[mask] = class_id
        np.testing.assert_array_equal(cleaned.label_map, expected)
        assert 0 < cleaned.area.sum() < result.area.sum()
        for other in (copy.deepcopy(cleaned), pickle.loads(pickle.dumps(cleaned))):
            assert other == cleaned
    np.testing.assert_array_equal(result.label_map, labels)


# ----------------------------------------------------------------------------------------- options of a model


def model_of(task, cache, top_k=None):
    """A model of random weights that sees several regions, or objects, of several classes in `frame`."""
    family, seed = ("fai_mf", 0) if task == "instance" else ("bisenetformer", 6)
    spec = small_spec(family, task, transformer_predictor_dec_layers=1, threshold=0.2, top_k=top_k)
    state = network(spec, seed).state_dict()
    return fai_fast.load(spec, weights=state, im_size=(64, 96), cache_dir=cache, precision="fp32")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    made = {task: model_of(task, cache) for task in ("instance", "semantic")}
    yield made
    for model in made.values():
        model.close()


@pytest.fixture(scope="module")
def frame():
    yy, xx = np.mgrid[:70, :110]
    waves = np.stack([128 + 100 * np.sin(xx / (5 + c)) * np.cos(yy / (7 - c)) for c in range(3)], -1)
    return waves.astype(np.uint8)


TASKS = pytest.mark.parametrize("task", ["instance", "semantic"])


def every_way(model, frame, **options):
    """The result of infer, which is that of all other calls."""
    result = model.infer(frame, **options)
    assert model.submit(frame, **options).result() == result
    assert model.infer_batch([frame], **options) == [result]
    with model.stream([frame], **options) as stream:
        assert [other for _, other in stream] == [result]
    return result


@TASKS
def test_classes_of_a_model(models, frame, task):
    model = models[task]
    everything = model.infer(frame)
    assert len(set(everything.class_id.tolist())) > 1
    first = everything.class_name[0]
    result = every_way(model, frame, classes=[first])
    assert result == everything.filter(classes=[first])
    assert 0 < len(result) < len(everything)
    assert (result.label_map is None) == (task == "instance")
    assert len(every_way(model, frame, classes=[])) == 0
    assert every_way(model, frame, classes=[0, "b", 2]) == everything


@TASKS
def test_thresholds_by_class_of_a_model(models, frame, task):
    model = models[task]
    low, high = model.infer(frame, threshold=0.0), model.infer(frame, threshold=0.5)
    default = model.infer(frame)
    for name in sorted(set(low.class_name.tolist())):
        # Its rows as with that threshold for all, the others' as by default.
        result = every_way(model, frame, threshold={name: 0.0})
        rows = [*low.filter(classes=[name]).query, *default[default.class_name != name].query]
        assert sorted(result.query) == sorted(rows)
        result = every_way(model, frame, threshold={name: 0.5}, classes=[name])
        assert result == high.filter(classes=[name])
    # A score itself is not above itself.
    score = float(low.confidence[0])
    assert low.query[0] not in model.infer(frame, threshold={int(low.class_id[0]): score}).query
    assert model.infer(frame, threshold={}) == default


def test_top_k_of_instances(models, frame):
    model = models["instance"]
    everything = model.infer(frame)
    assert len(everything) > 2
    assert every_way(model, frame, top_k=2) == everything[:2]
    second = everything.class_name[1]
    assert every_way(model, frame, top_k=1, classes=[second]) == everything.filter(classes=[second])[:1]
    with pytest.raises(ValueError, match=r"^top_k: got 0, expected 1 or more"):
        model.infer(frame, top_k=0)


@TASKS
def test_the_folders_top_k_cuts_instances_and_never_a_semantic_result(models, frame, task, tmp_path):
    everything = models[task].infer(frame)
    assert len(everything) > 2
    with model_of(task, tmp_path, top_k=2) as model:
        result = model.infer(frame)
        if task == "instance":
            assert result == everything[:2]
            assert model.infer(frame, top_k=3) == everything[:3]
        else:
            assert result == everything
            assert (result.label_map >= 0).all()
            with pytest.raises(ValueError, match=r"^top_k: got 2 for a semantic model.*top_k\(n\) selects"):
                model.infer(frame, top_k=2)


def test_top_k_does_not_cut_a_semantic_result_whose_regions_overlap(frame, tmp_path):
    spec = small_spec("bisenetformer", "semantic", transformer_predictor_dec_layers=1, threshold=0.2)
    spec = dataclasses.replace(spec, config=dataclasses.replace(spec.config, predict_all_pixels=False))
    state = network(spec, 6).state_dict()
    options = {"weights": state, "im_size": (64, 96), "cache_dir": tmp_path, "precision": "fp32"}
    with fai_fast.load(spec, **options) as model:
        everything = model.infer(frame)
    assert everything.label_map is None
    limited = dataclasses.replace(spec, config=dataclasses.replace(spec.config, top_k=1))
    with fai_fast.load(limited, **options) as model:
        assert len(everything) > 1
        assert model.infer(frame) == everything
        with pytest.raises(ValueError, match=r"^top_k: got 2 for a semantic model"):
            model.infer(frame, top_k=2)


def test_there_is_no_limit_unless_a_folder_has_one():
    assert (
        fai_fast.ModelConfig(
            num_classes=2, backbone_config=fai_fast.spec("fai-mf-n-shapes").config.backbone_config
        ).top_k
        is None
    )
    with pytest.raises(ValueError, match=r"^config\.top_k: "):
        small_spec("fai_mf", top_k=0)


@TASKS
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (
            {"classes": ["aa"]},
            ValueError,
            "^classes: got 'aa', which is none of the 3 classes; did you mean 'a'",
        ),
        ({"classes": [-1]}, ValueError, "^classes: got class -1, expected ids of 0 to 2"),
        ({"classes": "a"}, TypeError, "^classes: got 'a', expected a sequence"),
        ({"threshold": {"d": 0.1}}, ValueError, "^threshold: got 'd', which is none"),
        ({"threshold": {-1: 0.1}}, ValueError, "^threshold: got class -1"),
        ({"threshold": {"a": 1.5}}, ValueError, "^threshold: got 1.5, expected 0 to 1"),
        ({"threshold": {"a": None}}, TypeError, "^threshold: got None"),
        ({"threshold": "0.5"}, TypeError, "^threshold: got '0.5'"),
        ({"top_k": "few"}, TypeError, "^top_k: got"),
    ],
)
def test_options_are_told_apart(models, frame, task, options, error, text):
    for call in (
        models[task].infer,
        models[task].submit,
        lambda image, **given: models[task].stream([image], **given),
    ):
        with pytest.raises(error, match=text):
            call(frame, **options)


def test_what_is_no_picture(models):
    with pytest.raises(TypeError, match=r"^image: got None, expected a picture; cv2\.imread returns None"):
        models["instance"].infer(None)
    with pytest.raises(TypeError, match=r"^image: got list, expected one picture; Model\.infer_batch takes"):
        models["instance"].infer([np.zeros((4, 4, 3), np.uint8)])
