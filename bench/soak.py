"""A day's work in minutes: frames of changing size and format through every way into a model, and what is left of it.

``python bench/soak.py --frames 20000 --minutes 30`` stops at whichever comes first and writes JSON. It fails where
resident memory did not settle or grew by 2 MB or more after that, a frame's result was not the one of its first time,
or a thread or a file descriptor was left.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fai_fast
import numpy as np

__all__ = ["LIMIT", "Report", "Sample", "pictures", "soak"]

MODEL = "fai-mf-n-shapes"
# Else glibc moves the size from which memory goes back to the system at once, and NumPy asks for pages of 2 MB: what is
# resident then differs by megabytes from one moment to the next, up and down, though the same is in use.
STEADY = {"MALLOC_MMAP_THRESHOLD_": "131072", "NUMPY_MADVISE_HUGEPAGE": "0"}
LIMIT = 2 << 20
"""Bytes by which resident memory may grow after the warm-up."""
SETTLED = LIMIT // 8
"""The warm-up is over once memory grew by no more than this in as many frames as it lasts at least."""
PATIENCE = 8
"""It fails after so many times as many; threads that take turns differently touch other arenas of the allocator."""
THREADS = 3

_SIZES = ((96, 128), (240, 320), (181, 257), (480, 640), (64, 700), (600, 90), (400, 400))
_LARGE = ((720, 1280), (1080, 1920))


@dataclass(frozen=True)
class Sample:
    """What the process holds at one moment, after a garbage collection.

    Attributes:
        frames: that went through before.
        resident: bytes, exact; glibc has been asked to give back what it keeps free, where `trimmed`.
        untrimmed: bytes before it was asked.
        threads, descriptors: open ones.
    """

    frames: int
    seconds: float
    resident: int
    untrimmed: int
    threads: int
    descriptors: int


@dataclass
class Report:
    """What came out; ``problems`` is empty where all is well."""

    model: str
    frames: int = 0
    seconds: float = 0.0
    ways: dict[str, int] = field(default_factory=dict)
    different: int = 0
    growth: int = 0
    samples: list[Sample] = field(default_factory=list)
    threads_left: list[str] = field(default_factory=list)
    descriptors_left: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Picture:
    """A frame, and the keywords with which ``infer`` takes it."""

    name: str
    frame: Any
    options: dict[str, str]


def pictures(*, large: bool = True, seed: int = 0) -> list[Picture]:
    """One of every format in every size, in a random order: arrays, strided views, planar YUV, JPEG and PNG bytes."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    sample = Path(fai_fast.__file__).parent / "registry" / "samples" / "shapes.jpg"
    with Image.open(sample) as opened:
        original = opened.convert("RGB")
    found = []
    for height, width in _SIZES + (_LARGE if large else ()):
        rgb = np.roll(np.asarray(original.resize((width, height))), int(rng.integers(width)), 1)
        gray = np.ascontiguousarray(rgb[..., 1])
        alpha = np.concatenate([rgb, gray[..., None]], -1)
        even = rgb[: height // 2 * 2, : width // 2 * 2]
        luma, (rows, columns) = even[..., 1], (even.shape[0], even.shape[1])
        chroma = np.full((rows // 2, columns), 128, np.uint8)
        forms: list[tuple[str, Any, dict[str, str]]] = [
            ("rgb", np.ascontiguousarray(rgb), {}),
            ("bgr", rgb[..., ::-1], {"color": "bgr"}),
            ("rgba", alpha, {"color": "rgba", "resize": "letterbox"}),
            ("gray", gray, {"color": "gray"}),
            ("fortran", np.asfortranarray(rgb), {"resize": "letterbox"}),
            ("upside down", rgb[::-1], {}),
            ("jpeg", _encoded(rgb, "JPEG"), {}),
            ("png", _encoded(gray, "PNG"), {}),
        ]
        if rows % 2 == 0:
            forms.append(("nv12", np.concatenate([luma, chroma]), {"color": "nv12"}))
            forms.append(("nv12 planes", (luma, chroma.reshape(rows // 2, -1, 2)), {"color": "nv12"}))
        found += [Picture(f"{name} {height}x{width}", frame, options) for name, frame, options in forms]
    return [found[index] for index in rng.permutation(len(found))]


def soak(
    load: Callable[[], Any],
    *,
    frames: int,
    minutes: float,
    warmup: int,
    samples: int = 20,
    large: bool = True,
    said: Callable[[str], None] = lambda line: None,
) -> Report:
    """Runs frames through ``infer``, ``submit``, threads and ``stream`` until there are enough or the time is over.

    Args:
        load: makes the model; a first one is made and closed before anything is counted.
        frames: to run after the warm-up; whole rounds are run, each picture once in every way.
        minutes: where to stop at the latest.
        warmup: frames after which growth is counted, and more of them until memory has settled.
        samples: how often memory is looked at after the warm-up, about.
        large: whether there are pictures of 720p and 1080p.
        said: is told how it goes.
    """
    shown = pictures(large=large)
    ways = [_infer, _submit, _threaded, _stream]
    with load() as model:
        expected = [model.infer(picture.frame, **picture.options) for picture in shown]
        name = model.spec.name
        for way in ways:
            for _ in way(model, shown):
                pass
    del model
    _settled()
    report = Report(name)
    threads, descriptors = _threads(), _descriptors()
    began = time.monotonic()
    with load() as model:

        def run(model: Any, count: int) -> Sample:
            """What the process holds after so many more frames, or fewer where the time is over."""
            end = report.frames + count
            while report.frames < end and time.monotonic() - began < 60 * minutes:
                # All of them before memory is looked at: each keeps room for frames in threads of its own.
                for way in ways:
                    for index, found in way(model, shown):
                        report.frames += 1
                        report.different += found != expected[index]
                    key = way.__name__.removeprefix("_")
                    report.ways[key] = report.ways.get(key, 0) + len(shown)
            sample = _sample(report.frames, time.monotonic() - began)
            said(_line(report, sample))
            return sample

        now = run(model, warmup)
        for _ in range(PATIENCE):
            before, now = now, run(model, warmup)
            if now.resident - before.resident <= SETTLED:
                break
        else:
            report.problems.append(f"resident memory had not settled after {report.frames} frames")
        report.samples.append(now)
        end = report.frames + frames
        while report.frames < end and time.monotonic() - began < 60 * minutes:
            report.samples.append(run(model, max(1, frames // samples)))
    del model
    _settled()
    report.seconds = time.monotonic() - began
    report.threads_left = sorted((_threads() - threads).elements())
    report.descriptors_left = sorted((_descriptors() - descriptors).elements())
    if report.samples:
        report.growth = report.samples[-1].resident - report.samples[0].resident
    report.problems += _problems(report)
    return report


def _problems(report: Report) -> list[str]:
    found = []
    if len(report.samples) < 2:
        found.append(f"only {report.frames} frames: the warm-up was not over")
    elif report.growth >= LIMIT:
        found.append(
            f"resident memory grew by {report.growth / 1e6:.2f} MB, expected less than {LIMIT / 1e6:.2f}"
        )
    if report.different:
        found.append(f"{report.different} results differ from those of the same frame before")
    if report.threads_left:
        found.append(f"threads left after close(): {', '.join(report.threads_left)}")
    if report.descriptors_left:
        found.append(f"descriptors left after close(): {', '.join(report.descriptors_left)}")
    return found


# ------------------------------------------------------------------------------------- the ways into a model

Found = Iterator[tuple[int, Any]]
"""Which picture, and what was found in it."""


def _infer(model: Any, shown: list[Picture]) -> Found:
    for index, picture in enumerate(shown):
        yield index, model.infer(picture.frame, **picture.options)


def _submit(model: Any, shown: list[Picture]) -> Found:
    tickets: list[tuple[int, Any]] = []
    for index, picture in enumerate(shown):
        tickets.append((index, model.submit(picture.frame, **picture.options)))
        if len(tickets) > 3:
            first, ticket = tickets.pop(0)
            yield first, ticket.result()
    for index, ticket in tickets:
        yield index, ticket.result()


def _threaded(model: Any, shown: list[Picture]) -> Found:
    results: list[tuple[int, Any]] = []

    def work(first: int) -> None:
        for index in range(first, len(shown), THREADS):
            results.append((index, model.infer(shown[index].frame, **shown[index].options)))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(results) != len(shown):
        raise RuntimeError("a thread failed")
    yield from results


def _stream(model: Any, shown: list[Picture]) -> Found:
    """A stream's frames have one format: one stream for each, and what is not a frame through ``infer``."""
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, picture in enumerate(shown):
        if isinstance(picture.frame, bytes):
            yield index, model.infer(picture.frame, **picture.options)
        else:
            groups.setdefault(tuple(sorted(picture.options.items())), []).append(index)
    for options, indices in groups.items():
        frames = iter([shown[index].frame for index in indices])
        with model.stream(frames, policy="all", **dict(options)) as stream:
            for index, (_, found) in zip(indices, stream, strict=True):
                yield index, found


# ------------------------------------------------------------------------------------ what the process holds


def _sample(frames: int, seconds: float) -> Sample:
    gc.collect()
    untrimmed = _resident()
    # Results of all sizes leave holes in glibc's arenas, which are no leak; what is left after this is in use.
    ctypes.CDLL(None).malloc_trim(0)
    return Sample(
        frames,
        round(seconds, 1),
        _resident(),
        untrimmed,
        _threads().total(),
        _descriptors().total(),
    )


def _resident() -> int:
    """Exact, which statm's counts, kept by each thread, are not."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/smaps_rollup has no Rss")


def _threads() -> Counter[str]:
    names: Counter[str] = Counter()
    for task in Path("/proc/self/task").iterdir():
        try:
            names[(task / "comm").read_text().strip()] += 1
        except OSError:  # it has just ended
            continue
    return names


def _descriptors() -> Counter[str]:
    targets: Counter[str] = Counter()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            targets[os.readlink(descriptor)] += 1
        except OSError:  # the one that lists this folder
            continue
    return targets


def _settled() -> None:
    """Threads that have ended take a moment to go."""
    gc.collect()
    time.sleep(0.2)


def _encoded(pixels: Any, form: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def _line(report: Report, last: Sample) -> str:
    growth = "warm-up"
    if report.samples:
        growth = f"{(last.resident - report.samples[0].resident) / 1e6:+.2f}"
    return (
        f"{last.frames:7d} frames {last.seconds:7.1f} s  resident {last.resident / 1e6:.2f} MB "
        f"({growth}), {last.untrimmed / 1e6:.2f} before trimming; "
        f"{last.threads} threads, {last.descriptors} descriptors, {report.different} different"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after these")
    parser.add_argument("--warmup", type=int, default=2_000, help="frames before growth counts, at least")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--small", action="store_true", help="no pictures of 720p and 1080p")
    parser.add_argument("--json", type=Path, default=Path("soak.json"), help="where the report goes")
    given = parser.parse_args()
    if not os.environ.keys() >= STEADY.keys():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **STEADY})
    report = soak(
        lambda: fai_fast.load(given.model),
        frames=given.frames,
        minutes=given.minutes,
        warmup=given.warmup,
        large=not given.small,
        said=lambda line: print(line, flush=True),
    )
    given.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    print(*(report.problems or ["all is well"]), f"written to {given.json}", sep="\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
