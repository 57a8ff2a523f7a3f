"""Evaluation by the pictures' shapes: which inputs there are, and what they change."""

from __future__ import annotations

import dataclasses
import json
import logging

import fai_fast
import numpy as np
import pytest
from fai_fast import evaluate
from fai_fast._sizes import aspects_differ
from fai_fast.evaluate.shapes import _Bucket, _buckets, _sample
from helpers.networks import network, small_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("faster_coco_eval")
evaluated = pytest.importorskip("test_evaluate")

OWN = (192, 192)
WIDE, HIGH, SQUARE, FLAT = (270, 480), (480, 270), (300, 300), (300, 900)

# ------------------------------------------------------------------------------------------------------- buckets


def test_pictures_of_four_shapes_get_four_sizes():
    sizes = [WIDE, SQUARE, HIGH, WIDE, FLAT, WIDE, (310, 300)]
    assert _buckets(sizes, OWN, 4) == [
        _Bucket((160, 288), (0, 3, 5)),
        _Bucket(OWN, (1, 6)),
        _Bucket(fai_fast.fit_size(FLAT, area=192 * 192), (4,)),
        _Bucket((288, 160), (2,)),
    ]


def test_the_nearest_shapes_are_joined_where_there_are_more_than_buckets():
    # 4:3 and 3:2 are nearest; few pictures move before many.
    sizes = [*[(300, 400)] * 5, *[(300, 450)] * 2, *[HIGH] * 5, *[FLAT] * 5]
    found = _buckets(sizes, OWN, 3)
    assert sorted(bucket.pictures for bucket in found) == [
        (0, 1, 2, 3, 4, 5, 6),
        (7, 8, 9, 10, 11),
        (12, 13, 14, 15, 16),
    ]
    assert len(_buckets(sizes, OWN, 1)) == 1


def test_a_picture_that_cannot_be_read_keeps_the_own_size():
    assert _buckets([None, WIDE], OWN, 4) == [_Bucket((160, 288), (1,)), _Bucket(OWN, (0,))]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_buckets_divide_the_pictures(sizes, most):
    found = _buckets(sizes, OWN, most)
    assert 1 <= len(found) <= most
    assert sorted(index for bucket in found for index in bucket.pictures) == list(range(len(sizes)))
    assert len({bucket.size for bucket in found}) == len(found)
    for bucket in found:
        assert all(side % 32 == 0 for side in bucket.size)
    if most >= len({fai_fast.fit_size(size, area=192 * 192) for size in sizes} | {OWN}):
        for bucket in found:
            for index in bucket.pictures:
                near = not aspects_differ(sizes[index], OWN)
                assert bucket.size == (OWN if near else fai_fast.fit_size(sizes[index], area=192 * 192))


def test_the_sample_is_spread_evenly_and_only_others_run_again():
    plan = [_Bucket((160, 288), tuple(range(0, 100, 2))), _Bucket(OWN, tuple(range(1, 100, 2)))]
    sample, again = _sample(plan, OWN, 100, 10)
    assert sample == list(range(0, 100, 10))
    assert again == _Bucket(OWN, tuple(range(0, 100, 10)))
    sample, again = _sample(plan, OWN, 100, 1000)
    assert (len(sample), len(again.pictures)) == (100, 50)


# ------------------------------------------------------------------------------------- with answers that are known


class Shaped(evaluated.Oracle):
    """Finds more with an input of the picture's shape; `made` are the models that were made of it."""

    size = OWN
    _size_is_open = True

    def __init__(self, shaped, own, size=OWN):
        super().__init__(own)
        self.shaped, self.own, self.size = shaped, own, size
        self.made = []

    def _tell_no_aspect(self):
        pass

    def _with_size(self, size):
        made = Shaped(self.shaped, self.shaped, size)
        self.made.append(made)
        return made


LOW, TALL = (24, 48), (48, 24)


def masks(size):
    whole = np.zeros(size, bool)
    whole[4:20, 4:20] = True
    part = np.zeros(size, bool)
    part[4:20, 4:15] = True
    return whole, part


