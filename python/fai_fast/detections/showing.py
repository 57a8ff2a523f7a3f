"""The methods of :class:`fai_fast.Detections` that make a picture of it."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fai_fast.detections.drawing import DrawOptions

__all__: list[str] = []


class _Showing:
    """A part of Detections, which drawing.py draws: `self` is always one."""

    __slots__ = ()

    def plot(self: Any, image: Any = None, **options: Unpack[DrawOptions]) -> npt.NDArray[np.uint8]:
        """A new picture of the frame with masks, boxes and labels on it.

        Args:
            image: the frame, uint8 RGB (H, W, 3) or a Pillow image; not modified. None takes the
                pixels of :meth:`Detections.with_picture`, or reads them again from ``source``.
            options: of :func:`fai_fast.render.draw`: ``masks``, ``boxes``, ``labels``, ``opacity``, ``color_by``,
                ``palette``; and ``color``, "rgb", "bgr" or "gray", of an array.

        Returns:
            uint8 (H, W, 3), BGR for "bgr", else RGB; semantic results are wider by their legend.

        Raises:
            ImportError: without Pillow.
            OSError: the frame is not at ``source`` any more.
            TypeError, ValueError: an argument is of another type, dtype, shape or value, or there is neither an image
                nor a ``source``.
        """
        from fai_fast.detections import drawing

        if image is None:
            image = self._frame_again()
            options = {**options, "color": "rgb"}
        elif hasattr(image, "convert") and hasattr(image, "mode"):
            image = np.asarray(image.convert("RGB"))
            options = {**options, "color": "rgb"}
        return drawing.draw(image, self, **options)

    def save(
        self: Any, path: str | os.PathLike[str], image: Any = None, **options: Unpack[DrawOptions]
    ) -> None:
        """Writes :meth:`plot` to a file whose name ends with .jpg, .png or .webp; nobody sees half of it.

        Raises what :meth:`plot` raises, ValueError for another name, and OSError where it cannot be written.
        """
        from fai_fast.detections import drawing

        picture = self.plot(image, **options)
        turned = image is not None and options.get("color") == "bgr" and isinstance(image, np.ndarray)
        drawing.save(path, np.ascontiguousarray(picture[:, :, ::-1]) if turned else picture)

    def show(self: Any, image: Any = None, **options: Unpack[DrawOptions]) -> None:
        """Shows :meth:`plot` in a window of the system's viewer for pictures, or below the cell of a notebook.

        Raises what :meth:`plot` raises, and OSError where there is no viewer.
        """
        from PIL import Image, ImageShow

        picture = self.plot(image, **options)
        turned = image is not None and options.get("color") == "bgr" and isinstance(image, np.ndarray)
        shown = Image.fromarray(np.ascontiguousarray(picture[:, :, ::-1]) if turned else picture)
        display = _notebook_display()
        if display is None:
            if not ImageShow.show(shown):
                raise OSError(
                    "show: no viewer for pictures is installed here; save(path) writes the picture to a file"
                )
        else:
            display(shown)

    def _repr_png_(self: Any) -> bytes | None:
        """What a notebook shows of a result: its picture, where the frame is still to be had; else its text."""
        if self.source is None and self._picture is None:
            return None
        from PIL import Image

        try:
            picture = self.plot()
        except (ImportError, OSError, ValueError):
            return None
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="PNG", compress_level=1)
        return file.getvalue()

    def _frame_again(self: Any) -> npt.NDArray[np.uint8]:
        if self._picture is not None:
            held: npt.NDArray[np.uint8] = self._picture
            return held
        if self.source is None:
            raise ValueError(
                "image: got None, expected the frame: this result neither holds its pixels (with_picture) nor knows "
                "where they are (source)"
            )
        picture: npt.NDArray[np.uint8] = self.source.read()
        if picture.shape[:2] != self.size:
            raise ValueError(
                f"image: {self.source.path} has {picture.shape[0]}x{picture.shape[1]} pixels now, expected "
                f"{self.size[0]}x{self.size[1]}, as when the result was made"
            )
        return picture


def _notebook_display() -> Any:
    """IPython's display(), where a notebook is running."""
    import sys

    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display  # type: ignore[import-not-found, unused-ignore]

    return display
