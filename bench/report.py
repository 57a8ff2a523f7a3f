"""Interleaved timing of contenders, and the table and JSON of what came out."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fai_fast
import numpy as np

from bench.floor import Floor, arithmetic, bandwidth

OURS = "fai_fast"
_BLOCK_S = 0.02  # a contender's turn in a round: one call if it takes longer, else as many as fit
_WATCH_S = 0.01  # longer than a tick of the kernel's clock, by which it counts the time of running threads
_IDLE = 0.05  # of a core, at which a process counts as asleep
_LONGEST_SETTLE_S = 2.0
NOTABLE = 0.1  # cores that others may use before the report says so
_SLOW_S = 0.05  # from here on a call fills the caches itself and gets no untimed call before it
_PACKAGES = (
    "numpy",
    "openvino",
    "onnxruntime",
    "onnx",
    "opencv-python-headless",
    "torch",
    "transformers",
    "supervision",
    "pycocotools",
)


@dataclass(frozen=True)
class Times:
    """Seconds a call: median, quartiles and the least over `calls` calls."""

    best: float
    median: float
    q1: float
    q3: float
    calls: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        q1, median, q3 = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        return cls(min(seconds), median, q1, q3, len(seconds))


@dataclass
class Result:
    kernel: str
    case: str
    threads: int
    floor: Floor
    times: dict[str, Times]
    rounds: int
    agreement: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    """Of ours, median ms."""
    others: float | None = None
    """Cores that other processes kept busy meanwhile, on average; None where that is not known."""

    def as_dict(self) -> dict[str, Any]:
        ours = self.times[OURS].median
        floor = self.floor.seconds(self.threads)
        return {
            "kernel": self.kernel,
            "case": self.case,
            "threads": self.threads,
            "rounds": self.rounds,
            "seconds": {name: asdict(times) for name, times in self.times.items()},
            "ratio": {name: t.median / ours for name, t in self.times.items() if name != OURS},
            "floor": {
                "bytes_read": self.floor.read,
                "bytes_written": self.floor.written,
                "operations": self.floor.operations,
                "why": self.floor.why,
                "seconds": floor,
                "ours_over_floor": ours / floor,
            },
            "agreement": self.agreement,
            "stages_ms": self.stages,
            "cores_busy_with_other_processes": self.others,
        }


def interleave(
    contenders: dict[str, Callable[[], object]], budget: float, min_rounds: int
) -> tuple[dict[str, Times], int, float | None]:
    """Times contenders in turns, round by round in one process, until `budget` seconds have passed.

    The order turns by one each round, so that nobody always follows the same neighbor, and nobody begins before the
    threads of the last one sleep.

    Returns:
        Times, rounds, and how many cores other processes kept busy meanwhile.
    """
    calls, warm = {}, {}
    for name, run in contenders.items():
        took = _timed(run)  # not its first call: its result has been checked
        warm[name] = took < _SLOW_S
        calls[name] = max(1, min(100, int(_BLOCK_S / took)))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    gc.collect()
    machine_before, ours_before, start = machine_seconds(), time.process_time(), time.perf_counter()
    end = start + budget
    rounds = 0
    while rounds < min_rounds or time.perf_counter() < end:
        for name in names[rounds % len(names) :] + names[: rounds % len(names)]:
            run = contenders[name]
            settle()
            if warm[name]:
                run()
            seconds[name] += [_timed(run) for _ in range(calls[name])]
        rounds += 1
    others = None
    if machine_before is not None and (machine_after := machine_seconds()) is not None:
        used = machine_after - machine_before - (time.process_time() - ours_before)
        others = max(0.0, used / (time.perf_counter() - start))
    return {name: Times.of(values) for name, values in seconds.items()}, rounds, others


def settle() -> None:
    """Waits until no thread of this process runs: the workers of some pools go on spinning when the work is done.

    ONNX Runtime's do so for 40 ms, and would take one of two cores from whoever comes next.
    """
    end = time.perf_counter() + _LONGEST_SETTLE_S
    while True:
        cpu, start = time.process_time(), time.perf_counter()
        time.sleep(_WATCH_S)
        now = time.perf_counter()
        if time.process_time() - cpu < _IDLE * (now - start):
            return
        if now > end:
            raise RuntimeError(f"threads of this process still run {_LONGEST_SETTLE_S} s after the last call")


def machine_seconds() -> float | None:
    """CPU time that all processes of this machine, and others on its host, have used; None where unknown."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    result = run()
    end = time.perf_counter()
    del result  # freeing it is not part of the call
    return end - start


