"""How fast an ordinary frame can reach the card on this machine, by the best of several ways (bench/upload.cpp)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench import gpu

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "bench/upload.cpp"
EMULATOR = ROOT / "tests/cuda_emulator"
_FRAMES = 24  # more than a CPU's caches hold
_MOST_THREADS = 8
_BUILD_S, _RUN_S = 120, 60


@dataclass(frozen=True)
class Ways:
    """Microseconds that a frame takes to the card by each way: the same frame each time, and many in turns."""

    bytes: int
    warm: dict[str, float]
    cold: dict[str, float]

    def as_dict(self) -> dict[str, dict[str, float]]:
        """By way."""
        return {way: {"warm": us, "cold": self.cold[way]} for way, us in self.warm.items()}

    @property
    def best(self) -> str:
        """The fastest way for the same frame each time, as the models' frames are."""
        return min(self.warm, key=self.warm.__getitem__)


def compiler(emulated: bool) -> list[str]:
    """The command that builds the program, up to its output. Raises FileNotFoundError without a compiler."""
    name = "c++" if emulated else "nvcc"
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"there is no {name} on the PATH")
    if emulated:
        runtime = [str(EMULATOR / f"{part}.cpp") for part in ("runtime", "execution")]
        flags = ["-std=c++20", "-O1", "-pthread", f"-I{EMULATOR}", "-include", "cuda_runtime.h"]
        return [found, *flags, str(SOURCE), *runtime, "-ldl"]
    return [found, "-O3", "-std=c++17", "-Xcompiler", "-pthread", str(SOURCE)]


@cache
def measure(size: int, *, trial: bool = False) -> Ways | str:
    """Of a frame of `size` bytes to the first GPU; or why it cannot be measured. A trial measures next to nothing."""
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    frames, runs = (2, 1) if trial else (_FRAMES, 30)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "upload"
        try:
            command = [*compiler(gpu.emulated()), "-o", str(program)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_BUILD_S)
            numbers = [gpu.card().index, size, frames, runs, threads]
            run = [str(program), *map(str, numbers)]
            done = subprocess.run(run, check=True, capture_output=True, text=True, timeout=_RUN_S)
        except subprocess.CalledProcessError as error:
            return f"{error}: {error.stderr.strip()[-500:]}"
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    found = json.loads(done.stdout)
    return Ways(size, *({way: found[way][kind] for way in found} for kind in ("warm", "cold")))
