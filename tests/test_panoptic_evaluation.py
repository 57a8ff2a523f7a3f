"""Panoptic quality: by hand, against a slow and obvious count, through files and models; and files that are wrong."""

from __future__ import annotations

import io
import json
import logging
from fractions import Fraction

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, evaluate
from fai_fast.evaluate.panoptic_quality import Segments, Tally, tally
from helpers.panoptic import (
    CARS,
    FOUND,
    GOOD,
    IDS,
    NAMES,
    THINGS,
    TRUTH,
    Oracle,
    answer,
    change,
    png_of,
    record_of,
    spec_of,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

# ---------------------------------------------------------------------------------------- the slow, obvious way


def slow(pictures, things):
    """Panoptic quality as the paper defines it, with void and crowds as panopticapi has them, pixel by pixel.

    Args:
        pictures: of each (truth, infos, prediction, infos): ids (H, W), 0 for none, and of each segment
            {id: (category, is_crowd)}.
        things: {category: whether it is a thing}.

    Returns:
        {category: (PQ, SQ, RQ) or None}, and of "all", "things" and "stuff" the means, 0 to 1, exact.
    """
    counts = {category: [Fraction(0), 0, 0, 0] for category in things}
    for truth, true_infos, found, infos in pictures:
        pixels = list(zip(truth.ravel().tolist(), found.ravel().tolist(), strict=True))
        void = {i: sum(pixel == (0, i) for pixel in pixels) for i in infos}
        matched = set()
        for t, (category, is_crowd) in true_infos.items():
            partner = None
            for f, (other, _) in infos.items():
                common = sum(pixel == (t, f) for pixel in pixels)
                union = sum(pixel[0] == t or pixel[1] == f for pixel in pixels) - void[f]
                if not is_crowd and other == category and common and Fraction(common, union) > Fraction(1, 2):
                    assert partner is None
                    partner = f
                    counts[category][0] += Fraction(common, union)
            if partner is not None:
                matched.add(partner)
                counts[category][1] += 1
            elif not is_crowd:
                counts[category][3] += 1
        for f, (category, _) in infos.items():
            if f in matched:
                continue
            crowds = [t for t, info in true_infos.items() if info == (category, True)]
            ignored = {0, *crowds[-1:]}
            inside = sum(pixel[1] == f and pixel[0] in ignored for pixel in pixels)
            if Fraction(inside, sum(pixel[1] == f for pixel in pixels)) <= Fraction(1, 2):
                counts[category][2] += 1
    of_class = {}
    for category, (overlap, found, wrong, missed) in counts.items():
        size = found + Fraction(wrong + missed, 2)
        similar = overlap / found if found else Fraction(0)
        of_class[category] = (overlap / size, similar, found / size) if size else None
    means = {}
    for name, chosen in (("all", {True, False}), ("things", {True}), ("stuff", {False})):
        some = [v for category, v in of_class.items() if v is not None and things[category] in chosen]
        means[name] = [sum(column) / len(some) for column in zip(*some, strict=True)] if some else None
    return of_class, means


def made(rng, classes=4, most=9):
    """Ids (H, W) of random areas, and category and crowd of each; now and then void."""
    ids = rng.integers(0, most, (3, 5)).repeat(2, 0).repeat(2, 1)
    ids[rng.random(ids.shape) < 0.1] = 0
    ids *= int(rng.choice([1, 300, 70000]))
    infos = {int(i): (int(rng.integers(0, classes)), bool(rng.random() < 0.25)) for i in np.unique(ids) if i}
    return ids, infos


def near(rng, truth, infos, classes=4):
    """A prediction that has much in common with a truth."""
    names = {0: 0} | {i: place for place, i in enumerate(infos, 1)}
    ids = np.vectorize(names.get)(truth).astype(np.int64)
    noise = rng.random(ids.shape) < 0.2
    ids[noise] = rng.integers(0, len(infos) + 2, ids.shape)[noise]
    there = [int(i) for i in np.unique(ids) if i]
    categories = dict(enumerate((category for category, _ in infos.values()), 1))
    return ids, {
        i: (int(rng.integers(0, classes)) if rng.random() < 0.2 else categories.get(i, 0), False)
        for i in there
    }


def segments(ids, infos):
    rows = np.full(ids.shape, len(infos))
    for place, i in enumerate(infos):
        rows[ids == i] = place
    values = list(infos.values())
    return Segments(
        rows, np.array([item[0] for item in values], np.int64), np.array([item[1] for item in values], bool)
    )


def close(figures, exact):
    """Whether percent and fractions are equal, but for what floats are off by."""
    if exact is None:
        return figures == (None, None, None)
    return all(
        figure == pytest.approx(float(100 * value), abs=1e-9)
        for figure, value in zip(figures, exact, strict=True)
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_as_the_slow_way(seed):
    rng = np.random.default_rng(seed)
    pictures, total = [], Tally.empty(4)
    for _ in range(3):
        truth, true_infos = made(rng)
        found, infos = near(rng, truth, true_infos)
        pictures.append((truth, true_infos, found, infos))
        total += tally(segments(truth, true_infos), segments(found, infos), 4)
    of_class, means = slow(pictures, dict(enumerate(THINGS.tolist())))
    for quality, exact in zip(total.of_classes(), of_class.values(), strict=True):
        assert close((quality.pq, quality.sq, quality.rq), exact)
    figures = total.figures(THINGS)
    for suffix, name in (("", "all"), ("th", "things"), ("st", "stuff")):
        assert close(tuple(figures[f"panoptic/{key}{suffix}"] for key in ("PQ", "SQ", "RQ")), means[name])


# ---------------------------------------------------------------------------------------------------- by hand


def one(truth, true_infos, found, infos, classes=4):
    return tally(segments(np.array(truth), true_infos), segments(np.array(found), infos), classes)


def counts(total, category):
    return tuple(int(values[category]) for values in (total.found, total.wrong, total.missed))


def test_by_hand():
    # Of a car of 6 pixels 4 are found with 1 beside it; of the sky all; a person is missed; a road is nowhere.
    truth = [[1, 1, 1, 2, 2], [1, 1, 1, 2, 2], [3, 3, 2, 2, 2]]
    found = [[5, 5, 0, 6, 6], [5, 5, 0, 6, 6], [5, 7, 6, 6, 6]]
    infos = {5: (1, False), 6: (2, False), 7: (3, False)}
    total = one(truth, {1: (1, False), 2: (2, False), 3: (0, False)}, found, infos)
    assert total.overlap.tolist() == [0, pytest.approx(4 / 7), 1, 0]
    assert [counts(total, i) for i in range(4)] == [(0, 0, 1), (1, 0, 0), (1, 0, 0), (0, 1, 0)]
    figures = total.figures(THINGS)
    assert figures == pytest.approx(
        {
            "panoptic/PQ": 100 * (4 / 7 + 1) / 4, "panoptic/SQ": 100 * (4 / 7 + 1) / 4, "panoptic/RQ": 50,
            "panoptic/PQth": 100 * 4 / 7 / 2, "panoptic/SQth": 100 * 4 / 7 / 2, "panoptic/RQth": 50,
            "panoptic/PQst": 50, "panoptic/SQst": 50, "panoptic/RQst": 50,
        }
    )  # fmt: skip


def test_a_class_of_several_segments():
    # Two cars of which one is found whole and one missed, and one more that is not there.
    truth = [[1, 1, 0, 2, 2, 3]]
    found = [[4, 4, 0, 0, 5, 6]]
    infos = {4: (1, False), 5: (1, False), 6: (1, False)}
    total = one(truth, {1: (1, False), 2: (1, False), 3: (0, False)}, found, infos)
    # 5 has one of two pixels: a half is not more than a half.
    assert counts(total, 1) == (1, 2, 1)
    quality = total.of_classes()[1]
    assert (quality.pq, quality.sq, quality.rq) == pytest.approx((40, 100, 40))
    assert (quality.found, quality.wrong, quality.missed) == (1, 2, 1)


def test_half_an_overlap_is_not_enough_and_void_is_no_part_of_a_union():
    truth, info = [[1, 1, 1, 0, 0, 2]], {1: (0, False), 2: (1, False)}
    assert counts(one(truth, info, [[0, 0, 5, 0, 0, 5]], {5: (0, False)}), 0) == (0, 1, 1)
    # 3 of 3 but for two pixels of void, which nobody counts.
    assert one(truth, info, [[5, 5, 5, 5, 5, 0]], {5: (0, False)}).overlap[0] == 1
    # 2 of 4: not more than a half.
    assert counts(one(truth, info, [[0, 5, 5, 5, 5, 5]], {5: (0, False)}), 0) == (0, 1, 1)


def test_another_class_is_no_match():
    total = one([[1, 1]], {1: (0, False)}, [[2, 2]], {2: (1, False)})
    assert (counts(total, 0), counts(total, 1)) == ((0, 0, 1), (0, 1, 0))


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ([5, 5, 5, 5, 0, 0, 0, 0], 0),  # void
        ([0, 0, 5, 5, 5, 5, 0, 0], 1),  # a half of it is not more than a half
        ([0, 5, 5, 5, 5, 0, 0, 0], 0),
        ([0, 0, 0, 0, 0, 0, 5, 5], 0),  # the crowd of its class
        ([0, 0, 0, 5, 5, 5, 5, 5], 0),  # void and crowd together
        ([0, 0, 0, 0, 5, 5, 5, 5], 1),
    ],
)
def test_what_lies_on_void_and_crowds_is_not_wrong(found, wrong):
    truth = [[0, 0, 0, 0, 1, 1, 2, 2]]
    total = one(truth, {1: (1, False), 2: (0, True)}, [found], {5: (0, False)})
    assert counts(total, 0) == (0, wrong, 0)


