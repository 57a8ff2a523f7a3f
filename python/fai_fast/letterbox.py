"""Where a letterboxed frame lies in a network's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fai_fast import _core
from fai_fast._arguments import check_choice, check_int, check_size


@dataclass(frozen=True)
class Letterbox:
    """The geometry of a frame resized with its aspect kept, which is a part of a larger input.

    Attributes:
        frame: (height, width) of the frame, pixels.
        input: (height, width) of the network's input, pixels.
        content: (height, width) that the frame takes in the input, pixels.
        offset: (top, left) of the content in the input, pixels.

    Raises:
        TypeError, ValueError: a size is not two positive integers, or the content leaves the input.
    """

    frame: tuple[int, int]
    input: tuple[int, int]
    content: tuple[int, int]
    offset: tuple[int, int]

    def __post_init__(self) -> None:
        for name in ("frame", "input", "content"):
            object.__setattr__(self, name, check_size(f"letterbox.{name}", getattr(self, name)))
        offset = self.offset
        if not isinstance(offset, (tuple, list)) or len(offset) != 2:
            raise TypeError(f"letterbox.offset: got {offset!r:.60}, expected (top, left)")
        top, left = (check_int("letterbox.offset", side) for side in offset)
        object.__setattr__(self, "offset", (top, left))
        height, width = self.content
        if top < 0 or left < 0 or top + height > self.input[0] or left + width > self.input[1]:
            raise ValueError(
                f"letterbox.content: got {self.content} at {self.offset}, expected it inside input {self.input}"
            )

    @classmethod
    def fit(
        cls,
        frame: tuple[int, int],
        input: tuple[int, int],
        resize: Literal["letterbox", "pad"] = "letterbox",
    ) -> Letterbox:
        """The geometry that :func:`fai_fast.preprocess` uses with ``resize="letterbox"`` or ``"pad"``.

        The frame is scaled by the smaller of the two ratios of input to frame. "letterbox": its sides are rounded to
        whole pixels (at least 1), and it is centered; an odd pixel of padding goes to the bottom or the right. "pad":
        it lies at the top left; the side with padding is rounded, the other one, which fills the input, truncated, so
        that now and then a pixel of it is left (``get_size_with_aspect_ratio`` of transformers, in double precision).

        Args:
            frame: (height, width) of the frame, pixels.
            input: (height, width) of the network's input, pixels.
            resize: as :func:`fai_fast.preprocess` has it.
        """
        frame, input = check_size("frame", frame), check_size("input", input)
        resize = check_choice("resize", resize, ("letterbox", "pad"))
        content, offset = _core.letterbox(frame, input, resize)
        return cls(frame, input, content, offset)

    def to_frame(self, xyxy: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Maps boxes (..., 4) of x1, y1, x2, y2 pixel edges from the input to the frame."""
        scale = np.array([self.frame[1] / self.content[1], self.frame[0] / self.content[0]] * 2)
        return np.asarray((_boxes(xyxy) - self._shift()) * scale)

    def to_input(self, xyxy: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Maps boxes (..., 4) of x1, y1, x2, y2 pixel edges from the frame to the input."""
        scale = np.array([self.content[1] / self.frame[1], self.content[0] / self.frame[0]] * 2)
        return np.asarray(_boxes(xyxy) * scale + self._shift())

    def _shift(self) -> npt.NDArray[np.float64]:
        return np.array([self.offset[1], self.offset[0]] * 2, dtype=np.float64)


def _boxes(xyxy: npt.ArrayLike) -> npt.NDArray[np.float64]:
    boxes = np.asarray(xyxy, dtype=np.float64)
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"xyxy: got shape {boxes.shape}, expected (..., 4)")
    return boxes
