"""On a GPU: every model from a frame in host or device memory to Detections.

Skipped where no GPU can be used. Weights are those of bench/weights.py, with which queries find something, and the
threshold keeps about 20 of them.
FocoosAI's published T4 figures are printed beside ours on a T4; the JSON always has them.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import asdict

import fai_fast
import numpy as np
import pytest
from fai_fast.errors import CudaError, EngineError

from bench import emulated, gpu, peers, scenes, streams, upload, weights

pytestmark = pytest.mark.usefixtures("card")
KEPT = 20
ENGINES = ("torch-cuda", "tensorrt", "tensorrt_rtx")
MODELS = ("bisenetformer-m-ade", "fai-mf-m-coco-ins")
WINDOW = 3  # frames under way: as many as a model overlaps
PLAIN, PLAIN_HALF = "plain torch, fp32 eager", "plain torch, fp16 channels_last"
HOST, PINNED, DEVICE = "fai_fast, host", "fai_fast, pinned host", "fai_fast, device"
BUFFER, MASKS = "fai_fast, frame_buffer", "fai_fast, device, masks_device=True"
# Of a model's own engine, what its postprocessing of a 1080p frame may take.
SHARES = {"bisenetformer-m-ade": 0.08, "fai-mf-m-coco-ins": 0.05}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model_name" in metafunc.fixturenames:
        names = fai_fast.models() if metafunc.config.getoption("--all-models") else MODELS
        # Where time is short every model is measured before another engine.
        metafunc.parametrize(("engine", "model_name"), list(itertools.product(ENGINES, names)))


def test_end_to_end(model_name, engine, effort, frame_size, cache, gpu_report) -> None:
    if gpu.emulated() and engine != ENGINES[0]:
        pytest.skip("the emulator runs no engine of another library")
    state = weights.lively(model_name)
    options = {"weights": state, "engine": engine, "device": "cuda", "cache_dir": cache}
    size = min(fai_fast.spec(model_name).im_size, 640)
    if gpu.is_trial(effort):
        size = 64
    else:
        # Targets are those of fp16, which "auto" takes only where it finds what fp32 finds.
        options["precision"] = "fp16"
    try:
        model = _load(model_name, im_size=size, **options)
    except (EngineError, CudaError) as error:
        if gpu.required() and engine == ENGINES[0]:
            raise
        pytest.skip(str(error))
    with model:
        run = _measured(model, engine, state, effort, frame_size, gpu_report)
    batch = gpu.runs_of(effort, 8)
    with _load(model_name, im_size=size, batch_size=batch, **options) as model:
        frames = gpu.on_device([scenes.frame(*frame_size)] * batch)
        run.throughput[f"batches of {batch}, device"] = _rate(
            lambda: model.infer_batch(frames), batch, effort
        )
    found = run.agreement[HOST]
    assert found >= (1 if gpu.is_trial(effort) else KEPT // 2), run.agreement
    ours = {rows for name, rows in run.agreement.items() if name.startswith("fai_fast")}
    assert ours == {found}, run.agreement
    # The network is not trained, and scores lie close together: some at the threshold may fall either way.
    assert abs(found - run.agreement.get(PLAIN, found)) <= KEPT // 4, run.agreement


def _load(name: str, **options) -> fai_fast.Model:
    with ExitStack() as stack:
        if gpu.emulated():
            stack.enter_context(emulated.torch_on_the_cpu())
        # What nobody trained is unsure everywhere, and moves further in float16 than what a trained network finds.
        # Speed is measured here, and what each contender finds is held against the others'.
        verify = options.get("precision", "auto") == "auto"
        return fai_fast.load(name, verify_precision=verify, **options)


def _measured(
    model, engine: str, state, effort: float, frame_size: tuple[int, int], gpu_report
) -> gpu.ModelRun:
    frame = scenes.frame(*frame_size)
    threshold = streams.threshold_of(model.infer(frame, threshold=0.0), KEPT)
    [on_device] = gpu.on_device([frame])
    contenders = {
        HOST: lambda: model.infer(frame, threshold=threshold),
        DEVICE: lambda: model.infer(on_device, threshold=threshold),
        MASKS: lambda: model.infer(on_device, threshold=threshold, masks_device=True),
    }
    if (pinned := gpu.pinned(frame)) is not None:
        contenders[PINNED] = lambda: model.infer(pinned, threshold=threshold)
    buffer = model.frame_buffer(*frame_size) if hasattr(model, "frame_buffer") else None
    if buffer is not None:
        buffer[...] = frame
        contenders[BUFFER] = lambda: model.infer(buffer, threshold=threshold)
    if torch_gpu := peers.load("torch_gpu"):
        place = "cpu" if gpu.emulated() else "cuda:0"
        for name, precision in ((PLAIN, "fp32"), (PLAIN_HALF, "fp16")):
            plain = torch_gpu.load(model.spec, model.size, precision, state, place)
            contenders[name] = lambda plain=plain: plain(frame, threshold)
    agreement = {
        name: float(len(found if name.startswith("fai_fast") else found.query))
        for name, found in ((name, call()) for name, call in contenders.items())
    }
    seconds = gpu.interleave(
        contenders,
        budget=8 * effort,
        min_rounds=gpu.runs_of(effort, 10),
        per_round=1 if gpu.is_trial(effort) else 5,
    )
    latency = {name: gpu.Percentiles.of(values) for name, values in seconds.items()}
    stages = _stages(model, frame, threshold, effort)
    engine_ms, how, waited = _engine_alone(model, stages, effort)
    sources = {
        "host": frame,
        "device": on_device,
        **({"pinned host": pinned} if pinned is not None else {}),
        **({"frame_buffer": buffer} if buffer is not None else {}),
    }
    ways = upload.measure(frame.nbytes, trial=gpu.is_trial(effort))
    if isinstance(ways, str):
        gpu_report.notes.append(f"ways to the card: {ways}")
    else:
        gpu_report.uploads["{}x{} rgb".format(*frame_size)] = ways.as_dict()
    count = gpu.runs_of(effort, 50)
    throughput = {
        f"pipelined, {name}": _rate(
            lambda source=source: _pipelined(model, source, threshold, count), count, effort
        )
        for name, source in sources.items()
    }
    published = [asdict(item) for item in model.spec.published_latency]
    info = model.info()
    run = gpu.ModelRun(
        name=model.spec.name,
        size=model.size,
        frame=frame_size,
        engine=engine,
        precision=info["precision"],
        execution=info["execution"],
        latency=latency,
        engine_ms=engine_ms,
        engine_how=how,
        engine_waited=waited,
        stages=stages,
        throughput=throughput,
        agreement=agreement,
        published=published,
        targets=_targets(model.spec.name, latency, engine_ms, stages, throughput, ways),
    )
    gpu_report.models.append(run)
    return run


def _median(values) -> float:
    return float(np.median(values))


def _stages(model: fai_fast.Model, frame, threshold: float, effort: float) -> dict[str, float]:
    """Milliseconds on the card by events, and "host": what a call takes beyond them."""
    found = []
    for _ in range(gpu.runs_of(effort, 60)):
        started = time.perf_counter()
        model.infer(frame, threshold=threshold)
        whole = 1e3 * (time.perf_counter() - started)
        times = _graph(model).times()
        found.append({**times, "host": whole - sum(times.values())})
    return {name: _median([times[name] for times in found]) for name in found[0]}


def _graph(model: fai_fast.Model):
    """The frame graph of the model's last frame."""
    return model._pipeline._slots[-1].graph