def test_a_crowd_of_another_class_is_not_ignored():
    total = one([[2, 2]], {2: (0, True)}, [[5, 5]], {5: (1, False)})
    assert counts(total, 1) == (0, 1, 0)
    assert counts(total, 0) == (0, 0, 0)


def test_a_crowd_is_never_found_nor_missed():
    total = one([[2, 2, 2]], {2: (0, True)}, [[5, 5, 5]], {5: (0, False)})
    assert counts(total, 0) == (0, 0, 0)
    assert total.of_classes()[0].pq is None


def test_of_two_crowds_of_a_class_the_last_counts():
    truth, info = [[2, 2, 3, 3]], {2: (0, True), 3: (0, True)}
    assert counts(one(truth, info, [[5, 5, 0, 0]], {5: (0, False)}), 0) == (0, 1, 0)
    assert counts(one(truth, info, [[0, 0, 5, 5]], {5: (0, False)}), 0) == (0, 0, 0)


def test_nothing_at_all():
    total = one([[0, 0]], {}, [[0, 0]], {})
    assert set(total.figures(THINGS).values()) == {None}
    assert [quality.pq for quality in total.of_classes()] == [None] * 4
    only = one([[1, 1]], {1: (2, False)}, [[0, 0]], {})
    assert only.figures(THINGS)["panoptic/PQst"] == 0
    assert only.figures(THINGS)["panoptic/PQth"] is None


