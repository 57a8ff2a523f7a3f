"""What a low precision finds, held against fp32: metrics by hand, networks whose low precision is damaged, words."""

from __future__ import annotations

import dataclasses
import json
import logging

import fai_fast
import numpy as np
import pytest
from fai_fast import _gate, _scenes, doctor
from fai_fast._gate import Verdict, verify
from fai_fast._pictures import MOST, Pictures
from fai_fast.engines import openvino
from fai_fast.weights import load_weights
from helpers.golden_forward import golden_parameter
from PIL import Image

SIDE = 32
CLASSES = 4
SURE = 6.0  # a logit
COUNT = 12  # things in a picture


def spec_of(task="instance", **changes):
    base = fai_fast.spec("fai-mf-n-shapes")
    semantic = task == "semantic"
    settings = {
        "num_classes": CLASSES,
        "postprocessing_type": task,
        "predict_all_pixels": semantic,
        "use_mask_score": not semantic,
    }
    return dataclasses.replace(
        base,
        task=task,
        classes=("a", "b", "c", "d"),
        config=dataclasses.replace(base.config, **{**settings, **changes}),
    )


def logit(probability):
    """A class logit that has this probability where the other four are zero."""
    return np.log(4 * probability / (1 - probability))


def scene(scores=(0.95,) * COUNT, size=(8, 6)):
    """Outputs for one picture: things of a 4x3 grid in 16 queries, of which the last find nothing."""
    masks = np.full((1, 16, SIDE, SIDE), -SURE, np.float32)
    classes = np.zeros((1, 16, CLASSES + 1), np.float32)
    classes[..., -1] = SURE
    for index, score in enumerate(scores):
        top, left = 10 * (index // 4), 8 * (index % 4)
        masks[0, index, top : top + size[0], left : left + size[1]] = SURE
        classes[0, index, -1] = 0
        classes[0, index, index % CLASSES] = logit(score)
    return masks, classes


def run_of(*outputs):
    """A function that gives these in turn."""
    turns = iter(outputs)
    return lambda image: next(turns)


def quality(low, exact, spec=None):
    spec = spec_of() if spec is None else spec
    picture = Pictures.given([np.zeros((SIDE, SIDE, 3), np.uint8)])
    return verify(run_of(low), run_of(exact), picture, spec, size=(SIDE, SIDE))


# Panoptic quality


def test_what_is_the_same_is_of_quality_one():
    found = quality(scene(), scene())
    assert (found.metric, found.value, found.holds) == ("panoptic quality", 1.0, True)
    assert str(found) == "panoptic quality 1 (at least 0.9) of 12 detections on 1 picture"


def shifted(query, columns):
    masks, classes = scene()
    masks[0, query] = np.roll(masks[0, query], columns, -1)
    return masks, classes


def test_a_mask_counts_by_its_intersection_over_union():
    # Four of six columns are common, of eight.
    found = quality(shifted(0, 1), scene())
    assert found.value == pytest.approx((11 + 5 / 7) / 12)
    # Three of nine columns are no match: one is missed, one invented.
    assert quality(shifted(0, 3), scene()).value == pytest.approx(11 / 12)


@pytest.mark.parametrize("swapped", [False, True])
def test_what_is_missed_counts_like_what_is_invented(swapped):
    pair = scene((0.95,) * 11), scene()
    found = quality(*(pair[::-1] if swapped else pair))
    assert found.value == pytest.approx(11 / 11.5)
    assert found.of == "12 detections"


def test_another_class_is_missed_and_invented():
    masks, classes = scene()
    classes[0, 3, 2:4] = classes[0, 3, [3, 2]]
    found = quality((masks, classes), scene())
    assert found.value == pytest.approx(11 / 12)
    assert found.holds
    classes[0, :3, :4] = classes[0, :3, 3::-1].copy()
    found = quality((masks, classes), scene())
    assert found.value == pytest.approx(8 / 12)
    assert not found.holds
    assert str(found).startswith("panoptic quality 0.6667 (less than 0.9) of 16 detections")


def test_a_score_far_from_its_own_is_another_thing():
    assert quality(scene((0.95,) * 11 + (0.87,)), scene()).value == 1
    assert quality(scene((0.95,) * 11 + (0.80,)), scene()).value == pytest.approx(11 / 12)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("low", "exact"), [(0.45, 0.55), (None, 0.55), (0.58, None), (0.61, 0.55)])
