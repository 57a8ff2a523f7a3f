"""A video file in 1080p to Detections, decoding included: one stream, and four at once on one model.

The peer is OpenCV's reader in a loop with the plain pipeline. A contender's pass takes as many of the clip's frames as
its share of time allows. Weights of BiSeNetFormer are random, with which one query takes every pixel: those of
bench/weights.py see grain, and a step of rounding in the colors would change their masks. The demo model has its own.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fai_fast
import numpy as np
import pytest

from bench import peers, report, streams

COUNTED = 12  # frames whose copies are counted, after as many that are not
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
AT_ONCE = 4
PEER, PACED = "cv2.VideoCapture + plain pipeline", "fai_fast, latest, at the video's pace"
DEMO, M_ADE = "fai-mf-n-shapes", "bisenetformer-m-ade"
full = pytest.mark.full
ONE = [
    pytest.param(DEMO, None, (256, 256), id=f"{DEMO}-256x256"),
    pytest.param(M_ADE, "random", (384, 640), id=f"{M_ADE}-384x640", marks=full),
    pytest.param(M_ADE, "random", (640, 640), id=f"{M_ADE}-640x640", marks=full),
]
FOUR = ONE[:2]


@dataclass(frozen=True)
class Effort:
    """How much is measured: frames of the clip, frames whose results are compared, passes, seconds that a pass takes
    about, and frames that it has at least."""

    clip: int
    checked: int
    rounds: int
    seconds: float
    least: int

    def frames_in(self, took: float) -> int:
        """Of a pass, at `took` seconds per frame."""
        return max(self.least, min(self.clip, int(self.seconds / took)))


@pytest.fixture(scope="module")
def effort(request) -> Effort:
    quick = request.config.getoption("--bench-quick")
    return Effort(30, 2, 1, 1.0, 2) if quick else Effort(150, 3, 3, 10.0, 6)


@pytest.fixture(scope="module")
def clip(tmp_path_factory, effort) -> streams.Clip:
    try:
        return streams.write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", effort.clip)
    except (ImportError, RuntimeError) as error:
        peers.absent["video"] = str(error)
        pytest.skip(f"no clip: {error}")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def model(name, weights, size, threads, cache):
    with fai_fast.load(name, weights=weights, im_size=size, num_threads=threads, cache_dir=cache) as model:
        yield model.warmup()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Makes the plain pipeline of a model, whose graph is exported once; None where something is missing."""
    folder = tmp_path_factory.mktemp("plain")

    def make(model: fai_fast.Model, weights: str | None, threads: int) -> Any:
        if peers.load("plain_video") is None:
            return None
        from bench.peers import plain_graph, plain_pipeline

        path = folder / f"{model.spec.name}-{model.size}.onnx"
        if not path.exists():
            plain_pipeline.export(model.spec, model.size, path, weights)
        return plain_pipeline.pipeline(plain_graph.load(path, threads), model.size, model.spec.config)

    return make


@pytest.mark.parametrize("threads", [CORES], indirect=True)
@pytest.mark.parametrize(("name", "weights", "size"), ONE)
def test_stream(name, weights, size, threads, model, plain, clip, effort, stream_report) -> None:
    threshold = _threshold(model, clip)
    ours = partial(streams.ours, model, clip)
    found, took = _results(ours(threshold, effort.checked))
    assert sum(map(len, found)) > 0
    assert streams.in_decoders_memory(model, clip.path, effort.checked)
    every = partial(ours, threshold, effort.frames_in(took))
    contenders = {report.OURS: [every], "fai_fast, frame_threads": [partial(every, frame_threads=True)]}
    label_map = streams.LUMA if model.spec.config.predict_all_pixels else 0
    copied = {report.OURS: streams.copied(ours(streams.NOTHING, 2 * COUNTED), COUNTED, label_map)}
    agreement = {}
    if run := plain(model, weights, threads):
        frames = peers.load("plain_video").frames
        theirs = partial(frames, clip.path, run)
        expected, took = _results(theirs(threshold, effort.checked))
        agreement = _agreement(found, expected)
        copied[PEER] = streams.copied(theirs(streams.NOTHING, 2), 1)
        contenders[PEER] = [partial(theirs, threshold, effort.frames_in(took))]
    dropped: list[int] = []
    late: list[float] = []
    contenders[PACED] = [partial(streams.at_pace, model, clip, threshold, dropped, late)]
    figures = streams.in_turns(contenders, effort.rounds)
    for contender, count in copied.items():
        figures[contender].copied = count
    figures[PACED].dropped = round(float(np.median(dropped)))
    notes = [f"at the video's pace no frame was decoded more than {max(late):.0f} ms late"]
    case = f"{name} {size[0]}x{size[1]}, one stream, {threads} thread(s)"
    stream_report.streams.append(
        streams.StreamCase(case, str(clip), streams.engine_of(model), figures, agreement, notes)
    )