# ----------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("seed", range(5))
def test_files_as_the_slow_way(seed, tmp_path):
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(4):
        truth, true_infos = made(rng)
        pictures.append((truth, true_infos, *near(rng, truth, true_infos)))
    write(tmp_path, [item[:2] for item in pictures])
    write(tmp_path, [item[2:] for item in pictures], "found", categories=False)
    score = evaluate.PanopticData.read(None, tmp_path / "truth.json").score(tmp_path / "found.json")
    of_class, means = slow(pictures, dict(enumerate(THINGS.tolist())))
    assert score.images == 4
    for name, exact in zip(NAMES, of_class.values(), strict=True):
        quality = score.quality[name]
        assert close((quality.pq, quality.sq, quality.rq), exact)
    for suffix, name in (("", "all"), ("th", "things"), ("st", "stuff")):
        assert close(
            tuple(score.metrics[f"panoptic/{key}{suffix}"] for key in ("PQ", "SQ", "RQ")), means[name]
        )
    assert json.loads(json.dumps(score.to_dict())) == score.to_dict()
    lines = [line.split() for line in score.table().splitlines()]
    assert lines[0] == [f"{tmp_path}/found.json,", "4", "images"]
    assert [line[0] for line in lines[2:12]] == ["percent", *score.metrics]
    assert [line[0] for line in lines[13:]] == ["class", "person", "car", "road", "sky"]  # by their ids
    assert len(lines[14]) == len(lines[13])


