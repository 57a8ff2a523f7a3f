"""Numbers that objects keep from frame to frame: a tracker of another package behind a stream's results."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fai_fast._extras import install
from fai_fast.detections import Detections

__all__ = ["Tracking"]


class Tracking:
    """Gives the rows of one frame after the other the numbers of a tracker.

    The tracker gets boxes, scores and classes alone. Rows keep their order and masks, whatever it does to its own.

    Args:
        track: True for ByteTrack, of the package `trackers` or of a supervision that still has it; or a tracker: an
            object whose ``update(supervision.Detections)`` (or ``update_with_detections``) gives rows with a
            ``tracker_id``.

    Raises:
        TypeError: it is neither.
        ImportError: True, and there is no such package; or supervision is missing.
    """

    def __init__(self, track: Any) -> None:
        self._supervision = _required("supervision")
        self._make: Callable[[float], Any] | None = None
        self._tracker: Any = None
        if track is True:
            self._make = _byte_track(self._supervision)
        elif _update_of(track) is None:
            raise TypeError(
                f"track: got {type(track).__name__}, expected a bool, or a tracker with a method update(detections)"
            )
        else:
            self._tracker = track

    def numbered(self, detections: Detections, rate: float) -> Detections:
        """The same rows with numbers: -1 for what the tracker has not seen often enough yet, and for stuff.

        Args:
            detections: of the next frame.
            rate: frames per second, by which the first one decides how long what is lost is remembered.

        Raises:
            ValueError: it is a semantic result, whose regions are no objects.
        """
        if detections._source is not None and detections.is_thing is None:
            raise ValueError("track: got a semantic result, expected instances: its regions are no objects")
        if self._tracker is None:
            assert self._make is not None
            self._tracker = self._make(rate)
        update = _update_of(self._tracker)
        assert update is not None
        rows = np.arange(len(detections))
        if detections.is_thing is not None:
            rows = rows[detections.is_thing]
        boxes = self._supervision.Detections(
            xyxy=detections.xyxy[rows],
            confidence=detections.confidence[rows],
            class_id=detections.class_id[rows],
            data={"row": rows},
        )
        tracked = update(boxes)
        ids = np.full(len(detections), -1)
        if len(tracked):
            ids[tracked.data["row"]] = tracked.tracker_id
        return detections.with_tracker_id(ids)


def _update_of(tracker: Any) -> Callable[[Any], Any] | None:
    update = getattr(tracker, "update", None) or getattr(tracker, "update_with_detections", None)
    return update if callable(update) else None


def _byte_track(supervision: Any) -> Callable[[float], Any]:
    try:
        made = importlib.import_module("trackers").ByteTrackTracker
    except ImportError as error:
        # supervision had one until version 0.30.
        older = getattr(supervision, "ByteTrack", None)
        if older is None:
            raise ImportError(f"track needs the package trackers ({error}): {install('track')}") from error
        made = older
    return lambda rate: made(frame_rate=rate)


def _required(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"track needs {module} ({error}): {install('track')}") from error