@pytest.fixture
def pictures(tmp_path):
    """Two wide ones, a high one and a square one, each with one object."""
    (tmp_path / "images").mkdir()
    images, objects, right, half = [], [], {}, {}
    for key, size in enumerate([LOW, TALL, LOW, (24, 24)], 1):
        Image.fromarray(np.full((*size, 3), key, np.uint8)).save(tmp_path / "images" / f"{key}.png")
        images.append({"id": key, "file_name": f"{key}.png", "height": size[0], "width": size[1]})
        whole, part = masks(size)
        objects += evaluated.objects_of(key, (1, whole))
        right[key] = evaluated.found((0, 0.9, whole), size=size)
        half[key] = evaluated.found((0, 0.9, part), size=size)
    content = {
        "images": images,
        "annotations": objects,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(evaluated.SHAPES.classes)],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path, right, half


def test_each_shape_has_its_input_and_the_report_says_what_that_changed(pictures, caplog):
    folder, right, half = pictures
    model = Shaped(right, {**half, 4: right[4]})
    with caplog.at_level(logging.INFO, "fai_fast"):
        report = evaluated.measure(model, folder)
    assert report.metrics["segm/AP"] == 100
    assert report.im_size == OWN
    assert report.sizes == (
        (fai_fast.fit_size(LOW, area=192 * 192), 2),
        (OWN, 1),
        (fai_fast.fit_size(TALL, area=192 * 192), 1),
    )
    assert [made.size for made in model.made] == [report.sizes[0][0], report.sizes[2][0]]
    assert [[key for key, *_ in made.asked] for made in model.made] == [[1, 3], [2]]
    assert all(made.closed for made in model.made)
    # The square one in its turn, then the others in the model's own size.
    assert [key for key, *_ in model.asked] == [4, 1, 2, 3]
    effect = report.size_effect
    assert (effect.images, effect.own_size, effect.shaped) == (4, OWN, 100)
    alone = evaluated.measure(Shaped(right, {**half, 4: right[4]}), folder, buckets=1)
    assert effect.own == alone.metrics["segm/AP"] < 100
    assert effect.difference == 100 - effect.own
    assert (alone.sizes, alone.size_effect) == ((), None)
    lines = report.table().splitlines()
    low, high = ("x".join(map(str, fai_fast.fit_size(size, area=192 * 192))) for size in (LOW, TALL))
    assert lines[0].startswith(f"fai-mf-n-shapes {low} (2) + 192x192 (1) + {high} (1), oracle fp32, 4 images")
    assert lines[-1] == (
        f"Inputs in the pictures' shapes: segm/AP 100.00, with 192x192 for all {effect.own:.2f}, "
        f"{100 - effect.own:+.2f}, on 4 of the images."
    )
    content = report.to_dict()
    assert content["sizes"][0] == [list(report.sizes[0][0]), 2]
    assert content["size_effect"] == {"images": 4, "own_size": [192, 192], "shaped": 100, "own": effect.own}
    assert [record.getMessage() for record in caplog.records] == [
        f"fai-mf-n-shapes: the network's input (height x width) is {low} for 2, 192x192 for 1, {high} for 1 pictures"
    ]


@pytest.mark.parametrize(("compare", "runs"), [(0, []), (1, [1]), (2, [1, 3]), (3, [1, 3])])
def test_only_some_pictures_are_run_twice(pictures, compare, runs):
    folder, right, half = pictures
    model = Shaped(right, half)
    report = evaluated.measure(model, folder, compare_sizes=compare)
    assert [key for key, *_ in model.asked] == [4, *runs]
    assert (report.size_effect is None) == (compare == 0)
    if compare:
        assert report.size_effect.images == len(runs)


def test_a_model_whose_size_was_asked_for_keeps_it(pictures):
    folder, right, half = pictures
    model = Shaped(right, half)
    model._size_is_open = False
    report = evaluated.measure(model, folder)
    assert [key for key, *_ in model.asked] == [1, 2, 3, 4]
    assert (model.made, report.sizes, report.size_effect) == ([], (), None)


