"""The network's input in the shape of the frames: which size is chosen, and that everything goes along."""

from __future__ import annotations

import dataclasses
import logging
import math

import fai_fast
import numpy as np
import pytest
from fai_fast import registry
from fai_fast._sizes import LARGEST_SIDE, LONGEST_ASPECT, aspects_differ
from helpers import focoos_folders
from helpers.networks import network, small_spec
from hypothesis import example, given, settings
from hypothesis import strategies as st

WIDE = "semantic-192x320"

# ------------------------------------------------------------------------------------------------------ fit_size

sides = st.integers(1, 32767)
areas = st.integers(1, LARGEST_SIDE**2)


@pytest.mark.parametrize(
    ("frame", "area", "expected"),
    [
        ((1080, 1920), 640 * 640, (480, 864)),
        ((1920, 1080), 640 * 640, (864, 480)),
        ((480, 640), 640 * 640, (544, 736)),
        ((720, 720), 640 * 640, (640, 640)),
        ((1080, 1920), 192 * 192, (160, 288)),
        ((1080, 1920), 1024 * 1024, (768, 1376)),
        ((1, 32767), 640 * 640, (320, 1280)),
        ((32767, 1), 640 * 640, (1280, 320)),
        ((1, 1), 1, (32, 32)),
        ((1, 9), 1, (32, 128)),
        ((1, 9), 8192 * 8192, (2048, 8192)),
    ],
)
def test_sizes_for_usual_and_unusual_frames(frame, area, expected):
    assert fai_fast.fit_size(frame, area=area) == expected


def test_the_area_is_that_of_most_models_unless_it_is_said():
    assert fai_fast.fit_size((1080, 1920)) == fai_fast.fit_size((1080, 1920), area=640 * 640)


def badness(size, frame, area):
    """As fit_size()'s docstring has it."""
    shorter, longer = sorted(frame)
    low, long = size if frame[0] <= frame[1] else size[::-1]
    aspect = min(longer / shorter, LONGEST_ASPECT)
    return 2 * abs(math.log(long / low / aspect)) + abs(math.log(low * long / area))


@settings(max_examples=300, deadline=None)
@given(sides, sides, areas)
def test_a_size_can_be_an_input_and_turns_with_the_frame(height, width, area):
    size = fai_fast.fit_size((height, width), area=area)
    assert all(type(side) is int and side % 32 == 0 and 32 <= side <= LARGEST_SIDE for side in size)
    assert fai_fast.fit_size((width, height), area=area) == size[::-1]
    assert (size[0] <= size[1]) if height <= width else (size[0] >= size[1])
    if height == width:
        assert size[0] == size[1]


@settings(max_examples=40, deadline=None)
@given(sides, sides, st.integers(1, 1000 * 1000))
@example(1, 4, 1)
def test_no_other_size_is_better(height, width, area):
    size = fai_fast.fit_size((height, width), area=area)
    every = range(32, 2304, 32)
    best = min(badness((low, long), (height, width), area) for low in every for long in every)
    assert badness(size, (height, width), area) == pytest.approx(best, abs=1e-8)


@settings(max_examples=200, deadline=None)
@given(st.integers(100, 4000), st.integers(100, 4000), st.integers(320**2, 2048**2))
def test_aspect_and_area_are_about_what_was_asked_for(height, width, area):
    if max(height, width) > LONGEST_ASPECT * min(height, width):
        return
    size = fai_fast.fit_size((height, width), area=area)
    assert not aspects_differ(size, (height, width), 1.1)
    assert size[0] * size[1] == pytest.approx(area, rel=0.2)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(2, 10), areas)
def test_only_the_aspect_of_a_frame_matters(height, width, factor, area):
    larger = (height * factor, width * factor)
    assert fai_fast.fit_size(larger, area=area) == fai_fast.fit_size((height, width), area=area)


@pytest.mark.parametrize(
    ("frame", "options", "error", "text"),
    [
        (1080, {}, TypeError, r"frame: got 1080, expected \(height, width\)"),
        ("1920x1080", {}, TypeError, "frame: got '1920x1080'"),
        ((1080,), {}, ValueError, "frame: got 1 values"),
        ((1080, 1920, 3), {}, ValueError, "frame: got 3 values"),
        ((1080, 0), {}, ValueError, r"frame: got \(1080, 0\)"),
        ((1080.0, 1920), {}, TypeError, "frame: got 1080.0, expected an integer"),
        ((1080, 1920), {"area": 0}, ValueError, "area: got 0"),
        ((1080, 1920), {"area": 8192 * 8192 + 1}, ValueError, "area: got"),
        ((1080, 1920), {"area": (640, 640)}, TypeError, "area: got tuple"),
        ((1080, 1920), {"area": 409600.0}, TypeError, "area: got 409600.0"),
    ],
)
def test_wrong_arguments_are_named(frame, options, error, text):
    with pytest.raises(error, match=text):
        fai_fast.fit_size(frame, **options)