def test_rows_near_the_threshold_need_not_be_found(swapped, low, exact):
    spec = spec_of(threshold=0.5, use_mask_score=False)
    pair = [scene((0.95,) * 11 + ((score,) if score else ())) for score in (low, exact)]
    assert quality(*(pair[::-1] if swapped else pair), spec).value == 1


def test_each_thing_is_matched_once():
    masks, classes = scene()
    masks[0, 12], classes[0, 12] = masks[0, 0], classes[0, 0]
    assert quality((masks, classes), scene()).value == pytest.approx(12 / 12.5)


@pytest.mark.parametrize("part", [0, 1])
def test_a_row_with_a_nan_is_missed(part):
    low = scene()
    low[part][0, 5].flat[3] = np.nan
    assert quality(low, scene()).value == pytest.approx(11 / 11.5)


def test_pictures_are_pooled():
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    low, exact = run_of(scene(), scene((0.95,) * 2)), run_of(scene(), scene((0.95,) * 4))
    found = verify(low, exact, Pictures.given([picture] * 2), spec_of(), size=(SIDE, SIDE))
    assert found.value == pytest.approx(14 / 15)
    assert (found.of, found.pictures) == ("16 detections", "2 pictures")


def test_outputs_of_other_shapes_are_refused():
    masks, classes = scene()
    with pytest.raises(
        ValueError, match=r"mask_logits: got shape \(15, 32, 32\), expected .* \(16, 32, 32\)"
    ):
        quality((masks[:, :15], classes), scene())
    with pytest.raises(ValueError, match="size: got None with a function"):
        verify(run_of(), run_of(), Pictures.drawn((32, 32)), spec_of())


# Pixel accuracy