def test_a_model(tmp_path):
    write(tmp_path, TRUTH)
    model = Oracle(GOOD)
    report = evaluate.panoptic(model, tmp_path / "images", tmp_path / "truth.json")
    assert report.per_class == pytest.approx({"person": 0, "car": CARS, "sky": 100, "road": 0})
    assert report.metrics == pytest.approx(
        {
            "panoptic/PQ": (CARS + 100) / 4, "panoptic/SQ": (1100 / 14 + 100) / 4, "panoptic/RQ": (200 / 3 + 100) / 4,
            "panoptic/PQth": CARS / 2, "panoptic/SQth": 100 * 11 / 14 / 2, "panoptic/RQth": 100 / 3,
            "panoptic/PQst": 50, "panoptic/SQst": 50, "panoptic/RQst": 50,
        }
    )  # fmt: skip
    assert report.headline == report.metrics["panoptic/PQ"]
    assert report.quality["car"] == evaluate.ClassQuality(
        pytest.approx(CARS), pytest.approx(100 * 11 / 14), pytest.approx(200 / 3), 2, 1, 1
    )
    assert (report.images, report.segments, report.predicted, report.missing) == (2, 6, 6, ())
    # The model's own threshold.
    assert model.asked == [(1, 0.5), (2, 0.5)]
    assert report.threshold == 0.5
    content = report.to_dict()
    assert content == json.loads(json.dumps(content))
    assert content["quality"]["sky"] == {"pq": 100, "sq": 100, "rq": 100, "found": 1, "wrong": 0, "missed": 0}
    lines = [line.split() for line in report.table().splitlines()]
    assert lines[0] == [
        "theirs",
        "64x64,",
        "oracle",
        "fp32,",
        "2",
        "images,",
        "6",
        "segments,",
        "6",
        "predicted",
    ]
    assert ["panoptic/PQst", "50.00", "-", "-"] in lines
    assert ["class", "here", "published", "difference", "SQ", "RQ", "found", "wrong", "missed"] in lines
    assert f"car {CARS:.2f} - - 78.57 66.67 2 1 1".split() in lines
    # The files' way gives the same.
    write(tmp_path, FOUND, "found", categories=False)
    score = evaluate.PanopticData.read(None, tmp_path / "truth.json").score(tmp_path / "found.json")
    assert score.metrics == report.metrics
    assert dict(score.quality) == dict(report.quality)


def test_what_detections_write_is_what_is_read(tmp_path):
    write(tmp_path, TRUTH)
    (tmp_path / "found").mkdir()
    records = []
    for image_id, found in GOOD.items():
        records.append(found.to_coco_panoptic(image_id, category_ids=IDS))
        (tmp_path / "found" / records[-1]["file_name"]).write_bytes(found.panoptic_png())
    (tmp_path / "found.json").write_text(json.dumps({"annotations": records}))
    data = evaluate.PanopticData.read(tmp_path / "images", tmp_path / "truth.json")
    assert data.score(tmp_path / "found.json").metrics == data.measure(Oracle(GOOD)).metrics


