"""What a stream says of its frames: paths, short texts, tracks, what took how long; and the same for asyncio."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from types import SimpleNamespace

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, Latency
from fai_fast.stream import Stream, StreamStats
from PIL import Image

SIZE = (20, 30)
BOXES = np.array([[2, 1, 6, 4], [9, 3, 12, 9], [0, 0, 5, 6]])


def result(latency=None):
    mask = np.zeros((3, *SIZE), bool)
    for row, (x1, y1, x2, y2) in enumerate(BOXES):
        mask[row, y1:y2, x1:x2] = True
    found = Detections(xyxy=BOXES, confidence=[0.95, 0.9, 0.85], class_id=[1, 2, 1], size=SIZE, mask=mask)
    return found if latency is None else found._with_latency(latency)


class Model:
    """Finds the same in every frame."""

    def __init__(self, found=None):
        self.found = result() if found is None else found

    def submit(self, image, **options):
        del image, options
        return SimpleNamespace(result=lambda timeout=None: self.found, done=lambda: True)


def frames(n=4):
    return [np.zeros((*SIZE, 3), np.uint8) for _ in range(n)]


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.fromarray(frames(1)[0]).save(tmp_path / name)
    return tmp_path


# ------------------------------------------------------------------------------------------------ of a frame


def test_frames_know_their_picture(folder):
    with Stream(Model(), folder) as stream:
        paths = [frame.path for frame, _ in stream]
    assert paths == [str(folder / "a.jpg"), str(folder / "b.png")]
    with Stream(Model(), str(folder / "*.png")) as stream:
        assert [frame.path for frame, _ in stream] == [str(folder / "b.png")]
    with Stream(Model(), frames(1)) as stream:
        assert [frame.path for frame, _ in stream] == [None]


def test_frames_know_their_video(tmp_path):
    pytest.importorskip("av")
    from helpers.videos import write_video

    path = write_video(tmp_path / "film.mp4", 3)
    with Stream(Model(), path) as stream:
        assert [frame.path for frame, _ in stream] == [str(path)] * 3
    with path.open("rb") as file, Stream(Model(), file) as stream:
        assert {frame.path for frame, _ in stream} == {None}


def test_the_text_of_a_frame_is_short(folder):
    with Stream(Model(), folder) as stream:
        frame, _ = next(stream)
    assert repr(frame) == f"<fai_fast.Frame 0 of {str(folder / 'a.jpg')!r} 20x30 rgb>"
    with Stream(Model(), [(1.5, frames(1)[0])]) as stream:
        [(frame, _)] = stream
    assert repr(frame) == "<fai_fast.Frame 0 at 1.500 s 20x30 rgb>"


# ------------------------------------------------------------------------------------------------ statistics


def test_the_models_latency_is_told_apart_from_waiting():
    latency = Latency(decode=0.5, preprocess=1.0, engine=6.0, postprocess=0.5)
    with Stream(Model(result(latency)), frames()) as stream:
        assert stream.stats().model_p50 == 0
        for _ in stream:
            time.sleep(0.01)  # the loop, for which the next result waits
        stats = stream.stats()
    assert stats.model_p50 == 8.0
    assert stats.waiting == max(0.0, stats.p50 - 8.0)
    with Stream(Model(), frames()) as stream:
        assert len(list(stream)) == 4
        assert stream.stats().model_p50 == 0
    assert StreamStats(*range(11)).model_p50 == 0
    assert StreamStats(*range(11), 3.0).waiting == 4.0
    assert StreamStats(*range(11), 70.0).waiting == 0.0


# --------------------------------------------------------------------------------------------------- asyncio


def test_async_for():
    async def run():
        seen = []
        async with Stream(Model(), frames()) as stream:
            async for frame, detections in stream:
                assert detections == result()
                seen.append(frame.id)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        return seen

    assert asyncio.run(run()) == [0, 1, 2, 3]


def test_the_event_loop_goes_on_meanwhile():
    come = threading.Event()

    def source():
        yield frames(1)[0]
        come.wait(20)
        yield frames(1)[0]

    async def run():
        async with Stream(Model(), source()) as stream:
            await anext(stream)
            waiting = asyncio.ensure_future(anext(stream))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not waiting.done()
            come.set()
            return (await waiting)[0].id

    assert asyncio.run(run()) == 1


def test_a_cancelled_task_loses_no_frame():
    come = threading.Event()

    def source():
        for _ in range(3):
            come.wait(20)
            yield frames(1)[0]

    async def run():
        async with Stream(Model(), source()) as stream:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(stream), 0.05)
            come.set()
            return [frame.id async for frame, _ in stream]

    assert asyncio.run(run()) == [0, 1, 2]


def test_what_fails_is_raised_where_it_is_awaited():
    def source():
        yield frames(1)[0]
        raise OSError("the cable")

    async def run():
        async with Stream(Model(), source()) as stream:
            await anext(stream)
            with pytest.raises(OSError, match="the cable"):
                await anext(stream)
            return [frame.id async for frame, _ in stream]

    assert asyncio.run(run()) == []


# -------------------------------------------------------------------------------------------------- tracking


class Reversing:
    """Numbers boxes by their left edge, gives them back the other way round, and forgets the lowest."""

    def __init__(self, frame_rate=None):
        self.frame_rate = frame_rate

    def update(self, boxes):
        assert boxes.mask is None
        kept = boxes[np.argsort(-boxes.xyxy[:, 3], kind="stable")[:-1]]
        kept.tracker_id = 100 + kept.xyxy[:, 0].astype(int)
        return kept


def test_rows_keep_their_order_and_masks():
    pytest.importorskip("supervision")
    for track in (Reversing(), SimpleNamespace(update_with_detections=Reversing().update)):
        with Stream(Model(), frames(2), track=track) as stream:
            for _, detections in stream:
                assert detections.tracker_id.tolist() == [-1, 109, 100]
                assert detections.with_tracker_id(None) == result()


def test_byte_track_gets_the_rate_of_the_frames(monkeypatch):
    pytest.importorskip("supervision")
    made = []

    def tracker(frame_rate):
        made.append(frame_rate)
        return Reversing()

    monkeypatch.setitem(sys.modules, "trackers", SimpleNamespace(ByteTrackTracker=tracker))
    with Stream(Model(), frames(4), track=True, stride=2) as stream:
        assert [detections.tracker_id[1] for _, detections in stream] == [109, 109]
    assert made == [15.0]


def test_a_supervision_that_has_byte_track_is_enough(monkeypatch):
    supervision = pytest.importorskip("supervision")
    monkeypatch.setitem(sys.modules, "trackers", None)
    monkeypatch.setattr(supervision, "ByteTrack", Reversing, raising=False)
    with Stream(Model(), frames(1), track=True) as stream:
        [(_, detections)] = stream
    assert detections.tracker_id.tolist() == [-1, 109, 100]


def test_objects_keep_their_numbers():
    pytest.importorskip("supervision")
    pytest.importorskip("trackers", reason="pip install trackers (--no-deps beside opencv-python-headless)")
    with Stream(Model(), frames(6), track=True) as stream:
        seen = [detections.tracker_id.tolist() for _, detections in stream]
    assert seen[-1] == seen[-2]
    assert len(set(seen[-1])) == 3
    assert min(seen[-1]) >= 0


def test_what_is_missing_is_named(monkeypatch):
    supervision = pytest.importorskip("supervision")
    monkeypatch.setitem(sys.modules, "trackers", None)
    monkeypatch.delattr(supervision, "ByteTrack", raising=False)
    with pytest.raises(
        ImportError, match=r"^track needs the package trackers .*pip install 'fai-fast\[track\]'"
    ):
        Stream(Model(), frames(1), track=True)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"^track needs supervision .*pip install 'fai-fast\[track\]'"):
        Stream(Model(), frames(1), track=True)


@pytest.mark.parametrize("track", [1, "yes", object()])
def test_what_is_no_tracker(track):
    pytest.importorskip("supervision")
    with pytest.raises(
        TypeError, match=r"^track: got .*, expected a bool, or a tracker with a method update"
    ):
        Stream(Model(), frames(1), track=track)


def test_regions_are_no_objects():
    pytest.importorskip("supervision")
    segments = np.zeros(SIZE, np.uint8)
    found = Detections(
        xyxy=[[0, 0, 30, 20]], confidence=[1], class_id=[0], query=[0], size=SIZE, label_source=segments
    )
    with (
        Stream(Model(found), frames(1), track=Reversing()) as stream,
        pytest.raises(ValueError, match="semantic"),
    ):
        next(stream)
    model = fai_fast.Model.__new__(fai_fast.Model)
    model.spec = fai_fast.spec("fai-mf-m-ade")
    with pytest.raises(ValueError, match=r"^track: got one for a semantic model"):
        model.stream(frames(1), track=True)