def halves(score=0.95, other=0.95, masks=(SURE, -SURE)):
    """Class 0 on the left half and class 1 on the right one."""
    inside, outside = masks
    logits = np.full((1, 4, SIDE, SIDE), -SURE, np.float32)
    logits[0, :2] = outside
    logits[0, 0, :, : SIDE // 2] = logits[0, 1, :, SIDE // 2 :] = inside
    classes = np.zeros((1, 4, CLASSES + 1), np.float32)
    classes[0, 2:, -1] = SURE
    classes[0, 0, 0], classes[0, 1, 1] = logit(score), logit(other)
    return logits, classes


def test_pixels_of_a_semantic_model_are_counted():
    spec = spec_of("semantic")
    found = quality(halves(), halves(), spec)
    assert (found.metric, found.value) == ("pixel accuracy", 1.0)
    assert str(found) == "pixel accuracy 1 (at least 0.97) of 100% of the pixels on 1 picture"
    masks, classes = halves()
    masks[0, 1, :2, : SIDE // 2], masks[0, 0, :2, : SIDE // 2] = SURE, -SURE
    found = quality((masks, classes), halves(), spec)
    assert found.value == pytest.approx(1 - 1 / 32)
    assert not found.holds
    # A class that another query finds is the same class.
    classes[0, 1] = classes[0, 0]
    assert quality((masks, classes), halves(), spec).value == pytest.approx(0.5)


def test_pixels_that_two_classes_share_may_be_of_either():
    spec = spec_of("semantic")
    tied = halves(masks=(0.05, -0.05))  # probabilities of 0.51 and 0.49
    other = halves(masks=(-0.05, 0.05))
    found = quality(tied, other, spec)
    assert found.metric == "signal-to-noise ratio"
    assert "a class for 0% of the pixels" in found.note
    # Three quarters of the picture are sure: the others are left out.
    masks, classes = halves()
    masks[0, :2, :8] = tied[0][0, :2, :8]
    low = masks.copy()
    low[0, :2, :8] *= -1
    found = quality((low, classes), (masks, classes), spec)
    assert (found.value, found.of) == (1.0, "75% of the pixels")


def test_pixels_below_the_threshold_are_not_seen():
    spec = spec_of("semantic", threshold=0.5)
    found = quality(halves(0.95, 0.45), halves(0.95, 0.45), spec)
    assert "little but one class" in found.note
    assert quality(halves(0.95, 0.2), halves(), spec).value == pytest.approx(0.5)
    assert quality(halves(), halves(0.95, 0.2), spec).metric == "signal-to-noise ratio"


def test_a_query_with_a_nan_takes_no_pixel():
    masks, classes = halves()
    masks[0, 1, 3, 3] = np.nan
    assert quality((masks, classes), halves(), spec_of("semantic")).value == pytest.approx(0.5)


# Signal-to-noise ratio


def test_logits_are_compared_where_little_is_found():
    exact = scene((0.95,) * 3)
    found = quality(exact, exact)
    assert (found.metric, found.value, found.unit) == ("signal-to-noise ratio", 99.0, " dB")
    assert found.note.startswith("the pictures show little of what this model finds (3 detections)")
    assert found.of == "the logits of the 10 surest queries"
    masks, classes = exact
    found = quality((masks * np.float32(0.8), classes), exact)
    assert found.value == pytest.approx(10 * np.log10(1 / 0.04), abs=1e-3)
    assert not found.holds
    assert "13.98 dB (less than 20 dB)" in str(found)
    # What all classes have in common changes no probability; the classes themselves do.
    assert quality((masks, classes + 3), exact).value > 90
    assert quality((masks, classes[..., ::-1]), exact).holds is False


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_noise(value):
    exact = scene((0.95,) * 3)
    low = exact[0].copy(), np.full_like(exact[1], value)
    found = quality(low, exact)
    assert not found.holds
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_nothing_at_all_is_not_a_yes(task):
    """A network that is sure of nothing is still compared, and noise in place of it is seen."""
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(1, 16, SIDE, SIDE)), rng.normal(scale=0.1, size=(1, 16, CLASSES + 1))
    low = [array + rng.normal(scale=0.3 * array.std(), size=array.shape) for array in exact]
    spec = spec_of(task)
    assert quality(exact, exact, spec).holds
    found = quality(low, exact, spec)
    assert (found.metric, found.holds) == ("signal-to-noise ratio", False)


def test_a_verdict_survives_json():
    found = quality(shifted(0, 1), scene())
    assert Verdict.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.to_dict()["holds"] is True
    assert not dataclasses.replace(found, value=float("nan")).holds


# Pictures


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (160, 96), (33, 640)])
def test_drawn_pictures(size):
    pictures = Pictures.drawn(size)
    first, *others = pictures.frames()
    assert first.shape == (*size, 3)
    assert first.dtype == np.uint8
    assert not any(np.array_equal(first, other) for other in others)
    assert np.array_equal(first, next(pictures.frames()))
    assert pictures.source == f"{len(others) + 1} drawn pictures"


def test_the_demo_model_finds_what_is_drawn(cache_dir):
    options = {"precision": "fp32", "im_size": 128, "num_threads": 1, "engine": "openvino"}
    with fai_fast.load("fai-mf-n-shapes", cache_dir=cache_dir, **options) as model:
        found = [len(model.infer(frame)) for frame in Pictures.drawn((128, 128)).frames()]
    assert min(found) >= 2
    assert sum(found) >= 2 * _gate.MIN_ROWS


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "photos"
    place.mkdir()
    for index in range(MOST + 8):
        Image.fromarray(np.full((4, 6, 3), index, np.uint8)).save(place / f"{index:03}.png")
    (place / "notes.txt").write_text("not a picture")
    (place / ".hidden.png").write_bytes(b"nor this")
    return place


def values(pictures):
    return [int(np.asarray(frame)[0, 0, 0]) for frame in pictures.frames()]


def test_pictures_of_a_folder_are_spread_evenly(folder):
    pictures = Pictures.given(folder)
    found = values(pictures)
    assert len(found) == MOST
    assert (found[0], found[-1]) == (0, MOST + 7)
    assert np.all(np.diff(found) >= 1)
    assert pictures.source == f"{MOST} pictures of {folder}"
    assert pictures.argument == str(folder)


