"""Folders as FocoosAI's library writes them, and what its own networks say of a picture.

tests/data/focoos/NAME has ``model_info.json`` and ``model_final.pth`` of random weights, from focoos 0.25.0, and
``expected.npz``: a picture of the network's size, and of each query what focoos' network and processor give for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

FOLDERS = Path(__file__).parents[1] / "data" / "focoos"


class Expected(NamedTuple):
    """What focoos says of a picture.

    Attributes:
        image: uint8 (H, W, 3), RGB, of the network's size.
        class_map: uint8 (H, W), of each pixel the class of the query whose score times mask probability is largest.
        labels, scores: uint8 and float32 (Q,), the best class of each query and its probability.
        inside: bool (Q, H, W), mask probability at least 0.5, in the picture's size.
    """

    image: np.ndarray
    class_map: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    inside: np.ndarray


def folder(name: str) -> Path:
    return FOLDERS / name


def expected(name: str) -> Expected:
    with np.load(FOLDERS / name / "expected.npz") as data:
        image = data["image"]
        inside = np.unpackbits(data["inside"], axis=-1, count=image.shape[1]).astype(bool)
        return Expected(image, data["class_map"], data["labels"], data["scores"], inside)