def test_what_was_stopped_is_of_the_pictures_until_then(pictures):
    folder, right, half = pictures
    data = evaluate.CocoData.read(folder / "images", folder / "instances.json")
    asked = []

    def stop():
        asked.append(None)
        return len(asked) == 2

    report = data.measure(Shaped(right, half), stop=stop)
    # Of the wide ones both, then not the square one.
    assert (report.images, report.objects, report.sizes) == (
        2,
        2,
        ((fai_fast.fit_size(LOW, area=192 * 192), 2),),
    )
    assert report.size_effect is None
    assert report.metrics["segm/AP"] == 100


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"buckets": 0}, ValueError, r"buckets: got 0, expected 1 \(the model's own size for all\)"),
        ({"buckets": 65}, ValueError, "buckets: got 65"),
        ({"buckets": 2.0}, TypeError, "buckets: got 2.0"),
        ({"compare_sizes": -1}, ValueError, "compare_sizes: got -1"),
        ({"compare_sizes": "all"}, TypeError, "compare_sizes: got 'all'"),
    ],
)
def test_wrong_arguments_are_named(pictures, options, error, text):
    folder, right, half = pictures
    with pytest.raises(error, match=text):
        evaluated.measure(Shaped(right, half), folder, **options)


# --------------------------------------------------------------------------------------------------- with networks


def test_a_semantic_model_is_measured_by_shapes_too(tmp_path):
    pytest.importorskip("torch")
    spec = dataclasses.replace(small_spec("bisenetformer"), im_size=64)
    state = network(spec).state_dict()
    for folder in ("images", "annotations"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for key, size in enumerate([(50, 100), (60, 60), (50, 100)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"images/{key}.png")
        Image.fromarray(rng.integers(0, 4, size, np.uint8)).save(tmp_path / f"annotations/{key}.png")
    options = {"weights": state, "cache_dir": tmp_path / "cache", "precision": "fp32"}
    shape = fai_fast.fit_size((50, 100), area=64 * 64)
    with fai_fast.load(spec, **options) as model:
        report = evaluate.ade(model, tmp_path)
        own = evaluate.ade(model, tmp_path, buckets=1)
    with fai_fast.load(spec, im_size=shape, **options) as wide:
        fixed = evaluate.ade(wide, tmp_path)
    assert report.sizes == ((shape, 2), ((64, 64), 1))
    assert (own.sizes, fixed.sizes, own.im_size, fixed.im_size) == ((), (), (64, 64), shape)
    effect = report.size_effect
    assert (effect.images, effect.shaped, effect.own) == (3, report.headline, own.headline)
    json.dumps(report.to_dict(), allow_nan=False)
    # The square picture is in the model's own size in both.
    with fai_fast.load(spec, **options) as model:
        alone = evaluate.AdeData.read(tmp_path).pairs
        square = dataclasses.replace(evaluate.AdeData.read(tmp_path), pairs=alone[1:2]).measure(model)
        others = dataclasses.replace(evaluate.AdeData.read(tmp_path), pairs=(alone[0], alone[2])).measure(
            model
        )
    np.testing.assert_array_equal(square.confusion + others.confusion, report.confusion)
    assert others.sizes == ((shape, 2),)


def test_the_command_line_hands_buckets_on(tmp_path, monkeypatch, capsys, pictures):
    from fai_fast import cli

    folder, right, half = pictures
    made = []

    def load(name, **options):
        made.append((options["im_size"], options["frame"]))
        return Shaped(right, {**half, 4: right[4]})

    monkeypatch.setattr(fai_fast, "load", load)
    command = [
        "eval",
        "fai-mf-n-shapes",
        "--images",
        str(folder / "images"),
        "--coco",
        str(folder / "instances.json"),
    ]
    assert cli.main(command) == 0
    assert "Inputs in the pictures' shapes: segm/AP 100.00" in capsys.readouterr().out
    assert cli.main([*command, "--buckets", "1"]) == 0
    assert "Inputs in" not in capsys.readouterr().out
    assert cli.main([*command, "--compare-sizes", "0"]) == 0
    out = capsys.readouterr().out
    assert " (2) + " in out
    assert "Inputs in" not in out
    assert cli.main([*command, "--compare", "fp32,bf16"]) == 0
    assert "Inputs in" not in capsys.readouterr().out
    assert set(made) == {(None, None)}
    assert cli.main([*command, "--frame", "1920x1080"]) == 0
    assert made[-1] == (None, (1080, 1920))
    for wrong in (["--buckets", "0"], ["--compare-sizes", "-1"], ["--compare-sizes", "some"]):
        assert cli.main([*command, *wrong]) == 2