def test_threshold_limit_and_stop(tmp_path):
    write(tmp_path, TRUTH)
    model = Oracle(GOOD)
    report = evaluate.panoptic(model, tmp_path / "images", tmp_path / "truth.json", threshold=0.25, limit=1)
    assert (model.asked, report.images, report.threshold) == ([(1, 0.25)], 1, 0.25)
    data = evaluate.PanopticData.read(tmp_path / "images", tmp_path / "truth.json")
    assert data.measure(Oracle(GOOD), stop=lambda: True).images == 1
    with pytest.raises(ValueError, match=r"^threshold: got 2"):
        data.measure(Oracle(GOOD), threshold=2)


def test_classes_without_a_category_are_void(tmp_path, caplog):
    write(tmp_path, TRUTH)
    spec = spec_of(("car", "tree", "sky", "person", "road"), stuff=(1, 2, 4))
    found = answer(*FOUND[0])
    other = Detections(
        xyxy=found.xyxy, confidence=found.confidence, class_id=[0, 1, 2], query=found.query, size=found.size,
        label_source=found._source.segments, is_thing=[True, False, False],
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "fai_fast"):
        report = evaluate.panoptic(
            Oracle({1: other}, spec), tmp_path / "images", tmp_path / "truth.json", limit=1
        )
    assert "no category for 1 of the model's classes" in caplog.text
    assert report.per_class["tree"] is None
    # What has the number of the sky there lies on the sky's place in the truth and elsewhere.
    assert report.quality["sky"] == evaluate.ClassQuality(0, 0, 0, 0, 1, 1)
    assert report.quality["road"].pq is None
    assert report.per_class["car"] == pytest.approx(100 * 4 / 7)


def test_a_model_that_counts_what_the_data_does_not(tmp_path, caplog):
    write(tmp_path, TRUTH)
    evaluate.PanopticData.read(None, tmp_path / "truth.json").check(spec_of())
    assert not caplog.text
    evaluate.PanopticData.read(None, tmp_path / "truth.json").check(spec_of(stuff=(1, 2, 3)))
    assert "do not agree on whether 'car' are things" in caplog.text


def test_comparisons_take_it(tmp_path):
    write(tmp_path, TRUTH)
    data = evaluate.PanopticData.read(tmp_path / "images", tmp_path / "truth.json")
    worse = {1: GOOD[1], 2: GOOD[2][[]]}
    comparison = evaluate.compare(
        lambda engine, precision: Oracle(GOOD if precision == "fp32" else worse),
        data.measure,
        [("oracle", "fp32"), ("oracle", "bf16")],
    )
    assert [run.precision for run in comparison.fallen] == ["bf16"]
    assert comparison.table().splitlines()[2].split()[:4] == ["percent", "PQ", "SQ", "RQ"]


class Shaped(Oracle):
    """Finds what is there with an input of the picture's shape, and nothing with its own."""

    _size_is_open = True

    def _tell_no_aspect(self):
        pass

    def _with_size(self, size):
        made = Shaped(GOOD, self.spec)
        made.size = size
        return made


def test_pictures_of_another_shape_get_an_input_of_theirs(tmp_path):
    write(tmp_path, TRUTH)  # 3x5 and 1x6
    nothing = {i: found[[]] for i, found in GOOD.items()}
    report = evaluate.panoptic(Shaped(nothing), tmp_path / "images", tmp_path / "truth.json")
    assert report.metrics == read(tmp_path).metrics
    assert sum(images for _, images in report.sizes) == 2
    assert all(size != (64, 64) for size, _ in report.sizes)
    effect = report.size_effect
    assert (effect.images, effect.own_size, effect.own) == (2, (64, 64), 0)
    assert effect.shaped == report.headline
    assert "panoptic/PQ" in report.table().splitlines()[-1]
    plain = evaluate.panoptic(Shaped(GOOD), tmp_path / "images", tmp_path / "truth.json", buckets=1)
    assert (plain.sizes, plain.size_effect) == ((), None)


