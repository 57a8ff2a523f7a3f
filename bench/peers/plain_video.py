"""The loop that people have: OpenCV reads a frame as BGR, turns it into RGB, and the plain pipeline takes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path

import cv2
import torch

from bench.peers.plain_pipeline import load
from bench.peers.torch_steps import Rows

__all__ = ["frames", "load"]


def frames(
    path: Path, run: Callable[..., Rows], threshold: float, count: int, threads: int | None = None
) -> Iterator[tuple[float, Rows]]:
    """When read() of each of the first `count` frames began, on `time.perf_counter`, and its rows.

    Args:
        threads: of torch, for loops that run beside each other; None leaves them as they are.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    capture = cv2.VideoCapture(str(path))
    try:
        for _ in repeat(None, count):
            began = time.perf_counter()
            there, bgr = capture.read()
            if not there:
                return
            rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
            rows = run(rgb, threshold)
            # Not before: all that a frame allocates is then alive at once, and its peak is the sum.
            del bgr, rgb
            yield began, rows
    finally:
        capture.release()
