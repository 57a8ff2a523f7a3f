"""How a 1080p frame in ordinary memory reaches the card, and what frames that follow each other wait for.

python -m bench.staging [--seconds S] [--model NAME]

Prints the copying of our pieces over one thread's memcpy, then, where there is a GPU, a frame through a graph with
an engine that does nothing, from ordinary memory by every way of staging, from pinned memory and from the card, and
with --model the frames per second of that model with random weights and torch-cuda, in order and not.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence

import fai_fast
import numpy as np
from fai_fast import _core
from fai_fast.errors import CudaError

from bench import gpu

SIZE = (1080, 1920)
FRAMES = 24  # more than caches hold
THREADS = (1, 2, 4, 6, 8, 12)
PIECES = (64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20)
OPTIONS = ("rgb", "stretch", "bt601", "limited")


def microseconds(seconds: float, *calls: Callable[[int], object]) -> list[float]:
    """The median of each, called in turn for about `seconds` altogether."""
    taken: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    for number in itertools.count():
        for call, times in zip(calls, taken, strict=True):
            began = time.perf_counter()
            call(number)
            times.append(time.perf_counter() - began)
        if number >= 8 and time.perf_counter() > end:
            return [float(np.median(times[3:])) * 1e6 for times in taken]
    raise AssertionError


def copying(frames: Sequence[np.ndarray], out: np.ndarray, seconds: float) -> None:
    print(f"copying {out.nbytes} bytes, microseconds (times memcpy of one thread)")
    room = out.reshape(frames[0].shape)
    for threads, past_cache in itertools.product(THREADS, (False, True)):
        if threads > fai_fast.build_info()["threads"]:
            continue
        cells = []
        for piece in PIECES:
            ours, memcpy = microseconds(
                seconds,
                lambda i, threads=threads, piece=piece, past=past_cache: _core.stage(
                    frames[i % FRAMES], out, threads=threads, piece_bytes=piece, past_cache=past
                ),
                lambda i: np.copyto(room, frames[(i + FRAMES // 2) % FRAMES]),
            )
            cells.append(f"{piece >> 10} KiB {ours:.0f} ({ours / memcpy:.2f}x)")
        print(f"  {threads} threads{', past the cache' if past_cache else ''}: {', '.join(cells)}")


def uploading(frames: Sequence[np.ndarray], seconds: float) -> None:
    graph = gpu.captured(gpu.frame_graph())

    def through(source: object) -> None:
        graph.submit([(source, *OPTIONS)], 0.5, 0.5, True)
        graph.wait(-1.0)
        graph.results(100)

    print("a frame through a graph without an engine, microseconds")
    on_device = gpu.on_device(frames)
    sources = {"on the card": [on_device[i] for i in range(FRAMES)]}
    if (pinned := gpu.pinned(frames[0])) is not None:
        sources["pinned"] = [pinned] * FRAMES
    for name, source in sources.items():
        [taken] = microseconds(seconds, lambda i, source=source: through(source[i % FRAMES]))
        print(f"  {name}: {taken:.0f}, upload by events {1e3 * graph.times()['upload']:.0f}")
    for threads, past_cache in itertools.product(THREADS, (False, True)):
        if threads > fai_fast.build_info()["threads"]:
            continue
        cells = []
        for piece in PIECES:
            graph.set_staging(threads=threads, piece_bytes=piece, past_cache=past_cache)
            [taken] = microseconds(seconds, lambda i: through(frames[i % FRAMES]))
            cells.append(f"{piece >> 10} KiB {taken:.0f} ({1e3 * graph.times()['upload']:.0f})")
        print(f"  {threads} threads{', past the cache' if past_cache else ''}: {', '.join(cells)}")
    graph.close()


def pipelining(name: str, frames: Sequence[np.ndarray], seconds: float) -> None:
    print(f"{name} with random weights, frames/s (depth: frames on their way)")
    with fai_fast.load(name, weights="random", engine="torch-cuda", device="cuda") as model:
        model.warmup()
        on_device = gpu.on_device(frames[:4])
        pinned = gpu.pinned(frames[0])
        sources = {"on the card": on_device, "ordinary": list(frames)}
        if pinned is not None:
            sources["pinned"] = [pinned]
        for source, in_order, depth in itertools.product(sources, (True, False), (1, 2, 3)):
            model._pipeline._in_order = in_order
            waiting: deque[fai_fast.InferFuture] = deque()
            count, end = 0, 0.0
            for number in itertools.count():
                if number == 10:  # by then every slot is there
                    began = time.perf_counter()
                    count, end = 0, began + max(seconds, 0.2)
                waiting.append(model.submit(sources[source][number % len(sources[source])], threshold=0.9))
                if len(waiting) >= depth:
                    waiting.popleft().result()
                    count += 1
                if number > 10 and time.perf_counter() > end:
                    break
            rate = count / (time.perf_counter() - began)
            print(f"  {source}, {'in order' if in_order else 'not in order'}, depth {depth}: {rate:.0f}")
            for ticket in waiting:
                ticket.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.1, help="for each figure")
    parser.add_argument("--model", help="whose frames follow each other")
    options = parser.parse_args()
    frames = [np.full((*SIZE, 3), number, np.uint8) for number in range(FRAMES)]
    copying(frames, np.zeros(frames[0].nbytes, np.uint8), options.seconds)
    try:
        gpu.card()
    except CudaError as error:
        print(f"no GPU: {error}")
        return
    uploading(frames, options.seconds)
    if options.model:
        pipelining(options.model, frames, options.seconds)


if __name__ == "__main__":
    main()
