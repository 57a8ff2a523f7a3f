"""Decoding of pictures: what Pillow reads, upright, and a clear error for the rest."""

from __future__ import annotations

import errno
import io
import os
import struct
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from fai_fast.images import is_encoded, read_image, read_labels
from PIL import Image


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def encoded(array, form="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, form, **options)
    return file.getvalue()


def test_paths_bytes_and_file_objects_give_the_same_picture(picture, tmp_path):
    data = encoded(picture)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        for source in (path, str(path), data, bytearray(data), io.BytesIO(data), file):
            assert is_encoded(source)
            assert np.array_equal(read_image(source), picture)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
def test_formats(picture, form):
    options = {"lossless": True} if form == "WEBP" else {}
    assert np.array_equal(read_image(encoded(picture, form, **options)), picture)


def test_jpeg_is_close(picture):
    smooth = np.broadcast_to(np.arange(0, 240, 8, np.uint8)[None, :, None], (20, 30, 3)).copy()
    assert np.abs(read_image(encoded(smooth, "JPEG", quality=95)).astype(int) - smooth).max() < 12


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda image: image),
        (2, lambda image: image[:, ::-1]),
        (3, lambda image: image[::-1, ::-1]),
        (4, lambda image: image[::-1]),
        (5, lambda image: image.transpose(1, 0, 2)),
        (6, lambda image: np.rot90(image, -1)),
        (7, lambda image: image[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda image: np.rot90(image, 1)),
    ],
)
def test_pictures_are_turned_upright(picture, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(read_image(encoded(picture, "PNG", exif=exif)), upright(picture))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(form):
    frames = [Image.fromarray(np.full((8, 9, 3), value, np.uint8)) for value in (0, 255)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=40, lossless=True)
    with Image.open(file) as opened:
        assert opened.n_frames == 2
    assert np.array_equal(read_image(file.getvalue()), np.zeros((8, 9, 3), np.uint8))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK"])
def test_other_modes_become_rgb(picture, mode):
    image = Image.fromarray(picture).convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF")
    got = read_image(file.getvalue())
    assert got.dtype == np.uint8
    assert got.shape == (20, 30, 3)
    assert np.array_equal(got, np.asarray(image.convert("RGB")))


def test_sixteen_bits_are_refused(picture):
    file = io.BytesIO()
    Image.fromarray(picture[..., 0].astype(np.uint16) * 256).save(file, "PNG")
    with pytest.raises(ValueError, match=r"image: .* mode 'I;16', expected 8 bits"):
        read_image(file.getvalue())


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_truncated_pictures_are_refused(form, share):
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    data = encoded(noise, form)
    with pytest.raises(ValueError, match=r"image: bytes is (damaged|no picture)"):
        read_image(data[: int(share * len(data))])


@pytest.mark.parametrize("data", [b"", b"not a picture", b"<html>404</html>" * 50])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(ValueError, match="image: bytes is no picture"):
        read_image(data)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image: no such file: .*gone\.jpg"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(OSError, match=str(tmp_path)):
        read_image(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_what_may_never_end_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", "/dev/zero"):
        with pytest.raises(
            ValueError, match=r"image: .* is a FIFO, a socket or a device, expected a regular file"
        ):
            read_image(path)


def test_a_pipe_that_the_caller_opened_is_read(picture):
    reading, writing = os.pipe()

    def write():
        with os.fdopen(writing, "wb") as file:
            file.write(encoded(picture))

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reading, "rb") as file:
        assert np.array_equal(read_image(file), picture)
    thread.join()


def test_paths_that_lead_nowhere_say_why(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(OSError, match=r"loop\.png") as raised:
        read_image(tmp_path / "loop.png")
    assert raised.value.errno == errno.ELOOP
    with pytest.raises(FileNotFoundError, match="image: no such file: ''"):
        read_image("")
    with pytest.raises(ValueError, match=r"image: got the path 'a\\x00b': "):
        read_image("a\0b")


@pytest.mark.parametrize("name", ["ünï 日本.png", "a\nb.png", b"caf\xe9.png"])
def test_odd_names_are_names(picture, tmp_path, name):
    path = tmp_path / (os.fsdecode(name) if isinstance(name, bytes) else name)
    path.write_bytes(encoded(picture))
    assert np.array_equal(read_image(path), picture)

    class Bytes:
        def __fspath__(self):
            return os.fsencode(path)

    assert np.array_equal(read_image(Bytes()), picture)


def test_files_in_text_mode_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"text")
    with (
        (tmp_path / "a.png").open() as file,
        pytest.raises(TypeError, match="text mode, expected one in binary"),
    ):
        read_image(file)


def test_postscript_is_not_run(picture, monkeypatch):
    from PIL import EpsImagePlugin

    def refuse(*_, **__):
        raise AssertionError("Ghostscript")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", refuse)
    with pytest.raises(ValueError, match="image: bytes is PostScript, a program, expected a picture"):
        read_image(encoded(picture, "EPS"))


@pytest.mark.parametrize(
    "data",
    [
        # Pillow's own errors: ValueError of two decoders.
        b"P6 6\x8940 4 255\n" + bytes(100),
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 4)
        + b"IHDR"
        + bytes(4)
        + struct.pack(">I", zlib.crc32(b"IHDR" + bytes(4))),
    ],
)
def test_whatever_pillow_raises_is_an_error_of_the_picture(data):
    with pytest.raises(ValueError, match=r"^image: bytes is (damaged|no picture)"):
        read_image(data)


