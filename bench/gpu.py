"""Measuring on a GPU: what the card can do, an engine alone, the kernels alone, and the report of it all.

`python -m bench.gpu kernels` runs every kernel on a few small frames and compares with the CPU, for compute-sanitizer;
`python -m bench.gpu frames [COUNT]` runs 2,000 frames of changing sizes and fails where memory grows.
"""

from __future__ import annotations

import itertools
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import fai_fast
import numpy as np
from fai_fast import _core
from fai_fast.engines import gpu
from numpy.typing import NDArray

from bench import report, scenes

EMULATED = "CUDA emulated"
"""How the name of a device begins on which no time means anything."""
T4_MEMORY, T4_LINK = 320e9, 12e9
"""Bytes per second of a T4: its memory by the data sheet, and what PCIe 3.0 x16 moves in one direction."""
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_COPIED = 1 << 30
_UPLOADED = 1 << 28
_HOST_NOISE = 8 << 20  # of a process that allocates and frees


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds a call."""

    p50: float
    p90: float
    p99: float
    calls: int

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Percentiles:
        p50, p90, p99 = np.percentile(milliseconds, (50, 90, 99)).tolist()
        return cls(p50, p90, p99, len(milliseconds))


@dataclass(frozen=True)
class Target:
    """A figure that the project has set itself; `at_most` False: at least."""

    what: str
    value: float
    limit: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        return f"{self.what}: {self.value:.3g} {sign} {self.limit:.3g}: {'met' if self.met else 'NOT MET'}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


# ------------------------------------------------------------------------------------------------------ CUDA


class Cuda:
    """cuda-python's runtime, whose functions raise what they return."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._runtime, name)
        if isinstance(found, type) or not callable(found):
            return found

        def call(*arguments: object) -> Any:
            error, *values = found(*arguments)
            if error != self._runtime.cudaError_t.cudaSuccess:
                raise RuntimeError(f"{name}: {error.name}")
            return values[0] if len(values) == 1 else tuple(values) or None

        return call


@cache
def cuda() -> tuple[Cuda | None, str]:
    """cuda-python, or None and the reason."""
    if card().name.startswith(EMULATED):
        return None, "cuda-python does not reach the emulator"
    try:
        return Cuda(), ""
    except ImportError as error:
        return None, f"{error}: pip install cuda-bindings"


@cache
def card() -> gpu.Device:
    """The first GPU. Raises CudaError."""
    return gpu.devices()[0]


def emulated() -> bool:
    return card().name.startswith(EMULATED)


def required() -> bool:
    """Whether a machine without a GPU is a failure."""
    return os.environ.get("FAI_FAST_REQUIRE_GPU") == "1"


def is_trial(effort: float) -> bool:
    """Whether it only matters that everything runs: on the emulator a frame of full size takes seconds."""
    return effort < 1 and emulated()


def runs_of(effort: float, full: int) -> int:
    return max(2, int(effort * full))


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second, and where they are from. A copy counts bytes read and written; None: not known."""

    memory: float
    memory_from: str
    copy: float | None
    upload: float | None
    """From pinned memory to the card."""
    launch: float | None = None
    """Milliseconds to launch next to nothing and to wait for it."""


@cache
def ceilings() -> Ceilings:
    """Of the first GPU; a T4's numbers where neither cuda-python nor the card can tell."""
    runtime, why = cuda()
    if runtime is None:
        return Ceilings(T4_MEMORY, f"a T4's, as {why}", None, None)
    device = card().index
    attribute = runtime.cudaDeviceAttr
    clock = runtime.cudaDeviceGetAttribute(attribute.cudaDevAttrMemoryClockRate, device)  # kHz
    width = runtime.cudaDeviceGetAttribute(attribute.cudaDevAttrGlobalMemoryBusWidth, device)  # bits
    copy = 2 * _rate(runtime, _COPIED, runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice)
    upload = _rate(runtime, _UPLOADED, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)
    if clock > 0 and width > 0:
        # Two transfers a clock.
        memory, source = 2.0 * clock * 1e3 * width / 8, "the card's clock and bus"
    else:
        memory, source = copy, "a copy within the card"
    return Ceilings(memory, source, copy, upload, _launch(runtime))


