"""What was found as the body of an answer: JSON, a drawn picture, or labels as a PNG."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast.detections import Detections
from fai_fast.detections.drawing import draw
from fai_fast.ray.serve.http import JSON, PNG
from fai_fast.ray.serve.query import Query

__all__ = ["written"]


def written(
    found: Detections, frame: npt.NDArray[np.uint8], query: Query, latency: Mapping[str, float]
) -> tuple[bytes, str]:
    """The body of an answer and its type.

    Raises:
        ValueError: the model has no masks, or labels beyond what a PNG holds.
        ImportError: outlines are asked for, and OpenCV is not installed.
    """
    if query.format == "png":
        if query.png == "picture":
            return _png(draw(frame, found)), PNG
        return found.to_label_png(values="row" if query.png == "row" else "class"), PNG
    content = {**_content(found, query.masks), "latency_ms": dict(latency)}
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode(), JSON


def _content(found: Detections, masks: str) -> dict[str, Any]:
    content = found.to_dict()
    if masks == "rle" or found.packed is None:
        return content
    rows = content["detections"]
    instead: list[Any] = [None] * len(rows)
    if masks == "polygons":
        instead = [[outline.tolist() for outline in outlines] for outlines in found.to_polygons()]
    elif masks == "png":
        instead = [_cropped(row) for row in found.to_focoos()["detections"]]
    for row, mask in zip(rows, instead, strict=True):
        row["mask"] = mask
    return content


def _cropped(row: Mapping[str, Any]) -> dict[str, Any]:
    """A mask as a PNG of its box, whose right and lower edges are not in it."""
    x1, y1, x2, y2 = row["bbox"]
    return {"box": [x1, y1, x2 + 1, y2 + 1], "png": row["mask"]}


def _png(picture: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG", compress_level=3)
    return content.getvalue()