def test_other_models_are_refused(tmp_path):
    write(tmp_path, TRUTH)
    data = evaluate.PanopticData.read(None, tmp_path / "truth.json")
    for name, call in (("fai-mf-n-shapes", "coco"), ("fai-mf-m-ade", "ade")):
        with pytest.raises(ValueError, match=rf"expected a panoptic one; measure it with {call}\(\)"):
            data.check(fai_fast.spec(name))
    for other in (evaluate.AdeData(()), evaluate.CocoData("a.json", (), {}, [])):
        with pytest.raises(
            ValueError, match=r"is a panoptic model, expected an? .* one; measure it with panoptic\(\)"
        ):
            other.check(spec_of())
    with pytest.raises(
        ValueError, match=r"^annotations: categories of .* are no classes of the model: 'person'"
    ):
        data.check(spec_of(("man", "car", "sky", "road")))


# ------------------------------------------------------------------------------------------- files that are wrong


def read(folder, **options):
    return evaluate.panoptic(Oracle(GOOD), folder / "images", folder / "truth.json", **options)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda d: d["annotations"][0].pop("segments_info"), r"annotations\[0\]: 'segments_info' is None"),
        (lambda d: d["annotations"][0].update(file_name=3), r"annotations\[0\]: 'file_name' is 3"),
        (
            lambda d: d["annotations"][0].update(file_name="../a.png"),
            r"annotations\[0\]: file_name '../a.png' leaves",
        ),
        (lambda d: d["annotations"][0].update(image_id=9), r"annotations\[0\]: image_id 9 is no image's id"),
        (lambda d: d["annotations"][0].update(image_id=2), r"annotations\[1\]: image_id 2 is there twice"),
        (
            lambda d: d["categories"][2].pop("isthing"),
            r"categories\[2\]: 'isthing' is missing, expected 0 or 1",
        ),
        (lambda d: d["categories"][2].update(isthing=2), r"categories\[2\]: 'isthing' is 2, expected 0 or 1"),
        (lambda d: d["categories"][2].update(name="car"), r"categories\[2\]: name 'car' is there twice"),
        (lambda d: d["images"][0].update(height="6"), r"images\[0\]: 'height' is '6', expected int"),
        (lambda d: d.pop("categories"), r"has no list 'categories', expected COCO's panoptic format"),
        (lambda d: d.update(annotations=[]), r"lists no annotations"),
        (lambda d: d["annotations"].append(4), r"annotations\[2\] is 4, expected an object"),
    ],
)
def test_hostile_jsons(edit, text, tmp_path):
    write(tmp_path, TRUTH)
    change(tmp_path, edit)
    with pytest.raises(ValueError, match=rf"^annotations: .*truth\.json.*{text}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("edit", "error", "text"),
    [
        ({"id": 0}, ValueError, r"segments_info\[1\]\.id: got 0, expected 1 to 16777215"),
        ({"id": None}, TypeError, r"segments_info\[1\]\.id: got None, expected an integer"),
        ({"id": 1}, ValueError, r"\.segments_info: id 1 is there twice"),
        ({"category_id": 77}, ValueError, r"segments_info\[1\]: category_id 77 is no category's id"),
        ({"category_id": None}, ValueError, r"segments_info\[1\]: 'category_id' is None, expected int"),
        ({"iscrowd": 2}, ValueError, r"segments_info\[1\]: 'iscrowd' is 2, expected 0 or 1"),
    ],
)
def test_hostile_segments(edit, error, text, tmp_path):
    write(tmp_path, TRUTH)
    change(tmp_path, lambda d: d["annotations"][0]["segments_info"][1].update(edit))
    with pytest.raises(error, match=rf"^annotations: .*truth\.json: annotations\[0\].*{text}"):
        read(tmp_path)


