"""Frames of random bytes in every color format."""

from __future__ import annotations

from helpers import scenes

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
PACKED = ("rgb", "bgr", "rgba", "bgra", "gray", "yuyv", "uyvy")
PLANAR = ("nv12", "i420")
CHANNELS = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "gray": 1, "yuyv": 2, "uyvy": 2}


def frame(seed, color, height, width, planes=False):
    """A frame of random bytes as preprocess expects it."""
    if color in CHANNELS:
        return scenes.image(seed, (height, width, CHANNELS[color]))
    if not planes:
        return scenes.image(seed, (height * 3 // 2, width))
    half = -(-height // 2), -(-width // 2)
    chroma = [(*half, 2)] if color == "nv12" else [half, half]
    return tuple(scenes.image(seed + i, shape) for i, shape in enumerate([(height, width), *chroma]))