def test_a_frame_may_be_a_shape_of_numpy():
    picture = np.zeros((108, 192, 3), np.uint8)
    assert fai_fast.fit_size(picture.shape[:2]) == (480, 864)
    assert fai_fast.fit_size(np.array([1080, 1920])) == (480, 864)


# ---------------------------------------------------------------------------------------- a folder with (h, w)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_a_folder_with_two_sides_runs_at_its_size_and_equals_focoos(cache, caplog):
    expected = focoos_folders.expected(WIDE)
    with caplog.at_level(logging.INFO, "fai_fast"):
        model = fai_fast.load(focoos_folders.folder(WIDE), cache_dir=cache, precision="fp32")
        with model:
            assert (model.spec.im_size, model.size, model.info()["im_size"]) == ((192, 320),) * 3
            assert expected.image.shape == (192, 320, 3)
            labels, scores, masks = model.queries(expected.image)
    np.testing.assert_array_equal(labels, expected.labels)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
    assert ((masks >= 0) != expected.inside).mean() < 1e-4
    made = [path for path in (cache / "models" / "run").iterdir() if path.suffix in (".onnx", ".blob")]
    assert sorted(path.suffix for path in made) == [".blob", ".onnx"]
    assert all(path.name.startswith("192x320-b1-") for path in made)
    # Neither that the size is another one, nor that the picture is.
    assert not [record for record in caplog.records if "im_size is" in record.getMessage()]
    assert not notices(caplog)


def test_the_class_map_of_a_folder_with_two_sides_equals_focoos(cache):
    expected = focoos_folders.expected(WIDE)
    spec = registry.load_spec(focoos_folders.folder(WIDE))
    config = dataclasses.replace(spec.config, predict_all_pixels=True, threshold=0.0)
    spec = dataclasses.replace(spec, config=config)
    with fai_fast.load(spec, cache_dir=cache, precision="fp32") as model:
        label_map = model.infer(expected.image).label_map
    assert (label_map != expected.class_map).mean() < 1e-4


def test_the_reference_network_of_a_folder_takes_its_size():
    torch = pytest.importorskip("torch")
    expected = focoos_folders.expected(WIDE)
    found = fai_fast.weights.load_weights(registry.load_spec(focoos_folders.folder(WIDE)))
    model = fai_fast.reference.build(found.spec).eval()
    model.load_state_dict({key: torch.tensor(value) for key, value in found.state.items()})
    with torch.inference_mode():
        output = model(torch.from_numpy(expected.image).permute(2, 0, 1)[None].float())
    assert output.mask_logits.shape == (1, 20, 192 // 8, 320 // 8)
    scores, labels = output.class_logits[0].softmax(-1)[:, :-1].max(-1)
    np.testing.assert_array_equal(labels, expected.labels)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)


def test_export_takes_the_folders_size_or_another(tmp_path):
    folder = focoos_folders.folder(WIDE)
    options = {"verify": False}
    for asked, size in (
        ({}, (192, 320)),
        ({"im_size": (64, 96)}, (64, 96)),
        ({"frame": (1080, 1920)}, fai_fast.fit_size((1080, 1920), area=192 * 320)),
        ({"frame": (1920, 1080)}, fai_fast.fit_size((1920, 1080), area=192 * 320)),
    ):
        report = fai_fast.export(folder, tmp_path / "out.onnx", **asked, **options)
        assert report.size == size
        with fai_fast.load(tmp_path / "out.onnx", cache_dir=tmp_path, engine="onnxruntime") as model:
            assert (model.size, model.spec.im_size) == (size, (192, 320))


def test_export_refuses_both_a_size_and_a_frame(tmp_path):
    folder = focoos_folders.folder(WIDE)
    with pytest.raises(ValueError, match=r"frame: got \(1080, 1920\) and im_size 64, expected only one"):
        fai_fast.export(folder, tmp_path / "out.onnx", im_size=64, frame=(1080, 1920))
    with pytest.raises(ValueError, match=r"frame: got \(0, 1920\)"):
        fai_fast.export(folder, tmp_path / "out.onnx", frame=(0, 1920))
    with pytest.raises(ValueError, match=r"im_size: got \(64, 65\), expected .* for \(height, width\)"):
        fai_fast.export(folder, tmp_path / "out.onnx", im_size=(64, 65))
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------- load(..., frame=(H, W))


@pytest.fixture(scope="module")
def small():
    """A model with an input of 64 x 64 of its own, and weights that find something."""
    pytest.importorskip("torch")
    spec = dataclasses.replace(small_spec("fai_mf", "instance"), im_size=64)
    return spec, network(spec).state_dict()


