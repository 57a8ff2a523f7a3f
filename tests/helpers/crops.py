"""Frames that are seen in crops, and what a network may say of them."""

from __future__ import annotations

from typing import Any

import numpy as np

SIDE, CLASSES, QUERIES = 64, 5, 12
# Square, two and three crops in both directions, without any overlap, and with all but a column of it.
FRAMES = [(64, 64), (64, 100), (64, 150), (110, 64), (190, 64), (64, 128), (64, 65), (65, 64)]
# Which are made smaller or larger first, some a little beyond a square.
RESIZED = [(108, 192), (33, 57), (90, 91), (91, 90), (300, 90)]


def noise(size: tuple[int, int], seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def logits(crops: int, seed: int = 0, queries: int = QUERIES, side: int = 16, classes: int = CLASSES) -> Any:
    rng = np.random.default_rng(seed)
    masks = 3 * rng.normal(size=(crops, queries, side, side))
    return masks.astype(np.float32), 3 * rng.normal(size=(crops, queries, classes + 1)).astype(np.float32)