def test_pictures_in_a_list_and_from_an_iterator(folder):
    names = sorted(folder.glob("0*.png"))[:3]
    assert values(Pictures.given([str(name) for name in names])) == [0, 1, 2]
    arrays = (np.full((4, 4, 3), index, np.uint8) for index in range(1000))
    pictures = Pictures.given(arrays)
    assert values(pictures) == list(range(MOST))
    assert next(arrays)[0, 0, 0] == MOST
    # As often as they are wanted, and once more in another process.
    assert values(pictures) == values(Pictures.given(pictures.argument)) == list(range(MOST))
    assert values(Pictures.given([names[1].read_bytes()])) == [1]


def test_the_digest_is_of_the_content(folder):
    path = folder / "000.png"
    before = Pictures.given([path]).digest()
    copy = folder / "copy.png"
    copy.write_bytes(path.read_bytes())
    assert Pictures.given([copy]).digest() == before
    Image.fromarray(np.full((4, 6, 3), 77, np.uint8)).save(path)
    assert Pictures.given([path]).digest() != before
    array = np.zeros((4, 6, 3), np.uint8)
    digests = {Pictures.given([item]).digest() for item in (array, array + 1, array.reshape(6, 4, 3))}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("pictures", "error", "text"),
    [
        ("nowhere", FileNotFoundError, "pictures: no such folder: .*nowhere; expected a folder, or a list"),
        (7, TypeError, "pictures: got int, expected a folder, or several pictures"),
        (["nowhere.png"], FileNotFoundError, "pictures: no such file: .*nowhere.png"),
        (b"bytes", TypeError, "pictures: got bytes"),
        (np.zeros((2, 2, 3), np.uint8), TypeError, "pictures: got ndarray"),
        ([], ValueError, "pictures: got none, expected at least one"),
    ],
)
def test_pictures_that_are_none(pictures, error, text):
    with pytest.raises(error, match=text):
        fai_fast.load("fai-mf-n-shapes", pictures=pictures)


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(ValueError, match=r"pictures: got none of .*, expected at least one"):
        fai_fast.load("fai-mf-n-shapes", pictures=tmp_path)


# From load() on


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    """One export for all of them; verdicts are forgotten between tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def load(cache_dir):
    for kept in cache_dir.rglob("*-agreement*"):
        kept.unlink()

    def run(**options):
        options = {"im_size": 128, "num_threads": 1, "engine": "openvino", **options}
        with fai_fast.load("fai-mf-n-shapes", cache_dir=cache_dir, **options) as model:
            return model.info()

    return run


@pytest.fixture
def damaged(monkeypatch):
    """Adds noise to what a low precision computes, of this share of the logits' spread, on any CPU."""
    noise = {"share": 0.0}
    # The CPU at hand may lack the precision: it is the noise that is in question.
    compile_to, load_blob = openvino.compile_to, openvino.load_blob

    def compile_exact(path, out, *, precision, num_threads):
        return compile_to(path, out, precision="fp32", num_threads=num_threads)

    def load_noisy(path, *, precision, num_threads):
        engine = load_blob(path, precision="fp32", num_threads=num_threads)
        if precision == "fp32":
            return engine
        bind, rng = engine._bind, np.random.default_rng(0)

        def bind_noisy(arrays):
            context = bind(arrays)
            run = context._run

            def run_noisy():
                run()
                for array in (context.mask_logits, context.class_logits):
                    array += rng.normal(scale=noise["share"] * array.std(), size=array.shape)

            context._run = run_noisy
            return context

        engine._bind = bind_noisy
        return engine

    monkeypatch.setattr(openvino, "compile_to", compile_exact)
    monkeypatch.setattr(openvino, "load_blob", load_noisy)

    def damage(share):
        noise["share"] = share

    return damage


def gray(count=3):
    return [np.full((48, 64, 3), 40 * index, np.uint8) for index in range(count)]


