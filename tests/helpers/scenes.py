"""Seeded network outputs that look like the real thing, and some that do not."""

from __future__ import annotations

import numpy as np


def blobs(seed, queries=30, grid=(24, 32), objects=6, classes=80, dtype=np.float32):
    """Logits of a picture: `objects` confident queries with one smooth blob each, the others sure of nothing.

    Returns mask logits (queries, *grid) and class logits (queries, classes + 1)."""
    rng = np.random.default_rng(seed)
    height, width = grid
    objects = min(objects, queries)
    y, x = np.mgrid[0:height, 0:width]
    masks = rng.normal(-7, 1, (queries, 1, 1)) + rng.normal(0, 0.3, (queries, height, width))
    logits = rng.normal(0, 1, (queries, classes + 1))
    logits[:, -1] += rng.uniform(3, 8, queries)
    for query in rng.choice(queries, objects, replace=False):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        ry, rx = rng.uniform(0.05, 0.4, 2) * grid + 0.7
        distance = np.hypot((y - cy) / ry, (x - cx) / rx)
        masks[query] += np.clip(9 * (2.2 - distance), 0, 15)
        logits[query, -1] = rng.normal(0, 1)
        logits[query, rng.integers(classes)] += rng.uniform(4, 12)
    return masks.astype(dtype), logits.astype(dtype)


def noise(seed, queries=30, grid=(24, 32), classes=80, spread=3.0, dtype=np.float32):
    """Logits without structure: every pixel and every score is near some decision."""
    rng = np.random.default_rng(seed)
    masks = rng.normal(0, spread, (queries, *grid))
    logits = rng.normal(0, spread, (queries, classes + 1))
    return masks.astype(dtype), logits.astype(dtype)


def image(seed, shape):
    """Random bytes: the hardest picture for a resampler."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
