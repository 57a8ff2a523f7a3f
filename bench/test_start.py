"""From the start of a process to its first result: with an empty cache, with a full one, and the plain pipeline.

A start is a process of its own, a few lines as somebody would write them. Its time is this process's clock from before
it is started until its line about the result is there. The plain graph has been exported before, which is not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from fai_fast import registry

from bench import peers, streams
from bench.weights import lively

DEMO, M_ADE = "fai-mf-n-shapes", "bisenetformer-m-ade"
CASES = [
    pytest.param(DEMO, None, (256, 256), id=f"{DEMO}-256x256"),
    pytest.param(M_ADE, "lively", (640, 640), id=f"{M_ADE}-640x640", marks=pytest.mark.full),
]
COLD, CACHED = "fai_fast, empty cache", "fai_fast, cached"
PEER = "torch + ONNX Runtime, plain graph already exported"
ROOT = Path(__file__).parents[1]
SAMPLE = Path(fai_fast.__file__).parent / "registry" / "samples" / "shapes.jpg"

ROUNDS = 5

OURS = """
import json, sys
import fai_fast
name, weights, size, cache, threshold, picture = json.loads(sys.argv[1])
model = fai_fast.load(name, weights=weights, im_size=size, cache_dir=cache)
print(len(model.infer(picture, threshold=threshold)), flush=True)
"""
PLAIN = """
import json, sys, types
import numpy as np, onnxruntime, torch
from PIL import Image
from bench.peers import plain_pipeline
path, size, config, threshold, picture = json.loads(sys.argv[1])
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
config = types.SimpleNamespace(**config)
run = plain_pipeline.pipeline(lambda images: session.run(None, {"images": images}), size, config)
frame = np.array(Image.open(picture).convert("RGB"))
print(len(run(frame, threshold).query), flush=True)
"""


@pytest.mark.parametrize(("name", "weights", "size"), CASES)
def test_start(name, weights, size, tmp_path, request, stream_report) -> None:
    quick = request.config.getoption("--bench-quick")
    spec = registry.spec(name)
    if weights is not None:
        pytest.importorskip("torch")
        weights = str(_checkpoint(name, tmp_path / "lively.safetensors"))
    caches = [str(tmp_path / f"cache {number}") for number in range(1 if quick else 2)]

    def ours(cache: str, threshold: float) -> tuple[float, int]:
        return _start(OURS, [name, weights, size, cache, threshold, str(SAMPLE)])

    cold = [ours(cache, spec.config.threshold)[0] for cache in caches]
    with fai_fast.load(name, weights=weights, im_size=size, cache_dir=caches[0]) as model:
        threshold = spec.config.threshold
        if weights is not None:
            threshold = streams.threshold_of(model.infer(SAMPLE, threshold=0.0))
        engine = streams.engine_of(model)
    starts = {CACHED: lambda: ours(caches[0], threshold)}
    if adapter := peers.load("plain_pipeline"):
        path = tmp_path / "plain.onnx"
        adapter.export(spec, size, path, weights)
        fields = ("mask_threshold", "predict_all_pixels", "use_mask_score")
        config = {key: getattr(spec.config, key) for key in fields}
        starts[PEER] = lambda: _start(PLAIN, [str(path), size, config, threshold, str(SAMPLE)])
    # Untimed: whose files the system has in its memory must not depend on the order.
    found = {contender: start()[1] for contender, start in starts.items()}
    assert found[CACHED] > 0
    # One at the threshold may fall either way.
    assert max(found.values()) - min(found.values()) <= 2, found
    times: dict[str, list[float]] = {contender: [] for contender in starts}
    names = list(starts)
    for turn in range(2 if quick else ROUNDS):
        for contender in names[turn % len(names) :] + names[: turn % len(names)]:
            times[contender].append(starts[contender]()[0])
    case = f"{name} {size[0]}x{size[1]}"
    stream_report.starts.append(streams.StartCase(case, {**times, COLD: cold}, engine))


def _start(program: str, arguments: list) -> tuple[float, int]:
    """Seconds until a new process has printed what it found, and how much that is."""
    environment = os.environ.copy()
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        took = time.monotonic() - started
    assert process.returncode == 0, f"the process failed with {process.returncode}, see its output above"
    return took, int(said)


def _checkpoint(name: str, path: Path) -> Path:
    from safetensors.numpy import save_file

    save_file({key: np.ascontiguousarray(value) for key, value in lively(name).items()}, path)
    return path
