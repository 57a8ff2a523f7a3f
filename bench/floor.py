"""Memory bandwidth of this machine, and the least time that moving some bytes takes there.

`python -m bench.floor` prints what it measures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

_BYTES = 1 << 28  # a thread's buffer, many times any cache
_ROUNDS = 5


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second, the best of a few passes over memory that no cache holds."""

    read: float
    write: float


@dataclass(frozen=True)
class Floor:
    """Bytes that a kernel cannot avoid to move, and why these."""

    read: int
    written: int
    why: str

    def seconds(self, bandwidth: Bandwidth) -> float:
        # Reads and writes share one bus, so their times add up.
        return self.read / bandwidth.read + self.written / bandwidth.write


@cache
def bandwidth(threads: int) -> Bandwidth:
    """Measured with NumPy's vectorised max (reads only) and fill (writes only), a buffer for each thread."""
    buffers = [np.ones(_BYTES // 4, np.int32) for _ in range(threads)]
    total = threads * _BYTES
    return Bandwidth(
        read=total / _best([buffer.max for buffer in buffers]),
        write=total / _best([lambda b=buffer: b.fill(1) for buffer in buffers]),
    )


def _best(jobs: list[Callable[[], object]]) -> float:
    """Seconds until all jobs, each in a thread of its own, are done; NumPy gives up the GIL in them."""
    best = float("inf")
    for _ in range(_ROUNDS):
        workers = [threading.Thread(target=job) for job in jobs[1:]]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        jobs[0]()
        for worker in workers:
            worker.join()
        best = min(best, time.perf_counter() - start)
    return best


def touched(source: int, target: int) -> int:
    """Rows of the source that a bilinear resize to `target` rows reads with a weight above zero."""
    position = ((np.arange(target) + 0.5) * source / target - 0.5).clip(0, source - 1)
    low = np.floor(position)
    return np.union1d(low, np.ceil(position)).size


if __name__ == "__main__":
    for count in (1, 2):
        rate = bandwidth(count)
        print(f"{count} thread(s): read {rate.read / 1e9:.1f} GB/s, write {rate.write / 1e9:.1f} GB/s")
