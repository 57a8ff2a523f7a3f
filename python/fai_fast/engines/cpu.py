"""The CPU that this process runs on: its name, its instructions, and how much of it there is to use.

Everything that depends on the machine is asked here, and as ``cpu.name()`` rather than by an imported name, so that
tests replace the machine in one place.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

from fai_fast import _core

__all__ = ["features", "int8_instructions", "name", "precisions", "quota", "usable_cores"]

_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")
"""With these a product of int8 takes as many instructions as one of float32, of four times as many numbers."""
_VECTORS = ("sse4", "avx", "fma", "f16c", "amx", "neon", "asimd", "sve", "bf16", "i8mm")


def name() -> str:
    """The CPU's name as it gives it itself, or the architecture's where it gives none."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def features() -> tuple[str, ...]:
    """The CPU's vector and matrix instructions, as Linux names them; empty elsewhere."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return tuple(sorted({flag for flag in flags if flag.startswith(_VECTORS)}))


def precisions(found: Iterable[str]) -> tuple[str, ...]:
    """The precisions that this CPU computes in natively, fastest first.

    Args:
        found: what an engine has found this CPU to have, among other things: "BF16", "FP16", "FP32". Only the engine
            knows for which instructions it has kernels.
    """
    names = {name.lower() for name in found}
    # With AVX512-FP16 alone, a product of fp16 is computed in float32 after its numbers were converted.
    converted = "avx512_fp16" in features() and "amx_fp16" not in features()
    order = ("bf16", "fp32", "fp16") if converted else ("bf16", "fp16", "fp32")
    return tuple(name for name in order if name in names)


def int8_instructions() -> tuple[str, ...]:
    """The instructions for products of int8 that this CPU has, which make a quantized graph fast; () for none known."""
    return tuple(name for name in _INT8 if name in features())


def usable_cores() -> int:
    """Physical cores that this process may use: its affinity, and at most the quota of its control group."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    # Two threads of one core share its arithmetic units, so that a second one gains nothing.
    cores = len({_siblings(cpu) for cpu in cpus})
    return min(cores, quota() or cores)


def quota(root: str = "") -> int | None:
    """The CPU quota of this process's control groups, versions 1 and 2, in whole CPUs, rounded up; None for none.

    Args:
        root: precedes the paths of the kernel's files, for tests.
    """
    return _core.cpu_quota(root) or None


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _cpuinfo(key: str) -> str:
    """The first value of `key` in /proc/cpuinfo, or ""."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next(
        (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), ""
    )
