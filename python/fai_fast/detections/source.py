"""Where a result's frame is: :class:`Source`, from which it can be read again."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fai_fast.images import read_image

__all__ = ["Source"]


class Source(NamedTuple):
    """Where the frame of a result is; the pixels themselves are not held.

    Attributes:
        path: a file, as an absolute path; or a folder, pattern, address or camera, without passwords.
        frame: the frame's number in a stream's source, from 0; None for a picture.
    """

    path: str
    frame: int | None = None

    def read(self) -> npt.NDArray[np.uint8]:
        """The frame again, RGB uint8 (H, W, 3): of a video by decoding it from the start.

        Raises:
            FileNotFoundError, OSError: it is not there any more.
            ValueError: it is not a picture, has fewer frames, or is live, so that its frames do not come again.
            ImportError: a video, without PyAV.
        """
        if self.frame is None:
            return read_image(self.path)
        # By name, as an import would make a circle: streams give results.
        again: Any = importlib.import_module("fai_fast.stream.again")
        picture: npt.NDArray[np.uint8] = again.read_frame(self.path, self.frame)
        return picture
