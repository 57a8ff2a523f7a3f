"""Drawn pictures on which a network finds things: textured shapes on a textured ground, as the demo model's are.

They come from a seed alone, so that nothing has to be stored with the package. ``tools/shapes.py`` draws the scenes
that the demo model was trained on; these are of the same kind, made with NumPy alone, without labels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["VERSION", "draw"]

Float32 = npt.NDArray[np.float32]

VERSION = 1
"""Of the pictures: what was measured on others is measured again."""
OBJECTS = 7
SMALLEST, LARGEST = 0.2, 0.42  # of the picture's shorter side, from edge to edge
LEAST_CONTRAST = 180.0  # summed over the channels, between the mean colors of a shape and of what it covers
GROUND, PAINT = 0.45, 0.3  # how far a texture goes towards its second color
_ARM, _REACH = np.float32(0.33), np.float32(0.94)  # of a cross, half the width and the length of its arms


def draw(seed: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A picture (h, w, 3), RGB, with up to seven shapes that hardly hide each other.

    Args:
        seed: everything follows from it and from the size.
        size: (h, w), pixels.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    side = min(size)
    image = _texture(rng, height, width, side, GROUND)
    placed: list[tuple[float, float, float]] = []
    for index in range(8 * OBJECTS):
        if len(placed) == OBJECTS:
            break
        radius = 0.5 * side * float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
        y, x = (
            rng.uniform(0.8 * radius, height - 0.8 * radius),
            rng.uniform(0.8 * radius, width - 0.8 * radius),
        )
        if all(np.hypot(y - v, x - u) > 0.85 * (radius + r) for v, u, r in placed):
            placed.append((y, x, radius))
            _paint(rng, image, _KINDS[(seed + index) % len(_KINDS)], (y, x), radius, side)
    noise = rng.standard_normal((height, width, 1), dtype=np.float32)
    result: npt.NDArray[np.uint8] = np.clip(image + 4 * noise + 0.5, 0, 255).astype(np.uint8)
    return result


def _paint(
    rng: np.random.Generator,
    image: Float32,
    kind: Callable[[Float32, Float32], Float32],
    center: tuple[float, float],
    radius: float,
    side: int,
) -> None:
    """One shape, turned at random, with edges that are smooth over a pixel."""
    height, width = image.shape[:2]
    top, left = (max(0, int(c - radius) - 1) for c in center)
    bottom, right = (min(end, int(c + radius) + 2) for c, end in zip(center, (height, width), strict=True))
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(center[0])
    x = np.arange(left, right, dtype=np.float32) - np.float32(center[1])
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    # The distance to the outline is in units of the radius, positive inside.
    cover = np.clip(kind(cos * x + sin * y, cos * y - sin * x) * np.float32(radius) + 0.5, 0, 1)[..., None]
    patch = image[top:bottom, left:right]
    behind = patch.mean((0, 1))
    for _ in range(20):
        paint = _texture(rng, bottom - top, right - left, side, PAINT)
        if np.abs(paint.mean((0, 1)) - behind).sum() >= LEAST_CONTRAST:
            break
    patch += cover * (paint - patch)


def _texture(rng: np.random.Generator, height: int, width: int, side: int, strength: float) -> Float32:
    """Two colors (height, width, 3), mixed as a gradient, stripes, checks, dots, or not at all."""
    first, second = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    kind, angle = int(rng.integers(5)), rng.uniform(0, np.pi)
    x = np.arange(width, dtype=np.float32) - np.float32(width / 2)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(height / 2)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along, across = cos * x + sin * y, cos * y - sin * x
    pitch = np.float32(2 * np.pi / (side * rng.uniform(0.04, 0.09)))
    if kind == 0:
        mix = np.zeros((height, width), np.float32)
    elif kind == 1:
        mix = (along / np.hypot(height, width) + 0.5).astype(np.float32)
    elif kind == 2:
        mix = (np.sin(pitch * along) > 0).astype(np.float32)
    elif kind == 3:
        mix = ((np.sin(pitch * along) > 0) ^ (np.sin(pitch * across) > 0)).astype(np.float32)
    else:
        mix = (np.sin(pitch * along) * np.sin(pitch * across) > 0.3).astype(np.float32)
    result: Float32 = first + mix[..., None] * (np.float32(strength) * (second - first))
    return result


def _star(points: int, inner: float) -> Callable[[Float32, Float32], Float32]:
    """The distance inside a star whose points lie on the unit circle and whose notches at `inner`."""
    step = np.pi / points
    notch_x, notch_y = inner * np.cos(step), inner * np.sin(step)
    length = np.hypot(1 - notch_x, notch_y)

    def inside(x: Float32, y: Float32) -> Float32:
        # Every half of a point looks alike: the angle is folded into the first.
        angle = np.abs((np.arctan2(y, x) + step) % (2 * step) - step)
        r = np.hypot(x, y)
        u, v = r * np.cos(angle), r * np.sin(angle)
        result: Float32 = ((1 - u) * notch_y - v * (1 - notch_x)) / length
        return result

    return inside


def _disc(x: Float32, y: Float32) -> Float32:
    result: Float32 = 1 - np.hypot(x, y)
    return result


def _ring(x: Float32, y: Float32) -> Float32:
    result: Float32 = np.float32(0.225) - np.abs(np.hypot(x, y) - np.float32(0.775))
    return result


def _cross(x: Float32, y: Float32) -> Float32:
    u, v = np.abs(x), np.abs(y)
    result: Float32 = np.maximum(np.minimum(_ARM - u, _REACH - v), np.minimum(_REACH - u, _ARM - v))
    return result


_KINDS: tuple[Callable[[Float32, Float32], Float32], ...] = (
    _disc,
    _star(4, float(np.cos(np.pi / 4))),
    _star(3, 0.5),
    _star(5, 0.45),
    _ring,
    _cross,
)