@pytest.mark.parametrize("pictures", [None, gray()], ids=["shapes", "gray"])
def test_a_precision_that_really_differs_is_refused_on_all_pictures(damaged, put_on, load, pictures, caplog):
    """On pictures where things are found and on those where none are, so that logits are compared."""
    put_on("bf16")
    caplog.set_level(logging.INFO, "fai_fast")
    damaged(0.4)
    info = load(pictures=pictures)
    metric = "panoptic quality" if pictures is None else "signal-to-noise ratio"
    assert info["precision"] == "fp32"
    assert (
        f"bf16 is native on this CPU, but does not find what fp32 finds: {metric}" in info["precision_reason"]
    )
    verdict = info["precision_verdicts"]["bf16"]
    assert (verdict["metric"], verdict["holds"]) == (metric, False)
    assert verdict["value"] < verdict["limit"]
    with pytest.raises(
        fai_fast.EngineError,
        match=f"openvino: bf16 was asked for, but does not find what fp32 finds: {metric} .*; precision='fp32' runs",
    ):
        load(pictures=gray() if pictures else Pictures.drawn((128, 128)).frames(), precision="bf16")
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize("pictures", [None, gray()], ids=["shapes", "gray"])
def test_a_precision_that_is_fine_is_taken_and_said_once(damaged, put_on, load, pictures, caplog, cache_dir):
    put_on("bf16")
    caplog.set_level(logging.INFO, "fai_fast")
    damaged(0.01)
    info = load(pictures=pictures)
    assert info["precision"] == "bf16"
    assert info["precision_verdicts"]["bf16"]["holds"]
    said = "fai-mf-n-shapes: openvino in bf16 finds what fp32 finds: "
    assert [text for text in caplog.messages if text.startswith(said)] != []
    caplog.clear()
    again = load(pictures=pictures)
    assert (again["precision_reason"], again["precision_verdicts"]) == (
        info["precision_reason"],
        info["precision_verdicts"],
    )
    # Neither warned of, nor measured, nor said again.
    assert caplog.messages == []


def test_random_weights_are_compared_by_their_logits(damaged, put_on, load):
    """Nobody sees what they find; a low precision that computes the same is good enough to measure its speed."""
    put_on("bf16")
    options = {"weights": golden(), "im_size": 64}
    damaged(0.01)
    info = load(**options)
    assert info["precision"] == "bf16"
    assert info["precision_verdicts"]["bf16"]["metric"] == "signal-to-noise ratio"
    assert "; the pictures show little of what this model finds (" in info["precision_reason"]


def golden():
    """Random weights, the same at each call and everywhere."""
    state = load_weights("fai-mf-n-shapes").state
    return {key: golden_parameter(key, value.shape) for key, value in state.items()}


def test_other_pictures_are_another_verdict(damaged, put_on, load, cache_dir):
    put_on("bf16")
    damaged(0.01)
    load()
    damaged(0.4)
    assert load()["precision"] == "bf16"
    assert load(pictures=gray())["precision"] == "fp32"
    assert load(pictures=gray(2))["precision"] == "fp32"
    kept = list(cache_dir.rglob("*-agreement*.txt"))
    assert len(kept) == 3
    report = dict(doctor_of(cache_dir))
    # The latest of this model, size, engine and precision.
    assert report["fai-mf-n-shapes 128x128, openvino bf16"].startswith("not taken: signal-to-noise ratio")