@pytest.mark.parametrize(
    "error", [RuntimeError("no item"), NotImplementedError(), KeyError(3), struct.error("short")]
)
def test_whatever_a_decoder_raises_is_an_error_of_the_picture(picture, monkeypatch, error):
    from PIL import PngImagePlugin

    def fail(*_):
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", fail)
    with pytest.raises(ValueError, match=r"^image: bytes is damaged: .+"):
        read_image(encoded(picture))


def test_labels_are_the_numbers_in_the_file():
    numbers = np.array([[0, 1], [2, 200]], np.uint8)
    gray, colors = Image.fromarray(numbers), Image.fromarray(numbers)
    colors.putpalette(bytes(range(255, -1, -1)) * 3)
    wide = Image.fromarray(numbers.astype(np.uint16) * 300)
    for image, expected in ((gray, numbers), (colors, numbers), (wide, numbers.astype(int) * 300)):
        file = io.BytesIO()
        image.save(file, "PNG")
        assert np.array_equal(read_labels(file.getvalue()), expected)
        with pytest.raises(ValueError, match="labels: bytes is too large: 2 x 2, expected at most 3 pixels"):
            read_labels(file.getvalue(), max_pixels=3)
    with pytest.raises(ValueError, match="labels: bytes is too large"):
        read_labels(bomb(50_000, 50_000))
    with pytest.raises(ValueError, match="labels: bytes has mode 'RGB', expected one label a pixel"):
        read_labels(encoded(np.zeros((2, 2, 3), np.uint8)))


def test_addresses_are_refused():
    with pytest.raises(ValueError, match="expected a path; fetch it first"):
        read_image("https://example.com/a.jpg")


@pytest.mark.parametrize("thing", [3, None, np.zeros((4, 4, 3), np.uint8), Path])
def test_frames_in_memory_are_not_decoded(thing):
    assert not is_encoded(thing)
    with pytest.raises(TypeError, match="image: got"):
        read_image(thing)


def test_a_picture_of_absurd_size_is_refused(monkeypatch, picture):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(ValueError, match="image: bytes is too large"):
        read_image(encoded(picture))


def test_the_limit_can_be_raised_and_lowered(monkeypatch, picture):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    data = encoded(picture)
    assert np.array_equal(read_image(data, max_pixels=600), picture)
    assert Image.MAX_IMAGE_PIXELS == 200
    for limit in (599, 150):
        with pytest.raises(ValueError, match=r"image: bytes is too large.*max_pixels="):
            read_image(data, max_pixels=limit)
    with pytest.raises(ValueError, match="image: bytes is no picture"):
        read_image(b"nothing", max_pixels=10**6)
    assert Image.MAX_IMAGE_PIXELS == 200
    for wrong, error in ((0, ValueError), (2**28 + 1, ValueError), ("1", TypeError), (1.5, TypeError)):
        with pytest.raises(error, match="max_pixels"):
            read_image(data, max_pixels=wrong)


def test_a_limit_that_one_thread_raises_holds_for_the_others(monkeypatch, picture):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    data = encoded(picture)
    results = []

    def read(**options):
        try:
            results.append(read_image(data, **options).shape)
        except ValueError as error:
            results.append(str(error))

    class Meanwhile(io.BytesIO):
        """Lets others read while it is opened."""

        def read(self, size=-1):
            if not results:
                assert Image.MAX_IMAGE_PIXELS != 200
                read()
                # This one has to wait for its turn.
                threads.append(threading.Thread(target=read, kwargs={"max_pixels": 600}))
                threads[0].start()
            return super().read(size)

    threads = []
    assert read_image(Meanwhile(data), max_pixels=600).shape == (20, 30, 3)
    threads[0].join()
    assert results == [
        "image: bytes is too large: 30 x 20, expected at most 400 pixels; raise max_pixels= for one that you trust",
        (20, 30, 3),
    ]
    assert Image.MAX_IMAGE_PIXELS == 200


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few dozen bytes that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_small_file_that_claims_a_gigapixel_is_refused_before_memory_is_taken():
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"image: bytes is too large"):
            read_image(bomb(50_000, 50_000))
        with pytest.raises(
            ValueError, match=r"image: bytes is too large: 3000 x 3000, expected at most 1000000"
        ):
            read_image(bomb(3000, 3000), max_pixels=10**6)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_any_damage_is_a_picture_or_a_clear_error(form):
    """Bytes changed, cut out and doubled: nothing but ValueError may come of it."""
    rng = np.random.default_rng(1)
    smooth = np.broadcast_to(np.arange(0, 240, 4, np.uint8)[None, :, None], (40, 60, 3)).copy()
    data = encoded(smooth, form)
    refused = 0
    for _ in range(150):
        wrong = bytearray(data)
        for _ in range(int(rng.integers(1, 6))):
            wrong[int(rng.integers(len(wrong)))] = int(rng.integers(256))
        if rng.random() < 0.3:
            start, end = sorted(rng.integers(0, len(wrong), 2).tolist())
            del wrong[start:end]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF
            try:
                assert read_image(bytes(wrong), max_pixels=10**6).dtype == np.uint8
            except ValueError as error:
                refused += str(error).startswith("image: bytes is")
    assert refused > 20
