"""Made-up scenes of textured shapes that overlap, for training and testing without any data set.

A scene is drawn from a seed alone. Shapes of six classes lie on a textured background among lines, curves and specks
of no class; later ones hide parts of earlier ones. A mask is the part of its shape that can be seen. No shape is drawn
that would hide most of another, so everything drawn is in the labels.

    python tools/shapes.py 7 scene.png          # one scene, with its masks beside it
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

CLASSES = ("disc", "square", "triangle", "star", "ring", "cross")
MOST_OBJECTS = 10
LEAST_VISIBLE = 0.5  # of a shape's own area
LEAST_CONTRAST = 160.0  # summed over the three channels, between a shape's mean color and what it covers
SHAPE_PATTERN, BACKGROUND_PATTERN = 0.35, 0.5  # how far a texture goes towards its second color
SUBPIXEL_BITS = 6

FloatArray = npt.NDArray[np.float32]


class Style(NamedTuple):
    """How large shapes are, edge to edge in the scene's shorter side, and how stretched: aspects to exp(2 stretch)."""

    smallest: float
    largest: float
    stretch: float


# What the published figures are measured on.
PLAIN = Style(0.18, 0.45, 0.15)
# Only for training: from tiny to frame-filling, of any aspect between 1:2 and 2:1.
VARIED = Style(0.08, 0.95, 0.35)


class Scene(NamedTuple):
    """image uint8 (H, W, 3) RGB; labels int64 (n,), indices of CLASSES; masks bool (n, H, W), disjoint; n >= 1."""

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_]


def polygon(*points: tuple[float, float]) -> FloatArray:
    return np.array(points, np.float32)


def around(radii: list[float], turn: float = 0.0) -> FloatArray:
    """Corners at equal angles around the origin."""
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii) + turn
    return (np.array(radii)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], 1)).astype(np.float32)


ARM = 0.33
# Closed outlines within the unit circle; where two outlines lie inside each other, the inner one is a hole.
OUTLINES: dict[str, list[FloatArray]] = {
    "disc": [around([1.0] * 48)],
    "square": [around([1.0] * 4, np.pi / 4)],
    "triangle": [around([1.0] * 3)],
    "star": [around([1.0, 0.45] * 5)],
    "ring": [around([1.0] * 48), around([0.55] * 48)],
    "cross": [
        polygon(
            *[(-ARM, -1), (ARM, -1), (ARM, -ARM), (1, -ARM), (1, ARM), (ARM, ARM)],
            *[(ARM, 1), (-ARM, 1), (-ARM, ARM), (-1, ARM), (-1, -ARM), (-ARM, -ARM)],
        )
    ],
}


def scene(
    seed: int, size: int | tuple[int, int] = 256, objects: int | None = None, style: Style = PLAIN
) -> Scene:
    """Draws a scene.

    Args:
        seed: everything follows from it (and from the other arguments).
        size: the side of the square picture, or (height, width), in pixels.
        objects: how many shapes to try to place; None draws 1..10. Those that find no place are left out.
        style: how large and how stretched the shapes are.
    """
    rng = np.random.default_rng(seed)
    height, width = (size, size) if isinstance(size, int) else size
    side = min(height, width)
    image = texture(rng, height, width, side, BACKGROUND_PATTERN)
    draw_clutter(rng, image, side)
    owner = np.full((height, width), -1, np.int16)
    areas: list[int] = []
    labels: list[int] = []
    wanted = int(rng.integers(1, MOST_OBJECTS + 1)) if objects is None else objects
    for _ in range(wanted):
        for _attempt in range(8):
            label = int(rng.integers(len(CLASSES)))
            if place(rng, image, owner, areas, label, side, style):
                labels.append(label)
                break
    if not labels:
        raise ValueError(f"objects: got {wanted}, expected at least 1")
    masks = owner == np.arange(len(labels), dtype=np.int16)[:, None, None]
    return Scene(finish(rng, image), np.array(labels, np.int64), masks)


