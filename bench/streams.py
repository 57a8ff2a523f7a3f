"""Measuring video and starts: a clip of its own making, passes over it, what is copied, and the report of it all."""

from __future__ import annotations

import gc
import importlib.metadata
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import fai_fast
import numpy as np
from numpy.typing import NDArray

from bench import report, scenes

HEIGHT, WIDTH, RATE = 1080, 1920, 30
BIT_RATE = 6_000_000  # as of cameras of that size
LUMA, RGB = HEIGHT * WIDTH, 3 * HEIGHT * WIDTH
"""Bytes of a frame's luma, and of the whole frame as RGB."""
LATENCY = {
    "ours": "from the packet's hand-over to the decoder (Frame.captured) to the result in the loop's hands, as "
    "StreamStats has it: decoding, and the wait behind the frames before it that are under way, included",
    "ours at the video's pace": "from the moment the iterator gave the frame, which is decoded by then",
    "peer": "from the begin of read() to the result",
}

NOTHING = 1.0
"""A threshold that no score is above."""

Frames = Iterator[tuple[float, Any]]
"""When each frame began, on `time.perf_counter`, and what was found in it."""


# ------------------------------------------------------------------------------------------------- the clip


@dataclass(frozen=True)
class Clip:
    path: Path
    frames: int
    encoder: str

    @property
    def megabits(self) -> float:
        """A second."""
        return 8e-6 * self.path.stat().st_size * RATE / self.frames

    def __str__(self) -> str:
        return (
            f"{WIDTH}x{HEIGHT} H.264 ({self.encoder}), {RATE} frames/s, {self.frames} frames, "
            f"{self.megabits:.1f} Mbit/s"
        )