def _launch(runtime: Cuda) -> float:
    """Milliseconds by the host's clock, the median of many: CUDA's smallest work is to set a few bytes."""
    memory = runtime.cudaMalloc(4)
    times = []
    try:
        with stream(runtime) as on:
            for _ in range(300):
                started = time.perf_counter()
                runtime.cudaMemsetAsync(memory, 0, 4, on)
                runtime.cudaStreamSynchronize(on)
                times.append(1e3 * (time.perf_counter() - started))
    finally:
        runtime.cudaFree(memory)
    return statistics.median(times)


def _rate(runtime: Cuda, size: int, kind: Any) -> float:
    """Bytes per second of the best of a few copies."""
    from_host = kind == runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
    source = runtime.cudaMallocHost(size) if from_host else runtime.cudaMalloc(size)
    target = runtime.cudaMalloc(size)
    try:
        with stream(runtime) as on:
            times = [
                elapsed(runtime, on, lambda: runtime.cudaMemcpyAsync(target, source, size, kind, on))
                for _ in range(6)
            ]
    finally:
        (runtime.cudaFreeHost if from_host else runtime.cudaFree)(source)
        runtime.cudaFree(target)
    return size / (min(times[1:]) * 1e-3)


@contextmanager
def stream(runtime: Cuda) -> Iterator[Any]:
    made = runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking)
    try:
        yield made
    finally:
        runtime.cudaStreamDestroy(made)


def elapsed(runtime: Cuda, on: Any, work: Callable[[], object]) -> float:
    """Milliseconds between two events on a stream around what `work` puts there."""
    begin, end = runtime.cudaEventCreate(), runtime.cudaEventCreate()
    try:
        runtime.cudaEventRecord(begin, on)
        work()
        runtime.cudaEventRecord(end, on)
        runtime.cudaEventSynchronize(end)
        return float(runtime.cudaEventElapsedTime(begin, end))
    finally:
        runtime.cudaEventDestroy(begin)
        runtime.cudaEventDestroy(end)


