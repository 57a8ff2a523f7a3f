"""Pictures from files: paths, encoded bytes and file objects to frames. Frames in memory pass through."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast._arguments import check_int
from fai_fast._foreign import explained
from fai_fast._forks import ForkSafeLock
from fai_fast._redaction import redacted

__all__ = [
    "MOST_PIXELS",
    "SUFFIXES",
    "VIDEO_SUFFIXES",
    "TooLargeError",
    "check_max_pixels",
    "is_encoded",
    "picture_size",
    "pixel_limit",
    "read_animation",
    "read_image",
    "read_labels",
    "too_large",
]

# Of pictures that Pillow opens; what else lies in a folder is left out.
SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
# By which a video is known from a picture, before it is opened.
VIDEO_SUFFIXES = frozenset(
    (".3gp", ".asf", ".avi", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov",
     ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m")
)  # fmt: skip

# The longest frame that preprocessing takes, csrc/core/types.h.
MOST_PIXELS = 1 << 28
# Pillow has one limit for the whole process: it refuses pictures of twice that, and warns between the two. While one
# thread has raised it, to a number that tells so, the others go by what it was before.
_raised = ForkSafeLock()
_RAISED = MOST_PIXELS + 1
_before: int | None = None
_MODES = ("RGB", "L")
# Whose exceptions Pillow's decoders let through.
_DECODERS = ("PIL", "struct", "zlib", "binascii", "xml", "defusedxml")
# Formats whose pictures after the first are the same one at another time, and not pages or other sizes.
_ANIMATED = ("PNG", "WEBP", "AVIF")
# EXIF's tag, and its values with which height and width change places.
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
# One number a pixel, whatever a palette makes of it.
_LABEL_MODES = ("1", "L", "P", "I", "I;16")
# Pillow spreads gray of few bits over 0..255, by these factors.
_SPREAD = {"L;2": 85, "L;4": 17}


class TooLargeError(ValueError):
    """A picture has more pixels than are taken: all that its file says of it may be right."""


def is_encoded(image: object) -> bool:
    """Whether :func:`read_image` must decode it: a path, encoded bytes, or a file object."""
    return isinstance(image, (str, os.PathLike, bytes, bytearray)) or (
        hasattr(image, "read") and not hasattr(image, "__array_interface__")
    )


def check_max_pixels(max_pixels: object) -> int | None:
    """`max_pixels` as an int of 1..2**28, or None; TypeError, ValueError otherwise."""
    if max_pixels is None:
        return None
    number = check_int("max_pixels", max_pixels)
    if not 1 <= number <= MOST_PIXELS:
        raise ValueError(f"max_pixels: got {number}, expected 1..{MOST_PIXELS} or None")
    return number


def pixel_limit(max_pixels: int | None) -> int:
    """The number of pixels that `max_pixels` stands for, at most 2**28: for decoders other than Pillow."""
    if max_pixels is not None:
        return max_pixels
    limit = _pillows_limit()
    return MOST_PIXELS if limit is None else min(2 * limit, MOST_PIXELS)


def _pillows_limit() -> int | None:
    from PIL import Image

    limit: int | None = Image.MAX_IMAGE_PIXELS
    return _before if limit == _RAISED else limit


def too_large(width: int, height: int, limit: int) -> str:
    """What an error says of a picture beyond its limit."""
    return (
        f"is too large: {width} x {height}, expected at most {limit} pixels; raise max_pixels= for one that "
        "you trust"
    )


def read_image(image: Any, *, max_pixels: int | None = None) -> npt.NDArray[np.uint8]:
    """Decodes a picture, upright as its EXIF orientation says; of an animation the first frame.

    Args:
        image: a path, the encoded bytes of a JPEG, PNG or another format that Pillow reads, or a binary file object.
            A path must be a regular file's: opening a FIFO or a device may never end.
        max_pixels: larger pictures are refused before they are decoded, as a file of a few kilobytes can claim any
            size; at most 2**28. None for Pillow's own limit, 2 * ``PIL.Image.MAX_IMAGE_PIXELS`` (179 megapixels).

    Returns:
        uint8 RGB (H, W, 3), read-only where the picture is gray; transparency is dropped.

    Raises:
        FileNotFoundError, OSError: the file cannot be opened.
        TypeError: ``image`` is none of these.
        ValueError: it is not a picture, a damaged one, too large, or an address on the network.
    """
    with _reading("image", image, max_pixels) as (picture, name):
        upright = _upright(picture)
    return _rgb(upright, name)


def picture_size(path: Any) -> tuple[int, int] | None:
    """(height, width) that :func:`read_image` would give the picture of a path, by the head of the file alone.

    None where it cannot be read; reading it says why.
    """
    try:
        with _reading("image", path, None) as (picture, _):
            turned = picture.getexif().get(_ORIENTATION) in _TURNED
            width, height = picture.size
    except (OSError, TypeError, ValueError):
        return None
    return (width, height) if turned else (height, width)


def read_animation(
    path: Any, *, max_pixels: int | None = None
) -> Iterator[tuple[npt.NDArray[np.uint8], float | None]]:
    """The frames of an animated PNG, WebP or AVIF, as :func:`read_image` gives them, and seconds from the first one.

    Of anything else the one picture, and None for its time. Arguments and errors as of :func:`read_image`, which come
    where the file is damaged.
    """
    with _reading("image", path, max_pixels) as (picture, name):
        frames = getattr(picture, "n_frames", 1) if picture.format in _ANIMATED else 1
        if frames == 1:
            upright = _upright(picture)
            yield _rgb(upright, name), None
            return
        # A PNG may have a picture for those who cannot show the others.
        first = int(getattr(picture, "default_image", False))
        seconds = 0.0
        for index in range(first, frames):
            picture.seek(index)
            pixels = _rgb(_upright(picture), name)
            yield pixels, seconds
            seconds += float(picture.info.get("duration", 0)) / 1000


def _upright(picture: Any) -> Any:
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture)


def _rgb(picture: Any, name: str) -> npt.NDArray[np.uint8]:
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"image: {name} has mode {picture.mode!r}, expected 8 bits a channel")
    if picture.mode not in _MODES:
        try:
            picture = picture.convert("RGB")
        except ValueError as error:
            raise ValueError(f"image: {name} has mode {picture.mode!r}, expected colors: {error}") from error
    pixels = np.asarray(picture)
    # Gray stays one plane in memory, seen three times.
    return pixels if pixels.ndim == 3 else np.broadcast_to(pixels[..., None], (*pixels.shape, 3))


def read_labels(labels: Any, *, max_pixels: int | None = None) -> npt.NDArray[Any]:
    """Decodes a label image: the numbers that it holds, not the colors that a palette gives them.

    Args:
        labels, max_pixels: as ``image`` and ``max_pixels`` of :func:`read_image`.

    Returns:
        Integers (H, W), of the width that the file has.

    Raises:
        What :func:`read_image` raises, and ValueError for pictures in color.
    """
    with _reading("labels", labels, max_pixels) as (picture, name):
        spread = _spread(picture)
        upright = _upright(picture)
    if upright.mode not in _LABEL_MODES:
        raise ValueError(f"labels: {name} has mode {upright.mode!r}, expected one label a pixel")
    values = np.asarray(upright)
    return values.astype(np.uint8) if values.dtype == np.bool_ else values // spread if spread > 1 else values


def _spread(picture: Any) -> int:
    """What Pillow will multiply the numbers in the file by when it decodes them."""
    for tile in picture.tile:
        mode = tile[3] if isinstance(tile[3], str) else tile[3][0] if tile[3] else None
        if mode in _SPREAD:
            return _SPREAD[mode]
    return 1


@contextmanager
def _reading(argument: str, image: Any, max_pixels: int | None) -> Iterator[tuple[Any, str]]:
    """The picture, opened and not decoded yet, and what messages call it; what fails within is the file's fault."""
    if isinstance(image, str) and "://" in image and not os.path.exists(image):
        raise ValueError(
            f"{argument}: got the address {redacted(image)!r:.80}, expected a path; fetch it first and pass its bytes"
        )
    if not is_encoded(image):
        raise TypeError(
            f"{argument}: got {type(image).__name__}, expected a path, encoded bytes or a file object"
        )
    if isinstance(image, io.TextIOBase):
        raise TypeError(f"{argument}: got a file in text mode, expected one in binary mode")
    from PIL import Image, UnidentifiedImageError

    max_pixels = check_max_pixels(max_pixels)
    name = type(image).__name__
    if isinstance(image, (str, os.PathLike)):
        name = os.fsdecode(image)
        _check_file(argument, name)
    source = io.BytesIO(image) if isinstance(image, (bytes, bytearray)) else image
    try:
        with _opened(source, max_pixels) as picture:
            problem = _refused(picture, max_pixels)
            if problem is None:
                yield picture, name
                return
    except UnidentifiedImageError:
        video = os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES
        more = "; model.stream and fai-fast predict take videos" if video else ""
        raise ValueError(f"{argument}: {name} is no picture that Pillow can read{more}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLargeError(
            f"{argument}: {name} is too large: {error} Raise max_pixels= for one that you trust"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # whatever one of Pillow's many decoders raises, the file is at fault
        if (isinstance(error, OSError) and error.errno is not None) or not explained(error, *_DECODERS):
            raise
        raise ValueError(f"{argument}: {name} is damaged: {str(error) or type(error).__name__}") from error
    kind, text = problem
    raise kind(f"{argument}: {name} {text}")


def _check_file(argument: str, name: str) -> None:
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{argument}: no such file: {redacted(name) or repr(name)}") from None
    except ValueError as error:  # a null character in it
        if not explained(error):
            raise
        raise ValueError(f"{argument}: got the path {redacted(name)!r:.80}: {error}") from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(
            f"{argument}: {name} is a folder, expected a picture's file; model.stream and fai-fast predict take folders"
        )
    if not stat.S_ISREG(mode):
        raise ValueError(
            f"{argument}: {name} is a FIFO, a socket or a device, expected a regular file; open it yourself and pass "
            "the file object"
        )


def _refused(picture: Any, max_pixels: int | None) -> tuple[type[ValueError], str] | None:
    """Why a picture that was opened is not to be decoded: the error's type and text."""
    if picture.format == "EPS":  # for which Pillow would start Ghostscript
        return ValueError, "is PostScript, a program, expected a picture"
    limit = pixel_limit(max_pixels)
    if picture.width * picture.height > limit:
        return TooLargeError, too_large(picture.width, picture.height, limit)
    return None


@contextmanager
def _opened(source: Any, max_pixels: int | None) -> Iterator[Any]:
    from PIL import Image

    global _before
    limit = _pillows_limit()
    if max_pixels is None or limit is None or max_pixels <= limit:
        with Image.open(source) as picture:
            yield picture
        return
    with _raised:
        # A thread of the parent may have raised it when this process was forked.
        _before = limit = _pillows_limit()
        Image.MAX_IMAGE_PIXELS = _RAISED
        try:
            picture = Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with picture:
        yield picture