def _engine_alone(model: fai_fast.Model, stages: dict[str, float], effort: float):
    runtime, why = gpu.cuda()
    if runtime is None:
        return stages["engine"], f"by events in a frame ({why})", None
    frames = _graph(model)
    context = model._prepared.gpu.bind(frames.images, frames.mask_logits, frames.class_logits, frames.stream)
    try:
        alone = gpu.EngineGraph(runtime, context, frames.stream)
        milliseconds, waited = alone.times(gpu.runs_of(effort, 100))
        alone.close()
    finally:
        context.close()
    how = (
        f"not captured: {alone.uncaptured}" if alone.uncaptured else "its own graph, one run after the other"
    )
    return milliseconds, how, waited


def _pipelined(model: fai_fast.Model, source, threshold: float, count: int) -> None:
    under_way = deque()
    for _ in range(count):
        if len(under_way) == WINDOW:
            under_way.popleft().result()
        under_way.append(model.submit(source, threshold=threshold))
    for ticket in under_way:
        ticket.result()


def _rate(call, frames: int, effort: float) -> float:
    """Frames per second, the median of a few calls."""
    call()
    seconds = []
    for _ in range(gpu.runs_of(effort, 7)):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return frames / _median(seconds)


def _targets(
    name: str,
    latency: dict[str, gpu.Percentiles],
    engine_ms: float,
    stages: dict[str, float],
    throughput: dict[str, float],
    ways: upload.Ways | str,
) -> list[gpu.Target]:
    if gpu.emulated():
        return []
    found = []
    host = latency[HOST].p50
    link = gpu.ceilings().upload
    if link and not isinstance(ways, str):
        floor = engine_ms + 1e3 * ways.bytes / link
        for source in (PINNED, BUFFER):
            if source in latency:
                what = f"{name}: {source} frame over engine + upload floor ({floor:.3f} ms)"
                found.append(gpu.Target(what, latency[source].p50 / floor, 1.15))
    if not isinstance(ways, str):
        best = ways.warm[ways.best]
        what = f"{name}: {HOST} frame, ms, against engine + 1.15 x the best way ({best:.0f} us, {ways.best})"
        found.append(gpu.Target(what, host, engine_ms + 1.15e-3 * best))
    if PLAIN in latency:
        what = f"{name}: times faster than {PLAIN}"
        found.append(gpu.Target(what, latency[PLAIN].p50 / host, 10.0, at_most=False))
    found += [
        gpu.Target(
            f"{name}: {way}, times the engine's own rate", rate * 1e-3 * engine_ms, 0.97, at_most=False
        )
        for way, rate in throughput.items()
        if way.startswith("pipelined")
    ]
    if name in SHARES:
        share = stages["postprocess"] / engine_ms
        found.append(gpu.Target(f"{name}: postprocess of its engine", share, SHARES[name]))
    added = 1e3 * (latency[MASKS].p50 - latency[DEVICE].p50)
    found.append(gpu.Target(f"{name}: masks_device=True adds, us", added, 30.0))
    if name == "bisenetformer-m-ade" and "H200" in gpu.card().name:
        found.append(gpu.Target(f"{name}: {HOST} frame, p50 ms on an H200", host, 1.5))
    return found