@pytest.fixture
def load(small, cache):
    spec, state = small

    def make(**options):
        return fai_fast.load(spec, weights=state, cache_dir=cache, precision="fp32", **options)

    return make


def notices(caplog):
    return [record.getMessage() for record in caplog.records if "frame=" in record.getMessage()]


FRAME = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)


def test_load_takes_the_frames_size(load):
    fitting = fai_fast.fit_size((90, 160), area=64 * 64)
    assert fitting == (32, 64) or fitting[0] < fitting[1]
    with load(frame=(90, 160)) as model, load(im_size=fitting) as same:
        assert model.size == same.size == fitting
        assert model.spec.im_size == 64
        found, expected = model.infer(FRAME, threshold=0), same.infer(FRAME, threshold=0)
        assert len(found)
        np.testing.assert_array_equal(found.mask, expected.mask)
        # Other frames are taken too.
        assert model.infer(FRAME[:, :50]).size == (90, 50)
    with load(frame=(160, 90)) as portrait:
        assert portrait.size == fitting[::-1]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"frame": (90, 160), "im_size": 64}, ValueError, r"frame: got \(90, 160\) and im_size 64"),
        ({"frame": (90,)}, ValueError, "frame: got 1 values"),
        ({"frame": 90}, TypeError, r"frame: got 90, expected \(height, width\)"),
        ({"frame": (90, -1)}, ValueError, r"frame: got \(90, -1\)"),
        ({"frame": "160x90"}, TypeError, "frame: got '160x90'"),
    ],
)
def test_a_wrong_frame_is_named_by_load(load, options, error, text):
    with pytest.raises(error, match=text):
        load(**options)


def test_a_file_has_its_size_whatever_the_frame(small, tmp_path):
    spec, state = small
    fai_fast.export(spec, tmp_path / "a.onnx", weights=state, verify=False)
    with pytest.raises(
        ValueError, match=r"frame: got \(90, 160\) with a\.onnx, expected None: its input is \(64, 64\)"
    ):
        fai_fast.load(tmp_path / "a.onnx", frame=(90, 160))


def test_the_first_frame_of_another_aspect_is_told_once(load, caplog):
    with caplog.at_level(logging.INFO, "fai_fast"), load() as model:
        model.infer(np.zeros((64, 64, 3), np.uint8))
        model.infer(np.zeros((100, 119, 3), np.uint8))
        assert notices(caplog) == []
        model.infer(FRAME)
        [line] = notices(caplog)
        with model.clone() as other:
            for frame in (FRAME, FRAME.transpose(1, 0, 2), np.zeros((64, 64, 3), np.uint8)):
                model.infer(frame)
                other.submit(frame).result()
    assert notices(caplog) == [line]
    fitting = "x".join(map(str, fai_fast.fit_size((90, 160), area=64 * 64)))
    assert line == (
        "small-fai_mf: a frame is 90x160 (height x width), the network's input 64x64: of its aspect would be "
        f"{fitting}, which fai_fast.load(..., frame=(90, 160)) takes; see docs/frame_shape.md"
    )


@pytest.mark.parametrize("way", ["submit", "infer_batch", "stream", "portrait"])
def test_every_way_in_tells_of_another_aspect(load, caplog, way):
    with caplog.at_level(logging.INFO, "fai_fast"), load() as model:
        if way == "submit":
            model.submit(FRAME).result()
        elif way == "infer_batch":
            model.infer_batch([FRAME[:80, :80], FRAME])
        elif way == "stream":
            with model.stream([FRAME, FRAME]) as stream:
                assert len(list(stream)) == 2
        else:
            model.infer(FRAME.transpose(1, 0, 2))
    assert len(notices(caplog)) == 1


@pytest.mark.parametrize("options", [{"im_size": 64}, {"frame": (64, 64)}])
def test_who_asked_for_a_size_is_told_nothing(load, caplog, options):
    with caplog.at_level(logging.INFO, "fai_fast"), load(**options) as model:
        model.infer(FRAME)
    assert notices(caplog) == []


def test_a_file_of_export_is_told_nothing(small, tmp_path, caplog):
    spec, state = small
    fai_fast.export(spec, tmp_path / "a.onnx", weights=state, verify=False)
    with (
        caplog.at_level(logging.INFO, "fai_fast"),
        fai_fast.load(tmp_path / "a.onnx", cache_dir=tmp_path) as model,
    ):
        model.infer(FRAME)
    assert notices(caplog) == []


def test_a_size_that_comes_no_nearer_is_not_offered(small, caplog):
    from fai_fast._requests import AspectNotice

    with caplog.at_level(logging.INFO, "fai_fast"):
        # Of 32 x 32 pixels all that is near 5:4 is the square.
        notice = AspectNotice("small", (32, 32))
        notice((100, 125))
        assert notices(caplog) == []
        notice((100, 200))
        assert len(notices(caplog)) == 1