class EngineGraph:
    """The engine alone in a CUDA graph. To an engine's context it is a frame graph with nothing before and after."""

    def __init__(self, runtime: Cuda, context: gpu.GpuContext, on: int) -> None:
        self.stream = on
        self._cuda = runtime
        self._graph: Any = None
        self._enqueue: Callable[[int], object] | None = None
        self._owner: object = None
        self.uncaptured = context.capture(self)  # type: ignore[arg-type]

    def enqueue_preprocess(self) -> None: ...

    def enqueue_postprocess(self) -> None: ...

    def run_uncaptured(self, enqueue: Callable[[int], object], reason: str) -> str:
        self._enqueue = enqueue
        return reason

    def capture(self, enqueue: Callable[[int], object]) -> str | None:
        enqueue(self.stream)
        self._cuda.cudaStreamSynchronize(self.stream)
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        self._cuda.cudaStreamBeginCapture(self.stream, mode)
        try:
            enqueue(self.stream)
        finally:
            graph = self._cuda.cudaStreamEndCapture(self.stream)
        self.adopt(int(graph), graph)
        return None

    def adopt(self, graph: int, owner: object) -> None:
        self._graph = self._cuda.cudaGraphInstantiate(self._cuda.cudaGraph_t(graph), 0)
        self._owner = owner

    def launch(self) -> None:
        if self._enqueue is not None:
            self._enqueue(self.stream)
        else:
            self._cuda.cudaGraphLaunch(self._graph, self.stream)

    def close(self) -> None:
        if self._graph is not None:
            self._cuda.cudaGraphExecDestroy(self._graph)
        self._graph = self._enqueue = self._owner = None

    def times(self, runs: int) -> tuple[float, Percentiles]:
        """Milliseconds a run on the card, one after the other without a gap; and of one run with launch and wait."""
        for _ in range(10):
            self.launch()
        self._cuda.cudaStreamSynchronize(self.stream)
        row = max(1, runs // 5)

        def work() -> None:
            for _ in range(row):
                self.launch()

        alone = statistics.median(elapsed(self._cuda, self.stream, work) / row for _ in range(5))
        waited = []
        for _ in range(runs):
            started = time.perf_counter()
            self.launch()
            self._cuda.cudaStreamSynchronize(self.stream)
            waited.append(1e3 * (time.perf_counter() - started))
        return alone, Percentiles.of(waited)


class Array:
    """Bytes in a card's memory, or in the host's."""

    def __init__(self, kind: str, address: int, shape: tuple[int, ...], owner: object = None) -> None:
        self.owner = owner
        described = {
            "shape": shape,
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }
        setattr(self, f"__{kind}_interface__", described)


def on_device(arrays: Sequence[NDArray[np.uint8]]) -> list[Array]:
    """Copies of arrays of one shape in the memory of a frame graph that nobody runs: it needs no other library."""
    pixels = -(-arrays[0].nbytes // 6)
    width = 1 << 10
    room = frame_graph(batch=len(arrays), size=(-(-pixels // width), width))
    address, step = room.images, 6 * width * -(-pixels // width)
    held = []
    for index, array in enumerate(arrays):
        _core.copy_to_device(address + index * step, np.ascontiguousarray(array))
        held.append(Array("cuda_array", address + index * step, array.shape, room))
    return held


def pinned(array: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """A copy in pinned memory, which is never given back; None without cuda-python."""
    runtime, _ = cuda()
    if runtime is None:
        return None
    copy = np.asarray(Array("array", int(runtime.cudaMallocHost(array.nbytes)), array.shape))
    copy[...] = array
    return copy


# --------------------------------------------------------------------------------------------------- kernels


def frame_graph(
    *,
    batch: int = 1,
    size: tuple[int, int] = (640, 640),
    dtype: str = "float16",
    logits: scenes.Scene | None = None,
    semantic: bool = False,
) -> _core.FrameGraph:
    """A frame graph for outputs of the scene's shape (small ones without), whose engine leaves them as they are."""
    if logits is None:
        logits = scenes.Scene(np.zeros((1, 8, 8), dtype), np.zeros((1, 2), dtype))
    graph = _core.FrameGraph(
        device=card().index,
        batch=batch,
        size=size,
        dtype=dtype,
        mask_logits=logits.mask_logits.shape,
        mask_dtype=str(logits.mask_logits.dtype),
        class_logits=logits.class_logits.shape,
        class_dtype=str(logits.class_logits.dtype),
        mean=MEAN,
        std=STD,
        predict_all_pixels=semantic,
        softmax=True,
    )
    for address, array in (
        (graph.mask_logits, logits.mask_logits),
        (graph.class_logits, logits.class_logits),
    ):
        for index in range(batch):
            _core.copy_to_device(address + index * array.nbytes, array)
    return graph


def captured(graph: _core.FrameGraph) -> _core.FrameGraph:
    reason = graph.capture(lambda _: None)
    if reason is not None:
        raise RuntimeError(f"the frame graph was not captured: {reason}")
    return graph


def stages(
    graph: _core.FrameGraph,
    frames: Sequence[object],
    color: str,
    threshold: float,
    runs: int,
    batch: int = 1,
    warmup: int = 3,
    masks_device: bool = False,
) -> dict[str, list[float]]:
    """Milliseconds of each stage, by events, over `runs` replays; "empty" is the stage of an engine that does nothing,
    "host" what results() takes, with the masks on the card where asked for."""
    found: dict[str, list[float]] = {
        name: [] for name in ("upload", "preprocess", "empty", "postprocess", "host")
    }
    taken = itertools.cycle(frames)
    for run in range(warmup + runs):
        batched = [(next(taken), color, "stretch", "bt601", "limited") for _ in range(batch)]
        graph.submit(batched, threshold, 0.5, True)
        graph.wait(-1.0)
        started = time.perf_counter()
        rows = graph.results(100, masks_device)
        host = 1e3 * (time.perf_counter() - started)
        del rows
        if run < warmup:
            continue
        times = graph.times()
        for name in ("upload", "preprocess", "postprocess"):
            found[name].append(times[name])
        found["empty"].append(times["engine"])
        found["host"].append(host)
    return found


def kernel_times(work: Callable[[], object], runs: int) -> dict[str, float] | str:
    """Microseconds of each of our kernels for one call of `work`, by PyTorch's profiler; or why it cannot tell."""
    try:
        import torch
        from torch.profiler import ProfilerActivity, profile
    except ImportError as error:
        return str(error)
    if emulated() or not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    work()
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            for _ in range(runs):
                work()
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for event in profiled.key_averages():
            if name := re.search(r"\(anonymous namespace\)::(\w+)", event.key):
                found[name[1]] = found.get(name[1], 0.0) + event.self_device_time_total / runs
        return found or "the profiler saw none of our kernels"
    except (RuntimeError, AttributeError) as error:
        return str(error)


# ---------------------------------------------------------------------------------------------------- report


@dataclass
class Kernel:
    """A kernel of ours, alone.

    Attributes:
        times: milliseconds; "raw" holds the two events around it too, whose own time is "events".
        memory, link: bytes that it cannot avoid to move, in the card's memory and over PCIe.
        target: at most a launch and this many times the floor.
        launches: kernels a frame; a launch for several frames is a part of one for each.
    """

    name: str
    case: str
    times: dict[str, float]
    memory: int
    link: int
    why: str
    target: float | None = None
    launches: float = 1.0

    @property
    def ms(self) -> float:
        return max(self.times["raw"] - self.times["events"], 1e-6)

    def floor(self, memory: float, link: float) -> float:
        """Milliseconds, at these bytes per second."""
        return 1e3 * (self.memory / memory + self.link / link)

    def as_dict(self, known: Ceilings) -> dict[str, Any]:
        here = self.floor(known.memory, known.upload or T4_LINK)
        return {
            **asdict(self),
            "ms": self.ms,
            "floor_ms": here,
            "over_floor": self.ms / here,
            "floor_t4_ms": self.floor(T4_MEMORY, T4_LINK),
        }


@dataclass
class ModelRun:
    """A model, end to end.

    Attributes:
        latency: of each contender, the first three ours.
        engine_ms: the engine's graph alone, on the card; by events in a frame where it could not be had alone.
        engine_waited: the same with launch and wait.
        stages: milliseconds by events, p50.
        throughput: frames per second.
        agreement: rows found by each contender.
    """

    name: str
    size: tuple[int, int]
    frame: tuple[int, int]
    engine: str
    precision: str
    execution: str
    latency: dict[str, Percentiles]
    engine_ms: float
    engine_how: str
    engine_waited: Percentiles | None
    stages: dict[str, float]
    throughput: dict[str, float]
    agreement: dict[str, float]
    published: list[dict[str, Any]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "targets": [target.as_dict() for target in self.targets]}


@dataclass
class Report:
    """Everything that was measured in a run."""

    kernels: list[Kernel] = field(default_factory=list)
    models: list[ModelRun] = field(default_factory=list)
    profiled: dict[str, dict[str, float] | str] = field(default_factory=dict)
    """Microseconds of each CUDA kernel a frame, by case; or why they are not known."""
    notes: list[str] = field(default_factory=list)
    uploads: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Microseconds of each way to the card by frame: "warm" the same each time, "cold" many in turns."""

    def __bool__(self) -> bool:
        return bool(self.kernels or self.models)

    @cached_property
    def _known(self) -> Ceilings:
        return ceilings()

    def targets(self) -> list[Target]:
        """Those that can be judged; none on the emulator."""
        if emulated():
            return []
        found = []
        launch = self._known.launch
        for kernel in self.kernels:
            if kernel.target is not None and launch is not None:
                limit = launch * kernel.launches + kernel.target * kernel.as_dict(self._known)["floor_ms"]
                what = f"{kernel.name}, {kernel.case}: ms, against a launch and {kernel.target:g} x its floor"
                found.append(Target(what, kernel.ms, limit))
        return [*found, *(target for run in self.models for target in run.targets)]

    def as_dict(self) -> dict[str, Any]:
        found = card()
        return {
            "device": {
                "name": found.name,
                "compute_capability": list(found.compute_capability),
                "memory": found.memory,
                "multiprocessors": found.multiprocessors,
                **_core.cuda_versions(),
            },
            "emulated": emulated(),
            "ceilings": asdict(self._known),
            "kernels": [kernel.as_dict(self._known) for kernel in self.kernels],
            "models": [run.as_dict() for run in self.models],
            "targets": [target.as_dict() for target in self.targets()],
            "profiled_us": self.profiled,
            "upload_us": self.uploads,
            "notes": self.notes,
            "table": self.table(),
        }

    def table(self) -> list[str]:
        """Markdown."""
        known = self._known
        rates = [f"memory {known.memory / 1e9:.0f} GB/s ({known.memory_from})"]
        rates += [f"copy {known.copy / 1e9:.0f} GB/s"] if known.copy else []
        rates += [f"upload {known.upload / 1e9:.1f} GB/s"] if known.upload else []
        rates += [f"launch and wait {1e3 * known.launch:.1f} us"] if known.launch else []
        lines = [f"{card().name}: {', '.join(rates)}"]
        if emulated():
            lines.append("EMULATED ON THE CPU: no time here says anything about a GPU.")
        if self.kernels:
            lines += ["", "Kernels alone (events around them, less the events' own time)", ""]
            lines += report.markdown(
                ("kernel", "case", "ms", "floor ms", "x floor", "T4 floor ms", "MB memory + link"),
                [_kernel_cells(kernel, known) for kernel in self.kernels],
            )
        for name, found in self.profiled.items():
            parts = found if isinstance(found, str) else ", ".join(f"{k} {us:.1f}" for k, us in found.items())
            lines += ["", f"by PyTorch's profiler, {name}, us: {parts}"]
        for frame, ways in self.uploads.items():
            lines += ["", f"Ways to the card of {frame}, us, the same frame each time (many in turns)", ""]
            best = sorted(ways, key=lambda way: ways[way]["warm"])[:3]
            for way in [*best, *(way for way in ways if "driver" in way and way not in best)]:
                lines.append(f"- {way}: {ways[way]['warm']:.0f} ({ways[way]['cold']:.0f})")
        for run in self.models:
            lines += _model_lines(run)
        if judged := self.targets():
            lines += ["", "Targets", "", *(f"- {target}" for target in judged)]
        return [*lines, *(f"\n{note}" for note in self.notes)]


def _kernel_cells(kernel: Kernel, known: Ceilings) -> list[str]:
    item = kernel.as_dict(known)
    return [
        kernel.name,
        kernel.case,
        f"{item['ms']:.4f}",
        f"{item['floor_ms']:.4f}",
        f"{item['over_floor']:.2f}",
        f"{item['floor_t4_ms']:.4f}",
        f"{kernel.memory / 1e6:.2f} + {kernel.link / 1e6:.2f}",
    ]


def _model_lines(run: ModelRun) -> list[str]:
    ours = next(iter(run.latency.values())).p50
    height, width = run.size
    lines = [
        "",
        f"{run.name} {height}x{width}, frame {run.frame[0]}x{run.frame[1]}: {run.engine} {run.precision}",
    ]
    lines += [f"({run.execution})", ""]
    rows = [["engine alone", f"{run.engine_ms:.3f}", "", "", "", run.engine_how]]
    if waited := run.engine_waited:
        rows.append(["engine alone, waited for", *_cells(waited), "", "one launch and wait at a time"])
    for name, times in run.latency.items():
        ratio = "" if name.startswith("fai_fast") else f"{times.p50 / ours:.1f}x"
        rows.append([name, *_cells(times), ratio, f"{run.agreement[name]:.0f} rows"])
    if "T4" in card().name:
        rows += [
            [
                f"FocoosAI, {item['engine']}",
                f"{item['mean_ms']:.3f}",
                "",
                "",
                "",
                "published mean, engine alone",
            ]
            for item in run.published
        ]
    lines += report.markdown(("", "p50 ms", "p90", "p99", "over ours", ""), rows)
    lines += ["", "stages by events, ms: " + ", ".join(f"{name} {ms:.3f}" for name, ms in run.stages.items())]
    lines += ["", "frames/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in run.throughput.items())]
    return lines


def _cells(times: Percentiles) -> list[str]:
    return [f"{times.p50:.3f}", f"{times.p90:.3f}", f"{times.p99:.3f}"]


def interleave(
    contenders: dict[str, Callable[[], object]], budget: float, min_rounds: int, per_round: int = 5
) -> dict[str, list[float]]:
    """Milliseconds of single calls, contenders in turns in an order that turns too, each after one untimed call."""
    names = list(contenders)
    found: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + budget
    for rounds in itertools.count():
        if rounds >= min_rounds and time.perf_counter() >= end:
            return found
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            call = contenders[name]
            call()
            for _ in range(per_round):
                started = time.perf_counter()
                result = call()
                found[name].append(1e3 * (time.perf_counter() - started))
                del result
    raise AssertionError("unreachable")


# ----------------------------------------------------------------------------------------- checks, not times


def exercise() -> int:
    """Every kernel on small frames, in every type and format, held against the CPU; the number of frames."""
    options = {"mask_threshold": 0.5, "use_mask_score": True}
    count = 0
    for semantic, dtype in itertools.product((False, True), ("float32", "float16")):
        scene = scenes.regions(40, 24, 9) if semantic else scenes.instances(40, 24, 9)
        scene = scene.as_float16() if dtype == "float16" else scene
        graph = captured(frame_graph(size=(64, 96), dtype=dtype, logits=scene, semantic=semantic))
        for color, resize, size in (
            ("rgb", "stretch", (70, 90)),
            ("bgr", "letterbox", (48, 130)),
            ("nv12", "stretch", (48, 130)),
            ("gray", "letterbox", (70, 90)),
        ):
            count += 1
            frame = _small_frame(color, *size)
            _core.copy_to_device(graph.images, np.full((1, 3, 64, 96), np.nan, dtype))
            graph.submit([(frame, color, resize, "bt709", "full")], 0.3, 0.5, True)
            graph.wait(-1.0)
            [rows] = graph.results(100, True)
            tensor = np.empty((1, 3, 64, 96), dtype)
            _core.copy_from_device(tensor, graph.images)
            layout = {"color": color, "resize": resize, "yuv_matrix": "bt709", "yuv_range": "full"}
            expected = fai_fast.preprocess(frame, (64, 96), mean=MEAN, std=STD, dtype=dtype, **layout)
            letterbox = None
            if resize == "letterbox":
                expected, letterbox = expected
            kept = fai_fast.postprocess(
                scene.mask_logits,
                scene.class_logits,
                size,
                threshold=0.3,
                predict_all_pixels=semantic,
                letterbox=letterbox,
                **options,
            )
            what = f"{'semantic' if semantic else 'instance'} {dtype} {color} {resize} {size}"
            # Not `> 2e-3`: a NaN that nobody overwrote must fail.
            assert np.abs(tensor.astype(np.float32) - expected.astype(np.float32)).max() <= 2e-3, what
            assert sorted(rows["query"].tolist()) == sorted(kept.query.tolist()), what
            masks = np.empty(rows["masks_device"].shape, np.bool_)
            _core.copy_from_device(masks, rows["masks_device"].__cuda_array_interface__["data"][0])
            assert masks.sum() == rows["area"].sum() > 0, what
        graph.close()
    return count


def _small_frame(color: str, height: int, width: int) -> NDArray[np.uint8]:
    if color == "nv12":
        return scenes.nv12(height, width)
    return scenes.frame(height, width, 1 if color == "gray" else 3)


def grow(count: int) -> str:
    """Runs frames of changing sizes and formats, and says what they took. Raises AssertionError where memory grew."""
    runtime, unknown = cuda()
    if runtime is None and not emulated():
        sys.exit(f"the card's memory cannot be watched: {unknown}")
    rng = np.random.default_rng(0)
    sizes = [(2 * int(h), 2 * int(w)) for h, w in rng.integers(30, 301, (16, 2))]
    frames = [(color, _small_frame(color, *size)) for size in sizes for color in ("rgb", "nv12", "gray")]
    said = []
    for semantic in (False, True):
        scene = scenes.regions(40, 40, 9) if semantic else scenes.instances(40, 40, 9)
        graph = captured(frame_graph(size=(160, 160), logits=scene.as_float16(), semantic=semantic))
        before: tuple[int, ...] = ()
        for number in range(count):
            # The first rounds reserve what the largest frame needs, and fill the pool of results.
            if number == min(4 * len(frames), count // 2):
                before = _held(graph)
            color, frame = frames[number * 7 % len(frames)]
            graph.submit([(frame, color, "stretch", "bt601", "limited")], 0.3, 0.5, True)
            graph.wait(-1.0)
            assert graph.results(100), "a frame without a result"
        growth = [now - then for now, then in zip(_held(graph), before, strict=True)]
        kind = "semantic" if semantic else "instance"
        said.append(f"{kind}: {count} frames, bytes more in the graph, on the card, in the process: {growth}")
        assert max(growth[:2]) <= 0, said[-1]
        assert growth[2] <= _HOST_NOISE, said[-1]
        graph.close()
    return "\n".join(said)


def _held(graph: _core.FrameGraph) -> tuple[int, int, int]:
    """Bytes held by the graph, by everybody on the card (0 where unknown), and by this process."""
    runtime, _ = cuda()
    free, total = (0, 0) if runtime is None else runtime.cudaMemGetInfo()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return sum(graph.memory().values()), total - free, resident


def main(arguments: Sequence[str]) -> None:
    match arguments:
        case ["kernels"]:
            print(f"{exercise()} frames on {card().name}: as on the CPU")
        case ["frames"]:
            print(grow(2000))
        case ["frames", count] if count.isdigit() and int(count) >= 10:
            print(grow(int(count)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
