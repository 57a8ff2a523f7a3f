"""Pictures from files: paths, encoded bytes and file objects to frames. Frames in memory pass through."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast.arguments import check_int

__all__ = ["SUFFIXES", "is_encoded", "read_image"]

# Of pictures that Pillow opens; what else lies in a folder is left out.
SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

# The longest frame that preprocessing takes, csrc/core/types.h.
_MOST_PIXELS = 1 << 28
# Pillow has one limit for the whole process: it refuses pictures of twice that, and warns between the two.
_raised = threading.Lock()
_MODES = ("RGB", "L")


def is_encoded(image: object) -> bool:
    """Whether :func:`read_image` must decode it: a path, encoded bytes, or a file object."""
    return isinstance(image, (str, os.PathLike, bytes, bytearray)) or (
        hasattr(image, "read") and not hasattr(image, "__array_interface__")
    )


def read_image(image: Any, *, max_pixels: int | None = None) -> npt.NDArray[np.uint8]:
    """Decodes a picture, upright as its EXIF orientation says.

    Args:
        image: a path, the encoded bytes of a JPEG, PNG or another format that Pillow reads, or a binary file object.
        max_pixels: larger pictures are refused before they are decoded, as a file of a few kilobytes can claim any
            size; at most 2**28. None for Pillow's own limit, 2 * ``PIL.Image.MAX_IMAGE_PIXELS`` (179 megapixels).

    Returns:
        uint8 RGB (H, W, 3), read-only where the picture is gray; transparency is dropped.

    Raises:
        FileNotFoundError, OSError: the file cannot be opened.
        TypeError: ``image`` is none of these.
        ValueError: it is no picture, a damaged one, too large, or an address on the network.
    """
    if isinstance(image, str) and "://" in image:
        raise ValueError(
            f"image: got the address {image!r:.80}, expected a path; fetch it first and pass its bytes"
        )
    if not is_encoded(image):
        raise TypeError(f"image: got {type(image).__name__}, expected a path, encoded bytes or a file object")
    from PIL import Image, ImageOps, UnidentifiedImageError

    if max_pixels is not None and not 1 <= check_int("max_pixels", max_pixels) <= _MOST_PIXELS:
        raise ValueError(f"max_pixels: got {max_pixels}, expected 1..{_MOST_PIXELS} or None")
    name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else type(image).__name__
    if isinstance(image, (str, os.PathLike)) and not os.path.exists(image):
        raise FileNotFoundError(f"image: no such file: {name}")
    source = io.BytesIO(image) if isinstance(image, (bytes, bytearray)) else image
    try:
        with _opened(source, max_pixels) as picture:
            if max_pixels is not None and picture.width * picture.height > max_pixels:
                raise ValueError(
                    f"image: {name} is too large: {picture.width} x {picture.height}, expected at most {max_pixels} "
                    "pixels; raise max_pixels= for one that you trust"
                )
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith(("I", "F")):
                raise ValueError(f"image: {name} has mode {upright.mode!r}, expected 8 bits a channel")
            pixels = np.asarray(upright if upright.mode in _MODES else upright.convert("RGB"))
            # Gray stays one plane in memory, seen three times.
            return pixels if pixels.ndim == 3 else np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
    except UnidentifiedImageError:
        raise ValueError(f"image: {name} is no picture that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"image: {name} is too large: {error} Raise max_pixels= for one that you trust"
        ) from None
    except (OSError, SyntaxError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"image: {name} is damaged: {error}") from error


@contextmanager
def _opened(source: Any, max_pixels: int | None) -> Iterator[Any]:
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if max_pixels is None or limit is None or max_pixels <= limit:
        with Image.open(source) as picture:
            yield picture
        return
    with _raised:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, _MOST_PIXELS
        try:
            picture = Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with picture:
        yield picture
