"""examples/tracking.py: ids that persist, on rows and masks that stay as the model gave them."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import fai_fast
import numpy as np
import pytest

pytest.importorskip("supervision")
pytest.importorskip("cv2")
ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))
import shapes  # noqa: E402

SIDE, STEP, FRAMES = 256, 4, 6


def example():
    spec = importlib.util.spec_from_file_location("tracking", ROOT / "examples" / "tracking.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model():
    with fai_fast.load("fai-mf-n-shapes") as model:
        yield model


@pytest.fixture(scope="module")
def film():
    """Frames of a camera that turns: the picture, and the masks of all objects (n, H, W)."""
    scene = shapes.scene(3, (SIDE, SIDE + STEP * FRAMES), 6)
    windows = [np.s_[:, STEP * i : STEP * i + SIDE] for i in range(FRAMES)]
    return [(scene.image[window], scene.masks[(np.s_[:], *window)]) for window in windows]


def owner(mask, objects):
    """The object that a mask lies on, by intersection over union, or None."""
    overlap = [(mask & other).sum() / max(1, (mask | other).sum()) for other in objects]
    return int(np.argmax(overlap)) if max(overlap) > 0.5 else None


def test_objects_keep_their_ids_and_rows_their_masks(model, film):
    pytest.importorskip("trackers", reason="pip install trackers (--no-deps beside opencv-python-headless)")
    frames = [frame for frame, _ in film]
    tracked = list(example().track(model, frames, color="rgb"))
    assert len(tracked) == FRAMES
    seen = {}
    for (frame, objects), (given, detections) in zip(film, tracked, strict=True):
        assert given is frame
        assert detections.with_tracker_id(None) == model.infer(frame)
        assert (
            len(set(detections.tracker_id[detections.tracker_id >= 0])) == (detections.tracker_id >= 0).sum()
        )
        for row in detections[detections.tracker_id >= 0]:
            seen.setdefault(int(row.tracker_id[0]), []).append(owner(row.masks(0), objects))
    steady = [places for places in seen.values() if len(places) >= FRAMES - 2]
    assert len(steady) >= 3
    for places in seen.values():
        assert len(set(places)) == 1
    assert len({places[0] for places in steady}) == len(steady)


def test_a_film_is_followed_to_its_end(film, tmp_path, capsys):
    pytest.importorskip("trackers")
    import cv2

    path = str(tmp_path / "film.mp4")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), 30, (SIDE, SIDE))
    for frame, _ in film:
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
    writer.release()
    example().main(path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == FRAMES
    assert re.search(r"#\d+ \w+ \d+ pixels", lines[-1])
    with pytest.raises(SystemExit, match="cannot open"):
        example().main(str(tmp_path / "none.mp4"))


class Reversing:
    """A tracker that numbers boxes by their left edge, gives them back the other way round, and forgets the lowest."""

    def update(self, boxes):
        assert boxes.mask is None
        kept = boxes[np.argsort(-boxes.xyxy[:, 3], kind="stable")[:-1]]
        kept.tracker_id = 100 + kept.xyxy[:, 0].astype(int)
        return kept


def test_a_trackers_own_order_of_rows_changes_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", SimpleNamespace(ByteTrackTracker=Reversing))
    mask = np.zeros((3, 10, 20), bool)
    boxes = [[2, 1, 6, 4], [9, 3, 12, 9], [0, 0, 5, 6]]
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        mask[row, y1:y2, x1:x2] = True
    found = fai_fast.Detections(
        xyxy=boxes, confidence=[0.9, 0.8, 0.7], class_id=[1, 2, 1], size=(10, 20), mask=mask
    )
    ids = example().numbered(Reversing(), found)
    assert ids.tracker_id.tolist() == [-1, 109, 100]
    assert ids.with_tracker_id(None) == found
    nothing = found[:0]
    monkeypatch.setattr(Reversing, "update", lambda self, boxes: boxes)
    assert example().numbered(Reversing(), nothing).tracker_id.tolist() == []