@pytest.mark.parametrize("threads", [CORES], indirect=True)
@pytest.mark.parametrize(("name", "weights", "size"), FOUR)
def test_four_streams(name, weights, size, threads, model, plain, clip, effort, stream_report) -> None:
    """One loop of the peer is also what four of its loops one after the other give together."""
    threshold = _threshold(model, clip)
    ours = partial(streams.ours, model, clip, threshold)
    found, took = _results(ours(effort.checked))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for beside, _ in pool.map(lambda _: _results(ours(effort.checked)), range(AT_ONCE)):
            assert beside == found, "results differ beside other streams"
    count = effort.frames_in(took)
    contenders = {
        f"fai_fast, {AT_ONCE} streams on one model": [partial(ours, max(effort.least, count // 2))] * AT_ONCE,
        "fai_fast, one stream": [partial(ours, count)],
    }
    notes = []
    if run := plain(model, weights, threads):
        theirs = partial(peers.load("plain_video").frames, clip.path)
        expected, took = _results(theirs(run, threshold, effort.checked))
        _agreement(found, expected)
        count = effort.frames_in(took)
        contenders[f"{PEER}, one loop"] = [partial(theirs, run, threshold, count, threads)]
        # Of each loop: mask probabilities, masks as float32, and their product, all in the frame's size.
        needs = AT_ONCE * 4 * 4 * streams.LUMA * model.spec.config.num_queries
        if (free := _free()) is not None and free < needs:
            notes.append(
                f"{AT_ONCE} loops of the peer at once need {needs / 1e9:.0f} GB, {free / 1e9:.0f} are free"
            )
        else:
            each = max(1, threads // AT_ONCE)
            contenders[f"{PEER}, {AT_ONCE} loops in threads, {each} thread(s) each"] = [
                partial(theirs, plain(model, weights, each), threshold, max(1, count // 2), each)
                for _ in range(AT_ONCE)
            ]
    figures = streams.in_turns(contenders, effort.rounds)
    case = f"{name} {size[0]}x{size[1]}, {AT_ONCE} streams at once, {threads} thread(s)"
    stream_report.streams.append(
        streams.StreamCase(case, str(clip), streams.engine_of(model), figures, {}, notes)
    )


def _threshold(model: fai_fast.Model, clip: streams.Clip) -> float:
    """The model's own if it is trained; else above the score of all but 20 queries in the first frame."""
    if model.spec.name == DEMO:
        return model.spec.config.threshold
    with model.stream(clip.path, policy="all", threshold=0.0) as stream:
        _, found = next(stream)
    return streams.threshold_of(found)


def _results(loop: streams.Frames) -> tuple[list, float]:
    """What a loop found, and its seconds per frame after the first, which opens the file."""
    found = [next(loop)[1]]
    start = time.perf_counter()
    found += [result for _, result in loop]
    return found, (time.perf_counter() - start) / (len(found) - 1)


def _agreement(found, expected) -> dict[str, float]:
    """Holds results against the peer's: rows within 2, and masks of the queries that both have, IoU 0.9 on average.

    Both read the same planes, but the peer's frame is rounded to 8 bits as RGB, and again when it is resized. Pixels
    then differ by a few steps, and with them masks at their edges, and objects at the threshold.
    """
    overlaps = []
    for ours, theirs in zip(found, expected, strict=True):
        assert abs(len(ours) - len(theirs.query)) <= 2, (len(ours), len(theirs.query))
        rows = {int(query): row for row, query in enumerate(theirs.query)}
        for query, mask in zip(ours.query.tolist(), ours.mask, strict=True):
            if query in rows:
                other = theirs.mask[rows[query]]
                overlaps.append((mask & other).sum() / (mask | other).sum())
    assert len(overlaps) >= max(1, sum(map(len, found)) // 2), "other queries than the peer's"
    assert np.mean(overlaps) >= 0.9, overlaps
    return {
        "objects a frame": float(np.mean([len(rows) for rows in found])),
        "mean IoU with the peer's masks": float(np.mean(overlaps)),
        "the least": float(np.min(overlaps)),
    }


def _free() -> int | None:
    """Bytes of memory that can be had; None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
