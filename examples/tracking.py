"""A film, or a camera: objects keep their numbers from frame to frame, and their masks. Ends with the film, or Ctrl-C.

pip install 'fai-fast[plot]' opencv-python trackers
python examples/tracking.py [CAMERA NUMBER OR FILM] [MODEL]

Trackers are in supervision's sister package `trackers`; supervision itself has none since 0.30.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import fai_fast
import numpy as np
import supervision as sv
from trackers import ByteTrackTracker


def numbered(tracker: Any, detections: fai_fast.Detections) -> fai_fast.Detections:
    """The same rows in the same order, with the tracker's ids: -1 for what it has not seen often enough yet.

    The tracker gets boxes and scores alone. Masks stay packed, and stay with their rows, though it gives rows back in
    an order of its own.
    """
    boxes = sv.Detections(
        xyxy=detections.xyxy.copy(),
        confidence=detections.confidence.copy(),
        class_id=detections.class_id.copy(),
        data={"row": np.arange(len(detections))},
    )
    tracked = tracker.update(boxes)
    ids = np.full(len(detections), -1)
    if len(tracked):
        ids[tracked.data["row"]] = tracked.tracker_id
    return detections.with_tracker_id(ids)


def track(
    model: fai_fast.Model, frames: Iterable[np.ndarray], color: str = "bgr", **options: Any
) -> Iterator[tuple[np.ndarray, fai_fast.Detections]]:
    """Each frame with what was found in it, numbered; `options` are ByteTrackTracker's."""
    tracker = ByteTrackTracker(**options)
    for frame in frames:
        yield frame, numbered(tracker, model.infer(frame, color=color))


def frames(camera: Any) -> Iterator[np.ndarray]:
    """BGR, until there is no more."""
    while (read := camera.read())[0]:
        yield read[1]


def main(source: str = "0", name: str = "fai-mf-n-shapes") -> None:
    import cv2

    camera = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not camera.isOpened():
        sys.exit(f"cannot open {source}")
    with fai_fast.load(name) as model:
        for _, detections in track(model, frames(camera), frame_rate=camera.get(cv2.CAP_PROP_FPS) or 30):
            known = detections[detections.tracker_id >= 0]
            print(
                "  ".join(f"#{row.tracker_id[0]} {row.class_name[0]} {row.area[0]} pixels" for row in known)
                or "nothing"
            )
    camera.release()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*sys.argv[1:3])