def place(
    rng: np.random.Generator,
    image: FloatArray,
    owner: npt.NDArray[np.int16],
    areas: list[int],
    label: int,
    side: int,
    style: Style,
) -> bool:
    """Paints one shape somewhere, unless that would hide too much of another."""
    radius = 0.5 * side * np.exp(rng.uniform(np.log(style.smallest), np.log(style.largest)))
    stretch, angle = np.exp(rng.uniform(-style.stretch, style.stretch)), rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    height, width = owner.shape
    center = np.array(
        [rng.uniform(0.7 * radius, width - 0.7 * radius), rng.uniform(0.7 * radius, height - 0.7 * radius)]
    )
    # One row per source axis: stretched, turned, scaled.
    turn = radius * np.array([[stretch * cos, stretch * sin], [-sin / stretch, cos / stretch]])
    outlines = [outline @ turn + center for outline in OUTLINES[CLASSES[label]]]
    left, top = np.maximum(np.floor(outlines[0].min(0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(outlines[0].max(0)).astype(int) + 2, [width, height])
    fixed = [np.round((o - [left, top]) * (1 << SUBPIXEL_BITS)).astype(np.int32) for o in outlines]
    cover = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillPoly(cover, fixed, 255, cv2.LINE_AA, SUBPIXEL_BITS)

    mine = cover >= 128
    beneath = owner[top:bottom, left:right]
    area = int(mine.sum())
    hidden = np.bincount(beneath[mine] + 1, minlength=len(areas) + 1)[1:]
    seen = np.bincount(owner.ravel() + 1, minlength=len(areas) + 1)[1:] if hidden.any() else hidden
    if area < 24 or any(
        lost and seen_now - lost < LEAST_VISIBLE * whole
        for lost, seen_now, whole in zip(hidden, seen, areas, strict=True)
    ):
        return False
    patch = image[top:bottom, left:right]
    behind = patch[mine].mean(0)
    for _ in range(20):
        paint = texture(rng, *cover.shape, side, SHAPE_PATTERN)
        if np.abs(paint[mine].mean(0) - behind).sum() >= LEAST_CONTRAST:
            break
    alpha = cover[:, :, None] * np.float32(1 / 255)
    patch += alpha * (paint - patch)
    if rng.random() < 0.3:
        color, thick = rng.uniform(0, 255, 3).tolist(), max(1, round(side / 200))
        edged = np.ascontiguousarray(patch)
        cv2.polylines(edged, fixed, True, color, thick, cv2.LINE_AA, SUBPIXEL_BITS)
        patch[mine] = edged[mine]
    beneath[mine] = len(areas)
    areas.append(area)
    return True


def texture(rng: np.random.Generator, height: int, width: int, side: int, strength: float) -> FloatArray:
    """Two colors (height, width, 3), mixed as stripes, checks, dots, a gradient, blotches, or not at all."""
    first, second = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    kind = int(rng.integers(6))
    if kind == 0:
        return np.broadcast_to(first, (height, width, 3)).copy()
    if kind == 1:
        coarse = rng.random((height * 24 // side + 2, width * 24 // side + 2), dtype=np.float32)
        mix = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    else:
        angle = rng.uniform(0, np.pi)
        x = np.arange(width, dtype=np.float32) - width / 2
        y = np.arange(height, dtype=np.float32)[:, None] - height / 2
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        along, across = cos * x + sin * y, cos * y - sin * x
        pitch = np.float32(2 * np.pi / (side * rng.uniform(0.03, 0.09)))
        if kind == 2:
            mix = along / np.float32(np.hypot(height, width)) + np.float32(0.5)
        elif kind == 3:
            mix = (np.sin(pitch * along) > 0).astype(np.float32)
        elif kind == 4:
            mix = ((np.sin(pitch * along) > 0) ^ (np.sin(pitch * across) > 0)).astype(np.float32)
        else:
            mix = (np.sin(pitch * along) * np.sin(pitch * across) > 0.3).astype(np.float32)
    return first + mix[:, :, None] * (np.float32(strength) * (second - first))


def draw_clutter(rng: np.random.Generator, image: FloatArray, side: int) -> None:
    """Lines, open curves and specks, thinner or smaller than any shape."""
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(0, 8))):
        color, thick = rng.uniform(0, 255, 3).tolist(), int(rng.integers(1, 2 + side // 80))
        kind, start = int(rng.integers(3)), rng.uniform(0, 1, 2) * [width, height]
        if kind == 0:
            ends = [start, rng.uniform(0, 1, 2) * [width, height]]
        else:
            ends = list(start + np.cumsum(rng.uniform(-side / 8, side / 8, (6, 2)), 0))
        if kind < 2:
            cv2.polylines(image, [np.round(ends).astype(np.int32)], False, color, thick, cv2.LINE_AA)
        else:
            for point in ends:
                cv2.circle(
                    image,
                    tuple(np.round(point).astype(int).tolist()),
                    1 + side // 100,
                    color,
                    -1,
                    cv2.LINE_AA,
                )


def finish(rng: np.random.Generator, image: FloatArray) -> npt.NDArray[np.uint8]:
    """Lighting, blur and noise, as of a camera."""
    height, width = image.shape[:2]
    corners = rng.uniform(0.7, 1.1, (2, 2)).astype(np.float32)
    image = image * cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)[:, :, None]
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), min(height, width) / 256 * rng.uniform(0.3, 1.0))
    noise = rng.standard_normal((height, width, 1), dtype=np.float32)
    return np.clip(image + np.float32(rng.uniform(0, 9)) * noise + 0.5, 0, 255).astype(np.uint8)


def main() -> None:
    seed, path = int(sys.argv[1]), sys.argv[2]
    image, labels, masks = scene(seed)
    index = np.where(masks.any(0), masks.argmax(0) + 1, 0)
    colors = np.random.default_rng(0).integers(64, 256, (len(labels) + 1, 3), np.uint8)
    colors[0] = 0
    cv2.imwrite(path, np.hstack([image, colors[index]])[:, :, ::-1])
    print(path, *[CLASSES[label] for label in labels])


if __name__ == "__main__":
    main()