def test_segments_without_iscrowd_are_none(tmp_path):
    write(tmp_path, TRUTH)
    expected = read(tmp_path, limit=1)
    change(tmp_path, lambda d: [info.pop("iscrowd") for info in d["annotations"][0]["segments_info"]])
    assert read(tmp_path, limit=1) == expected


def test_ids_in_one_of_png_and_json_only(tmp_path):
    write(tmp_path, TRUTH)
    change(tmp_path, lambda d: d["annotations"][1]["segments_info"].pop(2))
    with pytest.raises(
        ValueError, match=r"000002\.png: got pixels of id 300 .*, which annotations: .*segments_info does not"
    ):
        read(tmp_path)
    write(tmp_path, TRUTH)
    change(tmp_path, lambda d: d["annotations"][1]["segments_info"].append({"id": 9, "category_id": 1}))
    with pytest.raises(
        ValueError, match=r"truth\.json: segments_info: got id 9, which no pixel of .*000002\.png has"
    ):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (lambda ids: b"text", r"got 4 bytes that are not a PNG"),
        (lambda ids: png_of(ids)[:-30], r"got a damaged PNG"),
        (lambda ids: png_of(np.pad(ids, 1)), r"got a PNG of 5 x 7 pixels, expected 3 x 5"),
        (lambda ids: palette(ids), r"got a PNG of a palette with 8 bits, expected RGB with 8 bits each"),
    ],
)
def test_hostile_pngs(content, text, tmp_path):
    write(tmp_path, TRUTH)
    path = tmp_path / "truth" / "000001.png"
    path.write_bytes(content(np.array(TRUTH[0][0])))
    with pytest.raises(ValueError, match=rf"000001\.png: {text}"):
        read(tmp_path)


def palette(ids):
    file = io.BytesIO()
    Image.fromarray(ids.astype(np.uint8)).convert("P").save(file, format="PNG")
    return file.getvalue()


def test_a_picture_of_another_size_than_its_annotation(tmp_path):
    write(tmp_path, TRUTH)
    wrong = {1: answer([[5, 0]], {5: (1, False)})}
    with pytest.raises(
        ValueError, match=r"000001\.png: 1x2 pixels \(height x width\), expected 3x5 as .*truth\.json says"
    ):
        evaluate.panoptic(Oracle(wrong), tmp_path / "images", tmp_path / "truth.json", limit=1)


@pytest.mark.parametrize("folder", ["truth", "images"])
def test_missing_files(folder, tmp_path):
    write(tmp_path, TRUTH)
    (tmp_path / folder / "000002.png").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=rf"^annotations: 1 of 2 files are missing.*{folder}/000002\.png; skip_missing",
    ):
        read(tmp_path)
    report = read(tmp_path, skip_missing=True)
    assert report.images == 1
    assert report.missing == (str(tmp_path / folder / "000002.png"),)


def test_missing_folders(tmp_path):
    write(tmp_path, TRUTH)
    with pytest.raises(FileNotFoundError, match=r"^images: no such folder: .*nowhere"):
        evaluate.panoptic(Oracle(GOOD), tmp_path / "nowhere", tmp_path / "truth.json")
    with pytest.raises(FileNotFoundError, match=r"^segments: no such folder: .*nowhere$"):
        evaluate.panoptic(Oracle(GOOD), tmp_path / "images", tmp_path / "truth.json", tmp_path / "nowhere")
    (tmp_path / "truth").rename(tmp_path / "pngs")
    with pytest.raises(
        FileNotFoundError, match=r"^segments: no such folder: .*truth; give segments=, the folder of the PNGs"
    ):
        read(tmp_path)
    assert (
        evaluate.panoptic(
            Oracle(GOOD), tmp_path / "images", tmp_path / "truth.json", tmp_path / "pngs"
        ).images
        == 2
    )
    with pytest.raises(FileNotFoundError, match=r"^annotations: no such file"):
        evaluate.panoptic(Oracle(GOOD), tmp_path / "images", tmp_path / "else.json")