def doctor_of(cache_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAI_FAST_CACHE", str(cache_dir))
        return doctor.report()["precision"].items()


def test_what_is_asked_for_by_name_is_taken_as_it_is_to_be_measured(damaged, put_on, load):
    put_on("bf16")
    damaged(0.4)
    info = load(precision="bf16")
    assert (info["precision"], info["precision_reason"], info["precision_verdicts"]) == (
        "bf16",
        "asked for",
        {},
    )
    info = load(precision="bf16", pictures=gray(), verify_precision=False)
    assert info["precision_reason"] == "asked for"
    with pytest.raises(
        ValueError, match="verify_precision: got False with precision 'auto', expected a precision"
    ):
        load(verify_precision=False)
    with pytest.raises(TypeError, match="verify_precision: got 0, expected a bool"):
        load(precision="bf16", verify_precision=0)


def test_a_model_pickles_with_its_pictures(damaged, put_on, cache_dir, folder):
    import pickle

    put_on("bf16")
    damaged(0.0)
    options = {"im_size": 128, "num_threads": 1, "engine": "openvino", "cache_dir": cache_dir}
    for pictures in (folder, iter(gray())):
        with fai_fast.load("fai-mf-n-shapes", pictures=pictures, **options) as model:
            reason = model.info()["precision_reason"]
            with pickle.loads(pickle.dumps(model)) as other:
                assert other.info()["precision_reason"] == reason
        assert "picture" in reason


def test_scenes_have_a_version():
    """Whoever changes them raises it, so that verdicts on others are not taken for those on these."""
    assert (_scenes.VERSION, round(float(_scenes.draw(0, (64, 64)).mean()))) == (1, 112)


# --------------------------------------------------------------------------------------- networks of others


def theirs(task, **settings):
    """The record of a network that is not FocoosAI's."""
    config = fai_fast.NetworkConfig(CLASSES, postprocessing_type=task, **settings)
    return fai_fast.ModelSpec(
        name="theirs", task=task, classes=("a", "b", "c", "d"), config=config, im_size=SIDE
    )


PANOPTIC = {"panoptic": fai_fast.Panoptic(stuff=(3,))}


def test_segments_of_a_panoptic_result_are_compared():
    spec = theirs("panoptic", **PANOPTIC)
    # Of the twelve things of the grid the three of the last class are one segment.
    assert str(quality(scene(), scene(), spec)) == (
        "panoptic quality 1 (at least 0.9) of 10 detections on 1 picture"
    )
    # Stuff is a segment wherever one of its queries is.
    masks, classes = scene()
    classes[0, 7, -1], classes[0, 7, 3] = SURE, 0
    found = quality((masks, classes), scene(), spec)
    # The background is the first thing's, and so are the pixels of what is lost: 448 + 48 of them, and 48 more.
    assert found.value == pytest.approx((8 + 496 / 544 + 96 / 144) / 10)
    # A thing that is lost is missed.
    masks, classes = scene()
    classes[0, 5, -1], classes[0, 5, 1] = SURE, 0
    assert quality((masks, classes), scene(), spec).value == pytest.approx((8 + 496 / 544) / 9.5)


def test_classes_by_sum_are_compared_by_the_sum():
    spec = theirs("semantic", combine="sum")
    # Two queries of class b outdo one of class a together, and alone neither does.
    masks = np.full((1, 16, SIDE, SIDE), -SURE, np.float32)
    classes = np.zeros((1, 16, CLASSES + 1), np.float32)
    classes[..., -1] = 2 * SURE
    for query, (class_id, score) in enumerate([(0, 0.6), (1, 0.5), (1, 0.5), (2, 0.9)]):
        masks[0, query, : SIDE // 2] = SURE
        classes[0, query, -1] = 0
        classes[0, query, class_id] = logit(score)
    masks[0, 3] = -masks[0, 3]
    exact = masks, classes
    assert (
        str(quality(exact, exact, spec))
        == "pixel accuracy 1 (at least 0.97) of 100% of the pixels on 1 picture"
    )
    # Without one of the two, class a has the upper half.
    lower = classes.copy()
    lower[0, 1, -1], lower[0, 1, 1] = 2 * SURE, 0
    assert quality((masks, lower), exact, spec).value == 0.5
    # To the contest of queries that is nothing.
    assert quality((masks, lower), exact, theirs("semantic")).value == 1


def test_a_query_with_a_nan_has_no_say_in_a_sum():
    spec = theirs("semantic", combine="sum")
    masks, classes = scene()
    broken = masks.copy()
    broken[0, 0, 0, 0] = np.nan
    lost = classes.copy()
    lost[0, 0, -1], lost[0, 0, 0] = np.inf, -np.inf
    assert quality((broken, classes), scene(), spec) == quality((masks, lost), scene(), spec)


def test_several_classes_of_a_query_are_rows_of_their_own():
    spec = theirs("instance", cls_sigmoid=True, multi_label=True)
    masks, classes = scene()
    classes = np.full((1, 16, CLASSES), -SURE, np.float32)
    classes[0, :8, 0] = classes[0, :8, 2] = SURE
    exact = masks, classes
    assert quality(exact, exact, spec).of == "16 detections"
    lower = classes.copy()
    lower[0, :4, 2] = -SURE
    assert quality((masks, lower), exact, spec).value == pytest.approx(12 / 14)
