"""Seeded inputs like real ones: frames with texture, and the logits of a query-mask network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENT = 25
"""Queries that see an object; some lose their pixels or their score, so that 20 to 25 rows are kept."""


@dataclass(frozen=True)
class Scene:
    """What a network hands over for one picture: mask logits (Q, h, w) and class logits (Q, C + 1)."""

    mask_logits: NDArray[np.floating]
    class_logits: NDArray[np.floating]

    def as_float16(self) -> Scene:
        return Scene(self.mask_logits.astype(np.float16), self.class_logits.astype(np.float16))


def frame(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    """A picture (height, width, channels) with gradients, edges and sensor noise."""
    rng = np.random.default_rng(height * 7 + width)
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    planes = [128 + 90 * np.sin(xx / (29 + 4 * c)) * np.cos(yy / (23 + 5 * c)) for c in range(channels)]
    noisy = np.stack(planes, -1) + rng.normal(0, 8, (height, width, channels)).astype(np.float32)
    return noisy.clip(0, 255).astype(np.uint8)


def nv12(height: int, width: int) -> NDArray[np.uint8]:
    """The bytes of an NV12 frame, (height * 3 / 2, width), within the limited range."""
    luma = frame(height, width, 1)[..., 0]
    chroma = frame(height // 2, width // 2, 2).reshape(height // 2, width)
    return np.concatenate([luma // 2 + 60, chroma // 4 + 96]).astype(np.uint8)


def _smooth_noise(rng: np.random.Generator, count: int, side: int, cells: int) -> NDArray[np.float32]:
    """(count, side, side) bilinear upsampling of a grid of cells x cells normal values."""
    grid = rng.standard_normal((count, cells + 1, cells + 1)).astype(np.float32)
    at = np.linspace(0, cells, side, endpoint=False, dtype=np.float32)
    low = at.astype(int)
    part = (at - low).astype(np.float32)
    rows = grid[:, low] * (1 - part[:, None]) + grid[:, low + 1] * part[:, None]
    return rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part


def _class_logits(
    rng: np.random.Generator, queries: int, classes: int, sure: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Class logits in random order of the queries, and that order. `sure`: classes of the confident ones."""
    logits = rng.standard_normal((queries, classes + 1)).astype(np.float32)
    best = rng.integers(0, classes, queries)
    if sure is not None:
        best[:CONFIDENT] = sure
    rest = np.log(np.exp(logits[:, :-1]).sum(1))
    # Probability p of class c against all others: c's logit is log(p / (1 - p)) above their logsumexp.
    p = rng.uniform(0.75, 0.99, queries)
    p[CONFIDENT:] = rng.uniform(0.005, 0.2, queries - CONFIDENT)
    logits[CONFIDENT:, -1] = rest[CONFIDENT:] + rng.uniform(2, 5, queries - CONFIDENT)
    rest = np.logaddexp(rest, logits[:, -1])
    logits[np.arange(queries), best] = rest + np.log(p / (1 - p))
    order = rng.permutation(queries)
    return logits[order], order


def _finish(
    rng: np.random.Generator,
    field: NDArray[np.float32],
    queries: int,
    classes: int,
    sure: NDArray[np.int64] | None = None,
) -> Scene:
    """Adds what the unsure queries of a real network show (weak copies of objects, and haze) and noise."""
    side = field.shape[-1]
    weak = queries - CONFIDENT
    copies = np.roll(field[rng.integers(0, CONFIDENT, weak // 2)], (3, -2), (1, 2)) * 0.6 - 1.5
    haze = 2 * _smooth_noise(rng, weak - weak // 2, side, 5) - 4
    masks = np.concatenate([field, copies, haze])
    masks += 0.4 * _smooth_noise(rng, queries, side, 20)
    masks += 0.05 * rng.standard_normal(masks.shape, dtype=np.float32)
    class_logits, order = _class_logits(rng, queries, classes, sure)
    return Scene(np.ascontiguousarray(masks[order].clip(-14, 12)), class_logits)


def instances(queries: int = 100, side: int = 160, classes: int = 80) -> Scene:
    """Things: star-shaped blobs of many sizes, partly over one another, each seen by one confident query."""
    rng = np.random.default_rng(2)
    field = _blobs(rng, np.geomspace(0.03, 0.24, CONFIDENT) * side, side)
    return _finish(rng, field.clip(-10, 8), queries, classes)


def panoptic(queries: int = 100, side: int = 160, things: int = 80, classes: int = 133) -> Scene:
    """Things in front of stuff, whose classes follow theirs: blobs on ten regions, of at most six classes."""
    rng = np.random.default_rng(4)
    behind, front = 10, CONFIDENT - 10
    ground = _voronoi(rng, behind, side)
    blobs = _blobs(rng, np.geomspace(0.03, 0.16, front) * side, side)
    # Nothing of what is behind shows through.
    ground = np.minimum(ground, -blobs.max(0))
    sure = np.concatenate([things + rng.integers(0, 6, behind), rng.integers(0, things, front)])
    field = np.concatenate([ground, blobs]).clip(-10, 8).astype(np.float32)
    return _finish(rng, field, queries, classes, sure)


def _blobs(rng: np.random.Generator, radii: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Star-shaped, (len(radii), side, side): how far inside a node is."""
    yy, xx = np.mgrid[:side, :side].astype(np.float32)
    field = np.empty((len(radii), side, side), np.float32)
    for i, radius in enumerate(radii):
        cy, cx = rng.uniform(0.1 * side, 0.9 * side, 2)
        aspect = rng.uniform(0.6, 1.6)
        dy, dx = (yy - cy) * aspect, (xx - cx) / aspect
        angle = np.arctan2(dy, dx)
        edge = 1 + sum(rng.uniform(-0.15, 0.15) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5))
        field[i] = 1.6 * (radius * edge - np.hypot(dy, dx))
    return field


def _voronoi(rng: np.random.Generator, count: int, side: int) -> NDArray[np.float32]:
    """The picture divided among `count` regions, (count, side, side): how far a node is from a region's border."""
    yy, xx = np.mgrid[:side, :side].astype(np.float32)
    warp = 0.08 * side * _smooth_noise(rng, 2, side, 6)
    center = rng.uniform(0, side, (2, count, 1, 1)).astype(np.float32)
    weight = rng.uniform(-0.12, 0.12, (count, 1, 1)).astype(np.float32) * side
    near = weight - np.hypot(yy + warp[0] - center[0], xx + warp[1] - center[1])
    top = np.sort(near, axis=0)[-2:]
    # Distance to the border: against the runner-up where the query wins, against the winner elsewhere.
    field: NDArray[np.float32] = 0.8 * (near - np.where(near == top[1], top[0], top[1]))
    return field


def regions(queries: int = 100, side: int = 160, classes: int = 150) -> Scene:
    """Stuff: the picture divided among the confident queries, as in semantic segmentation."""
    rng = np.random.default_rng(10)  # of a few seeds, one that leaves 20 to 25 rows
    return _finish(rng, _voronoi(rng, CONFIDENT, side).clip(-10, 8), queries, classes)