def machine() -> dict[str, Any]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
        "fai_fast": fai_fast.build_info(),
        "load_average": os.getloadavg(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def to_json(results: Sequence[Result], absent: dict[str, str]) -> str:
    rates = {str(n): asdict(bandwidth(n)) for n in sorted({result.threads for result in results})}
    computing = sorted({result.threads for result in results if result.floor.operations})
    return json.dumps(
        {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join(["pytest", *sys.argv[1:]]),
            "machine": machine(),
            "bandwidth_bytes_per_second": rates,
            "float32_operations_per_second": {str(n): arithmetic(n) for n in computing},
            "absent": absent,
            "results": [result.as_dict() for result in results],
        },
        indent=1,
    )


def table(results: Sequence[Result], absent: dict[str, str]) -> list[str]:
    """One Markdown table a kernel: a row a case, a column a contender."""
    lines = []
    for kernel in dict.fromkeys(result.kernel for result in results):
        rows = [result for result in results if result.kernel == kernel]
        peers = list(dict.fromkeys(name for row in rows for name in row.times if name != OURS))
        head = ["case", "fai_fast ms", "floor ms", "x floor", "MB read + written, operations", *peers]
        body = [_cells(row, peers) for row in rows]
        lines += ["", f"{kernel} ({rows[0].threads} thread{'s' * (rows[0].threads > 1)})"]
        lines += markdown(head, body)
    lines.append("")
    for threads in sorted({result.threads for result in results}):
        rate = bandwidth(threads)
        speed = f"{rate.read / 1e9:.1f} GB/s read, {rate.write / 1e9:.1f} GB/s written"
        lines.append(f"memory, {threads} thread(s): {speed}")
    for threads in sorted({result.threads for result in results if result.floor.operations}):
        lines.append(
            f"float32 matrix product, {threads} thread(s): {arithmetic(threads) / 1e9:.0f} G operations/s"
        )
    for result in results:
        if result.stages:
            parts = ", ".join(f"{name} {time:.3g}" for name, time in result.stages.items())
            lines.append(f"stages of {result.kernel}, {result.case}, ms: {parts}")
        if result.others is not None and result.others > NOTABLE:
            lines.append(
                f"not alone: other processes kept {result.others:.1f} cores busy during {result.kernel}, {result.case}"
            )
        for name, share in result.agreement.items():
            lines.append(f"agreement with {name}, {result.kernel}, {result.case}: {share:.3f}")
    lines += [f"absent: {name} ({reason})" for name, reason in absent.items()]
    return lines


def _cells(row: Result, peers: Sequence[str]) -> list[str]:
    ours = row.times[OURS].median
    floor = row.floor.seconds(row.threads)
    cells = [row.case, _ms(ours), _ms(floor), f"{ours / floor:.1f}"]
    moved = f"{row.floor.read / 1e6:.3g} + {row.floor.written / 1e6:.3g}"
    cells.append(f"{moved}, {row.floor.operations / 1e9:.3g} G" if row.floor.operations else moved)
    for name in peers:
        times = row.times.get(name)
        cells.append("-" if times is None else f"{_ms(times.median)} ({times.median / ours:.3g}x)")
    return cells


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 0.9995 else f"{seconds * 1e3:.0f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines, its columns in line."""
    widths = [max(3, *map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return [
        "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |" for cells in lines
    ]