def test_predictions_with_images_and_categories_of_their_own_are_matched_by_name(tmp_path):
    write(tmp_path, TRUTH)
    write(tmp_path, FOUND, "found", categories=False)
    data = evaluate.PanopticData.read(None, tmp_path / "truth.json")
    expected = data.score(tmp_path / "found.json")
    ids = {category: 50 - category for category in (*IDS, 5)}

    def renumber(document):
        document["images"] = [
            {"id": "first", "file_name": "/elsewhere/000001.png"},
            {"id": 1, "file_name": "000002.png"},
            {"id": 3, "file_name": "000003.png"},
        ]
        document["categories"] = [{"id": ids[5], "name": "tree"}]
        document["categories"] += [{"id": ids[i], "name": name} for i, name in zip(IDS, NAMES, strict=True)]
        for record, key in zip(document["annotations"], ("first", 1), strict=True):
            record["image_id"] = key
            for info in record["segments_info"]:
                info["category_id"] = ids[info["category_id"]]

    change(tmp_path, renumber, "found")
    assert data.score(tmp_path / "found.json") == expected
    change(tmp_path, lambda d: d["images"].append({"id": 9, "file_name": "a/000001.png"}), "found")
    with pytest.raises(ValueError, match=r"images\[3\]: file_name '000001.png' is there twice"):
        data.score(tmp_path / "found.json")
    change(tmp_path, lambda d: d.update(images=[4]), "found")
    with pytest.raises(
        ValueError, match=r"^predictions: .*found\.json: 'images' is \[4\], expected a list of objects"
    ):
        data.score(tmp_path / "found.json")


def test_ids_that_are_texts(tmp_path):
    for name, pictures in (("truth", TRUTH), ("found", FOUND)):
        write(tmp_path, pictures, name, categories=name == "truth")

        def rename(document):
            for item in document.get("images", ()):
                item["id"] = f"picture {item['id']}"
            for item in document.get("categories", ()):
                item["id"] = f"class {item['id']}"
            for record in document["annotations"]:
                record["image_id"] = f"picture {record['image_id']}"
                for info in record["segments_info"]:
                    info["category_id"] = f"class {info['category_id']}"

        change(tmp_path, rename, name)
    data = evaluate.PanopticData.read(tmp_path / "images", tmp_path / "truth.json")
    report = data.measure(Oracle(GOOD))
    assert report.per_class["car"] == pytest.approx(CARS)
    assert data.score(tmp_path / "found.json").metrics == report.metrics
    change(tmp_path, lambda d: d["annotations"].pop(), "found")
    with pytest.raises(ValueError, match=r"has no annotation of image 'picture 2', 000002\.png"):
        data.score(tmp_path / "found.json")


def test_predictions_that_are_not_there(tmp_path):
    write(tmp_path, TRUTH)
    write(tmp_path, FOUND, "found", categories=False)
    data = evaluate.PanopticData.read(None, tmp_path / "truth.json")
    change(tmp_path, lambda d: d["annotations"].append(record_of(77, {})), "found")  # of another picture
    assert data.score(tmp_path / "found.json").images == 2
    (tmp_path / "found" / "000002.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"^predictions: .*annotations\[1\]: no such file: .*000002\.png"
    ):
        data.score(tmp_path / "found.json")
    change(tmp_path, lambda d: d["annotations"].pop(1), "found")
    with pytest.raises(ValueError, match=r"^predictions: .*found\.json has no annotation of image 2"):
        data.score(tmp_path / "found.json")
    change(tmp_path, lambda d: d["annotations"][0]["segments_info"][0].update(category_id=5), "found")
    with pytest.raises(
        ValueError, match=r"^predictions: .*annotations\[0\]\.segments_info\[0\]: category_id 5 is no"
    ):
        data.score(tmp_path / "found.json")
