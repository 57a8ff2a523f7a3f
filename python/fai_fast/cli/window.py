"""``--show``: pictures in a window, by OpenCV where it can open one, else by Matplotlib."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fai_fast.cli.messages import UsageError

__all__ = ["Window", "open_window"]

TITLE = "fai-fast"
_ENDS = (ord("q"), ord("Q"), 27)


class Window(Protocol):
    """A window that is open."""

    def show(self, picture: npt.NDArray[np.uint8], *, wait: bool) -> bool:
        """Shows an RGB picture; with `wait` until a key is pressed. False once q, Escape or the window's own button
        has ended it."""

    def close(self) -> None:
        """Takes it away. Idempotent."""


def open_window() -> Window:
    """A window on this screen.

    Raises:
        UsageError: there is no screen, or neither OpenCV nor Matplotlib can open a window; the text says what to do.
    """
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        # OpenCV's Qt would end the process.
        raise UsageError(
            "--show: there is no screen here (neither DISPLAY nor WAYLAND_DISPLAY is set); write what is found to a "
            "file instead, and over ssh use ssh -X"
        )
    why = []
    for kind in (_OpenCV, _Matplotlib):
        try:
            return kind()
        except _NoWindow as error:
            why.append(str(error))
    raise UsageError(
        f"--show: {' and '.join(why)}; pip install opencv-python, or pip install matplotlib pyqt6"
    )


class _NoWindow(Exception):
    """Why a library cannot open one."""


class _OpenCV:
    def __init__(self) -> None:
        try:
            import cv2
        except ImportError:
            raise _NoWindow("OpenCV is not installed") from None
        self._cv2: Any = cv2
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except (cv2.error, AttributeError):
            raise _NoWindow("the OpenCV here has no windows (opencv-python-headless)") from None
        self._sized = False

    def show(self, picture: npt.NDArray[np.uint8], *, wait: bool) -> bool:
        cv2 = self._cv2
        cv2.imshow(TITLE, np.ascontiguousarray(picture[..., ::-1]))
        if not self._sized:
            height, width = picture.shape[:2]
            shrunk = min(1.0, 720 / height, 1280 / width)
            cv2.resizeWindow(TITLE, max(1, round(width * shrunk)), max(1, round(height * shrunk)))
            self._sized = True
        while True:
            # While it waits it still has to notice that the window is gone.
            key = cv2.waitKey(50 if wait else 1)
            if key >= 0 and key & 0xFF in _ENDS:
                return False
            if cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1:
                return False
            if not wait or key >= 0:
                return True

    def close(self) -> None:
        with suppress(self._cv2.error):  # where the user has closed it
            self._cv2.destroyWindow(TITLE)


class _Matplotlib:
    def __init__(self) -> None:
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            raise _NoWindow("Matplotlib is not installed") from None
        self._plt: Any = plt
        self._figure: Any = plt.figure(TITLE)
        # Those that only write files have none.
        if getattr(self._figure.canvas, "required_interactive_framework", None) is None:
            plt.close(self._figure)
            raise _NoWindow("the Matplotlib here has no toolkit for windows")
        self._image: Any = None
        self._key: str | None = None
        self._figure.canvas.mpl_connect("key_press_event", self._pressed)
        self._axes: Any = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._figure.show()

    def show(self, picture: npt.NDArray[np.uint8], *, wait: bool) -> bool:
        self._key = None
        if self._image is None or self._image.get_array().shape != picture.shape:
            self._axes.clear()
            self._axes.set_axis_off()
            self._image = self._axes.imshow(picture)
        else:
            self._image.set_data(picture)
        self._figure.canvas.draw_idle()
        while True:
            self._figure.canvas.flush_events()
            self._figure.canvas.start_event_loop(0.05 if wait else 0.001)
            if not self._plt.fignum_exists(self._figure.number) or self._key in ("q", "escape"):
                return False
            if not wait or self._key is not None:
                return True

    def close(self) -> None:
        self._plt.close(self._figure)

    def _pressed(self, event: Any) -> None:
        self._key = event.key or ""
