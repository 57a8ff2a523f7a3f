"""The times of docs/coming_from_focoos.md: a frame to Detections and to JSON, beside the steps of FocoosAI's library.

    pytest bench/test_focoos.py --bench-json bench/results/FILE

That library runs the network at the frame's own size. A frame of 1088x1920 stands for 1080p: sides are multiples of 32.
Weights are those of bench/weights.py, the threshold such that about 15 queries of 100 are kept.
"""

from __future__ import annotations

import importlib.util

import fai_fast
import numpy as np
import pytest

from bench import peers, scenes, streams, weights
from bench.floor import Floor

KEPT = 15
full = pytest.mark.full
SQUARE, VIDEO = (640, 640), (1088, 1920)
CASES = [
    pytest.param(name, frame, size, id=f"{name}-{frame[0]}x{frame[1]}-at-{size[0]}x{size[1]}", marks=marks)
    for name in ("bisenetformer-m-ade", "fai-mf-s-coco-ins")
    for frame, size, marks in (
        (SQUARE, SQUARE, () if name == "bisenetformer-m-ade" else full),
        (VIDEO, SQUARE, full),
        (VIDEO, VIDEO, full),
    )
]


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize(("name", "frame_size", "size"), CASES)
def test_to_json(name, frame_size, size, threads, compare, tmp_path) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch makes the weights: pip install torch")
    frame = scenes.frame(*frame_size)
    state = weights.lively(name)
    # fp32 on both sides.
    options = {"weights": state, "im_size": size, "num_threads": threads, "precision": "fp32"}
    with fai_fast.load(name, **options, cache_dir=tmp_path / "cache") as model:
        threshold = streams.threshold_of(model.infer(frame, threshold=0.0), KEPT)
        model.warmup()

        def ours():
            return model.infer(frame, threshold=threshold)

        found = ours()
        assert len(found) >= KEPT // 2
        rivals = {"fai_fast with to_focoos()": lambda: ours().to_focoos()}
        if focoos := peers.load("focoos_steps"):
            run = focoos.load(model.spec, frame_size, threads, tmp_path, state)
            theirs, texts = run(frame, threshold)
            if size == frame_size:
                # Scores lie close together: one at the threshold may fall either way.
                assert abs(len(theirs.query) - len(found)) <= 2, (len(theirs.query), len(found))
            assert len(texts) == len(theirs.query)
            rivals["FocoosAI's steps"] = lambda: run(frame, threshold)
        latencies = np.median([ours().latency for _ in range(5)], axis=0)
        stages = dict(zip(("decode", "preprocess", "engine", "postprocess"), latencies.tolist(), strict=True))
        floor = Floor(frame.nbytes, found.packed.bits.nbytes, "the frame and the result")
        case = f"{name} {size[0]}x{size[1]}, frame {frame_size[0]}x{frame_size[1]}, {len(found)} rows"
        compare("beside FocoosAI's library", case, threads, floor, ours, rivals, stages=stages)
