"""What FocoosAI's library does with a frame on a CPU, in our own words: no resize, its graph, its steps, its JSON.

The frame goes through the network at its own size, and every query's mask is resized to it. Kept masks are cropped to
their boxes and become PNGs of 8 bits a pixel in base64, by OpenCV.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from bench.peers import plain_graph, plain_pipeline
from bench.peers.torch_steps import Rows


def load(
    spec, size: tuple[int, int], threads: int, folder: Path, weights: Any
) -> Callable[[np.ndarray, float], tuple[Rows, list[str]]]:
    """(frame uint8 (H, W, 3) of `size`, threshold) -> the rows, and the PNG of each."""
    path = folder / f"focoos-{size[0]}x{size[1]}.onnx"
    plain_pipeline.export(spec, size, path, weights)
    graph = plain_graph.load(path, threads)

    def run(frame: np.ndarray, threshold: float) -> tuple[Rows, list[str]]:
        images = np.ascontiguousarray(frame.transpose(2, 0, 1)[np.newaxis], dtype=np.float32)
        masks, classes = (torch.from_numpy(output)[0] for output in graph(images))
        rows = plain_pipeline._rows(masks, classes, spec.config, threshold)
        return rows, encode(rows.mask, rows.xyxy)

    return run


def encode(masks: np.ndarray, boxes: np.ndarray) -> list[str]:
    """Of each mask (N, H, W), cropped to its half-open box, a base64 PNG of 0 and 255."""
    texts = []
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
        _, png = cv2.imencode(".png", mask[y1:y2, x1:x2].astype(np.uint8) * np.uint8(255))
        texts.append(base64.b64encode(png.tobytes()).decode("ascii"))
    return texts


def decode(text: str) -> np.ndarray:
    """The mask of a PNG, bool (h, w), as that library reads it."""
    content = np.frombuffer(base64.b64decode(text), np.uint8)
    return cv2.imdecode(content, cv2.IMREAD_GRAYSCALE) > 0
