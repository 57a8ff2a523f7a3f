"""What drawing 20 objects on a 1080p frame costs, beside OpenCV's way and supervision's, in one run.

    python -m bench.drawing                 # milliseconds of CPU per frame, medians; the ratio to ours
    python -m bench.drawing --rounds 50

The rivals take turns, and what counts is the CPU time of the process, so that other work on the machine matters less.
Each peer starts from what it takes: OpenCV and supervision from a boolean stack that was decoded before.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
from fai_fast import Detections, render

HEIGHT, WIDTH, OBJECTS = 1080, 1920, 20


def scene() -> tuple[np.ndarray, Detections]:
    """A frame, and ellipses of 120 to 600 pixels in it."""
    rng = np.random.default_rng(0)
    masks = np.zeros((OBJECTS, HEIGHT, WIDTH), np.uint8)
    for mask in masks:
        center = rng.uniform([100, 100], [WIDTH - 100, HEIGHT - 100]).astype(int)
        axes = rng.uniform(60, 300, 2).astype(int)
        cv2.ellipse(mask, center.tolist(), axes.tolist(), rng.uniform(0, 180), 0, 360, 1, -1)
    boxes = [cv2.boundingRect(mask) for mask in masks]
    detections = Detections(
        xyxy=[(x, y, x + w, y + h) for x, y, w, h in boxes],
        confidence=rng.uniform(0.3, 1, OBJECTS),
        class_id=rng.integers(0, 80, OBJECTS),
        size=(HEIGHT, WIDTH),
        mask=masks.astype(bool),
        class_names=[f"class {i}" for i in range(80)],
    )
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), detections


def with_opencv(image: np.ndarray, detections: Detections) -> Callable[[], np.ndarray]:
    """Masks blended in their boxes, contours, boxes and labels, as examples with OpenCV do."""
    stack = detections.mask
    assert stack is not None
    columns = list(
        zip(
            stack.astype(np.uint8),
            detections.xyxy.astype(int).tolist(),
            [render.color(i) for i in detections.class_id.tolist()],
            [f"{n} {s:.2f}" for n, s in zip(detections.class_name, detections.confidence, strict=True)],
            strict=True,
        )
    )

    def draw() -> np.ndarray:
        picture = image.copy()
        for mask, (x1, y1, x2, y2), color, text in columns:
            part, inside = picture[y1:y2, x1:x2], mask[y1:y2, x1:x2]
            blended = cv2.addWeighted(part, 0.5, np.full_like(part, color), 0.5, 0)
            cv2.copyTo(blended, inside, part)
            contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(picture, contours, -1, color, 3, offset=(x1, y1))
            cv2.rectangle(picture, (x1, y1), (x2, y2), color, 3)
            (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 1)
            cv2.rectangle(picture, (x1, y1 - height - 8), (x1 + width, y1), color, -1)
            cv2.putText(picture, text, (x1, y1 - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        return picture

    return draw


def with_supervision(image: np.ndarray, detections: Detections) -> Callable[[], np.ndarray] | None:
    try:
        import supervision
    except ImportError:
        return None
    found = detections.to_supervision()
    annotators = supervision.MaskAnnotator(), supervision.BoxAnnotator(), supervision.LabelAnnotator()

    def draw() -> np.ndarray:
        picture = image.copy()
        for annotator in annotators:
            picture = annotator.annotate(picture, found)
        return picture

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    image, detections = scene()
    rivals: dict[str, Callable[[], np.ndarray] | None] = {
        "fai_fast render.draw": lambda: render.draw(image, detections),
        "OpenCV": with_opencv(image, detections),
        "supervision": with_supervision(image, detections),
    }
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(args.rounds + 2):
        for name, run in rivals.items():
            if run is None:
                continue
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            took = 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)
            times.setdefault(name, []).append(took)
    ours = 0.0
    print(f"{OBJECTS} objects, {WIDTH}x{HEIGHT}: medians of {args.rounds} rounds after 2")
    for name, taken in times.items():
        cpu = statistics.median(cpu for cpu, _ in taken[2:])
        wall = statistics.median(wall for _, wall in taken[2:])
        ours = ours or cpu
        print(f"{name:22s} {cpu:7.2f} ms of CPU  {wall:7.2f} ms of wall clock  {cpu / ours:5.1f} x")


if __name__ == "__main__":
    main()
