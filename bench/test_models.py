"""From a frame in memory to Detections: every model, end to end and stage by stage, against the plain pipeline.

The plain pipeline: a resize in torch, then what FocoosAI's library does on a CPU, the plain graph in ONNX Runtime and
the torch steps after it. That library does not resize: bench/test_focoos.py has frames as it takes them. Weights are
those of bench/weights.py, since the published ones cannot be had where this is developed: a network's time does not
depend on them. The threshold is set so that about 20 queries of 100 are kept.
Ours is in the fastest precision that this CPU has, and its others stand beside it: each one's ratio to the plain
pipeline is the quotient of the two ratios.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fai_fast
import numpy as np
import pytest
from fai_fast.errors import FaiFastError

from bench import peers, report, scenes, streams, weights
from bench.floor import Floor, operations

KEPT = 20
CALIBRATION = 8
full = pytest.mark.full
M_ADE, M_COCO = "bisenetformer-m-ade", "fai-mf-m-coco-ins"
CASES = [
    pytest.param(M_ADE, (640, 640), (640, 640), 2, id=f"{M_ADE}-640x640"),
    pytest.param(M_ADE, (640, 640), (640, 640), 1, id=f"{M_ADE}-640x640-1thread", marks=full),
    pytest.param(M_ADE, (640, 640), (1080, 1920), 2, id=f"{M_ADE}-640x640-1080p", marks=full),
    pytest.param(M_ADE, (384, 640), (1080, 1920), 2, id=f"{M_ADE}-384x640-1080p", marks=full),
    pytest.param("fai-mf-m-ade", (640, 640), (640, 640), 2, id="fai-mf-m-ade-640x640", marks=full),
    pytest.param(M_COCO, (640, 640), (640, 640), 2, id=f"{M_COCO}-640x640", marks=full),
    pytest.param(M_COCO, (384, 640), (1080, 1920), 2, id=f"{M_COCO}-384x640-1080p", marks=full),
    pytest.param("fai-mf-n-shapes", (256, 256), (256, 256), 2, id="fai-mf-n-shapes-256x256", marks=full),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(("name", "size", "frame_size", "threads"), CASES, indirect=["threads"])
def test_end_to_end(name, size, frame_size, threads, compare, cache, tmp_path) -> None:
    frame = scenes.frame(*frame_size)
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch makes the weights: pip install torch")
    state = weights.lively(name)
    options = {"weights": state, "im_size": size, "num_threads": threads, "cache_dir": cache, "device": "cpu"}
    with ExitStack() as stack:
        models = {
            precision: stack.enter_context(model)
            for precision, model in _in_each_precision(name, frame, options)
        }
        model, *others = models.values()
        threshold = streams.threshold_of(models["fp32"].infer(frame, threshold=0.0), KEPT)

        def infer(model: fai_fast.Model) -> Callable[[], fai_fast.Detections]:
            return lambda: model.infer(frame, threshold=threshold)

        ours = infer(model.warmup())
        found = ours()
        assert len(found) >= KEPT // 2
        rivals = {f"fai_fast {other.info()['precision']}": infer(other.warmup()) for other in others}
        if plain := peers.load("plain_pipeline"):
            run = plain.load(model.spec, size, threads, tmp_path, state)
            rows = run(frame, threshold)
            # Scores lie close together: one at the threshold may fall either way.
            exact = models["fp32"].infer(frame, threshold=threshold)
            assert abs(len(rows.query) - len(exact)) <= 2, (len(rows.query), len(exact))
            rivals["plain pipeline"] = lambda: run(frame, threshold)
        report.settle()
        latencies = np.median([ours().latency for _ in range(10)], axis=0)
        stages = dict(zip(("decode", "preprocess", "engine", "postprocess"), latencies.tolist(), strict=True))
        written = frame[..., 0].nbytes if model.spec.config.predict_all_pixels else found.packed.bits.nbytes
        precision = model.info()["precision"]
        sizes = f"{name} {size[0]}x{size[1]}, frame {frame_size[0]}x{frame_size[1]}"
        case = f"{sizes}, {threads} thread(s), {precision}"
        graph = re.sub(r" \(.*\)$", "", models["fp32"].info()["artefacts"]["graph"])
        # An instruction of VNNI takes four products of int8 where one of AVX-512 takes one of float32.
        needed = operations(Path(graph)) // (4 if precision == "int8" else 1)
        floor = Floor(
            frame.nbytes, written, "the frame and the result; the deployed graph's products", needed
        )
        compare("end to end", case, threads, floor, ours, rivals, stages=stages)


def _in_each_precision(
    name: str, frame: np.ndarray, options: dict[str, Any]
) -> Iterator[tuple[str, fai_fast.Model]]:
    """The model in each precision that there is here, the fastest first; the last is fp32.

    It is asked for by its name: what nobody trained is unsure everywhere, so that a lower precision finds other things.
    """
    # int8's ranges: the time does not depend on them.
    pictures = {"int8": [np.roll(frame, 40 * i, i % 2) for i in range(CALIBRATION)]}
    for precision in ("int8", "bf16", "fp16"):
        asked = {"precision": precision, "pictures": pictures.get(precision), "verify_precision": False}
        try:
            yield precision, fai_fast.load(name, **asked, **options)
        except (FaiFastError, ValueError) as error:  # this CPU, or this version, has no such precision
            print(f"{name}: not in {precision}: {error}")
    yield "fp32", fai_fast.load(name, precision="fp32", **options)
