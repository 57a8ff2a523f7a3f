"""PNGs whose pixels are numbers: written here, as their form is simple and most of their rows repeat, and read."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast._foreign import explained
from fai_fast.detections import formats

__all__ = ["gray_png", "read_gray_png", "read_rgb_png", "rgb_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The kinds of pixels, as the file's head numbers them.
_GRAY, _RGB, _RGBA = 0, 2, 6


def gray_png(image: npt.NDArray[Any]) -> bytes:
    """A PNG of uint8 or uint16 (H, W), of 8 or 16 bits a pixel."""
    height, width = image.shape
    rows = image.astype(image.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    return _written(rows, width, 8 * image.dtype.itemsize, _GRAY)


def rgb_png(image: npt.NDArray[np.uint8]) -> bytes:
    """A PNG of uint8 (H, W, 3)."""
    height, width, _ = image.shape
    return _written(image.reshape(height, -1), width, 8, _RGB)


def _written(rows: npt.NDArray[np.uint8], width: int, depth: int, kind: int) -> bytes:
    height = len(rows)
    lines = np.zeros((height, rows.shape[1] + 1), np.uint8)
    # Each row as its difference to the one above: zeros inside regions.
    lines[:, 0] = 2
    lines[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    data = deflate.compress(lines.tobytes()) + deflate.flush()
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in chunks
    )


def read_gray_png(
    content: bytes, name: str, expected: tuple[int, int] | None, max_pixels: int = 1 << 28
) -> npt.NDArray[Any]:
    """The pixels of a gray PNG of 1, 8 or 16 bits, or the indices of one with a palette.

    Args:
        content: of the file.
        name: what errors call it.
        expected: (H, W) that it must have; None for any.
        max_pixels: which are never unpacked.

    Raises:
        ValueError: it is not such a PNG.
        ImportError: without Pillow.
    """
    _check_head(content, name, expected, max_pixels)
    pixels = _decoded(content, name, ("1", "L", "P", "I", "I;16"), "gray, of 1, 8 or 16 bits")
    return pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels


def read_rgb_png(
    content: bytes, name: str, expected: tuple[int, int] | None, max_pixels: int = 1 << 28
) -> npt.NDArray[np.uint8]:
    """The pixels of a PNG with 8 bits of red, green and blue each, uint8 (H, W, 3); what it says of opacity is dropped.

    Arguments and errors as of :func:`read_gray_png`. A palette's colors are no numbers that somebody wrote, and 16 bits
    would be cut to 8: both are refused.
    """
    depth, kind = _check_head(content, name, expected, max_pixels)
    if kind not in (_RGB, _RGBA) or depth != 8:
        said = {0: "gray", 2: "RGB", 3: "a palette", 4: "gray and opacity", 6: "RGB and opacity"}
        raise ValueError(
            f"{name}: got a PNG of {said.get(kind, f'kind {kind}')} with {depth} bits, expected RGB with 8 bits each"
        )
    pixels: npt.NDArray[np.uint8] = _decoded(content, name, ("RGB", "RGBA"), "RGB")[..., :3]
    return pixels


def _check_head(
    content: bytes, name: str, expected: tuple[int, int] | None, max_pixels: int
) -> tuple[int, int]:
    """The bits and the kind that the head of a PNG claims, whose size is known to fit."""
    if len(content) < 33 or not content.startswith(_SIGNATURE) or content[12:16] != b"IHDR":
        raise ValueError(f"{name}: got {len(content)} bytes that are not a PNG")
    width, height, depth, kind = struct.unpack(">IIBB", content[16:26])
    if expected is not None and (height, width) != expected:
        raise ValueError(
            f"{name}: got a PNG of {height} x {width} pixels, expected {expected[0]} x {expected[1]}"
        )
    if not 0 < height * width <= max_pixels:
        raise ValueError(f"{name}: got a PNG of {height} x {width} pixels, expected at most {max_pixels}")
    return depth, kind


def _decoded(content: bytes, name: str, modes: Collection[str], expected: str) -> npt.NDArray[Any]:
    image = formats._require("PIL.Image", "reading a PNG", "focoos")
    try:
        with image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            mode = picture.mode
            pixels = np.asarray(picture) if mode in modes else None
    except Exception as error:
        if not (explained(error, "PIL", "zlib", "struct") or isinstance(error, image.DecompressionBombError)):
            raise
        raise ValueError(f"{name}: got a damaged PNG: {error}") from None
    if pixels is None:
        raise ValueError(f"{name}: got a PNG of mode {mode}, expected {expected}")
    return pixels
