"""Weights and an image that anyone can draw again, and what the reference architecture answered to them.

tests/data/forward/*.npz were made with FocoosAI's own networks in float32. The recipe's rules apply in order.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[1] / "data"
NAMES = sorted(path.stem for path in (DATA / "forward").glob("*.npz"))
# The weights are the same for both names.
SAME_NETWORK = {"fai-bf-m-ade": "bisenetformer-m-ade"}
IMAGE_SIZE = (128, 160)


def state_shapes(name: str) -> dict[str, tuple[int, ...]]:
    shapes = json.loads((DATA / "state_dicts" / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in (shapes.items() if isinstance(shapes, dict) else shapes)}


def golden_parameter(key: str, shape: tuple[int, ...]) -> np.ndarray:
    r = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        value = r.uniform(0.8, 1.2, shape)
    elif key.endswith("running_mean"):
        value = 0.05 * r.standard_normal(shape)
    elif len(shape) >= 2:
        scale = 1.0 if "query_" in key else np.sqrt(1.7 / np.prod(shape[1:]))
        value = r.standard_normal(shape) * scale
    elif key.endswith("bias"):
        value = 0.05 * r.standard_normal(shape)
    elif ".branch2c.norm.weight" in key:
        value = 0.2 * r.uniform(0.8, 1.2, shape)
    else:
        value = r.uniform(0.8, 1.2, shape)
    return np.asarray(value, np.float32)


def golden_state(name: str) -> dict[str, np.ndarray]:
    return {key: golden_parameter(key, shape) for key, shape in state_shapes(name).items()}


def golden_image() -> np.ndarray:
    """uint8 (128, 160, 3)."""
    height, width = IMAGE_SIZE
    r = np.random.default_rng(7)
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    channels = [128 + 90 * np.sin(xx / (9 + 4 * c)) * np.cos(yy / (7 + 5 * c)) for c in range(3)]
    image = np.stack(channels, -1) + 20 * r.standard_normal((height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def golden_outputs(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / "forward" / f"{SAME_NETWORK.get(name, name)}.npz") as data:
        return {key: data[key] for key in data.files}
