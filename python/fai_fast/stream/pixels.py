"""What a decoded frame says of itself, and its planes as preprocessing reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast._arguments import check_choice
from fai_fast._options import YUV_MATRICES, YUV_RANGES, Color, FrameLayout, YuvMatrix, YuvRange

# Pixel formats of FFmpeg that preprocessing reads as they are: its name for them, bytes a pixel of each plane.
_NATIVE_PIX_FMTS: dict[str, tuple[Color, tuple[int, ...]]] = {
    "yuv420p": ("i420", (1, 1, 1)),
    "yuvj420p": ("i420", (1, 1, 1)),
    "nv12": ("nv12", (1, 2)),
    "rgb24": ("rgb", (3,)),
    "bgr24": ("bgr", (3,)),
    "rgba": ("rgba", (4,)),
    "bgra": ("bgra", (4,)),
    "gray": ("gray", (1,)),
    "yuyv422": ("yuyv", (2,)),
    "uyvy422": ("uyvy", (2,)),
}
# AVColorSpace. Unspecified, 2, is read as FFmpeg's own converter and OpenCV read it.
_MATRICES: dict[int, YuvMatrix] = {1: "bt709", 2: "bt601", 5: "bt601", 6: "bt601"}
_FULL_RANGE = 2  # AVColorRange
_YUV = ("i420", "nv12", "yuyv", "uyvy")


class _ColorOverrides:
    """How pixels are to be read, as far as the user says."""

    def __init__(self, color: Color, matrix: YuvMatrix | None, range: YuvRange | None) -> None:
        self.matrix = None if matrix is None else check_choice("yuv_matrix", matrix, YUV_MATRICES)
        self.range = None if range is None else check_choice("yuv_range", range, YUV_RANGES)
        self._color = color

    def layout(
        self, color: Color | None = None, matrix: YuvMatrix = "bt601", range: YuvRange = "limited"
    ) -> FrameLayout:
        """Of pixels that say themselves what they are, or of the user's."""
        return {
            "color": self._color if color is None else color,
            "yuv_matrix": self.matrix or matrix,
            "yuv_range": self.range or range,
        }


def decoded_pixels(frame: Any, overrides: _ColorOverrides) -> tuple[Any, FrameLayout]:
    """A PyAV frame's planes, uint8 and read-only, in the decoder's own memory, and how to read them.

    Formats that preprocessing does not know, and frames that are to be turned, become RGB once.
    """
    name = frame.format.name
    matrix = _MATRICES.get(int(frame.colorspace))
    full = name.startswith("yuvj") or int(frame.color_range) == _FULL_RANGE
    color, channels = _NATIVE_PIX_FMTS.get(name, (None, ()))
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    if (
        color is None
        or turns
        or (color in _YUV and matrix is None)
        or (color in ("yuyv", "uyvy") and frame.width % 2)
        or any(plane.line_size < 0 for plane in frame.planes)  # upside down
    ):
        frame = frame.reformat(format="rgb24")
        color, channels = "rgb", (3,)
    planes = [_view(plane, count) for plane, count in zip(frame.planes, channels, strict=True)]
    if turns:
        planes = [np.ascontiguousarray(np.rot90(planes[0], turns))]
    pixels = planes[0] if len(planes) == 1 else tuple(planes)
    return pixels, overrides.layout(color, matrix or "bt601", "full" if full else "limited")


def _view(plane: Any, channels: int) -> npt.NDArray[np.uint8]:
    """A plane as (h, w) or (h, w, channels); rows are as far apart as the decoder put them."""
    rows: npt.NDArray[np.uint8] = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    # The decoder goes on reading these bytes to predict other frames from.
    rows.flags.writeable = False
    pixels = rows[:, : plane.width * channels]
    return pixels if channels == 1 else pixels.reshape(plane.height, plane.width, channels)