def write_clip(path: Path, frames: int) -> Clip:
    """A camera that pans over shapes, waves and grain, with a sensor's noise, which is new in every frame.

    Raises ImportError without PyAV, and RuntimeError where it has no encoder.
    """
    import av

    encoder, options = _encoder(av)
    canvas = _canvas()
    luma, chroma = _yuv(canvas)
    noise = np.random.default_rng(1).normal(0, 2, (HEIGHT + 64, WIDTH + 64)).round().astype(np.int16)
    offsets = np.random.default_rng(2).integers(0, 64, (frames, 2))
    room = np.array(canvas.shape[:2]) - (HEIGHT, WIDTH)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(encoder, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, RATE)
        stream.bit_rate = BIT_RATE
        for index in range(frames):
            turn = 2 * np.pi * index / (8 * RATE)
            y, x = (room * (0.5 + 0.5 * np.array([np.sin(turn), np.cos(turn)]))).astype(int) // 2 * 2
            dy, dx = offsets[index]
            pixels = np.empty((HEIGHT * 3 // 2, WIDTH), np.uint8)
            grain = noise[dy : dy + HEIGHT, dx : dx + WIDTH]
            pixels[:HEIGHT] = (luma[y : y + HEIGHT, x : x + WIDTH] + grain).clip(16, 235)
            part = chroma[:, y // 2 : (y + HEIGHT) // 2, x // 2 : (x + WIDTH) // 2]
            pixels[HEIGHT:] = part.reshape(-1, WIDTH)
            frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Clip(path, frames, encoder)


def _encoder(av: Any) -> tuple[str, dict[str, str]]:
    for name, options in (
        ("libx264", {"preset": "veryfast"}),
        ("libopenh264", {}),
        ("h264", {}),
    ):
        try:
            av.codec.Codec(name, "w")
        except av.codec.codec.UnknownCodecError:
            continue
        return name, options
    raise RuntimeError("PyAV has no H.264 encoder")


def _canvas() -> NDArray[np.uint8]:
    """RGB, larger than a frame: the sample with the shapes that the small model knows, enlarged, and textures."""
    from PIL import Image

    sample = Path(fai_fast.__file__).parent / "registry" / "samples" / "shapes.jpg"
    height, width = HEIGHT + 200, WIDTH + 320
    with Image.open(sample) as opened:
        shapes = np.asarray(opened.convert("RGB").resize((width * 3 // 4, height), Image.Resampling.BICUBIC))
    canvas = scenes.frame(height, width)
    canvas[:, : shapes.shape[1]] = shapes
    return canvas


def _yuv(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """BT.601 in the limited range: luma (H, W), and chroma (2, H / 2, W / 2)."""
    r, g, b = np.moveaxis(rgb.astype(np.float32), -1, 0)
    luma = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    planes = np.stack(
        [
            128 + (-37.797 * r - 74.203 * g + 112.0 * b) / 255,
            128 + (112.0 * r - 93.786 * g - 18.214 * b) / 255,
        ]
    )
    height, width = luma.shape
    chroma = planes.reshape(2, height // 2, 2, width // 2, 2).mean((2, 4))
    return luma.round().astype(np.int16), chroma.round().astype(np.uint8)


# --------------------------------------------------------------------------------------------- the contenders


def threshold_of(found: fai_fast.Detections, kept: int = 20) -> float:
    """Above the score of all but `kept` of the rows of an untrained network; 0 where there are no more."""
    scores = np.sort(found.confidence)[::-1]
    if len(scores) <= kept:
        return 0.0
    return float(scores[: kept + 1][-2:].mean())


def engine_of(model: fai_fast.Model) -> str:
    info = model.info()
    return f"{info['engine']['engine']} {info['precision']}"


def ours(
    model: fai_fast.Model, clip: Clip, threshold: float, count: int, *, frame_threads: bool = False
) -> Frames:
    """The first `count` frames through `model.stream`, every one."""
    with model.stream(clip.path, policy="all", threshold=threshold, frame_threads=frame_threads) as stream:
        for frame, found in islice(stream, count):
            yield frame.captured, found


def at_pace(
    model: fai_fast.Model, clip: Clip, threshold: float, dropped: list[int], late: list[float]
) -> Frames:
    """The newest frames of the clip, which come when its clock says so. Adds how many were dropped, and `late`."""
    with model.stream(_paced(clip.path, late), policy="latest", threshold=threshold) as stream:
        for frame, found in stream:
            yield frame.captured, found
        dropped.append(stream.dropped)


def _paced(path: Path, late: list[float]) -> Iterator[Any]:
    """PyAV's frames, each at its time; adds to `late` by how many ms each was not decoded in time."""
    import av

    with av.open(str(path)) as container:
        zero = None
        for frame in container.decode(video=0):
            now = time.perf_counter()
            zero = now - frame.time if zero is None else zero
            early = zero + frame.time - now
            late.append(1e3 * max(0.0, -early))
            time.sleep(max(0.0, early))
            yield frame


def in_decoders_memory(model: fai_fast.Model, path: Path, count: int) -> bool:
    """Whether what a stream hands to the model are the decoder's own planes, by owner and by address."""
    from av.video.plane import VideoPlane

    seen = []
    submit = model.submit

    def watched(pixels: Any, **options: Any) -> Any:
        for plane in pixels if isinstance(pixels, tuple) else (pixels,):
            owner = plane
            while isinstance(owner, np.ndarray):
                owner = owner.base
            owner = owner.obj if isinstance(owner, memoryview) else owner
            address = plane.__array_interface__["data"][0]
            seen.append(isinstance(owner, VideoPlane) and owner.buffer_ptr == address)
        return submit(pixels, **options)

    model.submit = watched
    try:
        with model.stream(path, policy="all") as stream:
            for _ in islice(stream, count):
                pass
    finally:
        del model.submit
    return len(seen) > 0 and all(seen)


# ------------------------------------------------------------------------------------------------- measuring


@dataclass
class Pass:
    """One contender once over the clip, in one loop or in several at once."""

    frames: int
    seconds: float
    cpu: float
    latencies: list[float]


def one_pass(loops: Sequence[Callable[[], Frames]]) -> Pass:
    """Runs loops to their end, several in a thread each.

    What a loop has begun and not handed out by its end is in its CPU time, but not in its frames.
    """
    cpu, start = time.process_time(), time.perf_counter()
    if len(loops) == 1:
        found = [_drain(loops[0])]
    else:
        with ThreadPoolExecutor(len(loops)) as pool:
            found = list(pool.map(_drain, loops))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    latencies = [latency for of_loop in found for latency in of_loop]
    return Pass(len(latencies), seconds, cpu, latencies)


def _drain(loop: Callable[[], Frames]) -> list[float]:
    latencies = []
    for began, found in loop():
        latencies.append(1e3 * (time.perf_counter() - began))
        del found
    return latencies


def copied(loop: Frames, skip: int, results: int = 0) -> float:
    """Bytes per frame of pixels that NumPy allocates between decoder and result, from the frame after `skip` on.

    The mean over the loop's steps of the peak of what `tracemalloc` knows over what there was when the step began, less
    `results` bytes per frame that are no copies, as a label map; 0 where that is less than a frame's luma. What is
    freed within a step is seen only as far as it was alive at once; what libraries allocate by themselves is not seen.
    Run it with a threshold that nothing reaches, for masks are no copies either.
    """
    steps = []
    gc.collect()
    tracemalloc.start(1)
    try:
        while True:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            if next(loop, None) is None:
                break
            _, peak = tracemalloc.get_traced_memory()
            steps.append(peak - before)
    finally:
        tracemalloc.stop()
    found = statistics.fmean(steps[skip:]) - results
    return found if found >= LUMA else 0.0


@dataclass
class Figures:
    """A contender in a case.

    Attributes:
        fps: results per second of each pass, all loops together.
        p50, p90, p99: milliseconds to a result, of all passes together.
        cpu: milliseconds of the whole process a result, the median of the passes.
        frames: results a pass.
        copied: bytes per frame; None where it was not counted.
        dropped: frames a pass.
        others: cores that other processes kept busy meanwhile, on average; None where that is not known.
    """

    fps: list[float]
    p50: float
    p90: float
    p99: float
    cpu: float
    frames: int
    copied: float | None = None
    dropped: int | None = None
    others: float | None = None

    @property
    def median_fps(self) -> float:
        return statistics.median(self.fps)


def in_turns(contenders: dict[str, Sequence[Callable[[], Frames]]], rounds: int) -> dict[str, Figures]:
    """Passes of contenders in turns, in an order that turns too; nobody begins before the last one's threads sleep."""
    passes: dict[str, list[Pass]] = {name: [] for name in contenders}
    busy: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            report.settle()
            before = report.machine_seconds()
            found = one_pass(contenders[name])
            after = report.machine_seconds()
            passes[name].append(found)
            if before is not None and after is not None:
                busy[name].append(max(0.0, (after - before - found.cpu) / found.seconds))
    return {name: _figures(found, busy[name]) for name, found in passes.items()}


def _figures(passes: Sequence[Pass], busy: Sequence[float]) -> Figures:
    p50, p90, p99 = np.percentile([latency for run in passes for latency in run.latencies], (50, 90, 99))
    return Figures(
        [run.frames / run.seconds for run in passes],
        float(p50),
        float(p90),
        float(p99),
        1e3 * statistics.median(run.cpu / run.frames for run in passes),
        round(statistics.median(run.frames for run in passes)),
        others=statistics.fmean(busy) if busy else None,
    )


# -------------------------------------------------------------------------------------------------- report


@dataclass
class StreamCase:
    case: str
    clip: str
    engine: str
    figures: dict[str, Figures]
    agreement: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def ratio(self, name: str) -> float:
        """Results per second of the first contender over those of `name`: above 1 the first is faster."""
        return next(iter(self.figures.values())).median_fps / self.figures[name].median_fps

    def as_dict(self) -> dict[str, Any]:
        contenders = {
            name: {**asdict(found), "median_fps": found.median_fps, "first_over_it": self.ratio(name)}
            for name, found in self.figures.items()
        }
        return {**asdict(self), "figures": contenders}

    def rows(self) -> list[list[str]]:
        return [
            [
                name,
                f"{found.median_fps:.3g}",
                f"{min(found.fps):.3g}..{max(found.fps):.3g}",
                # At the video's pace nothing can be faster than the video.
                "" if found.dropped is not None else f"{self.ratio(name):.3g}x",
                _ms(found.p50),
                _ms(found.p99),
                _ms(found.cpu),
                "" if found.copied is None else f"{found.copied / RGB:.2g} ({found.copied / 1e6:.1f} MB)",
                "" if found.dropped is None else str(found.dropped),
                f"{len(found.fps)} x {found.frames}",
            ]
            for name, found in self.figures.items()
        ]


@dataclass
class StartCase:
    case: str
    seconds: dict[str, list[float]]
    """From the start of the process to its first result, by contender; the first is ours."""
    engine: str = ""

    def as_dict(self) -> dict[str, Any]:
        first = statistics.median(next(iter(self.seconds.values())))
        medians = {name: statistics.median(times) for name, times in self.seconds.items()}
        ratio = {name: median / first for name, median in medians.items()}
        return {**asdict(self), "median": medians, "ratio": ratio}

    def rows(self) -> list[list[str]]:
        found = self.as_dict()
        return [
            [
                f"{self.case}, {self.engine}" if index == 0 else "",
                name,
                f"{found['median'][name]:.2f}",
                f"{min(times):.2f}..{max(times):.2f}",
                f"{found['ratio'][name]:.3g}x",
                str(len(times)),
            ]
            for index, (name, times) in enumerate(self.seconds.items())
        ]


@dataclass
class Report:
    """Everything that was measured in a run."""

    streams: list[StreamCase] = field(default_factory=list)
    starts: list[StartCase] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.streams or self.starts)

    def as_dict(self) -> dict[str, Any]:
        """What the JSON gets at its top: "streams" and "starts", where there are any."""
        found: dict[str, Any] = {}
        if self.streams:
            cases = [case.as_dict() for case in self.streams]
            found["streams"] = {"latency": LATENCY, "decoders": _decoders(), "cases": cases}
        if self.starts:
            found["starts"] = {"cases": [case.as_dict() for case in self.starts]}
        return found

    def table(self) -> list[str]:
        """Markdown."""
        lines = []
        for case in self.streams:
            lines += ["", f"{case.case} ({case.engine}; {case.clip})", ""]
            head = ["", "fps", "passes", "first/it", "p50 ms", "p99 ms", "CPU ms/frame"]
            lines += report.markdown([*head, "RGB frames copied", "dropped", "frames"], case.rows())
            lines += [f"agreement, {name}: {value:.3f}" for name, value in case.agreement.items()]
            lines += case.notes
            for name, found in case.figures.items():
                if found.others is not None and found.others > report.NOTABLE:
                    lines.append(
                        f"not alone: other processes kept {found.others:.1f} cores busy during {name}"
                    )
        if self.streams:
            lines += ["", *(f"p50, p99 of {whose}: {what}" for whose, what in LATENCY.items())]
        if self.starts:
            lines += ["", "from the start of a process to its first result, s", ""]
            head = ["case", "contender", "median", "rounds", "it/first", "count"]
            lines += report.markdown(head, [row for case in self.starts for row in case.rows()])
        return lines


def _ms(time: float) -> str:
    return f"{time:.3g}" if time < 99.95 else f"{time:.0f}"


def _decoders() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in ("av", "opencv-python-headless"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
