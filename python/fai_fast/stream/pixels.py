"""What a decoded frame says of itself, and its planes as preprocessing reads them."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from fai_fast._arguments import check_choice
from fai_fast._options import YUV_MATRICES, YUV_RANGES, Color, FrameLayout, YuvMatrix, YuvRange

# Pixel formats of FFmpeg that preprocessing reads as they are: its name for them, bytes per pixel of each plane.
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
_LIMITED_RANGE, _FULL_RANGE = 1, 2  # AVColorRange
# AVColorTransferCharacteristic of high dynamic range.
_HDR = {16: "PQ", 18: "HLG"}
_YUV = ("i420", "nv12", "yuyv", "uyvy")
# FFmpeg's own numbers of the matrices that a user can ask for.
_SPACES: dict[YuvMatrix, int] = {"bt709": 1, "bt601": 5}

_log = logging.getLogger("fai_fast")


class _ColorOverrides:
    """How pixels are to be read, as far as the user says."""

    def __init__(self, color: Color, matrix: YuvMatrix | None, range: YuvRange | None) -> None:
        self.matrix = None if matrix is None else check_choice("yuv_matrix", matrix, YUV_MATRICES)
        self.range = None if range is None else check_choice("yuv_range", range, YUV_RANGES)
        self._color = color
        self._warned = False

    def layout(
        self, color: Color | None = None, matrix: YuvMatrix = "bt601", range: YuvRange = "limited"
    ) -> FrameLayout:
        """Of pixels that say themselves what they are, or of the user's."""
        return {
            "color": self._color if color is None else color,
            "yuv_matrix": self.matrix or matrix,
            "yuv_range": self.range or range,
        }

    def warn_of_hdr(self, name: str, transfer: int | None) -> None:
        """Tells, once a stream, that colors of high dynamic range are taken as they are."""
        kind = None if transfer is None else _HDR.get(transfer)
        if kind is not None and not self._warned:
            self._warned = True
            _log.warning(
                "stream: %s has colors of high dynamic range (%s), which are shown without tone mapping: paler than in "
                "the pictures that networks are trained on",
                name,
                kind,
            )


def decoded_pixels(frame: Any, overrides: _ColorOverrides) -> tuple[Any, FrameLayout]:
    """A PyAV frame's planes, uint8 and read-only, in the decoder's own memory, and how to read them.

    Formats that preprocessing does not know, and frames that are to be turned or mirrored, become RGB once, by the same
    matrix and range that the layout tells.
    """
    name = frame.format.name
    matrix = overrides.matrix or _MATRICES.get(int(frame.colorspace))
    full = name.startswith("yuvj") or int(frame.color_range) == _FULL_RANGE
    layout = overrides.layout("rgb", matrix or "bt601", "full" if full else "limited")
    color, channels = _NATIVE_PIX_FMTS.get(name, (None, ()))
    orientation = _orientation(frame)
    if (
        color is None
        or orientation != _UPRIGHT
        or (color in _YUV and matrix is None)
        or (color in ("yuyv", "uyvy") and frame.width % 2)
        or any(plane.line_size < 0 for plane in frame.planes)  # upside down
    ):
        frame = _rgb(frame, matrix, layout["yuv_range"])
        color, channels = "rgb", (3,)
    planes = [_view(plane, count) for plane, count in zip(frame.planes, channels, strict=True)]
    if orientation != _UPRIGHT:
        planes = [np.ascontiguousarray(_upright(planes[0], orientation))]
        planes[0].flags.writeable = False
    pixels = planes[0] if len(planes) == 1 else tuple(planes)
    layout["color"] = color
    return pixels, layout


def _rgb(frame: Any, matrix: YuvMatrix | None, range: YuvRange) -> Any:
    """The frame as RGB by FFmpeg's converter; None for the matrix that the frame names, which only FFmpeg knows."""
    form = frame.format
    if form.is_rgb or len(form.components) < 3:  # nothing to choose: RGB, palettes, gray
        return frame.reformat(format="rgb24")
    if form.name.startswith("yuvj") and range == "limited":
        # The name of these says the range, and FFmpeg believes it more than what it is told.
        frame = _renamed(frame, "yuv" + form.name.removeprefix("yuvj"))
    return frame.reformat(
        format="rgb24",
        src_colorspace=None if matrix is None else _SPACES[matrix],
        # RGB has none, but PyAV before 15 sets nothing at all where this one is equal to the source's.
        dst_colorspace=_SPACES["bt709" if matrix == "bt601" else "bt601"],
        src_color_range=_FULL_RANGE if range == "full" else _LIMITED_RANGE,
        dst_color_range=_FULL_RANGE,
    )


def _renamed(frame: Any, name: str) -> Any:
    """A copy whose pixels are of the format `name`, which has planes of the same sizes."""
    copy = type(frame)(frame.width, frame.height, name)
    for source, target in zip(frame.planes, copy.planes, strict=True):
        rows = np.frombuffer(target, np.uint8).reshape(target.height, target.line_size)
        rows[:, : target.width] = _view(source, 1)
    copy.colorspace = frame.colorspace
    return copy


class _Orientation(NamedTuple):
    """What makes a frame upright, in this order."""

    transposed: bool
    mirrored: bool
    upside_down: bool


_UPRIGHT = _Orientation(False, False, False)


def _orientation(frame: Any) -> _Orientation:
    """By the frame's display matrix: x' = a x + c y, y' = b x + d y, as fixed point; the nearest of the eight."""
    from av.sidedata.sidedata import SideDataContainer

    # Not frame.side_data, with which the frame holds itself: the decoder's memory would wait for garbage collection.
    notes = cast(Any, SideDataContainer)(frame)
    # Most frames have none, which get() finds out by an exception.
    note = notes.get("DISPLAYMATRIX") if notes else None
    if note is None:
        return _UPRIGHT
    a, b, _, c, d = np.frombuffer(note, np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return _Orientation(False, a < 0, d < 0)
    return _Orientation(True, c < 0, b < 0)


def _upright(picture: npt.NDArray[np.uint8], orientation: _Orientation) -> npt.NDArray[np.uint8]:
    if orientation.transposed:
        picture = picture.transpose(1, 0, 2)
    return picture[:: -1 if orientation.upside_down else 1, :: -1 if orientation.mirrored else 1]


def _view(plane: Any, channels: int) -> npt.NDArray[np.uint8]:
    """A plane as (h, w) or (h, w, channels); rows are as far apart as the decoder put them."""
    rows: npt.NDArray[np.uint8] = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    # The decoder goes on reading these bytes to predict other frames from.
    rows.flags.writeable = False
    pixels = rows[:, : plane.width * channels]
    return pixels if channels == 1 else pixels.reshape(plane.height, plane.width, channels)
