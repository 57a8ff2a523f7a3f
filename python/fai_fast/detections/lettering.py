"""Text on pictures: what it looks like, drawn once by Pillow and kept, and where labels go."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fai_fast.detections.palettes import Color

__all__: list[str] = []

Picture = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]

DARK, LIGHT = (16, 16, 16), (255, 255, 255)
# Places that are tried for a label when those at its box are taken: so many of its heights up and down.
_FURTHER = 16


class Style(NamedTuple):
    """Sizes in pixels that look alike on pictures of every size."""

    line: int  # of contours and boxes
    padding: int  # around a text
    font_size: int
    text_height: int
    top: int  # of the text, below where Pillow starts it


@functools.lru_cache(maxsize=16)
def style_of(size: tuple[int, int]) -> Style:
    """For a frame of `size` (H, W)."""
    scale = math.sqrt(size[0] * size[1])
    font_size = max(12, round(scale / 72))
    # The height of every line is that of a text with ascenders and descenders.
    top, bottom = _font(font_size).getbbox("Ágj")[1::2]
    return Style(
        max(1, round(scale / 550)), max(2, round(font_size / 5)), font_size, int(bottom - top), int(top)
    )


@functools.lru_cache(maxsize=16)
def _font(font_size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(font_size)


@functools.lru_cache(maxsize=4096)
def _glyph(character: str, style: Style) -> tuple[Picture, float]:
    """A character's opacity (text_height, w), and how far the next one is from it."""
    from PIL import Image, ImageDraw

    if not character.isprintable():
        character = "\ufffd"
    font = _font(style.font_size)
    advance = float(font.getlength(character))
    # What leans out of its own width to the right is seen; the next one is laid over it.
    width = max(1, math.ceil(max(advance, font.getbbox(character)[2])))
    canvas = Image.new("L", (width, style.text_height))
    ImageDraw.Draw(canvas).text((0, -style.top), character, fill=255, font=font)
    return np.asarray(canvas), advance


@functools.lru_cache(maxsize=1024)
def written(text: str, style: Style, widest: int) -> Picture:
    """A text's opacity, uint8 (h, w), with padding around it; cut to end in an ellipsis where it exceeds `widest`."""
    glyphs = [_glyph(character, style) for character in text]
    room = max(0, widest - 2 * style.padding)
    if sum(advance for _, advance in glyphs) > room:
        dots = _glyph("…", style)
        while glyphs and sum(advance for _, advance in glyphs) + dots[1] > room:
            glyphs.pop()
        glyphs.append(dots)
    starts = np.cumsum([0.0, *(advance for _, advance in glyphs)])
    width = math.ceil(starts[-1])
    line = np.zeros((style.text_height + 2 * style.padding, width + 2 * style.padding), np.uint8)
    inside = line[style.padding : style.padding + style.text_height, style.padding :]
    for start, (glyph, _) in zip(np.rint(starts).astype(int).tolist(), glyphs, strict=False):
        place = inside[:, start : start + glyph.shape[1]]
        np.maximum(place, glyph[:, : place.shape[1]], out=place)
    line.flags.writeable = False
    return line


@functools.lru_cache(maxsize=1024)
def _ramp(ink: Color, ground: Color) -> Picture:
    """The color at each opacity, uint8 (256, 3)."""
    opacity = np.arange(256)[:, None] / 255
    return np.rint(np.array(ground) * (1 - opacity) + np.array(ink) * opacity).astype(np.uint8)


def put(picture: Picture, line: Picture, x: int, y: int, ink: Color, ground: Color) -> None:
    """Lays a text of :func:`written` on a ground of one color, its corner at x, y; what is outside is left out."""
    height, width = picture.shape[:2]
    line = line[max(0, -y) : max(0, height - y), max(0, -x) : max(0, width - x)]
    x, y = max(0, x), max(0, y)
    picture[y : y + line.shape[0], x : x + line.shape[1]] = np.take(_ramp(ink, ground), line, axis=0)


def fill(picture: Picture, box: Box, paint: Color) -> None:
    """Paints a box x1, y1, x2, y2; what is outside the picture is left out."""
    x1, y1, x2, y2 = (max(0, edge) for edge in box)
    picture[y1:y2, x1:x2] = paint


def contrast(ground: Color) -> Color:
    """Black or white, whichever differs more from `ground` by WCAG's relative luminance."""
    linear = [v / 3294.6 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in ground]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return DARK if (luminance + 0.05) ** 2 > 0.05 * 1.05 else LIGHT


def free_place(
    corners: Sequence[int], size: tuple[int, int], frame: tuple[int, int], taken: Sequence[Box]
) -> Box:
    """Where a label of `size` (width, height) goes in a frame of (width, height).

    Above its box, else in it or below, else further up or down; where it is off all others, or covers least of them.
    """
    x1, y1, x2, y2 = corners
    w, h = size
    best: tuple[int, Box] | None = None
    near = [(x1, y1 - h), (x1, y1), (x2 - w, y1 - h), (x1, y2), (x2 - w, y2), (x1, y2 - h)]
    far = [(x1, y1 + sign * step * h) for step in range(2, 2 + _FURTHER) for sign in (-1, 1)]
    others = np.array(taken, np.int64).reshape(-1, 4)
    for x, y in near + far:
        inside = max(0, min(x, frame[0] - w)), max(0, min(y, frame[1] - h))
        box = (inside[0], inside[1], inside[0] + w, inside[1] + h)
        covered = _covered(box, others)
        # A place that had to move into the frame lies on the object; prefer one that did not.
        cost = 2 * covered + (abs(inside[0] - x) + abs(inside[1] - y)) * min(w, h) // 4
        if best is None or cost < best[0]:
            best = cost, box
        if cost == 0:
            break
    assert best is not None
    return best[1]


def _covered(box: Box, others: npt.NDArray[np.int64]) -> int:
    """Pixels of a box that others cover, counted for each of them."""
    across = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    down = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return int((np.maximum(across, 0) * np.maximum(down, 0)).sum())
