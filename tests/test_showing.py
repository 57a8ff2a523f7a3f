"""Results that know where their frame is, and show themselves on it."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import types

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, render
from fai_fast.detections import Source
from PIL import Image, ImageShow

av = pytest.importorskip("av")

SIZE = (64, 96)


@pytest.fixture(scope="module")
def model():
    with fai_fast.load("fai-mf-n-shapes", engine="onnxruntime", precision="fp32") as model:
        yield model


def frame(seed=0):
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 256, (4, 6, 3), np.uint8), np.ones((16, 16, 1), np.uint8))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a picture.png"
    Image.fromarray(frame()).save(path)
    return path


def video(path, count=5):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for seed in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(seed), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def result(source=None, size=SIZE):
    mask = np.zeros((1, *size), bool)
    mask[0, 5:30, 10:50] = True
    made = Detections(xyxy=[[10, 5, 50, 30]], confidence=[0.5], class_id=[1], size=size, mask=mask)
    return made._with_source(source)


# --------------------------------------------------------------------------------------------------- source


def test_a_picture_of_a_file_knows_it(model, picture, monkeypatch):
    found = model.infer(picture, threshold=0.01)
    assert found.source == Source(str(picture))
    assert len(found) > 1
    np.testing.assert_array_equal(found.plot(), found.plot(frame()))
    monkeypatch.chdir(picture.parent)
    assert model.infer(picture.name).source == Source(str(picture))
    batch = model.infer_batch([picture, str(picture)])
    assert [one.source for one in batch] == [Source(str(picture))] * 2
    assert model.submit(picture).result().source == Source(str(picture))


def test_pixels_in_memory_have_no_source(model, picture):
    for image in (frame(), picture.read_bytes(), io.BytesIO(picture.read_bytes())):
        assert model.infer(image).source is None


def test_a_source_goes_with_rows_and_pickles():
    source = Source("/a/b.mp4", 3)
    found = result(source)
    assert found[:0].source == found.with_tracker_id([1]).source == found.clean(min_area=1).source == source
    assert pickle.loads(pickle.dumps(found)).source == copy.copy(found).source == source
    assert found == result()
    assert Detections.merge([found, found]).source == source
    assert Detections.merge([found, result()]).source is None
    with pytest.raises(AttributeError, match="source: Detections is immutable"):
        found.source = None


@pytest.mark.parametrize("stride", [1, 2])
def test_frames_of_a_video_know_their_number(model, tmp_path, stride):
    path = video(tmp_path / "v.mp4")
    with model.stream(path, stride=stride, threshold=0.01) as stream:
        pairs = list(stream)
    assert [found.source for _, found in pairs] == [Source(str(path), i) for i in range(0, 5, stride)]
    for shown, found in pairs:
        np.testing.assert_array_equal(found.source.read(), shown.image())
        np.testing.assert_array_equal(found.plot(), found.plot(shown.image()))


def test_pictures_of_a_folder_know_their_number(model, tmp_path):
    for seed in range(3):
        Image.fromarray(frame(seed)).save(tmp_path / f"{seed}.png")
    with model.stream(tmp_path) as stream:
        for number, (_, found) in enumerate(stream):
            assert found.source == Source(str(tmp_path), number)
            np.testing.assert_array_equal(found.source.read(), frame(number))


def test_frames_that_are_read_in_a_way_of_their_own_have_no_source(model, tmp_path):
    path = video(tmp_path / "v.mp4")
    for options in (
        {"yuv_matrix": "bt709"},
        {"yuv_range": "full"},
        {"format": "mp4"},
        {"options": {"probesize": "500000"}},
    ):
        with model.stream(path, **options) as stream:
            assert next(stream)[1].source is None
    with model.stream([frame()]) as stream:
        assert next(stream)[1].source is None


def test_what_cannot_be_read_again_is_told(tmp_path, picture):
    with pytest.raises(ValueError, match="image: got None, expected the frame: this result neither holds"):
        result().plot()
    with pytest.raises(FileNotFoundError):
        result(Source(str(tmp_path / "gone.png"))).plot()
    with pytest.raises(ValueError, match=r"v\.mp4 has 5 frames now, expected more than 7"):
        result(Source(str(video(tmp_path / "v.mp4")), 7)).plot()
    with pytest.raises(ValueError, match=r"a picture.png has 64x96 pixels now, expected 10x20"):
        result(Source(str(picture)), (10, 20))[:0].plot()
    with pytest.raises(ValueError, match="rtsp://camera/1 does not give its frames again"):
        result(Source("rtsp://camera/1", 3)).plot()


def test_a_camera_s_address_is_kept_without_its_password():
    from fai_fast.stream.opening import _name_again

    assert "secret" not in _name_again("rtsp://me:secret@camera/1")
    assert _name_again("-") is None
    assert _name_again(0) == "/dev/video0"
    assert _name_again([frame()]) is None


# ---------------------------------------------------------------------------------------------- save and show


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_save_writes_the_plot(tmp_path, color):
    image = frame()
    result().save(
        tmp_path / "a.png", image if color == "rgb" else image[:, :, ::-1], color=color, opacity=0.3
    )
    with Image.open(tmp_path / "a.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), result().plot(image, opacity=0.3))


def test_save_reads_the_frame_again(tmp_path, picture):
    result(Source(str(picture))).save(tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), result().plot(frame()))
    with pytest.raises(ValueError, match=r"path: got 'b.bmp'"):
        result().save("b.bmp", frame())


def test_show_opens_a_viewer(monkeypatch, picture):
    shown = []
    monkeypatch.setattr(ImageShow, "show", lambda image: shown.append(np.asarray(image)) or True)
    result(Source(str(picture))).show(labels=False)
    result().show(frame()[:, :, ::-1], color="bgr", labels=False)
    for seen in shown:
        np.testing.assert_array_equal(seen, result().plot(frame(), labels=False))
    assert len(shown) == 2


def test_show_without_a_viewer_says_so(monkeypatch):
    monkeypatch.setattr(ImageShow, "_viewers", [])
    with pytest.raises(OSError, match=r"^show: no viewer .*; save\(path\) writes"):
        result().show(frame())


def test_show_in_a_notebook(monkeypatch, picture):
    shown = []
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=None)
    display.display = shown.append
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    result().show(frame())
    np.testing.assert_array_equal(np.asarray(shown[0]), render.draw(frame(), result()))


def test_a_notebook_shows_the_picture_or_else_the_text(tmp_path, picture):
    png = result(Source(str(picture)))._repr_png_()
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), result().plot(frame()))
    assert result()._repr_png_() is None
    assert result(Source(str(tmp_path / "gone.png")))._repr_png_() is None
    assert result(Source("rtsp://camera/1", 3))._repr_png_() is None


# -------------------------------------------------------------------------------------------- held pixels


def test_held_pixels_are_drawn_on_without_an_image(model, picture):
    pixels = frame(1)
    held = result().with_picture(pixels)
    np.testing.assert_array_equal(held.plot(), result().plot(pixels))
    np.testing.assert_array_equal(held[[0]].plot(), held.plot())
    # What is asked for counts more than where the frame came from.
    of_file = model.infer(picture)
    held = of_file.with_picture(np.asarray(Image.fromarray(255 - frame())))
    np.testing.assert_array_equal(held.plot(), of_file.plot(255 - frame()))
    assert held == of_file
    assert held._repr_png_() is not None
    np.testing.assert_array_equal(
        result().with_picture(Image.fromarray(pixels)).plot(), result().plot(pixels)
    )


def test_pixels_are_held_and_not_copied_and_a_pickle_has_none():
    pixels = frame()
    held = result().with_picture(pixels)
    assert np.shares_memory(held._picture, pixels)
    assert pickle.loads(pickle.dumps(held))._picture is None


@pytest.mark.parametrize(
    ("image", "error", "text"),
    [
        (None, TypeError, r"^image: got NoneType, expected a uint8 array \(H, W, 3\) or a Pillow image$"),
        (np.zeros((*SIZE, 3)), TypeError, "^image: got float64 array, expected a uint8 array"),
        (np.zeros(SIZE, np.uint8), ValueError, r"^image: got shape \(64, 96\), expected \(64, 96, 3\)"),
        (np.zeros((64, 95, 3), np.uint8), ValueError, r"^image: got shape \(64, 95, 3\), expected"),
    ],
)
def test_pixels_that_are_not_the_frame_are_refused(image, error, text):
    with pytest.raises(error, match=text):
        result().with_picture(image)
