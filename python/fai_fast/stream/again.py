"""A frame of a file once more, after its stream is over."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import numpy.typing as npt

from fai_fast.stream import LIVE_TIMEOUT, Frame
from fai_fast.stream.opening import _opener
from fai_fast.stream.pixels import _ColorOverrides
from fai_fast.stream.source import _CorruptFrame, _FrameError

__all__ = ["read_frame"]


def read_frame(source: str, number: int) -> npt.NDArray[np.uint8]:
    """Frame `number` of a video file, folder or pattern, from 0, as RGB uint8 (H, W, 3).

    Raises what opening and decoding the source raises, and ValueError for a live one, and one with fewer frames.
    """
    opener = _opener(source, _ColorOverrides("rgb", None, None), None, LIVE_TIMEOUT, False, None, {}, None)
    if opener.live is not False or opener.pipe:
        raise ValueError(f"image: got None, expected the frame: {opener.name} does not give its frames again")
    with closing(opener.frames(lambda live, rate: None)) as frames:
        count = 0
        for item in frames:
            if isinstance(item, _CorruptFrame):
                continue
            if count == number:
                if isinstance(item, _FrameError):
                    raise item.error
                size = np.asarray(
                    item.pixels if isinstance(item.pixels, np.ndarray) else item.pixels[0]
                ).shape
                frame = Frame(number, item.pts, (size[0], size[1]), item.pixels, item.layout, item.captured)
                return frame.image()
            count += 1
    raise ValueError(f"image: {opener.name} has {count} frames now, expected more than {number}")
