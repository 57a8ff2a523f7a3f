"""OpenCV, with NumPy where it stops; it resizes uint8 to uint8, in fixed point."""

from __future__ import annotations

import cv2
import numpy as np

_TO_RGB = {"bgr": cv2.COLOR_BGR2RGB, "nv12": cv2.COLOR_YUV2RGB_NV12}


def resize(frame, size, color="rgb"):
    """The resized RGB picture (h, w, 3) in uint8: no normalizing, no planes."""
    if color == "nv12":
        frame = cv2.cvtColor(frame, _TO_RGB[color])
    small = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR)
    return cv2.cvtColor(small, _TO_RGB[color]) if color == "bgr" else small


def normalize(small, mean, std, dtype=np.float32):
    """As most code is written: pixel by pixel, then the planes."""
    x = (small.astype(np.float32) - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None], dtype)


def normalize_planes(small, mean, std, dtype=np.float32):
    """The faster order for NumPy: the planes first, so that its inner loops are long."""
    planes = np.ascontiguousarray(small.transpose(2, 0, 1)).astype(np.float32)
    planes = (planes - np.float32(mean)[:, None, None]) / np.float32(std)[:, None, None]
    return planes[None].astype(dtype, copy=False)


def letterbox(frame, size, content, offset, mean):
    """The resized RGB picture in a canvas of the mean (in uint8, so rounded)."""
    canvas = np.empty((*size, 3), np.uint8)
    canvas[:] = np.rint(mean)
    top, left = offset
    canvas[top : top + content[0], left : left + content[1]] = resize(frame, content)
    return canvas


def blob(frame, size, mean, std):
    params = cv2.dnn.Image2BlobParams()
    params.scalefactor = tuple(1 / s for s in std)
    params.mean = tuple(mean)
    params.size = size[::-1]
    return cv2.dnn.blobFromImageWithParams(frame, params)


def largest_parts(stack):
    """Masks (N, H, W) without all of their parts but the largest."""
    kept = np.zeros_like(stack)
    for mask, out in zip(stack, kept, strict=True):
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
        np.equal(labels, 1 + stats[1:, cv2.CC_STAT_AREA].argmax(), out=out)
    return kept
